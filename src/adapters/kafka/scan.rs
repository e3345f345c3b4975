//! Reads what a topic holds now, once, from its start (or given offsets) to the ends that it had at the beginning.
//!
//! Invariants: joins no group, commits nothing, creates no topic; a record is shown at most once, those of one
//! partition in their order; aborted and open transactions are not seen (`read_committed`). Every call blocks.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::Quiet;
use super::{Properties, own, raw};
use crate::stage::record::Record;

/// Longest wait for one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A scan that sees nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(30);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// The topic cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses a property.
    #[error("kafka client: {0}; check kafka.properties and kafka.consumer_properties")]
    Config(#[source] KafkaError),
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
    /// The topic does not exist.
    #[error("topic {topic} is missing; remedy: scripts/create-topics.sh creates it")]
    Missing {
        /// Topic.
        topic: String,
    },
    /// Nothing comes although there is something.
    #[error("topic {topic}: nothing came for {} s, {read} of {total} records read; is a broker down?", STALLED.as_secs())]
    Stalled {
        /// Topic.
        topic: String,
        /// Read so far.
        read: u64,
        /// To be read.
        total: u64,
    },
}

/// Offsets of one partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first.
    pub low: i64,
    /// One past the last.
    pub high: i64,
}

impl Bounds {
    /// Offsets between them.
    pub fn len(&self) -> u64 {
        span(self.low, self.high)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.high <= self.low
    }
}

/// A record in the client's buffer.
pub struct Seen<'m>(&'m BorrowedMessage<'m>);

impl Seen<'_> {
    /// Its partition.
    pub fn partition(&self) -> i32 {
        self.0.partition()
    }

    /// Its offset.
    pub fn offset(&self) -> i64 {
        self.0.offset()
    }

    /// Its timestamp, Unix milliseconds; −1 when the broker had none.
    pub fn timestamp_ms(&self) -> i64 {
        self.0.timestamp().to_millis().unwrap_or(-1)
    }

    /// Its key.
    pub fn key(&self) -> Option<&[u8]> {
        self.0.key()
    }

    /// Its value.
    pub fn value(&self) -> Option<&[u8]> {
        self.0.payload()
    }

    /// Calls `f` with each header's name and value, in order.
    pub fn for_each_header(&self, f: impl FnMut(&[u8], Option<&[u8]>)) {
        raw::for_each_header(self.0, f);
    }

    /// The value of the last header of this name, the others aside; `None` when there is none or it is null.
    pub fn header(&self, name: &CStr) -> Option<&[u8]> {
        raw::last_header(self.0, name)
    }

    /// A copy that outlives the buffer.
    pub fn to_record(&self) -> Record {
        own::own(self.0)
    }
}

/// How far a scan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Offsets passed.
    pub read: u64,
    /// Offsets to pass.
    pub total: u64,
}

/// A topic's bounds, and a client to read what lies between.
pub struct Scan {
    consumer: BaseConsumer<Quiet>,
    properties: Properties,
    topic: String,
    bounds: BTreeMap<i32, Bounds>,
}

impl Scan {
    /// Asks for the topic's partitions and their bounds.
    ///
    /// # Errors
    /// When Kafka does not answer or has no such topic.
    pub fn open(properties: &Properties, topic: &str) -> Result<Self, Error> {
        let mut scan = Self::with(properties, topic, BTreeMap::new())?;
        scan.look()?;
        Ok(scan)
    }

    fn with(properties: &Properties, topic: &str, bounds: BTreeMap<i32, Bounds>) -> Result<Self, Error> {
        let consumer = config(properties).create_with_context(Quiet).map_err(Error::Config)?;
        Ok(Self { consumer, properties: properties.clone(), topic: topic.to_owned(), bounds })
    }

    /// Leaves this scan a part of its partitions and hands the others to further scans, so that there are `count` in all,
    /// or one for each partition where there are fewer, with about as many offsets each.
    ///
    /// # Errors
    /// When librdkafka refuses the properties.
    pub fn split(&mut self, count: usize) -> Result<Vec<Self>, Error> {
        let offsets = |part: &BTreeMap<i32, Bounds>| part.values().map(Bounds::len).sum::<u64>();
        let mut parts = vec![BTreeMap::new(); count.min(self.bounds.len()).max(1)];
        let mut largest_first: Vec<_> = std::mem::take(&mut self.bounds).into_iter().collect();
        largest_first.sort_by_key(|(_, bounds)| std::cmp::Reverse(bounds.len()));
        for (partition, bounds) in largest_first {
            if let Some(least) = parts.iter_mut().min_by_key(|part| offsets(part)) {
                least.insert(partition, bounds);
            }
        }
        let mut parts = parts.into_iter();
        self.bounds = parts.next().unwrap_or_default();
        parts.map(|bounds| Self::with(&self.properties, &self.topic, bounds)).collect()
    }

    /// The id of the topic that has this name now, as far as the brokers tell: another one once it was made again.
    pub fn id_of(&self, topic: &str) -> Option<String> {
        let id = raw::topic_id(self.consumer.client(), &CString::new(topic).ok()?, TIMEOUT);
        if id.is_none() {
            tracing::debug!(topic, "the brokers tell no id of the topic");
        }
        id
    }

    fn failed(&self, action: &'static str, source: KafkaError) -> Error {
        match source.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Error::Missing { topic: self.topic.clone() }
            }
            _ => Error::Request { action, topic: self.topic.clone(), source },
        }
    }

    fn look(&mut self) -> Result<(), Error> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), TIMEOUT);
        let metadata = metadata.map_err(|e| self.failed("look for topic", e))?;
        let topic = metadata.topics().iter().find(|t| t.name() == self.topic && !t.partitions().is_empty());
        let topic = topic.ok_or_else(|| Error::Missing { topic: self.topic.clone() })?;
        let partitions: Vec<i32> = topic.partitions().iter().map(|p| p.id()).collect();
        for partition in partitions {
            let (low, high) = self
                .consumer
                .fetch_watermarks(&self.topic, partition, TIMEOUT)
                .map_err(|e| self.failed("read offsets of", e))?;
            self.bounds.insert(partition, Bounds { low, high });
        }
        Ok(())
    }

    /// Asks for the bounds again; what was narrowed is whole again.
    ///
    /// # Errors
    /// When Kafka does not answer or the topic is gone.
    pub fn renew(&mut self) -> Result<(), Error> {
        self.bounds.clear();
        self.look()
    }

    /// Reads these partitions only, between these bounds.
    pub fn within(&mut self, bounds: BTreeMap<i32, Bounds>) {
        self.bounds = bounds;
    }

    /// The bounds of each partition.
    pub fn bounds(&self) -> &BTreeMap<i32, Bounds> {
        &self.bounds
    }

    /// Reads only this partition, and there only these offsets.
    pub fn narrow(&mut self, partition: i32, offsets: Option<std::ops::RangeInclusive<i64>>) {
        self.bounds.retain(|p, _| *p == partition);
        if let (Some(bounds), Some(offsets)) = (self.bounds.get_mut(&partition), offsets) {
            bounds.low = bounds.low.max(*offsets.start());
            bounds.high = bounds.high.min(offsets.end().saturating_add(1));
        }
    }

    /// Ends at these offsets, as an earlier look at the topic found them; partitions that it did not know are left
    /// out.
    pub fn until(&mut self, ends: &BTreeMap<i32, i64>) {
        self.bounds.retain(|partition, _| ends.contains_key(partition));
        for (partition, bounds) in &mut self.bounds {
            bounds.high = bounds.high.min(ends[partition]);
        }
    }

    /// Begins at these offsets.
    pub fn from(&mut self, starts: &BTreeMap<i32, i64>) {
        for (partition, bounds) in &mut self.bounds {
            bounds.low = starts.get(partition).copied().unwrap_or_default().max(bounds.low);
        }
    }

    /// Begins where records of this time (Unix ms) and later begin, as far as the topic's time index knows.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn since(&mut self, ms: i64) -> Result<(), Error> {
        let mut list = TopicPartitionList::with_capacity(self.bounds.len());
        for partition in self.bounds.keys() {
            let added = list.add_partition_offset(&self.topic, *partition, Offset::Offset(ms.max(0)));
            added.map_err(|e| self.failed("read offsets of", e))?;
        }
        let answer = self.consumer.offsets_for_times(list, TIMEOUT).map_err(|e| self.failed("read offsets of", e))?;
        for element in answer.elements_for_topic(&self.topic) {
            element.error().map_err(|e| self.failed("read offsets of", e))?;
            if let Some(bounds) = self.bounds.get_mut(&element.partition()) {
                // Nothing that late: the end.
                let first = element.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(bounds.high);
                bounds.low = bounds.low.max(first);
            }
        }
        Ok(())
    }

    /// Shows every record between the bounds to `each` until that breaks off; tells `progress` several times a second,
    /// which may break off, too. Whether it came to the end.
    ///
    /// # Errors
    /// When Kafka stops answering.
    pub fn run(
        &mut self,
        mut each: impl FnMut(&Seen<'_>) -> ControlFlow<()>,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        // Where each partition that is not at its end yet has got to.
        let mut open: BTreeMap<i32, i64> =
            self.bounds.iter().filter(|(_, b)| b.low < b.high).map(|(p, b)| (*p, b.low)).collect();
        let mut list = TopicPartitionList::with_capacity(open.len());
        for (partition, low) in &open {
            let added = list.add_partition_offset(&self.topic, *partition, Offset::Offset(*low));
            added.map_err(|e| self.failed("read", e))?;
        }
        self.consumer.assign(&list).map_err(|e| self.failed("read", e))?;
        let total = self.bounds.values().map(Bounds::len).sum();
        let mut passed = 0;
        // Time that was spent waiting: what `each` takes is none of it.
        let mut silent = Duration::ZERO;
        let mut told = Instant::now();
        let mut since_look = 0_u32;
        while !open.is_empty() {
            match self.consumer.poll(PROGRESS_EVERY) {
                Some(Ok(message)) => {
                    silent = Duration::ZERO;
                    let (partition, offset) = (message.partition(), message.offset());
                    if let Some(at) = open.get_mut(&partition) {
                        let high = self.bounds[&partition].high;
                        let next = (offset + 1).min(high);
                        passed += span(*at, next);
                        *at = next;
                        if offset < high && each(&Seen(&message)).is_break() {
                            return self.rest(false);
                        }
                        if next >= high {
                            open.remove(&partition);
                        }
                    }
                    since_look += 1;
                    if since_look < 256 {
                        continue; // the clock is read now and then only
                    }
                }
                // Nothing but the markers of transactions may be left.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(at) = open.remove(&partition) {
                        passed += span(at, self.bounds[&partition].high);
                    }
                    silent = Duration::ZERO;
                }
                // Told again when it matters: nothing comes any more.
                Some(Err(error)) => tracing::debug!(target: "librdkafka", topic = self.topic, %error, "scan"),
                None => silent += PROGRESS_EVERY,
            }
            since_look = 0;
            if silent > STALLED {
                return Err(Error::Stalled { topic: self.topic.clone(), read: passed, total });
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                if progress(Progress { read: passed, total }).is_break() {
                    return self.rest(false);
                }
            }
        }
        let ended = progress(Progress { read: total, total }).is_continue();
        self.rest(ended)
    }

    /// Nothing is fetched any more.
    fn rest(&self, ended: bool) -> Result<bool, Error> {
        self.consumer.assign(&TopicPartitionList::new()).map_err(|e| self.failed("read", e))?;
        Ok(ended)
    }
}

/// Number of partitions of each of these topics.
///
/// # Errors
/// When Kafka does not answer or has no such topic.
pub fn partitions(properties: &Properties, topics: &[&str]) -> Result<Vec<i32>, Error> {
    let consumer: BaseConsumer<Quiet> = config(properties).create_with_context(Quiet).map_err(Error::Config)?;
    let count = |topic: &&str| {
        let failed = |source| Error::Request { action: "look for topic", topic: (*topic).to_owned(), source };
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).map_err(failed)?;
        let topics = metadata.topics();
        let denied = RDKafkaErrorCode::TopicAuthorizationFailed;
        if topics.iter().any(|t| t.name() == *topic && t.error().map(RDKafkaErrorCode::from) == Some(denied)) {
            return Err(failed(KafkaError::MetadataFetch(denied)));
        }
        let found = topics.iter().find(|t| t.name() == *topic && !t.partitions().is_empty());
        let found = found.ok_or_else(|| Error::Missing { topic: (*topic).to_owned() })?;
        Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))
    };
    topics.iter().map(count).collect()
}

/// What comes to a topic from some offsets on.
pub struct Tail {
    consumer: BaseConsumer<Quiet>,
    topic: String,
}

impl Tail {
    /// Begins at these offsets of these partitions.
    ///
    /// # Errors
    /// When librdkafka refuses the properties.
    pub fn open(properties: &Properties, topic: &str, from: &BTreeMap<i32, i64>) -> Result<Self, Error> {
        let consumer: BaseConsumer<Quiet> = config(properties).create_with_context(Quiet).map_err(Error::Config)?;
        let failed = |source| Error::Request { action: "read", topic: topic.to_owned(), source };
        let mut list = TopicPartitionList::with_capacity(from.len());
        for (partition, offset) in from {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).map_err(failed)?;
        }
        consumer.assign(&list).map_err(failed)?;
        Ok(Self { consumer, topic: topic.to_owned() })
    }

    /// Shows what has come since; never waits.
    ///
    /// # Errors
    /// When the topic cannot be read.
    pub fn drain(&mut self, mut each: impl FnMut(&Seen<'_>)) -> Result<(), Error> {
        loop {
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => each(&Seen(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => {
                    tracing::debug!(target: "librdkafka", topic = self.topic, %error, "tail");
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }
}

fn config(properties: &Properties) -> ClientConfig {
    let mut config = properties.onlooker(&format!("{}-scan", properties.client_id()));
    config
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", "16384")
        // A full queue is drained in a fraction of the second that librdkafka would wait by default.
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.wait.max.ms", "50");
    config
}

fn span(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or_default()
}
