//! Kafka as the test sees it: plain clients that know nothing of our code. Producing at a rate, groups, reading back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::plan::Plan;
use crate::support::client_config;

pub(crate) const PARTITIONS: i32 = 6;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Counts acknowledgements.
#[derive(Default)]
struct Acks {
    ok: AtomicUsize,
    failed: AtomicUsize,
}

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.ok } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Produces the plan in its order, so many events a second, and waits until all are acknowledged.
pub(crate) fn produce(plan: &Plan, topic: &str, per_second: f64) {
    let mut config = client_config();
    config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "5");
    let producer: BaseProducer<Acks> = config.create_with_context(Acks::default()).expect("producer");
    let begun = Instant::now();
    for event in &plan.events {
        let at = begun + Duration::from_secs_f64(event.index as f64 / per_second);
        if let Some(early) = at.checked_duration_since(Instant::now()).filter(|early| early.as_millis() > 10) {
            producer.poll(early);
        }
        let headers = event
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }));
        loop {
            let mut record = BaseRecord::to(topic).key(&event.key).headers(headers.clone());
            record.payload = event.value.as_ref();
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    producer.poll(Duration::from_millis(50));
                }
                Err((error, _)) => panic!("{}: {error}", event.id),
            }
        }
    }
    producer.flush(Duration::from_secs(60)).expect("flush");
    let acks = producer.context();
    let counts = (acks.ok.load(Ordering::Relaxed), acks.failed.load(Ordering::Relaxed));
    assert_eq!(counts, (plan.events.len(), 0), "acknowledged and failed");
}

/// One record as it stands in a topic.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Stored {
    /// The value of the only header of this name.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.headers.iter().filter(|(n, _)| n == name);
        let (_, value) = all.next()?;
        assert!(all.next().is_none(), "{} has {name} more than once", self.at());
        value.as_deref()
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.bytes(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or("(none)")
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| panic!("{} has {name} = {text:?}, no number", self.at()))
    }

    /// Coordinates, for messages.
    pub(crate) fn at(&self) -> String {
        format!("{}:{}:{}", self.topic, self.partition, self.offset)
    }

    /// The headers of others, in their order; the trace context, which is rewritten at each hop, is none of them.
    pub(crate) fn foreign(&self) -> Vec<(&str, Option<&[u8]>)> {
        let ours = |name: &str| {
            name.starts_with("x-ladder-")
                || name.starts_with("__dlq.errors.")
                || name.starts_with("kafka_dlt-")
                || matches!(name, "traceparent" | "tracestate")
        };
        self.headers.iter().filter(|(n, _)| !ours(n)).map(|(n, v)| (n.as_str(), v.as_deref())).collect()
    }
}

/// Reads a topic from its beginning, partition by partition assigned, outside any group.
pub(crate) struct Reader {
    consumer: BaseConsumer,
    topic: String,
}

impl Reader {
    pub(crate) fn new(topic: &str) -> Self {
        let mut config = client_config();
        config.set("group.id", "nobody").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "50");
        let consumer: BaseConsumer = config.create().expect("consumer");
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(topic, partition, Offset::Beginning).expect("partition");
        }
        consumer.assign(&all).expect("assign");
        Self { consumer, topic: topic.to_owned() }
    }

    /// Whatever arrives within a moment.
    pub(crate) fn next(&self, within: Duration) -> Option<Stored> {
        let message = match self.consumer.poll(within)? {
            Ok(message) => message,
            Err(error) => panic!("reading {}: {error}", self.topic),
        };
        let headers = message
            .headers()
            .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect::<Vec<_>>());
        Some(Stored {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        })
    }

    /// Everything up to the ends that the topic has now.
    pub(crate) fn into_records(self) -> Vec<Stored> {
        let mut open: Vec<i64> = (0..PARTITIONS).map(|p| end(&self.consumer, &self.topic, p)).collect();
        let mut records = Vec::new();
        let begun = Instant::now();
        // An end that was reached stands as 0.
        while open.iter().any(|end| *end > 0) {
            assert!(begun.elapsed() < 2 * TIMEOUT, "{} is not read to its ends {open:?}", self.topic);
            let Some(record) = self.next(Duration::from_millis(200)) else { continue };
            let end = &mut open[record.partition as usize];
            if record.offset + 1 >= *end {
                *end = 0;
            }
            records.push(record);
        }
        records
    }
}

fn end(consumer: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    consumer.fetch_watermarks(topic, partition, TIMEOUT).expect("watermarks").1
}

/// A consumer group seen from outside: it never joins.
pub(crate) struct Group {
    consumer: BaseConsumer,
    name: String,
    topic: String,
}

impl Group {
    pub(crate) fn new(name: &str, topic: &str) -> Self {
        let consumer = client_config().set("group.id", name).create().expect("consumer");
        Self { consumer, name: name.to_owned(), topic: topic.to_owned() }
    }

    /// Whether so many members share the partitions.
    pub(crate) fn is_stable_with(&self, members: usize) -> bool {
        // While the group's coordinator is being found this fails.
        self.consumer.fetch_group_list(Some(&self.name), TIMEOUT).is_ok_and(|list| {
            let group = list.groups().iter().find(|group| group.name() == self.name);
            group.is_some_and(|group| group.state() == "Stable" && group.members().len() == members)
        })
    }

    /// Records that the group has not committed yet.
    pub(crate) fn lag(&self) -> i64 {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(&self.topic, 0, PARTITIONS - 1);
        let committed = self.consumer.committed_offsets(all, TIMEOUT).expect("committed offsets");
        let lag = |partition: i32| {
            let offset = committed.find_partition(&self.topic, partition).map(|element| element.offset());
            let offset = if let Some(Offset::Offset(offset)) = offset { offset } else { 0 };
            end(&self.consumer, &self.topic, partition) - offset
        };
        (0..PARTITIONS).map(lag).sum()
    }
}

/// Removes the topics of a run that went well; those of one that did not stay to be looked at.
pub(crate) fn delete(topics: &[String]) {
    let client: AdminClient<DefaultClientContext> = client_config().create().expect("admin client");
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let results = runtime.block_on(client.delete_topics(&topics, &AdminOptions::new())).expect("delete topics");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}
