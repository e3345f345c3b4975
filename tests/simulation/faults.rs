//! What strikes a schedule, what its handlers answer, and what is looked at when it is over.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use retry_ladder::ladder::event::{Failure, Outcome, Timestamp};
use retry_ladder::ladder::headers::{DUE, ERROR, Envelope};
use retry_ladder::ladder::lane::{Dedup, Order};

use super::case::{Fault, Faults};
use super::lane::Held;
use super::ledger::{Ending, Fate, Invariant};
use super::queue::Event;
use super::world::{EPOCH_MS, HANDLER_TIMEOUT, MS, Plan, Process, ProcessId, SECOND, SESSION, Time, World};

impl Plan {
    pub(crate) fn draw(rng: &mut fastrand::Rng, partitions: usize, retries: usize) -> Self {
        let key = (rng.u8(..4) > 0).then(|| rng.u8(..3));
        Self {
            key,
            partition: key.map_or_else(|| rng.usize(..partitions), |key| usize::from(key) % partitions),
            has_id: rng.u8(..4) > 0,
            fails: if rng.bool() { 0 } else { rng.u32(1..=retries as u32 + 1) },
            then_permanent: rng.u8(..8) == 0,
            poison: rng.u8(..16) == 0,
            wish: (rng.u8(..5) == 0).then(|| Duration::from_millis(rng.u64(200..8_000))),
        }
    }
}

impl World {
    /// What the handler of an event does: its outcome, after how long, and when within that time its effect happens.
    pub(crate) fn handler(&mut self, envelope: &Envelope, event: usize) -> (Outcome, Time, Option<Time>) {
        let plan = &self.plans[event];
        let transient = || {
            let failure = Failure::transient("the target does not answer");
            Outcome::Failed(match plan.wish {
                Some(wish) => failure.retry_after(wish),
                None => failure,
            })
        };
        let outcome = match envelope.attempt {
            _ if plan.poison => return (Outcome::Failed(Failure::poison("garbage")), 0, None),
            _ if self.now < self.target_down_until => transient_again(),
            attempt if attempt < plan.fails => transient(),
            _ if plan.then_permanent => Outcome::Failed(Failure::permanent("never")),
            _ => Outcome::Done,
        };
        let down = self.now < self.target_down_until;
        let outcome = if down {
            outcome
        } else if self.chance(Fault::Flaky, 0.5) {
            match self.rng.u8(..4) {
                0 => Outcome::Failed(Failure::permanent("this time")),
                1 => transient_again(),
                _ => Outcome::Done,
            }
        } else if self.chance(Fault::Fenced, 0.1) {
            Outcome::Fenced
        } else {
            outcome
        };
        let took = if self.chance(Fault::Slow, 0.3) {
            self.rng.u64(2_000..10_000) * MS
        } else {
            [0, 1, 5, 20, 80, 300][self.rng.usize(..6)] * MS
        };
        if took >= HANDLER_TIMEOUT {
            return (Outcome::Failed(Failure::transient("overran its deadline")), HANDLER_TIMEOUT, None);
        }
        let effect = (outcome == Outcome::Done).then(|| self.rng.u64(0..=took));
        (outcome, took, effect)
    }

    /// A handler is about to start: not before its time.
    pub(crate) fn check_start(&mut self, held: &Held, rung: usize, process: ProcessId, wall: Timestamp) {
        let record = &held.record;
        let Some(delay) = self.ladder.rung(rung).and_then(|rung| rung.delay) else { return };
        let latest = record.timestamp_ms as u64 + 2 * delay.as_millis() as u64;
        let due = record.number(DUE).unwrap_or(u64::MAX).min(latest);
        // Its clock may have been set back while it was frozen between its last look at the clock and the start.
        if wall < Timestamp::from_millis(due) && !self.ledger.fates[process].wakes_at(self.now) {
            let what = format!("{} starts in process {process} at {wall:?}, due {due} ms", record.copy);
            self.ledger.fail(self.now, Invariant::NeverEarly, what);
        }
        if self.ledger.clocks_agree {
            let wish = self.plans[record.copy.event].wish.unwrap_or(delay);
            // What was made of its parent before that had run, because it was not its turn, has a due time of its own: it
            // says so, unless it has passed on what its parent said.
            let says_so = record.text(ERROR).is_some_and(|error| error.ends_with("not its turn"));
            let made = |at: &Time| !says_so && EPOCH_MS + at / MS <= record.timestamp_ms as u64;
            let returned = self.ledger.first_return(record.copy).filter(made);
            let least = returned.map(|at| at + delay.min(wish).as_micros() as Time);
            if let Some(least) = least.filter(|least| self.now < *least) {
                let what = format!("{} starts {} us before its delay is over", record.copy, least - self.now);
                self.ledger.fail(self.now, Invariant::NeverEarly, what);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ processes

    /// A worker is started.
    pub(crate) fn spawn(&mut self, worker: usize) {
        let process = self.processes.len();
        let rungs = self.ladder.dlq().index;
        let wall = (EPOCH_MS * MS + self.now).saturating_add_signed(self.skew[worker]);
        self.processes.push(Process {
            worker,
            alive: true,
            leaving: false,
            frozen_until: 0,
            cut_until: 0,
            free: vec![self.concurrency; rungs],
            queues: vec![VecDeque::new(); rungs],
            gates: self.new_gates(World::boot(self.now)),
            executions: vec![0; rungs],
            begun: Timestamp::from_micros(wall),
        });
        self.ledger.fates.push(Fate::new(self.paused.clone()));
        match self.workers.get_mut(worker) {
            Some(known) => *known = process,
            None => self.workers.push(process),
        }
        self.note(|| format!("worker {worker} starts as process {process}"));
    }

    /// Comes between any two effects of a process: whether it goes on.
    pub(crate) fn boundary(&mut self, process: ProcessId) -> bool {
        let strikes = |in_effects: &mut Option<u32>| match in_effects {
            Some(0) => {
                *in_effects = None;
                true
            }
            Some(n) => {
                *n -= 1;
                false
            }
            None => false,
        };
        if strikes(&mut self.kill_in) {
            self.kill(process);
            self.kill_in = self.rng.bool().then(|| self.rng.u32(1..120));
            return false;
        }
        if strikes(&mut self.freeze_in) {
            self.freeze(process);
            self.freeze_in = self.rng.bool().then(|| self.rng.u32(1..120));
            return false;
        }
        true
    }

    fn kill(&mut self, process: ProcessId) {
        self.ledger.counts.kills += 1;
        self.end_process(process, "is killed");
    }

    /// A process is gone, and with it all that it held.
    pub(crate) fn end_process(&mut self, process: ProcessId, how: &str) {
        if !std::mem::replace(&mut self.processes[process].alive, false) {
            return;
        }
        self.note(|| format!("process {process} {how}"));
        self.ledger.fates[process].ended = Some(self.now);
        for execution in self.ledger.live_in(process) {
            self.ledger.end(execution, self.now, Ending::Died);
        }
        let lanes: Vec<usize> = self.lanes.iter().flatten().filter(|l| l.process == process).map(|l| l.id).collect();
        for id in lanes {
            self.lanes[id] = None;
        }
        let restart = self.rng.u64(50..5_000) * MS;
        let worker = self.processes[process].worker;
        self.after(restart, Event::Restart(worker));
        let expelled = if self.processes[process].leaving { MS } else { self.rng.u64(100..=SESSION / MS) * MS };
        self.after(expelled, Event::Session(process));
    }

    fn freeze(&mut self, process: ProcessId) {
        let time = self.rng.u64(200..12_000) * MS;
        let until = self.now + time;
        self.note(|| format!("process {process} freezes for {:.3} s", time as f64 / 1e6));
        self.ledger.counts.freezes += 1;
        self.processes[process].frozen_until = until;
        self.ledger.freeze(process, self.now, until);
        self.after(SESSION, Event::Session(process));
    }

    /// One that runs, and is not frozen.
    fn any_process(&mut self) -> Option<ProcessId> {
        let able = |p: &&ProcessId| self.processes[**p].alive && self.processes[**p].frozen_until <= self.now;
        let able: Vec<ProcessId> = self.workers.iter().filter(able).copied().collect();
        (!able.is_empty()).then(|| able[self.rng.usize(..able.len())])
    }

    fn any_owned(&mut self) -> Option<(usize, usize, usize)> {
        let owned: Vec<_> = (self.all_partitions().into_iter())
            .filter_map(|(rung, partition)| Some((rung, partition, self.logs[rung][partition].owner?)))
            .filter(|(.., id)| self.lanes[*id].is_some())
            .collect();
        (!owned.is_empty()).then(|| owned[self.rng.usize(..owned.len())])
    }

    /// A fault that was set for this instant.
    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.any_process().into_iter().for_each(|process| self.kill(process)),
            Fault::Freeze => self.any_process().into_iter().for_each(|process| self.freeze(process)),
            Fault::Rebalance => {
                if let Some((rung, partition, _)) = self.any_owned() {
                    self.revoke(rung, partition);
                }
            }
            Fault::Shutdown => {
                if let Some(process) = self.any_process().filter(|p| !self.processes[*p].leaving) {
                    self.note(|| format!("process {process} is told to stop"));
                    self.processes[process].leaving = true;
                    let lanes: Vec<_> = self.lanes.iter().flatten().filter(|l| l.process == process).collect();
                    let lanes: Vec<_> = lanes.into_iter().map(|l| l.id).collect();
                    for id in lanes {
                        self.after(MS, Event::Drain(id));
                        self.after(3 * SECOND, Event::DrainOver(id));
                    }
                    self.after(3 * SECOND + MS, Event::Stopped(process));
                }
            }
            Fault::Cut => {
                if let Some(process) = self.any_process() {
                    let until = self.now + self.rng.u64(500..8_000) * MS;
                    self.note(|| format!("process {process} does not reach the broker"));
                    self.processes[process].cut_until = until;
                    self.after(SESSION, Event::Session(process));
                }
            }
            Fault::StoreOutage => {
                self.outage_until = self.now + self.rng.u64(500..9_000) * MS;
                self.outage_of = if self.rng.bool() { self.any_process() } else { None };
                let whom = self.outage_of;
                self.note(|| {
                    format!("the store does not answer {}", whom.map_or("anybody".into(), |p| format!("process {p}")))
                });
            }
            Fault::KeyLoss | Fault::Flush | Fault::Failover => {
                let lost = match fault {
                    Fault::KeyLoss => self.store.lose_one(&mut self.rng).into_iter().collect(),
                    Fault::Flush => self.store.flush(),
                    _ => self.store.fail_over(self.now.saturating_sub(self.rng.u64(0..2_000) * MS)),
                };
                self.note(|| format!("the store forgets {lost:?}"));
                for copy in lost {
                    self.ledger.forgotten(copy, self.now);
                }
            }
            Fault::ClockStep => {
                let worker = self.rng.usize(..self.skew.len());
                self.skew[worker] += self.rng.i64(-3_000..3_000) * MS as i64;
                self.note(|| format!("the clock of worker {worker} is set"));
            }
            Fault::OffsetReset => {
                if let Some((rung, partition, owner)) = self.any_owned() {
                    self.note(|| format!("the offset of {rung}/{partition} is lost"));
                    self.logs[rung][partition].committed = None;
                    self.disown(owner);
                    let heard = self.rng.u64(1..1_000) * MS;
                    self.after(heard, Event::Drain(owner));
                }
            }
            Fault::StepBack => {
                if let Some((rung, partition, owner)) = self.any_owned() {
                    let records = &self.logs[rung][partition].records;
                    let offset = (!records.is_empty()).then(|| records[self.rng.usize(..records.len())].offset);
                    if let (Some(offset), Some(lane)) = (offset, &mut self.lanes[owner]) {
                        lane.fetch_from = lane.fetch_from.min(offset);
                        self.note(|| format!("lane {owner} goes back to {offset}"));
                        self.fetch_soon(owner);
                    }
                }
            }
            Fault::Pause => {
                let rung = self.rng.usize(..self.ladder.dlq().index);
                self.order(rung, true);
            }
            Fault::TargetDown => {
                self.note(|| "the target is down".into());
                self.target_down_until = self.heal.min(self.now + self.rng.u64(500..9_000) * MS);
            }
            // Drawn where they strike.
            _ => {}
        }
    }

    // ------------------------------------------------------------------------------------------------ the end

    /// Everything worked for long enough: all promises have to be kept by now.
    pub(crate) fn check_end(&mut self) {
        let at = self.now;
        for (rung, partition) in self.all_partitions() {
            if !self.is_finished(rung, partition) {
                let log = &self.logs[rung][partition];
                let what = format!(
                    "{rung}/{partition}: committed {:?}, end {}, owner {:?}",
                    log.committed, log.end, log.owner
                );
                self.ledger.fail(at, Invariant::ComesToAnEnd, what);
            }
        }
        let held: Vec<_> =
            self.lanes.iter().flatten().flat_map(|l| l.lane.iter().map(|h| (l.id, h.record.copy))).collect();
        if !held.is_empty() {
            self.ledger.fail(at, Invariant::LanesEmpty, format!("still held: {held:?}"));
        }
        if self.dedup == Dedup::Required {
            let marked = self.store.marked(at);
            let mut missing: Vec<_> = (self.all_partitions().iter())
                .flat_map(|(rung, partition)| self.logs[*rung][*partition].records.iter().map(|record| record.copy))
                .filter(|copy| !marked.contains(copy) && !self.ledger.was_forgotten(*copy))
                .collect();
            missing.dedup();
            if !missing.is_empty() {
                let copies: Vec<_> = missing.iter().map(ToString::to_string).collect();
                self.ledger.fail(
                    at,
                    Invariant::StoreSettled,
                    format!("not marked in the store: {}", copies.join(", ")),
                );
            }
        }
        self.check_permits();
        self.ledger.check_ends(at);
        if self.order == Order::Ladder {
            self.check_order(at);
        }
    }

    fn check_order(&mut self, at: Time) {
        let forgets = [Fault::KeyLoss, Fault::Flush, Fault::Failover].iter().any(|f| self.case.faults.has(*f));
        if !forgets && self.ledger.counts.lapsed == 0 {
            for partition in 0..self.logs[0].len() {
                let mut by_key: BTreeMap<Bytes, Vec<usize>> = BTreeMap::new();
                for record in &self.logs[0][partition].records {
                    if let Some(key) = &record.key {
                        let events = by_key.entry(key.clone()).or_default();
                        if !events.contains(&record.copy.event) {
                            events.push(record.copy.event);
                        }
                    }
                }
                by_key.values().for_each(|events| self.ledger.check_order(at, events));
            }
        }
        if self.case.faults == Faults::NONE && self.store.queues() > 0 {
            let what = format!("{} queues are not empty", self.store.queues());
            self.ledger.fail(at, Invariant::QueuesEmpty, what);
        }
    }
}

fn transient_again() -> Outcome {
    Outcome::Failed(Failure::transient("this time"))
}
