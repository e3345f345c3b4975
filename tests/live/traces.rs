//! Traces in a real Jaeger, written by the real binary: one process for each stage, read back through Jaeger's API.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for something else")]

mod collector;
mod jaeger;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::{brokers, client_config, unique};
use jaeger::{check_tree, check_wait, find, trace, trace_id};

const LIMIT: Duration = Duration::from_secs(120);
const DELAYS: [u64; 2] = [1_000, 2_000];

fn service(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: this test needs a real Jaeger; put a Jaeger 2 binary at LADDER_CACHE/bin/jaeger or name one \
             packed with xz in LADDER_JAEGER_XZ, start it with `scripts/services up jaeger`, then `eval \"$(scripts/services env)\"`"
        )
    })
}

/// Waits until `ready` gives something.
async fn until<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// ---------------------------------------------------------------------------------------------- the sink

/// One request of the http handler.
#[derive(Clone, Debug)]
struct Call {
    event_id: String,
    stage: String,
    traceparent: String,
    at: Instant,
}

/// An http sink that answers by event and stage.
#[derive(Clone)]
struct Sink {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Sink {
    async fn start(answer: impl Fn(&Call) -> u16 + Clone + Send + Sync + 'static) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let seen = Arc::clone(&calls);
        let handle = move |headers: HeaderMap| {
            let text = |name: &str| headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
            let call = Call {
                event_id: text("ce-id"),
                stage: text("x-ladder-stage"),
                traceparent: text("traceparent"),
                at: Instant::now(),
            };
            let status = StatusCode::from_u16(answer(&call)).unwrap();
            seen.lock().unwrap().push(call);
            async move { status }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handle)).await });
        Self { address, calls }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn find(&self, event_id: &str, stage: &str) -> Option<Call> {
        self.calls().into_iter().find(|call| call.event_id == event_id && call.stage == stage)
    }
}

// ---------------------------------------------------------------------------------------------- the pipeline

/// A pipeline of a test's own, run by the real binary.
struct Pipeline {
    topic: String,
    folder: tempfile::TempDir,
}

/// A stage in a process of its own; ended when dropped.
struct Stage(tokio::process::Child);

impl Pipeline {
    fn new(sink: &Sink, collector: &str, retries: &[u64]) -> Self {
        let topic = unique("traces");
        let redis = std::env::var("REDIS_URL").expect("REDIS_URL is not set: start a Redis with `scripts/services up`");
        let retries: Vec<_> = retries.iter().map(|ms| format!("{{ delay: {ms}ms }}")).collect();
        let config = format!(
            "kafka: {{ brokers: '{}' }}\nredis: {{ url: '{redis}', prefix: {topic} }}\n\
             telemetry: {{ otlp_endpoint: '{collector}', jaeger_url: '{}', log_format: json }}\n\
             pipelines:\n  p:\n    topic: {topic}\n    group: g\n    message: shop.v1.OrderPlaced\n    partitions: 1\n    \
             retries: [{}]\n    handler: {{ http: {{ url: 'http://{}/' }} }}\n",
            brokers(),
            service("JAEGER_URL"),
            retries.join(", "),
            sink.address,
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("topics.yaml"), config).unwrap();
        let pipeline = Self { topic, folder };
        let done = pipeline.command(&["topics", "create"]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        pipeline
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.args(args).arg("--config").arg(self.file()).env("RUST_LOG", "info,librdkafka=off");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIPELINE_")) {
            command.env_remove(name);
        }
        command
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("topics.yaml")
    }

    fn run(&self, stage: &str) -> Stage {
        let mut command = tokio::process::Command::from(self.command(&["--stage", stage]));
        let log = std::fs::File::create(self.folder.path().join(format!("{stage}.log"))).unwrap();
        command.stderr(log).stdin(Stdio::null()).kill_on_drop(true);
        Stage(command.spawn().unwrap())
    }

    fn log(&self, stage: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{stage}.log"))).unwrap_or_default()
    }

    /// Publishes events of these ids with `pipeline produce`.
    fn produce(&self, ids: &[&str]) {
        let mut child = self
            .command(&["produce", "--json", "-", "--id-field", "unique_id"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        ids.iter().for_each(|id| writeln!(input, "{{\"uniqueId\":\"{id}\"}}").unwrap());
        drop(input);
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(String::from_utf8_lossy(&done.stderr), "", "the collector takes the spans");
    }

    /// What `pipeline trace` prints, and its exit code.
    fn trace(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let done = self.command(&[&["trace"], args].concat()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    }

    fn rung(&self, name: &str) -> String {
        format!("{}.g.{name}", self.topic)
    }

    /// Header names and values of all records of a topic with one partition.
    fn headers(&self, topic: &str) -> Vec<Vec<(String, String)>> {
        let consumer: BaseConsumer =
            client_config().set("group.id", unique("reader")).set("enable.partition.eof", "true").create().unwrap();
        let mut all = rdkafka::TopicPartitionList::new();
        all.add_partition_offset(topic, 0, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        let mut records = Vec::new();
        loop {
            match consumer.poll(LIMIT).expect("the broker answers") {
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return records,
                Err(error) => panic!("{topic}: {error}"),
                Ok(message) => records.push(message.headers().map_or_else(Vec::new, |headers| {
                    let text = |v: Option<&[u8]>| String::from_utf8_lossy(v.unwrap_or_default()).into_owned();
                    headers.iter().map(|h| (h.key.to_owned(), text(h.value))).collect()
                })),
            }
        }
    }
}

impl Stage {
    /// Asks it to end; it drains and exports its last spans.
    async fn end(mut self) -> Duration {
        let begin = Instant::now();
        let pid = self.0.id().expect("the stage runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = tokio::time::timeout(LIMIT, self.0.wait()).await.expect("the stage ends").unwrap();
        assert_eq!(status.code(), Some(0));
        begin.elapsed()
    }
}

// ---------------------------------------------------------------------------------------------- tests

#[tokio::test(flavor = "multi_thread")]
async fn one_event_is_one_trace_over_three_processes() {
    let collector = service("OTEL_EXPORTER_OTLP_ENDPOINT");
    let sink = Sink::start(|call| match (call.event_id.as_str(), call.stage.as_str()) {
        ("twice", "main" | "retry-1") | ("always", _) | ("quiet", "main") => 503,
        _ => 200,
    })
    .await;
    let pipeline = Pipeline::new(&sink, &collector, &DELAYS);
    let stages = ["main", "retry-1", "retry-2"].map(|stage| pipeline.run(stage));
    pipeline.produce(&["twice", "always"]);
    let quiet_trace = format!("{:032x}", fastrand::u128(1..));
    let traceparent = format!("00-{quiet_trace}-{:016x}-00", fastrand::u64(1..));
    let producer: BaseProducer = client_config().create().unwrap();
    let header = |key, value: &'static str| Header { key, value: Some(value) };
    let headers = OwnedHeaders::new()
        .insert(header("x-ladder-event-id", "quiet"))
        .insert(Header { key: "traceparent", value: Some(&traceparent) })
        .insert(header("tracestate", "vendor=1"));
    let record = BaseRecord::<[u8], [u8]>::to(&pipeline.topic).payload(&[]).headers(headers);
    producer.send(record).map_err(|(e, _)| e).unwrap();
    producer.flush(LIMIT).unwrap();

    until("every event's last execution", async || {
        sink.find("twice", "retry-2").and(sink.find("always", "retry-2")).and(sink.find("quiet", "retry-1"))
    })
    .await;
    until("the dead letter", async || (!pipeline.headers(&pipeline.rung("dlq")).is_empty()).then_some(())).await;
    for stage in stages {
        stage.end().await;
    }

    let main = pipeline.topic.as_str();
    let [one, two, dlq] = ["retry-1", "retry-2", "dlq"].map(|name| pipeline.rung(name));
    let [wait_1, process_1, send_1] = ["wait", "process", "send"].map(|what| format!("{what} {one}"));
    let [wait_2, process_2, send_2] = ["wait", "process", "send"].map(|what| format!("{what} {two}"));
    let (root, process, dead) = (format!("send {main}"), format!("process {main}"), format!("send {dlq}"));
    let ladder = [
        (root.as_str(), "-"),
        (&process, &root),
        (&send_1, &process),
        (&wait_1, &send_1),
        (&process_1, &send_1),
        (&send_2, &process_1),
        (&wait_2, &send_2),
        (&process_2, &send_2),
    ];

    let call = sink.find("twice", "retry-2").unwrap();
    let spans = trace(trace_id(&call.traceparent), ladder.len()).await;
    check_tree(&spans, &ladder);
    check_wait(&spans, &one, DELAYS[0]);
    check_wait(&spans, &two, DELAYS[1]);
    // The handler's call was a child of its execution.
    assert_eq!(call.traceparent.split('-').nth(2), Some(find(&spans, &process_2).id.as_str()));
    for (name, error, attempt) in
        [(&process, Some("transient"), "1"), (&process_1, Some("transient"), "2"), (&process_2, None, "3")]
    {
        let span = find(&spans, name);
        assert_eq!(span.tags.get("error.type").map(String::as_str), error, "{name}");
        assert_eq!(span.tags.get("otel.status_code").map(String::as_str), error.map(|_| "ERROR"), "{name}");
        assert_eq!((&*span.tags["ladder.attempt"], &*span.tags["ladder.event_id"]), (attempt, "twice"));
    }
    let processes: BTreeSet<_> = spans.iter().map(|s| &s.instance).collect();
    assert_eq!(processes.len(), 4, "the producer and three stages");

    let spans = trace(trace_id(&sink.find("always", "main").unwrap().traceparent), ladder.len() + 1).await;
    let tree: Vec<_> = ladder.iter().copied().chain([(dead.as_str(), process_2.as_str())]).collect();
    check_tree(&spans, &tree);
    for name in [&dead, &process_2] {
        assert_eq!(find(&spans, name).tags["ladder.reason"], "exhausted");
    }

    let spans = trace(&quiet_trace, 4).await;
    let parent = traceparent.split('-').nth(2).unwrap();
    // Its producer's span is nowhere: it was not sampled.
    check_tree(&spans, &[(&process, parent), (&send_1, &process), (&wait_1, &send_1), (&process_1, &send_1)]);
    check_wait(&spans, &one, DELAYS[0]);

    check_printed(&pipeline, &call, &sink.find("quiet", "main").unwrap());
    for topic in [&one, &two, &dlq] {
        for headers in pipeline.headers(topic) {
            let mut names = BTreeMap::new();
            headers.iter().for_each(|(name, _)| *names.entry(name).or_insert(0) += 1);
            assert!(names.values().all(|n| *n == 1), "{topic}: {names:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_goes_on_in_the_event_s_trace_and_waits_for_nothing() {
    let collector = service("OTEL_EXPORTER_OTLP_ENDPOINT");
    let sink = Sink::start(|call| if call.stage == "main" { 422 } else { 200 }).await;
    let pipeline = Pipeline::new(&sink, &collector, &DELAYS);
    let stages = ["main", "retry-1"].map(|stage| pipeline.run(stage));
    pipeline.produce(&["again"]);
    until("the dead letter", async || (!pipeline.headers(&pipeline.rung("dlq")).is_empty()).then_some(())).await;
    let done = pipeline.command(&["dlq", "redrive", "--yes"]).stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let call = until("its execution", async || sink.find("again", "retry-1")).await;
    for stage in stages {
        stage.end().await;
    }
    let [one, dlq] = ["retry-1", "dlq"].map(|name| pipeline.rung(name));
    let [root, process] = ["send", "process"].map(|what| format!("{what} {}", pipeline.topic));
    let [wait, sent, again] = ["wait", "send", "process"].map(|what| format!("{what} {one}"));
    let dead = format!("send {dlq}");
    let spans = trace(trace_id(&call.traceparent), 6).await;
    let tree =
        [(root.as_str(), "-"), (&process, &root), (&dead, &process), (&sent, &dead), (&wait, &sent), (&again, &sent)];
    check_tree(&spans, &tree);
    assert!(find(&spans, &wait).start_us + 1_000 >= find(&spans, &sent).start_us, "nobody waits before it is sent");
}

/// The same traces as `pipeline trace` shows them.
fn check_printed(pipeline: &Pipeline, twice: &Call, quiet: &Call) {
    // The word before each span's name is how deep it stands; behind the name, what must be told of it.
    #[track_caller]
    fn check(printed: &str, topic: &str, expect: &[(&str, &[&str])]) {
        let printed = printed.replace(topic, "TOPIC");
        let rows: Vec<_> = printed.lines().skip_while(|line| !line.trim_start().starts_with("start")).skip(1).collect();
        assert_eq!(rows.len(), expect.len() + 1, "a line for each span, and an empty one: {printed}");
        for (row, (name, told)) in rows.iter().zip(expect) {
            assert!(row.contains(name) && told.iter().all(|word| row.contains(word)), "{name} {told:?}: {printed}");
        }
    }
    let run = |id: &str| {
        let (code, out, err) = pipeline.trace(&[id]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{id}");
        out
    };
    // Other runs may have left traces of events of the same names: this run's is the last.
    let last = |out: String, id: &str| format!("event {id}: {}", out.rsplit(&format!("event {id}: ")).next().unwrap());
    let ladder: [(&str, &[&str]); 8] = [
        ("  send TOPIC", &["[retry-ladder-produce]"]),
        ("  └─ process TOPIC", &["main · attempt 1 · FAILED transient", "→ forward"]),
        ("     └─ send TOPIC.g.retry-1", &[]),
        ("        ├─ wait TOPIC.g.retry-1", &["retry-1 · waited until due", "late"]),
        ("        └─ process TOPIC.g.retry-1", &["retry-1 · attempt 2", "late", "FAILED transient", "→ forward"]),
        ("           └─ send TOPIC.g.retry-2", &[]),
        ("              ├─ wait TOPIC.g.retry-2", &["retry-2 · waited until due", "late"]),
        ("              └─ process TOPIC.g.retry-2", &["retry-2 · attempt 3", "late"]),
    ];
    let out = last(run("twice"), "twice");
    assert!(out.starts_with("event twice: done on retry-2 at attempt 3\n"), "{out}");
    check(&out, &pipeline.topic, &ladder);
    check(&run(&twice.traceparent), &pipeline.topic, &ladder);
    let out = last(run("always"), "always");
    assert!(out.starts_with("event always: dead-lettered by retry-2 at attempt 3: exhausted\n"), "{out}");
    let dead = ("                 └─ send TOPIC.g.dlq", &[] as &[&str]);
    check(&out, &pipeline.topic, &ladder.iter().copied().chain([dead]).collect::<Vec<_>>());
    assert!(run(&quiet.traceparent).contains("its parent is not here"), "its producer was not sampled");

    let (code, out, err) = pipeline.trace(&["--json", trace_id(&twice.traceparent)]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    assert_eq!(
        (code, err.as_str(), &json["traces"][0]["outcome"]),
        (Some(0), "", &"done on retry-2 at attempt 3".into())
    );
    assert_eq!(json["traces"][0]["spans"].as_array().map(Vec::len), Some(ladder.len()));

    let (code, out, err) = pipeline.trace(&["nobody"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("nothing of `nobody`") && err.contains("sample_ratio is 1"), "{err}");
    let (code, out, err) = pipeline.trace(&["twice", "--jaeger", "http://127.0.0.1:1"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("no Jaeger answers at http://127.0.0.1:1/") && err.contains("--jaeger URL"), "{err}");
    assert_eq!(pipeline.trace(&["twice", "--jaeger", "localhost"]).0, Some(64));
}
