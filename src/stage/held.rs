//! An event while a lane holds it: from the broker's record to what the lane needs to know of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::future::AbortHandle;

use super::context::StageContext;
use super::ports::CopyKey;
use super::record::Record;
use super::trace::EventTrace;
use crate::ladder::event::{Action, Failure, HaltReason, Timestamp};
use crate::ladder::headers::{self, Coordinates, Envelope, IdSource, Shrink};
use crate::ladder::lane::{Arrival, Order};
use crate::ladder::sequence::{self, Place, Turn};

/// An event while a lane holds it.
pub(super) struct Held {
    pub(super) record: Arc<Record>,
    pub(super) envelope: Envelope,
    /// Name of this copy in the store.
    pub(super) key: CopyKey,
    /// Its place among the events of its key (`order: ladder`); `None`: it is free.
    pub(super) place: Option<Place>,
    /// Whose turn it was when it was claimed.
    pub(super) turn: Turn,
    /// It has paused before it moves on, because its due time does not pace it.
    pub(super) paused: bool,
    /// When the handler was last started.
    pub(super) started: Timestamp,
    /// How long it ran.
    pub(super) took: Duration,
    /// What the next copy is made from, once an execution failed.
    pub(super) failed: Option<(Failure, Action)>,
    /// Optional headers left out of the next copy, because the broker refused it with them.
    pub(super) shrink: Shrink,
    pub(super) halted: Option<HaltReason>,
    /// Cancels the running handler.
    pub(super) abort: Option<AbortHandle>,
    /// Its spans, where there is a tracer.
    pub(super) trace: Option<EventTrace>,
}

/// What a lane is told of a record that arrived.
pub(super) fn receive(ctx: &StageContext, record: Record) -> Arrival<Box<Held>> {
    let at = Coordinates { partition: record.partition, offset: record.offset, timestamp_ms: record.timestamp_ms };
    let id_source = &ctx.settings.id_source;
    let field = match (id_source, &record.value) {
        (IdSource::Field, Some(value)) => {
            ctx.decode.payload(value).ok().and_then(|payload| ctx.decode.event_id(&payload))
        }
        _ => None,
    };
    let envelope = headers::read(&ctx.ladder, ctx.stage, at, record.headers(), id_source, field.as_deref());
    ctx.stats.count_repairs(&envelope);
    let key = record.key.as_ref().map(|key| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    });
    let place = record.key.as_ref().filter(|_| ctx.settings.order == Order::Ladder).and_then(|key| {
        let (partition, offset) = sequence::place(&ctx.ladder, &envelope)?;
        Some(Place { queue: ctx.keys.queue(partition, key), offset })
    });
    Arrival {
        offset: record.offset,
        due: envelope.due.unwrap_or_default(),
        key,
        bytes: record.size(),
        fence: envelope.fence,
        item: Box::new(Held {
            key: ctx.keys.key(&envelope.event_id, envelope.hop),
            place,
            turn: Turn::default(),
            paused: false,
            record: Arc::new(record),
            envelope,
            started: Timestamp::default(),
            took: Duration::ZERO,
            failed: None,
            shrink: Shrink::default(),
            halted: None,
            abort: None,
            trace: None,
        }),
    }
}
