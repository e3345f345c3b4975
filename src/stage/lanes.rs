//! What a poll thread sees of the lanes: a handle for each assigned partition, and who makes them.
//!
//! A handle belongs to one assignment. When the partition is revoked and given back there is a new lane with a new
//! handle, so that a late watermark of the old one can reach nobody.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::ports::Share;
use super::record::Record;
use crate::ladder::event::Timestamp;

/// Told to a lane, in order.
#[derive(Debug)]
pub enum LaneCommand {
    /// Records of this partition in offset order.
    Records(Vec<Record>),
    /// Start nothing more, finish what runs, then end.
    Drain,
    /// End now: what runs is cancelled, its leases run out.
    Stop,
    /// Tell what the next transaction may hold of this partition (`forward: transactional`); nothing is told when there
    /// is nothing.
    Share(std::sync::mpsc::Sender<Share>),
    /// Nobody will ask for a share any more: what waits for a transaction is given up.
    Withhold,
    /// Tell what is held now. In order with the records: those that were handed over before are part of it.
    Look(oneshot::Sender<LaneView>),
}

/// What one lane holds: exact as of the moment when it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneView {
    /// First offset that is not done; `None` before anything was delivered.
    pub position: Option<i64>,
    /// One past the last offset that was delivered: what lies beyond is not in the lane.
    pub delivered_to: Option<i64>,
    /// Events that are not due yet.
    pub waiting: u64,
    /// Events that are due and not started.
    pub overdue: u64,
    /// Since when the oldest of these is due; where nothing waits, its record's own time.
    pub oldest_overdue: Option<Timestamp>,
    /// When the oldest record of an event that is not finished was written, waiting ones included.
    pub oldest_record: Option<Timestamp>,
    /// Events that were started and are not finished.
    pub in_flight: u64,
    /// The partition had to stop.
    pub halted: bool,
    /// The store is known not to answer.
    pub store_down: bool,
}

/// What a lane tells, without locks: written by the lane, read by the poll thread and by status pages.
#[derive(Debug)]
pub struct LaneState {
    /// Offset to store, −1 before anything was delivered.
    position: AtomicI64,
    /// The partition should be paused.
    paused: AtomicBool,
    /// Records handed over and not yet taken in.
    queued: AtomicUsize,
    /// Events not due yet.
    waiting: AtomicUsize,
    /// When the first of them falls due, in microseconds since the Unix epoch; the end of time when none waits.
    next_due: AtomicU64,
    /// Events past their due time and not finished.
    in_flight: AtomicUsize,
    halted: AtomicBool,
    /// Hops that wait for a transaction.
    hops: AtomicUsize,
    max_in_flight: usize,
    /// The poll thread, and whether it has records for the lane that wait for room.
    poller: Thread,
    wanted: AtomicBool,
}

impl LaneState {
    fn new(max_in_flight: usize) -> Self {
        Self {
            max_in_flight,
            poller: std::thread::current(),
            wanted: AtomicBool::new(false),
            position: AtomicI64::new(-1),
            paused: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            next_due: AtomicU64::new(u64::MAX),
            in_flight: AtomicUsize::new(0),
            halted: AtomicBool::new(false),
            hops: AtomicUsize::new(0),
        }
    }

    /// Hops that wait for a transaction.
    pub fn hops(&self) -> usize {
        self.hops.load(Ordering::Relaxed)
    }

    /// Tells how many hops wait for a transaction; from half a window on nobody waits for more.
    pub(super) fn tell_hops(&self, hops: usize) {
        self.hops.store(hops, Ordering::Relaxed);
        if hops >= self.max_in_flight / 2 {
            self.poller.unpark();
        }
    }

    /// Events not due yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Events past their due time and not finished, those not yet taken in included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst) + self.queued.load(Ordering::SeqCst)
    }

    /// Whether the partition had to stop (see `HaltReason`).
    pub fn halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    pub(crate) fn taken_in(&self, records: usize) {
        self.queued.fetch_sub(records, Ordering::SeqCst);
    }

    pub(crate) fn tell(&self, position: Option<i64>, paused: bool, waiting: usize, in_flight: usize, halted: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
        self.in_flight.store(in_flight, Ordering::SeqCst);
        self.halted.store(halted, Ordering::Relaxed);
        self.paused.store(paused, Ordering::SeqCst);
        // Release: whoever sees the position sees all that came before it.
        self.position.store(position.unwrap_or(-1), Ordering::Release);
        if self.wanted.load(Ordering::SeqCst) && self.room() > 0 && self.wanted.swap(false, Ordering::SeqCst) {
            self.poller.unpark();
        }
    }

    pub(crate) fn tell_due(&self, next: Option<Timestamp>) {
        self.next_due.store(next.map_or(u64::MAX, Timestamp::as_micros), Ordering::Relaxed);
    }

    /// How many records it can be given. None once it has half of what it may hold, so that it gets them in few, large
    /// portions; nor while it has waiting events enough.
    fn room(&self) -> usize {
        let in_flight = self.in_flight();
        if self.paused.load(Ordering::SeqCst) || in_flight > self.max_in_flight / 2 {
            0
        } else {
            self.max_in_flight - in_flight
        }
    }

    /// The lane has ended: it holds nothing any more, and takes nothing in.
    pub(super) fn tell_end(&self, position: Option<i64>) {
        self.tell(position, false, 0, 0, self.halted());
        self.queued.store(0, Ordering::Relaxed);
    }

    /// The lane stands still.
    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::Relaxed);
    }
}

/// The poll thread's end of a lane.
#[derive(Debug)]
pub struct LaneHandle {
    commands: mpsc::UnboundedSender<LaneCommand>,
    state: Arc<LaneState>,
    ended: watch::Receiver<bool>,
}

/// The lane's end. Visible in the crate so that the consumer's tests can play the lane.
#[derive(Debug)]
pub(crate) struct LaneEnds {
    pub(crate) commands: mpsc::UnboundedReceiver<LaneCommand>,
    pub(crate) state: Arc<LaneState>,
    pub(crate) ended: watch::Sender<bool>,
}

impl LaneHandle {
    /// For the calling thread, which polls for the lane.
    pub(crate) fn new(max_in_flight: usize) -> (Self, LaneEnds) {
        let (tx, rx) = mpsc::unbounded_channel();
        let (ended_tx, ended_rx) = watch::channel(false);
        let state = Arc::new(LaneState::new(max_in_flight));
        let handle = Self { commands: tx, state: Arc::clone(&state), ended: ended_rx };
        (handle, LaneEnds { commands: rx, state, ended: ended_tx })
    }

    /// Hands records over; they are dropped when the lane has ended (they were never delivered as far as the
    /// watermark knows).
    pub fn hand_over(&self, records: Vec<Record>) {
        let (queued, count) = (&self.state.queued, records.len());
        queued.fetch_add(count, Ordering::SeqCst);
        if self.commands.send(LaneCommand::Records(records)).is_err() {
            // The lane's end may have set it to 0 already.
            let less = |queued: usize| Some(queued.saturating_sub(count));
            queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok();
        }
    }

    /// Sends a command; a lane that has ended needs none.
    pub fn command(&self, command: LaneCommand) {
        drop(self.commands.send(command));
    }

    /// The offset to store, `None` before anything was delivered.
    pub fn position(&self) -> Option<i64> {
        let position = self.state.position.load(Ordering::Acquire);
        (position >= 0).then_some(position)
    }

    /// When the next event that waits in it falls due.
    pub fn next_due(&self) -> Option<Timestamp> {
        let next = self.state.next_due.load(Ordering::Relaxed);
        (next != u64::MAX).then(|| Timestamp::from_micros(next))
    }

    /// How many records the lane can be given now. When it has no room, its thread is unparked as soon as it has.
    pub fn room(&self) -> usize {
        match self.state.room() {
            0 => {
                // First the wish, then a second look: a lane that makes room in between would not know of it.
                self.state.wanted.store(true, Ordering::SeqCst);
                self.state.room()
            }
            room => room,
        }
    }

    /// Whether the lane has ended.
    pub fn ended(&self) -> bool {
        *self.ended.borrow() || self.ended.has_changed().is_err()
    }

    /// Resolves when the lane has ended.
    pub async fn wait_ended(&mut self) {
        // An error means that the sender is gone: ended all the same.
        drop(self.ended.wait_for(|ended| *ended).await);
    }

    /// For looking at the lane from elsewhere.
    pub fn probe(&self) -> LaneProbe {
        LaneProbe { commands: self.commands.downgrade(), state: Arc::downgrade(&self.state) }
    }

    /// The numbers of the lane.
    pub fn state(&self) -> &Arc<LaneState> {
        &self.state
    }
}

/// Looks at a lane without keeping it: what it sees ends with the assignment.
#[derive(Clone, Debug)]
pub struct LaneProbe {
    commands: mpsc::WeakUnboundedSender<LaneCommand>,
    state: Weak<LaneState>,
}

impl LaneProbe {
    /// The lane's numbers, `None` once it has ended and its handle is gone.
    pub fn state(&self) -> Option<Arc<LaneState>> {
        self.state.upgrade()
    }

    /// What the lane holds. `None` once the partition is no longer assigned. From a lane that does not answer within
    /// `patience` the numbers that it told last, everything past its due time as overdue.
    pub async fn look(&self, patience: Duration) -> Option<LaneView> {
        let (tx, rx) = oneshot::channel();
        self.commands.upgrade()?.send(LaneCommand::Look(tx)).ok()?;
        if let Ok(view) = tokio::time::timeout(patience, rx).await {
            return view.ok(); // a lane that has ended drops the question
        }
        let state = self.state()?;
        let position = state.position.load(Ordering::Acquire);
        let (waiting, in_flight) = (state.waiting() as u64, state.in_flight() as u64);
        let delivered_to = position.saturating_add_unsigned(waiting + in_flight);
        Some(LaneView {
            position: (position >= 0).then_some(position),
            delivered_to: (position >= 0).then_some(delivered_to),
            waiting,
            overdue: in_flight,
            halted: state.halted(),
            ..LaneView::default()
        })
    }
}

/// Makes a lane for a partition that was assigned.
pub trait LaneHost: Send + Sync + 'static {
    /// Called on the poll thread, once per assignment.
    fn open(&self, partition: i32) -> LaneHandle;

    /// Called on the poll thread when the group has given its partitions to this member, be it none (`true`), and
    /// when the membership is lost (`false`).
    fn member(&self, is_member: bool) {
        let _ = is_member;
    }
}
