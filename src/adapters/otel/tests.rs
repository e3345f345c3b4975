//! Events go through the real stages on faked ports; the spans are read where the collector would get them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use futures::future::BoxFuture;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanExporter;
use tokio::sync::Semaphore;

use super::*;
use crate::adapters::memory::MemoryStore;
use crate::ladder::event::{Failure, Outcome};
use crate::ladder::headers::CopyKeys;
use crate::ladder::rungs::{Ladder, LadderSpec};
use crate::stage::Stage;
use crate::stage::clock::{Clock, SystemClock};
use crate::stage::context::{Decode, Partitions, StageContext, StageSettings};
use crate::stage::gate::Gate;
use crate::stage::lanes::{LaneCommand, LaneHost};
use crate::stage::ports::{AckSink, Event, Handler, Outgoing, PublishError, Publisher};
use crate::stage::record::Record;
use crate::telemetry::handler_spans::HandlerSpans;
use crate::telemetry::traces::Traces;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ROOT: &str = "b7ad6b7169203331";
const DELAYS: [Duration; 2] = [Duration::from_millis(40), Duration::from_millis(90)];

#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// Refuses the first tries, then acknowledges.
#[derive(Default)]
struct Broker {
    refusals: Mutex<u32>,
    published: Mutex<VecDeque<Outgoing>>,
}

impl Publisher for Broker {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return acks.acknowledged(ticket, Err(PublishError::Unacknowledged("try again".into())));
        }
        self.published.lock().unwrap().push_back(record);
        acks.acknowledged(ticket, Ok(()));
    }
}

/// Gives the prepared outcomes one after the other; keeps the trace contexts that it saw.
#[derive(Default)]
struct Script {
    outcomes: Mutex<VecDeque<Outcome>>,
    seen: Mutex<Vec<Option<String>>>,
}

impl Handler for Script {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        self.seen.lock().unwrap().push(event.trace.map(|trace| trace.to_string()));
        let outcome = self.outcomes.lock().unwrap().pop_front().unwrap_or(Outcome::Done);
        Box::pin(async move {
            charge(event.attempt).await;
            outcome
        })
    }
}

/// What a user's handler does, with spans of its own.
#[tracing::instrument]
async fn charge(attempt: u32) {
    tracing::info_span!("look up the card").in_scope(|| tracing::info!("found"));
    tokio::task::yield_now().await;
    tracing::info_span!("ask the bank").in_scope(|| {});
}

struct Plain;

impl Decode for Plain {
    fn payload(&self, value: &Bytes) -> Result<Bytes, String> {
        if value.as_ref() == b"poison" { Err("no message".into()) } else { Ok(value.clone()) }
    }

    fn event_id(&self, _: &[u8]) -> Option<String> {
        None
    }
}

/// What one event left behind.
struct Life {
    spans: Vec<SpanData>,
    /// Headers of each record that was published, by topic.
    hops: Vec<(String, Vec<(String, String)>)>,
    /// The context that each execution was given.
    seen: Vec<Option<String>>,
}

struct Setup {
    sampling: Option<Sampling>,
    headers: Vec<(&'static str, String)>,
    outcomes: Vec<Outcome>,
    value: &'static [u8],
    refusals: u32,
    handler_spans: HandlerSpans,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            sampling: Some(Sampling::default()),
            headers: vec![("traceparent", format!("00-{TRACE}-{ROOT}-01"))],
            outcomes: Vec::new(),
            value: b"value",
            refusals: 0,
            handler_spans: HandlerSpans::default(),
        }
    }
}

fn fails() -> Outcome {
    Outcome::Failed(Failure::transient("target is down"))
}

/// Runs one event through every stage that it comes to.
async fn live(setup: Setup) -> Life {
    let spec = LadderSpec::new("orders", "billing", "orders").retry(DELAYS[0]).retry(DELAYS[1]);
    let ladder = Arc::new(Ladder::new(spec).unwrap());
    let collected = Collected::default();
    let traces = Traces::with_exporter(collected.clone(), Resource::builder_empty().build(), "test".into());
    setup.handler_spans.export(traces.queue());
    let (broker, script) = (Arc::new(Broker::default()), Arc::new(Script::default()));
    *broker.refusals.lock().unwrap() = setup.refusals;
    script.outcomes.lock().unwrap().extend(setup.outcomes);
    let mut hops = Vec::new();
    let mut next = Some(Outgoing {
        topic: "orders".into(),
        partition: Some(3),
        key: Some(Bytes::from_static(b"customer-9")),
        value: Some(Bytes::from_static(setup.value)),
        headers: setup
            .headers
            .iter()
            .map(|(n, v)| (Bytes::from_static(n.as_bytes()), Some(v.clone().into())))
            .collect(),
    });
    while let Some(record) = next.take() {
        let rung = ladder.rungs().iter().find(|rung| rung.topic == record.topic).unwrap();
        let is_last = rung.index == ladder.dlq().index;
        let dedup = if is_last { crate::ladder::lane::Dedup::Off } else { crate::ladder::lane::Dedup::Required };
        let tracer = setup
            .sampling
            .map(|sampling| Arc::new(OtelTracer::new(traces.queue(), sampling, "retry-ladder")) as Arc<dyn Tracer>);
        let (clock, stats) = (Arc::new(SystemClock) as Arc<dyn Clock>, Arc::default());
        let stage = Stage::new(
            Arc::new(StageContext {
                gate: Gate::open(ladder.pipeline(), &clock, &stats),
                stage: rung.index,
                message: "m".into(),
                decode: Arc::new(Plain),
                handler: Arc::clone(&script) as _,
                store: Arc::new(MemoryStore::default()),
                publisher: Arc::clone(&broker) as _,
                tracer,
                clock,
                permits: Arc::new(Semaphore::new(4)),
                partitions: Partitions(vec![6; 4]),
                gained_partitions: false.into(),
                keys: CopyKeys::new("idem", &ladder),
                settings: StageSettings { dedup, ..StageSettings::default() },
                process: 7,
                stats,
                ladder: Arc::clone(&ladder),
            }),
            tokio::runtime::Handle::current(),
        );
        let mut lane = stage.open(3);
        let timestamp_ms = SystemClock.now().wall.floor_millis() as i64;
        lane.hand_over(vec![Record {
            partition: 3,
            offset: 41,
            timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers,
        }]);
        while lane.position() != Some(42) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        lane.command(LaneCommand::Drain);
        lane.wait_ended().await;
        next = broker.published.lock().unwrap().pop_front();
        hops.extend(next.iter().map(|record| {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            let headers = record.headers.iter().map(|(n, v)| (text(n), text(v.as_ref().unwrap()))).collect();
            (record.topic.to_string(), headers)
        }));
    }
    assert_eq!(traces.shutdown().await, 0);
    let spans = collected.0.lock().unwrap().clone();
    let seen = script.seen.lock().unwrap().clone();
    Life { spans, hops, seen }
}

impl Life {
    #[track_caller]
    fn span(&self, name: &str) -> &SpanData {
        let all: Vec<_> = self.spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(all.len(), 1, "`{name}` among {:?}", self.names());
        all[0]
    }

    fn names(&self) -> Vec<&str> {
        self.spans.iter().map(|span| &*span.name).collect()
    }

    /// Each span's parent by name; `ROOT` for the producer's.
    #[track_caller]
    fn check_tree(&self, expect: &[(&str, &str)]) {
        let name = |id: SpanId| {
            let parent = self.spans.iter().find(|span| span.span_context.span_id() == id);
            parent
                .map_or_else(|| if id == SpanId::INVALID { "-".into() } else { id.to_string() }, |s| s.name.to_string())
        };
        let mut tree: Vec<_> = self.spans.iter().map(|s| (s.name.to_string(), name(s.parent_span_id))).collect();
        let mut expect: Vec<_> = expect.iter().map(|(n, p)| ((*n).to_owned(), (*p).to_owned())).collect();
        tree.sort();
        expect.sort();
        assert_eq!(tree, expect);
        assert!(self.spans.iter().all(|s| s.span_context.trace_id() == self.spans[0].span_context.trace_id()));
    }

    #[track_caller]
    fn check_headers_once(&self) {
        for (topic, headers) in &self.hops {
            let mut seen = BTreeMap::new();
            headers.iter().for_each(|(name, _)| *seen.entry(name).or_insert(0) += 1);
            assert!(seen.values().all(|n| *n == 1), "{topic}: {seen:?}");
        }
    }

    #[track_caller]
    fn traceparent(&self, hop: usize) -> &str {
        &self.hops[hop].1.iter().find(|(name, _)| name == "traceparent").expect("a traceparent").1
    }
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|a| a.key.as_str() == name);
    found.map(|a| a.value.as_str().into_owned())
}

#[track_caller]
fn check_attributes(span: &SpanData, expect: &[(&str, Option<&str>)]) {
    for (name, value) in expect {
        assert_eq!(attribute(span, name).as_deref(), *value, "{name} of {}", span.name);
    }
}

fn lasted(span: &SpanData) -> Duration {
    span.end_time.duration_since(span.start_time).unwrap()
}

#[tokio::test]
async fn an_event_that_succeeds_on_main_leaves_one_span() {
    let life = live(Setup::default()).await;
    life.check_tree(&[("process orders", ROOT)]);
    let span = life.span("process orders");
    assert_eq!(span.span_context.trace_id().to_string(), TRACE);
    assert_eq!((&span.span_kind, &span.status), (&otel::SpanKind::Consumer, &Status::Unset));
    assert!(span.parent_span_is_remote);
    check_attributes(
        span,
        &[
            ("messaging.system", Some("kafka")),
            ("messaging.operation.name", Some("process")),
            ("messaging.operation.type", Some("process")),
            ("messaging.destination.name", Some("orders")),
            ("messaging.destination.partition.id", Some("3")),
            ("messaging.kafka.offset", Some("41")),
            ("messaging.kafka.message.key", Some("customer-9")),
            ("messaging.consumer.group.name", Some("billing")),
            ("messaging.client.id", Some("retry-ladder")),
            ("ladder.pipeline", Some("orders")),
            ("ladder.stage", Some("main")),
            ("ladder.attempt", Some("1")),
            ("ladder.lateness_ms", None),
            ("error.type", None),
        ],
    );
    assert_eq!(attribute(span, "messaging.message.id"), attribute(span, "ladder.event_id"));
    // The handler's own calls are children of the execution.
    assert_eq!(life.seen, [Some(format!("00-{TRACE}-{}-01", span.span_context.span_id()))]);
}

#[tokio::test]
async fn two_failures_and_a_success_are_one_trace_over_three_stages() {
    let outcomes = vec![fails(), fails(), Outcome::Done];
    let life = live(Setup { outcomes, refusals: 1, ..Setup::default() }).await;
    let [one, two] = ["orders.billing.retry-1", "orders.billing.retry-2"];
    let [wait_1, process_1, send_1] = ["wait", "process", "send"].map(|what| format!("{what} {one}"));
    let [wait_2, process_2, send_2] = ["wait", "process", "send"].map(|what| format!("{what} {two}"));
    life.check_tree(&[
        ("process orders", ROOT),
        (&send_1, "process orders"),
        (&wait_1, &send_1),
        (&process_1, &send_1),
        (&send_2, &process_1),
        (&wait_2, &send_2),
        (&process_2, &send_2),
    ]);
    life.check_headers_once();
    for (hop, send) in [&send_1, &send_2].into_iter().enumerate() {
        let span = life.span(send);
        assert_eq!(life.traceparent(hop), format!("00-{TRACE}-{}-01", span.span_context.span_id()));
        assert_eq!(span.span_kind, otel::SpanKind::Producer);
        assert!(!span.parent_span_is_remote);
        check_attributes(span, &[("messaging.operation.type", Some("send")), ("ladder.action", Some("forward"))]);
    }
    for (wait, process, delay) in [(&wait_1, &process_1, DELAYS[0]), (&wait_2, &process_2, DELAYS[1])] {
        let (wait, process) = (life.span(wait), life.span(process));
        assert_eq!((&wait.span_kind, wait.end_time), (&otel::SpanKind::Internal, process.start_time));
        let lateness: f64 = attribute(wait, "ladder.lateness_ms").unwrap().parse().unwrap();
        assert_eq!(attribute(process, "ladder.lateness_ms"), Some(lateness.to_string()));
        let expect = delay + Duration::from_secs_f64(lateness / 1_000.0);
        let difference = lasted(wait).abs_diff(expect);
        assert!(difference < Duration::from_millis(3), "waited {:?}, expected {expect:?}", lasted(wait));
    }
    for (process, stage, attempt) in [("process orders", "main", "1"), (&process_1, "retry-1", "2")] {
        let span = life.span(process);
        assert_eq!(span.status, Status::error("target is down"));
        check_attributes(
            span,
            &[
                ("error.type", Some("transient")),
                ("ladder.stage", Some(stage)),
                ("ladder.attempt", Some(attempt)),
                ("ladder.action", Some("forward")),
            ],
        );
        assert_eq!(span.events.len(), 1);
        assert_eq!(span.events[0].name, "forward");
    }
    check_attributes(life.span(&process_2), &[("ladder.attempt", Some("3")), ("error.type", None)]);
    check_attributes(life.span(&process_2), &[("messaging.consumer.group.name", Some("billing.retry-2"))]);
}

#[tokio::test]
async fn a_dead_letter_shows_its_decision_and_why() {
    let permanent = Outcome::Failed(Failure::permanent("no such item"));
    let life = live(Setup { outcomes: vec![permanent], ..Setup::default() }).await;
    let dlq = "orders.billing.dlq";
    let [send, process] = [format!("send {dlq}"), format!("process {dlq}")];
    life.check_tree(&[("process orders", ROOT), (&send, "process orders"), (&process, &send)]);
    life.check_headers_once();
    let failed = life.span("process orders");
    assert_eq!(failed.events[0].name, "dead_letter");
    for span in [failed, life.span(&send)] {
        check_attributes(span, &[("ladder.action", Some("dead_letter")), ("ladder.reason", Some("permanent"))]);
    }

    let life = live(Setup { value: b"poison", ..Setup::default() }).await;
    life.check_tree(&[("process orders", ROOT), (&send, "process orders"), (&process, &send)]);
    check_attributes(life.span("process orders"), &[("error.type", Some("poison"))]);
}

#[tokio::test]
async fn an_unsampled_event_is_traced_from_its_first_failure_on() {
    let unsampled = || vec![("traceparent", format!("00-{TRACE}-{ROOT}-00")), ("tracestate", "vendor=1".to_owned())];
    let life = live(Setup { headers: unsampled(), ..Setup::default() }).await;
    assert_eq!(life.names(), [""; 0]);

    let before = time(SystemClock.now().wall);
    let life = live(Setup { headers: unsampled(), outcomes: vec![fails()], ..Setup::default() }).await;
    let one = "orders.billing.retry-1";
    let [send, wait, process] = ["send", "wait", "process"].map(|what| format!("{what} {one}"));
    life.check_tree(&[("process orders", ROOT), (&send, "process orders"), (&wait, &send), (&process, &send)]);
    let failed = life.span("process orders");
    assert_eq!(failed.span_context.trace_id().to_string(), TRACE);
    assert!(failed.span_context.is_sampled() && failed.start_time >= before && failed.end_time >= failed.start_time);
    assert_eq!(life.traceparent(0), format!("00-{TRACE}-{}-01", life.span(&send).span_context.span_id()));
    assert!(life.hops[0].1.contains(&("tracestate".into(), "vendor=1".into())));

    let sampling = Some(Sampling { ratio: 1.0, on_failure: false });
    let life = live(Setup { sampling, headers: unsampled(), outcomes: vec![fails()], ..Setup::default() }).await;
    assert_eq!(life.names(), [""; 0]);
    assert_eq!(life.traceparent(0), format!("00-{TRACE}-{ROOT}-00"));
}

#[tokio::test]
async fn an_event_without_a_trace_begins_one_by_the_ratio() {
    let begins = |ratio, on_failure| {
        let sampling = Some(Sampling { ratio, on_failure });
        live(Setup { sampling, headers: Vec::new(), outcomes: vec![fails()], ..Setup::default() })
    };
    let life = begins(1.0, false).await;
    assert_eq!(life.span("process orders").parent_span_id, SpanId::INVALID);
    assert_eq!(life.spans.len(), 4);
    assert_eq!(begins(0.0, true).await.spans.len(), 4);
    // Decided once: the next stage does not draw again.
    let life = begins(0.0, false).await;
    assert!(life.spans.is_empty());
    assert!(life.traceparent(0).ends_with("-00"));
}

#[tokio::test]
async fn of_several_trace_contexts_the_last_counts_and_one_is_left() {
    let headers = ["11", "22", "33"].map(|id| ("traceparent", format!("00-{TRACE}-{}-01", id.repeat(8))));
    let life = live(Setup { headers: headers.into(), outcomes: vec![fails()], ..Setup::default() }).await;
    assert_eq!(life.span("process orders").parent_span_id.to_string(), "33".repeat(8));
    life.check_headers_once();
}

#[tokio::test]
async fn without_a_tracer_the_trace_context_passes_untouched() {
    let life = live(Setup { sampling: None, outcomes: vec![fails()], ..Setup::default() }).await;
    assert!(life.spans.is_empty());
    assert_eq!(life.traceparent(0), format!("00-{TRACE}-{ROOT}-01"));
    assert_eq!(life.seen, [None, None]);
}

#[tokio::test]
async fn a_refused_fence_is_a_failed_span_and_the_wait_is_told_once() {
    let life = live(Setup { outcomes: vec![fails(), Outcome::Fenced], ..Setup::default() }).await;
    let name = "process orders.billing.retry-1";
    let runs: Vec<_> = life.spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(runs.len(), 2);
    assert_ne!(runs[0].span_context.span_id(), runs[1].span_context.span_id());
    check_attributes(runs[0], &[("error.type", Some("fenced"))]);
    check_attributes(runs[1], &[("error.type", None)]);
    life.span("wait orders.billing.retry-1");
}

#[test]
fn texts_of_any_length_are_cut_at_a_character() {
    let long = "ä".repeat(400);
    assert_eq!(cut(&long).len(), 512);
    assert_eq!(cut(&format!("x{long}")).len(), 511);
    assert_eq!(cut("short"), "short");
}

#[tokio::test]
async fn spans_of_a_handler_are_children_of_its_execution() {
    use tracing_subscriber::prelude::*;

    let handler_spans = HandlerSpans::default();
    // Of this thread, which runs the stage as well.
    let subscriber = tracing_subscriber::registry().with(handler_spans.layer());
    let _guard = tracing::subscriber::set_default(subscriber);
    let _unrelated = tracing::info_span!("not of any event").entered();
    drop(tracing::info_span!("nor this").entered());
    let setup = || Setup { handler_spans: handler_spans.clone(), ..Setup::default() };

    let life = live(setup()).await;
    life.check_tree(&[
        ("process orders", ROOT),
        ("charge", "process orders"),
        ("look up the card", "charge"),
        ("ask the bank", "charge"),
    ]);
    assert_eq!(attribute(life.span("charge"), "attempt").as_deref(), Some("1"));
    assert_eq!(life.span("look up the card").events[0].name, "found");
}

#[tokio::test]
async fn an_execution_that_is_not_traced_leaves_no_spans_of_its_handler() {
    use tracing_subscriber::prelude::*;

    let handler_spans = HandlerSpans::default();
    let subscriber = tracing_subscriber::registry().with(handler_spans.layer());
    let guard = tracing::subscriber::set_default(subscriber);
    let headers = || vec![("traceparent", format!("00-{TRACE}-{ROOT}-00"))];
    let life = live(Setup { handler_spans: handler_spans.clone(), headers: headers(), ..Setup::default() }).await;
    assert_eq!(life.names(), [""; 0]);

    // From the first failure on it is traced: what its handler did by then is not there, what it does next is.
    let handler_spans = HandlerSpans::default();
    let subscriber = tracing_subscriber::registry().with(handler_spans.layer());
    drop(guard);
    let _guard = tracing::subscriber::set_default(subscriber);
    let life = live(Setup { handler_spans, headers: headers(), outcomes: vec![fails()], ..Setup::default() }).await;
    let one = "orders.billing.retry-1";
    let [send, wait, process] = ["send", "wait", "process"].map(|what| format!("{what} {one}"));
    life.check_tree(&[
        ("process orders", ROOT),
        (&send, "process orders"),
        (&wait, &send),
        (&process, &send),
        ("charge", &process),
        ("look up the card", "charge"),
        ("ask the bank", "charge"),
    ]);
}
