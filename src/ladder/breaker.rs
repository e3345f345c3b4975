//! Whether a handler's target is taken for down: a circuit breaker, pure.
//!
//! ```text
//!            long enough a run of transient failures, no success between
//!   Closed ────────────────────────────────────────────────────────────▶ Open ◀──────────┐
//!     ▲                                                    the cool-down is over │        │ the probe fails: a longer
//!     │                                                                          ▼        │ cool-down
//!     └── the limit is the full concurrency ── Ramping ◀── the probe succeeds ── Probing ─┘
//!                                                 └── a run of failures, on all stages ──▶ Open
//! ```
//! Invariants
//! - Only a run without a single success opens it: a few bad events among good ones never do, however often they fail.
//! - While it is open nothing may start; while it probes one event may run; while it ramps up, one more for each success.
//! - A stage whose events always fail does not end the ramp of others: a stage whose last event succeeded vetoes it, until
//!   a run without any success is long enough to open a closed breaker.
//! - Any answer of the target that is no transient failure is a success: a 4xx shows that it is up.
//!
//! It counts nobody's permits and knows stages by number only. Results of executions that began before the probing did are not
//! told to it (`ladder::gate` keeps them apart), because they say how the target was, not how it is.

use std::time::Duration;

use super::event::{FailureClass, Outcome};

/// A ramp that met no run of failures for this long is over, at whatever limit: at a low rate of events it would
/// otherwise take hours to be told apart from a healthy target.
const LONGEST_RAMP: Duration = Duration::from_secs(10);
/// A run of at least this many failures ends a ramp, be its limit lower: even a healthy handler fails now and then.
const LEAST_RUN: u32 = 3;

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// This many transient failures in a row…
    pub consecutive_failures: u32,
    /// …over at least this long.
    pub min_time: Duration,
    /// Where events are rare, this many are enough…
    pub slow_failures: u32,
    /// …over at least this long.
    pub slow_time: Duration,
    /// How long it stays open at first; doubled for each probe that fails.
    pub cool_down: Duration,
    /// At most.
    pub max_cool_down: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 50,
            min_time: Duration::from_secs(1),
            slow_failures: 10,
            slow_time: Duration::from_secs(30),
            cool_down: Duration::from_secs(1),
            max_cool_down: Duration::from_secs(30),
        }
    }
}

/// What an execution says about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is up: done, or refused for good.
    Up,
    /// A transient failure; the target may have asked not to be called again before this much time has passed.
    Failed(Option<Duration>),
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// It opened.
    Opened {
        /// Transient failures in a row that opened it.
        failures: u32,
        /// From the first of them to the last.
        over: Duration,
        /// Nothing starts for this long.
        cool_down: Duration,
    },
    /// The probe failed.
    ProbeFailed {
        /// Nothing starts for this long.
        cool_down: Duration,
    },
    /// The probe succeeded: events start again, few at first.
    Ramping,
    /// As before the outage.
    Closed,
}

impl Answer {
    /// What an outcome says.
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Failed(failure) if failure.class == FailureClass::Transient => Answer::Failed(failure.retry_after),
            _ => Answer::Up,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Duration },
    Probing,
    Ramping { limit: usize, since: Duration },
}

/// One handler's breaker. Times are boot times.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    full: usize,
    state: State,
    /// Transient failures since the last success.
    run: u32,
    run_since: Duration,
    /// Stages whose last answer since the probing began was a success, one bit each.
    up: u64,
    /// The last cool-down; it grows.
    cool_down: Duration,
    closed_at: Option<Duration>,
}

impl Breaker {
    /// A closed one; `full` is the limit at which a ramp is over: all handlers that may run.
    pub fn new(settings: BreakerSettings, full: usize) -> Self {
        Self {
            settings,
            full,
            state: State::Closed,
            run: 0,
            run_since: Duration::ZERO,
            up: 0,
            cool_down: settings.cool_down,
            closed_at: None,
        }
    }

    /// Raises the limit at which a ramp is over.
    pub fn add_concurrency(&mut self, more: usize) {
        self.full = self.full.saturating_add(more);
    }

    /// How many events may run, `None`: any number. Begins to probe when the cool-down is over.
    pub fn limit(&mut self, now: Duration) -> Option<usize> {
        if matches!(self.state, State::Open { until } if until <= now) {
            self.probe_now();
        }
        match self.state {
            State::Closed => None,
            State::Open { .. } => Some(0),
            State::Probing => Some(1),
            State::Ramping { limit, .. } => Some(limit),
        }
    }

    /// When the limit will rise by itself.
    pub fn opens_at(&self) -> Option<Duration> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Ends the cool-down, where there is one: somebody says that the target is back.
    pub fn probe_now(&mut self) {
        if matches!(self.state, State::Open { .. }) {
            self.state = State::Probing;
            self.up = 0;
        }
    }

    /// Whether a success would change nothing.
    pub fn is_calm(&self) -> bool {
        self.state == State::Closed && self.run == 0
    }

    /// Whether events may run in any number.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether the target is taken for down: open or probing.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Probing)
    }

    /// Takes what an execution of a stage says. Not for those that began before the probing did.
    pub fn concluded(&mut self, now: Duration, stage: usize, answer: Answer) -> Option<BreakerChange> {
        let stage = 1 << (stage % 64);
        match answer {
            Answer::Up => self.up |= stage,
            Answer::Failed(_) => self.up &= !stage,
        }
        match (self.state, answer) {
            // Of those that ran when it opened: everybody knows by now.
            (State::Open { .. }, _) => None,
            (State::Closed, Answer::Up) => {
                self.run = 0;
                None
            }
            (State::Probing, Answer::Up) => {
                self.state = State::Ramping { limit: 2, since: now };
                Some(BreakerChange::Ramping)
            }
            (State::Ramping { limit, since }, Answer::Up) => {
                self.run = 0;
                let limit = limit.saturating_add(1);
                if limit < self.full && now.saturating_sub(since) < LONGEST_RAMP {
                    self.state = State::Ramping { limit, since };
                    return None;
                }
                self.state = State::Closed;
                self.closed_at = Some(now);
                Some(BreakerChange::Closed)
            }
            (State::Probing, Answer::Failed(wish)) => {
                let cool_down = self.open(now, self.longer(), wish);
                Some(BreakerChange::ProbeFailed { cool_down })
            }
            (State::Closed, Answer::Failed(wish)) => {
                self.count(now);
                let over = now.saturating_sub(self.run_since);
                if !self.trips(over) {
                    return None;
                }
                // Down again so soon after it came back: as if the probe had failed.
                let relapse = self.closed_at.is_some_and(|at| now.saturating_sub(at) < self.cool_down * 2);
                let cool_down = if relapse { self.longer() } else { self.settings.cool_down };
                Some(self.opened(now, over, cool_down, wish))
            }
            (State::Ramping { limit, .. }, Answer::Failed(wish)) => {
                self.count(now);
                let over = now.saturating_sub(self.run_since);
                let limit = u32::try_from(limit).unwrap_or(u32::MAX).max(LEAST_RUN);
                let all_fail = self.up == 0 && self.run >= limit.min(self.settings.consecutive_failures);
                // The veto of a stage that has been idle since its success must not outlast what would open a closed one.
                if !all_fail && !self.trips(over) {
                    return None;
                }
                Some(self.opened(now, over, self.longer(), wish))
            }
        }
    }

    /// Whether the failures since the last success, which took this long, are enough to open a closed one.
    fn trips(&self, over: Duration) -> bool {
        let s = &self.settings;
        (self.run >= s.consecutive_failures && over >= s.min_time)
            || (self.run >= s.slow_failures && over >= s.slow_time)
    }

    fn count(&mut self, now: Duration) {
        if self.run == 0 {
            self.run_since = now;
        }
        self.run = self.run.saturating_add(1);
    }

    fn longer(&self) -> Duration {
        self.cool_down.saturating_mul(2).min(self.settings.max_cool_down)
    }

    fn opened(&mut self, now: Duration, over: Duration, cool_down: Duration, wish: Option<Duration>) -> BreakerChange {
        let failures = self.run;
        let cool_down = self.open(now, cool_down, wish);
        BreakerChange::Opened { failures, over, cool_down }
    }

    /// The time for which it is open: at least as long as the target wishes, within the longest cool-down.
    fn open(&mut self, now: Duration, cool_down: Duration, wish: Option<Duration>) -> Duration {
        self.cool_down = cool_down;
        self.run = 0;
        let length = cool_down.max(wish.unwrap_or_default().min(self.settings.max_cool_down));
        self.state = State::Open { until: now + length };
        length
    }
}

#[cfg(test)]
mod tests;
