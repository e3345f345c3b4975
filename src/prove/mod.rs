//! The proof: a run under faults on real services, judged by evidence from outside.
//!
//! Reading order: [`plan`] says what will happen, [`round`](self) conducts it with [`crew`](self) (the worker
//! processes), [`proxy`] (the network to Redis) and [`outside`] (Kafka and Redis as others see them); [`worker`] is such a
//! process, [`ports`] what it sees, [`journal`] what it writes down; [`ledger`] holds what was seen and tells everything that breaks the
//! promise; [`report`] says so.
//!
//! # Invariants
//! - [`ledger`] uses nothing of this crate, so that no fault of the engine or its codec can hide itself.
//! - Only topics, groups and keys of the run's own are touched, Redis is cut through a proxy of its own; all of it is
//!   gone at the end, and no worker outlives the run.

mod crew;
pub mod journal;
pub mod ledger;
pub mod outside;
pub mod plan;
pub mod ports;
pub mod proxy;
pub mod report;
mod round;
#[cfg(feature = "sabotage")]
mod sabotage;
pub mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::adapters::kafka::admin;
use crate::stage::clock::{Clock as _, SystemClock};
use crate::telemetry::duration::coarse;
use report::Report;

/// Name of the pipeline in the workers' configuration.
pub(crate) const PIPELINE: &str = "prove";

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// Any librdkafka property, for every client.
    pub properties: BTreeMap<String, String>,
    /// Url of the Redis.
    pub redis: String,
    /// Events produced in a round.
    pub events: u64,
    /// Events a second.
    pub rate: f64,
    /// Worker processes.
    pub workers: usize,
    /// Kills in a round.
    pub kills: usize,
    /// Freezes in a round.
    pub freezes: usize,
    /// Redis outages in a round.
    pub outages: usize,
    /// Lease of a claim.
    pub lease: Duration,
    /// An execution takes at most this long, at least a fifth of it.
    pub latency: Duration,
    /// Same seed, same plan.
    pub seed: u64,
    /// Goes on with further rounds for so long, each with topics of its own and the next seed; `None`: one round.
    pub duration: Option<Duration>,
    /// Leaves topics, keys and the workers' files.
    pub keep: bool,
    /// The program that is started as a worker.
    pub program: PathBuf,
}

impl Options {
    /// Whether a run can be like this, as far as that can be told without a server.
    ///
    /// # Errors
    /// When Redis outages are wanted and no proxy can stand before this Redis.
    pub fn check(&self) -> Result<(), Error> {
        if self.outages > 0 {
            round::server_of(&self.redis)?;
        }
        Ok(())
    }
}

/// Why a run came to no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options do not go together.
    #[error("{0}")]
    Options(String),
    /// Topics could not be made, or Kafka is not reachable.
    #[error(transparent)]
    Topics(#[from] admin::Error),
    /// Kafka.
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// Redis cannot be reached at the start, or is not fit.
    #[error(transparent)]
    Store(#[from] crate::adapters::redis::Error),
    /// A file that the configuration names.
    #[error(transparent)]
    Wire(#[from] crate::app::wire::Error),
    /// Redis, later.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Files and processes.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Evidence that cannot be read.
    #[error("the evidence cannot be read: {0}")]
    Evidence(String),
    /// A topic was not read to its end.
    #[error("{topic}: {found} of {wanted} records could be read")]
    Unread {
        /// Its name.
        topic: String,
        /// Records read.
        found: usize,
        /// Records there.
        wanted: usize,
    },
    /// A topic is left.
    #[error("topic {topic} could not be deleted: {code}")]
    NotDeleted {
        /// Its name.
        topic: String,
        /// The broker's word.
        code: RDKafkaErrorCode,
    },
    /// A worker did not start, or ended by itself.
    #[error("{0}")]
    Worker(String),
    /// By a signal.
    #[error("interrupted; nothing was proved")]
    Interrupted,
}

impl Error {
    /// The process's exit code: 64 options, 69 not reachable, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Options(_) => 64,
            Error::Wire(error) => error.exit_code(),
            Error::Topics(error) => error.exit_code(),
            Error::Store(error) => error.exit_code(),
            Error::Redis(error) if error.is_io_error() => 69,
            _ => 1,
        }
    }
}

/// How far a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Since the first event.
    pub at: Duration,
    /// Events that will be sent.
    pub events: u64,
    /// Events acknowledged.
    pub acknowledged: u64,
    /// Faults that have struck.
    pub struck: usize,
    /// Faults planned.
    pub faults: usize,
    /// Records of all topics that the groups have not finished, as far as it was looked at.
    pub open: Option<i64>,
}

/// Somebody who watches.
pub trait Watch {
    /// Something that happened, a line or several.
    fn say(&mut self, line: &str);
    /// How far it is now.
    fn progress(&mut self, progress: Progress);
    /// What all rounds so far came to.
    fn round_is_over(&mut self, so_far: &Report);
}

/// Runs to the end and judges. Blocks its thread; needs the runtime's handle for the proxy and the admin client.
///
/// # Errors
/// When there is no verdict; whatever was begun is cleaned up then, too.
pub fn run(
    options: &Options,
    runtime: &tokio::runtime::Handle,
    watch: &mut dyn Watch,
    stop: &AtomicBool,
) -> Result<Report, Error> {
    let begun = Instant::now();
    let mut report: Option<Report> = None;
    for number in 0.. {
        let seed = options.seed.wrapping_add(number);
        if let Some(duration) = options.duration {
            let (over, all) = (coarse(begun.elapsed()), coarse(duration));
            watch.say(&format!("round {}, seed {seed}; {over} of {all} are over", number + 1));
        }
        let round = round::conduct(options, seed, runtime, watch, stop);
        let so_far = match (round, report.take()) {
            // What earlier rounds proved stands.
            (Err(Error::Interrupted), Some(report)) => return Ok(report),
            (round, None) => round?,
            (round, Some(mut report)) => {
                report.add(round?);
                report
            }
        };
        if options.duration.is_none_or(|duration| begun.elapsed() >= duration) || !so_far.is_proved() {
            return Ok(so_far);
        }
        watch.round_is_over(&so_far);
        report = Some(so_far);
    }
    Err(Error::Interrupted)
}

pub(crate) fn now_us() -> u64 {
    SystemClock.now().wall.as_micros()
}
