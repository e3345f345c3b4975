//! A stage over ports in memory that can be told what to answer, and its scrape.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use crate::parser;
use retry_ladder::adapters::memory::MemoryStore;
use retry_ladder::admin::{expose, monitor};
use retry_ladder::app::engine::StageView;
use retry_ladder::ladder::event::Outcome;
use retry_ladder::ladder::headers::CopyKeys;
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::stage::Stage;
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::context::{Decode, Partitions, StageContext, StageSettings};
use retry_ladder::stage::gate::Gate;
use retry_ladder::stage::lanes::{LaneHandle, LaneHost};
use retry_ladder::stage::ports::{
    AckSink, Claim, ClaimReply, CopyKey, Event, Handler, IdempotencyStore, Mark, Outgoing, PublishError, Publisher,
    SettleReply, StoreError,
};
use retry_ladder::stage::record::Record;
use retry_ladder::stage::stats::StageStats;

/// Everything is read but the value `poison`.
pub(super) struct Text;

impl Decode for Text {
    fn payload(&self, value: &Bytes) -> Result<Bytes, String> {
        if value == "poison" { Err("not a message".into()) } else { Ok(value.clone()) }
    }

    fn event_id(&self, _: &[u8]) -> Option<String> {
        None
    }
}

/// Plays these outcomes in turn, each when the gate lets it, then never returns.
pub(super) struct Script(Mutex<VecDeque<Outcome>>, Arc<Semaphore>);

impl Handler for Script {
    fn handle(&self, _: Event) -> BoxFuture<'_, Outcome> {
        let outcome = self.0.lock().expect("not poisoned").pop_front();
        let gate = Arc::clone(&self.1);
        async move {
            let passed = gate.acquire_owned().await;
            match (outcome, passed) {
                (Some(outcome), Ok(_)) => outcome,
                _ => std::future::pending().await,
            }
        }
        .boxed()
    }
}

/// Answers with these in turn, then acknowledges.
pub(super) struct Broker(Mutex<VecDeque<PublishError>>);

impl Publisher for Broker {
    fn publish(&self, _: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let answer = self.0.lock().expect("not poisoned").pop_front();
        acks.acknowledged(ticket, answer.map_or(Ok(()), Err));
    }
}

/// How a store answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    On,
    /// It is not there.
    Off,
    /// It does what it is asked for, and nobody hears of it.
    Mute,
}

/// A store that can be switched off.
pub(super) struct Switch(pub(super) MemoryStore, Mutex<Mode>);

impl Switch {
    pub(super) fn set(&self, mode: Mode) {
        *self.1.lock().expect("not poisoned") = mode;
    }

    pub(super) fn mode(&self) -> Mode {
        *self.1.lock().expect("not poisoned")
    }

    pub(super) fn answer<T: Send + 'static>(
        &self,
        entries: usize,
        call: BoxFuture<'static, Vec<Result<T, StoreError>>>,
    ) -> BoxFuture<'static, Vec<Result<T, StoreError>>> {
        let lost = move || (0..entries).map(|_| Err(StoreError("off".into()))).collect();
        match self.mode() {
            Mode::On => call,
            Mode::Off => async move { lost() }.boxed(),
            Mode::Mute => call.map(move |_| lost()).boxed(),
        }
    }
}

impl IdempotencyStore for Switch {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        self.answer(batch.len(), self.0.claim(batch, lease))
    }
    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.answer(batch.len(), self.0.renew(batch, lease))
    }
    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        self.answer(batch.len(), self.0.settle(batch))
    }
    fn is_available(&self) -> bool {
        self.mode() != Mode::Off
    }
    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.answer(batch.len(), self.0.release(batch))
    }
}

pub(super) struct Fixture {
    pub(super) stage: Arc<Stage>,
    pub(super) store: Arc<Switch>,
    pub(super) keys: CopyKeys,
    pub(super) lane: LaneHandle,
    /// Lets handlers return.
    pub(super) gate: Arc<Semaphore>,
    pub(super) next: i64,
}

impl Fixture {
    /// A stage of a ladder with two retry stages and one lane, all in memory.
    pub(super) fn new(stage: usize, outcomes: &[Outcome], refusals: &[PublishError]) -> Self {
        Self::with(stage, outcomes, refusals, StageSettings::default())
    }

    pub(super) fn with(stage: usize, outcomes: &[Outcome], refusals: &[PublishError], settings: StageSettings) -> Self {
        let spec = LadderSpec {
            max_event_age: Some(Duration::from_secs(86_400)),
            ..LadderSpec::new("orders", "billing", "orders")
        };
        let ladder = spec.retry(Duration::from_secs(5)).retry(Duration::from_secs(30));
        let gate = Arc::new(Semaphore::new(64));
        let ladder = Arc::new(Ladder::new(ladder).expect("a ladder"));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Arc::new(Switch(MemoryStore::new(Arc::clone(&clock)), Mutex::new(Mode::On)));
        let stats = Arc::new(StageStats::default());
        let context = Arc::new(StageContext {
            gate: Gate::open(ladder.pipeline(), &clock, &stats),
            stage,
            message: "m".into(),
            decode: Arc::new(Text),
            handler: Arc::new(Script(Mutex::new(outcomes.iter().cloned().collect()), Arc::clone(&gate))),
            store: Arc::clone(&store) as _,
            publisher: Arc::new(Broker(Mutex::new(refusals.iter().cloned().collect()))),
            clock,
            permits: Arc::new(Semaphore::new(4)),
            partitions: Partitions(vec![1; 4]),
            gained_partitions: false.into(),
            tracer: None,
            keys: CopyKeys::new("test", &ladder),
            settings,
            process: 7,
            stats,
            ladder: Arc::clone(&ladder),
        });
        let stage = Arc::new(Stage::new(context, tokio::runtime::Handle::current()));
        stage.member(true);
        let lane = stage.open(0);
        Self { stage, store, keys: CopyKeys::new("test", &ladder), lane, gate, next: 0 }
    }

    /// Hands over a record; due at once where nothing waits, else `due_in` from now (negative: long due).
    pub(super) fn hand(&mut self, value: &str, due_in: Option<i64>, more: &[(&str, &str)]) {
        let now = i64::try_from(SystemClock.now().wall.floor_millis()).expect("before 292 million years");
        let id = format!("event-{}", self.next);
        let mut headers = vec![("x-ladder-event-id".to_owned(), id), ("x-ladder-group".into(), "billing".into())];
        if let Some(due_in) = due_in {
            let rung = &self.stage.context().rung();
            for (name, value) in [
                ("stage", rung.index.to_string()),
                ("attempt", rung.index.to_string()),
                ("hop", rung.index.to_string()),
                ("fence", "1".into()),
                ("due", (now + due_in).to_string()),
                ("origin", format!("orders:0:{}:{now}", self.next)),
                ("error", "transient: x".into()),
                ("history", "[]".into()),
            ] {
                headers.push((format!("x-ladder-{name}"), value));
            }
        }
        for (name, value) in more {
            headers.retain(|(n, _)| n != name);
            if !value.is_empty() {
                headers.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        let headers = headers.into_iter().map(|(n, v)| (Bytes::from(n), Some(Bytes::from(v)))).collect();
        let record = Record {
            partition: 0,
            offset: self.next,
            timestamp_ms: now,
            key: None,
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers,
        };
        self.next += 1;
        self.lane.hand_over(vec![record]);
    }

    /// The name of the first event's copy at this hop.
    pub(super) fn key(&self, hop: u64) -> CopyKey {
        self.keys.key(&Arc::from("event-0"), hop)
    }

    /// As of a poll thread that polled this long ago.
    pub(super) fn view(&self, silent: Duration) -> StageView {
        let last_poll = SystemClock.now().boot.saturating_sub(silent).as_millis() as u64;
        StageView::new(Arc::clone(&self.stage), Arc::new(AtomicU64::new(last_poll)))
    }

    pub(super) async fn scrape(&self) -> parser::Samples {
        let lanes = self.stage.look().await;
        let view = self.view(Duration::ZERO);
        let figures = monitor::figures(&lanes, &HashMap::new(), view.is_last(), SystemClock.now().wall);
        parser::parse(&expose::metrics(&[(&view, figures)]).render())
    }

    /// What is not 0, without buckets, sums of time and the process, `pipeline` and `stage` left out.
    pub(super) async fn moved(&self) -> BTreeMap<String, f64> {
        let stage = format!("stage={:?}", self.stage.context().rung().name);
        let all = self.scrape().await.into_iter();
        let all = all.filter(|(s, v)| {
            *v != 0.0 && !s.contains("_bucket{") && !s.contains("_sum{") && !s.starts_with("process_")
        });
        all.map(|(series, value)| {
            assert!(series.contains("pipeline=\"orders\"") && series.contains(&stage), "{series}");
            let series =
                series.replace("pipeline=\"orders\"", "").replace(&stage, "").replace('"', "").replace(',', " ");
            (series.split_whitespace().collect::<Vec<_>>().join(" ").replace("{ ", "{").replace(" }", "}"), value)
        })
        // How old the record is that is not done depends on how fast this machine is.
        .filter(|(s, _)| !s.starts_with("ladder_assigned_partitions") && !s.starts_with("ladder_oldest_unprocessed"))
        .collect()
    }

    /// Waits until a series is at least 1.
    pub(super) async fn until(&self, series: &str) -> parser::Samples {
        for _ in 0..6_000 {
            let samples = self.scrape().await;
            if samples[series] >= 1.0 {
                return samples;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{series} stays 0");
    }

    /// Waits until exactly these have moved.
    pub(super) async fn expect(&self, expected: &[(&str, f64)]) {
        let expected: BTreeMap<_, _> = expected.iter().map(|(s, v)| ((*s).to_owned(), *v)).collect();
        let mut seen = BTreeMap::new();
        for _ in 0..6_000 {
            seen = self.moved().await;
            if seen == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("expected {expected:#?}\nseen {seen:#?}");
    }
}
