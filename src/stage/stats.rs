//! What a stage counts: plain atomics, written on the hot path, read by status, metrics, the demo and benchmarks.
//!
//! The one source of every count: whoever shows a number reads it here. A family of counters has one counter for each
//! word of its label, so that a count that never happened reads 0.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::Instant;

pub use super::histogram::{Histogram, LatenessHistogram};
use super::ports::{PublishError, SettleReply, StoreError};
use crate::ladder::event::{ClaimReply, FailureClass, Outcome, Reason};
use crate::ladder::headers::Envelope;

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The words that a label can have.
pub trait Label: Copy + 'static {
    /// All of them, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// The word in metrics.
    fn as_str(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[doc = $doc:literal])* $name:ident { $( $(#[doc = $about:literal])* $variant:ident = $word:literal, )* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $about])* $variant, )* }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// How an execution ended.
    Attempt {
        /// The handler succeeded.
        Done = "done",
        /// It failed, and may succeed later.
        Transient = "transient",
        /// It failed for good.
        Permanent = "permanent",
        /// The handler could not read the event.
        Poison = "poison",
        /// The sink refused the fence.
        Fenced = "fenced",
        /// The lease was lost while the handler ran, or the partition was taken away: its outcome no longer counts.
        Cancelled = "cancelled",
    }
}

label! {
    /// The producer's answer to one record.
    Produced {
        /// Acknowledged by all in-sync replicas.
        Acknowledged = "acknowledged",
        /// Refused for its size; tried again in a smaller form while there is one.
        TooLarge = "too_large",
        /// Its transaction did not happen; it goes with another.
        Aborted = "aborted",
        /// Anything else: the outcome is unknown, and it is produced again.
        Unacknowledged = "unacknowledged",
    }
}

label! {
    /// A call of the deduplication store.
    Operation {
        /// Claims, one batch.
        Claim = "claim",
        /// Renewals of leases, one batch.
        Renew = "renew",
        /// Settlements, one batch.
        Settle = "settle",
        /// Releases of claims, one batch.
        Release = "release",
    }
}

label! {
    /// The store's answer to one entry of a batch.
    Answer {
        /// To a claim: ours now. To anything else: it was still ours.
        Ours = "ours",
        /// To a claim: it was ours already, from a call whose answer was lost.
        AlreadyOurs = "already_ours",
        /// To a claim: somebody else executes this copy.
        Busy = "busy",
        /// To a claim: this copy is finished.
        Done = "done",
        /// To a claim: this copy has moved on.
        MovedOn = "moved_on",
        /// To a claim: the record's value is nobody's.
        Corrupt = "corrupt",
        /// To anything else: it was no longer ours.
        Lost = "lost",
        /// None in time, or an error.
        Unavailable = "unavailable",
    }
}

impl Operation {
    /// The answers that there are to it.
    pub fn answers(self) -> &'static [Answer] {
        match self {
            Operation::Claim => &[
                Answer::Ours,
                Answer::AlreadyOurs,
                Answer::Busy,
                Answer::Done,
                Answer::MovedOn,
                Answer::Corrupt,
                Answer::Unavailable,
            ],
            _ => &[Answer::Ours, Answer::Lost, Answer::Unavailable],
        }
    }
}

impl From<&ClaimReply> for Answer {
    fn from(reply: &ClaimReply) -> Self {
        match reply {
            ClaimReply::Claimed => Answer::Ours,
            ClaimReply::AlreadyOurs => Answer::AlreadyOurs,
            ClaimReply::Busy => Answer::Busy,
            ClaimReply::Done => Answer::Done,
            ClaimReply::MovedOn => Answer::MovedOn,
            ClaimReply::Corrupt(_) => Answer::Corrupt,
        }
    }
}

impl From<&SettleReply> for Answer {
    fn from(reply: &SettleReply) -> Self {
        match reply {
            SettleReply::Ours => Answer::Ours,
            SettleReply::LeaseLost => Answer::Lost,
        }
    }
}

impl From<&bool> for Answer {
    fn from(ours: &bool) -> Self {
        if *ours { Answer::Ours } else { Answer::Lost }
    }
}

label! {
    /// Why a stage starts nothing, or one of its partitions does not.
    PauseReason {
        /// By command.
        Command = "command",
        /// The handler's target is down.
        Breaker = "breaker",
        /// Too many events of the pipeline became dead letters.
        Brake = "brake",
        /// The deduplication store does not answer.
        Store = "store",
        /// A partition is halted: going on would lose an event.
        Halted = "halted",
    }
}

/// One counter for each word of a label.
pub struct Counters<L> {
    counts: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Counters<L> {
    /// The counter of this word.
    pub fn of(&self, label: L) -> &Counter {
        &self.counts[label.index()]
    }

    /// All together.
    pub fn sum(&self) -> u64 {
        self.counts.iter().map(Counter::get).sum()
    }
}

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        Self { counts: L::ALL.iter().map(|_| Counter::default()).collect(), label: PhantomData }
    }
}

impl<L: Label> fmt::Debug for Counters<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(L::ALL.iter().map(|l| (l.as_str(), self.of(*l).get()))).finish()
    }
}

/// The reasons for which a stage is paused now.
#[derive(Debug, Default)]
pub struct Pauses([AtomicBool; PauseReason::ALL.len()]);

impl Pauses {
    /// Sets a reason, or takes it back.
    pub fn set(&self, reason: PauseReason, paused: bool) {
        self.0[reason.index()].store(paused, Ordering::Relaxed);
    }

    /// Whether it is paused for this reason.
    pub fn get(&self, reason: PauseReason) -> bool {
        self.0[reason.index()].load(Ordering::Relaxed)
    }
}

/// Calls of the store of one kind.
#[derive(Debug, Default)]
pub struct StoreCalls {
    /// How long a batch took.
    pub seconds: Histogram,
    /// What each entry was answered.
    pub answers: Counters<Answer>,
}

impl StoreCalls {
    /// Makes the call, and counts it when it has answered.
    pub async fn observe<T>(&self, call: impl Future<Output = Vec<Result<T, StoreError>>>) -> Vec<Result<T, StoreError>>
    where
        for<'a> Answer: From<&'a T>,
    {
        let begun = Instant::now();
        let replies = call.await;
        self.seconds.record(begun.elapsed());
        let mut counts = [0; Answer::ALL.len()];
        for reply in &replies {
            counts[reply.as_ref().map_or(Answer::Unavailable, Answer::from).index()] += 1;
        }
        for (answer, count) in Answer::ALL.iter().zip(counts).filter(|(_, count)| *count > 0) {
            self.answers.of(*answer).add(count);
        }
        replies
    }
}

/// The words in [`StageStats::repaired_headers`]: each header that can be repaired, `due_clamped` for a due that was too far
/// ahead, `untrusted` for a record whose ladder headers were all ignored.
pub fn repairable() -> impl Iterator<Item = &'static str> {
    crate::ladder::headers::REPAIRABLE.into_iter().chain(["untrusted"])
}

/// Everything that one stage of one process counts.
#[derive(Debug, Default)]
pub struct StageStats {
    /// Handlers started.
    pub executions: Counter,
    /// Events finished here because their handler succeeded (or a tombstone was to be skipped).
    pub done: Counter,
    /// Events moved to a later stage.
    pub forwarded: Counter,
    /// Events moved to the same stage again at the target's wish.
    pub deferred: Counter,
    /// Events moved to a retry stage without having run: it was not their turn (`order: ladder`).
    pub behind: Counter,
    /// Events that stay where they are: it is not their turn, and their key's queue is full.
    pub queue_full: Counter,
    /// Events that their key no longer waits for: they did not come back in time.
    pub lapsed: Counter,
    /// Events moved to the DLQ, by [`Reason`].
    pub dead_lettered: [Counter; Reason::ALL.len()],
    /// Events that the store knew as finished or moved on.
    pub duplicates: Counter,
    /// Claims that somebody else held.
    pub busy: Counter,
    /// Claims released because their handler never started, or its fence was refused.
    pub released: Counter,
    /// Leases lost before the outcome was in hand, or found lost at the settlement.
    pub leases_lost: Counter,
    /// Records in the store that were nobody's.
    pub corrupt: Counter,
    /// Publishes that were not acknowledged and were repeated.
    pub republished: Counter,
    /// Records whose headers had to be repaired.
    pub repaired: Counter,
    /// What had to be repaired, in the order of [`repairable`].
    pub repaired_headers: [Counter; crate::ladder::headers::REPAIRABLE.len() + 1],
    /// Handlers running now.
    pub running: AtomicU64,
    /// Executions by how they ended.
    pub attempts: Counters<Attempt>,
    /// How long they took.
    pub handler_seconds: Histogram,
    /// Start − due of every execution in a delayed stage.
    pub lateness: LatenessHistogram,
    /// Executions before their due: must be 0.
    pub early: Counter,
    /// The producer's answers.
    pub produced: Counters<Produced>,
    /// Calls of the store, in the order of [`Operation`].
    pub store: [StoreCalls; Operation::ALL.len()],
    /// Why it is paused, set by whoever pauses it. [`PauseReason::Store`] and [`PauseReason::Halted`] are seen from the
    /// lanes instead.
    pub pauses: Pauses,
}

impl StageStats {
    /// The counter of dead letters of this class.
    pub fn dead_lettered(&self, reason: Reason) -> &Counter {
        &self.dead_lettered[reason as usize]
    }

    /// Dead letters of all classes.
    pub fn dead_letters(&self) -> u64 {
        self.dead_lettered.iter().map(Counter::get).sum()
    }

    /// The calls of this kind.
    pub fn store(&self, operation: Operation) -> &StoreCalls {
        &self.store[operation.index()]
    }

    /// Counts what was wrong with the headers of a record.
    pub fn count_repairs(&self, envelope: &Envelope) {
        if envelope.repaired.is_empty() && !envelope.untrusted {
            return;
        }
        self.repaired.add(u64::from(!envelope.repaired.is_empty()));
        for (name, counter) in repairable().zip(&self.repaired_headers) {
            let hit = if name == "untrusted" { envelope.untrusted } else { envelope.repaired.contains(name) };
            counter.add(u64::from(hit));
        }
    }

    /// Counts how an execution ended.
    pub fn count_attempt(&self, outcome: &Outcome) {
        let attempt = match outcome {
            Outcome::Done => Attempt::Done,
            Outcome::Fenced => Attempt::Fenced,
            Outcome::Failed(failure) => match failure.class {
                FailureClass::Transient => Attempt::Transient,
                FailureClass::Permanent => Attempt::Permanent,
                FailureClass::Poison => Attempt::Poison,
            },
        };
        self.attempts.of(attempt).add(1);
    }

    /// Counts the producer's answer.
    pub fn count_produced(&self, result: &Result<(), PublishError>) {
        let produced = match result {
            Ok(()) => Produced::Acknowledged,
            Err(PublishError::TooLarge) => Produced::TooLarge,
            Err(PublishError::Aborted) => Produced::Aborted,
            Err(PublishError::Unacknowledged(_)) => Produced::Unacknowledged,
        };
        self.produced.of(produced).add(1);
    }
}
