//! One partition's events from receipt to offset done, as a pure state machine.
//!
//! [`Lane::step`] takes one [`Input`] and the time and appends to [`Effects`] what the shell has to do; the shell
//! (`stage::lane`) performs them and feeds the replies back. The simulation drives the very same function.
//!
//! ```text
//!   Waiting ──due──▶ Ready ──permit──▶ Claiming ──ours──▶ Running ──▶ Publishing ──acknowledged──▶ Settling ──▶ done
//!      ▲               │ (nothing to claim: straight to Running)  └────────done────────────────────▲
//!      └──busy, lease lost, fenced, store down───┘
//! ```
//! Invariants
//! - An event leaves only by `finish`: settled, or (without deduplication) done or acknowledged, or known to the store
//!   as finished or moved on. Only `finish` touches the watermark.
//! - A lost lease publishes nothing. Once success or the acknowledgement is in hand there is no way back to executing:
//!   the settlement is repeated until it is confirmed (rule 3 of the deduplication protocol).
//! - With [`Order::Stage`] at most one event of a key is between Ready and Running, with [`Order::Ladder`] between Ready
//!   and finished.
//!
//! It does not know records, headers or handlers: an event is an opaque `T`.

mod finish;
mod hops;
mod io;
mod lease;
mod view;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

pub use hops::Hops;
pub use io::{Arrival, ClaimId, Dedup, Delivery, Effects, Finish, Input, LaneConfig, Order, Slot, Verdict};
pub use view::Standing;

use super::event::{Mark, Now, Timestamp};
use super::gate::Grant;
use super::headers::next_fence;
use super::offsets::Watermark;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In `due`, or behind another event of its key.
    Waiting,
    /// In `timers`, to be tried again.
    Parked,
    Ready,
    Claiming,
    /// The store holds our own value from a claim whose reply was lost: ours after a successful renewal.
    Confirming,
    Running,
    /// With the producer.
    Publishing,
    /// To be published again when its timer fires.
    Republish,
    Settling(Mark),
    /// To be settled again when its timer fires.
    Resettle(Mark),
    /// Its claim is being released; then it is ready again or (`false`) parked, or forgotten when draining.
    Releasing(bool),
    /// Stays for ever: the partition is halted.
    Halted,
}

impl State {
    /// Work that a drain has to wait for.
    const fn is_owed(self) -> bool {
        !matches!(self, State::Waiting | State::Parked | State::Ready | State::Halted)
    }

    /// States in which the lease is kept alive.
    const fn holds_lease(self) -> bool {
        matches!(self, State::Running | State::Publishing | State::Republish | State::Settling(_) | State::Resettle(_))
    }
}

#[derive(Debug)]
struct Entry<T> {
    ticket: u64,
    due: Timestamp,
    key: Option<u64>,
    /// The next event of the same key.
    next: Option<Slot>,
    bytes: usize,
    /// Counted as waiting (as against in flight).
    waits: bool,
    state: State,
    /// `None`: none made yet, or it was given up.
    claim: Option<ClaimId>,
    /// The store has (as far as we know) our claim.
    leased: bool,
    /// Boot time until which the lease is certainly ours.
    lease_until: Duration,
    lost: bool,
    /// What its permit was granted with.
    grant: Grant,
    last_fence: u64,
    /// Tries of what is being tried now: claims found busy, publishes, settlements.
    tries: u32,
    item: T,
}

/// One partition's events.
#[derive(Debug)]
pub struct Lane<T> {
    config: LaneConfig,
    entries: Vec<Option<Entry<T>>>,
    free: Vec<Slot>,
    watermark: Watermark,
    /// Events that are not due yet.
    due: BinaryHeap<Reverse<(Timestamp, u64, Slot)>>,
    /// Parked events and repeats, by boot time.
    timers: BinaryHeap<Reverse<(Duration, u64, Slot)>>,
    ready: VecDeque<Slot>,
    /// Last event of each key that is in the lane and has not returned.
    tails: HashMap<u64, Slot>,
    next_sequence: u64,
    rng: u64,
    waiting: usize,
    waiting_bytes: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    owed: usize,
    /// Events whose hops are with the producer, or wait for a transaction.
    publishing: usize,
    paused: bool,
    draining: bool,
    halted: bool,
    /// The newest grant of permits.
    grant: Grant,
    /// The store did not answer: nothing is claimed before this boot time, then one probe.
    store_down_until: Option<Duration>,
    next_renewal: Duration,
    next_lease_check: Duration,
}

const NEVER: Duration = Duration::MAX;

/// The store was down, and a probe may go out: it waits for a permit, not for a time.
const PROBE_NOW: Duration = Duration::ZERO;

impl<T> Lane<T> {
    /// An empty lane.
    pub fn new(config: LaneConfig) -> Self {
        Self {
            next_sequence: config.first_sequence,
            rng: config.seed | 1,
            config,
            entries: Vec::new(),
            free: Vec::new(),
            watermark: Watermark::default(),
            due: BinaryHeap::new(),
            timers: BinaryHeap::new(),
            ready: VecDeque::new(),
            tails: HashMap::new(),
            waiting: 0,
            waiting_bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            owed: 0,
            publishing: 0,
            paused: false,
            draining: false,
            halted: false,
            grant: 0,
            store_down_until: None,
            next_renewal: NEVER,
            next_lease_check: NEVER,
        }
    }

    /// The offset to store: the first delivered one that is not done, or one past the last delivered when none is
    /// open. `None` before anything was delivered.
    pub fn position(&self) -> Option<i64> {
        self.watermark.position()
    }

    /// The event in a slot.
    ///
    /// # Panics
    /// When the slot is free: slots come from [`Effects`] of this lane and are valid until the event is finished.
    #[allow(clippy::expect_used, reason = "a free slot here is a bug of the shell, not a state to handle")]
    pub fn get(&self, slot: Slot) -> &T {
        &self.entries[slot as usize].as_ref().expect("slot is occupied").item
    }

    /// The event in a slot, to be changed.
    ///
    /// # Panics
    /// As [`Lane::get`].
    #[allow(clippy::expect_used, reason = "as in get")]
    pub fn get_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.entries[slot as usize].as_mut().expect("slot is occupied").item
    }

    /// Due time of the event in a slot.
    pub fn due(&self, slot: Slot) -> Timestamp {
        self.entry(slot).due
    }

    /// The claim of the event in a slot; a claim of zeros where nothing is claimed.
    pub fn claim(&self, slot: Slot) -> ClaimId {
        let entry = self.entry(slot);
        entry.claim.unwrap_or(ClaimId { sequence: 0, fence: entry.last_fence })
    }

    /// What the permit of the event in a slot was granted with.
    pub fn grant(&self, slot: Slot) -> Grant {
        self.entry(slot).grant
    }

    /// The newest grant that it was given.
    pub fn latest_grant(&self) -> Grant {
        self.grant
    }

    /// Whether the store holds this claim for the event in this slot, as far as is known.
    pub fn holds(&self, slot: Slot, claim: ClaimId) -> bool {
        self.entries.get(slot as usize).and_then(Option::as_ref).is_some_and(|entry| entry.claim == Some(claim))
    }

    /// Whether the handler that [`Effects::start`] asked for may still be started. If not, nothing is to be done:
    /// its lease is over, and the lane has given the event up, or will at the next step.
    pub fn may_start(&self, now: Now, slot: Slot) -> bool {
        self.is_running(slot) && !self.lease_gone(now, slot)
    }

    /// Whether the handler of the event in a slot is to run: false once its lease is lost, and when the slot is free.
    pub fn is_running(&self, slot: Slot) -> bool {
        matches!(self.entries.get(slot as usize), Some(Some(entry)) if entry.state == State::Running)
    }

    /// How many permits the lane can use now.
    pub fn wanted(&self, now: Now) -> usize {
        if self.draining || self.halted {
            return 0;
        }
        match self.store_down_until {
            _ if self.config.dedup == Dedup::BestEffort => self.ready.len(),
            Some(until) if now.boot < until => 0,
            Some(_) => self.ready.len().min(1),
            None => self.ready.len(),
        }
    }

    /// Whether the partition should be paused: a window is full, and not yet half empty again.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Whether a drain is complete.
    pub fn drained(&self) -> bool {
        self.draining && self.owed == 0
    }

    /// Whether the partition is stopped for good.
    pub fn halted(&self) -> bool {
        self.halted
    }

    /// Whether the store is known not to answer.
    pub fn store_down(&self) -> bool {
        self.store_down_until.is_some()
    }

    /// When the lane wants its next [`Input::Tick`]: on the wall clock, and on the boot clock.
    pub fn next_tick(&self) -> (Option<Timestamp>, Option<Duration>) {
        let wall = if self.draining { None } else { self.due.peek().map(|Reverse((due, ..))| *due) };
        let timer = self.timers.peek().map_or(NEVER, |Reverse((at, ..))| *at);
        let probe = match self.store_down_until {
            Some(until) if until > PROBE_NOW && !self.ready.is_empty() && !self.draining => until,
            _ => NEVER,
        };
        let boot = timer.min(probe).min(self.next_renewal).min(self.next_lease_check);
        (wall, (boot != NEVER).then_some(boot))
    }

    /// Takes one input and appends what has to be done. Several inputs may come before anything of it is done: what a
    /// later one makes void is taken off the lists again, so that they never name an event that is finished.
    pub fn step(&mut self, now: Now, input: Input<T>, fx: &mut Effects<T>) {
        match input {
            Input::Arrived(batch) => {
                for arrival in batch {
                    self.arrive(now, arrival);
                }
            }
            Input::Tick => {}
            Input::Permits(n, grant) => self.dispatch(now, n, grant, fx),
            Input::Claimed(replies, sent) => {
                for (slot, reply) in replies {
                    self.claimed(now, slot, reply, sent, fx);
                }
            }
            Input::Renewed(replies, sent) => {
                for (slot, claim, reply) in replies {
                    self.renewed(now, slot, claim, reply, sent, fx);
                }
            }
            Input::NotStarted(slot) => self.not_started(slot, fx),
            Input::Returned(slot, verdict) => self.returned(now, slot, verdict, fx),
            Input::Published(slot, delivery) => self.published(now, slot, delivery, fx),
            Input::Settled(replies) => {
                for (slot, recorded) in replies {
                    self.settled(now, slot, recorded, fx);
                }
            }
            Input::Released(slots) => {
                for slot in slots {
                    self.released(now, slot);
                }
            }
            Input::Drain => self.draining = true,
        }
        self.advance(now, fx);
        self.paused = if self.paused {
            self.waiting > self.config.max_waiting / 2
                || self.waiting_bytes > self.config.max_waiting_bytes / 2
                || self.in_flight > self.config.max_in_flight / 2
                || self.in_flight_bytes > self.config.max_in_flight_bytes / 2
        } else {
            self.waiting >= self.config.max_waiting
                || self.waiting_bytes >= self.config.max_waiting_bytes
                || self.in_flight >= self.config.max_in_flight
                || self.in_flight_bytes >= self.config.max_in_flight_bytes
        };
    }

    fn arrive(&mut self, now: Now, arrival: Arrival<T>) {
        if self.draining {
            return; // never delivered as far as the watermark knows: the next owner reads it again
        }
        let waits = arrival.due > now.wall;
        let entry = Entry {
            ticket: self.watermark.deliver(arrival.offset),
            due: arrival.due,
            key: arrival.key,
            next: None,
            bytes: arrival.bytes,
            waits,
            state: State::Waiting,
            claim: None,
            leased: false,
            lease_until: Duration::ZERO,
            lost: false,
            grant: 0,
            last_fence: arrival.fence,
            tries: 0,
            item: arrival.item,
        };
        if waits {
            self.waiting += 1;
            self.waiting_bytes += entry.bytes;
        } else {
            self.in_flight += 1;
            self.in_flight_bytes += entry.bytes;
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                (self.entries.len() - 1) as Slot
            }
        };
        if self.config.order != Order::None
            && let Some(key) = arrival.key
            && let Some(before) = self.tails.insert(key, slot)
        {
            self.entry_mut(before).next = Some(slot);
            return; // admitted when the one before has returned, or is finished
        }
        self.admit(now, slot);
    }

    /// Into the heap of those not due, or to the ready ones.
    fn admit(&mut self, now: Now, slot: Slot) {
        let entry = self.entry(slot);
        if entry.due > now.wall {
            self.due.push(Reverse((entry.due, entry.ticket, slot)));
        } else {
            self.make_ready(slot);
        }
    }

    fn make_ready(&mut self, slot: Slot) {
        let entry = self.entry_mut(slot);
        entry.state = State::Ready;
        if std::mem::take(&mut entry.waits) {
            let bytes = entry.bytes;
            self.waiting -= 1;
            self.waiting_bytes -= bytes;
            self.in_flight += 1;
            self.in_flight_bytes += bytes;
        }
        self.ready.push_back(slot);
    }

    fn dispatch(&mut self, now: Now, permits: usize, grant: Grant, fx: &mut Effects<T>) {
        if self.grant != grant {
            self.grant = grant;
            fx.latest_permits = 0; // those are of an earlier grant
        }
        let usable = permits.min(self.wanted(now));
        let mut used = 0;
        while used < usable {
            let Some(slot) = self.ready.pop_front() else { break };
            if self.entry(slot).due > now.wall {
                // The wall clock was set back since it became ready.
                self.entry_mut(slot).state = State::Waiting;
                self.admit(now, slot);
                continue;
            }
            used += 1;
            self.owed += 1;
            self.entry_mut(slot).grant = grant;
            if self.config.dedup == Dedup::Off {
                self.start(now, slot, fx);
                continue;
            }
            // A claim whose reply was lost is tried again as it was: the store may hold it. Not for longer than a lease:
            // others may have had the event meanwhile, with a fence above that of an old claim.
            if self.entry(slot).claim.is_none_or(|claim| self.is_older_than_a_lease(now, claim)) {
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                let entry = self.entry_mut(slot);
                let fence = next_fence(now.wall, entry.last_fence);
                entry.claim = Some(ClaimId { sequence, fence });
                entry.last_fence = fence;
            }
            self.entry_mut(slot).state = State::Claiming;
            fx.claim.push(slot);
        }
        fx.permits += permits - used;
        fx.latest_permits += permits - used;
        // While the store is down one probe at a time is out; the next waits for its answer.
        if let Some(until) = &mut self.store_down_until
            && used > 0
        {
            *until = now.boot + MAX_BACKOFF;
        }
    }

    /// By its fence, which is at least its instant.
    fn is_older_than_a_lease(&self, now: Now, claim: ClaimId) -> bool {
        u128::from(now.wall.floor_millis().saturating_sub(claim.fence)) >= self.config.lease.as_millis()
    }

    fn start(&mut self, now: Now, slot: Slot, fx: &mut Effects<T>) {
        let dedup = self.config.dedup;
        let entry = self.entry_mut(slot);
        if dedup == Dedup::Off {
            entry.last_fence = next_fence(now.wall, entry.last_fence);
        }
        entry.state = State::Running;
        entry.tries = 0;
        fx.start.push(slot);
    }

    /// The permit of this event is free again.
    fn permit_back(&self, slot: Slot, fx: &mut Effects<T>) {
        fx.permits += 1;
        fx.latest_permits += usize::from(self.entry(slot).grant == self.grant);
    }

    /// First in the line for the next permit.
    fn back_to_ready(&mut self, slot: Slot) {
        self.owed -= 1;
        self.entry_mut(slot).state = State::Ready;
        self.ready.push_front(slot);
    }

    fn advance(&mut self, now: Now, fx: &mut Effects<T>) {
        if self.store_down_until.is_some_and(|until| until <= now.boot) {
            self.store_down_until = Some(PROBE_NOW);
        }
        while let Some(Reverse((due, _, slot))) = self.due.peek()
            && *due <= now.wall
        {
            let slot = *slot;
            self.due.pop();
            self.make_ready(slot);
        }
        while let Some(Reverse((at, _, slot))) = self.timers.peek()
            && *at <= now.boot
        {
            let slot = *slot;
            let Some(Reverse((_, ticket, _))) = self.timers.pop() else { break };
            self.timer_fired(now, slot, ticket, fx);
        }
        if now.boot >= self.next_lease_check {
            self.check_leases(now, fx);
        }
        if now.boot >= self.next_renewal {
            self.renew_all(now, fx);
        }
    }

    fn timer_fired(&mut self, now: Now, slot: Slot, ticket: u64, fx: &mut Effects<T>) {
        let Some(Some(entry)) = self.entries.get_mut(slot as usize) else { return };
        if entry.ticket != ticket {
            return; // the slot has a new tenant
        }
        match entry.state {
            State::Parked => self.make_ready(slot),
            State::Republish => self.republish(now, slot, fx),
            State::Resettle(mark) => {
                entry.state = State::Settling(mark);
                fx.settle.push((slot, mark));
            }
            _ => {}
        }
    }

    fn arm(&mut self, at: Duration, slot: Slot) {
        let ticket = self.entry(slot).ticket;
        self.timers.push(Reverse((at, ticket, slot)));
    }

    /// The next number in 0..1 of the lane's own generator (xorshift64*).
    fn draw(&mut self) -> f64 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        (self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[allow(clippy::expect_used, reason = "slots in the lane's own lists are occupied: its invariant")]
    fn entry(&self, slot: Slot) -> &Entry<T> {
        self.entries[slot as usize].as_ref().expect("slot is occupied")
    }

    #[allow(clippy::expect_used, reason = "as in entry")]
    fn entry_mut(&mut self, slot: Slot) -> &mut Entry<T> {
        self.entries[slot as usize].as_mut().expect("slot is occupied")
    }
}

/// Longest pause between two tries of the same thing.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Pause between two probes of a store that does not answer. The store paces its own reconnection; a probe is cheap.
const STORE_PROBE: Duration = Duration::from_secs(1);

/// `first` doubled for each earlier try, at most `most`.
fn backoff(first: Duration, tries: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << tries.min(16)).min(most)
}

#[cfg(test)]
mod tests;
