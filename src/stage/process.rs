//! One execution: the event for the handler, the handler's future with its deadline, panics as failures.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Sleep;

use super::context::{StageContext, Tombstones};
use super::held::Held;
use super::ports::{Event, Handler};
use super::trace::EventTrace;
use crate::ladder::event::{Failure, Outcome, Timestamp};
use crate::ladder::lane::Slot;
use crate::telemetry::handler_spans::Scope;

/// What is to be done with a held event.
#[allow(clippy::large_enum_variant, reason = "moved once, on the hot path: a box would cost more")]
pub(super) enum Prepared {
    /// Run the handler on it.
    Run(Event),
    /// The outcome is known without the handler.
    Known(Outcome),
}

/// What all events of a lane have in common. Copies of the lane's own: the counts of shared ones would go back and
/// forth between the cores with every event.
pub(super) struct Names {
    pipeline: Arc<str>,
    group: Arc<str>,
    message: Arc<str>,
    stage: Arc<str>,
}

impl Names {
    pub(super) fn new(ctx: &StageContext) -> Self {
        let own = |name: &Arc<str>| Arc::from(&**name);
        Self {
            pipeline: own(ctx.ladder.pipeline()),
            group: own(ctx.ladder.group()),
            message: own(&ctx.message),
            stage: own(&ctx.rung().name),
        }
    }
}

/// The event for the handler; a value that cannot be read never reaches one.
pub(super) fn prepare(ctx: &StageContext, names: &Names, held: &Held, fence: u64, now: Timestamp) -> Prepared {
    let payload = match (&held.record.value, ctx.settings.tombstones) {
        // Whatever lies on a rung that only looks is shown to its handler: there, what cannot be read matters most.
        (Some(value), _) if !ctx.settings.decode => value.clone(),
        (Some(value), _) => match ctx.decode.payload(value) {
            Ok(payload) => payload,
            Err(why) => return Prepared::Known(Outcome::Failed(Failure::poison(why))),
        },
        (None, Tombstones::Deliver) => Bytes::new(),
        (None, Tombstones::Skip) => return Prepared::Known(Outcome::Done),
        (None, Tombstones::DeadLetter) => {
            let why = "null value (a tombstone); see `tombstones` in the configuration";
            return Prepared::Known(Outcome::Failed(Failure::poison(why)));
        }
    };
    Prepared::Run(Event {
        pipeline: Arc::clone(&names.pipeline),
        group: Arc::clone(&names.group),
        message: Arc::clone(&names.message),
        id: Arc::clone(&held.envelope.event_id),
        attempt: held.envelope.attempt.saturating_add(1),
        stage: ctx.stage,
        stage_name: Arc::clone(&names.stage),
        fence,
        deadline: now + ctx.settings.handler_timeout,
        origin: held.envelope.origin.clone(),
        record: Arc::clone(&held.record),
        payload,
        trace: held.trace.as_ref().map(EventTrace::process),
    })
}

/// A running handler. Resolves to the slot and what came of it.
pub(super) struct Execution<'a> {
    pub(super) slot: Slot,
    handler: Option<BoxFuture<'a, Outcome>>,
    /// Entered whenever the handler runs.
    scope: Scope,
    timeout: Duration,
    /// Armed when the first poll leaves the handler pending: one that answers at once needs no timer.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<'a> Execution<'a> {
    /// Calls the handler; its future is not polled yet.
    pub(super) fn start(
        slot: Slot,
        handler: &'a dyn Handler,
        event: Event,
        timeout: Duration,
    ) -> Result<Self, Outcome> {
        let scope = Scope::new(event.trace);
        let entered = scope.enter();
        let future = catch_unwind(AssertUnwindSafe(|| handler.handle(event))).map_err(|panic| panicked(&*panic))?;
        drop(entered);
        Ok(Self { slot, handler: Some(future), scope, timeout, deadline: None })
    }
}

impl Future for Execution<'_> {
    type Output = (Slot, Outcome);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(handler) = &mut this.handler else { return Poll::Pending };
        let entered = this.scope.enter();
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx)));
        drop(entered);
        match polled {
            Ok(Poll::Ready(outcome)) => return Poll::Ready((this.slot, outcome)),
            Ok(Poll::Pending) => {}
            Err(panic) => {
                this.handler = None; // a future that panicked must not be polled again
                return Poll::Ready((this.slot, panicked(&*panic)));
            }
        }
        let timeout = this.timeout;
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        if deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let handler = this.handler.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(handler)))); // as in `Drop`
        let why = format!("handler overran its deadline of {timeout:?} and was cancelled");
        Poll::Ready((this.slot, Outcome::Failed(Failure::transient(why))))
    }
}

impl Drop for Execution<'_> {
    /// The handler's own destructors run here when it is cancelled; a panic of theirs must not end the lane.
    fn drop(&mut self) {
        let handler = self.handler.take();
        drop(catch_unwind(AssertUnwindSafe(|| drop(handler))));
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Outcome {
    Outcome::Failed(Failure::transient(format!("handler panicked: {}", message_of(panic))))
}

/// What a panic says.
pub(super) fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no message)")
}
