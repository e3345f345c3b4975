//! A Kafka broker inside this process (librdkafka's mock cluster), for the demo, examples and tests: any Kafka client
//! on this machine can join it.
//!
//! Nothing of it is durable, and it is no proof of anything about a real broker. It knows no topic settings, and of
//! each partition it keeps [`MAX_PARTITION_BYTES`] and [`MAX_PARTITION_BATCHES`], then **silently drops the oldest,
//! read or not**: whoever uses it stays below ([`max_records`]), and [`EmbeddedBroker::read`] tells when something was
//! dropped all the same.
//!
//! Make it first and drop it last: clients that outlive it look for it in vain.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::{own, raw};
use crate::stage::record::Record;

/// What a partition holds, in bytes of record batches as they came from the producer.
pub const MAX_PARTITION_BYTES: usize = 5 << 20;
/// What a partition holds, in record batches; a batch has at least one record.
pub const MAX_PARTITION_BATCHES: usize = 100_000;
/// A batch's own header, at worst one for each record.
const BATCH_OVERHEAD: usize = 61;

/// A group's first members are waited for this long: a real broker's 3 s would be the better part of a demo.
const FIRST_JOIN_DELAY: Duration = Duration::from_millis(50);
/// Longest wait for the next record when a topic is read.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The embedded broker failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not start.
    #[error("the embedded broker does not start: {0}")]
    Start(#[source] KafkaError),
    /// A topic cannot be made.
    #[error("the embedded broker refuses topic {topic}: {source}")]
    Topic {
        /// Its name.
        topic: String,
        /// Why.
        source: KafkaError,
    },
    /// A topic cannot be read.
    #[error("topic {topic} of the embedded broker cannot be read: {source}")]
    Read {
        /// Its name.
        topic: String,
        /// Why.
        source: KafkaError,
    },
    /// A topic's records do not come.
    #[error("topic {topic} of the embedded broker has more records, but none came within {} s", READ_TIMEOUT.as_secs())]
    Silent {
        /// Its name.
        topic: String,
    },
    /// More was written than it holds.
    #[error(
        "the embedded broker dropped the first {dropped} records of {topic} [{partition}]: it holds 5 MiB a partition"
    )]
    Dropped {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// How many.
        dropped: i64,
    },
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", client = "embedded broker", facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", client = "embedded broker", %error, reason);
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

/// A broker that lives as long as this value.
pub struct EmbeddedBroker {
    /// Owns the mock cluster; never produces.
    owner: BaseProducer<Quiet>,
    address: String,
}

impl std::fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedBroker").field("address", &self.address).finish_non_exhaustive()
    }
}

impl EmbeddedBroker {
    /// Starts a broker on a free port of the loopback interface.
    ///
    /// # Errors
    /// When librdkafka cannot, for want of a port or a thread.
    pub fn start() -> Result<Self, Error> {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1").set_log_level(RDKafkaLogLevel::Error);
        let owner = BaseProducer::from_config_and_context(&config, Quiet).map_err(Error::Start)?;
        raw::set_first_join_delay(owner.client(), FIRST_JOIN_DELAY);
        let no_cluster = KafkaError::MockCluster(rdkafka::types::RDKafkaErrorCode::Fail);
        let address = owner.client().mock_cluster().ok_or(Error::Start(no_cluster))?.bootstrap_servers();
        Ok(Self { owner, address })
    }

    /// Where clients find it: `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes a topic. (Its clients cannot: there is no `CreateTopics`. A topic that is asked for and does not exist is
    /// made with 4 partitions.)
    ///
    /// # Errors
    /// When it exists or cannot be made.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        let failed = |source| Error::Topic { topic: topic.to_owned(), source };
        let no_cluster = || failed(KafkaError::MockCluster(rdkafka::types::RDKafkaErrorCode::Fail));
        let cluster = self.owner.client().mock_cluster().ok_or_else(no_cluster)?;
        cluster.create_topic(topic, partitions, 1).map_err(failed)
    }

    /// Every record that is on a topic now, partition by partition in the order of offsets. Blocks. A plain consumer
    /// without a group: it changes nothing.
    ///
    /// # Errors
    /// When the topic cannot be read, or records of it were [dropped](Error::Dropped).
    pub fn read(&self, topic: &str) -> Result<Vec<Record>, Error> {
        let failed = |source| Error::Read { topic: topic.to_owned(), source };
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.address)
            .set("group.id", "retry-ladder-reader") // wanted by the client, never joined
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .set_log_level(RDKafkaLogLevel::Error);
        let reader: BaseConsumer =
            BaseConsumer::from_config_and_context(&config, DefaultConsumerContext).map_err(failed)?;
        let metadata = reader.fetch_metadata(Some(topic), READ_TIMEOUT).map_err(failed)?;
        let mut assignment = TopicPartitionList::new();
        let mut left = 0;
        for partition in metadata.topics().iter().flat_map(|t| t.partitions()) {
            let (first, end) = reader.fetch_watermarks(topic, partition.id(), READ_TIMEOUT).map_err(failed)?;
            if first > 0 {
                return Err(Error::Dropped { topic: topic.to_owned(), partition: partition.id(), dropped: first });
            }
            left += end - first;
            assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).map_err(failed)?;
        }
        reader.assign(&assignment).map_err(failed)?;
        let mut records = Vec::new();
        let mut last = Instant::now();
        while left > 0 {
            match reader.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    records.push(own::own(&message));
                    left -= 1;
                    last = Instant::now();
                }
                Some(Err(error)) => return Err(failed(error)),
                None if last.elapsed() > READ_TIMEOUT => return Err(Error::Silent { topic: topic.to_owned() }),
                None => {}
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        Ok(records)
    }
}

/// So many records of at most `bytes` each (key, value and headers; see [`record_bytes`]) does a partition hold for
/// certain.
pub const fn max_records(bytes: usize) -> usize {
    let by_bytes = MAX_PARTITION_BYTES / (bytes + BATCH_OVERHEAD);
    if by_bytes < MAX_PARTITION_BATCHES { by_bytes } else { MAX_PARTITION_BATCHES }
}

/// What a record takes on a topic at most, before compression.
pub fn record_bytes(record: &Record) -> usize {
    /// The longest encoding of a length.
    const LENGTH: usize = 5;
    let length = |bytes: Option<usize>| LENGTH + bytes.unwrap_or_default();
    let headers = record
        .headers
        .iter()
        .map(|(name, value)| length(Some(name.len())) + length(value.as_ref().map(bytes::Bytes::len)));
    // Length, attributes, timestamp, offset, number of headers.
    LENGTH
        + 1
        + 10
        + LENGTH
        + LENGTH
        + length(record.key.as_ref().map(bytes::Bytes::len))
        + length(record.value.as_ref().map(bytes::Bytes::len))
        + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::BaseRecord;

    use super::*;

    fn producer(broker: &EmbeddedBroker) -> BaseProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.address()).set("linger.ms", "0");
        config.create().unwrap()
    }

    fn send(producer: &BaseProducer, partition: i32, key: &str, value: &[u8]) {
        producer.send(BaseRecord::to("t").partition(partition).key(key).payload(value)).map_err(|(e, _)| e).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn what_is_produced_is_read_back_from_every_partition() {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic("t", 2).unwrap();
        assert_eq!(broker.read("t").unwrap().len(), 0);
        let producer = producer(&broker);
        for (partition, key) in [(0, "a"), (1, "b"), (0, "c")] {
            send(&producer, partition, key, b"value");
        }
        let keys: Vec<_> =
            broker.read("t").unwrap().into_iter().map(|r| (r.partition, r.offset, r.key.unwrap())).collect();
        assert_eq!(keys, [(0, 0, "a".into()), (0, 1, "c".into()), (1, 0, "b".into())]);
    }

    #[test]
    fn records_beyond_the_capacity_are_told_and_up_to_it_are_kept() {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic("t", 1).unwrap();
        let producer = producer(&broker);
        let value = vec![b'v'; 500_000];
        let one = Record {
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
            key: Some("k".into()),
            value: Some(value.clone().into()),
            headers: Vec::new(),
        };
        let fits = max_records(record_bytes(&one));
        assert_eq!(fits, 10);
        (0..fits).for_each(|_| send(&producer, 0, "k", &value));
        assert_eq!(broker.read("t").unwrap().len(), fits);
        send(&producer, 0, "k", &value);
        let error = broker.read("t").unwrap_err();
        assert!(matches!(error, Error::Dropped { partition: 0, dropped: 1, .. }), "{error}");
    }
}
