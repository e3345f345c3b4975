//! The witness in a worker: sees every answer of the outside first, writes it down, and kills the process at its point.
//!
//! One lock is held while a step is written down, or while the process dies, so that nothing passes between the two.

use std::fs::{File, OpenOptions};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;

use retry_ladder::prove::journal::{Line, Marks, Step};
use retry_ladder::prove::ports;
use retry_ladder::stage::clock::Clock;

use super::{Moment, Orders};
use crate::outside;

/// Sees every answer of the outside first.
pub(super) struct Witness {
    pub(super) orders: Orders,
    pub(super) executions: Mutex<File>,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

pub(super) struct Seen {
    marks: Marks,
    matches: usize,
    /// Settlements on the stage of the point.
    settled_there: usize,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Witness {
    pub(super) fn new(orders: &Orders, clock: Arc<dyn Clock>) -> Self {
        let executions = OpenOptions::new().create(true).append(true).open(orders.executions()).expect("a file");
        let marks = Marks::create(&orders.journal()).expect("a file");
        let seen = Mutex::new(Seen { marks, matches: 0, settled_there: 0 });
        Self { executions: Mutex::new(executions), clock, seen, orders: orders.clone() }
    }

    /// What the process takes for now.
    pub(super) fn believes_us(&self) -> u64 {
        self.clock.now().wall.as_micros()
    }

    /// Counts this moment of this copy, and dies if it is the one.
    pub(super) fn reach(&self, moment: Moment, id: &str, hop: u64) {
        let mut seen = lock(&self.seen);
        if self.comes_to(&mut seen, moment, id, hop) {
            self.die(&seen);
        }
    }

    /// Counts this moment of this copy, and says whether the caller is to die a little later.
    pub(super) fn is_to_die_soon(&self, moment: Moment, id: &str, hop: u64) -> bool {
        self.comes_to(&mut lock(&self.seen), moment, id, hop)
    }

    fn comes_to(&self, seen: &mut Seen, moment: Moment, id: &str, hop: u64) -> bool {
        let Some(point) = &self.orders.kill else { return false };
        if point.moment != moment || point.stage as u64 != hop || !id.starts_with(&point.ids) {
            return false;
        }
        seen.matches += 1;
        seen.matches == point.nth
    }

    pub(super) fn die_now(&self) -> ! {
        self.die(&lock(&self.seen))
    }

    /// The lock is held: nothing is written down after this.
    fn die(&self, _seen: &Seen) -> ! {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("a kill");
        loop {
            std::thread::park();
        }
    }

    /// Waits for a commit of the stage's group, then dies well before the next one (a second later), when more events
    /// have been settled and their position is stored (every tenth of a second).
    fn die_before_a_commit(&self) {
        let stage = self.orders.kill.as_ref().map_or(0, |point| point.stage);
        let ladder = self.orders.ladder();
        let rung = &ladder.rungs()[stage];
        let consumer: BaseConsumer = outside::config(&self.orders.brokers)
            .set("group.id", &*rung.group_id)
            .create()
            .expect("a consumer that looks at the offsets");
        let committed = || outside::committed(&consumer, &rung.topic, self.orders.partitions);
        loop {
            let before = committed();
            while committed() == before {
                std::thread::sleep(Duration::from_millis(10));
            }
            let (at, settled) = (Instant::now(), lock(&self.seen).settled_there);
            while at.elapsed() < Duration::from_millis(600) {
                std::thread::sleep(Duration::from_millis(10));
                let seen = lock(&self.seen);
                if seen.settled_there > settled && at.elapsed() > Duration::from_millis(250) {
                    self.die(&seen);
                }
            }
        }
    }
}

impl ports::Witness for Witness {
    fn saw(self: &Arc<Self>, lines: &[Line]) {
        let mut seen = lock(&self.seen);
        seen.marks.write(lines).expect("the marks");
        let there = |line: &&Line| self.orders.kill.as_ref().is_some_and(|point| point.stage as u64 == line.hop);
        seen.settled_there += lines.iter().filter(|line| line.step == Step::Settled).filter(there).count();
        for Line { step, hop, id, .. } in lines {
            let moment = match step {
                Step::Claimed { .. } => Moment::Claimed,
                Step::Acknowledged => Moment::Acknowledged,
                Step::Settled => Moment::Settled,
                _ => continue,
            };
            if self.comes_to(&mut seen, moment, id, *hop) {
                self.die(&seen);
            }
            if moment == Moment::Settled && self.comes_to(&mut seen, Moment::BeforeCommit, id, *hop) {
                let witness = Arc::clone(self);
                std::thread::spawn(move || witness.die_before_a_commit());
            }
        }
    }
}
