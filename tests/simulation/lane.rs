//! One partition's lane in one process: the shell around the pure lane, on virtual time.
//!
//! Mirrors `stage::lane` (rounds, permits, the order of effects), `stage::lane::calls` (one call with claims and one
//! with settlements under way), `stage::held::receive`, and of `stage::settle` what turns a decision into the record
//! of the next copy. All that decides anything is the library's: the lane, `route`, the header codec, the fences.
//! Other than there, a process can be killed or frozen between any two effects, and time passes only in between.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use retry_ladder::ladder::breaker::Answer;
use retry_ladder::ladder::event::{Action, Failure, Mark, Now, Outcome, Timestamp};
use retry_ladder::ladder::headers::{self, CompatHeaders, Coordinates, Envelope, IdSource, Move, NextHeader, Shrink};
use retry_ladder::ladder::lane::{
    Arrival, ClaimId, Delivery, Effects, Finish, Input, Lane, LaneConfig, Order, Slot, Verdict,
};
use retry_ladder::ladder::route;
use retry_ladder::ladder::sequence::{self, Place, Turn};
use retry_ladder::stage::ports::{Claim, CopyKey};

use super::broken::Broken;
use super::broker::{Headers, Outgoing, Rec};
use super::gate::{self, Line};
use super::ledger::{Ending, Execution, Invariant};
use super::queue::Event;
use super::store::{Command, Op};
use super::world::{LaneId, PATIENCE, ProcessId, Time, World};

/// An event in a lane.
pub(crate) struct Held {
    pub(crate) record: Rc<Rec>,
    pub(crate) envelope: Envelope,
    pub(crate) key: CopyKey,
    pub(crate) started: Timestamp,
    took: Duration,
    pub(crate) failed: Option<(Failure, Action)>,
    shrink: Shrink,
    pub(crate) place: Option<Place>,
    pub(crate) turn: Turn,
    pub(crate) paused: bool,
    /// The execution that runs.
    execution: Option<usize>,
    /// Its place among the arrivals of this lane.
    arrival: u64,
}

/// One effect of a round.
pub(crate) enum Doing {
    Claim(Vec<Slot>, Time),
    Renew(Vec<(Slot, ClaimId)>, Time),
    Settle(Time),
    /// Places are given back, or could not be.
    Left,
    Release(Vec<(Slot, ClaimId)>, Time),
    Publish(Slot),
    /// It has its place.
    Joined(Slot),
    HandOver(Slot),
    Shrink(Slot),
    Start(Slot),
    Run(Slot),
}

/// One partition's lane in one process.
pub(crate) struct SimLane {
    pub(crate) id: LaneId,
    pub(crate) process: ProcessId,
    pub(crate) rung: usize,
    pub(crate) partition: usize,
    pub(crate) epoch: u32,
    pub(crate) lane: Lane<Held>,
    fx: Effects<Held>,
    pub(crate) doing: VecDeque<Doing>,
    claiming: bool,
    settling: bool,
    to_settle: Vec<(Slot, Mark)>,
    /// Those that wait until places are given back, and those whose place could not be.
    leaving: Vec<(Slot, Mark)>,
    pub(crate) unsettled: Vec<Slot>,
    /// A round is due at this very instant, or when its process wakes up.
    pub(crate) round_due: bool,
    tick_at: Option<Time>,
    pub(crate) fetch_from: i64,
    pub(crate) fetching: bool,
    pub(crate) draining: bool,
    pub(crate) commit_due: bool,
    pub(crate) committed: Option<i64>,
    arrivals: u64,
    /// By key: arrivals that have not returned.
    of_key: BTreeMap<u64, Vec<u64>>,
    /// For a permit, and for the gate.
    pub(crate) line: Line,
}

impl SimLane {
    pub(crate) fn new(
        id: LaneId,
        process: ProcessId,
        rung: usize,
        partition: usize,
        epoch: u32,
        config: LaneConfig,
    ) -> Self {
        Self {
            id,
            process,
            rung,
            partition,
            epoch,
            lane: Lane::new(config),
            fx: Effects::default(),
            doing: VecDeque::new(),
            claiming: false,
            settling: false,
            to_settle: Vec::new(),
            leaving: Vec::new(),
            unsettled: Vec::new(),
            round_due: false,
            tick_at: None,
            fetch_from: 0,
            fetching: false,
            draining: false,
            commit_due: false,
            committed: None,
            arrivals: 0,
            of_key: BTreeMap::new(),
            line: Line::Nowhere,
        }
    }

    /// Whether it could start an event if it had a permit.
    pub(crate) fn waits_for_permits(&self, now: Now) -> bool {
        !self.claiming && self.lane.wanted(now) > 0
    }

    pub(crate) fn has_effects(&self) -> bool {
        !self.fx.is_empty() || !self.doing.is_empty() || (!self.settling && !self.to_settle.is_empty())
    }

    /// Permits in use here, and as many of them as are of the newest grant.
    pub(crate) fn permits(&self) -> (usize, usize) {
        let (held, latest) = self.lane.permits_held();
        (held + self.fx.permits, latest + self.fx.latest_permits)
    }

    /// Records that were fetched.
    pub(crate) fn arrive(&mut self, world: &mut World, records: Vec<Rc<Rec>>) {
        let mut batch = Vec::with_capacity(records.len());
        for record in records {
            self.arrivals += 1;
            let held = receive(world, self.rung, self.partition, record, self.arrivals);
            let key = held.record.key_hash().filter(|_| world.broken != Some(Broken::KeysIgnored));
            if let Some(key) = held.record.key_hash() {
                self.of_key.entry(key).or_default().push(self.arrivals);
            }
            let due = held.envelope.due.filter(|_| world.broken != Some(Broken::DueIgnored)).unwrap_or_default();
            batch.push(Arrival {
                offset: held.record.offset,
                due,
                key,
                bytes: 10,
                fence: held.envelope.fence,
                item: held,
            });
        }
        self.step(world, Input::Arrived(batch));
    }

    /// Any other input.
    pub(crate) fn input(&mut self, world: &mut World, input: Input<Held>) {
        match &input {
            Input::Claimed(..) => self.claiming = false,
            Input::Settled(..) => self.settling = false,
            _ => {}
        }
        self.step(world, input);
    }

    pub(crate) fn step(&mut self, world: &mut World, input: Input<Held>) {
        let now = world.clock(self.process);
        self.step_at(world, now, input);
    }

    pub(crate) fn step_at(&mut self, world: &mut World, now: Now, input: Input<Held>) {
        self.lane.step(now, input, &mut self.fx);
        for slot in self.fx.cancel.drain(..) {
            let held = self.lane.get_mut(slot);
            if world.broken != Some(Broken::CancelUnheard)
                && let Some(execution) = held.execution.take()
            {
                world.note(|| format!("lane {}: cancel {}", self.id, held.record.copy));
                world.ledger.end(execution, world.now, Ending::Cancelled);
            }
        }
    }

    /// The handler comes back. `false`: it was cancelled in the same moment.
    pub(crate) fn returned(&mut self, world: &mut World, slot: Slot, execution: usize, outcome: Outcome) {
        if world.ledger.executions[execution].ended.is_some() {
            return;
        }
        if world.broken == Some(Broken::CancelUnheard) && !self.lane.is_running(slot) {
            return world.ledger.end(execution, world.now, Ending::Cancelled);
        }
        let ending = if outcome == Outcome::Fenced { Ending::Fenced } else { Ending::Returned };
        world.ledger.end(execution, world.now, ending);
        let poison = world.plans[self.lane.get(slot).record.copy.event].poison;
        self.conclude(world, slot, outcome, (!poison).then_some(execution));
    }

    /// `execution`: its number, `None`: no handler saw the event.
    pub(crate) fn conclude(&mut self, world: &mut World, slot: Slot, outcome: Outcome, execution: Option<usize>) {
        let now = world.clock(self.process);
        let answer = Answer::of(&outcome);
        let grant = self.lane.grant(slot);
        let held = self.lane.get_mut(slot);
        held.execution = None;
        held.took = now.wall.since(held.started);
        let verdict = match outcome {
            Outcome::Done => Verdict::Done,
            Outcome::Fenced => Verdict::Fenced,
            Outcome::Failed(failure) => {
                let draw = world.rng.f64();
                let mut action = route::decide(&world.ladder, &held.envelope, Err(&failure), now.wall, draw);
                if world.broken == Some(Broken::EndlessDeferrals) && matches!(action, Action::DeadLetter { .. }) {
                    action = Action::Defer { due: now.wall };
                }
                let verdict = Verdict::of(&action);
                held.failed = Some((failure, action));
                verdict
            }
        };
        world.note(|| format!("lane {}: {} returns: {verdict:?} {:?}", self.id, held.record.copy, held.failed));
        if matches!(verdict, Verdict::Done | Verdict::Publish)
            && let Some(key) = held.record.key_hash()
            && let Some(open) = self.of_key.get_mut(&key)
        {
            let arrival = held.arrival;
            open.retain(|other| *other != arrival);
        }
        let begun = world.processes[self.process].begun;
        let failed = held.failed.as_ref().map(|(_, action)| action);
        let end = gate::end(verdict, failed, self.rung, held.envelope.origin.timestamp_ms, begun);
        world.concluded(self, execution.map(|_| grant), answer, end);
        if let Some(execution) = execution {
            world.check_reopened(self.process, execution, answer);
        }
        self.step_at(world, now, Input::Returned(slot, verdict));
    }

    /// The rest of the round: permits, then effects until there are none. `false`: the process ended or froze.
    pub(crate) fn round(&mut self, world: &mut World) -> bool {
        if self.doing.is_empty() {
            self.take_permits(world);
        }
        loop {
            while let Some(doing) = self.doing.pop_front() {
                if !world.boundary(self.process) {
                    self.doing.push_front(doing);
                    return false;
                }
                self.perform(world, doing);
            }
            if self.fx.is_empty() && (self.settling || self.to_settle.is_empty()) {
                self.queue_for_permit(world);
                return true;
            }
            self.begin_effects(world);
        }
    }

    /// Takes what the steps asked for as one round of effects.
    fn begin_effects(&mut self, world: &mut World) {
        let mut fx = std::mem::take(&mut self.fx);
        let sent = world.now;
        if world.broken == Some(Broken::PermitKept) && fx.busy > 0 {
            fx.permits -= 1;
        }
        self.permits_back(world, fx.permits, fx.latest_permits);
        for (held, finish) in fx.finished.drain(..) {
            world.note(|| format!("lane {}: {} finished: {finish:?}", self.id, held.record.copy));
            if let Some(key) = held.record.key_hash()
                && let Some(open) = self.of_key.get_mut(&key)
            {
                open.retain(|other| *other != held.arrival);
            }
            if finish != Finish::Duplicate {
                world.ledger.finished(held.record.copy, self.process, sent);
            }
            if finish == Finish::Duplicate && held.failed.is_none() && held.execution.is_some() {
                world.ledger.fail(sent, Invariant::LanesEmpty, "an event was finished while its handler ran");
            }
        }
        if !fx.claim.is_empty() {
            self.claiming = true;
            self.doing.push_back(Doing::Claim(std::mem::take(&mut fx.claim), sent));
        }
        if !fx.renew.is_empty() {
            self.doing.push_back(Doing::Renew(std::mem::take(&mut fx.renew), sent));
        }
        self.to_settle.append(&mut fx.settle);
        if !self.settling && !self.to_settle.is_empty() {
            self.settling = true;
            self.doing.push_back(Doing::Settle(sent));
        }
        if !fx.release.is_empty() {
            self.doing.push_back(Doing::Release(std::mem::take(&mut fx.release), sent));
        }
        self.doing.extend(fx.publish.drain(..).map(Doing::Publish));
        self.doing.extend(fx.shrink.drain(..).map(Doing::Shrink));
        self.doing.extend(fx.start.drain(..).map(Doing::Start));
        fx.clear();
        if self.fx.is_empty() {
            self.fx = fx;
        }
    }

    fn perform(&mut self, world: &mut World, doing: Doing) {
        match doing {
            Doing::Claim(slots, sent) => {
                let batch =
                    slots.into_iter().map(|slot| self.command(Op::Claim, slot, self.lane.claim(slot))).collect();
                world.call_store(self.id, self.process, batch, sent);
            }
            Doing::Renew(mut renewals, sent) => {
                renewals.retain(|(slot, claim)| self.lane.holds(*slot, *claim));
                let batch = renewals.into_iter().map(|(slot, claim)| self.command(Op::Renew, slot, claim)).collect();
                world.call_store(self.id, self.process, batch, sent);
            }
            Doing::Settle(sent) => {
                self.leaving = std::mem::take(&mut self.to_settle);
                let ends = |&&(slot, mark): &&(Slot, Mark)| {
                    let held = self.lane.get(slot);
                    held.turn == Turn::First && (mark == Mark::Done || held.next_due().is_none())
                };
                let leave = |&(slot, _): &(Slot, _)| self.command(Op::Leave, slot, self.lane.claim(slot));
                let leaves: Vec<_> = self.leaving.iter().filter(ends).map(leave).collect();
                if leaves.is_empty() || world.broken == Some(Broken::PlaceKept) {
                    self.doing.push_front(Doing::Left);
                } else {
                    world.call_store(self.id, self.process, leaves, sent);
                }
            }
            Doing::Left => {
                let batch = std::mem::take(&mut self.leaving);
                let command = |(slot, mark)| self.command(Op::Settle(mark), slot, self.lane.claim(slot));
                world.call_store(self.id, self.process, batch.into_iter().map(command).collect(), world.now);
            }
            Doing::Release(releases, sent) => {
                let batch = releases.into_iter().map(|(slot, claim)| self.command(Op::Release, slot, claim)).collect();
                world.call_store(self.id, self.process, batch, sent);
            }
            Doing::Publish(slot) if self.lane.lease_gone(world.clock(self.process), slot) => {
                self.step(world, Input::Published(slot, Delivery::Failed));
            }
            Doing::Publish(slot)
                if self.lane.get(slot).next_due().is_some() && world.broken != Some(Broken::NoPlace) =>
            {
                let due = self.lane.get(slot).next_due().unwrap_or_default();
                let good_for = due.since(world.clock(self.process).wall) + PATIENCE;
                let join = Op::Join(world.now + good_for.as_micros() as Time);
                let command = self.command(join, slot, self.lane.claim(slot));
                world.call_store(self.id, self.process, vec![command], world.now);
            }
            Doing::Joined(slot) if self.lane.lease_gone(world.clock(self.process), slot) => {
                self.step(world, Input::Published(slot, Delivery::Failed));
            }
            Doing::Publish(slot) | Doing::Joined(slot) => self.doing.push_front(Doing::HandOver(slot)),
            Doing::HandOver(slot) => self.hand_over(world, slot),
            Doing::Shrink(slot) => match self.lane.get(slot).shrink.smaller() {
                Some(smaller) => {
                    self.lane.get_mut(slot).shrink = smaller;
                    self.doing.push_front(Doing::Publish(slot));
                }
                None => self.step(world, Input::Published(slot, Delivery::Unpublishable)),
            },
            Doing::Start(slot) => {
                if self.lane.may_start(world.clock(self.process), slot) && self.still_may_start(world, slot) {
                    self.doing.push_front(Doing::Run(slot));
                }
            }
            Doing::Run(slot) => self.run(world, slot),
        }
    }

    fn command(&self, op: Op, slot: Slot, id: ClaimId) -> Command {
        let held = self.lane.get(slot);
        let claim = Claim { process: self.process as u64 + 1, sequence: id.sequence, fence: id.fence };
        let place = held.place.clone();
        Command { op, slot, copy: held.record.copy, key: CopyKey::clone(&held.key), id, claim, place }
    }

    fn run(&mut self, world: &mut World, slot: Slot) {
        let now = world.clock(self.process);
        if self.waits_its_turn(world, slot, now) {
            return;
        }
        let fence = self.lane.claim(slot).fence;
        let held = self.lane.get_mut(slot);
        held.started = now.wall;
        world.check_start(held, self.rung, self.process, now.wall);
        let copy = held.record.copy;
        let key = held.record.key_hash().filter(|_| world.order != Order::None);
        if let Some(key) = key
            && let Some(first) = self.of_key.get(&key).and_then(|open| open.first())
            && *first < held.arrival
        {
            world.ledger.fail(world.now, Invariant::KeyOrder, format!("{copy} starts before one that came earlier"));
        }
        let (outcome, took, effect) = world.handler(&held.envelope, copy.event);
        world.processes[self.process].executions[self.rung] += u64::from(!world.plans[copy.event].poison);
        let at = world.now;
        world.note(|| format!("lane {}: process {} starts {copy}, fence {fence}", self.id, self.process));
        let number = world.ledger.start(Execution {
            copy,
            process: self.process,
            lane: self.id,
            rung: self.rung,
            key,
            started: at,
            fence,
            carried_fence: held.envelope.fence,
            effect_at: effect.map(|after| at + after),
            ended: None,
        });
        if took == 0 {
            return self.returned(world, slot, number, outcome);
        }
        held.execution = Some(number);
        world.after(took, Event::Return(self.id, slot, number, Box::new(outcome)));
    }

    fn hand_over(&mut self, world: &mut World, slot: Slot) {
        let held = self.lane.get(slot);
        let fence = self.lane.claim(slot).fence;
        let Some(outgoing) = next_copy(world, self.rung, self.partition, held, fence) else {
            return self.step(world, Input::Published(slot, Delivery::Unpublishable));
        };
        world.note(|| format!("lane {}: hand {} over to the producer", self.id, outgoing.copy));
        if world.broken == Some(Broken::MovedOnBeforeAck) {
            world.store.mark(world.now, &held.key, held.record.copy, Mark::MovedOn);
        }
        world.produce(self.id, self.process, slot, outgoing);
        if world.broken == Some(Broken::DoneBeforeAck) {
            self.step(world, Input::Published(slot, Delivery::Acknowledged));
        }
    }

    /// When its next tick is to come, if that is sooner than the one that is set.
    pub(crate) fn next_tick(&mut self, now: Now, at: Time) -> Option<Time> {
        const MAX_SLEEP: Duration = Duration::from_secs(30);
        let (wall, boot) = self.lane.next_tick();
        if wall.is_none() && boot.is_none() {
            return None;
        }
        let wall = wall.map_or(MAX_SLEEP, |due| due.since(now.wall));
        let boot = boot.map_or(MAX_SLEEP, |due| due.saturating_sub(now.boot));
        // Rounded up, as timers are: never before the instant that was asked for.
        let tick = at + wall.min(boot).min(MAX_SLEEP).as_nanos().div_ceil(1_000) as Time;
        if self.tick_at.is_some_and(|set| set <= tick && set > at) {
            return None;
        }
        self.tick_at = Some(tick);
        Some(tick)
    }
}

/// `stage::held::receive`.
fn receive(world: &World, rung: usize, partition: usize, record: Rc<Rec>, arrival: u64) -> Held {
    let at = Coordinates { partition: partition as i32, offset: record.offset, timestamp_ms: record.timestamp_ms };
    let envelope = headers::read(&world.ladder, rung, at, record.headers(), &IdSource::default(), None);
    let place = record.key.as_ref().filter(|_| world.order == Order::Ladder).and_then(|key| {
        let (partition, offset) = sequence::place(&world.ladder, &envelope)?;
        Some(Place { queue: world.keys.queue(partition, key), offset })
    });
    Held {
        key: world.keys.key(&envelope.event_id, envelope.hop),
        record,
        envelope,
        started: Timestamp::default(),
        took: Duration::ZERO,
        failed: None,
        shrink: Shrink::default(),
        place,
        turn: Turn::default(),
        paused: false,
        execution: None,
        arrival,
    }
}

/// `stage::settle::next_copy`.
fn next_copy(world: &World, rung: usize, partition: usize, held: &Held, fence: u64) -> Option<Outgoing> {
    let (failure, action) = held.failed.as_ref()?;
    let target = route::target(&world.ladder, &held.envelope, action)?;
    let movement = Move {
        ladder: &world.ladder,
        envelope: &held.envelope,
        action,
        failure,
        started: held.started,
        took: held.took,
        fence,
        trace: None,
        compat: CompatHeaders::NONE,
    };
    let next = headers::next(held.record.headers(), &movement, held.shrink)?;
    let values = Bytes::from(next.values);
    let mut headers: Headers = Vec::with_capacity(next.headers.len());
    for header in next.headers {
        headers.push(match header {
            NextHeader::Inbound(index) => held.record.headers[index].clone(),
            NextHeader::Own { name, value } => (Bytes::from_static(name.as_bytes()), Some(values.slice(value))),
        });
    }
    match world.broken {
        Some(Broken::SameHop) => {
            let hop = Bytes::from(held.envelope.hop.to_string());
            headers
                .iter_mut()
                .filter(|(name, _)| name == retry_ladder::ladder::headers::HOP.as_bytes())
                .for_each(|h| h.1 = Some(hop.clone()));
        }
        Some(Broken::HeadersAppended) => {
            headers.extend(held.record.headers.iter().filter(|(name, _)| name.starts_with(b"x-ladder-")).cloned());
        }
        _ => {}
    }
    let mut copy = held.record.copy;
    copy.hop += 1;
    Some(Outgoing {
        copy,
        rung: target.index,
        partition: world.partitions.keep(rung, target.index, partition as i32),
        key: held.record.key.clone(),
        value: held.record.value.clone(),
        headers,
        shrink: held.shrink,
        parent: Rc::clone(&held.record),
    })
}
