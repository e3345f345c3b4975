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
}
