//! What a lane holds, for those who look at it: status and metrics.

use super::{Lane, State};
use crate::ladder::event::Timestamp;

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not due yet.
    Waiting,
    /// Due and not started: no permit, behind another event of its key, held by somebody else, store down, or halted.
    Overdue,
    /// Started and not finished.
    Started,
}

impl<T> Lane<T> {
    /// One past the last offset that was delivered; `None` before anything was.
    pub fn delivered_to(&self) -> Option<i64> {
        self.watermark.delivered_to()
    }

    /// Every event with where it stands, in no order. Takes time for each.
    pub fn standings(&self, now: Timestamp) -> impl Iterator<Item = (&T, Standing)> {
        self.entries.iter().flatten().map(move |entry| {
            let standing = match entry.state {
                State::Waiting | State::Parked | State::Ready | State::Halted if entry.due > now => Standing::Waiting,
                State::Waiting | State::Parked | State::Ready | State::Halted => Standing::Overdue,
                _ => Standing::Started,
            };
            (&entry.item, standing)
        })
    }
}
