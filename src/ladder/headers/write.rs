//! Outbound: the complete headers of the record that an event moves on in.
//!
//! All values of ours stand in one buffer and inbound headers are told by their index, so the shell can share both
//! without copying: two allocations per record, however many headers.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use super::compat::{CompatHeaders, DeadLetter};
use super::envelope::Envelope;
use super::history::{self, HistoryEntry, MAX_ERROR, MAX_HISTORY, MAX_MESSAGE, harmless};
use super::{
    ATTEMPT, DEFERRALS, DUE, ERROR, EVENT_ID, FENCE, GROUP, HISTORY, HOP, HOP_LIMIT, MAX_ATTEMPT, MAX_OWN_BYTES, NAMES,
    Name, ORIGIN, REDRIVE, REDRIVEN_AT, STAGE, TRACEPARENT, TRACESTATE,
};
use crate::ladder::event::{Action, Failure, FailureClass, Origin, Timestamp};
use crate::ladder::rungs::Ladder;

/// More than W3C asks a vendor to pass on.
const MAX_TRACESTATE: usize = 512;
/// A traceparent of version 00 has 55 bytes.
const MAX_TRACEPARENT: usize = 128;

/// One event about to move on.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// The ladder.
    pub ladder: &'a Ladder,
    /// The record's headers as they were read.
    pub envelope: &'a Envelope,
    /// What was decided: `Forward`, `Defer` or `DeadLetter`.
    pub action: &'a Action,
    /// Why.
    pub failure: &'a Failure,
    /// Start of the execution.
    pub started: Timestamp,
    /// Its duration.
    pub took: Duration,
    /// The fence that the execution had, 0 when there was none (poison is never executed).
    pub fence: u64,
    /// The trace context to write; `None` leaves the record's own as it is.
    pub trace: Option<Trace<'a>>,
    /// Which foreign headers a dead letter gets as well.
    pub compat: CompatHeaders,
}

/// A W3C trace context. It replaces the record's own as a whole: no state given, no state written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace<'a> {
    /// `traceparent`.
    pub parent: &'a str,
    /// `tracestate`, left out above 512 bytes.
    pub state: Option<&'a str>,
}

/// How much of the optional headers is left out because the broker refuses the record for its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shrink {
    /// Everything is written.
    #[default]
    Full,
    /// No history.
    NoHistory,
    /// Neither the error's text; its class stays.
    NoErrorText,
    /// Nor the compat headers.
    NoCompat,
}

impl Shrink {
    /// The next smaller form; `None`: nothing is left to drop, halt with `HaltReason::TooLarge`.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Shrink::Full => Some(Shrink::NoHistory),
            Shrink::NoHistory => Some(Shrink::NoErrorText),
            Shrink::NoErrorText => Some(Shrink::NoCompat),
            Shrink::NoCompat => None,
        }
    }
}

/// One header of the next record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHeader {
    /// The inbound header at this index, name and value untouched.
    Inbound(usize),
    /// One of ours.
    Own {
        /// Its name.
        name: &'static str,
        /// Where its value stands in [`NextHeaders::values`].
        value: Range<usize>,
    },
}

/// All headers of the next record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHeaders {
    /// The values of ours, one after the other.
    pub values: Vec<u8>,
    /// The headers in their order: those of others first.
    pub headers: Vec<NextHeader>,
}

impl NextHeaders {
    /// Names and values, given the headers that these were made from.
    pub fn pairs<'a>(
        &'a self,
        inbound: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
        let inbound: Vec<_> = inbound.collect();
        let pair = |header: &NextHeader| match header {
            NextHeader::Inbound(index) => inbound.get(*index).copied(),
            NextHeader::Own { name, value } => Some((name.as_bytes(), self.values.get(value.clone()))),
        };
        self.headers.iter().filter_map(pair).collect()
    }
}

/// The headers of the next record: those of others byte for byte in their order, then ours.
///
/// `None` when there is no next record: the action is `Done` or `Halt`, or no hop is left (then `decide` has said
/// `Halt`).
///
/// An execution is charged (`x-ladder-attempt` + 1) unless it is a deferral, or no handler saw the event: poison, and
/// one whose turn it is not, which gets no entry in its history either. Where
/// the record's own trace context is left alone, of several headers of one name the last one stays.
pub fn next<'h>(
    headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    m: &Move<'_>,
    shrink: Shrink,
) -> Option<NextHeaders> {
    let Move { ladder, envelope, failure, .. } = *m;
    let hop = envelope.hop.checked_add(1).filter(|hop| *hop < HOP_LIMIT)?;
    let charged = if failure.class == FailureClass::Poison { 0 } else { 1 };
    let (stage, due, charged, deferred, class) = match m.action {
        Action::Forward { stage, due } => (*stage, Some(*due), charged, 0, failure.class.as_str()),
        Action::Defer { due } => (envelope.stage, Some(*due), 0, 1, failure.class.as_str()),
        Action::Wait { stage, due } => (*stage, Some(*due), 0, 0, failure.class.as_str()),
        Action::DeadLetter { reason } => (envelope.stage, None, charged, 0, reason.as_str()),
        Action::Done | Action::Halt { .. } => return None,
    };
    // At the limit it stays: one more would be out of range where it is read, and fall to the stage's index there.
    let attempt = envelope.attempt.saturating_add(charged).min(MAX_ATTEMPT.max(envelope.attempt));
    let compat = if due.is_none() { m.compat } else { CompatHeaders::NONE };
    let trace = m.trace.filter(|trace| trace.parent.len() <= MAX_TRACEPARENT);

    let mut out = Buffer::with_capacity(headers.clone());
    keep_foreign(headers.clone(), compat, trace.is_some(), &mut out);

    out.text(EVENT_ID, &envelope.event_id);
    out.number(STAGE, stage as u64);
    out.number(ATTEMPT, u64::from(attempt));
    out.number(HOP, hop);
    out.positive(FENCE, envelope.fence.max(m.fence));
    if let Some(due) = due {
        out.number(DUE, due.ceil_millis());
    }
    out.origin(&envelope.origin);
    out.text(GROUP, ladder.group());
    out.positive(REDRIVE, u64::from(envelope.redrives));
    if let Some(at) = envelope.redriven_at {
        out.number(REDRIVEN_AT, at.floor_millis());
    }
    out.positive(DEFERRALS, u64::from(envelope.deferrals.saturating_add(deferred)));
    if let Some(trace) = trace {
        out.text(TRACEPARENT, trace.parent);
        if let Some(state) = trace.state.filter(|state| !state.is_empty() && state.len() <= MAX_TRACESTATE) {
            out.text(TRACESTATE, state);
        }
    }

    let text = harmless(Cow::Borrowed(&failure.message), if shrink < Shrink::NoErrorText { MAX_ERROR } else { 0 });
    out.value(ERROR, |to| {
        to.extend_from_slice(class.as_bytes());
        to.extend_from_slice(b": ");
        to.extend_from_slice(text.as_bytes());
    });
    if shrink < Shrink::NoCompat {
        compat.write(&DeadLetter { envelope, group: ladder.group(), attempt, class, text: &text }, &mut out);
    }
    if shrink < Shrink::NoHistory {
        // Whose turn it was not has not run: there is nothing to tell of it.
        let ran = !matches!(m.action, Action::Wait { .. });
        let entry = ran.then(|| HistoryEntry {
            stage: envelope.stage as u64,
            start_ms: m.started.floor_millis(),
            duration_ms: u64::try_from(m.took.as_millis()).unwrap_or(u64::MAX),
            class: class.into(),
            message: harmless(Cow::Borrowed(&failure.message), MAX_MESSAGE),
        });
        let past = if envelope.own { history::history(headers) } else { Vec::new() };
        write_history(&past, entry, &mut out);
    }
    Some(out.done())
}

/// Everything that is not ours, by index.
pub(super) fn keep_foreign<'h>(
    headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    compat: CompatHeaders,
    trace_is_ours: bool,
    out: &mut Buffer,
) {
    let is_trace = |name: &[u8]| name == TRACEPARENT.as_bytes() || name == TRACESTATE.as_bytes();
    let (mut parent, mut state) = (None, None);
    for (index, (name, _)) in headers.clone().enumerate().filter(|(_, (name, _))| is_trace(name)) {
        *(if name == TRACEPARENT.as_bytes() { &mut parent } else { &mut state }) = Some(index);
    }
    for (index, (name, _)) in headers.enumerate() {
        let repeated = is_trace(name) && (trace_is_ours || (Some(index) != parent && Some(index) != state));
        if !repeated && Name::of(name).is_none() && !compat.owns(name) {
            out.out.headers.push(NextHeader::Inbound(index));
        }
    }
}

/// Written last: it gets the bytes that are left, and gives up its oldest entries for them.
fn write_history(past: &[HistoryEntry<'_>], newest: Option<HistoryEntry<'_>>, out: &mut Buffer) {
    let keep = &past[past.len().saturating_sub(MAX_HISTORY - usize::from(newest.is_some()))..];
    let count = keep.len() + usize::from(newest.is_some());
    let mut json: Vec<u8> = Vec::with_capacity((keep.len() + 1) * 128);
    let mut starts = [0; MAX_HISTORY];
    for (start, entry) in starts.iter_mut().zip(keep.iter().chain(&newest)) {
        *start = json.len();
        push_entry(&mut json, entry);
    }
    let left = MAX_OWN_BYTES.saturating_sub(out.own_bytes + HISTORY.len() + 1);
    if let Some(&start) = starts[..count].iter().find(|&&start| json.len() - start <= left) {
        // The first entry's comma makes room for the bracket.
        out.value(HISTORY, |to| {
            to.push(b'[');
            to.extend_from_slice(&json[start + 1..]);
            to.push(b']');
        });
    }
}

/// A comma and the entry, as serde would write it.
fn push_entry(json: &mut Vec<u8>, entry: &HistoryEntry<'_>) {
    for (before, n) in [(",{\"s\":", entry.stage), (",\"t\":", entry.start_ms), (",\"ms\":", entry.duration_ms)] {
        json.extend_from_slice(before.as_bytes());
        push_number(json, n);
    }
    for (before, text) in [(",\"e\":\"", &entry.class), (",\"m\":\"", &entry.message)] {
        json.extend_from_slice(before.as_bytes());
        // Control characters are gone (`harmless`), so these two are all that JSON escapes.
        for &b in text.as_bytes() {
            if matches!(b, b'"' | b'\\') {
                json.push(b'\\');
            }
            json.push(b);
        }
        json.push(b'"');
    }
    json.push(b'}');
}

/// Collects our headers and counts their bytes.
pub(super) struct Buffer {
    out: NextHeaders,
    own_bytes: usize,
}

impl Buffer {
    pub(super) fn with_capacity<'h>(headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)>) -> Self {
        let headers = Vec::with_capacity(headers.count() + NAMES.len() + 16);
        Self { out: NextHeaders { values: Vec::with_capacity(1024), headers }, own_bytes: 0 }
    }

    pub(super) fn done(self) -> NextHeaders {
        self.out
    }

    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    pub(super) fn origin(&mut self, origin: &Origin) {
        self.value(ORIGIN, |to| {
            to.extend_from_slice(origin.topic.as_bytes());
            for n in [i64::from(origin.partition), origin.offset, origin.timestamp_ms] {
                to.push(b':');
                push_signed(to, n);
            }
        });
    }

    pub(super) fn value(&mut self, name: &'static str, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.values.len();
        write(&mut self.out.values);
        let value = start..self.out.values.len();
        self.own_bytes += name.len() + value.len();
        self.out.headers.push(NextHeader::Own { name, value });
    }

    pub(super) fn bytes(&mut self, name: &'static str, value: &[u8]) {
        self.value(name, |to| to.extend_from_slice(value));
    }

    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        self.bytes(name, value.as_bytes());
    }

    pub(super) fn number(&mut self, name: &'static str, n: u64) {
        self.value(name, |to| push_number(to, n));
    }

    pub(super) fn signed(&mut self, name: &'static str, n: i64) {
        self.value(name, |to| push_signed(to, n));
    }

    /// Absent at 0.
    pub(super) fn positive(&mut self, name: &'static str, n: u64) {
        if n > 0 {
            self.number(name, n);
        }
    }
}

fn push_number(to: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    to.extend_from_slice(&digits[at..]);
}

fn push_signed(to: &mut Vec<u8>, n: i64) {
    if n < 0 {
        to.push(b'-');
    }
    push_number(to, n.unsigned_abs());
}
