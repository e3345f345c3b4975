//! A whole ladder on a broker that answers wrongly (librdkafka's mock cluster with injected errors): acknowledgements
//! refused or late, a producer that fails for good, leaders and coordinators that move. Every event ends once, executed
//! as often as it should be: judged by the ledger from what lies on the topics.
//!
//! The mock cluster keeps nothing of a request that it answers with an error. Acknowledgements that are lost behind a
//! record that is there are tested on a real broker (`tests/live/faults/broker.rs`).

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

#[allow(dead_code, reason = "the live tests use the rest")]
#[path = "live/outside.rs"]
mod outside;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use prost::Message as _;
use rdkafka::consumer::BaseConsumer;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::adapters::kafka::producer::{KafkaPublisher, Options};
use retry_ladder::adapters::memory::MemoryStore;
use retry_ladder::app::decode::PayloadDecoder;
use retry_ladder::app::engine::{Engine, Pipeline};
use retry_ladder::ladder::event::{Failure, Outcome};
use retry_ladder::ladder::lane::{Dedup, Order};
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::messages::shop::v1::OrderPlaced;
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::prove::ledger::{self, Copy, Execution, Fate, Invariant, Ledger as Books, Produced};
use retry_ladder::stage::clock::{Clock as _, SystemClock};
use retry_ladder::stage::context::{Partitions, StageSettings, Tombstones};
use retry_ladder::stage::ports::{Event, Handler};

const PARTITIONS: i32 = 2;
/// In a round.
const EVENTS: usize = 30;
/// For anything that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn fate(id: &str) -> Fate {
    match id.split_once('-').unwrap().0 {
        "ok" => Fate::Fails(0),
        "f1" => Fate::Fails(1),
        "f9" => Fate::Fails(9),
        _ => Fate::Permanent,
    }
}

/// Does what the event's id spells, and remembers it.
#[derive(Clone, Default)]
struct Executor(Arc<Mutex<Vec<Execution>>>);

impl Handler for Executor {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        async move {
            let started_us = SystemClock.now().wall.as_micros();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (outcome, word) = match fate(&event.id) {
                Fate::Permanent => (Outcome::Failed(Failure::permanent("never")), "permanent"),
                Fate::Fails(times) if event.attempt <= times => {
                    (Outcome::Failed(Failure::transient("not yet")), "transient")
                }
                _ => (Outcome::Done, "done"),
            };
            self.0.lock().unwrap().push(Execution {
                started_us,
                ended: Some((SystemClock.now().wall.as_micros(), word.into())),
                stage: event.stage_name.to_string(),
                attempt: event.attempt,
                fence: event.fence,
                id: event.id.to_string(),
                read: Some((event.record.partition, event.record.offset)),
            });
            outcome
        }
        .boxed()
    }
}

/// A fault and what it may lead to.
struct Case {
    what: &'static str,
    brokers: i32,
    message_timeout: Duration,
    /// Done again and again while events come.
    fault: fn(&Cluster, &str),
    /// How often.
    times: usize,
    /// A record may be there twice: its producer was told that the first had failed.
    copies: bool,
}

const CASE: Case =
    Case { what: "", brokers: 1, message_timeout: Duration::from_secs(120), fault: |_, _| {}, times: 3, copies: false };

fn produce_errors(cluster: &Cluster, error: RDKafkaRespErr, times: usize) {
    cluster.request_errors(RDKafkaApiKey::Produce, &vec![error; times]);
}

#[test]
fn produce_requests_that_are_refused_cost_nothing() {
    use RDKafkaRespErr::*;
    check(&[
        Case {
            what: "not enough replicas",
            fault: |cluster, _| produce_errors(cluster, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, 3),
            ..CASE
        },
        Case {
            what: "not enough replicas after the append",
            fault: |cluster, _| produce_errors(cluster, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, 3),
            ..CASE
        },
        Case {
            what: "timed out",
            fault: |cluster, _| produce_errors(cluster, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, 3),
            ..CASE
        },
        Case {
            what: "the disk fails",
            fault: |cluster, _| produce_errors(cluster, RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, 3),
            ..CASE
        },
    ]);
}

#[test]
fn a_producer_that_fails_for_good_again_and_again_loses_and_repeats_nothing() {
    check(&[Case {
        what: "fatal",
        fault: |cluster, _| {
            produce_errors(cluster, RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1);
        },
        times: 5,
        copies: true,
        ..CASE
    }]);
}

#[test]
fn brokers_that_go_and_leaders_that_move_lose_and_repeat_nothing() {
    check(&[
        Case {
            what: "down for longer than the producer waits for an acknowledgement",
            message_timeout: Duration::from_secs(1),
            fault: |cluster, _| {
                cluster.broker_down(1).unwrap();
                std::thread::sleep(Duration::from_millis(2_500));
                cluster.broker_up(1).unwrap();
            },
            times: 2,
            copies: true,
            ..CASE
        },
        Case {
            what: "leaders and coordinators move",
            brokers: 3,
            fault: |cluster, topic| {
                for partition in 0..PARTITIONS {
                    cluster.partition_leader(topic, partition, Some(fastrand::i32(1..=3))).unwrap();
                }
                for stage in ["", ".retry-1", ".retry-2"] {
                    let group = MockCoordinator::Group(format!("g{stage}"));
                    cluster.coordinator(group, fastrand::i32(1..=3)).unwrap();
                }
            },
            ..CASE
        },
    ]);
}

/// The cases side by side: most of their time is waiting for memberships.
fn check(cases: &[Case]) {
    let mut failed = 0;
    std::thread::scope(|scope| {
        let cases: Vec<_> = cases.iter().map(|case| scope.spawn(move || run(case))).collect();
        failed = cases.into_iter().map(std::thread::ScopedJoinHandle::join).filter(Result::is_err).count();
    });
    assert_eq!(failed, 0, "cases failed, see above");
}

fn run(case: &Case) {
    let cluster: Cluster = MockCluster::new(case.brokers).unwrap();
    let brokers = cluster.bootstrap_servers();
    let delay = Duration::from_millis(200);
    let ladder = LadderSpec::new("orders", "g", "orders").retry(delay).retry(delay * 2);
    let ladder = Arc::new(Ladder::new(ladder).unwrap());
    for rung in ladder.rungs() {
        cluster.create_topic(&rung.topic, PARTITIONS, 1).unwrap();
    }
    let executor = Executor::default();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pipeline = pipeline(&ladder, executor.clone());
    let options = Options { message_timeout: case.message_timeout, ..Options::default() };
    let publisher = KafkaPublisher::new(Properties::new(&brokers), options).unwrap();
    let engine = Engine::new(Properties::new(&brokers), Arc::new(publisher)).unwrap();
    let mut stages: Vec<_> = {
        let _entered = runtime.enter();
        (0..ladder.rungs().len()).map(|stage| engine.start(&pipeline, stage).unwrap()).collect()
    };

    let executed = || executor.0.lock().unwrap().len();
    let mut produced = Vec::new();
    for round in 0..=case.times {
        // Acknowledged before the fault, which is for the ladder's own producer: executions take their time.
        let generator = outside::Generator::new(&brokers, "orders");
        let before = executed();
        (0..EVENTS).for_each(|n| generator.send(event(round * EVENTS + n)));
        produced.extend(generator.finish());
        until("it goes on", || executed() > before);
        if round > 0 {
            (case.fault)(&cluster, &ladder.rungs()[1].topic);
        }
    }
    for rung in ladder.rungs() {
        let looker = looker(&brokers, &rung.group_id);
        let committed = || outside::committed(&looker, &rung.topic, PARTITIONS);
        until(&rung.name, || committed() == outside::ends(&looker, &rung.topic, PARTITIONS));
    }
    let again: u64 = stages.iter().map(|stage| stage.stats().republished.get()).sum();
    assert!(!case.copies || again > 0, "{}: no publish has failed, so nothing was tested", case.what);
    stages.iter().for_each(|stage| stage.stop());
    for stage in &mut stages {
        runtime.block_on(stage.ended()).unwrap();
    }

    let stage = |rung: &retry_ladder::ladder::rungs::Rung| {
        let committed = outside::committed(&looker(&brokers, &rung.group_id), &rung.topic, PARTITIONS);
        let offsets = (0..PARTITIONS).zip(committed).zip(ends(&brokers, &rung.topic));
        ledger::Stage {
            name: rung.name.to_string(),
            topic: rung.topic.to_string(),
            delay_ms: rung.delay.map_or(0, |delay| delay.as_millis() as u64),
            copies: outside::read_back(&brokers, &rung.topic, PARTITIONS),
            offsets: offsets.map(|((partition, committed), end)| (partition, committed, end)).collect(),
        }
    };
    let stages: Vec<_> = ladder.rungs().iter().map(stage).collect();
    let books = Books {
        group: "g".into(),
        stages,
        produced,
        executions: executor.0.lock().unwrap().clone(),
        interruptions: Vec::new(),
        keys: Vec::new(),
    };
    let excused = |invariant| case.copies && matches!(invariant, Invariant::CopiesExplained | Invariant::EndsOnce);
    let findings: Vec<_> = books.findings().into_iter().filter(|finding| !excused(finding.invariant)).collect();
    assert!(findings.is_empty(), "{}: {findings:#?}", case.what);
    eprintln!("{}: {}, {again} published again", case.what, books.summary());
}

fn pipeline(ladder: &Arc<Ladder>, executor: Executor) -> Pipeline {
    let message = "shop.v1.OrderPlaced";
    let settings = StageSettings { concurrency: 8, ..StageSettings::default() };
    let dlq =
        StageSettings { dedup: Dedup::Off, order: Order::None, tombstones: Tombstones::Deliver, ..settings.clone() };
    let rungs = ladder.rungs().len();
    let mut settings = vec![settings; rungs - 1];
    settings.push(dlq);
    Pipeline {
        ladder: Arc::clone(ladder),
        message: message.into(),
        decode: Arc::new(PayloadDecoder::Own(Decoder::new(message, None, Framing::Plain).unwrap(), None)),
        handler: Arc::new(executor),
        dead_letters: Arc::new(retry_ladder::handlers::handler_fn(|_| async {})),
        store: Arc::new(MemoryStore::new(Arc::new(SystemClock))),
        prefix: "mock".into(),
        settings,
        partitions: Partitions(vec![PARTITIONS; rungs]),
    }
}

fn event(n: usize) -> Produced {
    let id = format!("{}-{n}", ["ok", "f1", "f9", "perm", "f1"][n % 5]);
    let value = OrderPlaced { unique_id: id.clone(), ..OrderPlaced::default() }.encode_to_vec();
    let headers = vec![("x-ladder-event-id".to_owned(), Some(id.clone().into_bytes()))];
    let key = Some(format!("k{}", n % 7).into_bytes());
    let partition = n as i32 % PARTITIONS;
    let record = Copy { partition, offset: -1, timestamp_ms: -1, key, value: Some(value), headers };
    Produced { fate: fate(&id), id, record }
}

fn looker(brokers: &str, group: &str) -> BaseConsumer {
    outside::config(brokers).set("group.id", group).create().unwrap()
}

fn ends(brokers: &str, topic: &str) -> Vec<i64> {
    outside::ends(&looker(brokers, "looker"), topic, PARTITIONS)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
