//! Kafka and Redis as an outsider sees them: a producer that counts acknowledgements, a plain consumer that reads raw
//! records back, offsets of groups, keys. Nothing of the engine under test.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use retry_ladder::prove::ledger::{self, Copy, Produced};

/// For any single answer of a broker.
const PATIENCE: Duration = Duration::from_secs(30);

/// librdkafka's settings for a plain client.
pub(crate) fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

fn copy(message: &BorrowedMessage<'_>) -> Copy {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    Copy {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect(),
    }
}

/// Waits for the admin client, which knows only futures.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

// ---------------------------------------------------------------------------------------------- producing

/// Produces events and knows which of them the broker has.
pub(crate) struct Generator {
    topic: String,
    producer: ThreadedProducer<Acknowledgements>,
}

#[derive(Clone, Default)]
struct Acknowledgements(Arc<Mutex<Vec<Result<Produced, String>>>>);

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Produced>;

    fn delivery(&self, result: &DeliveryResult<'_>, mut event: Box<Produced>) {
        let result = match result {
            Ok(message) if message.offset() < 0 => Err(format!("{}: acknowledged without a place", event.id)),
            Ok(message) => {
                let at = &mut event.record;
                at.partition = message.partition();
                at.offset = message.offset();
                at.timestamp_ms = message.timestamp().to_millis().unwrap_or(-1);
                Ok(*event)
            }
            Err((error, _)) => Err(format!("{}: {error}", event.id)),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(result);
    }
}

impl Generator {
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        let mut config = config(brokers);
        // One request at a time: librdkafka takes the success of a later batch for that of an earlier one, which a
        // broker that meets the producer for the first time may have refused.
        config.set("enable.idempotence", "true").set("linger.ms", "0").set("max.in.flight", "1");
        let producer = config.create_with_context(Acknowledgements::default()).expect("a producer");
        Self { topic: topic.to_owned(), producer }
    }

    /// Hands one event over; partition, offset and timestamp come with the acknowledgement.
    pub(crate) fn send(&self, event: Produced) {
        let record = event.record.clone();
        let insert = |headers: OwnedHeaders, (key, value): &ledger::Header| {
            headers.insert(Header { key, value: value.as_deref() })
        };
        let headers = record.headers.iter().fold(OwnedHeaders::new(), insert);
        let mut outgoing = BaseRecord::with_opaque_to(&self.topic, Box::new(event)).headers(headers);
        outgoing.partition = Some(record.partition);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        self.producer.send::<[u8], [u8]>(outgoing).map_err(|(error, _)| error).expect("a place in the queue");
    }

    /// Waits for every answer; the acknowledged events.
    pub(crate) fn finish(self) -> Vec<Produced> {
        self.producer.flush(Timeout::After(PATIENCE)).expect("all events answered");
        let answers = Arc::clone(&self.producer.context().0);
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().map(|answer| answer.clone().expect("an acknowledged event")).collect()
    }
}

// ---------------------------------------------------------------------------------------------- reading

/// What the consumer's group has committed, by partition; 0 where it never has.
pub(crate) fn committed(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Vec<i64> {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let offsets = consumer.committed_offsets(list, PATIENCE).expect("the group's offsets");
    let offset = |partition| offsets.find_partition(topic, partition).and_then(|e| e.offset().to_raw());
    (0..partitions).map(|partition| offset(partition).unwrap_or(0).max(0)).collect()
}

/// Where the log of each partition ends.
pub(crate) fn ends(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Vec<i64> {
    let end = |partition| consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the log's end").1;
    (0..partitions).map(end).collect()
}

/// Every record of a topic that nobody writes to any more.
pub(crate) fn read_back(brokers: &str, topic: &str, partitions: i32) -> Vec<Copy> {
    let mut config = config(brokers);
    config.set("group.id", "nobody").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let ends = ends(&consumer, topic, partitions);
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&list).expect("an assignment");
    let (mut copies, wanted) = (Vec::new(), usize::try_from(ends.iter().sum::<i64>()).expect("a count"));
    let deadline = Instant::now() + PATIENCE;
    while copies.len() < wanted {
        assert!(Instant::now() < deadline, "{topic}: {} of {wanted} records could be read", copies.len());
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => copies.push(copy(&message)),
            Some(Err(error)) => panic!("{topic}: {error}"),
            None => {}
        }
    }
    copies
}

/// Every key under the prefix and its value.
pub(crate) fn keys(redis: &str, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut connection = redis::Client::open(redis).and_then(|c| c.get_connection()).expect("a connection to redis");
    scan(&mut connection, prefix)
        .into_iter()
        .map(|key| {
            let value = redis::cmd("GET").arg(&key).query::<Option<Vec<u8>>>(&mut connection).expect("a value");
            (key, value.unwrap_or_default())
        })
        .collect()
}

fn scan(connection: &mut redis::Connection, prefix: &str) -> Vec<String> {
    let (mut keys, mut cursor) = (std::collections::BTreeSet::new(), 0_u64);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{prefix}:*")).arg("COUNT").arg(1_000);
        let (next, page): (u64, Vec<String>) = scan.query(connection).expect("a page of keys");
        keys.extend(page);
        cursor = next;
        if cursor == 0 {
            return keys.into_iter().collect();
        }
    }
}

/// Leaves nothing on services that others use.
pub(crate) fn clean_up(brokers: &str, topics: &[&str], redis: &str, keys: &[String]) {
    let client: AdminClient<DefaultClientContext> = config(brokers).create().expect("an admin client");
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    block_on(client.delete_topics(topics, &options)).expect("topics deleted");
    if !keys.is_empty() {
        let mut connection = redis::Client::open(redis).and_then(|c| c.get_connection()).expect("a connection");
        redis::cmd("DEL").arg(keys).exec(&mut connection).expect("keys deleted");
    }
}
