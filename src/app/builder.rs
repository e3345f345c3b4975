//! From a configuration to running stages, and to their end.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;

use super::engine::{Engine, NoRandomness, Pipeline, RunningStage};
use super::wire;
use crate::adapters::kafka::admin::plan::known_topics;
use crate::adapters::kafka::admin::startup::{StartupOptions, startup_check};
use crate::adapters::kafka::admin::{self, Admin, TopicState};
use crate::adapters::kafka::control::{self, ControlReader, Follower};
use crate::adapters::kafka::transactions::{self, Transactions};
use crate::adapters::kafka::{Properties, consumer, producer};
use crate::adapters::memory::MemoryStore;
use crate::adapters::otel::OtelTracer;
use crate::adapters::redis;
use crate::config::{self, Config};
use crate::handlers::dead_letters::DeadLetterLog;
use crate::handlers::registered::RegisteredHandler;
use crate::ladder::rungs::Ladder;
use crate::messages::Reader;
use crate::stage::context::Partitions;
use crate::stage::gate::Outage;
use crate::stage::ports::{Handler, IdempotencyStore, Publisher};
use crate::telemetry::handler_spans::HandlerSpans;
use crate::telemetry::traces::{self, Traces};

/// Why the stages did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pipeline cannot be built from its configuration.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// `--pipeline` names none of the configured.
    #[error("--pipeline {name}: no such pipeline; configured: {}", configured.join(", "))]
    UnknownPipeline {
        /// As given.
        name: String,
        /// Those that there are.
        configured: Vec<String>,
    },
    /// `--stage` names no stage of the chosen pipelines.
    #[error("--stage {name}: no chosen pipeline has it; it is one of {}, or all", stages.join(", "))]
    UnknownStage {
        /// As given.
        name: String,
        /// Those that there are.
        stages: Vec<String>,
    },
    /// `--stage orphan:<topic>` names a topic that is none.
    #[error(
        "--stage orphan:{topic}: no orphan; that is a topic named <topic>.<group>.… of a chosen pipeline, and no rung of any"
    )]
    NoOrphan {
        /// As given.
        topic: String,
    },
    /// A handler was given for a pipeline that is not configured.
    #[error("a handler was given for pipeline `{name}`, which is not configured; configured: {}", configured.join(", "))]
    UnusedHandler {
        /// As given.
        name: String,
        /// Those that there are.
        configured: Vec<String>,
    },
    /// Kafka: not reachable, topics missing or unsafe.
    #[error(transparent)]
    Kafka(#[from] admin::Error),
    /// Redis: not reachable or unfit.
    #[error(transparent)]
    Redis(#[from] redis::Error),
    /// Hops of this pipeline cannot go in transactions.
    #[error("pipelines.{pipeline}.forward: {source}; or `forward: idempotent`")]
    Transactions {
        /// Its name.
        pipeline: String,
        /// Why not.
        source: Box<transactions::Error>,
    },
    /// The producer.
    #[error(transparent)]
    Producer(#[from] producer::Error),
    /// A stage's consumer.
    #[error(transparent)]
    Consumer(#[from] consumer::Error),
    /// Pauses by command.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The export of traces.
    #[error(transparent)]
    Traces(#[from] traces::Error),
    /// No random numbers.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl Error {
    /// The process's exit code for this error: 64 configuration, 69 not reachable or topics missing, 70 fenced, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Wire(e) => e.exit_code(),
            Error::UnknownPipeline { .. }
            | Error::UnknownStage { .. }
            | Error::NoOrphan { .. }
            | Error::UnusedHandler { .. }
            | Error::Transactions { .. }
            | Error::Traces(_)
            | Error::Producer(producer::Error::Config(_))
            | Error::Consumer(consumer::Error::Config { .. }) => 64,
            Error::Kafka(e) => e.exit_code(),
            Error::Redis(e) => e.exit_code(),
            Error::Control(e) => e.exit_code(),
            Error::Consumer(consumer::Error::Fenced { .. }) => 70,
            Error::Producer(_) | Error::Consumer(_) | Error::NoRandomness(_) => 1,
        }
    }
}

/// Begins the name of a former rung, before its topic: on the command line and in orders.
pub const ORPHAN: &str = "orphan:";

/// A stage as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageName {
    /// Every stage of the ladder.
    All,
    /// `main`, `retry-2`, `dlq`.
    Named(String),
    /// `orphan:<topic>`: a topic that was a rung once and still holds a backlog.
    Orphan(String),
}

/// Not the name of a stage.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no stage; it is main, retry-1 … retry-16, dlq, all or orphan:<topic>")]
pub struct NoStage(String);

impl FromStr for StageName {
    type Err = NoStage;

    fn from_str(name: &str) -> Result<Self, NoStage> {
        let is_retry = name.strip_prefix("retry-").is_some_and(|n| {
            !n.starts_with('0') && n.parse::<usize>().is_ok_and(|n| (1..=config::MAX_RETRIES).contains(&n))
        });
        if let Some(topic) = name.strip_prefix(ORPHAN).filter(|topic| !topic.is_empty()) {
            return Ok(StageName::Orphan(topic.to_owned()));
        }
        match name {
            "all" => Ok(StageName::All),
            "main" | "dlq" => Ok(StageName::Named(name.to_owned())),
            _ if is_retry => Ok(StageName::Named(name.to_owned())),
            _ => Err(NoStage(name.to_owned())),
        }
    }
}

/// Builds and starts the stages of a configuration.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use retry_ladder::app::Builder;
/// use retry_ladder::config::{Sources, load};
/// use retry_ladder::handlers::handler_fn;
/// use retry_ladder::ladder::event::Failure;
/// use retry_ladder::messages::shop::v1::OrderPlaced;
/// use retry_ladder::stage::ports::Event;
///
/// let config = load(&Sources::new(None))?.config;
/// let bill = handler_fn(|event: Event| async move {
///     let order: OrderPlaced = event.decode()?;
///     println!("billing {}, attempt {}", order.unique_id, event.attempt);
///     Ok::<(), Failure>(())
/// });
/// let app = Builder::new(config).handler("orders", bill).start().await?;
/// app.run_until(async { drop(tokio::signal::ctrl_c().await) }).await?;
/// # Ok(()) }
/// ```
pub struct Builder {
    config: Config,
    handlers: HashMap<String, Arc<dyn Handler>>,
    pipelines: Vec<String>,
    stages: Vec<StageName>,
    topics_as_configured: bool,
    handler_spans: Option<HandlerSpans>,
    wrap_store: Option<WrapStore>,
    wrap_publisher: Option<WrapPublisher>,
}

type WrapStore = Box<dyn Fn(Arc<dyn IdempotencyStore>) -> Arc<dyn IdempotencyStore> + Send>;
type WrapPublisher = Box<dyn Fn(Arc<dyn Publisher>) -> Arc<dyn Publisher> + Send>;

impl Builder {
    /// All stages of all pipelines, with the handlers that the configuration names.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            handlers: HashMap::new(),
            pipelines: Vec::new(),
            stages: vec![StageName::All],
            topics_as_configured: false,
            handler_spans: None,
            wrap_store: None,
            wrap_publisher: None,
        }
    }

    /// Executes the events of a pipeline with `handler`, whatever the configuration names.
    #[must_use]
    pub fn handler(mut self, pipeline: &str, handler: impl Handler) -> Self {
        self.handlers.insert(pipeline.to_owned(), Arc::new(handler));
        self
    }

    /// Only these pipelines; none means all.
    #[must_use]
    pub fn pipelines(mut self, names: Vec<String>) -> Self {
        self.pipelines = names;
        self
    }

    /// Only these stages; none means all.
    #[must_use]
    pub fn stages(mut self, stages: Vec<StageName>) -> Self {
        if !stages.is_empty() {
            self.stages = stages;
        }
        self
    }

    /// Takes the topics to be as configured, without a check: for a broker that cannot be asked, such as the
    /// [embedded](crate::adapters::kafka::embedded) one. On any other a missing or compacted topic loses events.
    #[must_use]
    pub fn topics_as_configured(mut self) -> Self {
        self.topics_as_configured = true;
        self
    }

    /// Puts something between the engine and the deduplication store, which sees every answer first.
    #[must_use]
    pub fn wrap_store(
        mut self,
        wrap: impl Fn(Arc<dyn IdempotencyStore>) -> Arc<dyn IdempotencyStore> + Send + 'static,
    ) -> Self {
        self.wrap_store = Some(Box::new(wrap));
        self
    }

    /// The same between the engine and the producer.
    #[must_use]
    pub fn wrap_publisher(mut self, wrap: impl Fn(Arc<dyn Publisher>) -> Arc<dyn Publisher> + Send + 'static) -> Self {
        self.wrap_publisher = Some(Box::new(wrap));
        self
    }

    /// Exports what handlers open as `tracing` spans with their events' traces.
    #[must_use]
    pub fn handler_spans(mut self, spans: &HandlerSpans) -> Self {
        self.handler_spans = Some(spans.clone());
        self
    }

    /// Checks the topics, connects to Kafka and Redis, starts the stages.
    ///
    /// # Errors
    /// When anything is missing or not fit; nothing runs then.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub async fn start(self) -> Result<App, Error> {
        let chosen = self.chosen()?;
        let configured: Vec<String> = self.config.pipelines.iter().map(|p| p.name.clone()).collect();
        if let Some(name) = self.handlers.keys().find(|name| !configured.contains(name)) {
            return Err(Error::UnusedHandler { name: name.clone(), configured });
        }
        // Everything that needs no server first, so that a fault is told at once.
        let registry = wire::registry(&self.config)?;
        let mut ladders = Vec::new();
        for pipeline in &chosen {
            let decode = wire::payload_decoder(pipeline, registry.is_some())?;
            ladders.push((Arc::new(wire::ladder(pipeline)?), decode));
            if !self.handlers.contains_key(&pipeline.name) {
                wire::check_handler(pipeline)?;
            }
        }
        self.check_stages(&chosen)?;
        let traces = wire::traces(&self.config, "retry-ladder")?;
        if let (Some(spans), Some(traces)) = (&self.handler_spans, &traces) {
            spans.export(traces.queue());
        }
        let (partitions, batch_size) = if self.topics_as_configured {
            (
                chosen.iter().map(|pipeline| configured_partitions(pipeline)).collect(),
                producer::Options::default().batch_size,
            )
        } else {
            self.check_topics(&chosen).await?
        };
        let orphans = self.orphans(&chosen).await?;
        let properties = wire::properties(&self.config);
        let options = producer::Options { message_timeout: self.config.kafka.message_timeout, batch_size };
        let mut publisher: Arc<dyn Publisher> = Arc::new(producer::KafkaPublisher::new(properties.clone(), options)?);
        if let Some(wrap) = &self.wrap_publisher {
            publisher = wrap(publisher);
        }
        let mut engine = Engine::new(properties, publisher)?;
        engine.instance = self.config.instance.clone();
        engine.session_timeout = self.config.kafka.session_timeout;
        engine.drain_timeout = self.config.kafka.drain_timeout;
        engine.batch_size = batch_size;
        engine.tracer = traces.as_ref().map(|traces| {
            let client_id = engine.properties.client_id();
            Arc::new(OtelTracer::new(traces.queue(), wire::sampling(&self.config), client_id)) as _
        });

        for (pipeline, (ladder, _)) in chosen.iter().zip(&ladders) {
            if pipeline.forward == config::Forward::Transactional {
                self.check_transactions(&engine, ladder).await?;
            }
        }

        let outages: Vec<_> = chosen
            .iter()
            .zip(&ladders)
            .map(|(pipeline, (ladder, _))| {
                let outage = engine.guard(ladder.pipeline(), wire::outage(pipeline));
                (wire::topics(pipeline).control_topic(), outage)
            })
            .collect();
        // Before the first stage starts, or events would slip through a pause.
        let orders = match self.topics_as_configured {
            true => None,
            false => {
                Some(follow(&engine.properties, &chosen[0].group, outages, self.config.kafka.startup_timeout).await?)
            }
        };

        let mut stores = Stores::default();
        let mut pipelines = Vec::new();
        for ((pipeline, (ladder, decode)), partitions) in chosen.iter().zip(ladders).zip(partitions) {
            let handler = match self.handlers.get(&pipeline.name) {
                Some(handler) => Arc::clone(handler),
                None => {
                    let patience = self.config.kafka.startup_timeout;
                    wire::handler(pipeline, registry.as_ref(), &engine.clock, patience).await?
                }
            };
            let handler = match wire::reader(pipeline, registry.as_ref())? {
                Reader::Own(_) => handler,
                registered => Arc::new(RegisteredHandler::new(handler, registered)) as _,
            };
            pipelines.push(Pipeline {
                ladder,
                message: pipeline.message_name().into(),
                decode: Arc::new(decode),
                handler,
                dead_letters: Arc::new(DeadLetterLog::new(
                    &*pipeline.name,
                    Arc::clone(&engine.clock),
                    wire::webhook(pipeline)?,
                )),
                store: match (&self.wrap_store, stores.get(pipeline.idempotency.store, &self.config, &engine).await?) {
                    (Some(wrap), store) => wrap(store),
                    (None, store) => store,
                },
                prefix: self.config.redis.prefix.clone(),
                settings: wire::settings(pipeline),
                partitions,
            });
        }
        let mut stages = Vec::new();
        for pipeline in &pipelines {
            for rung in pipeline.ladder.rungs() {
                let named = |s: &StageName| match s {
                    StageName::All => true,
                    StageName::Named(name) => **name == *rung.name,
                    StageName::Orphan(_) => false,
                };
                if self.stages.iter().any(named) {
                    tracing::info!(pipeline = %pipeline.ladder.pipeline(), stage = %rung.name, topic = %rung.topic, "stage starts");
                    stages.push(engine.start(pipeline, rung.index)?);
                }
            }
        }
        for orphan in orphans {
            let (of, ladder, index, count) = orphan;
            let pipeline = pipelines[of].with_orphan(ladder, index, count);
            tracing::info!(topic = %pipeline.ladder.rungs()[index].topic, "draining a former rung; stop it when `pipeline topics check` no longer lists it");
            stages.push(engine.start_orphan(&pipeline, index)?);
        }
        Ok(App { stages, traces, orders })
    }

    /// The orphans to be drained: of which chosen pipeline, its ladder with the orphan as a rung, that rung, and the
    /// orphan's partitions.
    async fn orphans(&self, chosen: &[&config::Pipeline]) -> Result<Vec<(usize, Ladder, usize, i32)>, Error> {
        let mut orphans = Vec::new();
        for stage in &self.stages {
            let StageName::Orphan(topic) = stage else { continue };
            let rungs = chosen.iter().flat_map(|p| p.stages()).map(|(_, topic)| topic).collect::<Vec<_>>();
            let of = chosen.iter().position(|p| topic.starts_with(&format!("{}.{}.", p.topic, p.group)));
            let Some(of) = of.filter(|_| !rungs.contains(&topic.as_str())) else {
                return Err(Error::NoOrphan { topic: topic.clone() });
            };
            let admin = Admin::new(wire::connection(&self.config))?;
            let described = admin.describe(&BTreeSet::from([topic.clone()])).await?;
            let Some(TopicState::Exists(actual)) = described.get(topic) else {
                let brokers = self.config.kafka.brokers.clone();
                return Err(admin::Error::Missing { brokers, topics: vec![topic.clone()] }.into());
            };
            let (ladder, index) = wire::ladder_with_orphan(chosen[of], topic)?;
            orphans.push((of, ladder, index, actual.partitions));
        }
        Ok(orphans)
    }

    fn chosen(&self) -> Result<Vec<&config::Pipeline>, Error> {
        for name in &self.pipelines {
            if self.config.pipeline(name).is_none() {
                let configured = self.config.pipelines.iter().map(|p| p.name.clone()).collect();
                return Err(Error::UnknownPipeline { name: name.clone(), configured });
            }
        }
        let wanted = |p: &&config::Pipeline| self.pipelines.is_empty() || self.pipelines.contains(&p.name);
        Ok(self.config.pipelines.iter().filter(wanted).collect())
    }

    fn check_stages(&self, chosen: &[&config::Pipeline]) -> Result<(), Error> {
        let mut stages: Vec<String> = Vec::new();
        for (name, _) in chosen.iter().flat_map(|p| p.stages()) {
            if !stages.contains(&name) {
                stages.push(name);
            }
        }
        for stage in &self.stages {
            if let StageName::Named(name) = stage
                && !stages.contains(name)
            {
                return Err(Error::UnknownStage { name: name.clone(), stages });
            }
        }
        Ok(())
    }

    async fn check_transactions(&self, engine: &Engine, ladder: &Ladder) -> Result<(), Error> {
        let pipeline = ladder.pipeline().to_string();
        if self.topics_as_configured {
            return Err(Error::Transactions { pipeline, source: Box::new(transactions::Error::Embedded) });
        }
        let (properties, topic) = (engine.properties.clone(), ladder.topic().to_string());
        let id = engine.transactional_id(ladder, "check");
        let checked = tokio::task::spawn_blocking(move || Transactions::check(&properties, &id, &topic)).await;
        // The runtime ends before its blocking tasks only when the process does.
        checked.unwrap_or(Ok(())).map_err(|source| Error::Transactions { pipeline, source: Box::new(source) })
    }

    /// Partition counts by pipeline and rung, and the largest batch that every topic takes.
    async fn check_topics(&self, chosen: &[&config::Pipeline]) -> Result<(Vec<Partitions>, usize), Error> {
        let admin = Admin::new(wire::connection(&self.config))?;
        let all: Vec<_> = self.config.pipelines.iter().map(wire::topics).collect();
        let known = known_topics(&all);
        let mut counts = Vec::new();
        let mut batch_size = producer::Options::default().batch_size;
        for pipeline in chosen {
            let options = StartupOptions {
                timeout: self.config.kafka.startup_timeout,
                allow_unsafe_topics: pipeline.allow_unsafe_topics,
            };
            let report = startup_check(&admin, &[wire::topics(pipeline)], &known, options).await?;
            for warning in &report.warnings {
                tracing::warn!(pipeline = pipeline.name, "{warning}");
            }
            let count = |(_, topic): (String, &str)| report.partitions.get(topic).copied().unwrap_or(0);
            counts.push(Partitions(pipeline.stages().into_iter().map(count).collect()));
            batch_size = batch_size.min(report.max_message_bytes.unwrap_or(batch_size));
        }
        Ok((counts, batch_size))
    }
}

fn configured_partitions(pipeline: &config::Pipeline) -> Partitions {
    let count = i32::try_from(pipeline.partitions).unwrap_or(i32::MAX);
    Partitions(vec![count; pipeline.stages().len()])
}

/// Pauses what is paused by command, and goes on to follow.
async fn follow(
    properties: &Properties,
    group: &str,
    outages: Vec<(String, Arc<Outage>)>,
    timeout: Duration,
) -> Result<Follower, Error> {
    let mut reader = ControlReader::new(properties, group, outages.iter().map(|(topic, _)| topic.clone()))?;
    let read = tokio::task::spawn_blocking(move || reader.catch_up(timeout).map(|orders| (reader, orders)));
    // The runtime ends before its blocking tasks only when the process does.
    let Ok(read) = read.await else { return Err(control::Error::Slow { topic: "orders".into(), timeout }.into()) };
    let (reader, orders) = read?;
    let outages: HashMap<_, _> = outages.into_iter().collect();
    for (topic, orders) in control::newest(orders) {
        for (stage, order) in orders {
            obey(&outages, &(topic.clone(), stage, order));
        }
    }
    Ok(Follower::start(reader, move |order| obey(&outages, &order))?)
}

fn obey(outages: &HashMap<String, Arc<Outage>>, (topic, stage, order): &control::Read) {
    if let Some(outage) = outages.get(topic) {
        outage.command(stage, order.paused.then(|| order.to_string()).as_deref());
    }
}

/// One store of each kind for the whole process.
#[derive(Default)]
struct Stores {
    redis: Option<Arc<dyn IdempotencyStore>>,
    memory: Option<Arc<dyn IdempotencyStore>>,
}

impl Stores {
    async fn get(
        &mut self,
        kind: config::Store,
        config: &Config,
        engine: &Engine,
    ) -> Result<Arc<dyn IdempotencyStore>, Error> {
        if kind == config::Store::Redis {
            if let Some(store) = &self.redis {
                return Ok(Arc::clone(store));
            }
            let options = wire::redis_options(config)?;
            let store: Arc<dyn IdempotencyStore> = Arc::new(wire::redis(config, options).await?);
            return Ok(Arc::clone(self.redis.insert(store)));
        }
        // With `store: off` nothing is ever claimed; the lanes still want something to hold.
        let memory = || Arc::new(MemoryStore::new(Arc::clone(&engine.clock))) as _;
        Ok(Arc::clone(self.memory.get_or_insert_with(memory)))
    }
}

/// Running stages.
pub struct App {
    stages: Vec<RunningStage>,
    traces: Option<Traces>,
    /// Follows pauses by command.
    orders: Option<Follower>,
}

impl App {
    /// The stages.
    pub fn stages(&self) -> &[RunningStage] {
        &self.stages
    }

    /// What became of the spans so far; `None` where nothing is traced.
    pub fn span_counts(&self) -> Option<Arc<traces::Counts>> {
        self.traces.as_ref().map(|traces| Arc::clone(traces.counts()))
    }

    /// Runs until `shutdown` resolves, then drains. A stage that cannot go on ends the others, too.
    ///
    /// # Errors
    /// The first stage's that could not go on.
    pub async fn run_until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let first = {
            let ended = select_all(self.stages.iter_mut().map(|stage| Box::pin(stage.ended())));
            tokio::select! {
                () = shutdown => Ok(()),
                (result, _, _) = ended => result,
            }
        };
        self.stages.iter().for_each(RunningStage::stop);
        let orders = self.orders.take();
        let ended = tokio::task::spawn_blocking(move || drop(orders));
        let mut result = first;
        for stage in &mut self.stages {
            result = result.and(stage.ended().await);
        }
        if let Some(traces) = self.traces.take() {
            traces.shutdown().await;
        }
        drop(ended.await);
        Ok(result?)
    }
}
