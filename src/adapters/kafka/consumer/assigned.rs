//! A partition while it is assigned: its lane, its queue in the client, and how far both are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rdkafka::consumer::base_consumer::PartitionQueue;

use super::Context;
use crate::stage::lanes::LaneHandle;
use crate::stage::record::Record;

pub(in crate::adapters::kafka) struct Assigned {
    pub(in crate::adapters::kafka) lane: LaneHandle,
    pub(super) paused: bool,
    /// The position that was stored or, in transactions, committed last.
    pub(in crate::adapters::kafka) stored: i64,
    /// Since when its lane has had no room.
    pub(super) full_since: Option<Instant>,
    /// The client's queue of this partition, from the first look at it on.
    pub(super) queue: Option<OwnQueue>,
    /// Polled and not yet handed over. Kept with the assignment: a record of an earlier one must not reach a later
    /// lane, whose watermark would then pass records that are still to come.
    pub(super) batch: Vec<Record>,
}

pub(super) struct OwnQueue {
    pub(super) queue: PartitionQueue<Context>,
    /// False once it was seen empty and nothing has come since: among hundreds of partitions only a few are looked into.
    pub(super) filled: Arc<AtomicBool>,
}

impl OwnQueue {
    /// A queue that wakes the calling thread when it is no longer empty.
    pub(super) fn new(mut queue: PartitionQueue<Context>) -> Self {
        // What was there before the callback rings for nobody.
        let filled = Arc::new(AtomicBool::new(true));
        let (rings, poller) = (Arc::clone(&filled), std::thread::current());
        queue.set_nonempty_callback(move || {
            rings.store(true, Ordering::SeqCst);
            poller.unpark();
        });
        Self { queue, filled }
    }
}

impl Assigned {
    pub(super) fn new(lane: LaneHandle) -> Self {
        Self { lane, paused: false, stored: -1, full_since: None, queue: None, batch: Vec::new() }
    }
}
