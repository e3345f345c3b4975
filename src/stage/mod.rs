//! The shell around [`crate::ladder`]: an event's life, one file per step.
//!
//! Reading order: [`ports`] (the narrow traits to the outside), [`record`] (the bytes of one record), [`context`] (what
//! the lanes of a stage share), then an event's way: `held` (received, waiting), `process` (executed), `settle`
//! (moved on), all driven by `lane`, the task of one partition; [`lanes`] is what the poll thread sees of it, [`clock`]
//! the only reader of the clocks, [`stats`] what is counted.

pub mod clock;
pub mod context;
mod held;
mod lane;
pub mod lanes;
pub mod ports;
mod process;
pub mod record;
mod settle;
pub mod stats;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use context::StageContext;
use lanes::{LaneHandle, LaneHost, LaneState};

/// Opens the lanes of one stage on a tokio runtime.
pub struct Stage {
    ctx: Arc<StageContext>,
    runtime: tokio::runtime::Handle,
    open: Mutex<Vec<Weak<LaneState>>>,
}

/// What the open lanes of a stage hold now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneOverview {
    /// Partitions assigned.
    pub partitions: usize,
    /// Events in memory that are not due yet.
    pub waiting: usize,
    /// Events in memory that are past their due time and not finished.
    pub in_flight: usize,
    /// Partitions that had to stop.
    pub halted: usize,
}

impl Stage {
    /// A stage whose lanes run on `runtime`.
    pub fn new(ctx: Arc<StageContext>, runtime: tokio::runtime::Handle) -> Self {
        Self { ctx, runtime, open: Mutex::new(Vec::new()) }
    }

    /// What its lanes share.
    pub fn context(&self) -> &Arc<StageContext> {
        &self.ctx
    }

    /// What its open lanes hold now.
    pub fn overview(&self) -> LaneOverview {
        let mut overview = LaneOverview::default();
        for lane in self.open.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            overview.partitions += 1;
            overview.waiting += lane.waiting();
            overview.in_flight += lane.in_flight();
            overview.halted += usize::from(lane.halted());
        }
        overview
    }
}

impl LaneHost for Stage {
    fn open(&self, partition: i32) -> LaneHandle {
        let lane = lane::open(Arc::clone(&self.ctx), partition, &self.runtime);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|lane| lane.strong_count() > 0);
        open.push(Arc::downgrade(lane.state()));
        lane
    }
}
