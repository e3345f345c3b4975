//! The only reader of the clocks.
//!
//! Due times are on the wall clock (other processes and people read them); leases are on a clock that never steps
//! and goes on during suspend (`CLOCK_BOOTTIME`; Rust's `Instant` stands still while the machine sleeps).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::alarm::Alarm;
pub use crate::ladder::event::Now;
use crate::ladder::event::Timestamp;

/// A source of [`Now`].
pub trait Clock: Send + Sync + 'static {
    /// Both clocks, read now.
    fn now(&self) -> Now;

    /// An alarm on the wall clock, more precise than tokio's timer; `None` where there is none.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    fn alarm(&self) -> Option<Alarm> {
        None
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Now {
            wall: Timestamp::from_micros(u64::try_from(wall.as_micros()).unwrap_or(u64::MAX)),
            boot: Duration::new(
                u64::try_from(boot.tv_sec).unwrap_or_default(),
                u32::try_from(boot.tv_nsec).unwrap_or_default(),
            ),
        }
    }

    fn alarm(&self) -> Option<Alarm> {
        Alarm::new().ok()
    }
}
