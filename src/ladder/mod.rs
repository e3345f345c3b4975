//! The policy of the ladder, pure: no I/O, no clock, no randomness, no tokio, no rdkafka.
//!
//! Reading order: [`event`] (the words), [`rungs`] (the ladder itself), [`headers`] (what travels with a record),
//! [`due`], [`route`] (what happens to an event next), [`offsets`] (what may be committed), [`lane`] (one
//! partition's events from receipt to offset done), [`sequence`] (order across the stages); when to stop instead: [`breaker`] (the target is down), [`brake`]
//! (too many dead letters), [`gate`] (what both and commands let start).

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
