//! One schedule: virtual time, the queue of what happens next, workers that are killed, frozen, cut off and started
//! again, and the end at which everything works and every promise is looked at.
//!
//! Deterministic: one generator, no order that depends on addresses or hashing. What happens at one instant happens in
//! an order drawn at random, but a lane performs the effects of a round after all inputs of that instant.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use retry_ladder::ladder::brake::BrakeSettings;
use retry_ladder::ladder::breaker::BreakerSettings;
use retry_ladder::ladder::event::{Now, Timestamp};
use retry_ladder::ladder::gate::{Gates, OutageSettings};
use retry_ladder::ladder::headers::CopyKeys;
use retry_ladder::ladder::lane::{Dedup, Input, LaneConfig, Order};
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::stage::context::Partitions;

use super::broken::Broken;
use super::broker::Log;
use super::case::{Case, Fault};
use super::lane::SimLane;
use super::ledger::Ledger;
use super::queue::{Class, Event, Queue};
use super::store::Store;

/// Microseconds of virtual time.
pub(crate) type Time = u64;
pub(crate) type LaneId = usize;
/// One start of a worker.
pub(crate) type ProcessId = usize;

pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000 * MS;
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;
pub(crate) const MAX_DEFERRALS: u32 = 2;
pub(crate) const LEASE: Duration = Duration::from_secs(4);
/// Beyond what any schedule needs: places lapse only where nobody comes back for them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const HANDLER_TIMEOUT: Time = 8 * SECOND;
/// The group expels a silent member.
pub(crate) const SESSION: Time = 3 * SECOND;
/// More than any schedule needs: one that spins is ended, and fails for what it has not done.
const MAX_STEPS: u64 = 50_000;
const BREAKER: BreakerSettings = BreakerSettings {
    consecutive_failures: 3,
    min_time: Duration::from_millis(50),
    slow_failures: 4,
    slow_time: Duration::from_secs(3),
    cool_down: Duration::from_millis(300),
    max_cool_down: Duration::from_secs(2),
};
const BRAKE: BrakeSettings = BrakeSettings {
    ratio: 0.5,
    min_events: 3,
    window: Duration::from_secs(60),
    cool_down: Duration::from_millis(500),
    max_cool_down: Duration::from_secs(2),
};
const DELAYS: [Duration; 3] = [Duration::from_secs(1), Duration::from_millis(2_500), Duration::from_secs(6)];

/// One start of a worker.
pub(crate) struct Process {
    pub(crate) worker: usize,
    pub(crate) alive: bool,
    pub(crate) leaving: bool,
    pub(crate) frozen_until: Time,
    pub(crate) cut_until: Time,
    /// Free permits, by rung.
    pub(crate) free: Vec<usize>,
    /// Lanes that wait for one, in turn, by rung.
    pub(crate) queues: Vec<VecDeque<LaneId>>,
    pub(crate) gates: Gates,
    /// Handlers started, ever, by rung.
    pub(crate) executions: Vec<u64>,
    /// When it began to count.
    pub(crate) begun: Timestamp,
}

/// What is to become of an event.
pub(crate) struct Plan {
    pub(crate) key: Option<u8>,
    pub(crate) partition: usize,
    pub(crate) has_id: bool,
    pub(crate) fails: u32,
    pub(crate) then_permanent: bool,
    pub(crate) poison: bool,
    pub(crate) wish: Option<Duration>,
}

/// One schedule.
pub(crate) struct World {
    pub(crate) case: Case,
    pub(crate) broken: Option<Broken>,
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: Time,
    pub(crate) ladder: Arc<Ladder>,
    pub(crate) keys: CopyKeys,
    pub(crate) partitions: Partitions,
    pub(crate) logs: Vec<Vec<Log>>,
    pub(crate) store: Store,
    pub(crate) workers: Vec<ProcessId>,
    pub(crate) processes: Vec<Process>,
    pub(crate) lanes: Vec<Option<Box<SimLane>>>,
    /// The process of each lane, whether it still lives or not.
    pub(crate) places: Vec<ProcessId>,
    pub(crate) plans: Vec<Plan>,
    pub(crate) ledger: Ledger,
    pub(crate) trace: Option<Vec<String>>,
    /// What is promised of events of one key.
    pub(crate) order: Order,
    /// Places in the queue of a key.
    pub(crate) room: usize,
    pub(crate) dedup: Dedup,
    window: usize,
    pub(crate) concurrency: usize,
    /// From here on everything works.
    pub(crate) heal: Time,
    pub(crate) outage_until: Time,
    pub(crate) target_down_until: Time,
    /// Breaker and brake of every process.
    pub(crate) guard: OutageSettings,
    /// Stages that are paused by command.
    pub(crate) paused: BTreeSet<usize>,
    /// Whom the store does not answer; `None`: nobody.
    pub(crate) outage_of: Option<ProcessId>,
    /// By worker, in microseconds.
    pub(crate) skew: Vec<i64>,
    /// Effects until the next kill and the next freeze.
    pub(crate) kill_in: Option<u32>,
    pub(crate) freeze_in: Option<u32>,
    queue: Queue,
    /// The lane to which something happens now, and which is not in `lanes` meanwhile.
    pub(crate) at_work: LaneId,
}

fn ladder(retries: usize) -> (Arc<Ladder>, CopyKeys) {
    static LADDERS: OnceLock<Vec<(Arc<Ladder>, CopyKeys)>> = OnceLock::new();
    let all = LADDERS.get_or_init(|| {
        (0..=DELAYS.len())
            .map(|n| {
                let mut spec = LadderSpec::new("p", "g", "t");
                spec.max_deferrals = MAX_DEFERRALS;
                let spec = DELAYS[..n].iter().fold(spec, |spec, delay| spec.retry(*delay));
                let ladder = Arc::new(Ladder::new(spec).unwrap());
                let keys = CopyKeys::new("idem", &ladder);
                (ladder, keys)
            })
            .collect()
    });
    all[retries].clone()
}

impl World {
    pub(crate) fn new(case: Case, broken: Option<Broken>, traced: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(case.seed);
        let (ladder, keys) = ladder([1, 1, 2, 2, 3, 0][rng.usize(..6)]);
        let most = rng.usize(1..=2);
        let partitions: Vec<i32> =
            ladder.rungs().iter().map(|_| if rng.u8(..8) == 0 { 1 } else { most as i32 }).collect();
        let mains = partitions[0] as usize;
        let dedup = match rng.u8(..16) {
            0 => Dedup::Off,
            1 => Dedup::BestEffort,
            _ => Dedup::Required,
        };
        let plans = (0..case.events).map(|_| Plan::draw(&mut rng, mains, ladder.retries().len())).collect();
        let logs = partitions.iter().map(|n| (0..*n).map(|_| Log::default()).collect()).collect();
        let workers = rng.usize(2..=4);
        let skew = |rng: &mut fastrand::Rng| {
            if case.faults.has(Fault::Skew) { rng.i64(-5_000..5_000) * MS as i64 } else { 0 }
        };
        let skew = (0..workers).map(|_| skew(&mut rng)).collect();
        let clocks_agree = !case.faults.has(Fault::Skew) && !case.faults.has(Fault::ClockStep);
        let heal = rng.u64(6..18) * SECOND;
        let concurrency = rng.usize(1..=4);
        let guard = OutageSettings { breaker: rng.bool().then_some(BREAKER), brake: rng.bool().then_some(BRAKE) };
        let mut world = Self {
            case,
            broken,
            now: 0,
            ladder,
            keys,
            partitions: Partitions(partitions),
            logs,
            store: Store::default(),
            workers: Vec::new(),
            processes: Vec::new(),
            lanes: Vec::new(),
            places: Vec::new(),
            plans,
            ledger: Ledger::new(
                case.events,
                dedup == Dedup::Required,
                clocks_agree && dedup == Dedup::Required,
                concurrency,
            ),
            trace: traced.then(Vec::new),
            order: match rng.u8(..6) {
                0 | 1 => Order::None,
                2 | 3 if dedup == Dedup::Required => Order::Ladder,
                _ => Order::Stage,
            },
            room: rng.usize(1..=8),
            dedup,
            window: rng.usize(1..=6),
            concurrency,
            heal,
            outage_until: 0,
            target_down_until: 0,
            guard,
            paused: BTreeSet::new(),
            outage_of: None,
            skew,
            kill_in: None,
            freeze_in: None,
            queue: Queue::default(),
            at_work: 0,
            rng,
        };
        world.begin(workers);
        world
    }

    fn begin(&mut self, workers: usize) {
        for worker in 0..workers {
            self.spawn(worker);
        }
        for (rung, partition) in self.all_partitions() {
            self.assign(rung, partition);
        }
        for event in 0..self.case.events {
            let at = self.rng.u64(0..5_000) * MS;
            self.at(at, Class::Input, Event::Produce(event));
        }
        use Fault::*;
        for fault in [
            Kill,
            Freeze,
            Rebalance,
            Shutdown,
            Cut,
            StoreOutage,
            KeyLoss,
            Flush,
            Failover,
            ClockStep,
            OffsetReset,
            StepBack,
            Pause,
            TargetDown,
        ] {
            if self.case.faults.has(fault) {
                for _ in 0..self.rng.usize(1..=3) {
                    let at = self.rng.u64(100..self.heal / MS) * MS;
                    self.at(at, Class::Input, Event::Fault(fault));
                }
            }
        }
        self.arm();
    }

    /// Draws after how many effects the next process is struck.
    fn arm(&mut self) {
        let mut draw = |fault| self.case.faults.has(fault).then(|| self.rng.u32(1..120));
        (self.kill_in, self.freeze_in) = (draw(Fault::Kill), draw(Fault::Freeze));
    }

    // ------------------------------------------------------------------------------------------------ time

    fn at(&mut self, at: Time, class: Class, event: Event) {
        let draw = self.rng.u32(..);
        self.queue.push(at, class, draw, event);
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.at(self.now + delay, Class::Input, event);
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", self.now as f64 / 1e6, what()));
        }
    }

    /// Whether a fault of this kind strikes here.
    pub(crate) fn chance(&mut self, fault: Fault, chance: f64) -> bool {
        self.case.faults.has(fault) && self.now < self.heal && self.rng.f64() < chance
    }

    pub(crate) fn network(&mut self) -> Time {
        self.rng.u64(1..=4) * MS
    }

    pub(crate) fn clock(&self, process: ProcessId) -> Now {
        let skew = self.skew[self.processes[process].worker];
        let wall = (EPOCH_MS * MS + self.now).saturating_add_signed(skew);
        Now { wall: Timestamp::from_micros(wall), boot: Duration::from_micros(self.now + 7 * SECOND) }
    }

    pub(crate) fn boot(at: Time) -> Duration {
        Duration::from_micros(at + 7 * SECOND)
    }

    pub(crate) fn all_partitions(&self) -> Vec<(usize, usize)> {
        let dlq = self.ladder.dlq().index;
        (0..dlq).flat_map(|rung| (0..self.logs[rung].len()).map(move |partition| (rung, partition))).collect()
    }

    pub(crate) fn lane_config(&self, number: u64) -> LaneConfig {
        LaneConfig {
            order: self.order,
            dedup: self.dedup,
            lease: LEASE,
            max_waiting: self.window,
            max_waiting_bytes: 1 << 20,
            max_in_flight: self.window + 1,
            max_in_flight_bytes: 1 << 20,
            first_sequence: number << 40,
            seed: self.case.seed ^ number,
        }
    }

    // ------------------------------------------------------------------------------------------------ the run

    /// Runs the schedule to its end.
    pub(crate) fn run(&mut self) {
        // Places that events took once more, after the store had forgotten their ends, lapse one after the other.
        let limit = self.heal + 180 * SECOND + 4 * PATIENCE.as_micros() as Time;
        let mut healed = false;
        while let Some((at, class, event)) = self.queue.pop() {
            self.now = at;
            if self.now >= self.heal && !std::mem::replace(&mut healed, true) {
                self.note(|| "everything works from here on".into());
                (self.kill_in, self.freeze_in) = (None, None);
            }
            if self.now > limit || self.ledger.counts.steps > MAX_STEPS {
                break;
            }
            self.ledger.counts.steps += 1;
            self.happen(class, event);
            if healed && self.is_quiet() {
                break;
            }
        }
        self.check_end();
    }

    fn is_quiet(&self) -> bool {
        self.lanes.iter().flatten().all(|lane| lane.lane.in_flight() + lane.lane.waiting() == 0)
            && self.all_partitions().iter().all(|(rung, partition)| self.is_finished(*rung, *partition))
    }

    pub(crate) fn is_finished(&self, rung: usize, partition: usize) -> bool {
        let log = &self.logs[rung][partition];
        let end = log.records.last().map_or(0, |record| record.offset + 1);
        end == 0 || (log.committed == Some(end) && log.owner.is_some())
    }

    /// The process in which an event happens.
    fn place(&self, event: &Event) -> Option<Option<ProcessId>> {
        let lane = |id: LaneId| self.lanes[id].as_ref().map(|lane| lane.process);
        Some(match event {
            Event::Fetch(id)
            | Event::Tick(id)
            | Event::Round(id)
            | Event::Return(id, ..)
            | Event::Reply(id, _)
            | Event::Ack(id, ..)
            | Event::Commit(id)
            | Event::Drain(id)
            | Event::DrainOver(id)
            | Event::Pass(id) => lane(*id),
            Event::Append(process, ..) | Event::Stopped(process) | Event::Command(process, _) => Some(*process),
            _ => return None,
        })
    }

    fn happen(&mut self, class: Class, event: Event) {
        if let Some(place) = self.place(&event) {
            let Some(process) = place else { return };
            let frozen = self.processes[process].frozen_until;
            if frozen > self.now {
                return self.at(frozen, class, event);
            }
            // What the producer had on the wire arrives, what it had in its queue does not.
            if !self.processes[process].alive && !(matches!(event, Event::Append(..)) && self.rng.bool()) {
                return;
            }
        }
        match event {
            Event::Produce(event) => self.write_event(event),
            Event::Ask(request) => self.asked(*request),
            Event::Append(_, lane, record, ack) => self.appended(lane, *record, ack),
            Event::Assign(rung, partition) => self.assign(rung, partition),
            Event::Session(process) => {
                let gone = &self.processes[process];
                if !gone.alive || gone.frozen_until > self.now || gone.cut_until > self.now {
                    self.note(|| format!("group: process {process} is expelled"));
                    self.expel(process);
                }
            }
            Event::Stopped(process) => self.end_process(process, "stops"),
            Event::Restart(worker) => self.spawn(worker),
            Event::Fault(fault) => self.strike(fault),
            Event::Fetch(id) => self.with(id, |world, lane| world.fetch(lane)),
            Event::Tick(id) => self.with(id, |world, lane| lane.input(world, Input::Tick)),
            Event::Round(id) => self.with(id, |world, lane| {
                lane.round_due = false;
                if !lane.round(world) && world.processes[lane.process].alive {
                    let awake = world.processes[lane.process].frozen_until;
                    lane.round_due = true;
                    world.at(awake, Class::First, Event::Round(lane.id));
                }
            }),
            Event::Return(id, slot, execution, outcome) => {
                self.with(id, |world, lane| lane.returned(world, slot, execution, *outcome));
            }
            Event::Reply(id, reply) => self.with(id, |world, lane| lane.reply(world, *reply)),
            Event::Ack(id, slot, delivery) => {
                self.with(id, |world, lane| lane.input(world, Input::Published(slot, delivery)));
            }
            Event::Commit(id) => self.with(id, |world, lane| world.commit(lane)),
            Event::Drain(id) => self.with(id, |world, lane| world.drain(lane)),
            Event::DrainOver(id) => self.with(id, |world, lane| world.give_up(lane)),
            Event::Pass(id) => self.with(id, |world, lane| lane.pass(world)),
            Event::Command(process, rung) => self.obey(process, rung),
            Event::Resume(rung) => self.order(rung, false),
        }
    }

    /// Something happens to a lane; then whatever follows from its new state is set.
    fn with(&mut self, id: LaneId, happens: impl FnOnce(&mut Self, &mut SimLane)) {
        let Some(mut lane) = self.lanes[id].take() else { return };
        self.at_work = id;
        happens(self, &mut lane);
        if !self.processes[lane.process].alive {
            return; // killed in the middle
        }
        if !lane.round_due {
            if lane.lane.drained() {
                lane.close(self);
                self.note(|| format!("lane {id} has drained"));
                return self.give_up(&mut lane);
            }
            self.follow_up(&mut lane);
        }
        self.lanes[id] = Some(lane);
    }

    fn follow_up(&mut self, lane: &mut SimLane) {
        let now = self.clock(lane.process);
        if lane.has_effects() || lane.waits_for_permits(now) != lane.is_in_line() {
            lane.round_due = true;
            self.at(self.now, Class::Round, Event::Round(lane.id));
        }
        if let Some(tick) = lane.next_tick(now, self.now) {
            self.at(tick.max(self.now), Class::Input, Event::Tick(lane.id));
        }
        if !lane.fetching && !lane.draining && !lane.lane.paused() && self.is_behind(lane) {
            lane.fetching = true;
            let after = self.network().max(self.processes[lane.process].cut_until.saturating_sub(self.now));
            self.after(after, Event::Fetch(lane.id));
        }
        if !lane.commit_due && lane.lane.position().is_some() && lane.lane.position() != lane.committed {
            lane.commit_due = true;
            let after = self.rng.u64(1..1_000) * MS;
            self.after(
                after.max(self.processes[lane.process].cut_until.saturating_sub(self.now)),
                Event::Commit(lane.id),
            );
        }
    }

    pub(crate) fn fetch_soon(&mut self, id: LaneId) {
        if let Some(lane) = &mut self.lanes[id]
            && !std::mem::replace(&mut lane.fetching, true)
        {
            let after = self.network();
            self.after(after, Event::Fetch(id));
        }
    }
}
