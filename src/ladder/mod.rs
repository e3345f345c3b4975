//! The policy of the ladder, pure: no I/O, no clock, no randomness, no tokio, no rdkafka.
//!
//! Reading order: [`event`] (the words), [`rungs`] (the ladder itself), [`headers`] (what travels with a record),
//! [`due`], [`route`] (what happens to an event next), [`offsets`] (what may be committed), [`lane`] (one
//! partition's events from receipt to offset done), [`sequence`] (order across the stages); when to stop instead: [`breaker`] (the target is down), [`brake`]
//! (too many dead letters), [`gate`] (what both and commands let start).
//!
//! For readers who know Kafka and not Rust: a value of an `enum` is one of its variants, `match` goes by which; an
//! `Option` is a value or `None`; `T` is whatever the caller puts in. In a lane a *slot* names an event, a *ticket* its
//! place in the watermark, a *permit* is the right to run one handler, a *grant* tells when that right was given, and `fx`
//! collects the effects that the shell has to perform.
//!
//! The rules that all this keeps, each with its line and its test: `docs/rules.md`.

pub mod brake;
pub mod breaker;
pub mod due;
pub mod event;
pub mod gate;
pub mod headers;
pub mod lane;
pub mod offsets;
pub mod route;
pub mod rungs;
pub mod sequence;
