//! Outbound, by hand: the headers of the copy that a dead letter is redriven in.
//!
//! A redrive is a move like any other (hop + 1, so a key of its own) that begins the attempts anew. What was known of
//! the event stays: id, origin, history, the last error. What made it a dead letter goes: the compat headers.

use super::compat::CompatHeaders;
use super::envelope::Envelope;
use super::write::{Buffer, NextHeaders, keep_foreign};
use super::{
    ATTEMPT, DUE, ERROR, EVENT_ID, FENCE, GROUP, HISTORY, HOP, HOP_LIMIT, MAX_OWN_BYTES, Name, REDRIVE, REDRIVEN_AT,
    STAGE, TRACEPARENT, TRACESTATE, Trace,
};
use crate::ladder::event::Timestamp;
use crate::ladder::rungs::{Ladder, Rung};

/// One dead letter about to be redriven.
#[derive(Clone, Copy, Debug)]
pub struct Redrive<'a> {
    /// The ladder.
    pub ladder: &'a Ladder,
    /// What was read from the dead letter.
    pub envelope: &'a Envelope,
    /// Where to: main or a retry rung.
    pub target: &'a Rung,
    /// Now: due at once, and the instant that `x-ladder-redriven-at` says.
    pub at: Timestamp,
    /// The trace context to write; `None` leaves the record's own as it is.
    pub trace: Option<Trace<'a>>,
}

/// The headers of the redriven copy: those of others byte for byte in their order, then ours.
///
/// `None` when there is no such copy: the target is the DLQ, or the hops are at their limit.
pub fn redriven<'h>(
    headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    redrive: &Redrive<'_>,
) -> Option<NextHeaders> {
    let Redrive { ladder, envelope, target, at, trace } = *redrive;
    let hop = envelope.hop.checked_add(1).filter(|hop| *hop < HOP_LIMIT)?;
    if target.index >= ladder.dlq().index {
        return None;
    }
    let mut out = Buffer::with_capacity(headers.clone());
    keep_foreign(headers.clone(), CompatHeaders::ALL, trace.is_some(), &mut out);
    out.text(EVENT_ID, &envelope.event_id);
    out.number(STAGE, target.index as u64);
    out.number(ATTEMPT, 0);
    out.number(HOP, hop);
    out.positive(FENCE, envelope.fence);
    if target.delay.is_some() {
        // Rounded down: it is due now, not within the next millisecond.
        out.number(DUE, at.floor_millis());
    }
    out.origin(&envelope.origin);
    out.text(GROUP, ladder.group());
    out.number(REDRIVE, u64::from(envelope.redrives.saturating_add(1)));
    out.number(REDRIVEN_AT, at.floor_millis());
    if let Some(trace) = trace {
        out.text(TRACEPARENT, trace.parent);
        if let Some(state) = trace.state.filter(|state| !state.is_empty()) {
            out.text(TRACESTATE, state);
        }
    }
    // What anybody else wrote there is no story of ours.
    if envelope.own {
        for (name, known) in [(ERROR, Name::Error), (HISTORY, Name::History)] {
            let last = headers.clone().filter(|(n, _)| Name::of(n) == Some(known)).last().and_then(|(_, value)| value);
            if let Some(value) = last.filter(|value| out.own_bytes() + name.len() + value.len() <= MAX_OWN_BYTES) {
                out.bytes(name, value);
            }
        }
    }
    Some(out.done())
}
