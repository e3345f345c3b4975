//! The typed configuration: what the rest of the program is given. Valid by construction: only [`super::load`] makes
//! one, and only without faults. Nothing here is optional that has a default; names that follow from others are filled in.

use std::path::PathBuf;
use std::time::Duration;

pub use super::choices::{
    CompatHeaders, Forward, Framing, HttpBody, LogFormat, OnUnavailable, Order, StatusClass, Store, Tombstones,
};
pub use super::keys::{
    Admin, Brake, Breaker, Classify, Console, EventId, Handler, HttpHandler, Kafka, LogHandler, Redis, Registry,
    SimulateHandler, Telemetry, Window,
};
pub use super::postgres::{Columns, PostgresHandler};
pub use super::secret::{Endpoint, Endpoints, Properties, Secret};
pub use super::settings::{ByteSize, Ratio};

/// The whole configuration. `Debug` shows no secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Kafka and how this process is its client.
    pub kafka: Kafka,
    /// Where deduplication records are kept.
    pub redis: Redis,
    /// Where writers' schemas are.
    pub registry: Registry,
    /// At least one, by name; no two share a retry topic, a DLQ, or topic and group.
    pub pipelines: Vec<Pipeline>,
    /// Static member id, one per process.
    pub instance: Option<String>,
    /// Health, metrics and status server.
    pub admin: Admin,
    /// Traces and logs.
    pub telemetry: Telemetry,
    /// The web console.
    pub console: Console,
}

impl Config {
    /// The pipeline of this name.
    pub fn pipeline(&self, name: &str) -> Option<&Pipeline> {
        self.pipelines.iter().find(|p| p.name == name)
    }

    /// What works and is probably not meant, one text each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for pipeline in &self.pipelines {
            if let Handler::Postgres(handler) = &pipeline.handler {
                warnings.extend(super::postgres::warning(handler, pipeline));
            }
        }
        for (i, one) in self.pipelines.iter().enumerate() {
            for other in self.pipelines[i + 1..].iter().filter(|other| other.group == one.group) {
                warnings.push(format!(
                    "pipelines {} and {} share the group {} on different topics, {} and {}: a rebalance of one touches \
                     the other; right would be: a group of its own for each",
                    one.name, other.name, one.group, one.topic, other.topic
                ));
            }
        }
        warnings
    }
}

/// One consumer group's ladder over one main topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Its name in the configuration.
    pub name: String,
    /// Main topic.
    pub topic: String,
    /// Consumer group on main; on other stages `<group>.<stage>`.
    pub group: String,
    /// Full name of the Protobuf message; none only where the registry says what each value is.
    pub message: Option<String>,
    /// File with a compiled descriptor set; without one the built-in protos.
    pub descriptor_set: Option<PathBuf>,
    /// How payloads are framed.
    pub framing: Framing,
    /// Partitions of topics that are created, at least 1.
    pub partitions: u32,
    /// Replicas of topics that are created, at least 1.
    pub replication: u16,
    /// The retry stages in order: 0 to 16, delays rise strictly.
    pub retries: Vec<Retry>,
    /// How long retry topics keep records; longer than the ladder.
    pub retention: Duration,
    /// Where events end that failed for good.
    pub dlq: Dlq,
    /// Handlers in flight per stage and process, at least 1.
    pub concurrency: usize,
    /// In which order handlers of one key run.
    pub order: Order,
    /// How events are sent on.
    pub forward: Forward,
    /// With `order: ladder`: one that is this much overdue is no longer waited for.
    pub order_patience: Duration,
    /// With `order: ladder`: events of one key that may be in the ladder.
    pub order_room: usize,
    /// What becomes of null values.
    pub tombstones: Tombstones,
    /// An event older than this at a failure goes to the DLQ.
    pub max_event_age: Option<Duration>,
    /// Where the event id is found.
    pub event_id: EventId,
    /// How concurrent and repeated executions are prevented.
    pub idempotency: Idempotency,
    /// What executes events.
    pub handler: Handler,
    /// One execution is cancelled after this long.
    pub handler_timeout: Duration,
    /// How much is held in memory per partition.
    pub window: Window,
    /// What pauses it while the handler's target is down.
    pub breaker: Breaker,
    /// What pauses it when too many events become dead letters.
    pub brake: Brake,
    /// How often the last stage may repeat because a target asked for a longer wait.
    pub max_deferrals: u32,
    /// Headers that other tools read on DLQ records.
    pub compat_headers: Vec<CompatHeaders>,
    /// Start even when a topic's settings could lose events.
    pub allow_unsafe_topics: bool,
}

impl Pipeline {
    /// Full name of the Protobuf message; empty where each value has its own.
    pub fn message_name(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    /// Every stage in order: name and topic, `main` first and `dlq` last.
    pub fn stages(&self) -> Vec<(String, &str)> {
        let retries = self.retries.iter().enumerate().map(|(i, r)| (format!("retry-{}", i + 1), r.topic.as_str()));
        std::iter::once(("main".to_owned(), self.topic.as_str()))
            .chain(retries)
            .chain([("dlq".to_owned(), self.dlq.topic.as_str())])
            .collect()
    }

    /// Consumer group of a stage.
    pub fn stage_group(&self, stage: &str) -> String {
        if stage == "main" { self.group.clone() } else { format!("{}.{stage}", self.group) }
    }

    /// The longest way through the ladder: the sum of the delays with their jitter.
    pub fn ladder_length(&self) -> Duration {
        ladder_length(&self.retries)
    }
}

/// The sum of the delays with their jitter, saturating.
pub(super) fn ladder_length<'a>(retries: impl IntoIterator<Item = &'a Retry>) -> Duration {
    retries
        .into_iter()
        .fold(Duration::ZERO, |sum, r| sum.saturating_add(r.delay.saturating_add(r.delay.mul_f64(r.jitter))))
}

/// One retry stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// How long an event waits here.
    pub delay: Duration,
    /// A random share of the delay that is added: 0 to 0.1.
    pub jitter: f64,
    /// Its topic.
    pub topic: String,
    /// Handlers in flight on this stage; without one the pipeline's.
    pub concurrency: Option<usize>,
}

/// The dead letter queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dlq {
    /// Its topic.
    pub topic: String,
    /// How long it keeps records.
    pub retention: Duration,
    /// Where to tell that letters came.
    pub webhook: Option<Endpoint>,
    /// At most once in this time.
    pub webhook_every: Duration,
}

/// How concurrent and repeated executions are prevented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Where records are kept.
    pub store: Store,
    /// How long a claim lasts without renewal, at least 3 s.
    pub lease: Duration,
    /// How long a finished event is remembered: at least 24 h and twice the ladder.
    pub done_ttl: Duration,
    /// How long a moved event is remembered: at least `done_ttl`.
    pub handed_ttl: Duration,
    /// What happens while the store cannot be reached.
    pub on_unavailable: OnUnavailable,
}
