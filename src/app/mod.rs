//! Wiring: builds the adapters from a configuration and runs stages. The command line and library users come in here.
//!
//! [`Builder`] is the way in for a program of one's own; [`engine`] runs stages, [`wire`] turns the configuration into
//! what the engine is given, [`decode`] joins the message decoder to the stage's port.

pub mod builder;
pub mod decode;
pub mod engine;
pub mod wire;

pub use builder::{App, Builder, Error, StageName};
