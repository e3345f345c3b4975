//! What may stop the stages of one pipeline: commands, its breaker, its brake; who may start how many events. Pure.
//!
//! A permit to start an event is granted at one moment and used at a later one, when the event is claimed. Each grant
//! is marked with the number of the trial that was the last to begin, so that the two can be told apart:
//!
//! Invariants
//! - A shut gate lets nothing start, neither what asks nor what was let through before it was shut.
//! - A trial (breaker or brake let single events through) is about what was granted since it began: only that may
//!   start, takes up its limit, and says something by its end. What ran before shows how the target was, not how it is.
//! - While only a few may run the stages take turns, so that one whose events always fail keeps none out.
//!
//! It knows stages by number and wakes nobody: `stage::gate` counts, locks, wakes and tells.

use std::time::Duration;

use super::brake::{self, Brake, BrakeChange, BrakeSettings, DeadLetter, Probe};
use super::breaker::{Answer, Breaker, BreakerChange, BreakerSettings};

/// Marks permits with the trial that was the last to begin when they were granted.
pub type Grant = u32;

/// Which of the two there are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutageSettings {
    /// Stops while the handler's target is down.
    pub breaker: Option<BreakerSettings>,
    /// Stops while too many events become dead letters.
    pub brake: Option<BrakeSettings>,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// So many may start, with this grant.
    Granted(usize, Grant),
    /// Not now; again when something changes, at the latest after this long.
    Shut(Option<Duration>),
}

/// What an event came to, as far as the brake is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Done.
    Done,
    /// It becomes a dead letter.
    Dead(DeadLetter),
    /// It is to be tried again.
    Retried,
}

/// What is to be told to people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Of the breaker.
    Breaker(BreakerChange),
    /// Of the brake.
    Brake(BrakeChange),
}

#[derive(Clone, Debug)]
struct Member {
    is_main: bool,
    is_judged: bool,
    commanded: bool,
    /// Dead letters without an execution: nothing could be read.
    unread: u64,
    /// Lanes that have a permit and wait.
    waiting: usize,
    last_turn: u64,
}

/// The state of one pipeline's gates in one process. Times are boot times.
#[derive(Clone, Debug)]
pub struct Gates {
    breaker: Option<Breaker>,
    brake: Option<Brake>,
    members: Vec<Member>,
    grant: Grant,
    /// Permits in use that were granted since the trial began.
    on_trial: usize,
    turns: u64,
}

impl Gates {
    /// All open, without members.
    pub fn new(settings: OutageSettings, now: Duration) -> Self {
        Self {
            breaker: settings.breaker.map(|breaker| Breaker::new(breaker, 0)),
            brake: settings.brake.map(|brake| Brake::new(brake, now, 0)),
            members: Vec::new(),
            grant: 0,
            on_trial: 0,
            turns: 0,
        }
    }

    /// Adds a stage with this many handlers at once; its number. `is_judged`: breaker and brake stop it and learn from
    /// it; not so the rung whose handler only looks at dead letters.
    pub fn join(&mut self, is_main: bool, is_judged: bool, concurrency: usize) -> usize {
        if let Some(breaker) = self.breaker.as_mut().filter(|_| is_judged) {
            breaker.add_concurrency(concurrency);
        }
        let (commanded, unread, waiting, last_turn) = (false, 0, 0, 0);
        self.members.push(Member { is_main, is_judged, commanded, unread, waiting, last_turn });
        self.members.len() - 1
    }

    /// Shuts a stage by command, or ends that.
    pub fn command(&mut self, member: usize, paused: bool) {
        self.members[member].commanded = paused;
    }

    /// Somebody says that all is well: the brake is released, and an open breaker tries at once. `executions` of a
    /// stage, ever.
    pub fn resume(&mut self, now: Duration, executions: impl Fn(usize) -> u64) -> Option<Change> {
        if let Some(breaker) = self.breaker.as_mut().filter(|breaker| breaker.opens_at().is_some()) {
            breaker.probe_now();
            self.begin_trial();
        }
        let entered = self.entered(executions);
        self.brake.as_mut().and_then(|brake| brake.release(now, entered)).map(Change::Brake)
    }

    /// How many of `count` events may start now; their permits are in use until [`Gates::returned`].
    pub fn ask(&mut self, now: Duration, member: usize, count: usize) -> Asked {
        if self.members[member].commanded {
            return Asked::Shut(None);
        }
        if !self.members[member].is_judged {
            return Asked::Granted(count, self.grant);
        }
        let opens_before = self.opens_at();
        let limits = [
            self.breaker.as_mut().and_then(|breaker| breaker.limit(now)),
            self.brake.as_mut().and_then(|brake| brake.limit(now)),
        ];
        let opens_at = self.opens_at();
        if opens_before != opens_at {
            self.begin_trial();
        }
        let Some(limit) = limits.into_iter().flatten().min() else { return Asked::Granted(count, self.grant) };
        let free = limit.saturating_sub(self.on_trial);
        let mine = &self.members[member];
        let others = self.members.iter().enumerate().filter(|(_, other)| !other.commanded);
        let mut others = others.filter(|(at, other)| *at != member && other.waiting > 0).peekable();
        let count = if others.peek().is_some() { 1 } else { count };
        let before_me = |(at, other): (usize, &Member)| (other.last_turn, at) < (mine.last_turn, member);
        if free == 0 || others.any(before_me) {
            return Asked::Shut(opens_at.into_iter().flatten().max().map(|at| at.saturating_sub(now)));
        }
        self.turns += 1;
        self.members[member].last_turn = self.turns;
        let granted = free.min(count);
        self.on_trial += granted;
        Asked::Granted(granted, self.grant)
    }

    /// When the cool-downs of the two end.
    fn opens_at(&self) -> [Option<Duration>; 2] {
        [self.breaker.as_ref().and_then(Breaker::opens_at), self.brake.as_ref().and_then(Brake::opens_at)]
    }

    fn begin_trial(&mut self) {
        self.grant = self.grant.wrapping_add(1);
        self.on_trial = 0;
    }

    /// Whether an event whose permit was granted with this may still start.
    pub fn may_start(&self, member: usize, grant: Grant) -> bool {
        let Member { commanded, is_judged, .. } = self.members[member];
        let is_shut = self.opens_at().into_iter().any(|at| at.is_some());
        !commanded && (!is_judged || !self.is_restricted() || (grant == self.grant && !is_shut))
    }

    /// So many permits of this grant are free again.
    pub fn returned(&mut self, count: usize, grant: Grant) {
        if grant == self.grant {
            self.on_trial = self.on_trial.saturating_sub(count);
        }
    }

    /// A lane of the stage has a permit and waits, or does so no more.
    pub fn waits(&mut self, member: usize, waits: bool) {
        let waiting = &mut self.members[member].waiting;
        *waiting = if waits { *waiting + 1 } else { waiting.saturating_sub(1) };
    }

    /// An event of a stage that is judged has come to an end. `execution`: what its permit was granted with, `None`: no
    /// handler saw it. `executions` of a stage, ever.
    pub fn concluded(
        &mut self,
        now: Duration,
        member: usize,
        execution: Option<Grant>,
        answer: Answer,
        end: End,
        executions: impl Fn(usize) -> u64,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let is_current = execution == Some(self.grant);
        if let Some(breaker) = self.breaker.as_mut().filter(|_| is_current) {
            changes.extend(breaker.concluded(now, member, answer).map(Change::Breaker));
        }
        self.members[member].unread += u64::from(execution.is_none() && matches!(end, End::Dead(_)));
        let has_main = self.members.iter().any(|member| member.is_main);
        let entered = self.entered(executions);
        if let Some(brake) = &mut self.brake {
            let change = match end {
                End::Dead(dead) if brake.is_released() && brake::counts(has_main, dead) => {
                    brake.dead_letter(now, entered)
                }
                _ if !is_current && execution.is_some() => None,
                // A tombstone that was skipped shows nothing; what cannot be read is what it may have stopped for.
                End::Done if execution.is_none() => None,
                End::Dead(_) => brake.probed(now, Probe::Dead, entered),
                End::Done => brake.probed(now, Probe::Done, entered),
                End::Retried => brake.probed(now, Probe::Retried, entered),
            };
            changes.extend(change.map(Change::Brake));
        }
        changes
    }

    /// Events that have entered, ever: executed on main or unreadable there. Without a main stage here: on any stage.
    fn entered(&self, executions: impl Fn(usize) -> u64) -> u64 {
        let has_main = self.members.iter().any(|member| member.is_main);
        let judged = self.members.iter().enumerate();
        let judged = judged.filter(|(_, member)| member.is_judged && (member.is_main || !has_main));
        judged.map(|(at, member)| executions(at) + member.unread).sum()
    }

    /// The mark of what is granted now.
    pub fn grant(&self) -> Grant {
        self.grant
    }

    /// Whether the breaker takes the target for down.
    pub fn is_broken(&self) -> bool {
        self.breaker.as_ref().is_some_and(Breaker::is_open)
    }

    /// Whether the brake has stopped the pipeline.
    pub fn is_braked(&self) -> bool {
        self.brake.as_ref().is_some_and(|brake| !brake.is_released())
    }

    /// Whether breaker or brake has something to say about the next start.
    pub fn is_restricted(&self) -> bool {
        self.is_braked() || self.breaker.as_ref().is_some_and(|breaker| !breaker.is_closed())
    }

    /// Whether a success would change nothing.
    pub fn is_calm(&self) -> bool {
        !self.is_braked() && self.breaker.as_ref().is_none_or(Breaker::is_calm)
    }

    /// Permits in use by events that are tried; 0 while nothing is restricted.
    pub fn on_trial(&self) -> usize {
        if self.is_restricted() { self.on_trial } else { 0 }
    }
}

#[cfg(test)]
mod tests;
