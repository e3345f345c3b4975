//! Runs stages in this process: one consumer thread and one set of lanes for each, one producer for all.
//!
//! A stage ends by [`RunningStage::stop`] (after a drain) or because its consumer cannot go on; nothing here decides
//! whether the process ends then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::builder::ORPHAN;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::consumer::{self, StageConsumer};
use crate::adapters::kafka::producer;
use crate::ladder::gate::OutageSettings;
use crate::ladder::headers::CopyKeys;
use crate::ladder::rungs::Ladder;
use crate::stage::clock::{Clock, SystemClock};
use crate::stage::context::{Decode, Forward, Partitions, StageContext, StageSettings};
use crate::stage::gate::Outage;
use crate::stage::lanes::LaneView;
use crate::stage::ports::{Handler, IdempotencyStore, Publisher, Tracer};
use crate::stage::stats::StageStats;
use crate::stage::{LaneOverview, Stage};

/// What all stages of a process share.
pub struct Engine {
    /// Brokers and client properties.
    pub properties: Properties,
    /// The one producer.
    pub publisher: Arc<dyn Publisher>,
    /// Takes the spans of all stages; `None`: nothing is traced.
    pub tracer: Option<Arc<dyn Tracer>>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Static member id of this process, `None` for dynamic membership.
    pub instance: Option<String>,
    /// After this much silence a member's partitions go to others.
    pub session_timeout: Duration,
    /// How long running handlers may go on when a stage ends or a partition is taken away.
    pub drain_timeout: Duration,
    /// No batch of records may be larger ([`producer::Options`]).
    ///
    /// [`producer::Options`]: crate::adapters::kafka::producer::Options
    pub batch_size: usize,
    /// 64 random bits of this start.
    process: u64,
    /// What stops each pipeline, by name.
    outages: Mutex<HashMap<Arc<str>, Arc<Outage>>>,
}

/// One pipeline, ready to run.
#[derive(Clone)]
pub struct Pipeline {
    /// Its ladder.
    pub ladder: Arc<Ladder>,
    /// Full name of the Protobuf message.
    pub message: Arc<str>,
    /// Reads values.
    pub decode: Arc<dyn Decode>,
    /// Executes events on every stage but the DLQ.
    pub handler: Arc<dyn Handler>,
    /// Looks at dead letters on the DLQ.
    pub dead_letters: Arc<dyn Handler>,
    /// Deduplication records.
    pub store: Arc<dyn IdempotencyStore>,
    /// Prefix of their keys.
    pub prefix: String,
    /// Settings of each stage, by rung.
    pub settings: Vec<StageSettings>,
    /// Partition counts, by rung.
    pub partitions: Partitions,
}

impl Pipeline {
    /// The same with another rung at `index`, as `ladder` has it: a topic that was a rung once.
    pub(super) fn with_orphan(&self, ladder: Ladder, index: usize, partitions: i32) -> Self {
        let mut orphan = self.clone();
        orphan.ladder = Arc::new(ladder);
        orphan.settings.insert(index, self.settings[index - 1].clone());
        orphan.partitions.0.insert(index, partitions);
        orphan
    }
}

/// No random bits can be had from the system.
#[derive(Debug, thiserror::Error)]
#[error("no random numbers from the system: {0}")]
pub struct NoRandomness(getrandom::Error);

impl Engine {
    /// An engine with the system's clocks and dynamic membership.
    ///
    /// # Errors
    /// When the system has no random numbers: two processes could take each other's claims for their own.
    pub fn new(properties: Properties, publisher: Arc<dyn Publisher>) -> Result<Self, NoRandomness> {
        Ok(Self {
            properties,
            publisher,
            tracer: None,
            clock: Arc::new(SystemClock),
            instance: None,
            session_timeout: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(10),
            batch_size: producer::Options::default().batch_size,
            process: getrandom::u64().map_err(NoRandomness)?,
            outages: Mutex::default(),
        })
    }

    /// Gives a pipeline its breaker and brake, before its first stage starts. Without this it has neither, which is
    /// right where everything fails on purpose, and nowhere else.
    pub fn guard(&self, pipeline: &Arc<str>, settings: OutageSettings) -> Arc<Outage> {
        let outage = Outage::new(pipeline, settings, Arc::clone(&self.clock));
        let mut outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        outages.insert(Arc::clone(pipeline), Arc::clone(&outage));
        outage
    }

    fn outage(&self, pipeline: &Arc<str>) -> Arc<Outage> {
        let mut outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || Outage::new(pipeline, OutageSettings::default(), Arc::clone(&self.clock));
        Arc::clone(outages.entry(Arc::clone(pipeline)).or_insert_with(none))
    }

    /// Under which hops of a stage are committed. Stable with an `instance`, so that a restart ends what its predecessor
    /// left open.
    pub(super) fn transactional_id(&self, ladder: &Ladder, stage: &str) -> String {
        let instance = self.instance.clone().unwrap_or_else(|| format!("{:016x}", self.process));
        format!("{}.{}.forward.{stage}.{instance}", ladder.topic(), ladder.group())
    }

    /// Starts one stage of a pipeline on the current tokio runtime.
    ///
    /// # Errors
    /// When librdkafka refuses the properties.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when `stage` is no rung of the ladder.
    pub fn start(&self, pipeline: &Pipeline, stage: usize) -> Result<RunningStage, consumer::Error> {
        self.start_as(pipeline, stage, &pipeline.ladder.rungs()[stage].name)
    }

    /// The same for a former rung, which commands name by its topic: its rung's name is that of another.
    pub(super) fn start_orphan(&self, pipeline: &Pipeline, stage: usize) -> Result<RunningStage, consumer::Error> {
        let name = format!("{ORPHAN}{}", pipeline.ladder.rungs()[stage].topic);
        self.start_as(pipeline, stage, &name.into())
    }

    fn start_as(&self, pipeline: &Pipeline, stage: usize, name: &Arc<str>) -> Result<RunningStage, consumer::Error> {
        let rung = &pipeline.ladder.rungs()[stage];
        let is_last = stage == pipeline.ladder.dlq().index;
        let settings = pipeline.settings[stage].clone();
        let stats = Arc::new(StageStats::default());
        let outage = self.outage(pipeline.ladder.pipeline());
        let gate = outage.gate(name, stage == 0, !is_last, settings.concurrency, &stats);
        let ctx = Arc::new(StageContext {
            stage,
            message: Arc::clone(&pipeline.message),
            decode: Arc::clone(&pipeline.decode),
            handler: Arc::clone(if is_last { &pipeline.dead_letters } else { &pipeline.handler }),
            store: Arc::clone(&pipeline.store),
            publisher: Arc::clone(&self.publisher),
            tracer: self.tracer.clone(),
            clock: Arc::clone(&self.clock),
            permits: Arc::new(Semaphore::new(settings.concurrency)),
            gate,
            partitions: pipeline.partitions.clone(),
            gained_partitions: AtomicBool::new(false),
            keys: CopyKeys::new(&pipeline.prefix, &pipeline.ladder),
            settings,
            process: self.process,
            stats,
            ladder: Arc::clone(&pipeline.ladder),
        });
        let stage = Arc::new(Stage::new(Arc::clone(&ctx), tokio::runtime::Handle::current()));
        let options = consumer::Options {
            topic: rung.topic.to_string(),
            group_id: rung.group_id.to_string(),
            // By topic: a former rung that is drained beside a live one of its name shares the group, not the id.
            group_instance_id: self.instance.as_ref().map(|i| format!("{i}.{}", rung.topic)),
            session_timeout: self.session_timeout,
            drain_timeout: self.drain_timeout,
            delay: rung.delay,
            transactional: (ctx.settings.forward == Forward::Transactional).then(|| consumer::Transactional {
                id: self.transactional_id(&pipeline.ladder, name),
                batch_size: self.batch_size,
            }),
        };
        let consumer = StageConsumer::new(&self.properties, options, Arc::clone(&stage) as _)?;
        let stop = Arc::new(AtomicBool::new(false));
        // Not yet polled counts as polled now: the thread has its time to come up.
        let last_poll = Arc::new(AtomicU64::new(self.clock.now().boot.as_millis() as u64));
        let (ended_tx, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("poll-{}", rung.name)).spawn({
            let (stop, clock, last_poll) = (Arc::clone(&stop), Arc::clone(&self.clock), Arc::clone(&last_poll));
            move || {
                let alive = || last_poll.store(clock.now().boot.as_millis() as u64, Ordering::Relaxed);
                let result = consumer.run(&stop, alive);
                // Nobody waits: the stage was dropped.
                drop(ended_tx.send(result));
            }
        });
        let thread = thread.map_err(|error| consumer::Error::Fatal {
            topic: rung.topic.to_string(),
            reason: format!("no thread for it: {error}"),
        })?;
        Ok(RunningStage { ctx, stage, stop, thread: Some(thread), ended: Some(ended), result: Ok(()), last_poll })
    }
}

/// A stage that runs.
pub struct RunningStage {
    ctx: Arc<StageContext>,
    stage: Arc<Stage>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    ended: Option<oneshot::Receiver<Result<(), consumer::Error>>>,
    /// How it ended, until somebody was told.
    result: Result<(), consumer::Error>,
    last_poll: Arc<AtomicU64>,
}

impl RunningStage {
    /// What its lanes share: rung, settings, counters.
    pub fn context(&self) -> &Arc<StageContext> {
        &self.ctx
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<StageStats> {
        &self.ctx.stats
    }

    /// What its lanes hold now.
    pub fn overview(&self) -> LaneOverview {
        self.stage.overview()
    }

    /// For looking at it from elsewhere.
    pub fn view(&self) -> StageView {
        StageView::new(Arc::clone(&self.stage), Arc::clone(&self.last_poll))
    }

    /// Asks it to stop: handlers that run are waited for, at most the drain time.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When its consumer could not go on.
    pub async fn ended(&mut self) -> Result<(), consumer::Error> {
        if let Some(ended) = &mut self.ended {
            // Kept until the end of this call: whoever drops it in the middle can call again and loses no error.
            self.result = ended.await.unwrap_or_else(|_| {
                Err(consumer::Error::Fatal {
                    topic: self.ctx.rung().topic.to_string(),
                    reason: "its poll thread panicked; this is a bug".into(),
                })
            });
            self.ended = None;
        }
        if let Some(thread) = self.thread.take() {
            // It has sent its result: what is left is closing the consumer, which leaves the group.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
        std::mem::replace(&mut self.result, Ok(()))
    }
}

/// Looks at a stage that runs. Cheap to clone; does not keep the stage running.
#[derive(Clone)]
pub struct StageView {
    stage: Arc<Stage>,
    last_poll: Arc<AtomicU64>,
}

impl StageView {
    /// A stage, and the boot time of its last poll in milliseconds.
    pub fn new(stage: Arc<Stage>, last_poll: Arc<AtomicU64>) -> Self {
        Self { stage, last_poll }
    }

    /// What its lanes share: rung, settings, counters.
    pub fn context(&self) -> &Arc<StageContext> {
        self.stage.context()
    }

    /// Whether it is the rung without a next.
    pub fn is_last(&self) -> bool {
        self.context().stage == self.context().ladder.dlq().index
    }

    /// Time since its poll thread last polled, suspend included.
    pub fn since_last_poll(&self) -> Duration {
        self.context().clock.now().boot.saturating_sub(Duration::from_millis(self.last_poll.load(Ordering::Relaxed)))
    }

    /// Whether its group has given it its partitions, be it none.
    pub fn is_member(&self) -> bool {
        self.stage.is_member()
    }

    /// What each lane of the partitions that are assigned now holds, exactly.
    pub async fn look(&self) -> Vec<(i32, LaneView)> {
        self.stage.look().await
    }
}

impl Drop for RunningStage {
    fn drop(&mut self) {
        self.stop();
    }
}
