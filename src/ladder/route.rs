//! What happens to an event next: [`decide`], the whole policy of the ladder on one page.
//!
//! Total: every stage and every result gets exactly one [`Action`]. There is no way to drop an event from here.
//! Leaves to others: a refused fence (HTTP 412) and a lost lease never come here, because they decide nothing: the
//! lane parks the event and claims it again. So the argument is a `Result`, which cannot say them.

use super::due;
use super::event::{Action, Failure, FailureClass, HaltReason, Reason, Timestamp};
use super::headers::{Envelope, HOP_LIMIT};
use super::rungs::{Ladder, Rung};

/// Decides what one execution leads to. `jitter_draw` is uniform in 0 .. 1 and spreads the dues.
///
/// On the DLQ's rung the answer is always `Done`: it has no next, its handler only looks at dead letters, and the
/// record stays where it is whatever the handler says.
pub fn decide(
    ladder: &Ladder,
    envelope: &Envelope,
    result: Result<(), &Failure>,
    now: Timestamp,
    jitter_draw: f64,
) -> Action {
    let Err(failure) = result else { return Action::Done };
    if envelope.stage >= ladder.dlq().index {
        return Action::Done;
    }
    // Everything below moves the event, and a move needs a hop of its own.
    if envelope.hop.saturating_add(1) >= HOP_LIMIT {
        return Action::Halt { reason: HaltReason::HopOverflow };
    }
    match failure.class {
        FailureClass::Permanent => {
            return Action::DeadLetter { reason: Reason::Permanent };
        }
        FailureClass::Poison => return Action::DeadLetter { reason: Reason::Poison },
        FailureClass::Transient if expired(ladder, envelope, now) => {
            return Action::DeadLetter { reason: Reason::Expired };
        }
        FailureClass::Transient => {}
    }
    // `Retry-After: 0` and a date in the past ask for nothing: they must not burn the ladder without a pause.
    let wish = failure.retry_after.filter(|wish| !wish.is_zero());
    let above = ladder.above(envelope.stage);
    match (above, wish) {
        ([next, ..], None) => {
            let due = due::after(now, next.delay.unwrap_or_default(), next.jitter, jitter_draw);
            Action::Forward { stage: next.index, due }
        }
        ([.., last], Some(wish)) => {
            let rung = above.iter().find(|rung| rung.delay >= Some(wish)).unwrap_or(last);
            Action::Forward { stage: rung.index, due: due::asked(now, wish, rung.delay.unwrap_or_default()) }
        }
        ([], wish) => match ladder.rung(envelope.stage).and_then(|rung| rung.delay) {
            Some(delay) if wish > Some(delay) && envelope.deferrals < ladder.max_deferrals() => {
                Action::Defer { due: now + delay }
            }
            _ => Action::DeadLetter { reason: Reason::Exhausted },
        },
    }
}

/// What becomes of an event whose turn it is not: the first retry stage, or where it is one already, the same again.
/// Without retry stages nobody is in the ladder to wait for, so there is nothing to be done but to halt.
pub fn wait(ladder: &Ladder, envelope: &Envelope, now: Timestamp, jitter_draw: f64) -> Action {
    let stage = envelope.stage.max(1);
    match ladder.rung(stage).and_then(|rung| Some((rung, rung.delay?))) {
        Some((rung, delay)) if envelope.hop.saturating_add(1) < HOP_LIMIT => {
            Action::Wait { stage, due: due::after(now, delay, rung.jitter, jitter_draw) }
        }
        _ => Action::Halt { reason: HaltReason::HopOverflow },
    }
}

/// The rung that an action moves the event to; `None` when it stays where it is.
pub fn target<'l>(ladder: &'l Ladder, envelope: &Envelope, action: &Action) -> Option<&'l Rung> {
    match action {
        Action::Forward { stage, .. } | Action::Wait { stage, .. } => ladder.rung(*stage),
        Action::Defer { .. } => ladder.rung(envelope.stage),
        Action::DeadLetter { .. } => Some(ladder.dlq()),
        Action::Done | Action::Halt { .. } => None,
    }
}

/// Counted from the last redrive, else from the record on main; an age that nobody knows does not expire.
fn expired(ladder: &Ladder, envelope: &Envelope, now: Timestamp) -> bool {
    let origin = u64::try_from(envelope.origin.timestamp_ms).ok().map(Timestamp::from_millis);
    match (ladder.max_event_age(), envelope.redriven_at.or(origin)) {
        (Some(limit), Some(since)) => now.since(since) > limit,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
