//! What a stage tells of itself and what `pipeline status` tells from outside, against what a plain consumer counts.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::adapters::kafka::producer::{KafkaPublisher, Options};
use retry_ladder::adapters::memory::MemoryStore;
use retry_ladder::admin::monitor::Monitor;
use retry_ladder::admin::server::{Listener, Server};
use retry_ladder::app::engine::{Engine, Pipeline, RunningStage};
use retry_ladder::cli::status::{Outside, StageLook, StageStatus};
use retry_ladder::config::{Config, Sources, load};
use retry_ladder::handlers::handler_fn;
use retry_ladder::ladder::event::Failure;
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::context::{Decode, Partitions, StageSettings};
use retry_ladder::stage::ports::Event;

use crate::support::{brokers, client_config, create_topic, unique};

const EVENTS: usize = 10_000;
/// Events are written at this rate, so this many fall due each second: the tolerance.
const RATE: u64 = 2_000;
const PARTITIONS: i32 = 4;
const DELAY: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(90);

struct Raw;

impl Decode for Raw {
    fn payload(&self, value: &Bytes) -> Result<Bytes, String> {
        Ok(value.clone())
    }
    fn event_id(&self, _: &[u8]) -> Option<String> {
        None
    }
}

fn now_ms() -> u64 {
    SystemClock.now().wall.floor_millis()
}

/// Main, one retry stage, DLQ; the group is named like the topic.
async fn make_topics(topic: &str, partitions: i32) {
    create_topic(topic, partitions, &[]).await;
    create_topic(&format!("{topic}.{topic}.retry-1"), partitions, &[("message.timestamp.type", "LogAppendTime")]).await;
    create_topic(&format!("{topic}.{topic}.dlq"), partitions, &[]).await;
}

fn configuration(topic: &str, delay: &str, more: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("topics.yaml");
    let text = format!(
        "kafka: {{ brokers: \"{}\" }}\npipelines:\n  orders:\n    topic: {topic}\n    group: {topic}\n    \
         message: shop.v1.OrderPlaced\n    retries: [{{ delay: {delay} }}]\n    idempotency: {{ store: memory }}\n    \
         allow_unsafe_topics: true\n    handler: {{ log: {{}} }}\n{more}",
        brokers()
    );
    std::fs::write(&path, text).expect("written");
    (dir, path)
}

fn config(path: &std::path::Path) -> Config {
    load(&Sources::new(Some(path.to_owned()))).unwrap_or_else(|faults| panic!("{faults:?}")).config
}

/// Writes the events at the rate, each due after the delay, as the ladder itself does.
fn write_retries(topic: &str, group: &str) {
    let producer: BaseProducer = client_config().set("linger.ms", "2").create().expect("producer");
    let begun = Instant::now();
    for i in 0..EVENTS {
        let at = Duration::from_secs_f64(i as f64 / RATE as f64);
        if let Some(early) = at.checked_sub(begun.elapsed()) {
            std::thread::sleep(early);
        }
        let due = (now_ms() + DELAY.as_millis() as u64).to_string();
        let id = format!("event-{i}");
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("x-ladder-event-id", id.as_str()))
            .insert(header("x-ladder-group", group))
            .insert(header("x-ladder-due", due.as_str()));
        let record = BaseRecord::<(), _>::to(topic).partition(i as i32 % PARTITIONS).payload("x").headers(headers);
        producer.send(record).map_err(|(e, _)| e).expect("send");
        producer.poll(Duration::ZERO);
    }
    producer.flush(Timeout::After(TIMEOUT)).expect("flush");
}

/// Every due in the topic, read by a consumer that knows nothing of us.
fn dues(topic: &str) -> Vec<u64> {
    let consumer: BaseConsumer = client_config().set("group.id", unique("plain")).create().expect("consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("offset");
    }
    consumer.assign(&list).expect("assign");
    let mut dues = Vec::new();
    while dues.len() < EVENTS {
        let message = consumer.poll(TIMEOUT).expect("a record in time").expect("a record");
        let headers = message.headers().expect("headers");
        let due = headers.iter().find(|h| h.key == "x-ladder-due").and_then(|h| h.value).expect("a due");
        dues.push(std::str::from_utf8(due).expect("text").parse().expect("a number"));
    }
    dues
}

/// How many records the group has done, as its committed offsets say to anybody who asks.
fn committed(topic: &str, group: &str) -> u64 {
    let consumer: BaseConsumer =
        client_config().set("group.id", format!("{group}.retry-1")).create().expect("consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, PARTITIONS - 1);
    let answer = consumer.committed_offsets(list, TIMEOUT).expect("committed offsets");
    let offsets = answer.elements_for_topic(topic).into_iter().filter_map(|e| e.offset().to_raw());
    offsets.map(|offset| u64::try_from(offset).unwrap_or_default()).sum()
}

struct Truth {
    dues: Vec<u64>,
    started: Arc<AtomicU64>,
}

impl Truth {
    fn waiting(&self) -> u64 {
        let now = now_ms();
        self.dues.iter().filter(|due| **due > now).count() as u64
    }

    /// Due and not started.
    fn overdue(&self) -> u64 {
        self.dues.len() as u64 - self.waiting() - self.started.load(Ordering::Relaxed).min(self.dues.len() as u64)
    }

    /// As seen from outside: due and not committed.
    fn outside(&self, topic: &str, group: &str) -> (u64, u64) {
        let waiting = self.waiting();
        (waiting, self.dues.len() as u64 - waiting - committed(topic, group))
    }

    /// For how long the first event that was not started is due.
    fn oldest_ms(&self) -> u64 {
        now_ms().saturating_sub(self.dues.iter().copied().min().unwrap_or_default())
    }

    fn now(&self) -> (u64, u64) {
        (self.waiting(), self.overdue())
    }

    /// What was seen lies within the events of one second of the truth, which moved on from `before` while somebody
    /// looked.
    #[track_caller]
    fn check(&self, who: &str, before: (u64, u64), (waiting, overdue): (u64, u64), after: (u64, u64)) {
        let near = |seen: u64, a: u64, b: u64| (a.min(b).saturating_sub(RATE)..=a.max(b) + RATE).contains(&seen);
        assert!(
            near(waiting, before.0, after.0) && near(overdue, before.1, after.1),
            "{who}: waiting {waiting}, overdue {overdue}; truly {before:?} before and {after:?} after"
        );
    }
}

/// A process of its own as far as Kafka and its metrics are concerned.
struct Instance {
    stage: RunningStage,
    server: Server,
}

impl Instance {
    async fn start(ladder: &Arc<Ladder>, started: &Arc<AtomicU64>) -> Self {
        let properties = Properties::new(brokers());
        let publisher = Arc::new(KafkaPublisher::new(properties.clone(), Options::default()).expect("producer"));
        let engine = Engine::new(properties.clone(), publisher).expect("engine");
        let started = Arc::clone(started);
        let handler = Arc::new(handler_fn(move |_: Event| {
            started.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<(), Failure>(())
            }
        }));
        let settings = StageSettings { concurrency: 16, ..StageSettings::default() };
        let pipeline = Pipeline {
            ladder: Arc::clone(ladder),
            message: "m".into(),
            decode: Arc::new(Raw),
            handler: Arc::clone(&handler) as _,
            dead_letters: handler,
            store: Arc::new(MemoryStore::new(Arc::clone(&engine.clock))),
            prefix: "status".into(),
            settings: vec![settings; 3],
            partitions: Partitions(vec![PARTITIONS; 3]),
        };
        let stage = engine.start(&pipeline, 1).expect("stage");
        let listener = Listener::bind(Some("127.0.0.1:0"), 1).await.expect("a port");
        let mut server = Server::start(listener, Duration::from_secs(300), None);
        server.watch(Monitor::new(vec![stage.view()], &properties));
        Self { stage, server }
    }

    async fn gauge(&self, name: &str) -> f64 {
        let (code, text) = get(self.server.address(), "/metrics").await;
        assert_eq!(code, 200);
        let line =
            text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("{name}:\n{text}"));
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    }

    async fn gauges(&self) -> [u64; 4] {
        let (_, text) = get(self.server.address(), "/metrics").await;
        ["waiting_events", "overdue_events", "consumer_lag_events", "assigned_partitions"].map(|name| {
            let line = text.lines().find(|l| l.starts_with(&format!("ladder_{name}{{"))).expect("the gauge");
            line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
        })
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = reqwest::Client::new().get(format!("http://{address}{path}")).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn outside(outside: &mut Outside) -> StageStatus {
    let status = outside.look().await.expect("a status");
    let StageLook::Seen(stage) = status.pipelines[0].stages[1].clone() else { panic!("{status:?}") };
    assert_eq!(stage.stage, "retry-1");
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_and_overdue_are_what_a_plain_consumer_counts() {
    let topic = unique("status");
    make_topics(&topic, PARTITIONS).await;
    let (_dir, path) = configuration(&topic, "30s", "");
    let mut from_outside = Outside::new(&config(&path), &[]).expect("clients");
    let empty = outside(&mut from_outside).await;
    assert_eq!((empty.waiting, empty.overdue, empty.oldest_overdue_ms, empty.lag, empty.members), (0, 0, 0, 0, 0));

    let retry = format!("{topic}.{topic}.retry-1");
    let dues = tokio::task::spawn_blocking({
        let (retry, group) = (retry.clone(), topic.clone());
        move || {
            write_retries(&retry, &group);
            dues(&retry)
        }
    });
    let started = Arc::new(AtomicU64::new(0));
    let truth = Truth { dues: dues.await.expect("written"), started: Arc::clone(&started) };

    // Stopped, nothing due yet.
    let before = truth.now();
    let seen = outside(&mut from_outside).await;
    assert_eq!((seen.waiting + seen.overdue, seen.lag), (EVENTS as u64, EVENTS as u64));
    truth.check("outside, stopped", before, (seen.waiting, seen.overdue), truth.now());

    // Stopped, half of it overdue.
    until("half is due", async || (truth.waiting() <= EVENTS as u64 / 2).then_some(())).await;
    let (before, older_than) = (truth.now(), truth.oldest_ms());
    let seen = outside(&mut from_outside).await;
    truth.check("outside, half due", before, (seen.waiting, seen.overdue), truth.now());
    let ages = older_than.saturating_sub(1_000)..=truth.oldest_ms() + 1_000;
    assert!(ages.contains(&seen.oldest_overdue_ms), "{} ms, not in {ages:?}", seen.oldest_overdue_ms);

    // Started late.
    let ladder = LadderSpec::new("orders", &topic, &topic).retry(DELAY);
    let ladder = Arc::new(Ladder::new(ladder).expect("a ladder"));
    let first = Instance::start(&ladder, &started).await;
    until("the first instance has all partitions", async || (first.gauges().await[3] == 4).then_some(())).await;
    let before = truth.now();
    let [waiting, overdue, ..] = first.gauges().await;
    truth.check("one instance", before, (waiting, overdue), truth.now());
    let (code, body) = get(first.server.address(), "/readyz").await;
    assert_eq!((code, body.as_str()), (200, r#"{"status":"ready"}"#));

    // A second one joins: the sum over both is the total, and the first keeps nothing of what it lost.
    let second = Instance::start(&ladder, &started).await;
    let (before, a, b) = until("both have partitions", async || {
        let before = truth.now();
        let (a, b) = (first.gauges().await, second.gauges().await);
        (a[3] == 2 && b[3] == 2).then_some((before, a, b))
    })
    .await;
    truth.check("two instances", before, (a[0] + b[0], a[1] + b[1]), truth.now());
    let before = truth.outside(&retry, &topic);
    let seen = outside(&mut from_outside).await;
    truth.check("outside, two instances", before, (seen.waiting, seen.overdue), truth.outside(&retry, &topic));
    assert_eq!(seen.members, 2);

    // At rest: 0 everywhere, also on the instance that leaves.
    until("all is done", async || (started.load(Ordering::Relaxed) >= EVENTS as u64).then_some(())).await;
    let quiet = until("both are quiet", async || {
        let (a, b) = (first.gauges().await, second.gauges().await);
        (a[2] + b[2] == 0).then_some((a, b))
    })
    .await;
    assert_eq!(quiet, ([0, 0, 0, 2], [0, 0, 0, 2]));
    assert_eq!(first.gauge("ladder_overdue_seconds").await, 0.0);
    let seen = until("all is committed", async || {
        let seen = outside(&mut from_outside).await;
        (seen.lag == 0).then_some(seen)
    })
    .await;
    assert_eq!((seen.waiting, seen.overdue, seen.oldest_overdue_ms), (0, 0, 0));
    for mut instance in [first, second] {
        instance.stage.stop();
        instance.stage.ended().await.expect("a clean end");
    }
}

/// A real process; ended when dropped.
struct Process(Child);

impl Process {
    fn start(path: &std::path::Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command
            .arg("--config")
            .arg(path)
            .args(args)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self(command.spawn().expect("the program"))
    }

    /// The address in the line about the admin server.
    fn address(&mut self) -> SocketAddr {
        let mut lines = BufReader::new(self.0.stderr.take().expect("piped")).lines();
        let line = lines.find(|l| l.as_ref().expect("text").contains("health, metrics and status")).expect("the line");
        let line = line.expect("text");
        let address =
            line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
        // Whatever it says later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        address.parse().unwrap_or_else(|_| panic!("{line}"))
    }

    fn terminate(&mut self) -> i32 {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill").success());
        self.0.wait().expect("an end").code().expect("a code")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_serves_its_health_on_a_free_port_and_refuses_a_taken_configured_one() {
    let topic = unique("admin");
    make_topics(&topic, 1).await;
    let (_dir, path) = configuration(&topic, "5s", "");

    // The default port of retry-1 is taken: by us, or by whoever holds it already.
    let _holder = TcpListener::bind("127.0.0.1:9465");
    let mut process = Process::start(&path, &["--stage", "retry-1"]);
    let address = process.address();
    assert!(address.ip().is_loopback() && address.port() != 9465, "{address}");
    assert_eq!(get(address, "/livez").await, (200, r#"{"status":"alive"}"#.to_owned()));
    until("it is ready", async || (get(address, "/readyz").await.0 == 200).then_some(())).await;
    let (_, status) = get(address, "/status").await;
    let status: Value = serde_json::from_str(&status).expect("json");
    assert_eq!(status["listen"], address.to_string());
    assert_eq!(status["default_port_taken"], 9465);
    assert_eq!(status["stages"][0]["stage"], "retry-1");
    assert_eq!(status["stages"][0]["partitions"], serde_json::json!([0]));
    let (code, text) = get(address, "/metrics").await;
    assert_eq!(code, 200);
    assert!(text.contains(r#"ladder_waiting_events{pipeline="orders",stage="retry-1"} 0"#), "{text}");
    assert_eq!(get(address, "/nothing").await.0, 404);

    // A second member without a partition is ready, too: it stands by.
    let mut standby = Process::start(&path, &["--stage", "retry-1"]);
    let other = standby.address();
    until("the stand-by is ready", async || (get(other, "/readyz").await.0 == 200).then_some(())).await;
    assert_eq!(standby.terminate(), 0);

    // From outside, by the real program.
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .arg("--config")
        .arg(&path)
        .args(["status", "--json"])
        .output()
        .expect("the program");
    let json: Value = serde_json::from_slice(&output.stdout).expect("json alone");
    let stages = json["pipelines"][0]["stages"].as_array().expect("stages");
    let names: Vec<_> = stages.iter().map(|s| s["stage"].as_str().expect("a name")).collect();
    assert_eq!(names, ["main", "retry-1", "dlq"]);
    let keys: Vec<_> = stages[1].as_object().expect("an object").keys().collect();
    assert_eq!(keys[..7], ["stage", "topic", "waiting", "overdue", "oldest_overdue_ms", "lag", "members"], "{keys:?}");
    assert_eq!(stages[1]["topic"], format!("{topic}.{topic}.retry-1"));

    // A configured port that is taken: nothing starts.
    let (_dir, taken) = configuration(&topic, "5s", &format!("admin: {{ listen: \"{address}\" }}\n"));
    let output =
        Command::new(env!("CARGO_BIN_EXE_pipeline")).arg("--config").arg(&taken).output().expect("the program");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains(&format!("admin.listen: cannot listen on {address}")), "{words}");

    assert_eq!(process.terminate(), 0);
}
