//! Whether too many events end in the DLQ: a brake that stops a pipeline instead of emptying its topic into the DLQ.
//! Pure.
//!
//! What is judged: dead letters over events that entered, within a sliding window. Retries come later than entering,
//! so the window should be longer than the ladder. On the last rung alone most events fail again: it is no measure, and
//! [`counts`] says what of a process that runs only some stages may be compared with what.
//!
//! Invariants
//! - It judges nothing before `min_events` entered within the window.
//! - Released, it starts from an empty window.
//!
//! As for the breaker, results of executions that began before the probing are not told to it.

use std::collections::VecDeque;
use std::time::Duration;

use super::event::Reason;

/// Parts of the window: what has entered is forgotten part by part.
const PARTS: u32 = 60;

/// When it stops a pipeline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BrakeSettings {
    /// Dead letters / events that entered, at which it stops the pipeline.
    pub ratio: f64,
    /// Fewer events than this within the window are no measure.
    pub min_events: u64,
    /// The window.
    pub window: Duration,
    /// How long nothing starts before a single event is tried; doubled each time that it becomes a dead letter.
    pub cool_down: Duration,
    /// At most.
    pub max_cool_down: Duration,
}

impl Default for BrakeSettings {
    fn default() -> Self {
        Self {
            ratio: 0.5,
            min_events: 100,
            window: Duration::from_secs(10 * 60),
            cool_down: Duration::from_secs(5 * 60),
            max_cool_down: Duration::from_secs(60 * 60),
        }
    }
}

/// A dead letter, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why it is one.
    pub reason: Reason,
    /// It failed on main.
    pub on_main: bool,
    /// Its event was written after this process began to count, so that its entering was counted, too.
    pub is_recent: bool,
    /// It was redriven from the DLQ, so that it did not enter by main. Redrives watch over themselves.
    pub redriven: bool,
}

/// Whether a dead letter is to be compared with what entered: in a process with the main stage all whose entering it
/// counted; in one without main, where all that is known is what was tried, only those that say something about more
/// than their own event.
pub fn counts(has_main: bool, dead: DeadLetter) -> bool {
    if dead.redriven {
        false
    } else if has_main {
        dead.on_main || dead.is_recent
    } else {
        matches!(dead.reason, Reason::Permanent | Reason::Poison)
    }
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BrakeChange {
    /// It stopped the pipeline.
    Stopped {
        /// Dead letters within the window.
        dead: u64,
        /// Events that entered within it.
        entered: u64,
        /// Nothing starts for this long.
        cool_down: Duration,
    },
    /// The event that was tried did not succeed.
    ProbeFailed {
        /// Nothing starts for this long.
        cool_down: Duration,
    },
    /// The pipeline goes on.
    Released,
}

/// How the event that was tried ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It succeeded.
    Done,
    /// It became a dead letter.
    Dead,
    /// It is to be retried: says nothing.
    Retried,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Released,
    Stopped { until: Duration },
    Probing,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    begun: Duration,
    entered: u64,
    dead: u64,
}

/// One pipeline's brake in one process. Times are boot times.
#[derive(Clone, Debug)]
pub struct Brake {
    settings: BrakeSettings,
    state: State,
    cool_down: Duration,
    parts: VecDeque<Part>,
    /// How many had entered when it was last told, and when that was.
    told: (Duration, u64),
}

impl Brake {
    /// A released one that counts from now on; `entered` so far are not counted.
    pub fn new(settings: BrakeSettings, now: Duration, entered: u64) -> Self {
        let cool_down = settings.cool_down;
        Self { settings, state: State::Released, cool_down, parts: VecDeque::new(), told: (now, entered) }
    }

    /// How many events may run, `None`: any number. Begins to probe when the cool-down is over.
    pub fn limit(&mut self, now: Duration) -> Option<usize> {
        if matches!(self.state, State::Stopped { until } if until <= now) {
            self.state = State::Probing;
        }
        match self.state {
            State::Released => None,
            State::Stopped { .. } => Some(0),
            State::Probing => Some(1),
        }
    }

    /// When the limit will rise by itself.
    pub fn opens_at(&self) -> Option<Duration> {
        match self.state {
            State::Stopped { until } => Some(until),
            _ => None,
        }
    }

    /// Whether the pipeline goes on.
    pub fn is_released(&self) -> bool {
        self.state == State::Released
    }

    /// A dead letter that [`counts`]. `entered`: how many events have entered, ever.
    pub fn dead_letter(&mut self, now: Duration, entered: u64) -> Option<BrakeChange> {
        if !self.is_released() {
            return None;
        }
        self.entered(now, entered);
        if let Some(part) = self.parts.back_mut() {
            part.dead += 1;
        }
        let entered: u64 = self.parts.iter().map(|part| part.entered).sum();
        let dead: u64 = self.parts.iter().map(|part| part.dead).sum();
        if entered < self.settings.min_events || (dead as f64) < self.settings.ratio * entered as f64 {
            return None;
        }
        self.cool_down = self.settings.cool_down;
        self.state = State::Stopped { until: now + self.cool_down };
        Some(BrakeChange::Stopped { dead, entered, cool_down: self.cool_down })
    }

    /// How the event that was tried ended.
    pub fn probed(&mut self, now: Duration, probe: Probe, entered: u64) -> Option<BrakeChange> {
        if self.state != State::Probing {
            return None;
        }
        match probe {
            Probe::Done => return self.release(now, entered),
            Probe::Dead => self.cool_down = self.cool_down.saturating_mul(2).min(self.settings.max_cool_down),
            Probe::Retried => {}
        }
        self.state = State::Stopped { until: now + self.cool_down };
        Some(BrakeChange::ProbeFailed { cool_down: self.cool_down })
    }

    /// Lets the pipeline go on, whatever was counted.
    pub fn release(&mut self, now: Duration, entered: u64) -> Option<BrakeChange> {
        if self.is_released() {
            return None;
        }
        self.state = State::Released;
        self.parts.clear();
        self.told = (now, entered);
        Some(BrakeChange::Released)
    }

    /// Notes how many have entered. It is told only when there is a dead letter; what entered since it was told last
    /// is taken to have come evenly.
    fn entered(&mut self, now: Duration, entered: u64) {
        let length = (self.settings.window / PARTS).max(Duration::from_millis(1));
        let window = length * PARTS;
        let (since, before) = std::mem::replace(&mut self.told, (now, entered));
        let (gap, new) = (now.saturating_sub(since), entered.saturating_sub(before));
        // What came before the window began is left out.
        let covered = gap.min(window);
        let mut left = if gap.is_zero() { new } else { (new as f64 * covered.div_duration_f64(gap)).round() as u64 };
        let mut from = now - covered;
        loop {
            let into = u64::try_from(from.as_nanos() % length.as_nanos()).unwrap_or(u64::MAX);
            let begun = from.saturating_sub(Duration::from_nanos(into));
            if self.parts.back().is_none_or(|part| part.begun < begun) {
                self.parts.push_back(Part { begun, entered: 0, dead: 0 });
            }
            let end = (begun + length).min(now);
            let last = end >= now;
            let share = if last {
                left
            } else {
                let rest = (end - from).div_duration_f64(now - from);
                ((left as f64 * rest).round() as u64).min(left)
            };
            left -= share;
            if let Some(part) = self.parts.back_mut() {
                part.entered += share;
            }
            if last {
                break;
            }
            from = end;
        }
        while self.parts.front().is_some_and(|part| part.begun + window < now) {
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
