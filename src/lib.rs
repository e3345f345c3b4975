//! Non-blocking retries for Kafka: main → retry-1 → … → retry-N → DLQ.
//!
//! # An event's life
//! ```text
//!  poll thread ─▶ lane (one per partition: waiting, in flight, watermark)
//!                  │ due and a permit free
//!                  ▼
//!               claim in Redis ─▶ handler ─▶ ladder::route::decide ─▶ Action
//!                                                │
//!          Done ◀────────────────────────────────┼──▶ Forward / Defer / DeadLetter
//!            │                                   │      produce, await the acknowledgement
//!            ▼                                   ▼
//!          settle `1`                        settle `F`
//!            └──────────▶ offset done ◀──────────┘ ─▶ watermark ─▶ store_offsets ─▶ auto-commit
//! ```
//! Modules in reading order: [`ladder`] decides, [`stage`] performs, [`adapters`] talk to the outside.
//!
//! # Invariants
//! - An offset is done only after its event is: handled and recorded, or acknowledged on the next topic, or known
//!   to Redis as finished or moved on. There is no other way out of a lane.
//! - Everything in [`ladder`] is a pure function: no I/O, no clock, no randomness.
#![allow(clippy::type_complexity, reason = "boxed futures of the narrow ports")]

pub mod ladder;
pub mod stage;

pub mod adapters;
pub mod handlers;
pub mod messages;

pub mod admin;
pub mod app;
pub mod config;
#[doc(hidden)]
pub mod prove;
pub mod telemetry;

#[doc(hidden)]
pub mod cli;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
