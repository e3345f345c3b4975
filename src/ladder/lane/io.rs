//! What goes into a lane and what comes out of it: configuration, inputs, effects. Data only.

use std::time::Duration;

use crate::ladder::event::{Action, ClaimReply, Mark, Timestamp};
use crate::ladder::gate::Grant;

/// Names an event in the lane until it is finished; reused afterwards.
pub type Slot = u32;

/// What the lane is told once.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// Whether handlers of one key run one at a time.
    pub order: Order,
    /// How claims are made.
    pub dedup: Dedup,
    /// Lease of a claim.
    pub lease: Duration,
    /// Events that may wait for their due time; beyond, the partition is paused.
    pub max_waiting: usize,
    /// Bytes that waiting events may hold; beyond, the partition is paused.
    pub max_waiting_bytes: usize,
    /// Events that may be past their due time and not finished; beyond, the partition is paused.
    pub max_in_flight: usize,
    /// Bytes that these may hold; beyond, the partition is paused.
    pub max_in_flight_bytes: usize,
    /// First sequence number for claims; no other lane of the process may use the 2^40 numbers from here.
    pub first_sequence: u64,
    /// Seed of the jitter in parking times.
    pub seed: u64,
}

/// Order among events of one key (null keys are always free).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// None.
    None,
    /// Within the partition one at a time in offset order, the next as soon as the one before has returned.
    Stage,
    /// The same, the next when the one before is finished: what order across the stages rests on (`ladder::sequence`).
    Ladder,
}

/// How claims are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// Nothing is claimed or settled.
    Off,
    /// Every execution is claimed; without the store nothing starts.
    Required,
    /// As `Required`, but without the store events run unclaimed.
    BestEffort,
}

/// An event that arrives from the broker.
#[derive(Debug)]
pub struct Arrival<T> {
    /// Its offset.
    pub offset: i64,
    /// Not to be started before.
    pub due: Timestamp,
    /// Hash of its key, `None` for a null key.
    pub key: Option<u64>,
    /// Bytes that it holds in memory.
    pub bytes: usize,
    /// Last fence that was given to a handler, 0 for none.
    pub fence: u64,
    /// The event itself.
    pub item: T,
}

/// What happened.
#[derive(Debug)]
pub enum Input<T> {
    /// Events arrived, in offset order.
    Arrived(Vec<Arrival<T>>),
    /// Time passed, or nothing else did.
    Tick,
    /// This many permits to run handlers were granted, all with this grant.
    Permits(usize, Grant),
    /// Replies to claims that were first sent at `sent` (boot time); `None` = no answer, the outcome is unknown.
    Claimed(Vec<(Slot, Option<ClaimReply>)>, Duration),
    /// Replies to renewals sent at `sent`: still ours, lost, or no answer.
    Renewed(Vec<(Slot, ClaimId, Option<bool>)>, Duration),
    /// The handler that was to be started was not: the gate was shut meanwhile, or the wall clock set back.
    NotStarted(Slot),
    /// The handler came back.
    Returned(Slot, Verdict),
    /// The producer answered.
    Published(Slot, Delivery),
    /// Replies to settlements: recorded, or no answer.
    Settled(Vec<(Slot, bool)>),
    /// Replies to releases: nothing more is owed for these.
    Released(Vec<Slot>),
    /// Start nothing more, forget what waits, finish what runs.
    Drain,
}

/// What the shell makes of a handler's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The effect happened, or nothing is to be done.
    Done,
    /// A next copy is to be produced.
    Publish,
    /// The sink refused our fence: park, claim again with a higher one.
    Fenced,
    /// Nothing can be done without losing the event: stop the partition.
    Halt,
}

impl Verdict {
    /// What a decision means for the lane.
    pub const fn of(action: &Action) -> Self {
        match action {
            Action::Done => Verdict::Done,
            Action::Forward { .. } | Action::Defer { .. } | Action::Wait { .. } | Action::DeadLetter { .. } => {
                Verdict::Publish
            }
            Action::Halt { .. } => Verdict::Halt,
        }
    }
}

/// The producer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// By all in-sync replicas.
    Acknowledged,
    /// Too large as it is; a smaller form may do.
    TooLarge,
    /// Too large in its smallest form.
    Unpublishable,
    /// Unknown, or not written.
    Failed,
    /// Not written, and never will be from here: whoever owns the partition next executes the event again.
    Withheld,
}

/// How an event was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Here.
    Settled(Mark),
    /// Elsewhere: the store knew it as finished or moved on.
    Duplicate,
}

/// What the shell has to do, in any order, then [`Effects::clear`].
#[derive(Debug)]
pub struct Effects<T> {
    /// Claim these (fence and sequence: [`super::Lane::claim`]).
    pub claim: Vec<Slot>,
    /// Start the handler.
    pub start: Vec<Slot>,
    /// Cancel the handler; its outcome no longer counts.
    pub cancel: Vec<Slot>,
    /// Produce the next copy.
    pub publish: Vec<Slot>,
    /// Produce the next copy in a smaller form, or answer [`Delivery::Unpublishable`].
    pub shrink: Vec<Slot>,
    /// Settle.
    pub settle: Vec<(Slot, Mark)>,
    /// Renew the lease of this claim.
    pub renew: Vec<(Slot, ClaimId)>,
    /// Release this claim: its handler never started, or its fence was refused.
    pub release: Vec<(Slot, ClaimId)>,
    /// Finished events, handed back.
    pub finished: Vec<(T, Finish)>,
    /// Permits that are free again.
    pub permits: usize,
    /// As many of them are of the newest grant.
    pub latest_permits: usize,
    /// Events parked because somebody else holds them.
    pub busy: usize,
    /// Claims whose value was nobody's: alarm.
    pub corrupt: Vec<Slot>,
    /// Leases lost while the handler ran or before the publish.
    pub leases_lost: usize,
}

impl<T> Default for Effects<T> {
    fn default() -> Self {
        Self {
            claim: Vec::new(),
            start: Vec::new(),
            cancel: Vec::new(),
            publish: Vec::new(),
            shrink: Vec::new(),
            settle: Vec::new(),
            renew: Vec::new(),
            release: Vec::new(),
            finished: Vec::new(),
            permits: 0,
            latest_permits: 0,
            busy: 0,
            corrupt: Vec::new(),
            leases_lost: 0,
        }
    }
}

impl<T> Effects<T> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.permits == 0
            && self.busy == 0
            && self.leases_lost == 0
            && self.claim.is_empty()
            && self.start.is_empty()
            && self.cancel.is_empty()
            && self.publish.is_empty()
            && self.shrink.is_empty()
            && self.settle.is_empty()
            && self.renew.is_empty()
            && self.release.is_empty()
            && self.finished.is_empty()
            && self.corrupt.is_empty()
    }

    /// Empties every list, keeping the memory.
    pub fn clear(&mut self) {
        self.claim.clear();
        self.start.clear();
        self.cancel.clear();
        self.publish.clear();
        self.shrink.clear();
        self.settle.clear();
        self.renew.clear();
        self.release.clear();
        self.finished.clear();
        self.corrupt.clear();
        self.permits = 0;
        self.latest_permits = 0;
        self.busy = 0;
        self.leases_lost = 0;
    }
}

/// A claim as the lane knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimId {
    /// Sequence number in the process.
    pub sequence: u64,
    /// Fence for the handler.
    pub fence: u64,
}
