//! Asks Kafka what a group has not done on a topic. Every call blocks its thread, at most [`TIMEOUT`] per request.
//!
//! The client carries the group's id to be told its committed offsets, but assigns itself partitions by hand: it never
//! joins, and commits nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::{Ask, Backlog, Found, Search};
use crate::adapters::kafka::client::Quiet;
use crate::adapters::kafka::offsets::{committed_offsets, offsets_at};
use crate::adapters::kafka::{Properties, raw};
use crate::ladder::event::Timestamp;
use crate::ladder::{due, headers};

/// Longest wait for one request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for looking at single records; what is not found by then is taken as guessed.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Kafka did not tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses a property.
    #[error("kafka client of group {group}: {source}; check kafka.properties and kafka.consumer_properties")]
    Config {
        /// Group.
        group: String,
        /// What it says.
        source: KafkaError,
    },
    /// A request failed.
    #[error("kafka: {action} {name}: {source}")]
    Request {
        /// What was asked.
        action: &'static str,
        /// Of which topic or group.
        name: String,
        /// The answer.
        source: KafkaError,
    },
    /// The topic does not exist.
    #[error("topic {topic} is missing; remedy: scripts/create-topics.sh creates it")]
    Missing {
        /// Topic.
        topic: String,
    },
}

/// Looks at one topic with the eyes of one group.
pub struct LogReader {
    consumer: BaseConsumer<Quiet>,
    topic: String,
    group: String,
}

impl LogReader {
    /// A reader; connects with the first question.
    ///
    /// # Errors
    /// When librdkafka refuses the properties.
    pub fn new(properties: &Properties, topic: &str, group: &str) -> Result<Self, Error> {
        let mut config = properties.onlooker(group);
        config
            .set("enable.partition.eof", "true")
            // One record at a time is looked at: nothing is to be fetched ahead.
            .set("queued.min.messages", "1")
            .set("fetch.message.max.bytes", "4096")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.queue.backoff.ms", "5");
        let consumer =
            config.create_with_context(Quiet).map_err(|source| Error::Config { group: group.to_owned(), source })?;
        Ok(Self { consumer, topic: topic.to_owned(), group: group.to_owned() })
    }

    /// Number of the topic's partitions.
    ///
    /// # Errors
    /// When Kafka does not answer, or has no such topic.
    pub fn partitions(&mut self) -> Result<i32, Error> {
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), TIMEOUT);
        let metadata = metadata.map_err(|source| self.failed("look for topic", source))?;
        let topic = metadata.topics().iter().find(|t| t.name() == self.topic && !t.partitions().is_empty());
        let topic = topic.ok_or_else(|| Error::Missing { topic: self.topic.clone() })?;
        Ok(i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX))
    }

    /// Number of members of the group.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn members(&mut self) -> Result<usize, Error> {
        let failed = |source| Error::Request { action: "members of group", name: self.group.clone(), source };
        let groups = self.consumer.fetch_group_list(Some(&self.group), TIMEOUT).map_err(failed)?;
        Ok(groups.groups().iter().filter(|g| g.name() == self.group).map(|g| g.members().len()).sum())
    }

    /// What these partitions hold. With a `delay` an event is due when its header says so, without one at once.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn backlog(&mut self, asks: &[Ask], delay: Option<Duration>, now: Timestamp) -> Result<Vec<Backlog>, Error> {
        let mut backlogs = self.bounds(asks)?;
        let guesses = match delay {
            Some(delay) => self.guess(&backlogs, delay, now)?,
            None => BTreeMap::new(),
        };
        let mut searches = BTreeMap::new();
        for b in backlogs.iter().filter(|b| b.from < b.high) {
            let guess = guesses.get(&b.partition).copied().unwrap_or(b.high);
            searches.insert(b.partition, Search::new(b.from, b.high, guess, now));
        }
        let heads = self.search(&mut searches, delay, now)?;
        for b in &mut backlogs {
            let head = heads.get(&b.partition).copied();
            if head == Some(None) {
                b.high = b.from; // the markers of transactions are no events
            }
            b.boundary = b.high;
            b.head = head.flatten();
            if let Some(search) = searches.get(&b.partition) {
                b.oldest = search.oldest();
                b.boundary = if delay.is_some() { search.boundary() } else { b.high };
            }
        }
        Ok(backlogs)
    }

    /// Start and end of each partition's log.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn bounds(&mut self, asks: &[Ask]) -> Result<Vec<Backlog>, Error> {
        let low = self.offsets(asks, Offset::Beginning)?;
        let high = self.offsets(asks, Offset::End)?;
        let unknown = asks.iter().filter(|ask| ask.from.is_none()).map(|ask| ask.partition);
        let committed = self.committed(unknown)?;
        let backlogs = asks.iter().filter_map(|ask| {
            let (low, high) = (*low.get(&ask.partition)?, *high.get(&ask.partition)?);
            let from = ask.from.or_else(|| committed.get(&ask.partition).copied()).unwrap_or(low);
            let from = from.clamp(low, high.max(low));
            Some(Backlog { partition: ask.partition, low, high, from, boundary: from, ..Backlog::default() })
        });
        Ok(backlogs.collect())
    }

    fn failed(&self, action: &'static str, source: KafkaError) -> Error {
        Error::Request { action, name: self.topic.clone(), source }
    }

    /// One request to each broker: the ends of the log, or the first offsets at or after a time, given as an offset.
    fn offsets(&mut self, asks: &[Ask], at: Offset) -> Result<BTreeMap<i32, i64>, Error> {
        let partitions = asks.iter().map(|ask| ask.partition);
        offsets_at(&self.consumer, &self.topic, partitions, at, TIMEOUT).map_err(|e| self.failed("read offsets of", e))
    }

    fn committed(&mut self, partitions: impl Iterator<Item = i32>) -> Result<BTreeMap<i32, i64>, Error> {
        committed_offsets(&self.consumer, &self.topic, partitions, TIMEOUT).map_err(|source| Error::Request {
            action: "committed offsets of",
            name: self.group.clone(),
            source,
        })
    }

    /// What was appended up to the delay ago is about due.
    fn guess(&mut self, backlogs: &[Backlog], delay: Duration, now: Timestamp) -> Result<BTreeMap<i32, i64>, Error> {
        let asks: Vec<Ask> =
            backlogs.iter().filter(|b| b.from < b.high).map(|b| Ask { partition: b.partition, from: None }).collect();
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let after = now.floor_millis().saturating_sub(delay_ms).saturating_add(1);
        self.offsets(&asks, Offset::Offset(i64::try_from(after).unwrap_or(i64::MAX)))
    }

    /// Runs the searches; when the first record of each partition was written, `None` where there is no record at all.
    /// Where nothing waits (no `delay`), that record is all that is of interest.
    fn search(
        &mut self,
        searches: &mut BTreeMap<i32, Search>,
        delay: Option<Duration>,
        now: Timestamp,
    ) -> Result<BTreeMap<i32, Option<Timestamp>>, Error> {
        let deadline = Instant::now() + SEARCH_TIMEOUT;
        let mut heads = BTreeMap::new();
        loop {
            let wanted: Vec<_> = searches.iter().filter_map(|(p, s)| Some((*p, s.next()?))).collect();
            if wanted.is_empty() || Instant::now() >= deadline {
                break;
            }
            let seen = self.look(&wanted, deadline)?;
            for (partition, looked) in &seen {
                let written = looked.as_ref().and_then(|looked| looked.written).unwrap_or(now);
                heads.entry(*partition).or_insert(looked.as_ref().map(|_| written));
                if let Some(search) = searches.get_mut(partition) {
                    search.found(looked.as_ref().map(|looked| Found {
                        offset: looked.offset,
                        due: delay.map_or(written, |delay| looked.due(delay)),
                    }));
                }
            }
            if seen.len() < wanted.len() || delay.is_none() {
                break; // out of time, or all that is wanted
            }
        }
        // Nothing is fetched until the next question.
        self.consumer.assign(&TopicPartitionList::new()).map_err(|e| self.failed("look at records of", e))?;
        Ok(heads)
    }

    /// The first record at or after each of these offsets; `None`: there is none. What is missing in the answer was
    /// not seen in time.
    fn look(&mut self, wanted: &[(i32, i64)], deadline: Instant) -> Result<BTreeMap<i32, Option<Looked>>, Error> {
        let mut seen = BTreeMap::new();
        if wanted.is_empty() {
            return Ok(seen);
        }
        let wanted: BTreeMap<i32, i64> = wanted.iter().copied().collect();
        let mut list = TopicPartitionList::with_capacity(wanted.len());
        for (partition, offset) in &wanted {
            let added = list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset));
            added.map_err(|e| self.failed("look at records of", e))?;
        }
        self.consumer.assign(&list).map_err(|e| self.failed("look at records of", e))?;
        while seen.len() < wanted.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.consumer.poll(left) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    if wanted.get(&partition).is_some_and(|at| offset >= *at) && !seen.contains_key(&partition) {
                        seen.insert(partition, Some(Looked::of(&message)));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    seen.entry(partition).or_insert(None);
                }
                // Told again when it matters: by the next request, or by the deadline.
                Some(Err(error)) => {
                    tracing::debug!(target: "librdkafka", topic = self.topic, %error, "look at records")
                }
                None => {}
            }
        }
        Ok(seen)
    }
}

/// What a record tells about when it was written and when it is due.
struct Looked {
    offset: i64,
    /// `None` when the broker had no time for it.
    written: Option<Timestamp>,
    due_header: Option<Vec<u8>>,
}

impl Looked {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let mut due_header = None;
        raw::for_each_header(message, |name, value| {
            if name == headers::DUE.as_bytes() {
                due_header = Some(value.unwrap_or_default().to_vec());
            }
        });
        let ms = message.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok());
        Self { offset: message.offset(), written: ms.map(Timestamp::from_millis), due_header }
    }

    fn due(&self, delay: Duration) -> Timestamp {
        let ms = self.written.and_then(|at| i64::try_from(at.floor_millis()).ok()).unwrap_or(-1);
        due::effective(self.due_header.as_deref(), ms, delay).0
    }
}
