//! The whole ladder in one thread on virtual time: seeded random schedules against invariants.
//!
//! Several workers, partitions, main, up to three retry stages and a DLQ, with models of Kafka ([`broker`]) and of Redis
//! ([`store`]); what decides is the library's own: `Lane::step`, `route::decide`, the header codec, the watermark,
//! the claim's text, the gates with breaker and brake. [`lane`] is the shell around it, once more and without tokio. The `dlq` stage is left out, because
//! it claims nothing and moves nothing.
//!
//! `LADDER_SCHEDULES` sets how many schedules are run, `LADDER_SEED` where they begin. A failure is printed as a case, the steps
//! of its schedule, and the command that runs it again:
//!
//! ```text
//! LADDER_SEED=<case> cargo test --test simulation replay -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::nonminimal_bool, reason = "a test crate: what fails here fails the test")]

mod broken;
mod broker;
mod case;
mod faults;
mod gate;
mod lane;
mod ledger;
mod queue;
mod schedules;
mod store;
mod turns;
mod world;
