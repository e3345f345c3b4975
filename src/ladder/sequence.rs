//! `order: ladder`: whose turn it is among the events of one key, over all stages.
//!
//! The rules, for a key of one main partition; *place* = the event's offset there.
//!
//! 1. A key's queue holds the places of those of its events that are in the ladder. A key without a queue is free: its
//!    events run on main as ever, and pay for one look into the store.
//! 2. An event may run when no lower place is in the queue. Else it is *behind*: it takes its own place, moves to the
//!    first retry stage (from a retry stage: to the same again) without having run, and asks again when it is due there.
//! 3. A place is taken **before** the copy that is to wait is produced, and given back **after** the end (done, or its dead
//!    letter acknowledged) and **before** that is recorded: what is recorded holds nobody up, whatever crashes between.
//!    A place that was given back is never taken again: a publish of unknown outcome may be repeated long after its copy
//!    has ended, and would hold the key up for nothing.
//! 4. In a lane the next event of a key is looked at only when the one before is finished ([`Order::Ladder`]): its place is
//!    taken or its end recorded by then, so nobody overtakes between two steps, and a key that comes free is worked off
//!    in one go, not one event per delay.
//! 5. A place lapses: it is good until the due time of its copy and some patience beyond, and renewed by every move. A
//!    first event that never comes again (lost by retention, a deleted topic) holds its key up no longer than that. The
//!    store's clock alone decides, as with leases.
//! 6. A queue has room for so many. Beyond, events of that key stay on main, unfinished, and ask again: order is kept,
//!    nothing is lost, and the partition stands still for others too once its window is full of them. On a retry stage
//!    there is always room: who stays there may stand in the way of the one that it waits for.
//!
//! 7. Who is behind moves by its own clock and waits by the broker's. Where these two disagree by more than a delay (its due
//!    had to be clamped) moving would be a busy loop: it pauses once, about a second, each time before it moves on.
//!
//! So per key first effects happen in the order of main, in spite of crashes, freezes and rebalances. Not covered: what a
//! store forgets (FLUSHALL: order is lost for what is in the ladder, nothing else), lapsed places, redriven events (their
//! key went on without them), repeats of an effect that has happened already, and keys whose partition changed because
//! main gained partitions.
//!
//! Owns what a queue answers ([`Queue`], which the memory store is made of and Redis' scripts are held against) and who has
//! a place ([`place`]). Leaves to others: who asks and when (`stage::lane`), and keeping it (`adapters`).
//!
//! [`Order::Ladder`]: super::lane::Order::Ladder

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::headers::Envelope;
use super::rungs::Ladder;

/// An event's place in the queue of its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Names the queue.
    pub queue: Arc<str>,
    /// Offset on main.
    pub offset: i64,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// Its own, and it has no place in the queue.
    #[default]
    Free,
    /// Its own, and it has the first place.
    First,
    /// That of this place, which is lower.
    Behind(i64),
    /// The same, and the queue has no room for it.
    Full(i64),
}

/// What a queue answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnReply {
    /// Whose turn it is.
    pub turn: Turn,
    /// Places before it that were found lapsed, and taken away.
    pub lapsed: u64,
}

/// So many places that were given back are remembered, those of the latest events.
pub const REMEMBERED: usize = 1_000;

/// The queue of one key: places, and until when each is good; and those that were given back.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    places: BTreeMap<i64, Duration>,
    ended: BTreeSet<i64>,
}

impl Queue {
    /// Whose turn it is as seen from `offset` at `now`; lapsed places before it go. `room`: places that there are.
    pub fn turn(&mut self, offset: i64, now: Duration, room: usize) -> TurnReply {
        let mut lapsed = 0;
        while let Some(first) = self.places.first_entry() {
            let ahead = *first.key();
            if ahead > offset {
                break;
            }
            if ahead == offset {
                return TurnReply { turn: Turn::First, lapsed };
            }
            if *first.get() > now {
                let has_room = self.places.len() < room || self.places.contains_key(&offset);
                return TurnReply { turn: if has_room { Turn::Behind(ahead) } else { Turn::Full(ahead) }, lapsed };
            }
            first.remove();
            lapsed += 1;
        }
        TurnReply { turn: Turn::Free, lapsed }
    }

    /// Takes the place of `offset`, or renews it, unless it was given back.
    pub fn join(&mut self, offset: i64, good_until: Duration) {
        if !self.ended.contains(&offset) {
            self.places.insert(offset, good_until);
        }
    }

    /// Gives the place of `offset` back.
    pub fn leave(&mut self, offset: i64) {
        self.places.remove(&offset);
        self.ended.insert(offset);
        if self.ended.len() > REMEMBERED {
            self.ended.pop_first();
        }
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// Scores of Redis are exact below this.
const OFFSETS: std::ops::Range<i64> = 0..1 << 53;

/// Partition and offset on main by which an event with a key is ordered; `None`: it is free. Free are redriven events,
/// records that somebody else wrote into a retry topic or that come from another main topic, and everything in a
/// ladder without retry stages.
pub fn place(ladder: &Ladder, envelope: &Envelope) -> Option<(i32, i64)> {
    let origin = &envelope.origin;
    let known = envelope.stage == 0 || envelope.own;
    let ordered = known
        && envelope.redrives == 0
        && !ladder.retries().is_empty()
        && origin.topic == **ladder.topic()
        && OFFSETS.contains(&origin.offset);
    ordered.then_some((origin.partition, origin.offset))
}
