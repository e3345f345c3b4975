//! The headers of one record, interpreted and valid. Data only; [`super::read`] fills it.

use std::fmt;
use std::sync::Arc;

use super::{NAMES, Name};
use crate::ladder::event::{Origin, Timestamp};

/// What the ladder knows about one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Stable through hops and redrives.
    pub event_id: Arc<str>,
    /// Index of the rung that the record was read from.
    pub stage: usize,
    /// On the DLQ's rung: index of the stage that failed last, when the record says it. `None` elsewhere.
    pub failed_stage: Option<usize>,
    /// Executions charged so far, at most [`super::MAX_ATTEMPT`].
    pub attempt: u32,
    /// Moves so far, below [`super::HOP_LIMIT`].
    pub hop: u64,
    /// Last fence given to a handler, 0 for none.
    pub fence: u64,
    /// The instant before which it must not run, after repairs; `None` where nothing waits (main, DLQ).
    pub due: Option<Timestamp>,
    /// Where the event entered the pipeline.
    pub origin: Origin,
    /// How often it was redriven.
    pub redrives: u32,
    /// When it was last redriven.
    pub redriven_at: Option<Timestamp>,
    /// Deferrals by `Retry-After` since the origin or the last redrive.
    pub deferrals: u32,
    /// The headers that had to be repaired, to be counted.
    pub repaired: Repairs,
    /// A record on main that somebody else's service copied with our headers: all of them were ignored. To be counted.
    pub untrusted: bool,
    /// Our own group wrote its headers, so its history is worth keeping.
    pub own: bool,
}

/// Coordinates of a record on the topic that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinates {
    /// Partition number.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// The record's timestamp, Unix milliseconds; −1 when the broker had none.
    pub timestamp_ms: i64,
}

impl Coordinates {
    pub(super) fn on(self, topic: &str) -> Origin {
        Origin {
            topic: topic.to_owned(),
            partition: self.partition,
            offset: self.offset,
            // A producer may say anything; what is written into a header has to be readable there.
            timestamp_ms: self.timestamp_ms.max(-1),
        }
    }
}

/// Where an event's id comes from. When there is none, it is `topic:partition:offset:timestamp_ms` of the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdSource {
    /// The first of these headers that has a usable value. `ce_id` counts only together with `ce_source`.
    Headers(Vec<String>),
    /// A field of the payload, which the caller decodes.
    Field,
}

impl Default for IdSource {
    fn default() -> Self {
        Self::Headers([super::EVENT_ID, "ce_id", "MessageID"].map(str::to_owned).into())
    }
}

/// The set of headers that had to be repaired.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Repairs(u16);

impl Repairs {
    const DUE_CLAMPED: u16 = 1 << NAMES.len();

    /// Nothing was repaired.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names, for the label `header` of the metric: those of the headers, and `due_clamped` for a due that was
    /// a number but too far ahead.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let set = move |bit: usize| self.0 & (1 << bit) != 0;
        super::REPAIRABLE.into_iter().enumerate().filter(move |(bit, _)| set(*bit)).map(|(_, n)| n)
    }

    /// Whether the header of this name (or `due_clamped`) is among them.
    pub fn contains(self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    pub(super) fn add(&mut self, name: Name) {
        self.0 |= 1 << name as u8;
    }

    pub(super) fn add_due_clamped(&mut self) {
        self.0 |= Self::DUE_CLAMPED;
    }
}

impl fmt::Debug for Repairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
