//! What a poll thread sees of the lanes: a handle for each assigned partition, and who makes them.
//!
//! A handle belongs to one assignment. When the partition is revoked and given back there is a new lane with a new
//! handle, so that a late watermark of the old one can reach nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use tokio::sync::{mpsc, watch};

use super::record::Record;

/// Told to a lane, in order.
#[derive(Debug)]
pub enum LaneCommand {
    /// Records of this partition in offset order.
    Records(Vec<Record>),
    /// Start nothing more, finish what runs, then end.
    Drain,
    /// End now: what runs is cancelled, its leases run out.
    Stop,
    /// Stop (`true`) or go on (`false`) starting events.
    Hold(bool),
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
    /// Events past their due time and not finished.
    in_flight: AtomicUsize,
    halted: AtomicBool,
}

impl LaneState {
    fn new() -> Self {
        Self {
            position: AtomicI64::new(-1),
            paused: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            halted: AtomicBool::new(false),
        }
    }

    /// Events not due yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Events past their due time and not finished, those not yet taken in included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed) + self.queued.load(Ordering::Relaxed)
    }

    /// Whether the partition had to stop (see `HaltReason`).
    pub fn halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    pub(super) fn taken_in(&self, records: usize) {
        self.queued.fetch_sub(records, Ordering::Relaxed);
    }

    pub(super) fn tell(&self, position: Option<i64>, paused: bool, waiting: usize, in_flight: usize, halted: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
        self.in_flight.store(in_flight, Ordering::Relaxed);
        self.halted.store(halted, Ordering::Relaxed);
        self.paused.store(paused, Ordering::Relaxed);
        // Release: whoever sees the position sees all that came before it.
        self.position.store(position.unwrap_or(-1), Ordering::Release);
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
    max_in_flight: usize,
}

/// The lane's end.
#[derive(Debug)]
pub(super) struct LaneEnds {
    pub(super) commands: mpsc::UnboundedReceiver<LaneCommand>,
    pub(super) state: Arc<LaneState>,
    pub(super) ended: watch::Sender<bool>,
}

impl LaneHandle {
    pub(super) fn new(max_in_flight: usize) -> (Self, LaneEnds) {
        let (tx, rx) = mpsc::unbounded_channel();
        let (ended_tx, ended_rx) = watch::channel(false);
        let state = Arc::new(LaneState::new());
        let handle = Self { commands: tx, state: Arc::clone(&state), ended: ended_rx, max_in_flight };
        (handle, LaneEnds { commands: rx, state, ended: ended_tx })
    }

    /// Hands records over; they are dropped when the lane has ended (they were never delivered as far as the
    /// watermark knows).
    pub fn hand_over(&self, records: Vec<Record>) {
        let (queued, count) = (&self.state.queued, records.len());
        queued.fetch_add(count, Ordering::Relaxed);
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

    /// Whether the partition should be paused now: the lane says so, or has not caught up with what it was handed.
    pub fn paused(&self) -> bool {
        self.state.paused.load(Ordering::Relaxed) || self.state.queued.load(Ordering::Relaxed) > 2 * self.max_in_flight
    }

    /// Whether the lane has about as much to do as it should be given: time to let it catch up.
    pub fn crowded(&self) -> bool {
        self.state.in_flight() > self.max_in_flight / 2
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

    /// The numbers of the lane.
    pub fn state(&self) -> &Arc<LaneState> {
        &self.state
    }
}

/// Makes a lane for a partition that was assigned.
pub trait LaneHost: Send + Sync + 'static {
    /// Called on the poll thread, once per assignment.
    fn open(&self, partition: i32) -> LaneHandle;
}
