//! The `pipeline` command line: one file per command, each thin over the modules below. Only this module prints.

mod about;
mod config;
mod console;
mod demo;
mod dlq;
mod forget;
pub mod pause;
mod plain;
pub mod produce;
mod progress;
mod prove;
mod run;
pub mod status;
pub mod topics;
mod trace;
mod values;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use clap::{CommandFactory, Parser, Subcommand};

use crate::adapters::kafka::admin::Admin;
use crate::adapters::kafka::admin::plan::known_topics;
use crate::adapters::otel::OtelTracer;
use crate::app::wire;
use crate::config::{Config, DEFAULT_FILE, Sources, load};
use crate::prove::worker;
use crate::stage::ports::Tracer;
use crate::telemetry::logs;

/// Non-blocking retries for Kafka: main → retry-1 … retry-N → DLQ.
///
/// Without a command it runs stages until SIGINT or SIGTERM, then drains.
#[derive(Parser, Debug)]
#[command(
    name = "pipeline",
    version = VERSION.get().map_or(env!("CARGO_PKG_VERSION"), String::as_str),
    after_help = "Examples:\n  pipeline --stage retry-2            run one stage, in any number of processes\n  pipeline demo                       \
                  the whole ladder in one process, no server needed\n  pipeline config check               what the configuration says\n\n\
                  Exit codes: 0 fine, 64 bad flags or configuration, 69 Kafka, Redis or a handler's database not reachable, or\n\
                  topics missing, 70 fenced by another process with the same `instance`, 1 anything else"
)]
struct Cli {
    /// Configuration file; without one ./topics.yaml
    #[arg(long, global = true, value_name = "F")]
    config: Option<PathBuf>,
    /// Kafka brokers, instead of the configured
    #[arg(long, global = true, value_name = "HOST:PORT")]
    brokers: Option<String>,
    #[command(flatten)]
    run: run::RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Enough of a configuration where none is needed.
const NO_PIPELINE: &str = "pipelines: { none: { topic: none, message: shop.v1.OrderPlaced, handler: { log: {} } } }";

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::DemoArgs),
    /// Check or show the configuration
    #[command(after_help = "Example:\n  pipeline config check")]
    Config(config::ConfigArgs),
    /// Create, check or list the topics of the configured pipelines
    #[command(after_help = "Example:\n  pipeline topics create")]
    Topics(topics::TopicsArgs),
    /// Publish events to a pipeline's main topic, generated ones or from JSON lines
    #[command(
        after_help = "Example:\n  pipeline produce --pipeline orders --count 1000 --rate 100 --key-field customer_id"
    )]
    Produce(produce::ProduceArgs),
    /// Stop the dispatch of a stage in every instance, until `resume`
    ///
    /// Nothing is started any more; what runs is finished, what waits stays where it is and is charged no attempt. Kept in
    /// the pipeline's control topic, so that restarts follow it, too. Instances follow within 2 seconds.
    #[command(
        after_help = "Example:\n  pipeline pause --stage main --pipeline orders --reason 'billing is being migrated'"
    )]
    Pause(pause::PauseArgs),
    /// Let a paused stage go on; also releases the pipeline's brake, and lets its breaker probe at once
    #[command(after_help = "Example:\n  pipeline resume --stage all")]
    Resume(pause::PauseArgs),
    /// What waits, what is overdue and how far the groups lag, seen from outside: from Kafka alone
    ///
    /// Numbers with a `~` are estimates from the log: exact while dues rise with offsets and every offset holds an event.
    #[command(after_help = "Example:\n  pipeline status --watch")]
    Status(status::StatusArgs),
    /// One event's way through the ladder as a tree of spans, from Jaeger: what ran, waited and was sent, when, and why
    #[command(after_help = "Example:\n  pipeline trace 0198c0de-7a3c-7000-8000-000000000001")]
    Trace(trace::TraceArgs),
    Dlq(dlq::DlqArgs),
    Forget(forget::ForgetArgs),
    /// The ladder and its dead letters in a browser
    ///
    /// Serves pages on loopback (console.listen) until a signal; on any other address with a token (console.token) only.
    #[command(after_help = "Example:\n  pipeline console --listen 127.0.0.1:9490")]
    Console(console::ConsoleArgs),
    Prove(prove::ProveArgs),
    /// Print what makes a shell complete this command's names and flags
    #[command(
        after_help = "Example:\n  pipeline completions bash > ~/.local/share/bash-completion/completions/pipeline"
    )]
    Completions(about::CompletionsArgs),
    /// Print the manual page, or write one for each command
    #[command(after_help = "Examples:\n  pipeline man | man -l -\n  pipeline man --out /usr/local/share/man/man1")]
    Man(about::ManArgs),
    /// A worker process of `prove`
    #[command(hide = true)]
    ProveWorker {
        /// What it is to do
        orders: PathBuf,
    },
}

/// `--config` and `--brokers` as given, for remedies: a command to paste must mean the same file and cluster.
static GIVEN: OnceLock<String> = OnceLock::new();

/// Notes what was given.
fn note_given(config: Option<&Path>, brokers: Option<&str>) {
    let quoted = |text: &str| {
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:,@+=~".contains(c)) && !text.is_empty();
        if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    let config = config.map(|file| format!(" --config {}", quoted(&file.display().to_string())));
    let brokers = brokers.map(|brokers| format!(" --brokers {}", quoted(brokers)));
    // Set once: there is one command line.
    drop(GIVEN.set(config.into_iter().chain(brokers).collect()));
}

/// The text with its commands as this user has to call them.
fn as_given(text: &str) -> String {
    let given = GIVEN.get().map_or("", String::as_str);
    with_flags(text, given)
}

fn with_flags(text: &str, given: &str) -> String {
    ["scripts/create-topics.sh", "`pipeline"]
        .iter()
        .fold(text.to_owned(), |text, command| text.replace(command, &format!("{command}{given}")))
}

/// What `--version` says.
static VERSION: OnceLock<String> = OnceLock::new();

pub use about::head;

/// Runs the command line and returns its exit code. `commit` is what the binary was built from.
pub fn main(commit: &str) -> ExitCode {
    drop(VERSION.set(about::version(commit)));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if cli.command.is_some() && !cli.run.is_empty() {
        let conflict = "--stage and --pipeline before a command: they belong to the call without one";
        return usage(&Cli::command().error(clap::error::ErrorKind::ArgumentConflict, conflict));
    }
    if let Some(Command::Demo(args)) = cli.command {
        return block_on(demo::run(args, cli.config.is_some() || cli.brokers.is_some()));
    }
    let written = match &cli.command {
        Some(Command::Completions(args)) => Some(about::completions(args, &Cli::command(), &mut std::io::stdout())),
        Some(Command::Man(args)) => Some(about::man(args, Cli::command(), &mut std::io::stdout())),
        _ => None,
    };
    if let Some(written) = written {
        return written.map_or_else(|error| fail(&error.to_string(), 1), |()| ExitCode::SUCCESS);
    }
    if let Some(Command::ProveWorker { orders }) = cli.command {
        logs::init(logs::Format::Text, None);
        return block_on(async move {
            match worker::run(&orders).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&format!("{error:#}"), 1),
            }
        });
    }
    note_given(cli.config.as_deref(), cli.brokers.as_deref());
    let is_proof = matches!(cli.command, Some(Command::Prove(_)));
    let sources = match &cli.config {
        // The proof brings its own pipeline and wants only to know where Kafka and Redis are.
        None if is_proof && !Path::new(DEFAULT_FILE).exists() => Sources::inline("prove", NO_PIPELINE),
        _ => Sources::new(cli.config),
    };
    let mut sources = sources.env(std::env::vars_os());
    if let Some(brokers) = cli.brokers {
        sources = sources.flag("--brokers", "kafka.brokers", brokers);
    }
    if let Some(Command::Prove(prove::ProveArgs { redis: Some(url), .. })) = &cli.command {
        sources = sources.flag("--redis", "redis.url", url);
    }
    if let Some(Command::Console(console::ConsoleArgs { listen: Some(listen), .. })) = &cli.command {
        sources = sources.flag("--listen", "console.listen", listen.clone());
    }
    if let Some(Command::Config(args)) = &cli.command {
        let code = config::run(args, &sources, &mut std::io::stdout(), &mut std::io::stderr());
        return code.unwrap_or(ExitCode::FAILURE);
    }
    let config = match load(&sources) {
        Ok(loaded) => loaded.config,
        Err(faults) => {
            let code = config::refuse(&faults, false, &mut std::io::stdout(), &mut std::io::stderr());
            return code.unwrap_or(ExitCode::FAILURE);
        }
    };
    block_on(async {
        match cli.command {
            None => run::run(cli.run, config).await,
            Some(Command::Topics(args)) => topics(&args, &config).await,
            Some(Command::Produce(args)) => produce(args, &config).await,
            Some(Command::Prove(args)) => prove::run(args, config).await,
            Some(
                Command::Config(_)
                | Command::Demo(_)
                | Command::Completions(_)
                | Command::Man(_)
                | Command::ProveWorker { .. },
            ) => ExitCode::SUCCESS, // dealt with above
            Some(Command::Pause(args)) => pause(&args, true, &config).await,
            Some(Command::Resume(args)) => pause(&args, false, &config).await,
            Some(Command::Status(args)) => match status::run(&args, &config).await {
                // At once: a look that is under way would hold the process for seconds.
                Ok(code) => std::process::exit(code.into()),
                Err(error) => fail(&error.to_string(), error.exit_code()),
            },
            Some(Command::Trace(args)) => {
                match trace::run(&args, &config, &mut plain::Plain(std::io::stdout())).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(trace::Error::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                        ExitCode::SUCCESS
                    }
                    Err(error) => fail(&error.to_string(), 1),
                }
            }
            Some(Command::Console(args)) => match console::run(&args, &config).await {
                // At once: whoever still watches is not waited for.
                Ok(()) => std::process::exit(0),
                Err(error) => fail(&error.to_string(), error.exit_code()),
            },
            Some(Command::Forget(args)) => match forget::run(&args, &config).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error.to_string(), error.exit_code()),
            },
            Some(Command::Dlq(args)) => match dlq::run(args, &config).await {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => fail(&error.to_string(), error.exit_code()),
            },
        }
    })
}

fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => fail(&format!("no runtime: {error}"), 1),
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { config::EXIT_CONFIG } else { 0 };
    if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE }
}

/// Tells on stderr why a command failed.
#[allow(clippy::print_stderr, reason = "the command line talks to a person")]
fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("pipeline: {}", plain::plain(&as_given(message)));
    ExitCode::from(code)
}

/// Tells on stderr what is no failure.
#[allow(clippy::print_stderr, reason = "the command line talks to a person")]
fn note(message: &str) {
    eprintln!("pipeline: {message}");
}

/// Asks on the terminal whether to go on, unless the answer was given beforehand; why not to.
#[allow(clippy::print_stderr, reason = "the command line talks to a person")]
fn confirm(yes: bool) -> Result<(), String> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err("standard input is no terminal to ask on; confirm with --yes".to_owned());
    }
    eprint!("Go on? [y/N] ");
    let mut answer = String::new();
    match std::io::stdin().read_line(&mut answer) {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err("not confirmed: nothing was done".to_owned()),
    }
}

async fn pause(args: &pause::PauseArgs, paused: bool, config: &Config) -> ExitCode {
    match pause::run(args, paused, config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), error.exit_code()),
    }
}

async fn topics(args: &topics::TopicsArgs, config: &Config) -> ExitCode {
    let pipelines: Vec<_> = config.pipelines.iter().map(wire::topics).collect();
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let (connection, timeout) = (wire::connection(config), config.kafka.startup_timeout);
    match topics::run(&args.command, connection, timeout, &pipelines, &mut out, &mut err).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error.to_string(), error.exit_code()),
    }
}

/// The pipeline that `--pipeline` names; without it the only one.
fn choose<'c>(config: &'c Config, name: Option<&str>) -> Result<&'c crate::config::Pipeline, String> {
    let configured = || config.pipelines.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, config.pipelines.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => Err(format!("--pipeline is missing; configured: {}", configured())),
        (Some(name), _) => config
            .pipeline(name)
            .ok_or_else(|| format!("--pipeline {name}: no such pipeline; configured: {}", configured())),
    }
}

async fn produce(mut args: produce::ProduceArgs, config: &Config) -> ExitCode {
    let pipeline = match choose(config, args.pipeline.as_deref()) {
        Ok(pipeline) => pipeline,
        Err(why) => return fail(&why, config::EXIT_CONFIG),
    };
    let decoder = match produce::schema::choose(&args, pipeline, config).await {
        Ok((decoder, id)) => {
            args.schema_id = id;
            decoder
        }
        Err(error) => return fail(&error.to_string(), error.exit_code()),
    };
    if args.create_topics {
        let all: Vec<_> = config.pipelines.iter().map(wire::topics).collect();
        let created = async {
            let admin = Admin::connect(wire::connection(config), config.kafka.startup_timeout).await?;
            let known = known_topics(&all);
            crate::adapters::kafka::admin::topics::create(&admin, &[wire::topics(pipeline)], &known, false).await
        };
        if let Err(error) = created.await {
            return fail(&error.to_string(), error.exit_code());
        }
    }
    let traces = match wire::traces(config, "retry-ladder-produce") {
        Ok(traces) => traces,
        Err(error) => return fail(&error.to_string(), config::EXIT_CONFIG),
    };
    let sampling = wire::sampling(config);
    let tracer = traces.as_ref().map(|traces| {
        let tracer = OtelTracer::new(traces.queue(), sampling, produce::CLIENT_ID);
        Arc::new(tracer) as Arc<dyn Tracer>
    });
    let properties = wire::properties(config);
    let target = produce::Target {
        brokers: properties.brokers,
        properties: properties.common.into_iter().chain(properties.producer).collect(),
        topic: pipeline.topic.clone(),
        decoder,
        startup_timeout: config.kafka.startup_timeout,
        sample_ratio: sampling.ratio,
        tracer,
    };
    let stop = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(1); // a second time: without waiting for acknowledgements
                }
            }
        }
    });
    let done = tokio::task::spawn_blocking(move || produce::execute(&args, target, stop)).await;
    if let Some(traces) = traces {
        let lost = traces.shutdown().await;
        if lost > 0 {
            note(&format!("{lost} spans were lost: the collector at telemetry.otlp_endpoint did not take them"));
        }
    }
    match done {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => fail(&error.to_string(), error.exit_code()),
        Err(error) => fail(&format!("produce panicked: {error}"), 1),
    }
}

#[cfg(test)]
mod tests;
