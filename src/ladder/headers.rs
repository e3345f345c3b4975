//! What travels with a record: the one codec of our headers, both ways.
//!
//! Owns: every header name, what a missing, broken or foreign value counts as ([`read`]), the headers of the next
//! record ([`next`]) and of a redriven one ([`redriven`]), and the names that deduplication goes by ([`CopyKeys`], [`next_fence`]).
//!
//! Invariants: no bytes make anything here fail; headers of others pass byte for byte and in their order; ours occur
//! at most once and take at most [`MAX_OWN_BYTES`] in all; a hop only ever grows; attempts never fall along the ladder.
//!
//! Of several headers with one name the last one counts, as for Kafka's own `lastHeader`; one without a value counts
//! as present and empty.
//!
//! Leaves to others: decoding payloads (an id out of the payload is an argument), and the trace context (made by
//! `telemetry`).

mod compat;
mod envelope;
mod history;
mod identity;
mod read;
mod redrive;
mod write;

pub use compat::CompatHeaders;
pub use envelope::{Coordinates, Envelope, IdSource, Repairs};
pub use history::{HistoryEntry, MAX_HISTORY, history, parse_error};
pub use identity::{CopyKeys, HOP_LIMIT, copy_key, next_fence};
pub use read::read;
pub use redrive::{Redrive, redriven};
pub use write::{Move, NextHeader, NextHeaders, Shrink, Trace, next};

/// The most bytes that our headers take in one record, names included.
pub const MAX_OWN_BYTES: usize = 8 * 1024;

/// The largest valid attempt count: main, 16 retry stages, and none after.
pub const MAX_ATTEMPT: u32 = 17;

/// Prefix of all our names.
pub const PREFIX: &str = "x-ladder-";

/// Stable through hops and redrives.
pub const EVENT_ID: &str = "x-ladder-event-id";
/// Index of the stage that the record waits for; on the DLQ's record of the one that failed last.
pub const STAGE: &str = "x-ladder-stage";
/// Executions charged so far.
pub const ATTEMPT: &str = "x-ladder-attempt";
/// Moves so far.
pub const HOP: &str = "x-ladder-hop";
/// Last fence given to a handler.
pub const FENCE: &str = "x-ladder-fence";
/// Unix ms before which the record must not run.
pub const DUE: &str = "x-ladder-due";
/// Coordinates of the record on main.
pub const ORIGIN: &str = "x-ladder-origin";
/// Consumer group of the pipeline.
pub const GROUP: &str = "x-ladder-group";
/// `class: text` of the last failure.
pub const ERROR: &str = "x-ladder-error";
/// The last failures as a JSON array, newest last.
pub const HISTORY: &str = "x-ladder-history";
/// Number of redrives, absent at 0.
pub const REDRIVE: &str = "x-ladder-redrive";
/// Unix ms of the last redrive, absent when there was none.
pub const REDRIVEN_AT: &str = "x-ladder-redriven-at";
/// Deferrals by `Retry-After` since the origin or the last redrive, absent at 0.
pub const DEFERRALS: &str = "x-ladder-deferrals";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const TRACESTATE: &str = "tracestate";

/// Our headers: the place of each in the arrays and bit sets of the codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Name {
    EventId,
    Stage,
    Attempt,
    Hop,
    Fence,
    Due,
    Origin,
    Group,
    Error,
    History,
    Redrive,
    RedrivenAt,
    Deferrals,
}

/// In the order of [`Name`].
const NAMES: [&str; 13] =
    [EVENT_ID, STAGE, ATTEMPT, HOP, FENCE, DUE, ORIGIN, GROUP, ERROR, HISTORY, REDRIVE, REDRIVEN_AT, DEFERRALS];

/// What can be counted as repaired: the names that [`Repairs::names`] can give, in its order.
pub const REPAIRABLE: [&str; NAMES.len() + 1] = {
    let mut all = ["due_clamped"; NAMES.len() + 1];
    let mut i = 0;
    while i < NAMES.len() {
        all[i] = NAMES[i];
        i += 1;
    }
    all
};

impl Name {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name.strip_prefix(PREFIX.as_bytes())? {
            b"event-id" => Name::EventId,
            b"stage" => Name::Stage,
            b"attempt" => Name::Attempt,
            b"hop" => Name::Hop,
            b"fence" => Name::Fence,
            b"due" => Name::Due,
            b"origin" => Name::Origin,
            b"group" => Name::Group,
            b"error" => Name::Error,
            b"history" => Name::History,
            b"redrive" => Name::Redrive,
            b"redriven-at" => Name::RedrivenAt,
            b"deferrals" => Name::Deferrals,
            _ => return None,
        })
    }
}

/// Digits only, no sign, no space, at most u64.
fn number(text: &[u8]) -> Option<u64> {
    // `parse` takes a sign.
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    text.parse().ok()
}

#[cfg(test)]
mod tests;
