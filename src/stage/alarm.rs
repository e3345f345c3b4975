//! Wakes a lane at a due time: tokio's timer ticks in milliseconds, half of what an event may be late.
//!
//! A timer of the kernel on the wall clock itself, one per lane. It fires at or after its time and never before, and
//! it fires at once when the wall clock is stepped, so that the lane looks again. Where the system has none (anything
//! but Linux, or no descriptor is left) the lane falls back on tokio's timer.

use std::io;

use crate::ladder::event::Timestamp;

#[cfg(target_os = "linux")]
pub use linux::Alarm;
#[cfg(not(target_os = "linux"))]
pub use none::Alarm;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::OwnedFd;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    use super::{Timestamp, io};

    /// An alarm on the wall clock.
    #[derive(Debug)]
    pub struct Alarm {
        timer: AsyncFd<OwnedFd>,
        set: Option<Timestamp>,
    }

    impl Alarm {
        /// An alarm that is not set.
        ///
        /// # Errors
        /// When the system has no descriptor for it.
        ///
        /// # Panics
        /// Outside a tokio runtime with I/O.
        #[allow(
            deprecated,
            reason = "its replacement is unsafe for types that do not own what they hold; OwnedFd does"
        )]
        pub fn new() -> io::Result<Self> {
            let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            Ok(Self { timer: AsyncFd::with_interest(timer, Interest::READABLE)?, set: None })
        }

        /// Sets it to `at`, or takes it back; whether it will ring then.
        pub fn set(&mut self, at: Option<Timestamp>) -> bool {
            if at == self.set {
                return true;
            }
            let time = at.unwrap_or_default();
            // Zero would take the alarm back.
            let micros = if at.is_some() { time.as_micros().max(1) } else { 0 };
            let (Ok(tv_sec), tv_nsec) = (i64::try_from(micros / 1_000_000), (micros % 1_000_000 * 1_000) as _) else {
                return false;
            };
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let spec = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec, tv_nsec } };
            let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
            let done = timerfd_settime(self.timer.get_ref(), flags, &spec).is_ok();
            self.set = at.filter(|_| done);
            done
        }

        /// Resolves when the time has come, or the clock was stepped. May be dropped and called again.
        pub async fn rang(&mut self) {
            loop {
                let Ok(mut ready) = self.timer.readable().await else { return std::future::pending().await };
                let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0; 8])?));
                // Anything but "not yet" is a ring: an error says that the clock was stepped.
                if read.is_ok() {
                    self.set = None;
                    return;
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use super::{Timestamp, io};

    /// There is no alarm on this system.
    #[derive(Debug)]
    pub struct Alarm(std::convert::Infallible);

    impl Alarm {
        /// None to be had.
        ///
        /// # Errors
        /// Always.
        pub fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// There is none.
        pub fn set(&mut self, _: Option<Timestamp>) -> bool {
            match self.0 {}
        }

        /// There is none.
        pub async fn rang(&mut self) {
            match self.0 {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stage::clock::{Clock, SystemClock};

    #[tokio::test]
    async fn it_rings_at_its_time_and_not_before() {
        let mut alarm = Alarm::new().unwrap();
        for ms in [3, 40, 0] {
            let at = SystemClock.now().wall + Duration::from_micros(ms * 1_000 + 7);
            assert!(alarm.set(Some(at)));
            alarm.rang().await;
            assert!(SystemClock.now().wall >= at);
        }
    }

    #[tokio::test]
    async fn a_later_time_and_none_replace_an_earlier_one() {
        let mut alarm = Alarm::new().unwrap();
        let now = SystemClock.now().wall;
        let (soon, later) = (now + Duration::from_millis(20), now + Duration::from_millis(80));
        assert!(alarm.set(Some(soon)) && alarm.set(Some(later)));
        alarm.rang().await;
        assert!(SystemClock.now().wall >= later);
        assert!(alarm.set(Some(SystemClock.now().wall + Duration::from_millis(20))) && alarm.set(None));
        let rang = tokio::time::timeout(Duration::from_millis(60), alarm.rang()).await;
        assert!(rang.is_err(), "it was taken back");
    }
}
