//! Kafka and Redis as an outsider sees them: a producer that counts acknowledgements, a plain consumer that reads raw
//! records back, offsets of groups, keys. Nothing of the engine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::Error;
use super::ledger::{self, Copy, Produced};

/// For any single answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where Kafka is.
#[derive(Clone, Debug, Default)]
pub struct Kafka {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// Any librdkafka property, for every client.
    pub properties: BTreeMap<String, String>,
}

impl Kafka {
    /// librdkafka's settings for a plain client.
    pub fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// A consumer that only looks at the offsets of a group.
    ///
    /// # Errors
    /// What Kafka says.
    pub fn looker(&self, group: &str) -> Result<BaseConsumer, Error> {
        Ok(self.config().set("group.id", group).set("enable.auto.commit", "false").create()?)
    }

    pub(super) fn broker_count(&self) -> Result<usize, Error> {
        Ok(self.looker("nobody")?.fetch_metadata(None, PATIENCE)?.brokers().len())
    }

    /// Every topic that is this one or named after it.
    pub(super) fn topics_of(&self, topic: &str) -> Result<Vec<String>, Error> {
        let known = self.looker("nobody")?.fetch_metadata(None, PATIENCE)?;
        let is_ours =
            |name: &&str| name.strip_prefix(topic).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        Ok(known.topics().iter().map(|t| t.name()).filter(is_ours).map(str::to_owned).collect())
    }

    /// Every record of a topic that nobody writes to any more.
    ///
    /// # Errors
    /// What Kafka says, [`Error::Unread`] when records are missing, [`Error::Interrupted`] when `stop` is set.
    pub fn read_back(&self, topic: &str, partitions: i32, stop: &AtomicBool) -> Result<Vec<Copy>, Error> {
        let mut config = self.config();
        config.set("group.id", "nobody").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "50");
        config.set("queued.max.messages.kbytes", "16384");
        let consumer: BaseConsumer = config.create()?;
        let ends = ends(&consumer, topic, partitions)?;
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let wanted = usize::try_from(ends.iter().sum::<i64>()).unwrap_or_default();
        let mut copies = Vec::with_capacity(wanted);
        let mut last = Instant::now();
        while copies.len() < wanted {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    copies.push(copy(&message));
                    last = Instant::now();
                }
                // A broker that is away may come back, or another takes over.
                Some(Err(error)) if last.elapsed() > PATIENCE => return Err(error.into()),
                Some(Err(_)) => {}
                None if last.elapsed() > PATIENCE => {
                    let found = copies.len();
                    return Err(Error::Unread { topic: topic.to_owned(), found, wanted });
                }
                None => {}
            }
        }
        Ok(copies)
    }

    /// Deletes topics; one that is not there is none the worse.
    ///
    /// # Errors
    /// What Kafka says.
    pub async fn delete_topics(&self, topics: &[&str]) -> Result<(), Error> {
        let client: AdminClient<DefaultClientContext> = self.config().create()?;
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for deleted in client.delete_topics(topics, &options).await? {
            if let Err((topic, code)) = deleted
                && code != RDKafkaErrorCode::UnknownTopicOrPartition
            {
                return Err(Error::NotDeleted { topic, code });
            }
        }
        Ok(())
    }
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

/// What the consumer's group has committed, by partition; 0 where it never has.
///
/// # Errors
/// What Kafka says.
pub fn committed(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<Vec<i64>, Error> {
    patiently(|| {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let offsets = consumer.committed_offsets(list, PATIENCE)?;
        offsets.elements().iter().try_for_each(|e| e.error())?;
        let offset = |partition| offsets.find_partition(topic, partition).and_then(|e| e.offset().to_raw());
        Ok((0..partitions).map(|partition| offset(partition).unwrap_or(0).max(0)).collect())
    })
}

/// Where the log of each partition ends.
///
/// # Errors
/// What Kafka says.
pub fn ends(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<Vec<i64>, Error> {
    let end = |partition| patiently(|| Ok(consumer.fetch_watermarks(topic, partition, PATIENCE)?.1));
    (0..partitions).map(end).collect()
}

/// Asks again while leaders and coordinators move: brokers come and go in some runs.
fn patiently<T>(mut ask: impl FnMut() -> KafkaResult<T>) -> Result<T, Error> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

// ---------------------------------------------------------------------------------------------- producing

/// Produces events and knows which of them the broker has.
pub struct Generator {
    topic: String,
    producer: ThreadedProducer<Acknowledgements>,
}

#[derive(Clone, Default)]
struct Acknowledgements {
    count: Arc<AtomicU64>,
    answers: Arc<Mutex<(Vec<Produced>, Vec<String>)>>,
}

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Produced>;

    fn delivery(&self, result: &DeliveryResult<'_>, mut event: Box<Produced>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(message) if message.offset() < 0 => {
                answers.1.push(format!("{}: acknowledged without a place", event.id))
            }
            Ok(message) => {
                let at = &mut event.record;
                at.partition = message.partition();
                at.offset = message.offset();
                at.timestamp_ms = message.timestamp().to_millis().unwrap_or(-1);
                answers.0.push(*event);
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => answers.1.push(format!("{}: {error}", event.id)),
        }
    }
}

impl Generator {
    /// An idempotent producer of the topic.
    ///
    /// # Errors
    /// What Kafka says.
    pub fn new(kafka: &Kafka, topic: &str) -> Result<Self, Error> {
        let mut config = kafka.config();
        // One request at a time: librdkafka takes the success of a later batch for that of an earlier one, which a
        // broker that meets the producer for the first time may have refused.
        config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "2").set("max.in.flight", "1");
        let producer = config.create_with_context(Acknowledgements::default())?;
        Ok(Self { topic: topic.to_owned(), producer })
    }

    /// Events acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.producer.context().count.load(Ordering::Relaxed)
    }

    /// Hands one event over; partition, offset and timestamp come with the acknowledgement. `false`: the queue is full,
    /// try again later.
    ///
    /// # Errors
    /// What the producer refuses.
    pub fn send(&self, event: Produced) -> Result<bool, Error> {
        let record = event.record.clone();
        let insert = |headers: OwnedHeaders, (key, value): &ledger::Header| {
            headers.insert(Header { key, value: value.as_deref() })
        };
        let headers = record.headers.iter().fold(OwnedHeaders::new(), insert);
        let mut outgoing = BaseRecord::with_opaque_to(&self.topic, Box::new(event)).headers(headers);
        outgoing.partition = Some(record.partition);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        match self.producer.send::<[u8], [u8]>(outgoing) {
            Ok(()) => Ok(true),
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => Ok(false),
            Err((error, _)) => Err(error.into()),
        }
    }

    /// Waits until the topic has all its partitions here.
    pub(super) fn wait_for_topic(&self, partitions: i32) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let known = self.producer.client().fetch_metadata(Some(&self.topic), PATIENCE)?;
            let count = known.topics().first().map_or(0, |topic| topic.partitions().len());
            if i32::try_from(count).is_ok_and(|count| count == partitions) || Instant::now() > deadline {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for every answer; the acknowledged events, and what was refused. A refused event may be on the topic all
    /// the same, so a run with one proves nothing of it and is told.
    ///
    /// # Errors
    /// When not everything is answered in time.
    pub fn finish(self) -> Result<(Vec<Produced>, Vec<String>), Error> {
        self.producer.flush(Timeout::After(PATIENCE * 3))?;
        let answers = Arc::clone(&self.producer.context().answers);
        drop(self.producer);
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut answers))
    }
}

// ---------------------------------------------------------------------------------------------- redis

/// Redis, seen directly, not through the proxy. It may hold millions of keys of others, so ours are asked for by name.
pub(super) struct Keys(redis::Connection);

/// Keys asked for at once.
const PAGE: usize = 1_000;

impl Keys {
    pub(super) fn connect(url: &str) -> Result<Self, Error> {
        Ok(Self(redis::Client::open(url)?.get_connection_with_timeout(PATIENCE)?))
    }

    /// How many of these there are, and those whose value is neither done nor moved on.
    pub(super) fn open(&mut self, keys: &[String]) -> Result<(usize, Vec<(String, Vec<u8>)>), Error> {
        let (mut count, mut open) = (0, Vec::new());
        for page in keys.chunks(PAGE) {
            let values: Vec<Option<Vec<u8>>> = redis::cmd("MGET").arg(page).query(&mut self.0)?;
            for (key, value) in page.iter().zip(values).filter_map(|(key, value)| Some((key, value?))) {
                count += 1;
                if value != b"1" && value != b"F" {
                    open.push((key.clone(), value));
                }
            }
        }
        Ok((count, open))
    }

    pub(super) fn remove(&mut self, keys: &[String]) -> Result<(), Error> {
        for page in keys.chunks(PAGE) {
            redis::cmd("UNLINK").arg(page).exec(&mut self.0)?;
        }
        Ok(())
    }
}
