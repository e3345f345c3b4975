//! The process that is killed: a ladder with all its stages on real services, which sends itself SIGKILL at the chosen
//! moment of the chosen event.
//!
//! The engine is the real one and knows nothing of it: the ports around it are wrapped. Each wrapper sees an answer of
//! the outside (a claim granted, an effect on the disk, a delivery report, a settlement recorded) before the engine
//! does, and one lock is held while the process writes down what it has in hand and dies, so that nothing passes
//! between the two.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, select_all};
use rdkafka::consumer::BaseConsumer;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::adapters::kafka::producer::{KafkaPublisher, Options};
use retry_ladder::adapters::redis;
use retry_ladder::app::decode::PayloadDecoder;
use retry_ladder::app::engine::{Engine, Pipeline};
use retry_ladder::ladder::event::{ClaimReply, Failure, Outcome};
use retry_ladder::ladder::lane::{Dedup, Order};
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::prove::ledger::{Cause, Fate, Held, InHand, Interruption};
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::context::{Partitions, StageSettings, Tombstones};
use retry_ladder::stage::ports::{
    AckSink, Claim, CopyKey, Event, Handler, IdempotencyStore, Mark, Outgoing, PublishError, Publisher, SettleReply,
    StoreError,
};
use retry_ladder::telemetry::logs;

use crate::outside;

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
    /// Static member id: a restart takes its partitions back at once.
    pub(crate) instance: Option<String>,
    pub(crate) folder: PathBuf,
    pub(crate) kill: Option<Point>,
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

    /// What this process had in hand when it died.
    pub(crate) fn last_words(&self) -> PathBuf {
        self.folder.join(format!("{}.killed", self.name))
    }

    /// One line for each claim that this process found busy.
    pub(crate) fn busy(&self) -> PathBuf {
        self.folder.join(format!("{}.busy", self.name))
    }
}

/// The fate that an event's id spells: `ok-…`, `f1-…` (fails once) … `f9-…` (always), `perm-…`, `junk-…`, `heal-…`,
/// `flip-…` (heals after a failure for good).
pub(crate) fn fate(id: &str) -> Fate {
    match id.split_once('-').map_or(id, |(kind, _)| kind) {
        "ok" => Fate::Fails(0),
        "f1" => Fate::Fails(1),
        "f2" => Fate::Fails(2),
        "f9" => Fate::Fails(9),
        "perm" => Fate::Permanent,
        "junk" => Fate::Poison,
        "heal" => Fate::Heals { permanent: false },
        "flip" => Fate::Heals { permanent: true },
        kind => panic!("no fate is called {kind}"),
    }
}

/// Runs the stages until standard input ends, or until the process dies at its point.
pub(crate) fn run(orders: &str) {
    let orders: Orders = serde_json::from_str(orders).expect("orders");
    logs::init(logs::Format::Text);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
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
    let publisher = KafkaPublisher::new(properties.clone(), Options::default()).expect("a producer");
    let witness = Arc::new(Witness::new(&orders));
    let publisher = Arc::new(WitnessedPublisher { inner: publisher, witness: Arc::clone(&witness) });
    let store = redis::connect(&orders.redis, redis::Options::default()).await.expect("a redis");
    let store = Arc::new(WitnessedStore { inner: Arc::new(store), witness: Arc::clone(&witness) });
    let handler: Arc<dyn Handler> = Arc::new(Executor { witness: Arc::clone(&witness) });

    let mut engine = Engine::new(properties, publisher).expect("an engine");
    engine.instance = orders.instance.clone();
    engine.session_timeout = Duration::from_secs(6);
    let remembered = Duration::from_secs(600);
    let settings = StageSettings {
        concurrency: 16,
        lease: Duration::from_millis(orders.lease_ms),
        done_ttl: remembered,
        handed_ttl: remembered,
        ..StageSettings::default()
    };
    let dlq =
        StageSettings { dedup: Dedup::Off, order: Order::None, tombstones: Tombstones::Deliver, ..settings.clone() };
    let mut settings = vec![settings; rungs - 1];
    settings.push(dlq);
    let message = "shop.v1.OrderPlaced";
    let pipeline = Pipeline {
        ladder,
        message: message.into(),
        decode: Arc::new(PayloadDecoder::new(Decoder::new(message, None, Framing::Plain).expect("a decoder"), None)),
        handler,
        dead_letters: Arc::new(retry_ladder::handlers::handler_fn(|_| async {})),
        store,
        prefix: orders.prefix.clone(),
        settings,
        partitions: Partitions(vec![orders.partitions; rungs]),
    };
    let stages = (0..rungs).map(|stage| engine.start(&pipeline, stage).expect("a stage"));
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

// ---------------------------------------------------------------------------------------------- the witness

/// Sees every answer of the outside first, and kills the process at its point.
struct Witness {
    orders: Orders,
    executions: Mutex<File>,
    busy: Mutex<File>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// By event id and hop.
    in_hand: BTreeMap<(String, u64), Held>,
    settled: Vec<(String, u64)>,
    matches: usize,
    /// Settlements on the stage of the point.
    settled_there: usize,
}

fn append(path: &Path) -> Mutex<File> {
    Mutex::new(OpenOptions::new().create(true).append(true).open(path).expect("a file"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_us() -> u64 {
    SystemClock.now().wall.as_micros()
}

/// Event id and hop of a copy's key. The ids of these tests need no encoding.
fn id_and_hop(key: &CopyKey) -> (String, u64) {
    let mut parts = key.rsplit(':');
    let hop = parts.next().and_then(|hop| hop.parse().ok()).expect("a hop");
    (parts.next().expect("an id").to_owned(), hop)
}

impl Witness {
    fn new(orders: &Orders) -> Self {
        Self {
            executions: append(&orders.executions()),
            busy: append(&orders.busy()),
            seen: Mutex::new(Seen::default()),
            orders: orders.clone(),
        }
    }

    /// Counts this moment of this copy, and dies if it is the one.
    fn reach(&self, seen: &mut Seen, moment: Moment, id: &str, hop: u64) {
        if self.comes_to(seen, moment, id, hop) {
            self.die(seen);
        }
    }

    fn comes_to(&self, seen: &mut Seen, moment: Moment, id: &str, hop: u64) -> bool {
        let Some(point) = &self.orders.kill else { return false };
        if point.moment != moment || point.stage as u64 != hop || !id.starts_with(&point.ids) {
            return false;
        }
        seen.matches += 1;
        seen.matches == point.nth
    }

    fn die(&self, seen: &Seen) -> ! {
        let in_hand = seen.in_hand.values().cloned().collect();
        let kill = Interruption { cause: Cause::Killed, in_hand, settled: seen.settled.clone() };
        let mut file = File::create(self.orders.last_words()).expect("a file for the last words");
        file.write_all(kill.write().as_bytes()).and_then(|()| file.sync_all()).expect("the last words");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("a kill");
        loop {
            std::thread::park();
        }
    }

    /// `held`: as they are if they are granted.
    fn claimed(&self, held: &[Held], replies: &[Result<ClaimReply, StoreError>]) {
        let mut seen = lock(&self.seen);
        for (held, reply) in held.iter().zip(replies) {
            match reply {
                Ok(ClaimReply::Claimed | ClaimReply::AlreadyOurs) => {
                    seen.in_hand.insert((held.id.clone(), held.hop), held.clone());
                }
                Ok(ClaimReply::Busy) => {
                    writeln!(lock(&self.busy), "{} {}", held.hop, held.id).expect("the file of busy claims");
                }
                _ => {}
            }
        }
        for (held, reply) in held.iter().zip(replies) {
            if matches!(reply, Ok(ClaimReply::Claimed)) {
                self.reach(&mut seen, Moment::Claimed, &held.id, held.hop);
            }
        }
    }

    fn moves(&self, seen: &mut Seen, id: &str, hop: u64, how: InHand) {
        let held = seen.in_hand.get_mut(&(id.to_owned(), hop)).expect("a copy that moves was claimed");
        held.how = how;
    }

    fn settled(self: &Arc<Self>, copies: &[(String, u64)], replies: &[Result<SettleReply, StoreError>]) {
        let mut seen = lock(&self.seen);
        let recorded: Vec<_> = copies.iter().zip(replies).filter(|(_, reply)| reply.is_ok()).map(|(c, _)| c).collect();
        for copy in &recorded {
            seen.in_hand.remove(*copy);
            seen.settled.push((*copy).clone());
            let there = self.orders.kill.as_ref().is_some_and(|point| point.stage as u64 == copy.1);
            seen.settled_there += usize::from(there);
        }
        for (id, hop) in recorded {
            self.reach(&mut seen, Moment::Settled, id, *hop);
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

// ---------------------------------------------------------------------------------------------- the ports

struct WitnessedStore {
    inner: Arc<dyn IdempotencyStore>,
    witness: Arc<Witness>,
}

impl IdempotencyStore for WitnessedStore {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        // Redis counts from when it executes the command, which is later.
        let leased_until_us = now_us() + lease.as_micros() as u64;
        let held = |(key, claim): &(CopyKey, Claim)| {
            let ((id, hop), fence) = (id_and_hop(key), claim.fence);
            Held { id, hop, how: InHand::Claimed, fence, leased_until_us }
        };
        let held: Vec<_> = batch.iter().map(held).collect();
        let (call, witness) = (self.inner.claim(batch, lease), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.claimed(&held, &replies);
            replies
        }
        .boxed()
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.inner.renew(batch, lease)
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, ..)| id_and_hop(key)).collect();
        let (call, witness) = (self.inner.settle(batch), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.settled(&copies, &replies);
            replies
        }
        .boxed()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, _)| id_and_hop(key)).collect();
        let (call, witness) = (self.inner.release(batch), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            let mut seen = lock(&witness.seen);
            for copy in &copies {
                seen.in_hand.remove(copy);
            }
            drop(seen);
            replies
        }
        .boxed()
    }
}

struct WitnessedPublisher {
    inner: KafkaPublisher,
    witness: Arc<Witness>,
}

impl Publisher for WitnessedPublisher {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let header = |name: &str| {
            let value = record.headers.iter().find(|(n, _)| n == name).and_then(|(_, value)| value.as_deref());
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let id = header("x-ladder-event-id").expect("an event id").to_owned();
        let hop = header("x-ladder-hop").and_then(|hop| hop.parse::<u64>().ok()).expect("a hop") - 1;
        self.witness.moves(&mut lock(&self.witness.seen), &id, hop, InHand::Published);
        let (acks, witness) = (Arc::clone(acks), Arc::clone(&self.witness));
        let acks: Arc<dyn AckSink> = Arc::new(WitnessedAck { acks, witness, id, hop });
        self.inner.publish(record, ticket, &acks);
    }
}

struct WitnessedAck {
    acks: Arc<dyn AckSink>,
    witness: Arc<Witness>,
    id: String,
    hop: u64,
}

impl AckSink for WitnessedAck {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        if result.is_ok() {
            let mut seen = lock(&self.witness.seen);
            self.witness.moves(&mut seen, &self.id, self.hop, InHand::Acknowledged);
            self.witness.reach(&mut seen, Moment::Acknowledged, &self.id, self.hop);
        }
        self.acks.acknowledged(ticket, result);
    }
}

/// Does what the event's id spells, and writes every start and end to the disk.
struct Executor {
    witness: Arc<Witness>,
}

impl Executor {
    async fn record(&self, line: String) {
        let witness = Arc::clone(&self.witness);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = lock(&witness.executions);
            file.write_all(line.as_bytes()).and_then(|()| file.sync_data())
        });
        written.await.expect("a thread that writes").expect("the executions file");
    }

    /// Whether any process has begun to execute this event before.
    fn has_begun(&self, id: &str) -> bool {
        let file = std::fs::read_to_string(self.witness.orders.executions()).expect("the executions file");
        let own = |line: &str| line.starts_with("start ") && line.split(' ').nth(5) == Some(id);
        file.lines().any(own)
    }

    fn outcome(&self, event: &Event, begun: bool) -> Outcome {
        let failed = match fate(&event.id) {
            Fate::Fails(times) => event.attempt <= times,
            Fate::Permanent => return Outcome::Failed(Failure::permanent("will never do")),
            Fate::Heals { .. } if begun => false,
            Fate::Heals { permanent: true } => return Outcome::Failed(Failure::permanent("did not do")),
            Fate::Heals { permanent: false } => true,
            Fate::Poison => panic!("poison reached the handler"),
        };
        if failed { Outcome::Failed(Failure::transient("not yet")) } else { Outcome::Done }
    }
}

impl Handler for Executor {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        async move {
            let begun = self.has_begun(&event.id);
            let (attempt, fence, id) = (event.attempt, event.fence, &event.id);
            let line = |what: &str, outcome: &str| {
                let (at, record) = (now_us(), &event.record);
                let place = format!("{}:{}", record.partition, record.offset);
                format!("{what} {at} {} {attempt} {fence} {id} {outcome} {place}\n", event.stage_name)
            };
            self.record(line("start", "-")).await;
            let comes = self.witness.comes_to(&mut lock(&self.witness.seen), Moment::Running, id, event.stage as u64);
            if comes {
                // The client commits every second.
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                self.witness.die(&lock(&self.witness.seen));
            }
            let outcome = self.outcome(&event, begun);
            let word = match &outcome {
                Outcome::Done => "done",
                Outcome::Failed(failure) if failure.message == "not yet" => "transient",
                _ => "permanent",
            };
            self.record(line("end", word)).await;
            let mut seen = lock(&self.witness.seen);
            self.witness.reach(&mut seen, Moment::Effect, id, event.stage as u64);
            drop(seen);
            outcome
        }
        .boxed()
    }
}
