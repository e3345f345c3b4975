//! `pipeline demo`: the whole ladder in one process, without a server: an embedded broker, deduplication in memory, the
//! `simulate` handler. Flags and the course of a run are here; `setup` builds the ladder, `feed` produces, `recorder`
//! is the handler's own record, `screen` shows what happens, `summary` adds up.
//!
//! Invariants: the summary never takes the engine's word: what is done comes from the handler's own record, what is
//! dead from reading the DLQ back. Standard output carries the summary alone (with `--json` one object), all else goes
//! to standard error.

mod feed;
mod recorder;
mod screen;
mod setup;
mod summary;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::engine::RunningStage;
use crate::handlers::simulate::SimulateOptions;

use feed::Feed;
use screen::{LogLines, Screen, View};
use setup::Demo;
use summary::Summary;

/// Nothing has moved for so long: something is wrong, and waiting longer would not help.
const STANDSTILL: Duration = Duration::from_secs(30);
/// How often the numbers are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Run the whole ladder here and now: no Kafka, no Redis, no configuration needed
///
/// Starts a Kafka broker inside this process, a ladder main → retry-1 (1 s) → retry-2 (2 s) → retry-3 (4 s) → DLQ with
/// deduplication in memory, and a handler that fails by a seeded rule; produces sample orders; shows the ladder live;
/// and ends with a summary that adds up: done by the handler's own record, dead-lettered by reading the DLQ back.
///
/// Any Kafka client can join in at the address it prints. Nothing of it is durable: all is gone when the demo ends.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline demo
  pipeline demo --events 5000 --fail-ratio 0.5
  pipeline demo --keep               leave the broker up afterwards, to look around with kcat
  pipeline demo --json | jq .lost

Exit codes: 0 the numbers add up (or ended by Ctrl-C), 64 bad flags or more events than fit, 1 anything else")]
pub(crate) struct DemoArgs {
    /// How many events
    #[arg(long, value_name = "N", default_value_t = 1_000, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Share of the events that fail at first, 0 to 1; of these 5 % fail for good at once and 10 % at every attempt,
    /// the others recover after 1 to 3 failures
    #[arg(long, value_name = "R", default_value_t = 0.2, value_parser = super::values::share, allow_negative_numbers = true)]
    fail_ratio: f64,
    /// Same seed, same orders and same failures
    #[arg(long, value_name = "S", default_value_t = 1, allow_negative_numbers = true)]
    seed: u64,
    /// Keep the broker up after the summary, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// End with one JSON object on standard output; all else goes to standard error
    #[arg(long)]
    json: bool,
    /// Not for the demo; here so that its help does not offer it
    #[arg(long, hide = true)]
    config: Option<std::path::PathBuf>,
    /// The same
    #[arg(long, hide = true)]
    brokers: Option<String>,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("--events {asked} is more than the embedded broker holds: at most {most}, because it keeps 5 MiB per partition and would silently drop the oldest records beyond", most = setup::MAX_EVENTS)]
    TooMany { asked: u64 },
    #[error("--{}", .0.to_string().replacen('_', "-", 1))]
    Handler(#[source] crate::handlers::simulate::Error),
    #[error("the demo could not go on: {0}")]
    Failed(#[from] anyhow::Error),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Error::TooMany { .. } | Error::Handler(_) => super::config::EXIT_CONFIG,
            Error::Failed(_) => 1,
        }
    }
}

/// Runs the demo to its end or to a signal; `configured`: `--config` or `--brokers` was given before its name.
#[allow(clippy::print_stderr, reason = "the command line talks to a person")]
pub(crate) async fn run(args: DemoArgs, configured: bool) -> ExitCode {
    if configured || args.config.is_some() || args.brokers.is_some() {
        eprintln!("pipeline: the demo brings its own broker and pipeline; --config and --brokers are not used");
    }
    match demo(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => super::fail(&error.to_string(), error.exit_code()),
    }
}

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Finished,
    Interrupted,
    Standstill,
}

/// Whether the numbers add up.
async fn demo(args: &DemoArgs) -> Result<bool, Error> {
    if args.events > setup::MAX_EVENTS {
        return Err(Error::TooMany { asked: args.events });
    }
    let options = SimulateOptions { seed: args.seed, fail_ratio: args.fail_ratio, ..setup::handler_options() };
    if let Some(fault) = options.faults().into_iter().next() {
        return Err(Error::Handler(fault));
    }
    let mut signals = Signals::new()?;
    let logs = LogLines::start();
    let mut demo = setup::start(options)?;
    let mut screen = Screen::new(logs, args.events);
    screen.print(&intro(args, &demo));
    let mut feed = Feed::start(&demo, args.events, args.seed)?;
    let end = watch(&demo, &feed, &mut screen, &mut signals).await;
    feed.stop(&demo).await;
    if end == End::Interrupted {
        screen.print("interrupted: what runs is waited for; a second signal ends the process at once");
    }
    let second = tokio::spawn(async move {
        signals.recv().await;
        std::process::exit(1);
    });
    stop(&mut demo.stages).await?;
    second.abort();
    screen.end(&View::of(&demo.stages, feed.acknowledged()));

    let summary = Summary::take(&demo, &feed, end).await?;
    let problems = summary.problems(args.events, end);
    tell(args, &summary, &problems);
    if args.keep && end == End::Finished {
        let mut signals = Signals::new()?;
        screen.print(&format!("the broker stays up at {} until Ctrl-C", demo.broker.address()));
        signals.recv().await;
    }
    Ok(problems.is_empty())
}

fn intro(args: &DemoArgs, demo: &Demo) -> String {
    let (address, dlq) = (demo.broker.address(), &demo.ladder.dlq().topic);
    let percent = format!("{:.1}", args.fail_ratio * 100.0);
    format!(
        "Retry Ladder demo: {} sample orders, about {} % fail at first (seed {}).\n\
         Nothing here is durable: broker and deduplication end with this process.\n\
         \n\
         The embedded broker listens on {address}. Any Kafka client can join in:\n\
         \x20 kcat -b {address} -C -t {dlq} -f '%k %h\\n'\n\
         \n\
         waiting = not due yet            retried = moved to the next stage\n\
         overdue = due and not started    dead    = moved to the DLQ\n",
        screen::grouped(args.events),
        percent.strip_suffix(".0").unwrap_or(&percent),
        args.seed,
    )
}

/// Shows the ladder until every event has ended, nothing moves any more, or a signal comes.
async fn watch(demo: &Demo, feed: &Feed, screen: &mut Screen, signals: &mut Signals) -> End {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut moved = (0, Instant::now());
    loop {
        tokio::select! {
            () = signals.recv() => return End::Interrupted,
            _ = ticks.tick() => {}
        }
        let view = View::of(&demo.stages, feed.acknowledged());
        screen.show(&view);
        if feed.ended() && view.finished() >= view.produced {
            return End::Finished;
        }
        if view.moves() != moved.0 {
            moved = (view.moves(), Instant::now());
        } else if moved.1.elapsed() >= STANDSTILL {
            return End::Standstill;
        }
    }
}

async fn stop(stages: &mut [RunningStage]) -> Result<(), Error> {
    stages.iter().for_each(RunningStage::stop);
    for stage in stages {
        stage.ended().await.map_err(anyhow::Error::from)?;
    }
    Ok(())
}

fn tell(args: &DemoArgs, summary: &Summary, problems: &[String]) {
    // A reader that has gone away is no fault of the ladder.
    let mut out = std::io::stdout();
    if args.json {
        drop(write!(std::io::stderr(), "{}", summary.text(problems)));
        drop(writeln!(out, "{}", summary.json()));
    } else {
        drop(write!(out, "{}", summary.text(problems)));
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|e| Error::Failed(anyhow::anyhow!("cannot listen for signals: {e}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
