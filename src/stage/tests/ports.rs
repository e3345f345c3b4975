//! The ports of the tests: each does what a real one does, and fails by script.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{START_MS, once_more};
use crate::adapters::memory::MemoryStore;
use crate::ladder::event::{Outcome, Timestamp};
use crate::stage::clock::{Clock, Now};
use crate::stage::ports::{
    AckSink, Claim, ClaimReply, CopyKey, Event, Handler, IdempotencyStore, Mark, Outgoing, Place, PublishError,
    Publisher, SettleReply, StoreError, TurnReply,
};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A handler that panics may do so while something is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---------------------------------------------------------------------------------------------- clock

/// Follows tokio's time; its wall clock can be stepped.
pub(super) struct TestClock {
    start: Instant,
    stepped_us: AtomicI64,
    frozen_ms: AtomicU64,
    reads: AtomicU64,
}

impl TestClock {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            stepped_us: AtomicI64::new(0),
            frozen_ms: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        }
    }

    /// Time since the start of the test, whatever the wall clock says.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Steps the wall clock by so many seconds.
    pub(super) fn step(&self, seconds: i64) {
        self.stepped_us.fetch_add(seconds * 1_000_000, Ordering::Relaxed);
    }

    /// So much time passes at once, and nothing runs in it.
    pub(super) fn freeze(&self, time: Duration) {
        self.frozen_ms.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// How often it was read: each time that a lane wakes it reads the clock a few times.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Now {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let elapsed = self.elapsed() + Duration::from_millis(self.frozen_ms.load(Ordering::Relaxed));
        let wall = START_MS as i64 * 1_000 + elapsed.as_micros() as i64 + self.stepped_us.load(Ordering::Relaxed);
        Now { wall: Timestamp::from_micros(wall as u64), boot: Duration::from_secs(1_000) + elapsed }
    }
}

// ---------------------------------------------------------------------------------------------- store

/// What goes wrong with one kind of command.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Fault {
    #[default]
    None,
    /// It is not done, and fails.
    Down,
    /// It is done, but the reply is lost.
    Lost,
    /// It is done, but there are no replies at all, not even failures: a store with a bug.
    Short,
    /// It is done, but the reply takes this long, and is ready at the second look.
    Slow(Duration),
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) claim: Fault,
    pub(super) renew: Fault,
    pub(super) settle: Fault,
    pub(super) release: Fault,
    /// Of `turns`, `join` and `leave`.
    pub(super) queues: Fault,
}

/// [`MemoryStore`] behind a line that can fail. Clones are the same store.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) records: MemoryStore,
    faults: Arc<Mutex<Faults>>,
    /// Name and size of each batch.
    calls: Arc<Mutex<Vec<(&'static str, usize)>>>,
}

impl Store {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { records: MemoryStore::new(clock), faults: Arc::default(), calls: Arc::default() }
    }

    pub(super) fn fail(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.faults));
    }

    pub(super) fn all(&self, fault: Fault) {
        *lock(&self.faults) = Faults { claim: fault, renew: fault, settle: fault, release: fault, queues: fault };
    }

    /// How many batches of this kind there were.
    pub(super) fn calls(&self, name: &str) -> usize {
        lock(&self.calls).iter().filter(|(n, _)| *n == name).count()
    }

    fn call<R: Send + 'static>(
        &self,
        name: &'static str,
        size: usize,
        fault: impl Fn(&Faults) -> Fault + Send + 'static,
        call: BoxFuture<'static, Vec<Result<R, StoreError>>>,
    ) -> BoxFuture<'static, Vec<Result<R, StoreError>>> {
        lock(&self.calls).push((name, size));
        let store = self.clone();
        async move {
            let fault = fault(&lock(&store.faults));
            let none = || (0..size).map(|_| Err(StoreError("no answer".into()))).collect();
            match fault {
                Fault::None => call.await,
                Fault::Down => none(),
                Fault::Lost => {
                    call.await;
                    none()
                }
                Fault::Short => {
                    call.await;
                    Vec::new()
                }
                Fault::Slow(time) => {
                    let replies = call.await;
                    tokio::time::sleep(time).await;
                    once_more().await;
                    replies
                }
            }
        }
        .boxed()
    }
}

impl IdempotencyStore for Store {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        self.call("claim", batch.len(), |f| f.claim, self.records.claim(batch, lease))
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.call("renew", batch.len(), |f| f.renew, self.records.renew(batch, lease))
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        self.call("settle", batch.len(), |f| f.settle, self.records.settle(batch))
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.call("release", batch.len(), |f| f.release, self.records.release(batch))
    }

    fn turns(&self, batch: Vec<Place>, room: usize) -> BoxFuture<'static, Vec<Result<TurnReply, StoreError>>> {
        self.call("turns", batch.len(), |f| f.queues, self.records.turns(batch, room))
    }

    fn join(&self, batch: Vec<(Place, Duration)>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        self.call("join", batch.len(), |f| f.queues, self.records.join(batch))
    }

    fn leave(&self, batch: Vec<Place>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        self.call("leave", batch.len(), |f| f.queues, self.records.leave(batch))
    }
}

// ---------------------------------------------------------------------------------------------- producer

/// How a publish is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Unacknowledged,
    /// Not before [`Producer::answer_held`].
    Hold,
}

/// Acknowledges everything at once, unless the script says otherwise.
#[derive(Default)]
pub(super) struct Producer {
    published: Mutex<Vec<Outgoing>>,
    script: Mutex<VecDeque<Answer>>,
    held: Mutex<Vec<(u64, Arc<dyn AckSink>)>>,
    /// Called at the next publish.
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Records with more header bytes than this are too large; 0: no limit.
    max_header_bytes: AtomicUsize,
}

impl Producer {
    /// Everything that was published, whatever the answer was.
    pub(super) fn published(&self) -> Vec<Outgoing> {
        lock(&self.published).clone()
    }

    pub(super) fn count(&self) -> usize {
        lock(&self.published).len()
    }

    pub(super) fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        lock(&self.script).extend(answers);
    }

    pub(super) fn at_the_next(&self, then: impl FnOnce() + Send + 'static) {
        *lock(&self.then) = Some(Box::new(then));
    }

    pub(super) fn allow_header_bytes(&self, max: usize) {
        self.max_header_bytes.store(max, Ordering::Relaxed);
    }

    pub(super) fn held(&self) -> usize {
        lock(&self.held).len()
    }

    pub(super) fn answer_held(&self, result: Result<(), PublishError>) {
        for (ticket, acks) in lock(&self.held).drain(..) {
            acks.acknowledged(ticket, result.clone());
        }
    }
}

impl Publisher for Producer {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let size: usize = record.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, |v| v.len())).sum();
        lock(&self.published).push(record);
        if let Some(then) = lock(&self.then).take() {
            then();
        }
        let max = self.max_header_bytes.load(Ordering::Relaxed);
        match lock(&self.script).pop_front() {
            Some(Answer::Hold) => lock(&self.held).push((ticket, Arc::clone(acks))),
            Some(Answer::Unacknowledged) => {
                acks.acknowledged(ticket, Err(PublishError::Unacknowledged("timed out".into())));
            }
            None if max > 0 && size > max => acks.acknowledged(ticket, Err(PublishError::TooLarge)),
            None => acks.acknowledged(ticket, Ok(())),
        }
    }
}

// ---------------------------------------------------------------------------------------------- handler

/// A closure that notes its calls.
pub(super) struct Scripted {
    script: Box<dyn Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync>,
    runs: Mutex<Vec<(Event, Instant)>>,
    live: Arc<Live>,
}

#[derive(Default)]
struct Live {
    now: AtomicUsize,
    most: AtomicUsize,
    cancelled: AtomicUsize,
}

/// One run; dropped before its end it was cancelled.
struct Running {
    live: Arc<Live>,
    ended: bool,
}

impl Running {
    fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.live.now.fetch_sub(1, Ordering::Relaxed);
        if !self.ended && !std::thread::panicking() {
            self.live.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Scripted {
    pub(super) fn new(script: impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync + 'static) -> Self {
        Self { script: Box::new(script), runs: Mutex::default(), live: Arc::default() }
    }

    /// Calls so far.
    pub(super) fn count(&self) -> usize {
        lock(&self.runs).len()
    }

    /// Ids in the order of the calls.
    pub(super) fn ids(&self) -> Vec<String> {
        lock(&self.runs).iter().map(|(event, _)| event.id.to_string()).collect()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        lock(&self.runs).iter().map(|(event, _)| event.clone()).collect()
    }

    /// When each call was made.
    pub(super) fn times(&self) -> Vec<Instant> {
        lock(&self.runs).iter().map(|(_, at)| *at).collect()
    }

    pub(super) fn running(&self) -> usize {
        self.live.now.load(Ordering::Relaxed)
    }

    /// The most that ran at one time.
    pub(super) fn most(&self) -> usize {
        self.live.most.load(Ordering::Relaxed)
    }

    pub(super) fn cancelled(&self) -> usize {
        self.live.cancelled.load(Ordering::Relaxed)
    }
}

impl Handler for Scripted {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        lock(&self.runs).push((event.clone(), Instant::now()));
        let now = self.live.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.live.most.fetch_max(now, Ordering::Relaxed);
        let mut running = Running { live: Arc::clone(&self.live), ended: false };
        let run = (self.script)(event);
        async move {
            let outcome = run.await;
            running.end();
            outcome
        }
        .boxed()
    }
}

// ---------------------------------------------------------------------------------------------- log

/// Collects warnings and errors as text.
pub(super) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub(super) fn new() -> (Self, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::default();
        (Self(Arc::clone(&lines)), lines)
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!(" {}={value:?}", field.name()));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
