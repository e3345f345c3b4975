//! Kafka through librdkafka: consumer, producer, admin.

pub mod admin;
