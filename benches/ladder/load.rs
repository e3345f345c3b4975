//! The load and what is around it: topics, events, pipelines, measurements of this process.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use retry_ladder::adapters::kafka::Properties;
use retry_ladder::adapters::kafka::admin::plan::{PipelineTopics, RetryTopic};
use retry_ladder::adapters::kafka::admin::{Admin, Connection, topics};
use retry_ladder::adapters::kafka::producer::{KafkaPublisher, Options};
use retry_ladder::adapters::memory::MemoryStore;
use retry_ladder::adapters::redis;
use retry_ladder::app::decode::PayloadDecoder;
use retry_ladder::app::engine::{Engine, Pipeline, RunningStage};
use retry_ladder::handlers::handler_fn;
use retry_ladder::ladder::event::{Failure, Outcome, Timestamp};
use retry_ladder::ladder::headers as names;
use retry_ladder::ladder::lane;
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::context::{Forward, Partitions, StageSettings};
use retry_ladder::stage::ports::{AckSink, Event, Handler, IdempotencyStore, Outgoing, PublishError};

/// Events that go through the ladder before anything is measured.
pub const WARM_UP: u64 = 60;
const MESSAGE: &str = "shop.v1.OrderPlaced";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dedup {
    Redis,
    Off,
}

impl Dedup {
    pub fn parse(word: &str) -> Self {
        match word {
            "redis" => Dedup::Redis,
            "off" => Dedup::Off,
            _ => panic!("--dedup is redis or off"),
        }
    }
}

pub fn order(word: &str) -> lane::Order {
    match word {
        "stage" => lane::Order::Stage,
        "ladder" => lane::Order::Ladder,
        _ => panic!("--order is stage or ladder"),
    }
}

pub struct Bench {
    pub engine: Engine,
    pub properties: Properties,
    pub partitions: i32,
    pub concurrency: usize,
    pub max_in_flight: usize,
    pub forward: Forward,
    pub redis_url: String,
    pub order: lane::Order,
    admin: Admin,
    redis: Arc<dyn IdempotencyStore>,
    value: Bytes,
    run: String,
    ladders: u32,
    /// What this run created.
    topics: Vec<String>,
}

impl Bench {
    pub async fn new(brokers: &str, redis_url: &str, partitions: i32, concurrency: usize, extra: &[String]) -> Self {
        let connection = Connection { brokers: brokers.into(), properties: Default::default() };
        let admin = Admin::connect(connection, Duration::from_secs(10)).await.unwrap();
        let urls: Vec<&str> = redis_url.split(',').collect();
        let store = match urls[..] {
            [url] => redis::connect(url, redis::Options::default()).await,
            _ => redis::connect_cluster(&urls, redis::Options::default()).await,
        };
        let redis: Arc<dyn IdempotencyStore> = Arc::new(store.unwrap());
        let mut properties = Properties::new(brokers);
        for (key, value) in extra.iter().map(|pair| pair.split_once('=').expect("--set KEY=VALUE")) {
            // librdkafka warns of a consumer's property on a producer, and the other way round.
            let consumer = ["fetch", "queued", "max.partition"].iter().any(|p| key.starts_with(p));
            let of_one = if consumer { &mut properties.consumer } else { &mut properties.producer };
            of_one.insert(key.into(), value.into());
        }
        let publisher = Arc::new(KafkaPublisher::new(properties.clone(), Options::default()).unwrap());
        let engine = Engine::new(properties.clone(), publisher).unwrap();
        Self {
            engine,
            properties,
            partitions,
            concurrency,
            max_in_flight: StageSettings::default().max_in_flight,
            forward: Forward::Idempotent,
            redis_url: redis_url.into(),
            order: lane::Order::Stage,
            admin,
            redis,
            value: value(),
            run: format!("bench{}", SystemClock.now().wall.floor_millis() % 100_000_000),
            ladders: 0,
            topics: Vec::new(),
        }
    }

    /// Deletes the topics of this run: a broker keeps an index of each partition in memory.
    pub async fn clean_up(&self) {
        if self.topics.is_empty() {
            return;
        }
        let admin: AdminClient<_> =
            ClientConfig::new().set("bootstrap.servers", &self.properties.brokers).create().unwrap();
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        for deleted in admin.delete_topics(&topics, &AdminOptions::new()).await.unwrap() {
            deleted.unwrap();
        }
    }

    /// A ladder of its own with fresh topics.
    pub async fn ladder(&mut self, delays: &[Duration]) -> Arc<Ladder> {
        self.ladders += 1;
        let topic = format!("{}-{}", self.run, self.ladders);
        let ladder = ladder_of(&topic, delays);
        let retries = ladder.retries().iter().map(|rung| RetryTopic {
            name: rung.name.to_string(),
            topic: rung.topic.to_string(),
            delay: rung.delay.unwrap(),
        });
        let pipeline = PipelineTopics {
            pipeline: "bench".into(),
            topic,
            group: "g".into(),
            partitions: self.partitions,
            replication: 1,
            retries: retries.collect(),
            retention: Duration::from_secs(7 * 24 * 3600),
            dlq_topic: ladder.dlq().topic.to_string(),
            dlq_retention: Duration::from_secs(7 * 24 * 3600),
        };
        let report = topics::create(&self.admin, &[pipeline], &BTreeSet::new(), false).await.unwrap();
        assert!(report.is_good(), "{report:?}");
        self.topics.extend(ladder.rungs().iter().map(|rung| rung.topic.to_string()));
        ladder
    }

    pub fn pipeline(&self, ladder: &Arc<Ladder>, handler: Arc<dyn Handler>, dedup: Dedup) -> Pipeline {
        let settings = StageSettings {
            concurrency: self.concurrency,
            max_in_flight: self.max_in_flight,
            forward: self.forward,
            order: self.order,
            dedup: if dedup == Dedup::Off { lane::Dedup::Off } else { lane::Dedup::Required },
            ..StageSettings::default()
        };
        let store: Arc<dyn IdempotencyStore> = match dedup {
            Dedup::Redis => Arc::clone(&self.redis),
            Dedup::Off => Arc::new(MemoryStore::new(Arc::new(SystemClock))),
        };
        let rungs = ladder.rungs().len();
        Pipeline {
            ladder: Arc::clone(ladder),
            message: MESSAGE.into(),
            decode: Arc::new(PayloadDecoder::Own(Decoder::new(MESSAGE, None, Framing::Plain).unwrap(), None)),
            dead_letters: Arc::clone(&handler),
            handler,
            store,
            prefix: "bench".into(),
            settings: vec![settings; rungs],
            partitions: Partitions(vec![self.partitions; rungs]),
        }
    }

    fn record(&self, topic: &Arc<str>, n: u64, due: Option<Timestamp>, group: &str) -> Outgoing {
        // Main topics of a benchmark have no dot.
        let main = topic.split('.').next().unwrap_or_default();
        let partition = (n % self.partitions as u64) as i32;
        let keys = if self.order == lane::Order::Ladder { u64::MAX } else { 1_000 };
        let mut headers = vec![(Bytes::from_static(b"x-ladder-event-id"), Some(Bytes::from(format!("e{n:08}"))))];
        if let Some(due) = due {
            let own = [
                (names::DUE, due.ceil_millis().to_string()),
                (names::HOP, "1".into()),
                (names::ATTEMPT, "1".into()),
                (names::STAGE, "1".into()),
                (names::GROUP, group.into()),
                (names::ORIGIN, format!("{main}:{partition}:{n}:1")),
            ];
            headers.extend(own.map(|(k, v)| (Bytes::from_static(k.as_bytes()), Some(Bytes::from(v)))));
        }
        Outgoing {
            topic: Arc::clone(topic),
            partition: Some(partition),
            key: Some(Bytes::from(format!("k{}", n % keys))),
            value: Some(self.value.clone()),
            headers,
        }
    }

    /// This program with other arguments, on the same services.
    pub fn another(&self) -> Command {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--partitions", &self.partitions.to_string(), "--concurrency", &self.concurrency.to_string()]);
        child.args(["--brokers", &self.properties.brokers, "--redis", &self.redis_url]);
        child.args(["--order", if self.order == lane::Order::Ladder { "ladder" } else { "stage" }]);
        child
    }

    /// Events on the topic of a stage, produced by another process, so that this one's memory and CPU are not the load's.
    pub async fn preload_elsewhere(&self, ladder: &Ladder, stage: usize, events: usize, due: Option<Duration>) {
        let mut child = self.another();
        child.args(["preload", "--topic", &ladder.rungs()[stage].topic, "--group", ladder.group()]);
        child.args(["--events", &events.to_string()]);
        if let Some(due) = due {
            child.args(["--wait-secs", &due.as_secs().to_string()]);
        }
        let status = tokio::task::spawn_blocking(move || child.status()).await.unwrap();
        assert!(status.unwrap().success());
    }

    pub async fn preload(&self, topic: &Arc<str>, group: &str, events: usize, delay: Option<Duration>) {
        let acks = Arc::new(Acks::default());
        let sink: Arc<dyn AckSink> = Arc::clone(&acks) as _;
        let due = delay.map(|d| SystemClock.now().wall + d);
        for n in 0..events as u64 {
            let record = self.record(topic, n, due, group);
            self.engine.publisher.publish(record, n, &sink);
            while (n + 1).saturating_sub(acks.count()) > 50_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        until(|| acks.count() >= events as u64, Duration::from_secs(60)).await;
    }

    pub async fn produce_at(&self, ladder: &Ladder, rate: u64, total: u64) {
        let acks: Arc<dyn AckSink> = Arc::new(Acks::default());
        let start = Instant::now();
        let mut sent = 0;
        while sent < total {
            let wanted = (start.elapsed().as_secs_f64() * rate as f64) as u64;
            while sent < wanted.min(total) {
                let record = self.record(ladder.topic(), WARM_UP + sent, None, "");
                self.engine.publisher.publish(record, sent, &acks);
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The ladder over a topic, whether its topics are there or not.
pub fn ladder_of(topic: &str, delays: &[Duration]) -> Arc<Ladder> {
    let spec = delays.iter().fold(LadderSpec::new("bench", "g", topic), |spec, delay| spec.retry(*delay));
    Arc::new(Ladder::new(spec).unwrap())
}

/// One event through the whole ladder on every partition, so that groups have joined and connections stand.
pub async fn warm_up(bench: &Bench, ladder: &Arc<Ladder>, stages: &[RunningStage]) {
    let acks: Arc<dyn AckSink> = Arc::new(Acks::default());
    for n in 0..WARM_UP {
        bench.engine.publisher.publish(bench.record(ladder.topic(), n, None, ""), n, &acks);
    }
    let last = &stages[stages.len() - 1];
    until(|| last.stats().dead_letters() >= WARM_UP, Duration::from_secs(60)).await;
    for stage in stages {
        stage.stats().lateness.clear();
    }
}

pub fn failing() -> Arc<dyn Handler> {
    Arc::new(handler_fn(|_: Event| std::future::ready(Outcome::Failed(Failure::transient("on purpose")))))
}

pub fn succeeding() -> Arc<dyn Handler> {
    Arc::new(handler_fn(|_: Event| std::future::ready(Outcome::Done)))
}

/// Fails; notes how late the first `n` starts were, in microseconds.
pub fn recording(firsts: Arc<Mutex<Vec<u64>>>, n: usize) -> Arc<dyn Handler> {
    Arc::new(handler_fn(move |event: Event| {
        let now = SystemClock.now().wall;
        let due = event.header(names::DUE).and_then(|d| std::str::from_utf8(d).ok()?.parse().ok()).unwrap_or(0);
        let mut firsts = firsts.lock().unwrap();
        if firsts.len() < n {
            firsts.push(now.since(Timestamp::from_millis(due)).as_micros() as u64);
        }
        std::future::ready(Outcome::Failed(Failure::transient("on purpose")))
    }))
}

/// What a stage did with events that were due.
pub struct Drain {
    pub rate: f64,
    pub cpu_us: f64,
}

/// Lets a stage that was started move so many events on, from its first execution to its last, and stops it.
pub async fn drain(stage: RunningStage, events: usize) -> Drain {
    let before = usage();
    let stats = Arc::clone(stage.stats());
    until(|| stats.executions.get() > 0, Duration::from_secs(30)).await;
    let start = Instant::now();
    until(|| stats.forwarded.get() + stats.dead_letters() >= events as u64, Duration::from_secs(120)).await;
    let wall = start.elapsed().as_secs_f64();
    let cpu = usage().cpu - before.cpu;
    stop(&mut [stage]).await;
    Drain { rate: events as f64 / wall, cpu_us: cpu * 1e6 / events as f64 }
}

pub async fn stop(stages: &mut [RunningStage]) {
    stages.iter().for_each(RunningStage::stop);
    for stage in stages {
        stage.ended().await.unwrap();
    }
}

pub async fn until(mut done: impl FnMut() -> bool, patience: Duration) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "not there after {patience:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[derive(Default)]
struct Acks(AtomicU64);

impl Acks {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl AckSink for Acks {
    fn acknowledged(&self, _ticket: u64, result: Result<(), PublishError>) {
        result.unwrap();
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// CPU and memory of this process.
#[derive(Clone, Copy)]
pub struct Usage {
    /// User and system time, seconds.
    pub cpu: f64,
    pub max_rss_mib: u64,
}

pub fn usage() -> Usage {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Usage { cpu: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9, max_rss_mib: status("VmHWM:") }
}

pub fn rss_mib() -> u64 {
    status("VmRSS:")
}

/// Times that a thread of this process gave up its core to wait for something.
pub fn wakeups() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of = |status: String| {
        let line =
            status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok());
        line.unwrap_or(0)
    };
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok()).map(of).sum()
}

fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// An order of about 512 bytes.
pub fn value() -> Bytes {
    use prost::Message;
    let order = retry_ladder::messages::shop::v1::OrderPlaced { item_id: "x".repeat(480), ..Default::default() };
    Bytes::from(order.encode_to_vec())
}
