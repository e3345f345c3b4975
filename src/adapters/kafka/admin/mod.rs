//! Topics on the cluster: look, create, add partitions, and nothing else; never deletes, never alters a setting.
//!
//! [`Admin`] asks the cluster, [`plan`] says which topics there should be and what differs (pure), [`topics`] is what
//! `pipeline topics` does, [`startup`] decides whether stages may start.
//!
//! Invariants: looking at a topic never creates it (the lookups go through a consumer, which asks the broker not to);
//! nothing waits longer than its time-out; librdkafka's own complaints go to the log at DEBUG and the last of them
//! into the error that we return.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;

pub mod plan;
pub mod startup;
pub mod topics;

mod client;
mod lookup;

use crate::telemetry::duration;
pub use client::Admin;
use plan::ActualTopic;

/// Longest wait for one request to a cluster that was reachable a moment ago.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause between two looks at something that is about to change.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What goes wrong between us and the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses a setting; the value is left out, it may be a secret.
    #[error("kafka client setting `{key}` refused: {reason}")]
    Settings {
        /// Name of the librdkafka property, or `client` when it is the combination.
        key: String,
        /// librdkafka's reason.
        reason: String,
    },
    /// No broker answered in time.
    #[error("kafka not reachable at {brokers} within {}: {cause}; start it, or correct kafka.brokers", duration::show(*timeout))]
    Unreachable {
        /// As configured.
        brokers: String,
        /// How long we tried.
        timeout: Duration,
        /// The client's last complaint.
        cause: String,
    },
    /// A broker does not let this client in, or this client does not trust the broker.
    #[error("kafka at {brokers} cannot be used: {cause}; {remedy}")]
    Refused {
        /// As configured.
        brokers: String,
        /// The client's last complaint.
        cause: String,
        /// The properties to correct.
        remedy: &'static str,
    },
    /// Topics that the stages need do not exist.
    #[error("topics missing at {brokers}: {}; remedy: scripts/create-topics.sh creates them", topics.join(", "))]
    Missing {
        /// As configured.
        brokers: String,
        /// Name of each, with a remark where it may only be hidden.
        topics: Vec<String>,
    },
    /// Topics are such that events would be lost.
    #[error(
        "topics would break the delivery promise, nothing started (`allow_unsafe_topics: true` overrides):\n{}",
        faults.join("\n")
    )]
    Unsafe {
        /// One text per difference, remedy included.
        faults: Vec<String>,
    },
    /// The cluster answered with an error.
    #[error("kafka at {brokers}: {action}: {source}")]
    Kafka {
        /// As configured.
        brokers: String,
        /// What we asked for.
        action: &'static str,
        /// Its answer.
        source: KafkaError,
    },
}

impl Error {
    /// The process's exit code for this error: 64 settings or unsafe topics, 69 unreachable or missing, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Settings { .. } | Error::Refused { .. } | Error::Unsafe { .. } => 64,
            Error::Unreachable { .. } | Error::Missing { .. } => 69,
            Error::Kafka { .. } => 1,
        }
    }
}

/// Where the cluster is and how to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// librdkafka properties for every client (`security.protocol`, `sasl.*`, …).
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.properties.keys().collect();
        f.debug_struct("Connection").field("brokers", &self.brokers).field("properties", &names).finish()
    }
}

impl Connection {
    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", "retry-ladder-admin");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// For a consumer: with this setting, the broker does not create a topic that is asked for.
    fn lookup_config(&self) -> ClientConfig {
        let mut config = self.client_config();
        config.set("allow.auto.create.topics", "false");
        config
    }
}

/// What is known about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// It is there.
    Exists(ActualTopic),
    /// It is not.
    Missing,
    /// This user may not describe it, so the broker does not say whether it exists.
    Hidden,
}

/// For how long a topic keeps its records, whether they were handled or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// Not known, or not yet: the settings may be unreadable for this user.
    #[default]
    Unknown,
    /// Age deletes none (`retention.ms` is -1, or the topic is compacted only).
    Forever,
    /// Records that are older may be gone.
    Limited(Duration),
}

impl Retention {
    /// As these settings of a topic say.
    pub fn of(configs: &BTreeMap<String, String>) -> Self {
        if configs.get("cleanup.policy").is_some_and(|policy| !policy.contains("delete")) {
            return Retention::Forever;
        }
        match configs.get("retention.ms").map(|ms| ms.parse::<i64>()) {
            Some(Ok(ms)) => u64::try_from(ms).map_or(Retention::Forever, |ms| Self::Limited(Duration::from_millis(ms))),
            _ => Retention::Unknown,
        }
    }

    /// The time, where there is a limit and it is known.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Retention::Limited(limit) => Some(limit),
            Retention::Unknown | Retention::Forever => None,
        }
    }
}

/// What became of the wish to create a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// We created it.
    Created,
    /// Somebody else had, or was faster.
    Existed,
    /// The cluster refused.
    Refused(String),
}

/// A topic that was a rung of a ladder and still holds events for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Name of the pipeline that it belonged to.
    pub pipeline: String,
    /// Name of the topic.
    pub topic: String,
    /// Name of the stage that it was.
    pub stage: String,
    /// Consumer group whose committed offsets were compared.
    pub group: String,
    /// Records that the group has not consumed; `None` when this user may not read its offsets.
    pub backlog: Option<u64>,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backlog {
            Some(count) => write!(f, "{count} messages that group {} has not consumed", self.group)?,
            None => write!(f, "an unknown backlog: the offsets of group {} cannot be read", self.group)?,
        }
        write!(f, ", no rung of pipeline {} now; drain with --stage orphan:{}", self.pipeline, self.topic)
    }
}
