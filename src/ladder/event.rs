//! The words of the ladder: instants, identities, outcomes and actions. Data only, no policy.

use std::fmt;
use std::time::Duration;

/// An instant on the wall clock: microseconds since the Unix epoch.
///
/// Microseconds, because truncating to milliseconds starts events up to 1 ms early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant `us` microseconds after the Unix epoch.
    pub const fn from_micros(us: u64) -> Self {
        Self(us)
    }

    /// The instant `ms` milliseconds after the Unix epoch; saturates at the end of time.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the Unix epoch, rounded down: for "when did it happen".
    pub const fn floor_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Whole milliseconds since the Unix epoch, rounded up: for "not before".
    pub const fn ceil_millis(self) -> u64 {
        self.0.div_ceil(1_000)
    }

    /// The time from `earlier` to `self`, zero when `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, d: Duration) -> Timestamp {
        let us = u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Timestamp(self.0.saturating_add(us))
    }
}

/// Where a record stands: `topic:partition:offset:timestamp_ms`, the value of `x-ladder-origin`.
///
/// The timestamp is part of it because a topic that was deleted and made again starts at offset 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// The record's own timestamp, Unix milliseconds; −1 when the broker had none.
    pub timestamp_ms: i64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.topic, self.partition, self.offset, self.timestamp_ms)
    }
}

/// How a failed execution is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// May succeed later: goes to the next rung.
    Transient,
    /// Will never succeed: goes to the DLQ at once.
    Permanent,
    /// Cannot be decoded: no handler ever sees it, goes to the DLQ at once.
    Poison,
}

impl FailureClass {
    /// The word used in headers, metrics, logs and traces.
    pub const fn as_str(self) -> &'static str {
        match self {
            FailureClass::Transient => "transient",
            FailureClass::Permanent => "permanent",
            FailureClass::Poison => "poison",
        }
    }
}

/// A failed execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How it is to be treated.
    pub class: FailureClass,
    /// What went wrong, for a person; cut where it is written into a header.
    pub message: String,
    /// The target asked not to be called again before this much time has passed (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that may succeed later.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { class: FailureClass::Transient, message: message.into(), retry_after: None }
    }

    /// A failure that will never succeed.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { class: FailureClass::Permanent, message: message.into(), retry_after: None }
    }

    /// A payload that cannot be decoded.
    pub fn poison(message: impl Into<String>) -> Self {
        Self { class: FailureClass::Poison, message: message.into(), retry_after: None }
    }

    /// The same failure with the target's wish not to be called again before `after`.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

/// What came of one execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The effect happened.
    Done,
    /// It failed.
    Failed(Failure),
    /// The sink refused an old fence (HTTP 412): treated as a lost lease, parked and claimed again.
    Fenced,
}

/// Why an event is in the DLQ: the class in `x-ladder-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The handler said that it will never succeed.
    Permanent,
    /// It cannot be decoded.
    Poison,
    /// It failed on the last rung.
    Exhausted,
    /// It failed and is older than `max_event_age`.
    Expired,
}

impl Reason {
    /// All of them, in their order.
    pub const ALL: [Reason; 4] = [Reason::Permanent, Reason::Poison, Reason::Exhausted, Reason::Expired];

    /// The word used in headers, metrics, logs and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Permanent => "permanent",
            Reason::Poison => "poison",
            Reason::Exhausted => "exhausted",
            Reason::Expired => "expired",
        }
    }
}

/// What happens to an event next. There is no `Drop` and no `Commit`: an offset becomes done only by one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Finished: record it and mark the offset done.
    Done,
    /// To a later rung.
    Forward {
        /// Index of the target rung, 1 … N.
        stage: usize,
        /// Not to be started before.
        due: Timestamp,
    },
    /// The last rung again, without charging an attempt, because the target asked for a longer wait.
    Defer {
        /// Not to be started before.
        due: Timestamp,
    },
    /// Not run, because it is not its turn (`order: ladder`): to a retry stage, without charging an attempt.
    Wait {
        /// Index of the target rung, 1 … N.
        stage: usize,
        /// Not to be asked again before.
        due: Timestamp,
    },
    /// To the DLQ.
    DeadLetter {
        /// Why.
        reason: Reason,
    },
    /// Nothing more can be done without losing the event: stop this partition and call for help.
    Halt {
        /// Why.
        reason: HaltReason,
    },
}

/// Why a partition had to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HaltReason {
    /// The broker refuses the record even without our optional headers.
    TooLarge,
    /// The hop counter of the record is at its limit (2^53).
    HopOverflow,
}

impl HaltReason {
    /// The word used in metrics, logs and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            HaltReason::TooLarge => "too_large",
            HaltReason::HopOverflow => "hop_overflow",
        }
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall clock: due times, which other processes and people read.
    pub wall: Timestamp,
    /// Time since boot, suspend included; never steps: leases and back-offs.
    pub boot: Duration,
}

/// Reply to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimReply {
    /// Ours now.
    Claimed,
    /// It already held our own value (the reply to an earlier try was lost): ours after a successful renewal.
    AlreadyOurs,
    /// Finished (`1`).
    Done,
    /// Moved on (`F`).
    MovedOn,
    /// Somebody else's claim.
    Busy,
    /// A value that is none of ours, cut to 64 characters: treated as busy, and an alarm.
    Corrupt(String),
}

/// What a settled copy is recorded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// `1`: the effect happened.
    Done,
    /// `F`: an acknowledged next copy exists.
    MovedOn,
}
