//! Seen from outside: health, metrics and status of the stages that run in this process.
//!
//! [`monitor`] looks (at the lanes, exactly; at the log for what lies beyond them), [`expose`] writes what it saw as
//! metrics and as JSON, [`health`] judges it, [`retention`] warns before events are deleted unhandled, [`server`] answers
//! over HTTP. Nothing of that changes anything.
//!
//! [`outside`] looks from anywhere, from Kafka alone, but for what [`instances`] say of their own pauses.
//!
//! [`dlq`] is another matter: it reads the dead letters of a pipeline, from anywhere, and redrives them when told to.
//! [`console`] shows all that in a browser.

pub mod console;
pub mod dlq;
pub mod expose;
pub mod health;
pub mod instances;
pub mod monitor;
pub mod outside;
pub mod retention;
pub mod server;
