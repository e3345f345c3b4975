//! The deduplication records in this process's memory: for the demo, tests and benches.
//!
//! The same answers as Redis would give, leases by the boot clock. Nothing survives the process, and no other process
//! sees it, so it prevents repeats within one run only. A batch is one lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::ladder::sequence::Queue;
use crate::stage::clock::{Clock, SystemClock};
use crate::stage::ports::{
    Claim, ClaimReply, CopyKey, IdempotencyStore, Mark, Place, SettleReply, StoreError, TurnReply,
};

/// Records in memory. Clones are the same store.
#[derive(Clone)]
pub struct MemoryStore {
    records: Arc<Mutex<Records>>,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// An empty store whose records expire by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { records: Arc::default(), clock }
    }

    /// Number of records that have not expired. Looks at all of them.
    pub fn len(&self) -> usize {
        let now = self.now();
        self.lock().map.values().filter(|record| record.expires > now).count()
    }

    /// Whether no record is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A record's value as Redis would hold it, and the time until it expires.
    pub fn get(&self, key: &str) -> Option<(String, Duration)> {
        let now = self.now();
        let records = self.lock();
        let record = records.map.get(key).filter(|record| record.expires > now)?;
        Some((record.value.to_string(), record.expires - now))
    }

    /// Writes any value under any key, as another program with access to the store could.
    pub fn set(&self, key: &str, value: &str, ttl: Duration) {
        let value = match value {
            "1" => Value::Mark(Mark::Done),
            "F" => Value::Mark(Mark::MovedOn),
            other => Claim::parse(other.as_bytes()).map_or_else(|| Value::Foreign(other.into()), Value::Claim),
        };
        let expires = self.now().saturating_add(ttl);
        self.lock().map.insert(key.into(), Record { value, expires });
    }

    /// Forgets a record; whether there was one.
    pub fn remove(&self, key: &str) -> bool {
        let now = self.now();
        self.lock().map.remove(key).is_some_and(|record| record.expires > now)
    }

    fn now(&self) -> Duration {
        self.clock.now().boot
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers each entry of a batch, in order, at one instant and under one lock, when the future is polled.
    fn batch<E: Send + 'static, R: Send + 'static>(
        &self,
        batch: Vec<E>,
        answer: impl Fn(&mut Records, E, Duration) -> R + Send + 'static,
    ) -> BoxFuture<'static, Vec<Result<R, StoreError>>> {
        let store = self.clone();
        async move {
            let now = store.now();
            let mut records = store.lock();
            let answers = batch.into_iter().map(|entry| Ok(answer(&mut records, entry, now))).collect();
            records.sweep(now);
            answers
        }
        .boxed()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("records", &self.lock().map.len()).finish_non_exhaustive()
    }
}

impl IdempotencyStore for MemoryStore {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        self.batch(batch, move |records, (key, claim), now| records.claim(key, claim, now, lease))
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.batch(batch, move |records, (key, claim), now| {
            records.ours(&key, claim, now).map(|record| record.expires = now.saturating_add(lease)).is_some()
        })
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        self.batch(batch, |records, (key, claim, mark, ttl), now| {
            let settled = Record { value: Value::Mark(mark), expires: now.saturating_add(ttl) };
            match records.map.insert(key, settled) {
                Some(old) if old.is_claim(claim, now) => SettleReply::Ours,
                _ => SettleReply::LeaseLost,
            }
        })
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.batch(batch, |records, (key, claim), now| {
            let ours = records.ours(&key, claim, now).is_some();
            if ours {
                records.map.remove(&key);
            }
            ours
        })
    }

    fn turns(&self, batch: Vec<Place>, room: usize) -> BoxFuture<'static, Vec<Result<TurnReply, StoreError>>> {
        self.batch(batch, move |records, Place { queue, offset }, now| {
            records.queues.get_mut(&queue).map(|queue| queue.turn(offset, now, room)).unwrap_or_default()
        })
    }

    fn join(&self, batch: Vec<(Place, Duration)>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        self.batch(batch, |records, (Place { queue, offset }, good_for), now| {
            records.queues.entry(queue).or_default().join(offset, now.saturating_add(good_for));
        })
    }

    fn leave(&self, batch: Vec<Place>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        self.batch(batch, |records, Place { queue, offset }, _| {
            records.queues.entry(queue).or_default().leave(offset);
        })
    }
}

#[derive(Default)]
struct Records {
    map: HashMap<CopyKey, Record>,
    /// Those of `order: ladder`, by their names; kept to the end, for the places that were given back.
    queues: HashMap<Arc<str>, Queue>,
    /// Number of records at which the expired ones are thrown out.
    sweep_at: usize,
}

struct Record {
    value: Value,
    /// Boot time from which on the record is gone.
    expires: Duration,
}

enum Value {
    Claim(Claim),
    Mark(Mark),
    Foreign(Box<str>),
}

impl Records {
    fn claim(&mut self, key: CopyKey, claim: Claim, now: Duration, lease: Duration) -> ClaimReply {
        let ours = Record { value: Value::Claim(claim), expires: now.saturating_add(lease) };
        match self.map.entry(key) {
            Entry::Vacant(free) => {
                free.insert(ours);
                ClaimReply::Claimed
            }
            Entry::Occupied(mut taken) if taken.get().expires <= now => {
                taken.insert(ours);
                ClaimReply::Claimed
            }
            Entry::Occupied(taken) => match &taken.get().value {
                Value::Claim(holder) if *holder == claim => ClaimReply::AlreadyOurs,
                Value::Claim(_) => ClaimReply::Busy,
                Value::Mark(Mark::Done) => ClaimReply::Done,
                Value::Mark(Mark::MovedOn) => ClaimReply::MovedOn,
                Value::Foreign(text) => ClaimReply::corrupt(text.as_bytes()),
            },
        }
    }

    fn ours(&mut self, key: &str, claim: Claim, now: Duration) -> Option<&mut Record> {
        self.map.get_mut(key).filter(|record| record.is_claim(claim, now))
    }

    /// Throws the expired out each time the map has doubled since: a constant cost per record in the long run.
    fn sweep(&mut self, now: Duration) {
        if self.map.len() > self.sweep_at {
            self.map.retain(|_, record| record.expires > now);
            self.sweep_at = (2 * self.map.len()).max(4_096);
        }
    }
}

impl Record {
    fn is_claim(&self, claim: Claim, now: Duration) -> bool {
        self.expires > now && matches!(&self.value, Value::Claim(holder) if *holder == claim)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Claim(claim) => claim.fmt(f),
            Value::Mark(Mark::Done) => f.write_str("1"),
            Value::Mark(Mark::MovedOn) => f.write_str("F"),
            Value::Foreign(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::ladder::event::Timestamp;
    use crate::stage::clock::Now;

    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Now {
            Now { wall: Timestamp::default(), boot: Duration::from_millis(self.0.load(Ordering::Relaxed)) }
        }
    }

    fn claim(sequence: u64) -> Claim {
        Claim { process: 1, sequence, fence: 1 }
    }

    fn now<T>(future: BoxFuture<'static, T>) -> T {
        future.now_or_never().unwrap()
    }

    #[test]
    fn a_lease_ends_at_its_very_millisecond() {
        let hand = Arc::new(Hand::default());
        let store = MemoryStore::new(hand.clone());
        let try_claim = |sequence| {
            let batch = vec![(CopyKey::from("k"), claim(sequence))];
            now(store.claim(batch, Duration::from_millis(100))).remove(0).unwrap()
        };
        assert_eq!(try_claim(1), ClaimReply::Claimed);
        hand.0.store(99, Ordering::Relaxed);
        assert_eq!(try_claim(2), ClaimReply::Busy);
        hand.0.store(100, Ordering::Relaxed);
        assert_eq!(try_claim(2), ClaimReply::Claimed);
    }

    #[test]
    fn memory_is_bounded_by_the_records_that_live() {
        let hand = Arc::new(Hand::default());
        let store = MemoryStore::new(hand.clone());
        let mut most = 0;
        for i in 0..1_000_u64 {
            let batch = (0..100).map(|j| (CopyKey::from(format!("{i}:{j}")), claim(i))).collect();
            now(store.claim(batch, Duration::from_millis(10)));
            hand.0.fetch_add(1, Ordering::Relaxed);
            most = most.max(store.lock().map.len());
        }
        assert!(most <= 4_196, "1,000 records live at a time, {most} were held");
    }

    #[test]
    fn nothing_happens_before_the_future_is_polled() {
        let store = MemoryStore::default();
        drop(store.claim(vec![(CopyKey::from("k"), claim(1))], Duration::from_secs(1)));
        assert!(store.is_empty());
    }
}
