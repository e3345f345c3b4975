//! Builds that are broken on purpose, as switches of the simulated ports: what the checker has to find.

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// `SETNX` without a lease before the effect: the key of a worker that died says that the event is finished.
    NoLease,
    /// The offset is done when the record is handed to the producer.
    DoneBeforeAck,
    /// An event that somebody else executes is taken for finished.
    BusyDropped,
    /// The next copy has the hop of the one before, and so its key.
    SameHop,
    /// `F` is written when the record is handed to the producer.
    MovedOnBeforeAck,
    /// A record that was not acknowledged is settled as if it had been.
    SettledWithoutAck,
    /// A renewal that was refused, or got no answer, counts as one that was granted.
    LostLeaseIgnored,
    /// Settlements reach nobody.
    SettleForgotten,
    /// The offset that is committed is one past the newest that is done.
    HolesIgnored,
    /// Records start as soon as they arrive.
    DueIgnored,
    /// Own headers are appended, not replaced.
    HeadersAppended,
    /// A deferral asks for no bound.
    EndlessDeferrals,
    /// Records of one key are handed to the lane without their key.
    KeysIgnored,
    /// A claim without an answer counts as granted.
    NoAnswerIsYes,
    /// Handlers whose lease is lost are not cancelled.
    CancelUnheard,
    /// What was let through and is claimed starts, though the gate was shut meanwhile.
    ClaimsStartAnyway,
    /// What the gate does not let start fails, as circuit breakers that fail fast have it.
    FailsAtTheGate,
    /// Events that are tried take up nothing of the limit.
    TriedUncounted,
    /// Nobody looks again at the end of a cool-down.
    OpeningUnheard,
    /// The breaker is not told of successes.
    SuccessUntold,
    /// Whose turn it is is asked, and not heeded.
    TurnIgnored,
    /// No place is taken in the queue of a key.
    NoPlace,
    /// No place is given back.
    PlaceKept,
    /// A permit is not given back when the event is found busy.
    PermitKept,
}
