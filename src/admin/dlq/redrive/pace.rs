//! How fast copies go out.

use std::time::{Duration, Instant};

/// Letters in one transaction.
const BATCH: u64 = 500;
/// With a rate, a transaction is written about so often a second.
const BATCHES_PER_SECOND: f64 = 10.0;

/// Holds a rate over the whole job, in small batches; without a rate as fast as it goes.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<f64>,
    /// When the next batch may go.
    next: Instant,
}

impl Pace {
    /// At most `rate` a second.
    pub(super) fn new(rate: Option<f64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0.0), next: Instant::now() }
    }

    /// Letters to collect for one transaction.
    pub(super) fn batch(&self) -> u64 {
        self.rate.map_or(BATCH, |rate| ((rate / BATCHES_PER_SECOND) as u64).clamp(1, BATCH))
    }

    /// Whether `count` letters may go now; takes their time.
    pub(super) fn ready(&mut self, count: u64) -> bool {
        let now = Instant::now();
        let Some(rate) = self.rate else { return true };
        if now < self.next {
            return false;
        }
        // What was missed is not made up for: no burst after a pause.
        self.next = now.max(self.next) + Duration::from_secs_f64(count as f64 / rate);
        true
    }

    /// A moment, at most until the next batch may go.
    pub(super) fn wait(&self) {
        let left = self.next.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
