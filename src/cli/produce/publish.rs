//! Publishing events: the core of `pipeline produce`, without flags or terminal.
//!
//! Invariants:
//! - An event counts as published only after all in-sync replicas acknowledged it; every other one is told to the
//!   observer by its id and, for JSON, its line. `published + failed` is the number of events that were tried.
//! - A full local queue is back-pressure, never a loss.
//! - A bad line does not stop the lines after it.
//!
//! Topics are not created here: see the topic commands.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::client::{Acks, Spans, connect, not_acknowledged, topic_partitions};
use super::source::{Events, Refused, Source};
use crate::messages::{self, Decoder};
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::{TraceContext, Tracer};
use crate::telemetry::duration;

/// The event's id: stable through hops and redrives.
pub(super) const EVENT_ID: &str = "x-ladder-event-id";
/// Joins the log lines about one event over all systems.
const CORRELATION_ID: &str = "correlation-id";
/// The trace that the event begins.
pub(super) const TRACEPARENT: &str = "traceparent";

/// For [`Error::TopicRefused`].
pub(super) const NO_RIGHT: &str = "this user lacks the right Write on it (docs/security.md)";
/// Failures kept in the summary; the observer is told all of them.
const KEPT_FAILURES: usize = 1_000;
/// Progress is told this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How a record without a given partition gets one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Partitioner {
    /// By the key's murmur2 hash, as Java clients do; without a key at random.
    #[default]
    #[value(name = "murmur2_random")]
    Murmur2Random,
    /// One partition after the other, whatever the key: keys then lose their sequence.
    RoundRobin,
}

/// What is to be published, and where.
#[derive(Debug)]
pub struct ProduceRequest {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// Further librdkafka properties (security, tuning). Those that delivery rests on are overwritten.
    pub properties: BTreeMap<String, String>,
    /// The topic; must exist.
    pub topic: String,
    /// The message and its framing.
    pub decoder: Decoder,
    /// Schema id for the confluent framing; unused with plain framing.
    pub schema_id: u32,
    /// Where the events come from.
    pub source: Source,
    /// The field that becomes the record's key; without one keys are null.
    pub key_field: Option<String>,
    /// The field that holds the event's id; without one, or for generated events, ids are `<run>-<n>`.
    pub id_field: Option<String>,
    /// How records are spread over partitions.
    pub partitioner: Partitioner,
    /// Events per second; as fast as the broker takes them without.
    pub rate: Option<f64>,
    /// Share of the events whose trace is recorded.
    pub sample_ratio: f64,
    /// Takes a span for each of these; without one their traces begin with the first execution.
    pub tracer: Option<Arc<dyn Tracer>>,
    /// How long a broker may be unreachable at the start.
    pub startup_timeout: Duration,
    /// Set from elsewhere to end early: what was handed over is still awaited.
    pub stop: Arc<AtomicBool>,
}

impl ProduceRequest {
    /// A request with the defaults: no key, generated ids, `murmur2_random`, no limit of the rate, 30 s to reach a
    /// broker.
    pub fn new(brokers: impl Into<String>, topic: impl Into<String>, decoder: Decoder, source: Source) -> Self {
        Self {
            brokers: brokers.into(),
            properties: BTreeMap::new(),
            topic: topic.into(),
            decoder,
            schema_id: 0,
            source,
            key_field: None,
            id_field: None,
            partitioner: Partitioner::default(),
            rate: None,
            sample_ratio: 1.0,
            tracer: None,
            startup_timeout: Duration::from_secs(30),
            stop: Arc::default(),
        }
    }
}

/// One event that was not published.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    /// Line of the JSON input, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Its id, when it had one already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// What went wrong, and what would be right.
    pub error: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.line, &self.event_id) {
            (Some(line), _) => write!(f, "line {line}: {}", self.error),
            (None, Some(id)) => write!(f, "event {id}: {}", self.error),
            (None, None) => f.write_str(&self.error),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// The topic.
    pub topic: String,
    /// First part of the generated ids: another for every call.
    pub run: String,
    /// Events acknowledged by all in-sync replicas.
    pub published: u64,
    /// Events that were not.
    pub failed: u64,
    /// Events whose value was made undecodable on purpose.
    pub garbage: u64,
    /// Id of the first event handed over.
    pub first_id: Option<String>,
    /// Id of the last event handed over.
    pub last_id: Option<String>,
    /// Ended early by [`ProduceRequest::stop`].
    pub interrupted: bool,
    /// Time taken, the wait for the last acknowledgement included.
    pub elapsed_ms: u64,
    /// The first 1,000 failures.
    pub failures: Vec<Failure>,
}

/// What the observer is told while events are published.
#[derive(Debug)]
pub enum Update<'a> {
    /// So many were handed over and acknowledged so far.
    Progress {
        /// Handed over.
        sent: u64,
        /// Acknowledged.
        acknowledged: u64,
    },
    /// An event failed.
    Failed(&'a Failure),
}

/// Why nothing, or nothing more, could be published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag or property is wrong.
    #[error("{0}")]
    Config(String),
    /// A field or the message cannot be used.
    #[error(transparent)]
    Message(#[from] messages::Error),
    /// No broker answered in time.
    #[error("kafka not reachable at {brokers} within {}: {detail}; start it, or correct kafka.brokers", duration::coarse(*waited))]
    Unreachable {
        /// The brokers asked.
        brokers: String,
        /// How long.
        waited: Duration,
        /// The last error.
        detail: String,
    },
    /// The topic does not exist.
    #[error("topic {topic} does not exist; make it with scripts/create-topics.sh or --create-topics")]
    TopicMissing {
        /// The topic.
        topic: String,
    },
    /// The broker refuses the topic.
    #[error("topic {topic} cannot be used: {detail}")]
    TopicRefused {
        /// The topic.
        topic: String,
        /// The broker's reason.
        detail: String,
    },
    /// The input ends in an error.
    #[error("cannot read the input after line {line}: {source}")]
    Input {
        /// The last line that was read.
        line: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The producer cannot go on without risking the order or a loss.
    #[error("the producer had to stop: {0}; what was not acknowledged may or may not be on the topic")]
    Fatal(String),
}

impl Error {
    /// The command's exit code for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Message(_) => 64,
            Error::Unreachable { .. } | Error::TopicMissing { .. } | Error::TopicRefused { .. } => 69,
            Error::Input { .. } | Error::Fatal(_) => 1,
        }
    }
}

/// Publishes the request's events and waits for their acknowledgements. Blocks: call it from a thread of its own.
///
/// # Errors
/// When the request is wrong, the topic or a broker is missing, or the producer or the input breaks down. An event
/// that fails by itself is no error: see [`Summary::failed`].
pub fn run(request: ProduceRequest, observe: &mut dyn FnMut(Update<'_>)) -> Result<Summary, Error> {
    let started = Instant::now();
    let run = run_id();
    let key = request.key_field.as_deref().map(|f| request.decoder.path(f)).transpose()?;
    let id = request.id_field.as_deref().map(|f| request.decoder.path(f)).transpose()?;
    let mut events = Events::new(request.source, &request.decoder, id, request.id_field, run.clone())?;
    if request.rate.is_some_and(|r| !(r.is_finite() && r > 0.0)) {
        return Err(Error::Config("--rate must be above 0".to_owned()));
    }
    let seed = getrandom::u64().map_err(|e| Error::Config(format!("no source of randomness: {e}")))?;
    let mut random = fastrand::Rng::with_seed(seed);

    let spans = request.tracer.map(|tracer| Spans { tracer, topic: request.topic.as_str().into() });
    let producer = connect(&request.brokers, &request.properties, spans)?;
    let partitions =
        topic_partitions(&producer, &request.brokers, &request.topic, request.startup_timeout, &request.stop)?;

    let mut publisher = Publisher { producer, observe, failed: 0, failures: Vec::new(), sent: 0, told: started };
    let mut first_id = None;
    let mut last_id = None;
    let mut garbage = 0;
    let mut interrupted = false;
    let mut broken = None;
    loop {
        if request.stop.load(Ordering::Relaxed) {
            interrupted = true;
            break;
        }
        let event = match events.next() {
            None => break,
            Some(Ok(event)) => event,
            Some(Err(Refused::Line(failure))) => {
                publisher.fail(failure);
                continue;
            }
            Some(Err(Refused::Input(error))) => {
                broken = Some(error);
                break;
            }
        };
        if let Some(rate) = request.rate {
            let due = started + Duration::try_from_secs_f64(publisher.sent as f64 / rate).unwrap_or(Duration::MAX / 4);
            publisher.wait_until(due, &request.stop);
        }
        let key = key.as_ref().and_then(|path| request.decoder.text(&event.payload, path));
        let value = match event.garbage {
            Some(bytes) => {
                garbage += 1;
                bytes
            }
            None => request.decoder.frame(event.payload, request.schema_id),
        };
        let partition = match request.partitioner {
            Partitioner::Murmur2Random => None,
            Partitioner::RoundRobin => i32::try_from(publisher.sent % u64::from(partitions)).ok(),
        };
        let trace = TraceContext::root(request.sample_ratio).to_string();
        let headers = OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: EVENT_ID, value: Some(&event.id) })
            .insert(Header { key: CORRELATION_ID, value: Some(&format!("{:032x}", random.u128(..))) })
            .insert(Header { key: TRACEPARENT, value: Some(&trace) });
        let mut record = BaseRecord::with_opaque_to(&request.topic, event.line.unwrap_or_default() as usize)
            .payload(&value)
            .headers(headers);
        record.partition = partition;
        record.key = key.as_ref();
        if let Err(error) = publisher.send(record, event.line, &event.id) {
            broken = Some(error);
            break;
        }
        first_id.get_or_insert_with(|| event.id.clone());
        last_id = Some(event.id);
    }
    publisher.drain();
    if let Some(error) = broken {
        return Err(error);
    }
    let acks = publisher.producer.context();
    let published = acks.acknowledged.load(Ordering::Acquire);
    Ok(Summary {
        topic: request.topic,
        run,
        published,
        failed: publisher.failed,
        garbage,
        first_id: first_id.filter(|_| published > 0),
        last_id: last_id.filter(|_| published > 0),
        interrupted,
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        failures: publisher.failures,
    })
}

/// Another one for every call, growing with time: two runs with one seed are different events.
fn run_id() -> String {
    let seconds = SystemClock.now().wall.as_micros() / 1_000_000;
    let salt = getrandom::u32().unwrap_or_else(|_| std::process::id());
    format!("{seconds:08x}{:04x}", salt & 0xffff)
}

struct Publisher<'o> {
    producer: BaseProducer<Acks>,
    observe: &'o mut dyn FnMut(Update<'_>),
    sent: u64,
    failed: u64,
    failures: Vec<Failure>,
    told: Instant,
}

impl Publisher<'_> {
    /// Hands a record over, waiting while the local queue is full. A record that is refused for itself is a failure
    /// of that event; an error ends the run.
    fn send(
        &mut self,
        mut record: BaseRecord<'_, String, Vec<u8>, usize>,
        line: Option<u64>,
        id: &str,
    ) -> Result<(), Error> {
        let record_topic = record.topic;
        loop {
            match self.producer.send(record) {
                Ok(()) => {
                    self.sent += 1;
                    if self.sent.is_multiple_of(128) {
                        self.poll(Duration::ZERO);
                    }
                    return Ok(());
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.poll(Duration::from_millis(10));
                }
                Err((error @ KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), _)) => {
                    let detail =
                        self.producer.client().fatal_error().map_or_else(|| error.to_string(), |(_, text)| text);
                    // What an idempotent producer is told that may write to no topic.
                    if detail.contains("Cluster authorization failed") {
                        let topic = record_topic.to_owned();
                        return Err(Error::TopicRefused { topic, detail: NO_RIGHT.to_owned() });
                    }
                    return Err(Error::Fatal(detail));
                }
                Err((error, _)) => {
                    self.fail(Failure { line, event_id: Some(id.to_owned()), error: not_acknowledged(&error) });
                    return Ok(());
                }
            }
        }
    }

    fn wait_until(&mut self, due: Instant, stop: &AtomicBool) {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || stop.load(Ordering::Relaxed) {
                return;
            }
            self.poll(left.min(PROGRESS_EVERY));
        }
    }

    /// Takes delivery reports in, tells failures at once and progress from time to time.
    fn poll(&mut self, wait: Duration) {
        self.producer.poll(wait);
        let failures =
            std::mem::take(&mut *self.producer.context().failures.lock().unwrap_or_else(PoisonError::into_inner));
        failures.into_iter().for_each(|failure| self.fail(failure));
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            self.tell_progress();
        }
    }

    fn tell_progress(&mut self) {
        let acknowledged = self.producer.context().acknowledged.load(Ordering::Acquire);
        (self.observe)(Update::Progress { sent: self.sent, acknowledged });
    }

    fn fail(&mut self, failure: Failure) {
        self.failed += 1;
        (self.observe)(Update::Failed(&failure));
        if self.failures.len() < KEPT_FAILURES {
            self.failures.push(failure);
        }
    }

    /// Waits until every record is acknowledged or has failed: at the latest after `message.timeout.ms`.
    fn drain(&mut self) {
        while self.producer.in_flight_count() > 0 {
            // Flushing sends at once what would linger.
            if self.producer.flush(Duration::from_millis(50)).is_ok() {
                break;
            }
            self.poll(Duration::ZERO);
        }
        self.poll(Duration::ZERO);
        self.tell_progress();
    }
}
