//! Where lanes ask before they start an event: open, shut, or open for a few.
//!
//! One [`Outage`] for each pipeline of a process holds its breaker and its brake; each stage has a [`Gate`] to it, which
//! a command may shut for that stage alone. What is judged is pure, in [`crate::ladder::breaker`] and
//! [`crate::ladder::brake`]; here permits in use are counted, the two are told what happened, lanes are woken, and it is
//! told to people.
//!
//! Invariants
//! - A shut gate stops starts and nothing else: what runs is renewed, published and settled, what waits stays where it
//!   is, and no attempt is charged to an event that has not run.
//! - Whoever waits at the gate is woken when it opens: it listens before it looks, and whoever changes what it looks at
//!   calls afterwards. Without a change nobody wakes, but for the end of a cool-down.
//! - While everything is well an event costs no lock here: a few atomics for each batch of permits, a load for each end.
//! - While only a few may run the stages take turns, so that one whose events always fail keeps none out.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::clock::Clock;
use super::stats::{PauseReason, StageStats};
use crate::ladder::brake::{self, Brake, BrakeChange, BrakeSettings, DeadLetter, Probe};
use crate::ladder::breaker::{Answer, Breaker, BreakerChange, BreakerSettings};
use crate::ladder::event::{FailureClass, Now, Outcome, Timestamp};

const PAUSED: &str = "paused by command; `pipeline resume` ends it";

/// Which of the two there are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutageSettings {
    /// Stops while the handler's target is down.
    pub breaker: Option<BreakerSettings>,
    /// Stops while too many events become dead letters.
    pub brake: Option<BrakeSettings>,
}

/// What stops the stages of one pipeline in this process.
pub struct Outage {
    pipeline: Arc<str>,
    clock: Arc<dyn Clock>,
    begun: Timestamp,
    /// Breaker or brake has something to say about the next start.
    restricted: AtomicBool,
    /// A success would change nothing.
    calm: AtomicBool,
    /// Permits in use, all stages together.
    running: AtomicUsize,
    /// Grows with each beginning of a probing.
    epoch: AtomicU32,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    breaker: Option<Breaker>,
    brake: Option<Brake>,
    /// At most so many permits are in use by events that were started before the probing began.
    old: usize,
    members: Vec<Member>,
    /// Stages that are paused by command, also such as do not run here.
    commands: HashMap<String, String>,
    turns: u64,
}

/// A stage.
struct Member {
    name: Arc<str>,
    is_main: bool,
    /// Breaker and brake are about it.
    is_judged: bool,
    stats: Arc<StageStats>,
    commanded: Arc<AtomicBool>,
    /// Dead letters without an execution: nothing could be read.
    unread: u64,
    /// Lanes that have a permit and wait.
    waiting: usize,
    last_turn: u64,
}

/// What came of asking.
enum Asked {
    Granted(usize),
    /// Not now; again when something changes, at the latest after this long.
    Shut(Option<Duration>),
}

/// What is to be told to people, once the lock is free.
enum Change {
    Breaker(BreakerChange),
    Brake(BrakeChange),
}

impl Outage {
    /// Nothing is stopped at first.
    pub fn new(pipeline: &Arc<str>, settings: OutageSettings, clock: Arc<dyn Clock>) -> Arc<Self> {
        let now = clock.now();
        Arc::new(Self {
            pipeline: Arc::clone(pipeline),
            begun: now.wall,
            restricted: AtomicBool::new(false),
            calm: AtomicBool::new(true),
            running: AtomicUsize::new(0),
            epoch: AtomicU32::new(0),
            inner: Mutex::new(Inner {
                breaker: settings.breaker.map(|breaker| Breaker::new(breaker, 0)),
                brake: settings.brake.map(|brake| Brake::new(brake, now.boot, 0)),
                old: 0,
                members: Vec::new(),
                commands: HashMap::new(),
                turns: 0,
            }),
            changed: Notify::new(),
            clock,
        })
    }

    /// The gate of a stage with this many handlers at once. `is_judged`: breaker and brake stop it and learn from it;
    /// not so the rung whose handler only looks at dead letters.
    pub fn gate(
        self: &Arc<Self>,
        name: &Arc<str>,
        is_main: bool,
        is_judged: bool,
        concurrency: usize,
        stats: &Arc<StageStats>,
    ) -> Gate {
        let mut inner = self.lock();
        let commanded = Arc::new(AtomicBool::new(inner.commands.contains_key(&**name)));
        stats.pauses.set(PauseReason::Command, commanded.load(Ordering::Relaxed));
        if let Some(why) = inner.commands.get(&**name) {
            tracing::warn!(pipeline = &*self.pipeline, stage = &**name, why, "{PAUSED}");
        }
        if let Some(breaker) = inner.breaker.as_mut().filter(|_| is_judged) {
            breaker.add_concurrency(concurrency);
        }
        inner.members.push(Member {
            name: Arc::clone(name),
            is_main,
            is_judged,
            stats: Arc::clone(stats),
            commanded: Arc::clone(&commanded),
            unread: 0,
            waiting: 0,
            last_turn: 0,
        });
        Gate { outage: Arc::clone(self), member: inner.members.len() - 1, is_judged, commanded }
    }

    /// Pauses a stage by command (`Some`: by whom and why) or lets it go on. A resume also lets a brake go, and an open
    /// breaker probe at once.
    pub fn command(&self, stage: &str, paused: Option<&str>) {
        let mut changes = Vec::new();
        let mut inner = self.lock();
        let before = match paused {
            Some(why) => inner.commands.insert(stage.to_owned(), why.to_owned()),
            None => inner.commands.remove(stage),
        };
        let members = inner.members.iter().filter(|member| *member.name == *stage);
        let runs_here = members
            .map(|member| {
                member.commanded.store(paused.is_some(), Ordering::SeqCst);
                member.stats.pauses.set(PauseReason::Command, paused.is_some());
            })
            .count()
            > 0;
        if paused.is_none() {
            let now = self.clock.now();
            let entered = inner.entered();
            let released = inner.brake.as_mut().and_then(|brake| brake.release(now.boot, entered));
            changes.extend(released.map(Change::Brake));
            if inner.breaker.as_ref().is_some_and(|breaker| breaker.opens_at().is_some()) {
                inner.breaker.iter_mut().for_each(Breaker::probe_now);
                self.begin_probing(&mut inner);
            }
            self.settle(&inner);
        }
        drop(inner);
        self.changed.notify_waiters();
        if runs_here {
            match (before.is_some(), paused) {
                (false, Some(why)) => {
                    tracing::warn!(pipeline = &*self.pipeline, stage, why, "{PAUSED}");
                }
                (true, None) => tracing::info!(pipeline = &*self.pipeline, stage, "resumed by command"),
                _ => {}
            }
        }
        self.tell(changes);
    }

    /// Permits in use, all stages together.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Results of what runs now say nothing about what is tried from now on.
    fn begin_probing(&self, inner: &mut Inner) {
        inner.old = self.running.load(Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Shows what the two say now.
    fn settle(&self, inner: &Inner) {
        let open = inner.breaker.as_ref().is_some_and(Breaker::is_open);
        let stopped = inner.brake.as_ref().is_some_and(|brake| !brake.is_released());
        for member in inner.members.iter().filter(|member| member.is_judged) {
            member.stats.pauses.set(PauseReason::Breaker, open);
            member.stats.pauses.set(PauseReason::Brake, stopped);
        }
        let closed = inner.breaker.as_ref().is_none_or(Breaker::is_closed);
        self.calm.store(!stopped && inner.breaker.as_ref().is_none_or(Breaker::is_calm), Ordering::SeqCst);
        self.restricted.store(stopped || !closed, Ordering::SeqCst);
    }

    fn ask(&self, member: usize, count: usize) -> Asked {
        let mut inner = self.lock();
        let now = self.clock.now().boot;
        let inner = &mut *inner;
        let opens = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let (breaker, brake) = (&mut inner.breaker, &mut inner.brake);
        let begins =
            opens(breaker.as_ref().and_then(Breaker::opens_at)) || opens(brake.as_ref().and_then(Brake::opens_at));
        let limits = [breaker.as_mut().and_then(|b| b.limit(now)), brake.as_mut().and_then(|b| b.limit(now))];
        let at = breaker.as_ref().and_then(Breaker::opens_at).max(brake.as_ref().and_then(Brake::opens_at));
        if begins {
            self.begin_probing(inner);
        }
        let running = self.running.load(Ordering::SeqCst);
        let granted = match limits.into_iter().flatten().min() {
            None => count,
            Some(limit) => {
                inner.old = inner.old.min(running);
                let free = limit.saturating_sub(running - inner.old);
                let mine = &inner.members[member];
                let others =
                    inner.members.iter().enumerate().filter(|(_, other)| !other.commanded.load(Ordering::SeqCst));
                let mut others = others.filter(|(at, other)| *at != member && other.waiting > 0).peekable();
                let count = if others.peek().is_some() { 1 } else { count };
                let before_me = |(at, other): (usize, &Member)| (other.last_turn, at) < (mine.last_turn, member);
                if free == 0 || others.any(before_me) {
                    return Asked::Shut(at.map(|at| at.saturating_sub(now)));
                }
                inner.turns += 1;
                inner.members[member].last_turn = inner.turns;
                free.min(count)
            }
        };
        self.running.fetch_add(granted, Ordering::SeqCst);
        Asked::Granted(granted)
    }

    fn concluded(&self, member: usize, now: Now, execution: Option<u32>, answer: Answer, end: End) {
        let mut changes = Vec::new();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let is_current = execution == Some(self.epoch.load(Ordering::SeqCst));
        if execution.is_some() && !is_current {
            inner.old = inner.old.saturating_sub(1);
        }
        if let Some(breaker) = inner.breaker.as_mut().filter(|_| is_current) {
            changes.extend(breaker.concluded(now.boot, member, answer).map(Change::Breaker));
        }
        inner.members[member].unread += u64::from(execution.is_none() && matches!(end, End::Dead(_)));
        let has_main = inner.members.iter().any(|member| member.is_main);
        let entered = inner.entered();
        if let Some(brake) = &mut inner.brake {
            let change = match end {
                End::Dead(dead) if brake.is_released() && brake::counts(has_main, dead) => {
                    brake.dead_letter(now.boot, entered)
                }
                _ if !is_current && execution.is_some() => None,
                // A tombstone that was skipped shows nothing; what cannot be read is what it may have stopped for.
                End::Done if execution.is_none() => None,
                End::Dead(_) => brake.probed(now.boot, Probe::Dead, entered),
                End::Done => brake.probed(now.boot, Probe::Done, entered),
                End::Retried => brake.probed(now.boot, Probe::Retried, entered),
            };
            changes.extend(change.map(Change::Brake));
        }
        self.settle(inner);
        // The limit may have risen with a mere success, too.
        if self.restricted.load(Ordering::SeqCst) || !changes.is_empty() {
            self.changed.notify_waiters();
        }
        self.tell(changes);
    }

    fn tell(&self, changes: Vec<Change>) {
        let pipeline = &*self.pipeline;
        for change in changes {
            match change {
                Change::Breaker(BreakerChange::Opened { failures, over, cool_down }) => tracing::warn!(
                    pipeline,
                    failures,
                    ?over,
                    ?cool_down,
                    "paused: the handler's target seems down, only transient failures and no success; \
                     after the cool-down single events probe it"
                ),
                Change::Breaker(BreakerChange::ProbeFailed { cool_down }) => {
                    tracing::debug!(pipeline, ?cool_down, "the handler's target is still down");
                }
                Change::Breaker(BreakerChange::Ramping) => {
                    tracing::info!(pipeline, "the handler's target answers again; starting events, few at first");
                }
                Change::Breaker(BreakerChange::Closed) => {
                    tracing::debug!(pipeline, "events start in full number again");
                }
                // A person must look: nothing in it gets better by waiting.
                Change::Brake(BrakeChange::Stopped { dead, entered, cool_down }) => tracing::error!(
                    pipeline,
                    dead,
                    entered,
                    ?cool_down,
                    "paused: too many events become dead letters; after the cool-down a single event is tried, \
                     `pipeline resume` ends it at once"
                ),
                Change::Brake(BrakeChange::ProbeFailed { cool_down }) => {
                    tracing::debug!(pipeline, ?cool_down, "the event that was tried did not succeed");
                }
                Change::Brake(BrakeChange::Released) => tracing::info!(pipeline, "the brake is released"),
            }
        }
    }
}

impl Inner {
    /// Events that have entered, ever: executed on main or unreadable there. Without a main stage here: on any stage.
    fn entered(&self) -> u64 {
        let has_main = self.members.iter().any(|member| member.is_main);
        let judged = self.members.iter().filter(|member| member.is_judged && (member.is_main || !has_main));
        judged.map(|member| member.stats.executions.get() + member.unread).sum()
    }
}

/// What an event came to, as far as the brake is concerned.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Done,
    Dead(DeadLetter),
    Retried,
}

/// A stage's way to what may stop it.
#[derive(Clone)]
pub struct Gate {
    outage: Arc<Outage>,
    member: usize,
    is_judged: bool,
    commanded: Arc<AtomicBool>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("pipeline", &self.outage.pipeline).field("member", &self.member).finish()
    }
}

impl Gate {
    /// A gate that nothing shuts but a command.
    pub fn open(name: &Arc<str>, clock: &Arc<dyn Clock>, stats: &Arc<StageStats>) -> Self {
        Outage::new(name, OutageSettings::default(), Arc::clone(clock)).gate(name, true, true, 0, stats)
    }

    /// What it leads to.
    pub fn outage(&self) -> &Arc<Outage> {
        &self.outage
    }

    /// How many of `count` events may start now. They count as running until [`Gate::returned`].
    pub(super) fn take(&self, count: usize) -> usize {
        match self.ask(count) {
            Asked::Granted(count) => count,
            Asked::Shut(_) => 0,
        }
    }

    fn ask(&self, count: usize) -> Asked {
        if self.commanded.load(Ordering::SeqCst) {
            return Asked::Shut(None);
        }
        if !self.is_judged {
            return Asked::Granted(count);
        }
        if !self.outage.restricted.load(Ordering::SeqCst) {
            self.outage.running.fetch_add(count, Ordering::SeqCst);
            return Asked::Granted(count);
        }
        self.outage.ask(self.member, count)
    }

    /// So many events that were let through run no more.
    pub(super) fn returned(&self, count: usize) {
        if self.is_judged && count > 0 {
            self.outage.running.fetch_sub(count, Ordering::SeqCst);
            if self.outage.restricted.load(Ordering::SeqCst) {
                self.outage.changed.notify_waiters();
            }
        }
    }

    /// Waits until one event may start.
    pub(super) async fn pass(&self) {
        let mut waiting = None;
        loop {
            let mut changed = pin!(self.outage.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let again = match self.ask(1) {
                Asked::Granted(_) => return,
                Asked::Shut(again) => again,
            };
            if waiting.is_none() && self.is_judged {
                // Whose turn it is depends on who waits: look again as one of them.
                waiting = Some(Waiting::new(self));
                continue;
            }
            let cool_down = async {
                match again {
                    Some(time) => tokio::time::sleep(time).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = cool_down => {}
            }
        }
    }

    /// Marks an execution that begins now.
    pub(super) fn epoch(&self) -> u32 {
        self.outage.epoch.load(Ordering::Relaxed)
    }

    /// Whether its end has to be told, and what it says of the target.
    pub(super) fn heeds(&self, outcome: &Outcome) -> Option<Answer> {
        if !self.is_judged {
            return None;
        }
        match outcome {
            Outcome::Done | Outcome::Fenced if self.outage.calm.load(Ordering::Relaxed) => None,
            Outcome::Failed(failure) if failure.class == FailureClass::Transient => {
                Some(Answer::Failed(failure.retry_after))
            }
            _ => Some(Answer::Up),
        }
    }

    /// An event has come to an end here. `execution`: as marked when it began, `None`: no handler saw it.
    pub(super) fn concluded(&self, now: Now, execution: Option<u32>, answer: Answer, end: End) {
        self.outage.concluded(self.member, now, execution, answer, end);
    }

    /// When this process began to count.
    pub(super) fn begun(&self) -> Timestamp {
        self.outage.begun
    }
}

/// A lane that has a permit and waits.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.outage.lock().members[gate.member].waiting += 1;
        Self(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.outage.lock().members[self.0.member].waiting -= 1;
        // It may have been its turn.
        self.0.outage.changed.notify_waiters();
    }
}
