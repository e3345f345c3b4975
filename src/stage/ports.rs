//! The narrow traits between the engine and the outside. Adapters implement them; tests fake them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::record::Record;
use crate::ladder::event::{Action, Origin, Outcome, Timestamp};
pub use crate::ladder::event::{ClaimReply, Mark};
pub use crate::ladder::sequence::{Place, Turn, TurnReply};
pub use crate::telemetry::trace_context::{Sampling, TraceContext};

// ---------------------------------------------------------------------------------------------- handler

/// What a handler is given: one event at one attempt.
#[derive(Clone, Debug)]
pub struct Event {
    /// Pipeline name.
    pub pipeline: Arc<str>,
    /// Consumer group of the pipeline.
    pub group: Arc<str>,
    /// Full name of the Protobuf message.
    pub message: Arc<str>,
    /// Stable through hops and redrives: the key for effects that must happen once.
    pub id: Arc<str>,
    /// Executions so far, this one included: 1 on the first.
    pub attempt: u32,
    /// Index of the stage: 0 is main, 1 … N the retry stages, N + 1 the DLQ.
    pub stage: usize,
    /// Name of the stage: `main`, `retry-1`, … `dlq`.
    pub stage_name: Arc<str>,
    /// Grows with every execution of this event; a sink that remembers the highest can refuse an older one.
    pub fence: u64,
    /// The handler is cancelled at this instant (wall clock, as of its start).
    pub deadline: Timestamp,
    /// Where the event entered the pipeline.
    pub origin: Origin,
    /// The record: key, value, headers, coordinates on the topic that it was read from.
    pub record: Arc<Record>,
    /// The Protobuf bytes: the value without any schema registry framing.
    pub payload: Bytes,
    /// The span of this execution, to be passed on to whatever the handler calls; `None` without tracing, then the
    /// record's own `traceparent` is the one to pass on.
    pub trace: Option<TraceContext>,
}

impl Event {
    /// The payload as a Protobuf message.
    ///
    /// # Errors
    /// When the payload is not such a message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.payload.clone())
    }

    /// The first header of this name that has a value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.record.header(name)
    }

    /// For log lines about the event, with its id, stage and attempt: the trace, 32 hex digits.
    pub fn trace_id(&self) -> Option<String> {
        let trace = self.trace.or_else(|| self.record.trace())?;
        Some(format!("{:032x}", trace.trace_id()))
    }

    /// The correlation id that its producer gave it, where it is text.
    pub fn correlation_id(&self) -> Option<&str> {
        self.record.correlation_id()
    }
}

/// The application's code: executes one event.
///
/// It may run more than once for one event (see the delivery promise in the README), so effects should be keyed on
/// [`Event::id`] or guarded by [`Event::fence`]. It must not block its thread: use `tokio::task::spawn_blocking`.
/// A panic counts as a transient failure. It is cancelled (dropped at an `.await`) at its deadline and when the lease is lost.
pub trait Handler: Send + Sync + 'static {
    /// Executes one event.
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome>;
}

// ---------------------------------------------------------------------------------------------- deduplication

/// Names one copy of an event: `<prefix>:<group>:<topic>:<event_id>:<hop>`, complete and encoded
/// (rules 5 and 6 of the protocol; built by `ladder::headers`).
pub type CopyKey = Arc<str>;

/// The value of a claim: `P.<token>.<fence>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// 64 random bits of this process's start.
    pub process: u64,
    /// Sequence number in this process; a new one after each release.
    pub sequence: u64,
    /// The fence given to the handler.
    pub fence: u64,
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "P.{:016x}-{:x}.{}", self.process, self.sequence, self.fence)
    }
}

impl Claim {
    /// Reads a stored value back; `None` when it is no claim of any instance.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value.strip_prefix(b"P.")?).ok()?;
        let (process, rest) = text.split_once('-')?;
        let (sequence, fence) = rest.split_once('.')?;
        // `from_str_radix` and `parse` take a sign, too.
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        if process.len() != 16 || !digits(process) || !digits(sequence) || !digits(fence) {
            return None;
        }
        Some(Self {
            process: u64::from_str_radix(process, 16).ok()?,
            sequence: u64::from_str_radix(sequence, 16).ok()?,
            fence: fence.parse().ok()?,
        })
    }
}

impl ClaimReply {
    /// What a claim that met `value` is told.
    pub fn to_existing(value: &[u8], ours: &Claim) -> Self {
        match value {
            b"1" => ClaimReply::Done,
            b"F" => ClaimReply::MovedOn,
            _ => match Claim::parse(value) {
                Some(claim) if claim == *ours => ClaimReply::AlreadyOurs,
                Some(_) => ClaimReply::Busy,
                None => ClaimReply::corrupt(value),
            },
        }
    }

    /// A value of somebody else's making, as text and cut short.
    pub fn corrupt(value: &[u8]) -> Self {
        // 64 characters take at most 256 bytes: no need to decode more of a value that may have megabytes.
        let head = &value[..value.len().min(256)];
        ClaimReply::Corrupt(String::from_utf8_lossy(head).chars().take(64).collect())
    }
}

/// Reply to a settlement: always recorded; whether the old value was our claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleReply {
    /// The old value was our claim.
    Ours,
    /// It was not (lease lost, or the record gone): recorded all the same, counted.
    LeaseLost,
}

/// The store did not answer, or refused this one command.
#[derive(Clone, Debug, thiserror::Error)]
#[error("deduplication store: {0}")]
pub struct StoreError(pub String);

/// The deduplication records. Every call is one batch and answers in the batch's order, one result per entry:
/// one refused command must not fail its neighbours. A store that cannot be reached fails every entry, within about
/// a second, and comes back by itself; it logs that it is gone, and that it is back, once each.
pub trait IdempotencyStore: Send + Sync + 'static {
    /// `SET k <claim> NX GET PX <lease>` for each.
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>>;

    /// Extends each lease that is still ours: `true` = still ours, `false` = lost.
    fn renew(&self, batch: Vec<(CopyKey, Claim)>, lease: Duration)
    -> BoxFuture<'static, Vec<Result<bool, StoreError>>>;

    /// `SET k 1|F PX <ttl> GET` for each, unconditionally (rule 4).
    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>>;

    /// Whether the store answers, as far as is known without asking it.
    fn is_available(&self) -> bool {
        true
    }

    /// Deletes each claim that is still ours: for claims whose handler never started.
    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>>;

    /// Asks each queue whose turn it is ([`Queue::turn`](crate::ladder::sequence::Queue::turn)). Only with `order: ladder`,
    /// as the next two: a store that keeps no queues refuses them.
    fn turns(&self, batch: Vec<Place>, room: usize) -> BoxFuture<'static, Vec<Result<TurnReply, StoreError>>> {
        let _ = room;
        no_queues(batch.len())
    }

    /// Takes each place, or renews it: good for this long.
    fn join(&self, batch: Vec<(Place, Duration)>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        no_queues(batch.len())
    }

    /// Gives each place back.
    fn leave(&self, batch: Vec<Place>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        no_queues(batch.len())
    }
}

fn no_queues<T: Send + 'static>(entries: usize) -> BoxFuture<'static, Vec<Result<T, StoreError>>> {
    let error = StoreError("it keeps no queues, which `order: ladder` needs".into());
    Box::pin(async move { (0..entries).map(|_| Err(error.clone())).collect() })
}

// ---------------------------------------------------------------------------------------------- publishing

/// A record to be produced.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Target topic.
    pub topic: Arc<str>,
    /// Target partition, `None`: by key (murmur2_random).
    pub partition: Option<i32>,
    /// The key, untouched.
    pub key: Option<Bytes>,
    /// The value, untouched.
    pub value: Option<Bytes>,
    /// All headers in order: the unknown ones untouched, then ours.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Why a record was not acknowledged. Except for `TooLarge` and `Aborted` the outcome is unknown: produce again, the next hop's key
/// collapses the copies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker or the producer refuses the record for its size.
    #[error("record too large")]
    TooLarge,
    /// Its transaction did not happen: it was not written.
    #[error("transaction aborted")]
    Aborted,
    /// Anything else.
    #[error("not acknowledged: {0}")]
    Unacknowledged(String),
}

/// Where an acknowledgement goes: called once per published record, from the producer's own thread.
pub trait AckSink: Send + Sync + 'static {
    /// The record published with `ticket` was acknowledged by all in-sync replicas, or not.
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>);
}

/// An idempotent producer with `acks=all`.
pub trait Publisher: Send + Sync + 'static {
    /// Hands a record over; the answer comes to `acks`. Never blocks: a full queue is told to `acks` as
    /// [`PublishError::Unacknowledged`].
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>);
}

/// What one partition has for the next transaction: its hops, and the position that is committed with them.
///
/// Each hop is answered exactly once; one that is dropped without an answer, as aborted.
pub struct Share {
    /// The partition of the stage's topic.
    pub partition: i32,
    /// Every offset below is finished, or its hop is among these.
    pub position: i64,
    /// The hops, with their tickets.
    pub hops: Vec<(u64, Outgoing)>,
    /// Where the answers go.
    pub acks: Arc<dyn AckSink>,
}

impl Share {
    /// Answers each hop, by its place in the share.
    pub fn answer(mut self, mut result: impl FnMut(usize) -> Result<(), PublishError>) {
        for (place, (ticket, _)) in std::mem::take(&mut self.hops).into_iter().enumerate() {
            self.acks.acknowledged(ticket, result(place));
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for (ticket, _) in self.hops.drain(..) {
            self.acks.acknowledged(ticket, Err(PublishError::Aborted));
        }
    }
}

// ---------------------------------------------------------------------------------------------- traces

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpanKind {
    /// From the hop to the dispatch.
    Wait,
    /// One execution.
    Process,
    /// From the decision to publish to the acknowledgement.
    Send,
}

/// A span that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// What it is about.
    pub kind: SpanKind,
    /// The span itself.
    pub context: TraceContext,
    /// Its parent, `None` for the first span of a trace.
    pub parent: Option<TraceContext>,
    /// Its start.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
    /// The topic that the event was read from or, for [`SpanKind::Send`], is written to.
    pub topic: &'a Arc<str>,
    /// The partition on that topic, where it is known.
    pub partition: Option<i32>,
    /// The offset in that partition, where it is known.
    pub offset: Option<i64>,
    /// The record's key.
    pub key: Option<&'a Bytes>,
    /// The event's id.
    pub event_id: &'a Arc<str>,
    /// Which stage it happened in; `None` in the producer of the event.
    pub stage: Option<SpanStage<'a>>,
    /// The event's due time, in a stage with a delay.
    pub due: Option<Timestamp>,
    /// A word for the kind of failure, and its text.
    pub error: Option<(&'a str, &'a str)>,
    /// What a failure led to.
    pub action: Option<&'a Action>,
}

/// Where in a pipeline a span belongs.
#[derive(Clone, Copy, Debug)]
pub struct SpanStage<'a> {
    /// Name of the pipeline.
    pub pipeline: &'a Arc<str>,
    /// Name of the stage.
    pub name: &'a Arc<str>,
    /// The stage's consumer group.
    pub group_id: &'a Arc<str>,
    /// Which execution of the event, from 1.
    pub attempt: u32,
}

/// Takes the spans of the events that are traced.
pub trait Tracer: std::fmt::Debug + Send + Sync + 'static {
    /// Which events are.
    fn sampling(&self) -> Sampling;

    /// Takes a span over. Never blocks, never fails: a span that cannot be kept is lost and counted.
    fn write(&self, span: &Span<'_>);
}
