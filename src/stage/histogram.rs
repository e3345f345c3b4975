//! Histograms of durations as plain atomics: written on the hot path without a lock, read by metrics and status.
//!
//! [`Histogram`] counts into the buckets that metrics show, so that every count there is exact; [`LatenessHistogram`]
//! adds finer buckets for quantiles.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends (inclusive) of the buckets of [`Histogram`] in microseconds: 100 µs to 1 h. The last bucket has none.
pub const BOUNDS_US: [u64; 23] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// A histogram of durations over [`BOUNDS_US`].
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one value.
    pub fn record(&self, value: Duration) {
        let us = micros(value);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.buckets.iter().for_each(|b| b.store(0, Ordering::Relaxed));
        self.sum_us.store(0, Ordering::Relaxed);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    /// The sum of all values.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed))
    }

    /// How many values are at most as long as each of [`BOUNDS_US`], and at last all of them.
    pub fn cumulative(&self) -> [u64; BOUNDS_US.len() + 1] {
        let mut sum = 0;
        self.buckets.each_ref().map(|bucket| {
            sum += bucket.load(Ordering::Relaxed);
            sum
        })
    }
}

fn micros(value: Duration) -> u64 {
    u64::try_from(value.as_micros()).unwrap_or(u64::MAX)
}

const SUB_BUCKETS: usize = 16;
const BUCKETS: usize = SUB_BUCKETS * 40;

/// A [`Histogram`] with quantiles: microseconds in log-linear buckets, each at most 1/16 of its value wide.
#[derive(Debug)]
pub struct LatenessHistogram {
    buckets: Box<[AtomicU64]>,
    max_us: AtomicU64,
    coarse: Histogram,
}

impl Default for LatenessHistogram {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, max_us: AtomicU64::new(0), coarse: Histogram::default() }
    }
}

impl LatenessHistogram {
    /// Counts one value.
    pub fn record(&self, value: Duration) {
        let us = micros(value);
        self.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
        // Nearly always a reading only: the line stays with all cores that count.
        if us > self.max_us.load(Ordering::Relaxed) {
            self.max_us.fetch_max(us, Ordering::Relaxed);
        }
        self.coarse.record(value);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.buckets.iter().for_each(|b| b.store(0, Ordering::Relaxed));
        self.max_us.store(0, Ordering::Relaxed);
        self.coarse.clear();
    }

    /// The same values as metrics show them.
    pub fn coarse(&self) -> &Histogram {
        &self.coarse
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.coarse.count()
    }

    /// The largest value.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max_us.load(Ordering::Relaxed))
    }

    /// The value below which the share `q` (0..=1) of the values lies: the upper end of its bucket, `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        for (index, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(Duration::from_micros(upper_bound(index)).min(self.max()));
            }
        }
        Some(self.max())
    }
}

fn bucket(us: u64) -> usize {
    if us < SUB_BUCKETS as u64 {
        return us as usize;
    }
    let power = us.ilog2() as usize; // >= 4
    let sub = (us >> (power - 4)) as usize & (SUB_BUCKETS - 1);
    ((power - 3) * SUB_BUCKETS + sub).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_bound(index: usize) -> u64 {
    if index < SUB_BUCKETS {
        return index as u64;
    }
    let (power, sub) = (index / SUB_BUCKETS + 3, (index % SUB_BUCKETS) as u64);
    ((SUB_BUCKETS as u64 + sub + 1) << (power - 4)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_its_bucket_and_buckets_are_narrow() {
        for us in (0..100_000).chain([1 << 20, (1 << 30) + 12_345, 1 << 40]) {
            let index = bucket(us);
            assert!(us <= upper_bound(index), "{us}");
            if index > 0 {
                assert!(us > upper_bound(index - 1), "{us}");
            }
            assert!(upper_bound(index) - us <= us / 16 + 1, "{us}");
        }
    }

    #[test]
    fn every_count_is_exact_at_the_bounds_that_metrics_show() {
        let h = Histogram::default();
        for us in [0, 100, 101, 1_000, 1_001, 3_600_000_000, 3_600_000_001] {
            h.record(Duration::from_micros(us));
        }
        let at = |us: u64| h.cumulative()[BOUNDS_US.iter().position(|bound| *bound == us).unwrap()];
        assert_eq!((at(100), at(200), at(1_000), at(2_000), at(3_600_000_000)), (2, 3, 4, 5, 6));
        assert_eq!((h.cumulative()[BOUNDS_US.len()], h.count()), (7, 7));
        assert_eq!(h.sum(), Duration::from_micros(7_200_002_203));
        h.clear();
        assert_eq!((h.count(), h.sum()), (0, Duration::ZERO));
    }

    #[test]
    fn quantiles_of_known_values() {
        let h = LatenessHistogram::default();
        assert_eq!(h.quantile(0.5), None);
        for ms in 1..=100 {
            h.record(Duration::from_millis(ms));
        }
        let p50 = h.quantile(0.5).unwrap().as_millis();
        assert!((50..=53).contains(&p50), "{p50}");
        assert_eq!(h.quantile(1.0), Some(Duration::from_millis(100)));
        assert_eq!(h.count(), 100);
    }
}
