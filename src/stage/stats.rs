//! What a stage counts: plain atomics, written on the hot path, read by status, metrics, the demo and benchmarks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ladder::event::Reason;

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything that one stage of one process counts.
#[derive(Debug, Default)]
pub struct StageStats {
    /// Handlers started.
    pub executions: Counter,
    /// Events finished here because their handler succeeded (or a tombstone was to be skipped).
    pub done: Counter,
    /// Events moved to a later stage.
    pub forwarded: Counter,
    /// Events moved to the same stage again at the target's wish.
    pub deferred: Counter,
    /// Events moved to the DLQ, by [`Reason`].
    pub dead_lettered: [Counter; 4],
    /// Events that the store knew as finished or moved on.
    pub duplicates: Counter,
    /// Claims that somebody else held.
    pub busy: Counter,
    /// Claims released because their handler never started, or its fence was refused.
    pub released: Counter,
    /// Leases lost before the outcome was in hand, or found lost at the settlement.
    pub leases_lost: Counter,
    /// Records in the store that were nobody's.
    pub corrupt: Counter,
    /// Publishes that were not acknowledged and were repeated.
    pub republished: Counter,
    /// Records whose headers had to be repaired.
    pub repaired: Counter,
    /// Handlers running now.
    pub running: AtomicU64,
    /// Start − due of every execution in a delayed stage.
    pub lateness: LatenessHistogram,
    /// Executions before their due: must be 0.
    pub early: Counter,
}

impl StageStats {
    /// The counter of dead letters of this class.
    pub fn dead_lettered(&self, reason: Reason) -> &Counter {
        let index = match reason {
            Reason::Permanent => 0,
            Reason::Poison => 1,
            Reason::Exhausted => 2,
            Reason::Expired => 3,
        };
        &self.dead_lettered[index]
    }

    /// Dead letters of all classes.
    pub fn dead_letters(&self) -> u64 {
        self.dead_lettered.iter().map(Counter::get).sum()
    }
}

const SUB_BUCKETS: usize = 16;
const BUCKETS: usize = SUB_BUCKETS * 40;

/// A histogram of durations: microseconds in log-linear buckets, each at most 1/16 of its value wide.
#[derive(Debug)]
pub struct LatenessHistogram {
    buckets: Box<[AtomicU64]>,
    max_us: AtomicU64,
}

impl Default for LatenessHistogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), max_us: AtomicU64::new(0) }
    }
}

impl LatenessHistogram {
    /// Counts one value.
    pub fn record(&self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.buckets.iter().for_each(|b| b.store(0, Ordering::Relaxed));
        self.max_us.store(0, Ordering::Relaxed);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
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
