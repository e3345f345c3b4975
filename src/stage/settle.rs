//! After an execution: what the outcome leads to, the record of the next copy, how long a copy is remembered.

use std::sync::Arc;
use std::time::Duration;

use super::context::{StageContext, StageSettings};
use super::held::Held;
use super::ports::Outgoing;
use super::trace::EventTrace;
use crate::ladder::brake::DeadLetter;
use crate::ladder::event::{Action, Mark, Outcome, Timestamp};
use crate::ladder::gate::End;
use crate::ladder::headers::{self, Envelope, Move, Trace};
use crate::ladder::lane::Verdict;
use crate::ladder::route;

/// Decides with [`route::decide`], notes the decision on the event, and says it in the lane's words.
pub(super) fn conclude(
    ctx: &StageContext,
    held: &mut Held,
    outcome: Outcome,
    now: Timestamp,
    jitter_draw: f64,
) -> Verdict {
    let failure = match outcome {
        Outcome::Done => return Verdict::Done,
        Outcome::Fenced => return Verdict::Fenced,
        Outcome::Failed(failure) => failure,
    };
    let action = route::decide(&ctx.ladder, &held.envelope, Err(&failure), now, jitter_draw);
    tracing::debug!(
        trace_id = held.trace_id(),
        event_id = &*held.envelope.event_id,
        correlation_id = held.record.correlation_id(),
        stage = &*ctx.rung().name,
        attempt = held.envelope.attempt + 1,
        error = failure.message,
        ?action,
        "execution failed"
    );
    let verdict = Verdict::of(&action);
    if let Action::Halt { reason } = action {
        held.halted = Some(reason);
    }
    if verdict != Verdict::Done {
        held.failed = Some((failure, action));
    }
    verdict
}

/// What that means to the brake.
pub(super) fn end(ctx: &StageContext, held: &Held, verdict: Verdict) -> End {
    match (verdict, &held.failed) {
        (Verdict::Done, _) => End::Done,
        (Verdict::Publish, Some((_, Action::DeadLetter { reason }))) => {
            let envelope = &held.envelope;
            let written = u64::try_from(envelope.origin.timestamp_ms).map(Timestamp::from_millis);
            End::Dead(DeadLetter {
                reason: *reason,
                on_main: ctx.stage == 0,
                is_recent: written.is_ok_and(|at| at >= ctx.gate.begun()),
                redriven: envelope.redrives > 0,
            })
        }
        _ => End::Retried,
    }
}

/// The record of the next copy; `None` when there is none to be made (then `decide` has said `Halt`).
pub(super) fn next_copy(ctx: &StageContext, held: &Held, fence: u64) -> Option<Outgoing> {
    let (failure, action) = held.failed.as_ref()?;
    let target = route::target(&ctx.ladder, &held.envelope, action)?;
    let parent = held.trace.as_ref().and_then(EventTrace::next).map(|next| next.to_string());
    let next = headers::next(
        held.record.headers(),
        &Move {
            ladder: &ctx.ladder,
            envelope: &held.envelope,
            action,
            failure,
            started: held.started,
            took: held.took,
            fence,
            trace: parent.as_deref().map(|parent| Trace { parent, state: held.record.trace_state() }),
            compat: ctx.settings.compat,
        },
        held.shrink,
    )?;
    Some(Outgoing {
        topic: Arc::clone(&target.topic),
        partition: ctx.next_partition(target.index, held.record.partition),
        key: held.record.key.clone(),
        value: held.record.value.clone(),
        headers: held.record.headers_of_copy(next),
    })
}

/// How long a settled copy is remembered. The first copy after a redrive (attempts are back to 0 there) for as long
/// as its dead letter may be redriven again.
pub(super) fn ttl(settings: &StageSettings, envelope: &Envelope, mark: Mark) -> Duration {
    let ttl = match mark {
        Mark::Done => settings.done_ttl,
        Mark::MovedOn => settings.handed_ttl,
    };
    if envelope.redrives > 0 && envelope.attempt == 0 { ttl.max(settings.redriven_ttl) } else { ttl }
}
