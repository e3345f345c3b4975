//! `pipeline prove`: flags, progress, exit code; the run itself is [`crate::prove`].
//!
//! Standard output carries the report alone, all else goes to standard error.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::kafka::admin::Admin;
use crate::app::wire;
use crate::config::Config;
use crate::prove::{self, Error, Options, Progress, Watch, report::Report};

/// Prove that nothing is lost: run the ladder under kills, freezes and Redis outages, then count
///
/// Makes topics and keys of its own (removed at the end), starts worker processes of itself, produces events at a steady
/// rate while a seeded plan of faults strikes the workers and their way to Redis (a proxy; your Redis itself is not
/// touched), waits until everything has come to its end, reads every topic back with a plain consumer, and holds what
/// the handlers wrote down to ten invariants. Needs about 4 KB of memory per event.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline prove --brokers localhost:9092 --redis redis://localhost:6379/0
  pipeline prove --events 200000 --kills 30 --freezes 5 --redis-outages 3 --rate 1500 --report proof.json
  pipeline prove --seed 42                 the plan of an earlier run again
  pipeline prove --long --duration 8h      round after round

Exit codes: 0 the promise held, 64 bad flags, 69 Kafka or Redis not reachable,
1 it was broken, or the run was interrupted before a round was over")]
pub(crate) struct ProveArgs {
    /// Redis, instead of the configured
    #[arg(long, value_name = "URL")]
    pub(super) redis: Option<String>,
    /// How many events (of a round)
    #[arg(long, value_name = "N", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Processes killed (SIGKILL) and started again
    #[arg(long, value_name = "K", default_value_t = 6)]
    kills: usize,
    /// Processes stopped (SIGSTOP) for twice the lease, then woken: they must do nothing anew
    #[arg(long, value_name = "F", default_value_t = 2)]
    freezes: usize,
    /// Times that Redis cannot be reached: refused or black-holed, every second one longer than the lease
    #[arg(long, value_name = "O", default_value_t = 2)]
    redis_outages: usize,
    /// Same seed, same events and same plan; without one a random seed, which the report names
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Events a second
    #[arg(long, value_name = "R", default_value_t = 500.0, value_parser = super::values::rate)]
    rate: f64,
    /// Worker processes, at least 2
    #[arg(long, value_name = "W", default_value_t = 4)]
    workers: usize,
    /// Lease of a claim
    #[arg(long, value_name = "T", default_value = "5s", value_parser = super::values::duration)]
    lease: Duration,
    /// How long one execution takes at most
    #[arg(long, value_name = "T", default_value = "20ms", value_parser = super::values::duration)]
    latency: Duration,
    /// Also write the report as JSON to this file, with --long after each round
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the report as JSON, in place of the text
    #[arg(long)]
    json: bool,
    /// Leave topics, keys and the workers' files
    #[arg(long)]
    keep: bool,
    /// Round after round, each with topics of its own and the next seed, until --duration or a signal
    #[arg(long)]
    long: bool,
    /// How long --long goes on; the round that runs then is finished
    #[arg(long, value_name = "T", default_value = "4h", value_parser = super::values::duration, requires = "long")]
    duration: Duration,
}

impl ProveArgs {
    fn options(&self, config: &Config) -> Result<Options, Error> {
        let wrong = |what: &str| Err(Error::Options(what.to_owned()));
        if self.workers < 2 {
            return wrong("--workers: at least 2, so that somebody takes over");
        }
        if !(Duration::from_secs(3)..=Duration::from_secs(600)).contains(&self.lease) {
            return wrong("--lease: out of range; right would be 3s to 10m");
        }
        let Some(redis) = config.redis.url.one() else {
            return wrong(
                "--redis: the url of a standalone Redis; the configuration names a Redis Cluster, whose keys cannot be read as one",
            );
        };
        Ok(Options {
            brokers: config.kafka.brokers.clone(),
            properties: config.kafka.properties.reveal().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            redis: redis.reveal().to_owned(),
            events: self.events,
            rate: self.rate,
            workers: self.workers,
            kills: self.kills,
            freezes: self.freezes,
            outages: self.redis_outages,
            lease: self.lease,
            latency: self.latency,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000)),
            duration: self.long.then_some(self.duration),
            keep: self.keep,
            program: std::env::current_exe()?,
        })
    }
}

/// Runs the proof to its verdict.
pub(crate) async fn run(args: ProveArgs, config: Config) -> ExitCode {
    match prove(&args, &config).await {
        Ok(report) if report.is_proved() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => super::fail(&error.to_string(), error.exit_code()),
    }
}

async fn prove(args: &ProveArgs, config: &Config) -> Result<Report, Error> {
    let options = args.options(config)?;
    options.check()?;
    Admin::connect(wire::connection(config), config.kafka.startup_timeout).await?;
    wire::redis(config, wire::redis_options(config)?).await?;
    if let Some(file) = &args.report {
        // Found out now, not after the run; what an earlier run wrote stays until there is something to say.
        std::fs::File::options().create(true).append(true).open(file)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (stop, mut signals) = (Arc::clone(&stop), signal(kind)?);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        });
    }
    let runtime = tokio::runtime::Handle::current();
    let mut screen = Screen::new(args.report.clone());
    let run = tokio::task::spawn_blocking(move || prove::run(&options, &runtime, &mut screen, &stop));
    let report = run.await.map_err(|error| Error::Worker(format!("the run panicked: {error}")))??;
    if let Some(file) = &args.report {
        write_report(file, &report)?;
    }
    // A reader that has gone away is no fault of the ladder.
    let text = if args.json { format!("{}\n", report.json()) } else { report.text() };
    drop(write!(std::io::stdout(), "{text}"));
    Ok(report)
}

fn write_report(file: &Path, report: &Report) -> std::io::Result<()> {
    std::fs::write(file, format!("{:#}\n", report.json()))
}

/// On a terminal a bar with lines above it, else a line now and then.
struct Screen {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
    report: Option<PathBuf>,
}

impl Screen {
    fn new(report: Option<PathBuf>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{elapsed:>4} [{bar:40}] {msg}");
            ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, told: None, report }
    }
}

impl Watch for Screen {
    fn say(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    /// A run of hours has its report at any time, should it be its last.
    fn round_is_over(&mut self, so_far: &Report) {
        let written = self.report.as_ref().map_or(Ok(()), |file| write_report(file, so_far));
        let told = written.map_or_else(|error| format!("; the report cannot be written: {error}"), |()| String::new());
        self.say(&format!("so far: {}{told}", so_far.line()));
    }

    fn progress(&mut self, progress: Progress) {
        let Progress { at, events, acknowledged, struck, faults, open } = progress;
        let open = open.map_or_else(String::new, |open| format!(", {open} records on their way"));
        let text = format!("{acknowledged} of {events} events produced, {struck} of {faults} faults{open}");
        if let Some(bar) = &self.bar {
            bar.set_length(events);
            bar.set_position(acknowledged);
            bar.set_message(text);
        } else if self.told.is_none_or(|told| told.elapsed() > Duration::from_secs(5)) {
            self.told = Some(Instant::now());
            drop(writeln!(std::io::stderr(), "{:6.1} s  {text}", at.as_secs_f64()));
        }
    }
}
