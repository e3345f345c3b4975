//! Kafka through librdkafka: consumer, producer, admin; and a broker inside the process for the demo.

pub mod admin;
mod client;
pub mod consumer;
pub mod control;
pub mod embedded;
pub mod lag;
pub mod producer;
mod offsets;
mod own;
mod raw;
pub mod scan;
pub mod transactions;

pub use client::Properties;
pub(crate) use client::remedy_of_refusal;
