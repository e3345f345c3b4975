//! The shell around [`crate::ladder`]: an event's life, one file per step.
//!
//! [`ports`] are the narrow traits to the outside, [`record`] the bytes of one record, [`clock`] the only reader of
//! the clocks.

pub mod clock;
pub mod lanes;
pub mod ports;
pub mod record;
