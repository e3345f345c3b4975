//! One run under a fault: workers and load come and go as the test says, then everything is read back and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use retry_ladder::prove;
use retry_ladder::prove::journal::Blow;
use retry_ladder::prove::ledger::{Cause, Interruption, Ledger, Produced};
use retry_ladder::stage::clock::{Clock as _, SystemClock};

use crate::support::{self, unique};
use crate::worker::evidence::{self, PATIENCE};
use crate::worker::journal::{self, Line, Step};
use crate::worker::load::Source;
use crate::worker::process::{LogsOnFailure, Worker};
use crate::worker::{Orders, THREADS};

/// Events a second.
const RATE: u32 = 80;
/// Keys of each kind: an event in doubt holds up its key, and shall not hold up everything.
const KEYS: usize = 200;

/// Makes a test of a function that is given the test's own name. The same test, executed again with orders in its
/// environment, is a worker.
macro_rules! fault_test {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            match std::env::var($crate::worker::ORDERS) {
                Ok(orders) => $crate::worker::run(&orders),
                Err(_) => {
                    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
                    ($body)(&format!("{module}::{}", stringify!($name)))
                }
            }
        }
    };
}
pub(super) use fault_test;

/// Unix microseconds.
pub(super) fn now_us() -> u64 {
    SystemClock.now().wall.as_micros()
}

pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A ladder, its load and its workers.
pub(super) struct Run {
    test: String,
    /// What the next worker is told, but for its name.
    pub(super) orders: Orders,
    pub(super) source: Source,
    workers: BTreeMap<String, Worker>,
    /// Journals of all workers that ever were, by name.
    journals: BTreeSet<String>,
    interruptions: Vec<Interruption>,
    begun: Instant,
    _logs: LogsOnFailure,
    folder: tempfile::TempDir,
}

impl Run {
    /// A ladder of main, two retry stages and a DLQ on these services.
    pub(super) fn new(test: &str, brokers: &str, redis: &str, replication: i32) -> Self {
        let topic = unique("faults");
        let folder = tempfile::Builder::new().prefix("ladder-faults").tempdir().expect("a folder");
        let orders = Orders {
            name: String::new(),
            brokers: brokers.to_owned(),
            redis: redis.to_owned(),
            prefix: topic.clone(),
            group: unique("g"),
            partitions: 4,
            delays_ms: vec![300, 800],
            lease_ms: 3_000,
            session_ms: 6_000,
            latency_ms: 20,
            clock_ahead_ms: 0,
            instance: None,
            stages: Vec::new(),
            folder: folder.path().to_owned(),
            kill: None,
            transactional: false,
            topic,
        };
        evidence::create_topics(&orders, replication);
        Self {
            test: test.to_owned(),
            source: Source::new(&orders.brokers, &orders.topic, orders.partitions, KEYS),
            orders,
            workers: BTreeMap::new(),
            journals: BTreeSet::new(),
            interruptions: Vec::new(),
            begun: Instant::now(),
            _logs: LogsOnFailure::new(test, folder.path()),
            folder,
        }
    }

    /// The same on the Kafka that everybody shares.
    pub(super) fn shared(test: &str, redis: &str) -> Self {
        Self::new(test, &support::brokers(), redis, 1)
    }

    pub(super) fn start(&mut self, name: &str) {
        self.start_with(name, |_| {});
    }

    /// Starts a worker under a name that is new.
    pub(super) fn start_with(&mut self, name: &str, tune: impl FnOnce(&mut Orders)) {
        let mut orders = Orders { name: name.to_owned(), ..self.orders.clone() };
        tune(&mut orders);
        assert!(self.journals.insert(name.to_owned()), "{name} is not new");
        self.workers.insert(name.to_owned(), Worker::start(&self.test, &orders));
    }

    pub(super) fn worker(&self, name: &str) -> &Worker {
        &self.workers[name]
    }

    /// Asks a worker to drain and leave, and waits for it.
    pub(super) fn stop(&mut self, name: &str) {
        let worker = self.workers.remove(name).expect("it runs");
        let status = worker.stop();
        assert!(status.success(), "{name} was asked to stop and ended with {status}");
    }

    /// SIGKILL. What it had in hand may run again.
    pub(super) fn kill(&mut self, name: &str) {
        self.workers.remove(name).expect("it runs").kill();
        self.interrupted(name, Blow::kill());
    }

    /// What this worker had in hand and could not keep for this blow may run again.
    pub(super) fn interrupted(&mut self, name: &str, blow: Blow) {
        self.interruptions.push(self.in_hand(name, blow));
    }

    /// What this worker had in hand at this blow.
    pub(super) fn in_hand(&self, name: &str, blow: Blow) -> Interruption {
        let path = self.folder.path().join(format!("{name}.journal"));
        let told = prove::journal::read(&path, &[blow], THREADS).expect("its marks");
        told.interruptions.into_iter().next().expect("of the blow")
    }

    /// No worker could renew a lease in this span.
    pub(super) fn all_cut_off(&mut self, during: RangeInclusive<u64>) {
        let blow = Blow { cause: Cause::CutOff, from_us: *during.start(), to_us: *during.end() };
        for name in self.journals.clone() {
            self.interrupted(&name, blow);
        }
    }

    /// Redis forgot what any worker told it in this span, and what they had in hand.
    pub(super) fn all_forgotten(&mut self, during: RangeInclusive<u64>) {
        for name in &self.journals {
            let forgotten = journal::forgotten(&self.journal(name), *during.start(), *during.end());
            self.interruptions.push(forgotten);
        }
    }

    pub(super) fn interruptions(&self) -> &[Interruption] {
        &self.interruptions
    }

    pub(super) fn journal(&self, name: &str) -> Vec<Line> {
        journal::read(&self.folder.path().join(format!("{name}.journal")))
    }

    /// How many copies this worker has settled.
    pub(super) fn settled(&self, name: &str) -> usize {
        self.journal(name).iter().filter(|line| line.step == Step::Settled).count()
    }

    /// The partitions of main from which this worker has claimed an event that was sent after the first `sent`.
    pub(super) fn claims_beyond(&self, name: &str, sent: usize) -> BTreeSet<usize> {
        let claims = self.journal(name).into_iter().filter(|line| matches!(line.step, Step::Claimed { .. }));
        let numbers = claims.filter_map(|line| line.id.rsplit_once('-')?.1.parse::<usize>().ok());
        // Events that the load has not numbered have larger numbers by far.
        numbers.filter(|n| (sent..40_000).contains(n)).map(|n| n % self.orders.partitions as usize).collect()
    }

    /// Load for so long.
    pub(super) fn load(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.load_until("", |_| Instant::now() >= end);
    }

    /// Load until it is so.
    ///
    /// # Panics
    /// When it does not become so.
    pub(super) fn load_until(&mut self, what: &str, is_so: impl FnMut(&Self) -> bool) {
        self.load_within(PATIENCE, what, is_so);
    }

    /// Load until it is so, with a limit that is itself what is tested.
    pub(super) fn load_within(&mut self, limit: Duration, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        let batch = 4;
        while !is_so(self) {
            assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
            self.source.send(batch);
            std::thread::sleep(Duration::from_secs(1) * batch as u32 / RATE);
        }
    }

    /// Load until each of these workers has settled something from now on.
    pub(super) fn load_until_all_work(&mut self, names: &[&str]) {
        let before: Vec<usize> = names.iter().map(|name| self.settled(name)).collect();
        self.load_until("all work", |run| {
            names.iter().zip(&before).all(|(name, before)| run.settled(name) > before + 5)
        });
    }

    /// Whether the group of a stage has committed the end of its log.
    pub(super) fn is_committed(&self, stage: &str) -> bool {
        let ladder = self.orders.ladder();
        let rung = ladder.rungs().iter().find(|rung| &*rung.name == stage).expect("a stage");
        evidence::is_committed(&self.orders, rung)
    }

    /// Ends the load, waits until every group has committed the end of its log, asks the workers to leave, reads
    /// everything back. Nothing may be wrong with it.
    pub(super) fn finish(self) -> Ledger {
        self.finish_with(|_| {})
    }

    /// The same; what was produced is first told its ids by the test. `{topic}` stands for the main topic.
    pub(super) fn finish_with(mut self, tell: impl FnOnce(&mut Vec<Produced>)) -> Ledger {
        let mut produced = self.source.finish();
        tell(&mut produced);
        for event in &mut produced {
            event.id = event.id.replace("{topic}", &self.orders.topic);
        }
        let sent = produced.len();
        evidence::wait_until_committed(&self.orders, self.workers.values_mut());
        for name in self.workers.keys().cloned().collect::<Vec<_>>() {
            self.stop(&name);
        }
        let ledger = evidence::ledger(&self.orders, produced, std::mem::take(&mut self.interruptions));
        let faults = ledger.faults();
        assert!(faults.is_empty(), "{}: {sent} events, {} faults:\n{}", self.test, faults.len(), faults.join("\n"));
        eprintln!("{}: {}, {:.1?}", self.test, ledger.summary(), self.begun.elapsed());
        ledger
    }
}
