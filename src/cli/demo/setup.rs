//! The demo's ladder: an embedded broker with its topics, the stages of a small fixed configuration, the recorder as
//! their handler.
//!
//! Invariant: no topic can get more than the embedded broker holds, for it would drop the rest without a word. Events
//! are spread over the partitions one after the other and hops keep the partition, so the most that a partition of any
//! topic can get is known beforehand: an N-th of all events, each as large as it ever becomes.

use std::sync::Arc;
use std::time::Duration;

use super::recorder::Recorder;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::embedded::{EmbeddedBroker, max_records};
use crate::adapters::kafka::producer::{KafkaPublisher, Options};
use crate::adapters::memory::MemoryStore;
use crate::app::engine::{Engine, Pipeline, RunningStage};
use crate::app::wire;
use crate::config::{Sources, load};
use crate::handlers::dead_letters::DeadLetterLog;
use crate::handlers::simulate::{SimulateHandler, SimulateOptions};
use crate::ladder::rungs::Ladder;
use crate::messages::Decoder;
use crate::stage::context::Partitions;

/// Partitions of each topic.
pub(super) const PARTITIONS: u32 = 12;
/// No record of the demo is larger, see [`crate::adapters::kafka::embedded::record_bytes`]; the summary checks it. The
/// largest are those on the DLQ after four attempts.
pub(super) const MAX_RECORD_BYTES: usize = 2_048;
/// The most events that fit even when all of them go the whole way.
pub(super) const MAX_EVENTS: u64 = PARTITIONS as u64 * max_records(MAX_RECORD_BYTES) as u64;

/// The demo's only configuration; no file and no environment is read.
const CONFIG: &str = "
pipelines:
  orders:
    topic: orders
    group: billing
    message: shop.v1.OrderPlaced
    retries: [{ delay: 1s }, { delay: 2s }, { delay: 4s }]
    idempotency: { store: memory }
    handler: { simulate: {} } # wrapped by the recorder
    concurrency: 256
";

/// How the handler behaves, seed and ratio of failures apart.
pub(super) fn handler_options() -> SimulateOptions {
    SimulateOptions {
        latency: Duration::from_millis(5),
        jitter: Duration::from_millis(25),
        ..SimulateOptions::default()
    }
}

/// The running ladder and what is around it. Stages end before the broker does: they come first.
pub(super) struct Demo {
    /// In the order of the rungs, the DLQ's last.
    pub(super) stages: Vec<RunningStage>,
    pub(super) publisher: Arc<KafkaPublisher>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) ladder: Arc<Ladder>,
    pub(super) decoder: Decoder,
    pub(super) broker: Arc<EmbeddedBroker>,
}

/// Starts everything.
pub(super) fn start(options: SimulateOptions) -> anyhow::Result<Demo> {
    let broker = Arc::new(EmbeddedBroker::start()?);
    let config = load(&Sources::inline("the demo's configuration", CONFIG))?.config;
    let [pipeline] = config.pipelines.as_slice() else {
        anyhow::bail!("the demo's configuration has {} pipelines", config.pipelines.len());
    };
    let ladder = Arc::new(wire::ladder(pipeline)?);
    let count = i32::try_from(PARTITIONS)?;
    for rung in ladder.rungs() {
        broker.create_topic(&rung.topic, count)?;
    }
    let mut properties = Properties::new(broker.address());
    // Nobody else wants them: without it each stage is late by what the broker waits for more to send.
    properties.consumer.insert("fetch.wait.max.ms".into(), "10".into());
    let publisher = Arc::new(KafkaPublisher::new(properties.clone(), Options::default())?);
    let engine = Engine::new(properties, Arc::clone(&publisher) as _)?;
    let simulate = SimulateHandler::new(options, Arc::clone(&engine.clock))?;
    let recorder = Arc::new(Recorder::new(simulate, Arc::clone(&engine.clock)));
    let rungs = ladder.rungs().len();
    let running = Pipeline {
        ladder: Arc::clone(&ladder),
        message: pipeline.message_name().into(),
        decode: Arc::new(wire::payload_decoder(pipeline, false)?),
        handler: Arc::clone(&recorder) as _,
        dead_letters: Arc::new(DeadLetterLog::new(&*pipeline.name, Arc::clone(&engine.clock), None)),
        store: Arc::new(MemoryStore::new(Arc::clone(&engine.clock))),
        prefix: config.redis.prefix.clone(),
        settings: wire::settings(pipeline),
        partitions: Partitions(vec![count; rungs]),
    };
    let stages = (0..rungs).map(|stage| engine.start(&running, stage)).collect::<Result<_, _>>()?;
    let decoder = wire::decoder(pipeline)?;
    Ok(Demo { stages, publisher, recorder, ladder, decoder, broker })
}
