//! What people order the stages of a pipeline to do: pauses by command, kept in a compacted topic of one partition.
//!
//! One record per stage: key its name, value JSON ([`Order`]). [`write()`] is the command's part, [`ControlReader`] that of
//! every process which follows. A reader joins no group and commits nothing: each reads the whole topic, which is as
//! small as the ladder.
//!
//! Invariants
//! - Whoever was told by [`ControlReader::catch_up`] knows every order that was acknowledged before it was called, so
//!   that a process that starts leaks no event through a pause.
//! - A record that is no order changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::client::{Connection, Properties};

/// Longest wait for one request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often a topic that was not there is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long the thread waits for a record before it looks whether it is to end.
const POLL: Duration = Duration::from_millis(200);

/// What a stage was told to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Start nothing, or go on.
    pub paused: bool,
    /// Who said so.
    pub by: String,
    /// When, Unix milliseconds on the clock of who said so.
    pub at_ms: u64,
    /// Why, where it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = std::time::UNIX_EPOCH + Duration::from_millis(self.at_ms.min(1 << 47));
        write!(f, "since {} by {}", humantime::format_rfc3339_seconds(at), self.by)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Orders could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses a property.
    #[error("kafka client for orders: {0}; check kafka.properties")]
    Config(#[source] KafkaError),
    /// The topic is not there.
    #[error("topic {topic} is missing; remedy: scripts/create-topics.sh creates it")]
    Missing {
        /// Its name.
        topic: String,
    },
    /// A request failed.
    #[error("kafka: {action} {topic}: {source}")]
    Request {
        /// What was asked.
        action: &'static str,
        /// Of which topic.
        topic: String,
        /// The answer.
        source: KafkaError,
    },
    /// The end was not reached in time.
    #[error("kafka: orders in {topic} could not be read within {}", humantime::format_duration(*timeout))]
    Slow {
        /// Of which topic.
        topic: String,
        /// The time.
        timeout: Duration,
    },
    /// No thread.
    #[error("no thread to follow orders: {0}")]
    Thread(#[source] std::io::Error),
}

impl Error {
    /// The process's exit code for this error: 64 settings, 69 missing, not reachable or not readable in time, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => 64,
            Error::Missing { .. } | Error::Slow { .. } => 69,
            Error::Request { source, .. } if may_pass(source) => 69,
            Error::Request { .. } | Error::Thread(_) => 1,
        }
    }
}

/// The topic that keeps the orders of a pipeline.
pub fn topic(main: &str, group: &str) -> String {
    format!("{main}.{group}.control")
}

/// The orders of one topic, by stage.
pub type Orders = BTreeMap<String, Order>;

/// One order that was read: topic, stage, order.
pub type Read = (String, String, Order);

/// Reads the orders of some pipelines.
pub struct ControlReader {
    consumer: BaseConsumer<Quiet>,
    /// Topics that are there, with the offset from which to read on.
    assigned: BTreeMap<String, i64>,
    /// Topics that are not there.
    missing: BTreeSet<String>,
    looked: Instant,
}

impl ControlReader {
    /// A reader; connects with the first question. `group` is never joined: librdkafka wants one, and a name that the
    /// user may describe keeps the brokers from complaining.
    ///
    /// # Errors
    /// When librdkafka refuses the properties.
    pub fn new(properties: &Properties, group: &str, topics: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut config = properties.onlooker(group);
        config.set("enable.partition.eof", "false");
        let context = Quiet(Connection::new("reader of orders"));
        let consumer = BaseConsumer::from_config_and_context(&config, context).map_err(Error::Config)?;
        let missing = topics.into_iter().collect();
        Ok(Self { consumer, assigned: BTreeMap::new(), missing, looked: Instant::now() })
    }

    /// Topics that were not there when they were looked for last.
    pub fn missing(&self) -> &BTreeSet<String> {
        &self.missing
    }

    /// Reads up to the end as it is now: all orders that were not read yet, the newest of each stage last. Blocks.
    ///
    /// # Errors
    /// When Kafka does not answer, or the end was not reached in time. A missing topic is no error. What may pass is
    /// asked again until `timeout`; one request more may take its own few seconds.
    pub fn catch_up(&mut self, timeout: Duration) -> Result<Vec<Read>, Error> {
        let begun = Instant::now();
        let until = begun + timeout;
        self.look_for_missing(until)?;
        let mut ends = BTreeMap::new();
        for (topic, next) in &self.assigned {
            let (_, end) = answer(until, || self.consumer.fetch_watermarks(topic, 0, TIMEOUT))
                .map_err(|e| failed("end of", topic, e))?;
            if end > *next {
                ends.insert(topic.clone(), end);
            }
        }
        let mut orders = Vec::new();
        while let Some((topic, _)) = ends.first_key_value() {
            if begun.elapsed() >= timeout {
                return Err(Error::Slow { topic: topic.clone(), timeout });
            }
            self.read(POLL.min(timeout), &mut orders);
            ends.retain(|topic, end| self.assigned.get(topic).is_some_and(|next| next < end));
        }
        Ok(orders)
    }

    /// Reads what comes within `patience`; looks now and then for topics that were missing.
    fn read(&mut self, patience: Duration, orders: &mut Vec<Read>) {
        let Some(Ok(message)) = self.consumer.poll(patience) else { return };
        if let Some(next) = self.assigned.get_mut(message.topic()) {
            *next = message.offset() + 1;
        }
        match order(&message) {
            Some((stage, order)) => orders.push((message.topic().to_owned(), stage, order)),
            None => tracing::warn!(
                topic = message.topic(),
                offset = message.offset(),
                "a record that is no order of ours changes nothing"
            ),
        }
    }

    fn look_for_missing(&mut self, until: Instant) -> Result<(), Error> {
        self.looked = Instant::now();
        let mut found = false;
        for topic in self.missing.clone() {
            let metadata = answer(until, || self.consumer.fetch_metadata(Some(&topic), TIMEOUT))
                .map_err(|e| failed("look for", &topic, e))?;
            let is_there = |t: &rdkafka::metadata::MetadataTopic| t.name() == topic && !t.partitions().is_empty();
            if metadata.topics().iter().any(is_there) {
                self.missing.remove(&topic);
                self.assigned.insert(topic, 0);
                found = true;
            }
        }
        if !found {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (topic, next) in &self.assigned {
            let from = if *next == 0 { Offset::Beginning } else { Offset::Offset(*next) };
            list.add_partition_offset(topic, 0, from).map_err(|e| failed("read", topic, e))?;
        }
        self.consumer.assign(&list).map_err(|e| failed("read", "orders", e))
    }
}

/// Asks at least once, and again until then while what is wrong may pass.
fn answer<T>(until: Instant, ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    loop {
        match ask() {
            Err(error) if may_pass(&error) && Instant::now() < until => {
                tracing::debug!(%error, "kafka is asked again");
                std::thread::sleep(POLL);
            }
            answer => return answer,
        }
    }
}

/// Whether it may be well by itself: a broker that is away, an election.
fn may_pass(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    !matches!(
        error.rdkafka_error_code(),
        None | Some(
            Code::UnknownTopic
                | Code::UnknownTopicOrPartition
                | Code::InvalidTopic
                | Code::InvalidArgument
                | Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
        )
    )
}

fn failed(action: &'static str, topic: &str, source: KafkaError) -> Error {
    match source.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
            Error::Missing { topic: topic.to_owned() }
        }
        _ => Error::Request { action, topic: topic.to_owned(), source },
    }
}

fn order(message: &BorrowedMessage<'_>) -> Option<(String, Order)> {
    let stage = std::str::from_utf8(message.key()?).ok()?;
    Some((stage.to_owned(), serde_json::from_slice(message.payload()?).ok()?))
}

/// The newest order of each stage, by topic.
pub fn newest(orders: Vec<Read>) -> BTreeMap<String, Orders> {
    let mut newest: BTreeMap<String, Orders> = BTreeMap::new();
    for (topic, stage, order) in orders {
        newest.entry(topic).or_default().insert(stage, order);
    }
    newest
}

/// Writes orders, and returns once all in-sync replicas have them and they were read back. Blocks.
///
/// # Errors
/// When one could not be written within `timeout`: whether it is there is unknown, write it again.
pub fn write(
    properties: &Properties,
    group: &str,
    topic: &str,
    stages: &[String],
    order: &Order,
    timeout: Duration,
) -> Result<(), Error> {
    let mut reader = ControlReader::new(properties, group, [topic.to_owned()])?;
    reader.catch_up(timeout)?;
    if !reader.missing.is_empty() {
        return Err(Error::Missing { topic: topic.to_owned() });
    }
    let mut config = properties.base();
    for (key, value) in &properties.producer {
        config.set(key, value);
    }
    config.set("acks", "all").set("message.timeout.ms", timeout.as_millis().to_string());
    let context = Answers(Mutex::default());
    let producer: BaseProducer<Answers> =
        BaseProducer::from_config_and_context(&config, context).map_err(Error::Config)?;
    let value = serde_json::to_vec(order).unwrap_or_default();
    for stage in stages {
        let record = BaseRecord::to(topic).partition(0).key(stage.as_bytes()).payload(&value);
        producer.send(record).map_err(|(e, _)| failed("write to", topic, e))?;
    }
    producer.flush(timeout + TIMEOUT).map_err(|e| failed("write to", topic, e))?;
    if let Some(e) = producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(failed("write to", topic, e));
    }
    let found = newest(reader.catch_up(timeout)?).remove(topic).unwrap_or_default();
    // Somebody else may have said something newer meanwhile; that ours was written is known.
    match stages.iter().all(|stage| found.contains_key(stage)) {
        true => Ok(()),
        false => Err(Error::Slow { topic: topic.to_owned(), timeout }),
    }
}

/// Follows orders on a thread of its own until it is dropped.
pub struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Tells `obey` each order from now on; what the reader has told already is not repeated.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn start(mut reader: ControlReader, obey: impl Fn(Read) + Send + 'static) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("orders".into()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut orders = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    reader.read(POLL, &mut orders);
                    orders.drain(..).for_each(&obey);
                    if !reader.missing.is_empty()
                        && reader.looked.elapsed() >= LOOK_AGAIN
                        && let Err(error) = reader.look_for_missing(Instant::now())
                    {
                        tracing::debug!(%error, "topics for orders are looked for again");
                    }
                }
            }
        });
        Ok(Self { stop, thread: Some(thread.map_err(Error::Thread)?) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // it waits for a record at most
        }
    }
}

struct Quiet(Connection);

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason); // the stages' consumers tell of an outage
    }
}

impl ConsumerContext for Quiet {}

/// Keeps the first failure.
struct Answers(Mutex<Option<KafkaError>>);

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    fn order(paused: bool, reason: Option<&str>) -> Order {
        Order { paused, by: "ann@host".into(), at_ms: 1_700_000_000_000, reason: reason.map(Into::into) }
    }

    #[test]
    fn an_order_reads_as_who_when_and_why() {
        assert_eq!(order(true, None).to_string(), "since 2023-11-14T22:13:20Z by ann@host");
        assert_eq!(order(true, Some("deploy")).to_string(), "since 2023-11-14T22:13:20Z by ann@host: deploy");
        // A clock gone mad is shown, not panicked about.
        assert!(!Order { at_ms: u64::MAX, ..order(true, None) }.to_string().is_empty());
    }

    #[test]
    fn an_order_is_json_that_older_and_newer_versions_can_read() {
        let json = serde_json::to_string(&order(false, None)).unwrap();
        assert_eq!(json, r#"{"paused":false,"by":"ann@host","at_ms":1700000000000}"#);
        let newer = r#"{"paused":true,"by":"b","at_ms":1,"reason":"r","until_ms":2}"#;
        assert_eq!(serde_json::from_str::<Order>(newer).unwrap().reason.as_deref(), Some("r"));
    }

    #[test]
    fn the_last_order_of_each_stage_holds() {
        let read = |topic: &str, stage: &str, paused| (topic.to_owned(), stage.to_owned(), order(paused, None));
        let newest = newest(vec![
            read("a", "main", true),
            read("a", "dlq", true),
            read("b", "main", true),
            read("a", "main", false),
        ]);
        let paused: Vec<_> = newest["a"].iter().map(|(stage, order)| (stage.as_str(), order.paused)).collect();
        assert_eq!(paused, [("dlq", true), ("main", false)]);
        assert!(newest["b"]["main"].paused);
    }

    #[test]
    fn a_request_that_fails_for_now_is_made_again_until_the_time_is_over() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 1, 1).unwrap();
        let reader = || {
            let properties = Properties::new(cluster.bootstrap_servers());
            ControlReader::new(&properties, "g", ["orders".to_owned()]).unwrap()
        };
        // Each look makes two requests, and the consumer itself some.
        let fails = |error, times| cluster.request_errors(RDKafkaApiKey::ListOffsets, &vec![error; times]);
        fails(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN, 8);
        assert!(reader().catch_up(Duration::from_secs(60)).unwrap().is_empty());
        // Its time is over, or it will not pass.
        for (error, timeout, exit_code) in [
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN, 0, 69),
            (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 60, 1),
        ] {
            fails(error, 100);
            let refused = reader().catch_up(Duration::from_secs(timeout)).unwrap_err();
            assert!(matches!(refused, Error::Request { .. }) && refused.exit_code() == exit_code, "{refused}");
            cluster.clear_request_errors(RDKafkaApiKey::ListOffsets);
        }
    }
}
