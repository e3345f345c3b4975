//! `forward: transactional` on a real Kafka and a real Redis: whatever happens to the processes, a plain consumer that
//! reads what is committed finds each hop of each event exactly once.
//!
//! The fates of the load follow from the attempt in the header alone, so that it is known beforehand which hops there
//! must be, however often something is executed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::outside;
use crate::redis_server::RedisServer;
use crate::support::kafka_server::KafkaCluster;
use crate::support::{brokers, redis_url, unique};
use crate::worker::evidence::{self, PATIENCE, looker};
use crate::worker::load::{Source, event};
use crate::worker::process::{LogsOnFailure, Worker};
use crate::worker::{self, ORDERS, Orders};

const PARTITIONS: i32 = 3;
/// In this order, again and again.
const KINDS: [&str; 8] = ["ok", "f1", "f9", "ok", "perm", "f2", "junk", "f1"];

/// The stages, by index, whose topics an event of this name must be on beyond main: two retry stages, then the DLQ.
fn hops(id: &str) -> &'static [usize] {
    match id.split_once('-').map_or(id, |(kind, _)| kind) {
        "ok" => &[],
        "f1" => &[1],
        "f2" => &[1, 2],
        "f9" => &[1, 2, 3],
        "perm" | "junk" => &[3],
        kind => panic!("no fate is called {kind}"),
    }
}

/// Reads every topic of a ladder behind main from its beginning.
struct Eye {
    consumer: BaseConsumer,
    topics: Vec<String>,
    /// How often each event was seen on each stage's topic.
    seen: BTreeMap<(usize, String), usize>,
    /// One past the last record of each stage and partition.
    ends: BTreeMap<(usize, i32), i64>,
}

impl Eye {
    fn open(orders: &Orders, isolation: &str) -> Self {
        let mut config = outside::config(&orders.brokers);
        config.set("group.id", "nobody").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = config.set("isolation.level", isolation).create().unwrap();
        let topics: Vec<_> = orders.ladder().rungs().iter().map(|rung| rung.topic.to_string()).collect();
        let mut list = TopicPartitionList::new();
        for topic in &topics[1..] {
            for partition in 0..PARTITIONS {
                list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
            }
        }
        consumer.assign(&list).unwrap();
        Self { consumer, topics, seen: BTreeMap::new(), ends: BTreeMap::new() }
    }

    /// Takes in what is there within this time; the number of new records.
    fn look(&mut self, time: Duration) -> usize {
        let (until, mut new) = (Instant::now() + time, 0);
        while let Some(message) = self.consumer.poll(until.saturating_duration_since(Instant::now())) {
            let Ok(message) = message else { continue };
            let stage = self.topics.iter().position(|topic| topic == message.topic()).unwrap();
            let id = message.headers().unwrap().iter().find(|header| header.key == "x-ladder-event-id").unwrap();
            let id = String::from_utf8(id.value.unwrap().to_vec()).unwrap();
            *self.seen.entry((stage, id)).or_default() += 1;
            self.ends.insert((stage, message.partition()), message.offset() + 1);
            new += 1;
        }
        new
    }

    fn more_than_once(&self) -> Vec<&(usize, String)> {
        self.seen.iter().filter(|(_, count)| **count > 1).map(|(hop, _)| hop).collect()
    }
}

/// A ladder, its load, and what is seen of it.
struct Run {
    test: String,
    orders: Orders,
    source: Source,
    ids: Vec<String>,
    committed: Eye,
    workers: u32,
    _logs: LogsOnFailure,
    _folder: tempfile::TempDir,
}

impl Run {
    fn new(test: &str, brokers: &str, redis: &str) -> Self {
        let topic = unique("txn");
        let folder = tempfile::Builder::new().prefix("ladder-txn").tempdir().unwrap();
        let orders = Orders {
            name: String::new(),
            brokers: brokers.to_owned(),
            redis: redis.to_owned(),
            prefix: topic.clone(),
            group: unique("g"),
            partitions: PARTITIONS,
            delays_ms: vec![300, 800],
            lease_ms: 3_000,
            session_ms: 6_000,
            latency_ms: 5,
            clock_ahead_ms: 0,
            instance: None,
            stages: Vec::new(),
            folder: folder.path().to_owned(),
            kill: None,
            transactional: true,
            topic,
        };
        evidence::create_topics(&orders, 1);
        Self {
            test: test.to_owned(),
            source: Source::new(&orders.brokers, &orders.topic, PARTITIONS, 50),
            ids: Vec::new(),
            committed: Eye::open(&orders, "read_committed"),
            workers: 0,
            _logs: LogsOnFailure::new(test, folder.path()),
            orders,
            _folder: folder,
        }
    }

    fn start(&mut self, instance: Option<&str>) -> Worker {
        self.workers += 1;
        let name = format!("w{}", self.workers);
        let orders = Orders { name, instance: instance.map(str::to_owned), ..self.orders.clone() };
        Worker::start(&self.test, &orders)
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count {
            let n = self.ids.len();
            self.send_to(&format!("{}-{n}", KINDS[n % KINDS.len()]), n as i32 % PARTITIONS);
        }
    }

    fn send_to(&mut self, id: &str, partition: i32) {
        self.source.send_one(event(id, self.ids.len(), partition, 50));
        self.ids.push(id.to_owned());
    }

    /// Load until it is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            self.send(1);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for every hop that there must be, and until each stage has committed beyond its last record; then nothing
    /// may be there twice, and nothing else.
    fn finish(mut self, workers: Vec<Worker>) {
        self.source.finish();
        let expected: Vec<_> = self.ids.iter().flat_map(|id| hops(id).iter().map(|at| (*at, id.clone()))).collect();
        let deadline = Instant::now() + PATIENCE;
        let missing =
            |eye: &Eye| expected.iter().filter(|hop| !eye.seen.contains_key(*hop)).cloned().collect::<Vec<_>>();
        while !missing(&self.committed).is_empty() {
            let missing = missing(&self.committed);
            assert!(Instant::now() < deadline, "{} of {} hops are missing: {missing:?}", missing.len(), expected.len());
            self.committed.look(Duration::from_millis(200));
        }
        for rung in self.orders.ladder().rungs() {
            let looker = looker(&self.orders, &rung.group_id);
            let ends = |eye: &Eye| match rung.index {
                0 => outside::ends(&looker, &rung.topic, PARTITIONS),
                stage => (0..PARTITIONS).map(|p| eye.ends.get(&(stage, p)).copied().unwrap_or(0)).collect(),
            };
            loop {
                self.committed.look(Duration::from_millis(50));
                let (committed, ends) = (outside::committed(&looker, &rung.topic, PARTITIONS), ends(&self.committed));
                if committed.iter().zip(&ends).all(|(committed, end)| committed >= end) {
                    break;
                }
                assert!(Instant::now() < deadline, "{}: committed {committed:?} of {ends:?}", rung.name);
            }
        }
        for worker in workers {
            let name = worker.name().to_owned();
            let status = worker.stop();
            assert!(status.success(), "{name} was asked to stop and ended with {status}");
        }
        self.committed.look(Duration::from_millis(500));
        let twice = self.committed.more_than_once();
        assert!(twice.is_empty(), "more than once: {twice:?}");
        assert_eq!(self.committed.seen.len(), expected.len(), "something is there that should not be");
        eprintln!("{}: {} events, {} hops, each once", self.test, self.ids.len(), expected.len());
        let keys: Vec<_> =
            outside::keys(&self.orders.redis, &self.orders.prefix).into_iter().map(|(key, _)| key).collect();
        let topics: Vec<&str> = self.committed.topics.iter().map(String::as_str).collect();
        outside::clean_up(&self.orders.brokers, &topics, &self.orders.redis, &keys);
    }
}

/// Makes a test of a function that is given the test's own name; executed again with orders, it is a worker.
macro_rules! transactional_test {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            match std::env::var(ORDERS) {
                Ok(orders) => worker::run(&orders),
                Err(_) => ($body)(concat!("transactional::", stringify!($name))),
            }
        }
    };
}

transactional_test!(hops_and_offsets_are_committed_together_and_members_may_come_and_go, |test: &str| {
    let mut run = Run::new(test, &brokers(), &redis_url());
    let first = run.start(None);
    run.until("hops are committed", |run| run.committed.look(Duration::from_millis(20)) > 0);
    let second = run.start(None);
    let sent = run.ids.len();
    run.until("both work", |run| run.ids.len() > sent + 400);
    let status = first.stop();
    assert!(status.success(), "{status}");
    let third = run.start(None);
    let sent = run.ids.len();
    run.until("both work", |run| run.ids.len() > sent + 400);
    run.finish(vec![second, third]);
});

/// Load until these workers have done something from now on.
fn until_all_work(run: &mut Run, workers: &[&Worker]) {
    let before: Vec<usize> = workers.iter().map(|worker| worker.journal().len()).collect();
    run.until("all work", |_| workers.iter().zip(&before).all(|(worker, before)| worker.journal().len() > before + 30));
}

/// Load until a hop shows that is not known to be committed, and, a moment ago, was not there at all.
fn until_a_hop_shows(run: &mut Run, open: &mut Eye) {
    while open.look(Duration::from_millis(5)) > 0 {}
    run.until("a hop shows", |_| open.look(Duration::from_millis(2)) > 0);
}

transactional_test!(killed_around_a_commit_again_and_again_each_hop_is_there_once, |test: &str| {
    let mut run = Run::new(test, &brokers(), &redis_url());
    let mut open = Eye::open(&run.orders, "read_uncommitted");
    // Where nothing else runs a transaction is over in milliseconds: until a kill came within one.
    for (kills, after_ms) in [0, 0, 0, 2, 5, 10, 20, 40].into_iter().cycle().enumerate() {
        if kills >= 8 && !open.more_than_once().is_empty() {
            break;
        }
        assert!(kills < 60, "no kill came within a transaction");
        let mut victim = run.start(Some("victim"));
        until_all_work(&mut run, &[&victim]);
        until_a_hop_shows(&mut run, &mut open);
        std::thread::sleep(Duration::from_millis(after_ms));
        victim.kill();
    }
    let last = run.start(Some("victim"));
    run.finish(vec![last]);
    open.look(Duration::from_millis(500));
    eprintln!("{test}: {} hops are in the log once more, aborted", open.more_than_once().len());
});

transactional_test!(
    without_an_instance_another_member_takes_over_when_the_open_transaction_has_timed_out,
    |test: &str| {
        let mut run = Run::new(test, &brokers(), &redis_url());
        let mut open = Eye::open(&run.orders, "read_uncommitted");
        let (mut victim, other) = (run.start(None), run.start(None));
        until_all_work(&mut run, &[&victim, &other]);
        until_a_hop_shows(&mut run, &mut open);
        victim.kill();
        run.send(200);
        run.finish(vec![other]);
    }
);

transactional_test!(a_worker_that_is_frozen_within_a_transaction_and_wakes_commits_nothing_twice, |test: &str| {
    let mut run = Run::new(test, &brokers(), &redis_url());
    let mut open = Eye::open(&run.orders, "read_uncommitted");
    let (zombie, other) = (run.start(None), run.start(None));
    until_all_work(&mut run, &[&zombie, &other]);
    for _ in 0..2 {
        until_a_hop_shows(&mut run, &mut open);
        zombie.freeze();
        // Its session is 6 s, and brokers end its transaction after 15 s.
        let frozen = Instant::now();
        run.until("it is replaced", |_| frozen.elapsed() > Duration::from_secs(18));
        zombie.wake();
        until_all_work(&mut run, &[&zombie, &other]);
    }
    run.finish(vec![zombie, other]);
});

transactional_test!(
    a_broker_that_is_killed_within_a_transaction_and_comes_back_costs_no_hop_and_doubles_none,
    |test: &str| {
        let redis = RedisServer::start();
        let mut kafka = KafkaCluster::start(1);
        let mut run = Run::new(test, &kafka.brokers(), &redis.url());
        let mut open = Eye::open(&run.orders, "read_uncommitted");
        let worker = run.start(Some("a"));
        until_all_work(&mut run, &[&worker]);
        until_a_hop_shows(&mut run, &mut open);
        kafka.kill(0);
        run.send(50);
        kafka.restart(0);
        until_all_work(&mut run, &[&worker]);
        run.finish(vec![worker]);
    }
);

transactional_test!(a_slow_event_holds_back_the_hops_behind_it_and_none_is_lost_with_the_process, |test: &str| {
    let mut run = Run::new(test, &brokers(), &redis_url());
    let mut first = run.start(Some("a"));
    until_all_work(&mut run, &[&first]);
    let slow_from = run.ids.len();
    run.send_to("f1-slow-1", 0);
    for n in 0..20 {
        run.send_to(&format!("f1-behind-{n}"), 0);
        run.send_to(&format!("f1-beside-{n}"), 1);
    }
    let count = |run: &Run, kind: &str| run.committed.seen.keys().filter(|(_, id)| id.contains(kind)).count();
    let begun = Instant::now();
    while count(&run, "beside") < 20 {
        run.committed.look(Duration::from_millis(20));
        assert!(begun.elapsed() < PATIENCE, "not all of the other partition");
    }
    assert_eq!(count(&run, "behind"), 0, "they passed the slow one (event {slow_from})");
    first.kill();
    let second = run.start(Some("a"));
    run.finish(vec![second]);
});

#[tokio::test]
async fn brokers_without_transactions_are_refused_with_a_word_and_the_real_one_is_not() {
    use retry_ladder::app::Builder;
    use retry_ladder::config::{Sources, load};
    let (topic, brokers) = (unique("txn-refused"), brokers());
    let yaml = format!(
        "kafka: {{ brokers: '{brokers}' }}\n\
         pipelines: {{ p: {{ topic: {topic}, group: g, message: shop.v1.OrderPlaced, handler: {{ log: {{}} }}, \
         idempotency: {{ store: memory }}, retries: [], forward: transactional }} }}"
    );
    let config = || load(&Sources::inline("test", &yaml)).unwrap().config;
    let refused = Builder::new(config()).topics_as_configured().start().await.err().unwrap();
    assert_eq!(refused.exit_code(), 64);
    let said = refused.to_string();
    assert!(said.contains("pipelines.p.forward: the embedded broker has no transactions"), "{said}");

    crate::support::create_topic(&topic, 1, &[("min.insync.replicas", "1")]).await;
    crate::support::create_topic(&format!("{topic}.g.dlq"), 1, &[("min.insync.replicas", "1")]).await;
    let mut config = config();
    config.pipelines[0].allow_unsafe_topics = true;
    let app = Builder::new(config).start().await.unwrap();
    app.run_until(std::future::ready(())).await.unwrap();
    crate::support::delete_topic(&topic).await;
    crate::support::delete_topic(&format!("{topic}.g.dlq")).await;
}
