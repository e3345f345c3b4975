//! What every Kafka client of ours shares: base properties, and what it logs.
//!
//! librdkafka repeats a fault at every attempt. Here a fault is told once when it begins and once when it is over;
//! the rest goes to DEBUG (target `librdkafka`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Properties of a client: the brokers and whatever the user adds (security and so on).
#[derive(Clone, Debug, Default)]
pub struct Properties {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// Any librdkafka property, for every client.
    pub common: BTreeMap<String, String>,
    /// For consumers only.
    pub consumer: BTreeMap<String, String>,
    /// For producers only.
    pub producer: BTreeMap<String, String>,
}

impl Properties {
    /// Properties with brokers alone.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), ..Self::default() }
    }

    /// `client.id` of every client.
    pub fn client_id(&self) -> &str {
        self.common.get("client.id").map_or("retry-ladder", String::as_str)
    }

    /// For a consumer that only looks: it joins no group, commits nothing and creates no topic. librdkafka wants a group's
    /// name all the same.
    pub(super) fn onlooker(&self, group: &str) -> ClientConfig {
        let mut config = self.base();
        for (key, value) in &self.consumer {
            config.set(key, value);
        }
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false");
        config
    }

    pub(super) fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", self.client_id());
        // Reconnects at least every 30 s, at once the first time.
        config.set("reconnect.backoff.ms", "250").set("reconnect.backoff.max.ms", "30000");
        config.set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in &self.common {
            config.set(key, value);
        }
        config
    }
}

/// What to correct where librdkafka's complaint says that somebody refuses the connection, which asking again does not mend.
pub(crate) fn remedy_of_refusal(complaint: &str) -> Option<&'static str> {
    if complaint.contains("SASL authentication error") {
        Some("check sasl.mechanism, sasl.username and sasl.password in kafka.properties")
    } else if complaint.contains("Unsupported SASL mechanism") {
        Some("check sasl.mechanism in kafka.properties")
    } else if complaint.contains("certificate verify failed") {
        Some("check ssl.ca.location in kafka.properties, and the name that the broker's certificate is made out to")
    } else if CERTIFICATE_ALERTS.iter().any(|alert| complaint.contains(alert)) {
        Some(
            "check ssl.certificate.location and ssl.key.location in kafka.properties: the broker wants a certificate of an \
             authority that it trusts",
        )
    } else {
        None
    }
}

/// What a broker says of a client's certificate that is missing, or that it does not take, as OpenSSL tells it.
const CERTIFICATE_ALERTS: [&str; 7] = [
    "SSL alert number 42",
    "SSL alert number 43",
    "SSL alert number 44",
    "SSL alert number 45",
    "SSL alert number 46",
    "SSL alert number 48",
    "SSL alert number 116",
];

/// What is wrong where a right is missing on a topic or for a group.
pub(super) fn missing_right(error: &KafkaError, topic: &str, group: Option<&str>, right: &str) -> Option<String> {
    match (error.rdkafka_error_code()?, group) {
        (RDKafkaErrorCode::TopicAuthorizationFailed, _) => {
            Some(format!("this user lacks the right {right} on topic {topic} (docs/security.md)"))
        }
        (RDKafkaErrorCode::GroupAuthorizationFailed, Some(group)) => {
            Some(format!("this user lacks the right Read on group {group} (docs/security.md)"))
        }
        _ => None,
    }
}

/// Tells once that the brokers are gone and once that they are back.
#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    down: AtomicBool,
}

impl Connection {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), down: AtomicBool::new(false) }
    }

    /// Something came from a broker.
    pub(super) fn is_up(&self) {
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) {
            tracing::info!(client = %self.name, "kafka is back");
        }
    }

    pub(super) fn error(&self, error: &KafkaError, reason: &str) {
        let all_down = matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AllBrokersDown));
        if all_down && !self.down.swap(true, Ordering::Relaxed) {
            tracing::warn!(client = %self.name, reason, "no kafka broker can be reached; trying again until one can");
        } else {
            tracing::debug!(target: "librdkafka", client = %self.name, %error, reason);
        }
    }

    pub(super) fn log(&self, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", client = %self.name, facility, message);
    }
}

/// For clients whose failures come back as answers: what librdkafka says besides goes to DEBUG.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
    }
}

impl ConsumerContext for Quiet {}
