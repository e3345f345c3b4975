//! Which topics a pipeline needs and how a topic on the cluster differs from that. Pure: no I/O, no clock.
//!
//! Invariants: [`compare`] calls a difference [`Severity::Unsafe`] exactly when a waiting or dead-lettered event could
//! be deleted, or an acknowledged one lost with a single broker; a setting that the broker did not tell is never
//! judged; the main topic belongs to its owner, so only its counts are compared.
//!
//! Talking to the cluster is [`super`]'s part, creating [`super::topics`]'s, refusing to start [`super::startup`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::TopicState;
use crate::telemetry::duration;

/// Room for the headers that a hop adds (at most 8 KiB) and for batch overhead, so that the largest event of main
/// still fits into every later topic.
const HEADER_ROOM: u64 = 16 * 1024;

/// The topics of one pipeline as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineTopics {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Main topic.
    pub topic: String,
    /// Consumer group.
    pub group: String,
    /// Partitions of a main topic that has to be created; once main exists, its own count is what the others follow.
    pub partitions: i32,
    /// Replicas of each topic that has to be created.
    pub replication: i32,
    /// The retry stages in their order.
    pub retries: Vec<RetryTopic>,
    /// Retention of the retry topics, and of a main topic that has to be created.
    pub retention: Duration,
    /// Name of the DLQ topic.
    pub dlq_topic: String,
    /// Retention of the DLQ topic.
    pub dlq_retention: Duration,
}

/// One retry stage's topic as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryTopic {
    /// Name of the stage, `retry-1`; it has no dot, or its topic cannot be told from another group's.
    pub name: String,
    /// Name of the topic.
    pub topic: String,
    /// How long an event waits there.
    pub delay: Duration,
}

impl PipelineTopics {
    /// The longest time that an event waits on its way to the DLQ, by design.
    pub fn ladder_length(&self) -> Duration {
        self.retries.iter().fold(Duration::ZERO, |sum, retry| sum.saturating_add(retry.delay))
    }

    /// The compacted topic in which redrives of the DLQ are recorded.
    pub fn redrive_topic(&self) -> String {
        format!("{}.{}.redrive", self.topic, self.group)
    }

    /// The compacted topic in which pauses by command are kept.
    pub fn control_topic(&self) -> String {
        crate::adapters::kafka::control::topic(&self.topic, &self.group)
    }
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Where events come from; owned by somebody else once it exists.
    Main,
    /// Where events wait.
    Retry {
        /// How long.
        delay: Duration,
    },
    /// Where events end that cannot be handled.
    Dlq,
    /// Where something is noted under keys (pauses by command, what became of dead letters): compacted, holds no events,
    /// and no promise of the stages depends on it.
    Notes,
}

/// A topic as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the stage that reads it: `main`, `retry-1`, … `dlq`; or `control`, `redrive`.
    pub stage: String,
    /// Name of the topic.
    pub topic: String,
    /// What it is for.
    pub kind: Kind,
    /// Partitions that it should have at least (main: exactly).
    pub partitions: i32,
    /// Replicas that each partition should have at least.
    pub replication: i32,
    /// How long a record should stay.
    pub retention: Duration,
    /// The sum of the ladder's delays: retention at or below it loses events that are merely waiting.
    pub ladder_length: Duration,
    /// The largest record batch that main takes, bytes, where known (see [`align`]).
    pub largest_event: Option<u64>,
    /// The topic settings to create it with.
    pub configs: BTreeMap<String, String>,
}

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActualTopic {
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of the partition that has the fewest.
    pub replication: i32,
    /// Its effective settings, or why they could not be read (a managed service may forbid it).
    pub configs: Result<BTreeMap<String, String>, String>,
}

/// How much a difference matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It works, not as configured.
    Differs,
    /// It would break the delivery promise: stages refuse to start.
    Unsafe,
}

impl Severity {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Differs => "differs",
            Severity::Unsafe => "unsafe",
        }
    }
}

/// One way in which a topic is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// How much it matters.
    pub severity: Severity,
    /// The property: a topic setting's name, `partitions` or `replication`.
    pub what: &'static str,
    /// Its value on the cluster.
    pub is: String,
    /// The value wanted.
    pub should_be: String,
    /// What goes wrong otherwise.
    pub why: &'static str,
    /// How to mend it.
    pub remedy: Remedy,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, should be {}", self.what, self.is, self.should_be)
    }
}

/// How to mend a difference. Nothing of this is ever done without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Change one topic setting.
    SetConfig {
        /// Name of the setting.
        key: &'static str,
        /// Its new value.
        value: String,
    },
    /// Our own command raises retry topics to main's count.
    CreateTopicsAddPartitions,
    /// Raise the number of partitions of a topic that we never touch.
    RaisePartitions(i32),
    /// Anything that is no single command.
    Advice(String),
}

impl Remedy {
    /// The command line to paste, or the advice, for this topic on these brokers.
    pub fn command(&self, topic: &str, brokers: &str) -> String {
        match self {
            Remedy::SetConfig { key, value } => format!(
                "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} \
                 --add-config {key}={value}"
            ),
            Remedy::CreateTopicsAddPartitions => "scripts/create-topics.sh --add-partitions".to_owned(),
            Remedy::RaisePartitions(count) => {
                format!("kafka-topics.sh --bootstrap-server {brokers} --alter --topic {topic} --partitions {count}")
            }
            Remedy::Advice(text) => text.clone(),
        }
    }
}

/// The topics that a pipeline needs, in the order of its stages, and that for its orders.
pub fn plan(pipeline: &PipelineTopics) -> Vec<TopicSpec> {
    let spec = |stage: &str, topic: &str, kind: Kind, retention: Duration| TopicSpec {
        pipeline: pipeline.pipeline.clone(),
        stage: stage.to_owned(),
        topic: topic.to_owned(),
        kind,
        partitions: pipeline.partitions,
        replication: pipeline.replication,
        retention,
        ladder_length: pipeline.ladder_length(),
        largest_event: None,
        configs: configs(kind, pipeline.replication, retention),
    };
    let mut specs = vec![spec("main", &pipeline.topic, Kind::Main, pipeline.retention)];
    for retry in &pipeline.retries {
        specs.push(spec(&retry.name, &retry.topic, Kind::Retry { delay: retry.delay }, pipeline.retention));
    }
    specs.push(spec("dlq", &pipeline.dlq_topic, Kind::Dlq, pipeline.dlq_retention));
    for (what, topic) in [("control", pipeline.control_topic()), ("redrive", pipeline.redrive_topic())] {
        specs.push(TopicSpec { partitions: 1, ..spec(what, &topic, Kind::Notes, Duration::MAX) });
    }
    specs
}

fn configs(kind: Kind, replication: i32, retention: Duration) -> BTreeMap<String, String> {
    let mut configs = BTreeMap::new();
    let mut set = |key: &str, value: String| configs.insert(key.to_owned(), value);
    if kind == Kind::Notes {
        set("cleanup.policy", "compact".to_owned());
        if replication >= 3 {
            set("min.insync.replicas", "2".to_owned());
        }
        return configs;
    }
    set("cleanup.policy", "delete".to_owned());
    set("retention.ms", millis(retention).to_string());
    if kind != Kind::Main {
        // A cluster-wide size limit would delete events before their time.
        set("retention.bytes", "-1".to_owned());
    }
    if matches!(kind, Kind::Retry { .. }) {
        // The leader's clock alone then rules retention and the estimate of what is waiting.
        set("message.timestamp.type", "LogAppendTime".to_owned());
    }
    if replication >= 3 {
        set("min.insync.replicas", "2".to_owned());
    }
    configs
}

/// Fits the plan of one or more pipelines to their main topics, where these exist: the other topics take main's number
/// of partitions, so that a hop keeps the partition, and main's largest record plus room for the headers.
pub fn align(specs: &mut [TopicSpec], states: &BTreeMap<String, TopicState>) {
    let mains: BTreeMap<String, ActualTopic> = specs
        .iter()
        .filter(|spec| spec.kind == Kind::Main)
        .filter_map(|spec| match states.get(&spec.topic) {
            Some(TopicState::Exists(actual)) => Some((spec.pipeline.clone(), actual.clone())),
            _ => None,
        })
        .collect();
    for spec in specs.iter_mut().filter(|spec| !matches!(spec.kind, Kind::Main | Kind::Notes)) {
        let Some(main) = mains.get(&spec.pipeline) else {
            continue;
        };
        spec.partitions = main.partitions;
        let limit = main.configs.as_ref().ok().and_then(|configs| configs.get("max.message.bytes"));
        let largest = limit.and_then(|value| value.parse::<u64>().ok());
        if let Some(largest) = largest {
            spec.largest_event = Some(largest);
            // The broker's limit is an i32.
            let room = largest.saturating_add(HEADER_ROOM).min(i32::MAX as u64);
            spec.configs.insert("max.message.bytes".to_owned(), room.to_string());
        }
    }
}

/// Every way in which a topic is not as it should be, the unsafe ones first.
pub fn compare(spec: &TopicSpec, actual: &ActualTopic) -> Vec<Difference> {
    let mut found = Vec::new();
    compare_counts(spec, actual, &mut found);
    if let (false, Ok(configs)) = (spec.kind == Kind::Main, &actual.configs) {
        compare_configs(spec, actual.replication, configs, &mut found);
    }
    found.sort_by_key(|difference| std::cmp::Reverse(difference.severity));
    found
}

fn compare_counts(spec: &TopicSpec, actual: &ActualTopic, found: &mut Vec<Difference>) {
    let more_than_configured = spec.kind == Kind::Main && actual.partitions > spec.partitions;
    if actual.partitions < spec.partitions || more_than_configured {
        found.push(Difference {
            severity: Severity::Differs,
            what: "partitions",
            is: actual.partitions.to_string(),
            should_be: spec.partitions.to_string(),
            why: match spec.kind {
                Kind::Main => "the main topic is its owner's and is never changed here",
                _ => "events cannot keep their partition number and go by key instead",
            },
            remedy: match spec.kind {
                Kind::Main if more_than_configured => Remedy::Advice(format!(
                    "set pipelines.{}.partitions to {}: partitions cannot be taken away",
                    spec.pipeline, actual.partitions
                )),
                Kind::Main | Kind::Dlq => Remedy::RaisePartitions(spec.partitions),
                Kind::Retry { .. } => Remedy::CreateTopicsAddPartitions,
                Kind::Notes => Remedy::RaisePartitions(spec.partitions), // never: a topic has at least one
            },
        });
    }
    if actual.replication < spec.replication {
        found.push(Difference {
            severity: Severity::Differs,
            what: "replication",
            is: actual.replication.to_string(),
            should_be: spec.replication.to_string(),
            why: "fewer brokers may fail before events are out of reach",
            remedy: Remedy::Advice(format!(
                "add replicas with kafka-reassign-partitions.sh, or set pipelines.{}.replication to {}",
                spec.pipeline, actual.replication
            )),
        });
    }
}

fn compare_configs(
    spec: &TopicSpec,
    replication: i32,
    configs: &BTreeMap<String, String>,
    found: &mut Vec<Difference>,
) {
    let number = |key: &str| configs.get(key).and_then(|value| value.parse::<i64>().ok());
    let is_retry = matches!(spec.kind, Kind::Retry { .. });
    let mut differs = |severity, key: &'static str, is: String, should_be: String, value: String, why| {
        found.push(Difference { severity, what: key, is, should_be, why, remedy: Remedy::SetConfig { key, value } });
    };

    if spec.kind == Kind::Notes {
        if let Some(policy) = configs.get("cleanup.policy").filter(|policy| *policy != "compact") {
            let why = "what is noted there is forgotten after the retention";
            differs(Severity::Differs, "cleanup.policy", policy.clone(), "compact".into(), "compact".into(), why);
        }
        return;
    }

    if let Some(policy) = configs.get("cleanup.policy").filter(|policy| *policy != "delete") {
        let severity = if policy.contains("compact") { Severity::Unsafe } else { Severity::Differs };
        let why = "compaction removes every event of a key but the last";
        differs(severity, "cleanup.policy", policy.clone(), "delete".into(), "delete".into(), why);
    }

    if let Some(actual) = number("retention.ms") {
        let ladder = millis(spec.ladder_length);
        let too_short = is_retry && actual >= 0 && actual <= ladder;
        // A configuration that is itself too short must not make a topic look safe.
        let wanted =
            if is_retry { millis(spec.retention).max(ladder.saturating_add(1)) } else { millis(spec.retention) };
        let (severity, why) = if too_short {
            (Severity::Unsafe, "events are deleted while they wait: the ladder's delays add up to as much or more")
        } else {
            (Severity::Differs, "events stay for another time than configured")
        };
        if actual != wanted {
            differs(severity, "retention.ms", readable(actual), readable(wanted), wanted.to_string(), why);
        }
    }

    if let Some(bytes) = number("retention.bytes").filter(|bytes| *bytes != -1) {
        let severity = if is_retry { Severity::Unsafe } else { Severity::Differs };
        let why = "events are deleted by size, whether they were handled or not";
        differs(severity, "retention.bytes", bytes.to_string(), "-1".into(), "-1".into(), why);
    }

    if let Some(kind) = configs.get("message.timestamp.type").filter(|kind| is_retry && *kind != "LogAppendTime") {
        let why = "retention and the count of waiting events follow the producers' clocks";
        let wanted = "LogAppendTime";
        differs(Severity::Differs, "message.timestamp.type", kind.clone(), wanted.into(), wanted.into(), why);
    }

    if let Some(replicas) = number("min.insync.replicas").filter(|replicas| replication >= 3 && *replicas < 2) {
        let why = "an acknowledged event may be on one broker only and is lost with it";
        differs(Severity::Unsafe, "min.insync.replicas", replicas.to_string(), "2".into(), "2".into(), why);
    }

    if let (Some(largest), Some(limit)) = (spec.largest_event, number("max.message.bytes"))
        && u64::try_from(limit).is_ok_and(|limit| limit < largest)
    {
        let why = "events that main takes and this topic refuses halt their partition";
        let value = spec.configs.get("max.message.bytes").cloned().unwrap_or_else(|| largest.to_string());
        differs(Severity::Differs, "max.message.bytes", limit.to_string(), format!("at least {largest}"), value, why);
    }
}

/// Every topic that belongs to one of these pipelines.
pub fn known_topics(pipelines: &[PipelineTopics]) -> BTreeSet<String> {
    pipelines.iter().flat_map(|p| plan(p).into_iter().map(|spec| spec.topic)).collect()
}

/// The stage that `candidate` belonged to, when it is named like a topic of this pipeline's ladder and is none now.
///
/// A rest with a dot in it is another group's topic (`orders.billing.eu.retry-1` is of group `billing.eu`).
pub fn orphan_stage<'a>(pipeline: &PipelineTopics, known: &BTreeSet<String>, candidate: &'a str) -> Option<&'a str> {
    let rest = candidate.strip_prefix(pipeline.topic.as_str())?.strip_prefix('.')?;
    let stage = rest.strip_prefix(pipeline.group.as_str())?.strip_prefix('.')?;
    (!stage.is_empty() && !stage.contains('.') && !known.contains(candidate)).then_some(stage)
}

/// Milliseconds as Kafka takes them: an i64.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds with the same in words.
fn readable(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(positive) => format!("{ms} ({})", duration::show(Duration::from_millis(positive))),
        Err(_) => format!("{ms} (for ever)"),
    }
}

#[cfg(test)]
mod tests;
