//! Wiring: builds the adapters and runs stages. The command line and library users come in here.

pub mod decode;
pub mod engine;
