//! Finished spans on their way to a collector: a bounded queue, and one task that exports it in batches.
//!
//! Invariants: [`SpanQueue::offer`] never waits; a collector that is down or slow costs spans, which are counted, and
//! nothing else; it is told once when it goes and once when it is back. [`Traces::shutdown`] ends within
//! [`SHUTDOWN`]. One transport only: OTLP over gRPC, with TLS for https://.
//!
//! Leaves to others: what a span says (`adapters::otel`) and when there is one (`stage`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{RetryPolicy, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// Spans that may wait to be exported: about 20 MB at most.
pub const QUEUE: usize = 16_384;
/// Spans exported at once, at most.
const BATCH: usize = 512;
/// The first span of a batch waits at most this long for company.
const LINGER: Duration = Duration::from_secs(1);
/// One export may take this long.
const EXPORT: Duration = Duration::from_secs(5);
/// A batch is tried so often, with a pause before each further try; at the end once.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// What is queued at the end has this long to get out.
pub const SHUTDOWN: Duration = Duration::from_secs(3);

/// Spans cannot be exported to where the configuration says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TLS cannot be had.
    #[error("telemetry.otlp_endpoint: no TLS to {endpoint}: {reason}")]
    Tls {
        /// Where to.
        endpoint: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// The authorities cannot be read.
    #[error("telemetry.otlp_ca: {file}: {source}; right would be a PEM file with certificates")]
    Ca {
        /// As configured.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not to be sent as a header.
    #[error(
        "telemetry.otlp_headers: `{0}` or its value is none for a header: right would be letters, digits and `-`, and a value of printable ASCII"
    )]
    Header(String),
    /// The exporter refuses its settings.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(String),
}

/// Where spans go, and what they say of this process.
#[derive(Clone)]
pub struct Options {
    /// `http://host:port` or `https://host:port` of an OTLP gRPC receiver.
    pub endpoint: String,
    /// Sent with each export; of two with one name the last counts. May hold secrets.
    pub headers: Vec<(String, String)>,
    /// PEM file of authorities to be trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// `service.name`.
    pub service: &'static str,
    /// `service.instance.id`: another for every process.
    pub instance: String,
}

/// What became of the spans of this process.
#[derive(Debug, Default)]
pub struct Counts {
    offered: AtomicU64,
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    /// Made.
    pub fn offered(&self) -> u64 {
        self.offered.load(Ordering::Relaxed)
    }

    /// Taken by the collector.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Lost because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Lost because the collector could not be reached, was too slow, or refused them.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn lost(&self) -> u64 {
        self.dropped() + self.failed()
    }
}

/// Takes finished spans.
#[derive(Clone, Debug)]
pub struct SpanQueue {
    spans: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanQueue {
    /// Queues a span, or counts it as lost. Never waits.
    pub fn offer(&self, span: SpanData) {
        self.counts.offered.fetch_add(1, Ordering::Relaxed);
        if self.spans.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The export of a process's spans.
#[derive(Debug)]
pub struct Traces {
    queue: SpanQueue,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Traces {
    /// Exports to a collector. It need not be there: spans are lost until it is.
    ///
    /// # Errors
    /// When the endpoint cannot be used at all.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(options: Options) -> Result<Self, Error> {
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&options.endpoint)
            .with_metadata(metadata(&options.headers)?)
            .with_timeout(EXPORT)
            .with_retry_policy(RetryPolicy::disabled());
        if options.endpoint.starts_with("https:") {
            exporter = exporter.with_channel(tls_channel(&options)?);
        }
        let exporter = exporter.build().map_err(|error| Error::Exporter(error.to_string()))?;
        Ok(Self::with_exporter(exporter, resource(options.service, options.instance), options.endpoint))
    }

    /// Exports by `exporter`; `target` names it in logs.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn with_exporter<E: SpanExporter + 'static>(mut exporter: E, resource: Resource, target: String) -> Self {
        exporter.set_resource(&resource);
        let (spans, received) = mpsc::channel(QUEUE);
        let queue = SpanQueue { spans, counts: Arc::default() };
        let (stop, stop_asked) = watch::channel(false);
        let counts = Arc::clone(&queue.counts);
        let worker = Worker { exporter, target, spans: received, stop: stop_asked, counts, down: None };
        let task = tokio::spawn(worker.run());
        Self { queue, stop, task }
    }

    /// Where finished spans are given to.
    pub fn queue(&self) -> SpanQueue {
        self.queue.clone()
    }

    /// What became of the spans so far.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.queue.counts
    }

    /// Exports what is queued, within [`SHUTDOWN`], and ends: how many spans were lost in all. Later ones are, too.
    pub async fn shutdown(mut self) -> u64 {
        self.stop.send_replace(true);
        if timeout(SHUTDOWN, &mut self.task).await.is_err() {
            self.task.abort();
        }
        // What was still queued or on its way has had its time.
        let counts = self.counts();
        let lost = counts.offered().saturating_sub(counts.exported());
        if lost > 0 {
            tracing::warn!(
                exported = counts.exported(),
                lost,
                "traces are incomplete: spans were lost on their way to the collector"
            );
        }
        lost
    }
}

/// Headers for the collector, hidden from whatever prints requests.
fn metadata(headers: &[(String, String)]) -> Result<MetadataMap, Error> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let invalid = || Error::Header(name.clone());
        let key = MetadataKey::<Ascii>::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| invalid())?;
        value.set_sensitive(true);
        metadata.insert(key, value);
    }
    Ok(metadata)
}

#[cfg(feature = "tls")]
fn tls_channel(options: &Options) -> Result<tonic::transport::Channel, Error> {
    let read =
        |file: &PathBuf| std::fs::read(file).map_err(|source| Error::Ca { file: file.display().to_string(), source });
    let ca = options.ca.as_ref().map(read).transpose()?;
    tls::channel(&options.endpoint, ca.as_deref())
        .map_err(|error| Error::Tls { endpoint: options.endpoint.clone(), reason: error.to_string() })
}

#[cfg(not(feature = "tls"))]
fn tls_channel(options: &Options) -> Result<tonic::transport::Channel, Error> {
    let reason = "this build has none; use http://, or a build with the feature `tls`".to_owned();
    Err(Error::Tls { endpoint: options.endpoint.clone(), reason })
}

/// RFC 4648, section 4: what `authorization: Basic` wants.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().enumerate().fold(0_usize, |group, (i, byte)| group | usize::from(*byte) << (16 - 8 * i));
        for digit in 0..4 {
            let used = digit <= chunk.len();
            text.push(if used { DIGITS[group >> (18 - 6 * digit) & 63] as char } else { '=' });
        }
    }
    text
}

fn resource(service: &'static str, instance: String) -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    Resource::builder()
        .with_service_name(service)
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .with_attributes(host.map(|host| KeyValue::new("host.name", host.trim().to_owned())))
        .build()
}

struct Worker<E> {
    exporter: E,
    target: String,
    spans: mpsc::Receiver<SpanData>,
    stop: watch::Receiver<bool>,
    counts: Arc<Counts>,
    /// Spans lost before the collector went.
    down: Option<u64>,
}

impl<E: SpanExporter> Worker<E> {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.fill(&mut batch).await {
            self.export(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).await;
        }
    }

    /// Waits for spans, and a while for more: `false` when there will be none.
    async fn fill(&mut self, batch: &mut Vec<SpanData>) -> bool {
        let mut until = None;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                biased;
                received = self.spans.recv_many(batch, room) => match received {
                    0 => break,
                    _ => { until.get_or_insert_with(|| Instant::now() + LINGER); }
                },
                () = stopped(&mut self.stop), if !self.spans.is_closed() => self.spans.close(),
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
            }
        }
        !batch.is_empty()
    }

    /// A collector that is only restarted loses nothing; the queue holds what comes meanwhile.
    async fn export(&mut self, batch: Vec<SpanData>) {
        let size = batch.len() as u64;
        for attempt in 1.. {
            let result = match timeout(EXPORT, self.exporter.export(batch.clone())).await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {EXPORT:?}")),
            };
            let Err(error) = result else {
                self.counts.exported.fetch_add(size, Ordering::Relaxed);
                if let Some(before) = self.down.take() {
                    let lost = self.counts.lost().saturating_sub(before);
                    tracing::info!(collector = self.target, lost, "the collector takes spans again");
                }
                return;
            };
            if self.down.is_none() {
                self.down = Some(self.counts.lost());
                tracing::warn!(
                    collector = self.target,
                    error,
                    "the collector does not take spans; events go on, spans are lost until it does"
                );
            }
            if attempt == ATTEMPTS || timeout(PAUSE, stopped(&mut self.stop)).await.is_ok() {
                break;
            }
        }
        self.counts.failed.fetch_add(size, Ordering::Relaxed);
    }
}

/// Resolves once the end was asked for, at once from then on.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without the other end nobody exports any more: the same.
    drop(stop.wait_for(|stop| *stop).await);
}

#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
