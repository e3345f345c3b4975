//! Ladders of a test's own, processes of the real binary that run them, and load for them.
//!
//! Every wait is for a condition, with a limit that a busy machine does not reach; every process is ended by its own
//! handle when the test ends, however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use retry_ladder::handlers::executions::Execution;
use retry_ladder::ladder::event::Timestamp;
use retry_ladder::messages::shop::v1::OrderPlaced;
use retry_ladder::stage::clock::{Clock as _, SystemClock};

use crate::support::{brokers, client_config, unique};

/// Longest wait for something that takes seconds when the machine is idle.
pub(super) const LIMIT: Duration = Duration::from_secs(90);

/// The address of the Redis that everybody shares; records of each ladder have a prefix of their own.
///
/// # Panics
/// When `REDIS_URL` is not set.
pub(super) fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| {
        panic!(
            "REDIS_URL is not set: this test needs a real Redis; start one with `scripts/services up`, \
             then set REDIS_URL=redis://localhost:6379/0"
        )
    })
}

/// Looks until `is_so`.
///
/// # Panics
/// When it is not so within [`LIMIT`]; `state` says how far it came.
pub(super) fn until(what: &str, is_so: impl FnMut() -> bool, state: impl FnOnce() -> String) {
    within(LIMIT, what, is_so, state);
}

/// As [`until`], with a limit that is itself what is tested.
pub(super) fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool, state: impl FnOnce() -> String) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}\n{}", state());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One ladder `orders` with two retry stages: its folder, its configuration, its topics once they are created.
pub(super) struct Ladder {
    folder: tempfile::TempDir,
    topic: String,
    partitions: i32,
    /// What is written as `topics.yaml` for the next process.
    pub(super) config: Value,
}

/// What a [`Ladder`]'s pipeline is set to before a test changes it. The group has the topic's name: members of other
/// tests in one group would hold its rebalances up.
pub(super) fn config(topic: &str, partitions: i32) -> Value {
    json!({
        "kafka": { "brokers": brokers(), "session_timeout": "6s" },
        "redis": { "url": redis_url(), "prefix": topic },
        "pipelines": { "orders": {
            "topic": topic,
            "group": topic,
            "message": "shop.v1.OrderPlaced",
            "partitions": partitions,
            "retries": [{ "delay": "200ms" }, { "delay": "400ms" }],
            "idempotency": { "lease": "3s" },
            "handler": { "simulate": { "fail_ratio": 0, "fsync": true } }
        }}
    })
}

impl Ladder {
    /// A ladder without topics.
    pub(super) fn new(partitions: i32) -> Self {
        let topic = unique("operations");
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, config: config(&topic, partitions), topic, partitions }
    }

    /// A ladder with its topics.
    pub(super) fn created(partitions: i32) -> Self {
        let ladder = Self::new(partitions);
        let output = ladder.call(&["topics", "create"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ladder
    }

    /// The pipeline's own part of the configuration.
    pub(super) fn pipeline(&mut self) -> &mut Value {
        &mut self.config["pipelines"]["orders"]
    }

    /// Options of the `simulate` handler.
    pub(super) fn simulate(&mut self, key: &str, value: impl Into<Value>) {
        self.pipeline()["handler"]["simulate"][key] = value.into();
    }

    /// Topic of a stage.
    pub(super) fn topic(&self, stage: &str) -> String {
        if stage == "main" { self.topic.clone() } else { format!("{0}.{0}.{stage}", self.topic) }
    }

    fn command(&self) -> Command {
        // Moved into place: a process that was started just now must not read half of it.
        let (file, draft) = (self.folder.path().join("topics.yaml"), self.folder.path().join("draft"));
        std::fs::write(&draft, self.config.to_string()).expect("write the configuration");
        std::fs::rename(&draft, &file).expect("move the configuration");
        pipeline(self.folder.path())
    }

    /// Runs a command to its end.
    pub(super) fn call(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).stdin(Stdio::null()).output().expect("run pipeline")
    }

    /// Starts a process; `name` names its log and its executions file.
    pub(super) fn start(&self, name: &str, arguments: &[&str]) -> Worker {
        self.start_with(name, arguments, &[])
    }

    /// The same with variables of its own.
    pub(super) fn start_with(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Worker {
        let (log, record) = (self.folder.path().join(format!("{name}.log")), self.folder.path().join(name));
        let file = File::create(&log).expect("create the log");
        let mut command = self.command();
        if self.config["pipelines"]["orders"]["handler"].get("simulate").is_some() {
            command.env("PIPELINE_PIPELINES__ORDERS__HANDLER__SIMULATE__RECORD", &record);
        }
        let child = command
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start pipeline");
        Worker { child, log, record }
    }

    fn produce(&self, producer: &ThreadedProducer<DefaultProducerContext>, stage: &str, partition: i32, id: &str) {
        self.produce_with(producer, stage, partition, None, id);
    }

    fn produce_with(
        &self,
        producer: &ThreadedProducer<DefaultProducerContext>,
        stage: &str,
        partition: i32,
        key: Option<&str>,
        id: &str,
    ) {
        let topic = self.topic(stage);
        let value = OrderPlaced { unique_id: id.to_owned(), ..OrderPlaced::default() }.encode_to_vec();
        let mut headers = vec![("x-ladder-event-id", id.to_owned())];
        if let Some(index) = stage.strip_prefix("retry-") {
            let now = now().floor_millis();
            headers.extend([
                ("x-ladder-stage", index.to_owned()),
                ("x-ladder-attempt", index.to_owned()),
                ("x-ladder-hop", index.to_owned()),
                ("x-ladder-group", self.topic.clone()),
                ("x-ladder-due", now.to_string()),
                ("x-ladder-origin", format!("{}:{partition}:0:{now}", self.topic)),
            ]);
        }
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value.as_bytes()) }));
        let mut record = BaseRecord::<str, _>::to(&topic).partition(partition).payload(&value).headers(headers);
        record.key = key;
        producer.send(record).map_err(|(error, _)| error).expect("produce");
    }

    /// Publishes events of these keys and ids to main, in this order, and waits for their acknowledgements.
    pub(super) fn produce_keyed<'a>(&self, partition: i32, events: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let producer = producer();
        for (key, id) in events {
            self.produce_with(&producer, "main", partition, Some(key), id);
        }
        producer.flush(LIMIT).expect("acknowledged");
    }

    /// Publishes one event for a stage and waits for its acknowledgement.
    pub(super) fn produce_one(&self, stage: &str, partition: i32, id: &str) {
        let producer = producer();
        self.produce(&producer, stage, partition, id);
        producer.flush(LIMIT).expect("acknowledged");
    }

    /// Publishes `per_partition` events into each partition of a stage and returns their ids.
    pub(super) fn produce_all(&self, stage: &str, per_partition: usize) -> BTreeSet<String> {
        let producer = producer();
        let mut ids = BTreeSet::new();
        for (n, partition) in (0..per_partition).flat_map(|n| (0..self.partitions).map(move |p| (n, p))) {
            let id = format!("p{partition}-{n}");
            self.produce(&producer, stage, partition, &id);
            ids.insert(id);
        }
        producer.flush(LIMIT).expect("acknowledged");
        ids
    }

    /// What the main stage's group has committed for a partition.
    pub(super) fn committed(&self, partition: i32) -> Option<i64> {
        let consumer: BaseConsumer = client_config().set("group.id", &self.topic).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let committed = consumer.committed_offsets(list, LIMIT).expect("committed offsets");
        match committed.elements()[0].offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    /// The event ids on the DLQ, sorted.
    pub(super) fn dead_letters(&self) -> Vec<String> {
        let mut ids: Vec<_> = records(&self.topic("dlq")).iter().map(|r| r.id().to_owned()).collect();
        ids.sort();
        ids
    }
}

/// A record as it lies on a topic.
#[derive(Clone, Debug)]
pub(super) struct Lying {
    pub(super) partition: i32,
    pub(super) timestamp_ms: i64,
    pub(super) value: Vec<u8>,
    headers: BTreeMap<String, String>,
}

impl Lying {
    /// A header's text; empty when it is not there.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(super) fn id(&self) -> &str {
        self.header("x-ladder-event-id")
    }
}

/// Of a partition that may have been made a moment ago: until it has its leader there is nobody to tell.
fn watermarks(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        match consumer.fetch_watermarks(topic, partition, LIMIT) {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::NotLeaderForPartition)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            told => return told.expect("watermarks"),
        }
    }
}

/// Everything on a topic now, read without our own codec.
pub(super) fn records(topic: &str) -> Vec<Lying> {
    use rdkafka::message::{Headers as _, Message as _};
    let consumer: BaseConsumer = client_config().set("group.id", unique("reader")).create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).expect("metadata");
    let mut assignment = TopicPartitionList::new();
    let mut left = 0;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = watermarks(&consumer, topic, partition.id());
        left += high - low;
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
    }
    consumer.assign(&assignment).expect("assign");
    let mut records = Vec::new();
    for _ in 0..left {
        let message = consumer.poll(LIMIT).expect("a record").expect("readable");
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().map(|all| all.iter().map(|h| (h.key.to_owned(), text(h.value))).collect());
        records.push(Lying {
            partition: message.partition(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers.unwrap_or_default(),
        });
    }
    records
}

/// The binary, in a folder, without anything that this shell happens to export.
pub(super) fn pipeline(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PIPELINE_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").current_dir(folder);
    command
}

fn producer() -> ThreadedProducer<DefaultProducerContext> {
    client_config().set("enable.idempotence", "true").set("linger.ms", "2").create().expect("a producer")
}

/// The wall clock as the handlers' files have it.
pub(super) fn now() -> Timestamp {
    SystemClock.now().wall
}

/// A process of the binary.
pub(super) struct Worker {
    child: Child,
    log: PathBuf,
    record: PathBuf,
}

impl Worker {
    /// What it has logged.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What its handlers did.
    pub(super) fn executions(&self) -> Vec<Execution> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|line| Execution::parse(line.strip_suffix('\n')?)).collect()
    }

    /// Executions that were started, in order.
    pub(super) fn starts(&self) -> Vec<Execution> {
        self.executions().into_iter().filter(|e| e.outcome.is_none()).collect()
    }

    /// Executions that ended, in order.
    pub(super) fn ends(&self) -> Vec<Execution> {
        self.executions().into_iter().filter(|e| e.outcome.is_some()).collect()
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    /// SIGKILL, and gone when this returns.
    pub(super) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub(super) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it can be watched").is_none()
    }

    /// Its exit code.
    ///
    /// # Panics
    /// When it does not end within `limit`, or a signal ended it.
    pub(super) fn exit_code(&mut self, limit: Duration) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be watched") {
                return status.code().unwrap_or_else(|| panic!("{status}\n{}", self.log()));
            }
            assert!(begun.elapsed() < limit, "it runs on after {limit:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A failed test must not leave it behind; that it cannot be ended is no news then.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// How often each event was started, by all these processes.
pub(super) fn started(workers: &[&Worker]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for execution in workers.iter().flat_map(|w| w.starts()) {
        *counts.entry(execution.event_id).or_insert(0) += 1;
    }
    counts
}

/// The events that any of these processes has done.
pub(super) fn done(workers: &[&Worker]) -> BTreeSet<String> {
    let ends = workers.iter().flat_map(|w| w.ends());
    ends.filter(|e| e.outcome.as_deref() == Some("done")).map(|e| e.event_id).collect()
}

/// Waits until all these events are done.
pub(super) fn until_done(ids: &BTreeSet<String>, workers: &[&Worker]) {
    until(
        "all events are done",
        || done(workers).is_superset(ids),
        || format!("missing: {:?}", ids.difference(&done(workers)).take(20).collect::<Vec<_>>()),
    );
}

/// The partition in an event id of [`Load`] and [`Ladder::produce_all`].
pub(super) fn partition_of(id: &str) -> i32 {
    let text = id.strip_prefix('p').and_then(|rest| rest.split('-').next());
    text.and_then(|p| p.parse().ok()).unwrap_or_else(|| panic!("{id} names no partition"))
}

/// Events that go on coming, round robin over the partitions.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<BTreeSet<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// So many events a second for this stage.
    pub(super) fn start(ladder: &Arc<Ladder>, stage: &'static str, rate: u32) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let thread = std::thread::spawn({
            let (ladder, stop, sent) = (Arc::clone(ladder), Arc::clone(&stop), Arc::clone(&sent));
            move || {
                let producer = producer();
                let begun = Instant::now();
                for n in 0_u32.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let partition = n as i32 % ladder.partitions;
                    let id = format!("p{partition}-{n}");
                    ladder.produce(&producer, stage, partition, &id);
                    sent.lock().expect("not poisoned").insert(id);
                    let next = begun + Duration::from_secs(1) * (n + 1) / rate;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                producer.flush(LIMIT).expect("acknowledged");
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    /// Everything that was sent so far.
    pub(super) fn sent(&self) -> BTreeSet<String> {
        self.sent.lock().expect("not poisoned").clone()
    }

    /// Ends it and returns everything that was sent, all of it acknowledged.
    pub(super) fn finish(mut self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("every event was sent");
        }
        self.sent()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
