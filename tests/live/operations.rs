//! The program in operation: processes of the real binary that join, leave, are killed, meet a Redis that restarts, or
//! are not let in at all. What was executed is read from the handlers' own files, never from the engine's counters.

mod exit_codes;
mod forget;
mod harness;
mod killed;
mod ladder_changes;
mod limits;
mod logs;
mod offsets;
mod order_ladder;
mod outage;
mod pauses;
#[cfg(feature = "postgres")]
mod postgres;
mod prometheus;
mod redis_cluster;
mod redis_restart;
mod registry;
#[cfg(feature = "tls")]
mod secured;
mod sharing;
mod signals;
mod two_groups;
