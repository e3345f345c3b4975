//! Permits and gates of a process, on virtual time: mirrors `stage::gate` (who waits, who is called) and the semaphore of
//! `stage::context`; what may start is decided by `ladder::gate`. What the gates say of themselves is noted in the
//! ledger, and starts are held against that.

use std::time::Duration;

use retry_ladder::ladder::brake::{BrakeChange, DeadLetter};
use retry_ladder::ladder::breaker::{Answer, BreakerChange};
use retry_ladder::ladder::event::{Action, Failure, Outcome, Timestamp};
use retry_ladder::ladder::gate::{Asked, Change, End, Gates, Grant};
use retry_ladder::ladder::lane::{Input, Verdict};

use super::broken::Broken;
use super::lane::SimLane;
use super::ledger::Invariant;
use super::queue::Event;
use super::world::{MS, ProcessId, Time, World};

/// Where a lane stands that wants to start an event.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Line {
    #[default]
    Nowhere,
    /// For a permit; it has one once it is no longer in its queue.
    Queued,
    /// With a permit, at the gate; told to others once it has been refused.
    AtGate { told: bool },
}

impl World {
    /// Gates of a process that starts: it has read all orders.
    pub(crate) fn new_gates(&self, now: Duration) -> Gates {
        let mut gates = Gates::new(self.guard, now);
        for rung in 0..self.ladder.dlq().index {
            gates.join(rung == 0, true, self.concurrency);
            gates.command(rung, self.paused.contains(&rung));
        }
        gates
    }

    /// A stage is paused or resumed; the order reaches every process.
    pub(crate) fn order(&mut self, rung: usize, paused: bool) {
        self.note(|| format!("order: rung {rung} {}", if paused { "is paused" } else { "goes on" }));
        match paused {
            true => self.paused.insert(rung),
            false => self.paused.remove(&rung),
        };
        if paused {
            let over = self.rng.u64(100..5_000) * MS;
            self.after(over, Event::Resume(rung));
        }
        for process in self.workers.clone() {
            let heard = self.rng.u64(1..2_000) * MS;
            self.after(heard, Event::Command(process, rung));
        }
    }

    /// `Outage::command`.
    pub(crate) fn obey(&mut self, process: ProcessId, rung: usize) {
        let paused = self.paused.contains(&rung);
        let now = self.clock(process).boot;
        let here = &mut self.processes[process];
        here.gates.command(rung, paused);
        self.ledger.fates[process].command(rung, paused);
        if !paused {
            let executions = here.executions.clone();
            let change = here.gates.resume(now, |rung| executions[rung]);
            self.ledger.fates[process].resumed(self.now);
            self.changed(process, change);
        }
        self.call(process);
    }

    /// Everybody at the gates looks again.
    fn call(&mut self, process: ProcessId) {
        let waiting: Vec<_> = (self.lanes.iter().flatten())
            .filter(|lane| lane.process == process && matches!(lane.line, Line::AtGate { .. }))
            .map(|lane| lane.id)
            .collect();
        let at_work = Some(self.at_work).filter(|id| self.places[*id] == process);
        for id in waiting.into_iter().chain(at_work) {
            self.after(0, Event::Pass(id));
        }
    }

    /// `Outage::concluded`: an execution, or an event that no handler saw, has come to an end.
    pub(crate) fn concluded(&mut self, lane: &SimLane, execution: Option<Grant>, answer: Answer, end: End) {
        if self.broken == Some(Broken::SuccessUntold) && answer == Answer::Up {
            return;
        }
        let now = self.clock(lane.process).boot;
        let here = &mut self.processes[lane.process];
        let executions = here.executions.clone();
        let changes = here.gates.concluded(now, lane.rung, execution, answer, end, |rung| executions[rung]);
        let calls = here.gates.is_restricted() || !changes.is_empty();
        self.changed(lane.process, changes);
        if calls {
            self.call(lane.process);
        }
    }

    fn changed(&mut self, process: ProcessId, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.note(|| format!("process {process}: {change:?}"));
            let until = |cool_down: Duration| Some(self.now + cool_down.as_micros() as Time);
            let executions = self.ledger.executions.len();
            let fate = &mut self.ledger.fates[process];
            match change {
                Change::Breaker(BreakerChange::Opened { cool_down, .. } | BreakerChange::ProbeFailed { cool_down }) => {
                    self.ledger.counts.openings += 1;
                    fate.shut(0, until(cool_down), executions);
                }
                Change::Breaker(BreakerChange::Ramping | BreakerChange::Closed) => fate.shut(0, None, executions),
                Change::Brake(BrakeChange::Stopped { cool_down, .. } | BrakeChange::ProbeFailed { cool_down }) => {
                    self.ledger.counts.stops += 1;
                    fate.shut(1, until(cool_down), executions);
                }
                Change::Brake(BrakeChange::Released) => fate.shut(1, None, executions),
            }
        }
    }

    /// The execution of an event shows that the target is up: with enough of them the breaker has to be closed.
    pub(crate) fn check_reopened(&mut self, process: ProcessId, execution: usize, answer: Answer) {
        let gates = &self.processes[process].gates;
        let open = gates.is_restricted() && !gates.is_braked();
        let fate = &mut self.ledger.fates[process];
        fate.answered(execution, answer == Answer::Up);
        let full = self.concurrency * self.ladder.dlq().index;
        if open && fate.successes > full + 2 {
            let what = format!("the breaker of process {process} is open after {} successes", fate.successes);
            self.ledger.fail(self.now, Invariant::Reopens, what);
        }
    }

    /// Permits of a stage come free: to those who wait, in turn.
    pub(crate) fn release_permits(&mut self, process: ProcessId, rung: usize, count: usize) {
        for _ in 0..count {
            match self.processes[process].queues[rung].pop_front() {
                Some(next) => self.after(0, Event::Pass(next)),
                None => self.processes[process].free[rung] += 1,
            }
        }
    }

    /// When everything is over: each permit is free, or somewhere.
    pub(crate) fn check_permits(&mut self) {
        for process in self.workers.clone().into_iter().filter(|process| self.processes[*process].alive) {
            for rung in 0..self.ladder.dlq().index {
                let lanes = self.lanes.iter().flatten().filter(|lane| (lane.process, lane.rung) == (process, rung));
                let in_line = |lane: &SimLane| usize::from(matches!(lane.line(self), Line::AtGate { .. }));
                let held: usize = lanes.map(|lane| lane.permits().0 + in_line(lane)).sum();
                let free = self.processes[process].free[rung];
                if free + held != self.concurrency {
                    let what =
                        format!("process {process}, rung {rung}: {free} free, {held} held of {}", self.concurrency);
                    self.ledger.fail(self.now, Invariant::PermitsKept, what);
                }
            }
        }
    }
}

impl SimLane {
    pub(crate) fn is_in_line(&self) -> bool {
        self.line != Line::Nowhere
    }

    /// `Task::take_permits`.
    pub(crate) fn take_permits(&mut self, world: &mut World) {
        let now = world.clock(self.process);
        if !self.waits_for_permits(now) {
            return;
        }
        let here = &mut world.processes[self.process];
        let wanted = self.lane.wanted(now).min(here.free[self.rung]);
        if wanted > 0
            && let Asked::Granted(count, grant) = here.gates.ask(now.boot, self.rung, wanted)
        {
            here.free[self.rung] -= count;
            self.granted(world, count, grant);
        }
    }

    fn granted(&mut self, world: &mut World, count: usize, grant: Grant) {
        if world.broken == Some(Broken::TriedUncounted) {
            world.processes[self.process].gates.returned(count, grant);
        }
        self.input(world, Input::Permits(count, grant));
    }

    /// `Task::queue_for_permit`.
    pub(crate) fn queue_for_permit(&mut self, world: &mut World) {
        let wants = self.waits_for_permits(world.clock(self.process));
        let here = &mut world.processes[self.process];
        if !wants {
            self.leave_line(world);
        } else if self.line == Line::Nowhere {
            if here.free[self.rung] > 0 {
                here.free[self.rung] -= 1;
                self.line = Line::AtGate { told: false };
                world.after(0, Event::Pass(self.id));
            } else {
                here.queues[self.rung].push_back(self.id);
                self.line = Line::Queued;
            }
        }
    }

    /// Where it stands: who was called from the queue is at the gate.
    fn line(&self, world: &World) -> Line {
        match self.line {
            Line::Queued if !world.processes[self.process].queues[self.rung].contains(&self.id) => {
                Line::AtGate { told: false }
            }
            line => line,
        }
    }

    fn leave_line(&mut self, world: &mut World) {
        let line = self.line(world);
        self.line = Line::Nowhere;
        match line {
            Line::Nowhere => {}
            Line::Queued => world.processes[self.process].queues[self.rung].retain(|id| *id != self.id),
            Line::AtGate { told } => {
                if told {
                    world.processes[self.process].gates.waits(self.rung, false);
                    world.call(self.process);
                }
                world.release_permits(self.process, self.rung, 1);
            }
        }
    }

    /// `Gate::pass`.
    pub(crate) fn pass(&mut self, world: &mut World) {
        self.line = self.line(world);
        let Line::AtGate { told } = self.line else { return };
        let now = world.clock(self.process).boot;
        let gates = &mut world.processes[self.process].gates;
        let mut asked = gates.ask(now, self.rung, 1);
        if !told && matches!(asked, Asked::Shut(_)) {
            self.line = Line::AtGate { told: true };
            gates.waits(self.rung, true);
            asked = gates.ask(now, self.rung, 1);
        }
        match asked {
            Asked::Granted(count, grant) => {
                if std::mem::take(&mut self.line) == (Line::AtGate { told: true }) {
                    gates.waits(self.rung, false);
                    world.call(self.process);
                }
                self.granted(world, count, grant);
            }
            Asked::Shut(Some(again)) if world.broken != Some(Broken::OpeningUnheard) => {
                world.after(again.as_nanos().div_ceil(1_000) as Time, Event::Pass(self.id));
            }
            Asked::Shut(_) => {}
        }
    }

    /// Permits that a step has set free.
    pub(crate) fn permits_back(&mut self, world: &mut World, count: usize, latest: usize) {
        let gates = &mut world.processes[self.process].gates;
        if latest > 0 && gates.is_restricted() {
            gates.returned(latest, self.lane.latest_grant());
            world.call(self.process);
        }
        world.release_permits(self.process, self.rung, count);
    }

    /// The lane's end: all its permits come back.
    pub(crate) fn close(&mut self, world: &mut World) {
        self.leave_line(world);
        let (count, latest) = self.permits();
        self.permits_back(world, count, latest);
    }

    /// Whether a handler may be started that was let through when it was due; if not, its claim is given back.
    pub(crate) fn still_may_start(&mut self, world: &mut World, slot: u32) -> bool {
        let grant = self.lane.grant(slot);
        let is_open = world.processes[self.process].gates.may_start(self.rung, grant)
            || world.broken == Some(Broken::ClaimsStartAnyway);
        let is_due = self.lane.due(slot) <= world.clock(self.process).wall;
        if is_open && is_due {
            return true;
        }
        if !is_open && world.broken == Some(Broken::FailsAtTheGate) {
            self.conclude(world, slot, Outcome::Failed(Failure::transient("the circuit is open")), None);
        } else {
            self.input(world, Input::NotStarted(slot));
        }
        false
    }
}

/// `stage::settle::end`.
pub(crate) fn end(verdict: Verdict, failed: Option<&Action>, rung: usize, origin_ms: i64, begun: Timestamp) -> End {
    match (verdict, failed) {
        (Verdict::Done, _) => End::Done,
        (Verdict::Publish, Some(Action::DeadLetter { reason })) => End::Dead(DeadLetter {
            reason: *reason,
            on_main: rung == 0,
            is_recent: u64::try_from(origin_ms).map(Timestamp::from_millis).is_ok_and(|at| at >= begun),
            redriven: false,
        }),
        _ => End::Retried,
    }
}
