//! A worker process of the proof: the real ladder, built as `pipeline` builds it, with ports that are watched.
//!
//! The engine knows nothing of it. Each watcher writes down an answer of the outside before the engine sees it
//! ([`super::ports`], [`super::journal`]); the handler records each execution in a file of this process, synced to the disk before and
//! after the effect. A process that cannot write its evidence ends at once.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::journal::{Line, Marks, Step};
use super::ledger::Fate;
use super::ports::{WatchedPublisher, WatchedStore, Witness};
use super::{now_us, plan};
use crate::app::{Builder, StageName};
use crate::config::{Sources, load};
use crate::handlers::executions::Executions;
use crate::ladder::event::{Failure, Outcome};
use crate::stage::ports::{Event, Handler, IdempotencyStore, Publisher};

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
    let witness = Arc::new(Evidence(Marks::create(&orders.marks())?));
    let beating = Arc::clone(&witness);
    std::thread::spawn(move || {
        loop {
            beating.saw(&[Line { at_us: now_us(), step: Step::Alive, hop: 0, id: "-".into() }]);
            std::thread::sleep(HEARTBEAT);
        }
    });
    let executions = Executions::open(&orders.executions(), true)?;
    let executor = Executor { executions, latency: orders.latency, witness: Arc::clone(&witness) };
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

// ---------------------------------------------------------------------------------------------- the handler

struct Executor {
    executions: Executions,
    latency: Duration,
    witness: Arc<Evidence>,
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
            let hop = u64::from(event.attempt) - 1;
            self.witness.saw(&[Line { at_us: now_us(), step: Step::Handled, hop, id: event.id.to_string() }]);
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

// ---------------------------------------------------------------------------------------------- what it saw

struct Evidence(Marks);

impl Witness for Evidence {
    fn saw(self: &Arc<Self>, lines: &[Line]) {
        if let Err(error) = self.0.write(lines) {
            die(&error.to_string());
        }
    }
}
