//! What of a partition can go into one transaction: the hops that were decided, as far as every offset below them is
//! finished or among them, and the position that is committed with them (`forward: transactional`).
//!
//! Nothing changes here. In that mode an event is `Publishing` from its verdict to the end of its transaction, however
//! many are tried; its lease is renewed meanwhile, and the lane's window bounds how many there can be.

use std::collections::HashMap;

use super::{Lane, Slot, State};
use crate::ladder::event::{Mark, Now};

/// What can be committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops {
    /// The position with these hops; `None` before anything was delivered.
    pub position: Option<i64>,
    /// Events whose hops go with it, in the order of their arrival.
    pub ready: Vec<Slot>,
    /// Events whose leases are over or unconfirmed: nothing of them may be sent.
    pub lapsed: Vec<Slot>,
    /// The lane drains, and some event before these will not be finished here: they can never be committed here.
    pub stranded: Vec<Slot>,
}

impl<T> Lane<T> {
    /// What can be committed now. Takes time for each event.
    pub fn hops(&self, now: Now) -> Hops {
        let (mut hops, mut decided) = (Hops::default(), HashMap::new());
        let mut others_owed = false;
        for (slot, entry) in (0..).zip(&self.entries) {
            let Some(entry) = entry else { continue };
            match entry.state {
                State::Publishing if self.lease_gone(now, slot) => hops.lapsed.push(slot),
                State::Publishing => drop(decided.insert(entry.ticket, Some(slot))),
                // Committed already; only the record of it is still on its way.
                State::Settling(Mark::MovedOn) | State::Resettle(Mark::MovedOn) => {
                    decided.insert(entry.ticket, None);
                }
                _ => {}
            }
            others_owed |= entry.state.is_owed() && entry.state != State::Publishing;
        }
        hops.position = self.watermark.position_with(|ticket| decided.contains_key(&ticket));
        let mut decided: Vec<_> = decided.into_iter().filter_map(|(ticket, slot)| Some((ticket, slot?))).collect();
        decided.sort_unstable();
        let below = |ticket| self.watermark.offset(ticket) < hops.position;
        let (ready, beyond): (Vec<_>, Vec<_>) = decided.into_iter().partition(|(ticket, _)| below(*ticket));
        hops.ready = ready.into_iter().map(|(_, slot)| slot).collect();
        if self.draining && !others_owed && hops.lapsed.is_empty() {
            hops.stranded = beyond.into_iter().map(|(_, slot)| slot).collect();
        }
        hops
    }

    /// Whether the event in a slot waits for its hop to be committed or acknowledged.
    pub fn is_publishing(&self, slot: Slot) -> bool {
        matches!(self.entries.get(slot as usize), Some(Some(entry)) if entry.state == State::Publishing)
    }

    /// How many do.
    pub fn publishing(&self) -> usize {
        self.publishing
    }

    /// All that do.
    pub fn undelivered(&self) -> Vec<Slot> {
        (0..self.entries.len() as Slot).filter(|slot| self.is_publishing(*slot)).collect()
    }
}
