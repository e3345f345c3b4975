//! Kafka through librdkafka: consumer, producer, admin.

pub mod admin;
mod client;
pub mod consumer;
pub mod lag;
pub mod producer;
mod raw;

pub use client::Properties;
