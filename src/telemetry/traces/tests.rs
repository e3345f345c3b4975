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

fn options(endpoint: String) -> Options {
    Options { endpoint, headers: Vec::new(), ca: None, service: "retry-ladder", instance: "i".into() }
}

#[test]
fn headers_are_sent_hidden_and_what_is_none_is_refused() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let sent = metadata(&[pair("Authorization", "Basic x"), pair("authorization", "Bearer hunter2")]).unwrap();
    assert_eq!((sent.len(), sent.get("authorization").unwrap().to_str().unwrap()), (1, "Bearer hunter2"));
    assert!(!format!("{sent:?}").contains("hunter2"));
    for (name, value) in [("two words", "x"), ("x", "a\nb"), ("x-bin", "x"), ("", "x")] {
        let error = metadata(&[pair(name, value)]).unwrap_err().to_string();
        assert!(error.contains("telemetry.otlp_headers") && error.contains(name), "{error}");
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::path::Path;
    use std::process::Command;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// A self-signed certificate for localhost, made by the openssl command: its PEM file, and what a server needs.
    fn certificate(folder: &Path) -> (PathBuf, native_tls::Identity) {
        let [key, cert] = ["key.pem", "cert.pem"].map(|name| folder.join(name));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args([Path::new("-keyout"), &key, Path::new("-out"), &cert])
            .output()
            .expect("the openssl command, for certificates of this test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let [key, pem] = [&key, &cert].map(|file| std::fs::read(file).unwrap());
        (cert, native_tls::Identity::from_pkcs8(&pem, &key).unwrap())
    }

    /// What a collector sees first of a client: whether it offers HTTP/2, and what it says once TLS stands.
    async fn first_words(listener: TcpListener, identity: native_tls::Identity) -> (bool, Option<Vec<u8>>) {
        let acceptor = tokio_native_tls::TlsAcceptor::from(native_tls::TlsAcceptor::new(identity).unwrap());
        let (tcp, _) = listener.accept().await.unwrap();
        let mut hello = [0; 4_096];
        let size = tcp.peek(&mut hello).await.unwrap();
        let offers_http2 = hello[..size].windows(3).any(|bytes| bytes == b"\x02h2");
        let Ok(mut stream) = acceptor.accept(tcp).await else { return (offers_http2, None) };
        let mut said = vec![0; 14];
        (offers_http2, stream.read_exact(&mut said).await.is_ok().then_some(said))
    }

    #[tokio::test]
    async fn spans_go_by_tls_to_a_collector_that_is_trusted_and_to_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (file, identity) = certificate(folder.path());
        for (host, ca, expect) in [
            ("localhost", Some(file.clone()), Some(b"PRI * HTTP/2.0".to_vec())),
            ("127.0.0.1", Some(file), Some(b"PRI * HTTP/2.0".to_vec())),
            ("localhost", None, None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("https://{host}:{}/", listener.local_addr().unwrap().port());
            let traces = Traces::start(Options { ca, ..options(endpoint) }).unwrap();
            traces.queue().offer(span("one"));
            let words = first_words(listener, identity.clone());
            assert_eq!(timeout(Duration::from_secs(60), words).await.unwrap(), (true, expect), "{host}");
            assert_eq!(traces.shutdown().await, 1, "nobody has answered");
        }
    }

    #[tokio::test]
    async fn authorities_that_cannot_be_read_are_told() {
        let endpoint = "https://localhost:4317/".to_owned();
        let error = Traces::start(Options { ca: Some("/nowhere/ca.pem".into()), ..options(endpoint) }).unwrap_err();
        assert!(error.to_string().contains("telemetry.otlp_ca: /nowhere/ca.pem"), "{error}");
    }
}

#[test]
fn base64_as_in_the_rfc() {
    for (plain, encoded) in
        [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
    {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
