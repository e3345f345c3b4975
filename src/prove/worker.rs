//! A worker process of the proof: the real ladder, built as `pipeline` builds it, with ports that are watched.
//!
//! The engine knows nothing of it. Each watcher writes down an answer of the outside before the engine sees it
//! ([`super::journal`]); the handler records each execution in a file of this process, synced to the disk before and
//! after the effect. A process that cannot write its evidence ends at once.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::journal::Marks;
use super::ledger::Fate;
use super::plan;
use crate::app::{Builder, StageName};
use crate::config::{Sources, load};
use crate::handlers::executions::Executions;
use crate::ladder::event::{ClaimReply, Failure, Outcome};
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::{
    AckSink, Claim, CopyKey, Event, Handler, IdempotencyStore, Mark, Outgoing, PublishError, Publisher, SettleReply,
    StoreError,
};

/// What a worker is to do; handed over as a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Of this process, one for each start: its files are called so.
    pub name: String,
    /// The configuration, YAML.
    pub config: PathBuf,
    /// Stages to run.
    pub stages: Vec<String>,
    /// Static member id.
    pub instance: Option<String>,
    /// Where its files go.
    pub folder: PathBuf,
    /// How long an execution takes at most.
    pub latency: Duration,
}

impl Orders {
    /// The handler's file.
    pub fn executions(&self) -> PathBuf {
        self.file("executions")
    }

    /// What it saw of the outside.
    pub fn marks(&self) -> PathBuf {
        self.file("marks")
    }

    /// Exists once the stages run.
    pub fn ready(&self) -> PathBuf {
        self.file("ready")
    }

    /// What it logs.
    pub fn log(&self) -> PathBuf {
        self.file("log")
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }
}

/// How often the worker writes that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A drain that takes longer is given up.
const DRAIN: Duration = Duration::from_secs(25);

/// Runs until standard input ends: whoever started the worker holds the other end, so however that goes, the worker
/// goes too.
///
/// # Errors
/// With what could not be done.
pub async fn run(orders: &Path) -> anyhow::Result<()> {
    let orders: Orders = serde_json::from_slice(&std::fs::read(orders)?)?;
    let (eof, stopped) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Whatever ends it is the end.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        drop(eof);
        std::thread::sleep(DRAIN);
        std::process::exit(1);
    });
    let mut config = load(&Sources::new(Some(orders.config.clone()))).map_err(|f| anyhow::anyhow!("{f}"))?.config;
    config.instance = orders.instance.clone();
    let witness = Arc::new(Witness { marks: Marks::create(&orders.marks())? });
    let beating = Arc::clone(&witness);
    std::thread::spawn(move || {
        loop {
            beating.mark(&format!("h {}\n", now_us()));
            std::thread::sleep(HEARTBEAT);
        }
    });
    let executor = Executor { executions: Executions::open(&orders.executions(), true)?, latency: orders.latency };
    let stages = orders.stages.iter().map(|name| name.parse::<StageName>()).collect::<Result<_, _>>()?;
    let (of_store, of_publisher) = (Arc::clone(&witness), Arc::clone(&witness));
    let app = Builder::new(config)
        .handler(super::PIPELINE, executor)
        .stages(stages)
        .wrap_store(move |inner| Arc::new(WatchedStore { inner: broken_store(inner), witness: Arc::clone(&of_store) }))
        .wrap_publisher(move |inner| {
            // A broken publisher lies to the watcher as it lies to the engine.
            Arc::new(WatchedPublisher { inner: broken_publisher(inner), witness: Arc::clone(&of_publisher) })
        })
        .start()
        .await?;
    std::fs::write(orders.ready(), b"")?;
    // The sender is dropped, never used.
    app.run_until(async { drop(stopped.await) }).await?;
    Ok(())
}

#[cfg(not(feature = "sabotage"))]
fn broken_store(inner: Arc<dyn IdempotencyStore>) -> Arc<dyn IdempotencyStore> {
    inner
}

#[cfg(not(feature = "sabotage"))]
fn broken_publisher(inner: Arc<dyn Publisher>) -> Arc<dyn Publisher> {
    inner
}

#[cfg(feature = "sabotage")]
use super::sabotage::{broken_publisher, broken_store};

fn now_us() -> u64 {
    SystemClock.now().wall.as_micros()
}

// ---------------------------------------------------------------------------------------------- the handler

struct Executor {
    executions: Executions,
    latency: Duration,
}

impl Executor {
    async fn record(&self, event: &Event, what: &str, outcome: &str) {
        let (at, record) = (now_us(), &event.record);
        let Event { stage_name, attempt, fence, id, .. } = event;
        let place = format!("{}:{}", record.partition, record.offset);
        let line = format!("{what} {at} {stage_name} {attempt} {fence} {id} {outcome} {place}\n");
        if let Err(error) = self.executions.append(line).await {
            die(&error.to_string());
        }
    }
}

impl Handler for Executor {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        async move {
            self.record(&event, "start", "-").await;
            // Long enough to be hit by a fault, different from event to event.
            tokio::time::sleep(self.latency.mul_f64(0.2 + 0.8 * fastrand::f64())).await;
            let (word, outcome) = match plan::fate(&event.id) {
                Some(Fate::Fails(n)) if event.attempt > n => ("done", Outcome::Done),
                Some(Fate::Fails(_)) => ("transient", Outcome::Failed(Failure::transient("not yet"))),
                _ => ("permanent", Outcome::Failed(Failure::permanent("never"))),
            };
            self.record(&event, "end", word).await;
            outcome
        }
        .boxed()
    }
}

/// Without its evidence a process would be judged wrongly.
fn die(what: &str) -> ! {
    tracing::error!("the evidence cannot be written: {what}");
    std::process::abort();
}

// ---------------------------------------------------------------------------------------------- the ports, watched

struct Witness {
    marks: Marks,
}

impl Witness {
    fn mark(&self, lines: &str) {
        if lines.is_empty() {
            return;
        }
        if let Err(error) = self.marks.write(lines) {
            die(&error.to_string());
        }
    }

    /// One line for each copy of which `tells` is true.
    fn mark_all<T>(&self, what: char, copies: &[Of], replies: &[T], tells: impl Fn(&T) -> bool) {
        let (mut lines, now) = (String::new(), now_us());
        for (of, _) in copies.iter().zip(replies).filter(|(_, reply)| tells(reply)) {
            // A `String` takes everything.
            writeln!(lines, "{what} {now} {} {} {}", of.hop, of.id, of.rest).ok();
        }
        self.mark(&lines);
    }
}

/// A copy as the marks name it.
struct Of {
    id: String,
    hop: u64,
    rest: String,
}

impl Of {
    /// By the key: event id and hop are its last parts. The ids of a run need no encoding.
    fn new(key: &CopyKey, rest: String) -> Self {
        let mut parts = key.rsplit(':');
        let hop = parts.next().and_then(|hop| hop.parse().ok()).unwrap_or_default();
        Self { id: parts.next().unwrap_or_default().to_owned(), hop, rest }
    }
}

struct WatchedStore {
    inner: Arc<dyn IdempotencyStore>,
    witness: Arc<Witness>,
}

impl IdempotencyStore for WatchedStore {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        // Redis counts from when it executes the command, which is later.
        let until = now_us() + lease.as_micros() as u64;
        let of = |(key, claim): &(CopyKey, Claim)| Of::new(key, format!("{} {until}", claim.fence));
        let copies: Vec<_> = batch.iter().map(of).collect();
        let (call, witness) = (self.inner.claim(batch, lease), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            let ours = |reply: &_| matches!(reply, Ok(ClaimReply::Claimed | ClaimReply::AlreadyOurs));
            witness.mark_all('c', &copies, &replies, ours);
            replies
        }
        .boxed()
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let until = now_us() + lease.as_micros() as u64;
        let copies: Vec<_> = batch.iter().map(|(key, _)| Of::new(key, format!("- {until}"))).collect();
        let (call, witness) = (self.inner.renew(batch, lease), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.mark_all('n', &copies, &replies, |reply| matches!(reply, Ok(true)));
            replies
        }
        .boxed()
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, ..)| Of::new(key, String::new())).collect();
        let (call, witness) = (self.inner.settle(batch), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.mark_all('s', &copies, &replies, Result::is_ok);
            replies
        }
        .boxed()
    }

    fn is_available(&self) -> bool {
        self.inner.is_available()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, _)| Of::new(key, String::new())).collect();
        let (call, witness) = (self.inner.release(batch), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.mark_all('r', &copies, &replies, |reply| matches!(reply, Ok(true)));
            replies
        }
        .boxed()
    }
}

struct WatchedPublisher {
    inner: Arc<dyn Publisher>,
    witness: Arc<Witness>,
}

impl Publisher for WatchedPublisher {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let header = |name: &str| {
            let value = record.headers.iter().find(|(n, _)| n == name).and_then(|(_, value)| value.as_deref());
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let id = header("x-ladder-event-id").unwrap_or_default().to_owned();
        let next = header("x-ladder-hop").and_then(|hop| hop.parse::<u64>().ok());
        let hop = next.map_or(0, |next| next.saturating_sub(1));
        self.witness.mark(&format!("p {} {hop} {id}\n", now_us()));
        let (acks, witness) = (Arc::clone(acks), Arc::clone(&self.witness));
        let acks: Arc<dyn AckSink> = Arc::new(WatchedAck { acks, witness, id, hop });
        self.inner.publish(record, ticket, &acks);
    }
}

struct WatchedAck {
    acks: Arc<dyn AckSink>,
    witness: Arc<Witness>,
    id: String,
    hop: u64,
}

impl AckSink for WatchedAck {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        if result.is_ok() {
            self.witness.mark(&format!("a {} {} {}\n", now_us(), self.hop, self.id));
        }
        self.acks.acknowledged(ticket, result);
    }
}
