//! The shell over in-memory ports, in tokio's paused time: a clock that follows it, a store and a producer that fail
//! by script, a handler that is any closure. One file per group of behaviours.

mod drain;
mod ends;
mod handlers;
mod hostile;
mod leases;
mod order;
mod outage;
mod oversize;
mod permits;
mod ports;
mod store;
mod timing;
mod transactional;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use self::ports::{Producer, Scripted, Store, TestClock};
use super::clock::Clock;
use super::context::{Decode, Partitions, StageContext, StageSettings};
use super::gate::{Gate, Outage};
use super::lanes::{LaneCommand, LaneHandle, LaneHost};
use super::ports::{Claim, Event, Outgoing};
use super::record::Record;
use super::stats::StageStats;
use super::{LaneOverview, Stage};
use crate::ladder::event::{Failure, Outcome};
use crate::ladder::headers::CopyKeys;
use crate::ladder::rungs::{Ladder, LadderSpec};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Unix ms at the start of each test.
const START_MS: u64 = 1_700_000_000_000;
const MAIN: usize = 0;
const RETRY_1: usize = 1;
const RETRY_2: usize = 2;
const DLQ: usize = 3;

/// Values that begin with `bad` cannot be read, and `bug` shows a bug of the decoder.
struct PlainText;

impl Decode for PlainText {
    fn payload(&self, value: &Bytes) -> Result<Bytes, String> {
        assert!(!value.starts_with(b"bug"));
        if value.starts_with(b"bad") { Err("not a message".into()) } else { Ok(value.clone()) }
    }

    fn event_id(&self, payload: &[u8]) -> Option<String> {
        String::from_utf8(payload.to_vec()).ok()
    }
}

/// A stage with everything around it.
struct Rig {
    stage: Stage,
    ctx: Arc<StageContext>,
    clock: Arc<TestClock>,
    store: Store,
    producer: Arc<Producer>,
    handler: Arc<Scripted>,
}

impl Rig {
    /// Stages 5 s and 30 s; 4 handlers at once.
    fn new<F>(
        stage: usize,
        tune: impl FnOnce(&mut StageSettings),
        script: impl Fn(Event) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        Self::with_handler(stage, tune, move |event| -> BoxFuture<'static, Outcome> { Box::pin(script(event)) })
    }

    fn with_handler(
        stage: usize,
        tune: impl FnOnce(&mut StageSettings),
        script: impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self::behind(None, stage, tune, script)
    }

    /// Behind what stops its pipeline.
    fn behind(
        outage: Option<&Arc<Outage>>,
        stage: usize,
        tune: impl FnOnce(&mut StageSettings),
        script: impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    ) -> Self {
        let clock = Arc::new(TestClock::new());
        let store = Store::new(Arc::clone(&clock) as Arc<dyn Clock>);
        Self::on(store, clock, outage, stage, tune, script)
    }

    fn on(
        store: Store,
        clock: Arc<TestClock>,
        outage: Option<&Arc<Outage>>,
        stage: usize,
        tune: impl FnOnce(&mut StageSettings),
        script: impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    ) -> Self {
        let ladder = LadderSpec::new("orders", "billing", "orders").retry(SECOND * 5).retry(SECOND * 30);
        let ladder = Arc::new(Ladder::new(ladder).unwrap());
        let mut settings = StageSettings { concurrency: 4, ..StageSettings::default() };
        tune(&mut settings);
        let producer = Arc::new(Producer::default());
        let handler = Arc::new(Scripted::new(script));
        let stats = Arc::default();
        let name = &ladder.rungs()[stage].name;
        let gate = match outage {
            Some(outage) => outage.gate(name, stage == MAIN, stage != DLQ, settings.concurrency, &stats),
            None => Gate::open(name, &(Arc::clone(&clock) as _), &stats),
        };
        let ctx = Arc::new(StageContext {
            gate,
            keys: CopyKeys::new("test", &ladder),
            ladder,
            stage,
            message: "shop.v1.OrderPlaced".into(),
            decode: Arc::new(PlainText),
            handler: Arc::clone(&handler) as _,
            store: Arc::new(store.clone()),
            publisher: Arc::clone(&producer) as _,
            tracer: None,
            clock: Arc::clone(&clock) as _,
            permits: Arc::new(Semaphore::new(settings.concurrency)),
            partitions: Partitions(vec![3; 4]),
            gained_partitions: Default::default(),
            settings,
            process: 0xABCD,
            stats,
        });
        let stage = Stage::new(Arc::clone(&ctx), tokio::runtime::Handle::current());
        Self { stage, ctx, clock, store, producer, handler }
    }

    /// Another stage of the same ladder, with the same store.
    fn sharing<F>(
        other: &Self,
        stage: usize,
        tune: impl FnOnce(&mut StageSettings),
        script: impl Fn(Event) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let script = move |event| -> BoxFuture<'static, Outcome> { Box::pin(script(event)) };
        Self::on(other.store.clone(), Arc::clone(&other.clock), None, stage, tune, script)
    }

    fn open(&self) -> LaneHandle {
        self.stage.open(0)
    }

    /// A lane that was given these.
    fn lane(&self, records: impl Into<Vec<Record>>) -> LaneHandle {
        let lane = self.open();
        lane.hand_over(records.into());
        lane
    }

    fn stats(&self) -> &StageStats {
        &self.ctx.stats
    }

    /// The copy's record in the store, as text; `-` for none.
    fn stored(&self, id: &str, hop: u64) -> String {
        self.store.records.get(&self.ctx.keys.key(id, hop)).map_or("-".into(), |(value, _)| value)
    }

    /// As another process would hold the copy.
    fn hold_elsewhere(&self, id: &str, hop: u64, lease: Duration) {
        let claim = Claim { process: 1, sequence: 1, fence: 1 };
        self.store.records.set(&self.ctx.keys.key(id, hop), &claim.to_string(), lease);
    }

    /// Lets all that can happen now happen, and some time pass.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Waits until it holds; virtual time, so a long wait costs nothing.
    #[track_caller]
    fn until<'a>(&'a self, what: &'a str, mut holds: impl FnMut() -> bool + 'a) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            for n in 0..45_000 {
                if holds() {
                    return;
                }
                tokio::time::sleep(if n < 15_000 { MS } else { MS * 20 }).await;
            }
            panic!("{caller}: not within ten minutes: {what}");
        }
    }

    async fn position(&self, lane: &LaneHandle, position: i64) {
        self.until("the position", || lane.position() == Some(position)).await;
    }

    /// Nothing runs and every permit is free.
    #[track_caller]
    fn is_at_rest(&self) {
        assert_eq!(self.ctx.permits.available_permits(), self.ctx.settings.concurrency, "permits");
        assert_eq!(self.ctx.gate.outage().on_trial(), 0, "let through by the gate");
        assert_eq!(self.stats().running.load(Ordering::Relaxed), 0, "stats.running");
        assert_eq!(self.handler.running(), 0, "handlers");
    }

    async fn ended(&self, lane: &mut LaneHandle) {
        tokio::time::timeout(SECOND * 600, lane.wait_ended()).await.expect("the lane ends");
    }

    /// Drains the lane; its position at the end.
    async fn drain(&self, lane: &mut LaneHandle) -> Option<i64> {
        lane.command(LaneCommand::Drain);
        self.ended(lane).await;
        self.is_at_rest();
        lane.position()
    }
}

/// A record on main, with the id `e<offset>` and a key of its own.
fn record(offset: i64) -> Record {
    Record {
        partition: 0,
        offset,
        timestamp_ms: START_MS as i64,
        key: Some(format!("key-{offset}").into()),
        value: Some("value".into()),
        headers: vec![header("MessageID", &format!("e{offset}"))],
    }
}

fn records(offsets: std::ops::Range<i64>) -> Vec<Record> {
    offsets.map(record).collect()
}

/// The same key for all of them.
fn keyed(key: &'static str, mut record: Record) -> Record {
    record.key = Some(key.into());
    record
}

/// A record of ours on `stage`, with the id `e<offset>` and hop `stage`, due `due` after the start of the test.
fn retry(stage: usize, offset: i64, due: Duration) -> Record {
    let due = START_MS + due.as_millis() as u64;
    let ours = [
        ("event-id", format!("e{offset}")),
        ("stage", stage.to_string()),
        ("attempt", stage.to_string()),
        ("hop", stage.to_string()),
        ("fence", "5".into()),
        ("due", due.to_string()),
        ("origin", format!("orders:0:{offset}:{START_MS}")),
        ("group", "billing".into()),
    ];
    let headers = ours.iter().map(|(name, value)| header(&format!("x-ladder-{name}"), value)).collect();
    Record { headers, ..record(offset) }
}

fn header(name: &str, value: &str) -> (Bytes, Option<Bytes>) {
    (name.to_owned().into(), Some(value.to_owned().into()))
}

/// A header of a produced record as text; empty when it is missing.
fn value_of<'a>(out: &'a Outgoing, name: &str) -> &'a str {
    let found = out.headers.iter().find(|(n, _)| n == name.as_bytes());
    found.and_then(|(_, v)| v.as_deref()).map_or("", |v| std::str::from_utf8(v).unwrap())
}

async fn done(_: Event) -> Outcome {
    Outcome::Done
}

async fn fail(_: Event) -> Outcome {
    Outcome::Failed(Failure::transient("no luck"))
}

fn as_usual(_: &mut StageSettings) {}

/// Ready at the second poll: whoever polls once more in the same round sees it ready.
async fn once_more() {
    let mut polled = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut polled, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
