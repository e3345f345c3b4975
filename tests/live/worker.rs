//! The worker processes of the fault tests: a ladder with all its stages on real services, in a process that can be
//! killed, frozen, cut off or told a wrong time.
//!
//! The engine is the real one and knows nothing of it: the ports around it are watched, as in the proof's own workers
//! ([`retry_ladder::prove::ports`]), so that whatever happens to the process, it can be told what it had in hand
//! ([`journal`]). At a chosen moment of a chosen event it sends itself SIGKILL ([`witness`]).
//!
//! A worker is the very test that needs it, executed again with [`ORDERS`] in its environment ([`process`]).

pub(crate) mod evidence;
mod executor;
pub(crate) mod journal;
pub(crate) mod load;
pub(crate) mod process;
mod witness;

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::select_all;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::adapters::kafka::producer::{KafkaPublisher, Options};
use retry_ladder::adapters::redis;
use retry_ladder::app::decode::PayloadDecoder;
use retry_ladder::app::engine::{Engine, Pipeline};
use retry_ladder::ladder::event::{Now, Timestamp};
use retry_ladder::ladder::lane::{Dedup, Order};
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::prove::ledger::Fate;
use retry_ladder::prove::ports::{WatchedPublisher, WatchedStore};
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::context::{Forward, Partitions, StageSettings, Tombstones};
use retry_ladder::stage::ports::Handler;
use retry_ladder::telemetry::logs;

use self::executor::Executor;
use self::witness::Witness;

/// Threads of a worker's runtime.
pub(crate) const THREADS: usize = 2;
/// Set in the environment of a worker: what it is to do, as JSON.
pub(crate) const ORDERS: &str = "LADDER_CRASH_ORDERS";

/// Between which two steps the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Moment {
    /// Redis has granted the claim, the engine does not know yet.
    Claimed,
    /// The handler is at work, and has been while the client committed more than once.
    Running,
    /// The handler's effect is on the disk, its outcome has not been returned.
    Effect,
    /// The next copy is acknowledged, the engine does not know yet.
    Acknowledged,
    /// Redis has recorded the settlement, the engine does not know yet.
    Settled,
    /// The engine knows, its position is stored, the client has not committed it yet.
    BeforeCommit,
}

/// Where to die.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) moment: Moment,
    /// Stage of the event: its hop, as nothing is deferred or redriven.
    pub(crate) stage: usize,
    /// Only events whose id begins with this count.
    pub(crate) ids: String,
    /// The how manieth.
    pub(crate) nth: usize,
}

/// What a worker is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Of this process, for its files.
    pub(crate) name: String,
    pub(crate) brokers: String,
    pub(crate) redis: String,
    pub(crate) prefix: String,
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) partitions: i32,
    pub(crate) delays_ms: Vec<u64>,
    pub(crate) lease_ms: u64,
    pub(crate) session_ms: u64,
    /// How long every execution takes.
    pub(crate) latency_ms: u64,
    /// Its wall clock is ahead by so much, or behind.
    pub(crate) clock_ahead_ms: i64,
    /// Static member id: a restart takes its partitions back at once.
    pub(crate) instance: Option<String>,
    /// Indexes of the stages that it runs; all when there is none.
    pub(crate) stages: Vec<usize>,
    pub(crate) folder: PathBuf,
    pub(crate) kill: Option<Point>,
    /// Hops and offsets go in transactions.
    pub(crate) transactional: bool,
}

impl Orders {
    pub(crate) fn ladder(&self) -> Ladder {
        let spec = LadderSpec::new("crash", &self.group, &self.topic);
        let retry = |spec: LadderSpec, ms: &u64| spec.retry(Duration::from_millis(*ms));
        Ladder::new(self.delays_ms.iter().fold(spec, retry)).expect("a ladder")
    }

    /// The file in which all workers of a case record their executions.
    pub(crate) fn executions(&self) -> PathBuf {
        self.folder.join("executions")
    }

    /// What became of each copy, line by line as it happened.
    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.join(format!("{}.journal", self.name))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}

/// The fate that an event's name spells: `ok-…`, `f1-…` (fails once) … `f9-…` (always), `perm-…`, `junk-…` and
/// `tomb-…` (no value), `heal-…`, `flip-…` (heals after a failure for good).
pub(crate) fn fate(name: &str) -> Fate {
    match name.split_once('-').map_or(name, |(kind, _)| kind) {
        "ok" => Fate::Fails(0),
        "f1" => Fate::Fails(1),
        "f2" => Fate::Fails(2),
        "f9" => Fate::Fails(9),
        "perm" => Fate::Permanent,
        "junk" | "tomb" => Fate::Poison,
        "heal" => Fate::Heals { permanent: false },
        "flip" => Fate::Heals { permanent: true },
        kind => panic!("no fate is called {kind}"),
    }
}

/// The system's clocks, the one on the wall set wrong.
struct WrongClock {
    ahead_ms: i64,
}

impl Clock for WrongClock {
    fn now(&self) -> Now {
        let now = SystemClock.now();
        let us = now.wall.as_micros().saturating_add_signed(self.ahead_ms.saturating_mul(1_000));
        Now { wall: Timestamp::from_micros(us), ..now }
    }
}

/// Runs the stages until standard input ends, or until the process dies at its point.
pub(crate) fn run(orders: &str) {
    let orders: Orders = serde_json::from_str(orders).expect("orders");
    logs::init(logs::Format::Text, None);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    runtime.expect("a runtime").block_on(work(orders));
}

async fn work(orders: Orders) {
    let (eof, stopped) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Whoever started this worker holds the other end: when it goes, however it goes, the worker goes too.
        std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input");
        drop(eof);
    });
    let ladder = Arc::new(orders.ladder());
    let rungs = ladder.rungs().len();
    let properties = Properties::new(&orders.brokers);
    let clock: Arc<dyn Clock> = Arc::new(WrongClock { ahead_ms: orders.clock_ahead_ms });
    let publisher = KafkaPublisher::new(properties.clone(), Options::default()).expect("a producer");
    let witness = Arc::new(Witness::new(&orders, Arc::clone(&clock)));
    let publisher = Arc::new(WatchedPublisher { inner: Arc::new(publisher), witness: Arc::clone(&witness) });
    let store = redis::connect(&orders.redis, redis::Options::default()).await.expect("a redis");
    let store = Arc::new(WatchedStore { inner: Arc::new(store), witness: Arc::clone(&witness) });
    let handler: Arc<dyn Handler> = Arc::new(Executor { witness });

    let mut engine = Engine::new(properties, publisher).expect("an engine");
    engine.clock = clock;
    engine.instance = orders.instance.clone();
    engine.session_timeout = Duration::from_millis(orders.session_ms);
    let remembered = Duration::from_secs(600);
    let settings = StageSettings {
        concurrency: 16,
        lease: Duration::from_millis(orders.lease_ms),
        done_ttl: remembered,
        handed_ttl: remembered,
        forward: if orders.transactional { Forward::Transactional } else { Forward::Idempotent },
        ..StageSettings::default()
    };
    let dlq = StageSettings {
        dedup: Dedup::Off,
        order: Order::None,
        tombstones: Tombstones::Deliver,
        forward: Forward::Idempotent,
        ..settings.clone()
    };
    let mut settings = vec![settings; rungs - 1];
    settings.push(dlq);
    let message = "shop.v1.OrderPlaced";
    let pipeline = Pipeline {
        ladder,
        message: message.into(),
        decode: Arc::new(PayloadDecoder::Own(Decoder::new(message, None, Framing::Plain).expect("a decoder"), None)),
        handler,
        dead_letters: Arc::new(retry_ladder::handlers::handler_fn(|_| async {})),
        store,
        prefix: orders.prefix.clone(),
        settings,
        partitions: Partitions(vec![orders.partitions; rungs]),
    };
    let chosen = |stage: &usize| orders.stages.is_empty() || orders.stages.contains(stage);
    let stages = (0..rungs).filter(chosen).map(|stage| engine.start(&pipeline, stage).expect("a stage"));
    let mut stages: Vec<_> = stages.collect();
    let ended = select_all(stages.iter_mut().map(|stage| stage.ended().boxed())).map(|(result, ..)| result);
    tokio::select! {
        // The sender is dropped, never used.
        _ = stopped => {}
        result = ended => panic!("a stage ended by itself: {result:?}"),
    }
    stages.iter().for_each(|stage| stage.stop());
    for stage in &mut stages {
        stage.ended().await.expect("a stage that ends well");
    }
}
