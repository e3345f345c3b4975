//! What a lane holds, for those who look at it: status and metrics.

use super::{Entry, Lane, State};
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
    /// Events that are not due yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Events that are past their due time and not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Permits that events of this lane hold now, and as many of them as are of the newest grant.
    pub fn permits_held(&self) -> (usize, usize) {
        let holds = |e: &&Entry<T>| matches!(e.state, State::Claiming | State::Confirming | State::Running);
        let held = || self.entries.iter().flatten().filter(holds);
        (held().count(), held().filter(|entry| entry.grant == self.grant).count())
    }

    /// All events in the lane, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten().map(|entry| &entry.item)
    }

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
