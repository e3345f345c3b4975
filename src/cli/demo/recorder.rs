//! The handler's own record: what was really executed, when, and what succeeded, written down where it happens.
//!
//! It wraps the simulating handler and trusts nothing of the engine but the event that it is given: dues are read from
//! the record's raw header.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::handlers::simulate::SimulateHandler;
use crate::ladder::event::{Outcome, Timestamp};
use crate::ladder::headers;
use crate::stage::clock::Clock;
use crate::stage::ports::{Event, Handler};

/// What was executed.
#[derive(Clone, Debug, Default)]
pub(super) struct Executions {
    /// Starts.
    pub(super) count: u64,
    /// Starts of an attempt that had started before, or of an event that had succeeded before. Nothing is killed or
    /// cut off here, so nothing explains them.
    pub(super) repeated: u64,
    /// Starts before the due time.
    pub(super) early: u64,
    /// Start − due of every event that had one, in no order.
    pub(super) lateness: Vec<Duration>,
    /// Ids of the events that succeeded.
    pub(super) done: HashSet<Arc<str>>,
    /// Event id and attempt of every start.
    pub(super) started: HashSet<(Arc<str>, u32)>,
}

impl Executions {
    fn start(&mut self, event: &Event, now: Timestamp) {
        self.count += 1;
        let first = self.started.insert((Arc::clone(&event.id), event.attempt));
        self.repeated += u64::from(!first || self.done.contains(&event.id));
        let due = event.header(headers::DUE).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        if let Some(due) = due.map(Timestamp::from_millis) {
            self.early += u64::from(now < due);
            self.lateness.push(now.since(due));
        }
    }
}

/// Writes down what the simulating handler does.
pub(super) struct Recorder {
    inner: SimulateHandler,
    clock: Arc<dyn Clock>,
    executions: Mutex<Executions>,
}

impl Recorder {
    pub(super) fn new(inner: SimulateHandler, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, executions: Mutex::default() }
    }

    /// A copy of the record so far.
    pub(super) fn executions(&self) -> Executions {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Executions> {
        self.executions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Recorder {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        let now = self.clock.now().wall;
        self.lock().start(&event, now);
        let id = Arc::clone(&event.id);
        Box::pin(async move {
            let outcome = self.inner.handle(event).await;
            if outcome == Outcome::Done {
                self.lock().done.insert(id);
            }
            outcome
        })
    }
}
