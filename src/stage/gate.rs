//! Where lanes ask before they start an event: open, shut, or open for a few.
//!
//! One [`Outage`] for each pipeline of a process holds its breaker and its brake; each stage has a [`Gate`] to it, which
//! a command may shut for that stage alone. What is judged is pure, in [`crate::ladder::gate`]; here it is locked, lanes
//! are woken, and it is told to people.
//!
//! Invariants
//! - A shut gate stops starts and nothing else: what runs is renewed, published and settled, what waits stays where it
//!   is, what is claimed and not started is given back, and no attempt is charged to an event that has not run.
//! - Whoever waits at the gate is woken when it opens: it listens before it looks, and whoever changes what it looks at
//!   calls afterwards. Without a change nobody wakes, but for the end of a cool-down.
//! - While everything is well an event costs no lock here: a few atomics for each batch of permits, a load or two for
//!   each start and end.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::clock::Clock;
use super::stats::{PauseReason, StageStats};
use crate::ladder::brake::BrakeChange;
use crate::ladder::breaker::{Answer, BreakerChange};
use crate::ladder::event::{Now, Outcome, Timestamp};
use crate::ladder::gate::{Asked, Change, End, Gates, Grant, OutageSettings};

const PAUSED: &str = "paused by command; `pipeline resume` ends it";

/// What stops the stages of one pipeline in this process.
pub struct Outage {
    pipeline: Arc<str>,
    clock: Arc<dyn Clock>,
    begun: Timestamp,
    /// Breaker or brake has something to say about the next start.
    restricted: AtomicBool,
    /// A success would change nothing.
    calm: AtomicBool,
    /// The mark of what is granted now.
    grant: AtomicU32,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    gates: Gates,
    members: Vec<Member>,
    /// Stages that are paused by command, also such as do not run here.
    commands: HashMap<String, String>,
}

/// A stage, by its number in `gates`.
struct Member {
    name: Arc<str>,
    is_judged: bool,
    stats: Arc<StageStats>,
    commanded: Arc<AtomicBool>,
}

impl Outage {
    /// Nothing is stopped at first.
    pub fn new(pipeline: &Arc<str>, settings: OutageSettings, clock: Arc<dyn Clock>) -> Arc<Self> {
        let now = clock.now();
        let gates = Gates::new(settings, now.boot);
        Arc::new(Self {
            pipeline: Arc::clone(pipeline),
            begun: now.wall,
            restricted: AtomicBool::new(false),
            calm: AtomicBool::new(true),
            grant: AtomicU32::new(gates.grant()),
            inner: Mutex::new(Inner { gates, members: Vec::new(), commands: HashMap::new() }),
            changed: Notify::new(),
            clock,
        })
    }

    /// The gate of a stage with this many handlers at once; `is_judged` as in [`Gates::join`].
    pub fn gate(
        self: &Arc<Self>,
        name: &Arc<str>,
        is_main: bool,
        is_judged: bool,
        concurrency: usize,
        stats: &Arc<StageStats>,
    ) -> Gate {
        let mut inner = self.lock();
        let why = inner.commands.get(&**name).cloned();
        let member = inner.gates.join(is_main, is_judged, concurrency);
        inner.gates.command(member, why.is_some());
        stats.pauses.set(PauseReason::Command, why.is_some());
        let commanded = Arc::new(AtomicBool::new(why.is_some()));
        if let Some(why) = why {
            tracing::warn!(pipeline = &*self.pipeline, stage = &**name, why, "{PAUSED}");
        }
        let stats = Arc::clone(stats);
        inner.members.push(Member { name: Arc::clone(name), is_judged, stats, commanded: Arc::clone(&commanded) });
        Gate { outage: Arc::clone(self), member, is_judged, commanded }
    }

    /// Pauses a stage by command (`Some`: by whom and why) or lets it go on. A resume also lets a brake go, and an open
    /// breaker probe at once.
    pub fn command(&self, stage: &str, paused: Option<&str>) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let before = match paused {
            Some(why) => inner.commands.insert(stage.to_owned(), why.to_owned()),
            None => inner.commands.remove(stage),
        };
        let mut runs_here = false;
        for (at, member) in inner.members.iter().enumerate().filter(|(_, member)| *member.name == *stage) {
            runs_here = true;
            inner.gates.command(at, paused.is_some());
            member.commanded.store(paused.is_some(), Ordering::SeqCst);
            member.stats.pauses.set(PauseReason::Command, paused.is_some());
        }
        let mut change = None;
        if paused.is_none() {
            let now = self.clock.now().boot;
            change = inner.gates.resume(now, |member| inner.members[member].stats.executions.get());
            self.show(inner);
        }
        drop(guard);
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
        self.tell(change);
    }

    /// Permits in use by events that are tried.
    #[cfg(test)]
    pub(super) fn on_trial(&self) -> usize {
        self.lock().gates.on_trial()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what the two say now.
    fn show(&self, inner: &Inner) {
        let gates = &inner.gates;
        for member in inner.members.iter().filter(|member| member.is_judged) {
            member.stats.pauses.set(PauseReason::Breaker, gates.is_broken());
            member.stats.pauses.set(PauseReason::Brake, gates.is_braked());
        }
        self.grant.store(gates.grant(), Ordering::SeqCst);
        self.calm.store(gates.is_calm(), Ordering::SeqCst);
        self.restricted.store(gates.is_restricted(), Ordering::SeqCst);
    }

    fn concluded(&self, member: usize, now: Now, execution: Option<Grant>, answer: Answer, end: End) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let executions = |member: usize| inner.members[member].stats.executions.get();
        let changes = inner.gates.concluded(now.boot, member, execution, answer, end, executions);
        self.show(inner);
        drop(guard);
        // The limit may have risen with a mere success, too.
        if self.restricted.load(Ordering::SeqCst) || !changes.is_empty() {
            self.changed.notify_waiters();
        }
        self.tell(changes);
    }

    fn tell(&self, changes: impl IntoIterator<Item = Change>) {
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

    /// How many of `count` events may start now. Their permits are in use until [`Gate::returned`].
    pub(super) fn take(&self, count: usize) -> (usize, Grant) {
        match self.ask(count) {
            Asked::Granted(count, grant) => (count, grant),
            Asked::Shut(_) => (0, 0),
        }
    }

    fn ask(&self, count: usize) -> Asked {
        // Before the others: a trial that begins now is not about what is granted here.
        let grant = self.outage.grant.load(Ordering::SeqCst);
        if self.commanded.load(Ordering::SeqCst) {
            return Asked::Shut(None);
        }
        if !self.is_judged || !self.outage.restricted.load(Ordering::SeqCst) {
            return Asked::Granted(count, grant);
        }
        let now = self.outage.clock.now().boot;
        let mut inner = self.outage.lock();
        let asked = inner.gates.ask(now, self.member, count);
        self.outage.grant.store(inner.gates.grant(), Ordering::SeqCst);
        asked
    }

    /// Whether an event that was let through may still start, now that it is claimed.
    pub(super) fn may_start(&self, grant: Grant) -> bool {
        let restricted = self.is_judged && self.outage.restricted.load(Ordering::SeqCst);
        !self.commanded.load(Ordering::SeqCst)
            && (!restricted || self.outage.lock().gates.may_start(self.member, grant))
    }

    /// So many permits of this grant are free again.
    pub(super) fn returned(&self, count: usize, grant: Grant) {
        if count > 0 && self.is_judged && self.outage.restricted.load(Ordering::SeqCst) {
            self.outage.lock().gates.returned(count, grant);
            self.outage.changed.notify_waiters();
        }
    }

    /// Waits until one event may start; with which grant.
    pub(super) async fn pass(&self) -> Grant {
        let mut waiting = None;
        loop {
            let mut changed = pin!(self.outage.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let again = match self.ask(1) {
                Asked::Granted(_, grant) => return grant,
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

    /// Whether the end of an execution has to be told, and what it says of the target.
    pub(super) fn heeds(&self, outcome: &Outcome) -> Option<Answer> {
        if !self.is_judged {
            return None;
        }
        match Answer::of(outcome) {
            Answer::Up if !matches!(outcome, Outcome::Failed(_)) && self.outage.calm.load(Ordering::Relaxed) => None,
            answer => Some(answer),
        }
    }

    /// An event has come to an end here. `execution`: what its permit was granted with, `None`: no handler saw it.
    pub(super) fn concluded(&self, now: Now, execution: Option<Grant>, answer: Answer, end: End) {
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
        gate.outage.lock().gates.waits(gate.member, true);
        Self(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.outage.lock().gates.waits(self.0.member, false);
        // It may have been its turn.
        self.0.outage.changed.notify_waiters();
    }
}
