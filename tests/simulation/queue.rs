//! What happens next: events by their time, and at one instant in an order drawn at random.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use retry_ladder::ladder::event::Outcome;
use retry_ladder::ladder::lane::{Delivery, Slot};

use super::broker::Outgoing;
use super::case::Fault;
use super::store::{Reply, Request};
use super::world::{LaneId, ProcessId, Time};

/// What happens next.
pub(crate) enum Event {
    Produce(usize),
    Fetch(LaneId),
    Tick(LaneId),
    /// The effects of a round.
    Round(LaneId),
    Return(LaneId, Slot, usize, Box<Outcome>),
    Ask(Box<Request>),
    Reply(LaneId, Box<Reply>),
    Append(ProcessId, LaneId, Box<Outgoing>, Option<(Slot, Time)>),
    Ack(LaneId, Slot, Delivery),
    Commit(LaneId),
    Drain(LaneId),
    DrainOver(LaneId),
    /// The gate may have opened for a lane that has a permit.
    Pass(LaneId),
    /// A process reads what was ordered for a stage.
    Command(ProcessId, usize),
    Resume(usize),
    Assign(usize, usize),
    Session(ProcessId),
    Stopped(ProcessId),
    Restart(usize),
    Fault(Fault),
}

/// What goes first at one instant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// What a process was doing when it froze comes before what reached it meanwhile.
    First,
    Input,
    /// A round takes in all that is there.
    Round,
}

struct Queued {
    order: (Time, Class, u32, u64),
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Time, class: Class, draw: u32, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse(Queued { order: (at, class, draw, self.sequence), event }));
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, Class, Event)> {
        let Reverse(Queued { order: (at, class, ..), event }) = self.heap.pop()?;
        Some((at, class, event))
    }
}
