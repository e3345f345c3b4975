//! Looking at topics and offsets: calls that block their thread, made by [`super::Admin`] on threads of its own.
//!
//! Invariant: nothing here creates a topic, joins a group or moves an offset.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{Connection, REQUEST_TIMEOUT};
use crate::adapters::kafka::offsets::{committed_offsets, watermarks};

/// What the metadata say.
pub(super) struct Listing {
    pub(super) topics: BTreeMap<String, Listed>,
    pub(super) brokers: usize,
}

/// One topic in the metadata.
pub(super) struct Listed {
    pub(super) partitions: i32,
    /// Of the partition that has the fewest.
    pub(super) replication: i32,
    /// Every partition has a leader.
    pub(super) all_led: bool,
}

/// The client that looks.
pub(super) struct Lookup {
    connection: Connection,
    consumer: BaseConsumer<Quiet>,
}

impl Lookup {
    pub(super) fn new(connection: Connection) -> Result<Self, KafkaError> {
        let consumer = connection.lookup_config().create_with_context(Quiet::default())?;
        Ok(Self { connection, consumer })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn listing(&self, timeout: Duration) -> Result<Listing, KafkaError> {
        let metadata = self.consumer.fetch_metadata(None, timeout);
        self.serve_events();
        let metadata = metadata?;
        let topics = metadata.topics().iter().map(|topic| {
            let partitions = topic.partitions();
            let replication = partitions.iter().map(|p| p.replicas().len()).min().unwrap_or_default();
            let listed = Listed {
                partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
                replication: i32::try_from(replication).unwrap_or(i32::MAX),
                all_led: !partitions.is_empty() && partitions.iter().all(|p| p.leader() >= 0),
            };
            (topic.name().to_owned(), listed)
        });
        Ok(Listing { topics: topics.collect(), brokers: metadata.brokers().len() })
    }

    /// What the broker says about this one topic, `None` when all is well.
    pub(super) fn topic_error(&self, topic: &str) -> Result<Option<RDKafkaErrorCode>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
        Ok(metadata.topics().iter().find(|t| t.name() == topic).and_then(|t| t.error()).map(RDKafkaErrorCode::from))
    }

    /// End minus start offset, summed.
    pub(super) fn messages(&self, topic: &str, partitions: i32) -> Result<u64, KafkaError> {
        (0..partitions).map(|partition| self.watermarks(topic, partition).map(|(low, high)| span(low, high))).sum()
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        watermarks(&self.consumer, topic, partition, REQUEST_TIMEOUT)
    }

    /// Records of a topic that a group has not consumed; from the log's start where it has committed nothing.
    pub(super) fn backlog(&self, topic: &str, partitions: i32, group: &str) -> Result<u64, KafkaError> {
        let mut config = self.connection.lookup_config();
        config.set("group.id", group).set("enable.auto.commit", "false");
        // Neither subscribes nor joins: it only asks the coordinator for the group's offsets.
        let reader: BaseConsumer<Quiet> = config.create_with_context(Quiet::default())?;
        let committed = committed_offsets(&reader, topic, 0..partitions, REQUEST_TIMEOUT)?;
        let mut backlog = 0;
        for partition in 0..partitions {
            let (low, high) = self.watermarks(topic, partition)?;
            backlog += span(committed.get(&partition).map_or(low, |offset| low.max(*offset)), high);
        }
        Ok(backlog)
    }

    /// Delivers the client's logs and errors to its context.
    fn serve_events(&self) {
        // An error comes back as a result, a log line as nothing: a moment's patience reaches what stands behind the
        // lines. Bounded against a storm of errors.
        for _ in 0..100 {
            if self.consumer.poll(Duration::from_millis(5)).is_none() {
                break;
            }
        }
    }

    pub(super) fn complaint(&self) -> Option<String> {
        self.consumer.context().last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Keeps librdkafka's voice down and remembers its last complaint.
#[derive(Default)]
pub(super) struct Quiet {
    last: Mutex<Option<String>>,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
        // "all brokers down" follows every reason and explains none.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // librdkafka appends its state and a count of repetitions.
            let reason = reason.split(" (after ").next().unwrap_or(reason);
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Quiet {}

/// Offsets from one to another, zero when it lies before.
fn span(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or_default()
}
