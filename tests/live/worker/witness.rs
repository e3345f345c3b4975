//! The witness in a worker: sees every answer of the outside first, writes it down, and kills the process at its point.
//!
//! One lock is held while a step is written down, or while the process dies, so that nothing passes between the two.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;

use retry_ladder::ladder::event::ClaimReply;
use retry_ladder::prove::ledger::Cause;
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::ports::{SettleReply, StoreError};

use super::journal::{self, Line, Step};
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
    journal: File,
    matches: usize,
    /// Settlements on the stage of the point.
    settled_there: usize,
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("a file")
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By the right clock: journals of all processes and the test are compared.
pub(super) fn now_us() -> u64 {
    SystemClock.now().wall.as_micros()
}

impl Witness {
    pub(super) fn new(orders: &Orders, clock: Arc<dyn Clock>) -> Self {
        Self {
            executions: Mutex::new(append(&orders.executions())),
            clock,
            seen: Mutex::new(Seen { journal: append(&orders.journal()), matches: 0, settled_there: 0 }),
            orders: orders.clone(),
        }
    }

    /// What the process takes for now.
    pub(super) fn believes_us(&self) -> u64 {
        self.clock.now().wall.as_micros()
    }

    /// Writes down a step of one copy.
    pub(super) fn note(&self, step: Step, id: &str, hop: u64) {
        write(&mut lock(&self.seen), step, id, hop);
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
        let kill = journal::interruption(Cause::Killed, &journal::read(&self.orders.journal()), u64::MAX..=u64::MAX);
        let mut file = File::create(self.orders.last_words()).expect("a file for the last words");
        file.write_all(kill.write().as_bytes()).and_then(|()| file.sync_all()).expect("the last words");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("a kill");
        loop {
            std::thread::park();
        }
    }

    /// `claims`: event id, hop and fence; the leases do not end before `leased_until_us`.
    pub(super) fn claimed(
        &self,
        claims: &[(String, u64, u64)],
        leased_until_us: u64,
        replies: &[Result<ClaimReply, StoreError>],
    ) {
        let mut seen = lock(&self.seen);
        let replied = || claims.iter().zip(replies);
        for ((id, hop, fence), reply) in replied() {
            let step = match reply {
                Ok(ClaimReply::Claimed | ClaimReply::AlreadyOurs) => Step::Claimed { fence: *fence, leased_until_us },
                Ok(ClaimReply::Busy) => Step::Busy,
                Ok(ClaimReply::Done | ClaimReply::MovedOn) => Step::Known,
                _ => continue,
            };
            write(&mut seen, step, id, *hop);
        }
        for ((id, hop, _), reply) in replied() {
            if matches!(reply, Ok(ClaimReply::Claimed)) && self.comes_to(&mut seen, Moment::Claimed, id, *hop) {
                self.die(&seen);
            }
        }
    }

    pub(super) fn settled(self: &Arc<Self>, copies: &[(String, u64)], replies: &[Result<SettleReply, StoreError>]) {
        let mut seen = lock(&self.seen);
        let recorded: Vec<_> = copies.iter().zip(replies).filter(|(_, reply)| reply.is_ok()).map(|(c, _)| c).collect();
        for (id, hop) in &recorded {
            write(&mut seen, Step::Settled, id, *hop);
            let there = self.orders.kill.as_ref().is_some_and(|point| point.stage as u64 == *hop);
            seen.settled_there += usize::from(there);
        }
        for (id, hop) in recorded {
            if self.comes_to(&mut seen, Moment::Settled, id, *hop) {
                self.die(&seen);
            }
            if self.comes_to(&mut seen, Moment::BeforeCommit, id, *hop) {
                let witness = Arc::clone(self);
                std::thread::spawn(move || witness.die_before_a_commit());
            }
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

fn write(seen: &mut Seen, step: Step, id: &str, hop: u64) {
    seen.journal.write_all(Line::write(now_us(), step, id, hop).as_bytes()).expect("the journal");
}
