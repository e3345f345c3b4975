//! Produces the sample orders, spread over about two seconds so that there is something to see.
//!
//! Same seed, same events: ids are `order-<n>`, so that anybody can compute what must come of each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::setup::{Demo, PARTITIONS};
use crate::ladder::headers;
use crate::messages::generate::{Generator, Options};
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::{AckSink, Outgoing, PublishError, Publisher as _};

/// How long the events take to come at least.
const AT_LEAST: Duration = Duration::from_secs(2);
/// Events per second at most: what a debug build keeps up with.
const MAX_RATE: f64 = 2_500.0;

/// Longest wait for the last acknowledgements.
const FLUSH: Duration = Duration::from_secs(10);

/// The id of the n-th event.
pub(super) fn event_id(n: u64) -> String {
    format!("order-{n:06}")
}

/// Acknowledgements; tickets are the events' numbers.
#[derive(Default)]
struct Acks {
    count: AtomicU64,
    acknowledged: Mutex<Vec<u64>>,
    failed: Mutex<Vec<(u64, PublishError)>>,
}

impl AckSink for Acks {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        match result {
            Ok(()) => {
                self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((ticket, error)),
        }
    }
}

/// Events on their way into the main topic.
pub(super) struct Feed {
    events: u64,
    acks: Arc<Acks>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Begins to produce.
    pub(super) fn start(demo: &Demo, events: u64, seed: u64) -> anyhow::Result<Self> {
        let acks = Arc::new(Acks::default());
        let mut generator = Generator::new(&demo.decoder, &Options { seed, ..Options::default() })?;
        let key = demo.decoder.path("customer_id")?;
        let mut random = fastrand::Rng::with_seed(seed);
        let sink: Arc<dyn AckSink> = Arc::clone(&acks) as _;
        let (publisher, decoder) = (Arc::clone(&demo.publisher), demo.decoder.clone());
        let topic = Arc::clone(demo.ladder.topic());
        let rate = (events as f64 / AT_LEAST.as_secs_f64()).min(MAX_RATE);
        let task = tokio::spawn(async move {
            let started = Instant::now();
            for n in 1..=events {
                let due = started + Duration::from_secs_f64((n - 1) as f64 / rate);
                let left = due.saturating_duration_since(Instant::now());
                if left > Duration::from_millis(1) {
                    tokio::time::sleep(left).await;
                }
                let id = event_id(n);
                let payload = generator.next(&id, SystemClock.now().wall);
                let header =
                    |name: &'static str, value: String| (Bytes::from_static(name.as_bytes()), Some(value.into()));
                let trace = format!("00-{:032x}-{:016x}-01", random.u128(1..), random.u64(1..));
                let record = Outgoing {
                    topic: Arc::clone(&topic),
                    // One after the other, not by key: only so is it known how much a partition gets.
                    partition: i32::try_from(n % u64::from(PARTITIONS)).ok(),
                    key: decoder.text(&payload, &key).map(Bytes::from),
                    value: Some(payload.into()),
                    headers: vec![
                        header(headers::EVENT_ID, id),
                        header("correlation-id", format!("{:032x}", random.u128(..))),
                        header(headers::TRACEPARENT, trace),
                    ],
                };
                publisher.publish(record, n, &sink);
            }
        });
        Ok(Self { events, acks, task })
    }

    /// Events on the main topic so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acks.count.load(Ordering::Relaxed)
    }

    /// Numbers of the events on the main topic.
    pub(super) fn produced(&self) -> Vec<u64> {
        self.acks.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Events that were not acknowledged, each with the reason.
    pub(super) fn failures(&self) -> Vec<String> {
        let failed = self.acks.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().map(|(n, error)| format!("{}: {error}", event_id(*n))).collect()
    }

    /// Whether every event was acknowledged or has failed.
    pub(super) fn ended(&self) -> bool {
        let failed = self.acks.failed.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        self.acknowledged() + failed >= self.events
    }

    /// Produces no more, and waits for the acknowledgements of what was handed over.
    pub(super) async fn stop(&mut self, demo: &Demo) {
        self.task.abort();
        // Cancelled or at its end: either is fine.
        drop((&mut self.task).await);
        let publisher = Arc::clone(&demo.publisher);
        // What is not acknowledged by then counts as not produced, and the summary will say so.
        drop(tokio::task::spawn_blocking(move || publisher.flush(FLUSH)).await);
    }
}
