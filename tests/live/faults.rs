//! The fault matrix: ladders on real services while something breaks, each judged by the ledger from outside evidence.
//!
//! Crashes between any two steps are in `crash_points`, and what concerns one process alone (signals, exit codes,
//! offsets, Redis restarted, members that join and leave one stage) in `operations`.

mod broker;
mod clock;
mod cluster;
mod cut;
mod forgetful;
mod frozen;
mod harness;
mod hostile;
mod killed;
mod storm;
mod unreachable;
