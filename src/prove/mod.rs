//! The proof: a run under faults on real services, judged by evidence from outside.
//!
//! Reading order: [`ledger`] holds what was seen and tells everything that breaks the promise.
//!
//! Invariant: [`ledger`] uses nothing of this crate, so that no fault of the engine or its codec can hide itself.

pub mod ledger;
