//! The shell around [`crate::ladder`]: an event's life, one file per step.
//!
//! Reading order: [`ports`] (the narrow traits to the outside), [`record`] (the bytes of one record), [`context`] (what
//! the lanes of a stage share), [`gate`] (what may stop it), then an event's way: `held` (received, waiting), `process` (executed), `settle`
//! (moved on), all driven by `lane`, the task of one partition; [`lanes`] is what the poll thread sees of it, [`clock`]
//! the only reader of the clocks, [`stats`] what is counted (durations in [`histogram`]), `trace` which spans an event
//! leaves.

pub mod alarm;
pub mod clock;
pub mod context;
pub mod gate;
mod held;
pub mod histogram;
mod lane;
pub mod lanes;
pub mod ports;
mod process;
pub mod record;
mod settle;
pub mod stats;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use context::StageContext;
use lanes::{LaneHandle, LaneHost, LaneProbe, LaneView};

/// How long a lane is waited for that was asked what it holds: a handler that blocks its thread may keep it.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// Opens the lanes of one stage on a tokio runtime.
pub struct Stage {
    ctx: Arc<StageContext>,
    runtime: tokio::runtime::Handle,
    open: Mutex<Vec<(i32, LaneProbe)>>,
    member: AtomicBool,
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
        Self { ctx, runtime, open: Mutex::new(Vec::new()), member: AtomicBool::new(false) }
    }

    /// What its lanes share.
    pub fn context(&self) -> &Arc<StageContext> {
        &self.ctx
    }

    /// What its open lanes hold now.
    pub fn overview(&self) -> LaneOverview {
        let mut overview = LaneOverview::default();
        for (_, probe) in self.open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Some(lane) = probe.state() else { continue };
            overview.partitions += 1;
            overview.waiting += lane.waiting();
            overview.in_flight += lane.in_flight();
            overview.halted += usize::from(lane.halted());
        }
        overview
    }

    /// Whether the stage is a member of its group, with partitions or without.
    pub fn is_member(&self) -> bool {
        self.member.load(Ordering::Relaxed)
    }

    /// What each lane of the partitions that are assigned now holds, exactly.
    pub async fn look(&self) -> Vec<(i32, LaneView)> {
        let probes = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let views = probes
            .into_iter()
            .map(|(partition, probe)| async move { probe.look(LOOK_TIMEOUT).await.map(|view| (partition, view)) });
        futures::future::join_all(views).await.into_iter().flatten().collect()
    }
}

impl LaneHost for Stage {
    fn open(&self, partition: i32) -> LaneHandle {
        let lane = lane::open(Arc::clone(&self.ctx), partition, &self.runtime);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, probe)| probe.state().is_some());
        open.push((partition, lane.probe()));
        lane
    }

    fn member(&self, is_member: bool) {
        self.member.store(is_member, Ordering::Relaxed);
    }
}
