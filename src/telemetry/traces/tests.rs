//! The queue and its task against a collector that is fast, slow, dead or restarted.

use std::sync::Mutex;

use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
use tokio::sync::Semaphore;

use super::*;

/// Takes spans while it has permits, refuses them while it is told to.
#[derive(Clone, Debug)]
struct Collector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    answers: Semaphore,
    refuses: std::sync::atomic::AtomicBool,
    taken: Mutex<Vec<String>>,
    calls: AtomicU64,
}

impl Collector {
    fn new(answers: usize) -> Self {
        Self(Arc::new(Inner {
            answers: Semaphore::new(answers),
            refuses: false.into(),
            taken: Mutex::default(),
            calls: AtomicU64::new(0),
        }))
    }

    fn refuses(self, refuses: bool) -> Self {
        self.0.refuses.store(refuses, Ordering::Relaxed);
        self
    }

    fn taken(&self) -> Vec<String> {
        self.0.taken.lock().unwrap().clone()
    }

    fn start(&self) -> Traces {
        Traces::with_exporter(self.clone(), Resource::builder_empty().build(), "test".into())
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        if self.0.refuses.load(Ordering::Relaxed) {
            return Err(OTelSdkError::InternalFailure("refused".into()));
        }
        self.0.answers.acquire().await.unwrap().forget();
        self.0.taken.lock().unwrap().extend(batch.into_iter().map(|span| span.name.into_owned()));
        Ok(())
    }
}

fn span(name: impl Into<std::borrow::Cow<'static, str>>) -> SpanData {
    SpanData {
        span_context: SpanContext::NONE,
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: std::time::UNIX_EPOCH,
        end_time: std::time::UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn spans_go_out_in_batches_and_the_rest_at_shutdown() {
    let collector = Collector::new(100);
    let traces = collector.start();
    let queue = traces.queue();
    (0..2 * BATCH + 7).for_each(|n| queue.offer(span(n.to_string())));
    assert_eq!(traces.shutdown().await, 0);
    let expect: Vec<_> = (0..2 * BATCH + 7).map(|n| n.to_string()).collect();
    assert_eq!(collector.taken(), expect);
    assert_eq!(collector.0.calls.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_span_waits_for_company_no_longer_than_a_second() {
    let collector = Collector::new(100);
    let traces = collector.start();
    traces.queue().offer(span("one"));
    tokio::time::sleep(LINGER - Duration::from_millis(10)).await;
    assert!(collector.taken().is_empty());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(collector.taken(), ["one"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_collector_costs_spans_that_are_counted_and_never_time() {
    let collector = Collector::new(0);
    let traces = collector.start();
    let queue = traces.queue();
    let begin = Instant::now();
    for n in 0..QUEUE + 2 * BATCH {
        queue.offer(span(n.to_string()));
        if n == BATCH {
            // The first batch is on its way, and hangs.
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(begin.elapsed(), Duration::ZERO);
    let counts = Arc::clone(traces.counts());
    assert!(counts.dropped() >= BATCH as u64, "{counts:?}");
    let end = Instant::now();
    assert_eq!(traces.shutdown().await, (QUEUE + 2 * BATCH) as u64);
    assert!(end.elapsed() <= SHUTDOWN + Duration::from_millis(10), "{:?}", end.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_restarted_loses_nothing() {
    let collector = Collector::new(100).refuses(true);
    let traces = collector.start();
    traces.queue().offer(span("one"));
    tokio::time::sleep(LINGER + PAUSE / 2).await;
    traces.queue().offer(span("two"));
    let collector = collector.refuses(false);
    tokio::time::sleep(PAUSE + LINGER).await;
    assert_eq!(collector.taken(), ["one", "two"]);
    assert_eq!(traces.shutdown().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_collector_is_given_up_per_batch_and_does_not_delay_the_end() {
    let collector = Collector::new(100).refuses(true);
    let traces = collector.start();
    traces.queue().offer(span("lost"));
    tokio::time::sleep(LINGER + ATTEMPTS * PAUSE).await;
    assert_eq!((traces.counts().failed(), collector.0.calls.load(Ordering::Relaxed)), (1, u64::from(ATTEMPTS)));
    let queue = traces.queue();
    queue.offer(span("lost, too"));
    let begin = Instant::now();
    assert_eq!(traces.shutdown().await, 2);
    assert_eq!(begin.elapsed(), Duration::ZERO);
    queue.offer(span("late"));
}

#[tokio::test]
async fn an_endpoint_with_tls_is_refused_with_a_remedy() {
    let options = Options {
        endpoint: "https://collector:4317/".into(),
        authorization: None,
        service: "retry-ladder",
        instance: "i".into(),
    };
    let error = Traces::start(options).unwrap_err().to_string();
    assert!(error.contains("telemetry.otlp_endpoint") && error.contains("http://"), "{error}");
}

#[test]
fn base64_as_in_the_rfc() {
    for (plain, encoded) in
        [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
    {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
