//! How far a group is behind on a topic, from the log alone: what waits, what is due and not done, the lag.
//!
//! [`Search`] (pure) finds where in a partition the events that are due end; [`LogReader`] asks Kafka: the ends of the
//! log, what the group has committed, the time index, and single records at the place that the search wants to see.
//! Nothing here joins a group, commits an offset or creates a topic.
//!
//! Exact where every offset holds an event and dues rise with offsets; else an estimate: jitter, `Retry-After` and
//! redrives mix dues, and the markers of transactions between events count as such. A broken estimate is never negative and never
//! more than the log holds.

mod reader;
mod search;

pub use reader::{Error, LogReader};
pub use search::{Found, Search};

use crate::ladder::event::Timestamp;

/// A partition that is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Partition number.
    pub partition: i32,
    /// The first offset that counts; `None`: the group's committed offset, else the log's start.
    pub from: Option<i64>,
}

/// What one partition's log holds for a group from some offset on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Partition number.
    pub partition: i32,
    /// First offset of the log.
    pub low: i64,
    /// One past the last offset.
    pub high: i64,
    /// The first offset that counts, within the log.
    pub from: i64,
    /// From here on nothing is due yet.
    pub boundary: i64,
    /// Due time of the oldest event before the boundary that was looked at; where nothing waits its record's time.
    pub oldest: Option<Timestamp>,
    /// When the record at `from` was written; `None` when there is none, or it was not looked at.
    pub head: Option<Timestamp>,
}

impl Backlog {
    /// Offsets from `from` on: the group's lag when that is its position.
    pub fn lag(&self) -> u64 {
        span(self.from, self.high)
    }

    /// Events that are not due yet, of those at or beyond `next`.
    pub fn waiting(&self, next: i64) -> u64 {
        span(self.boundary.max(next), self.high)
    }

    /// Events that are due, of those at or beyond `next`.
    pub fn overdue(&self, next: i64) -> u64 {
        span(next.max(self.from), self.boundary)
    }

    /// Records in the log.
    pub fn depth(&self) -> u64 {
        span(self.low, self.high)
    }
}

/// Offsets from one to another, zero when it lies before.
fn span(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or_default()
}
