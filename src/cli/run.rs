//! `pipeline --stage …`: runs stages until a signal.

use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::monitor::Monitor;
use crate::admin::server::{Listener, Server};
use crate::app::engine::RunningStage;
use crate::app::{Builder, StageName, wire};
use crate::config::{Config, LogFormat};
use crate::telemetry::handler_spans::HandlerSpans;
use crate::telemetry::logs;

/// Which stages to run.
#[derive(Args, Debug, Default, PartialEq)]
pub(crate) struct RunArgs {
    /// Run this stage: main, retry-1 …, dlq or all (repeatable; default: all)
    #[arg(long = "stage", value_name = "STAGE", value_parser = StageName::from_str)]
    stages: Vec<StageName>,
    /// Only this pipeline (repeatable; default: all)
    #[arg(long = "pipeline", value_name = "NAME")]
    pipelines: Vec<String>,
}

impl RunArgs {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The lowest index of the stages to be run, 0 when all are: what the default port of the admin server goes by.
    fn lowest_stage(&self, config: &Config) -> usize {
        let index = |stage: &StageName| match stage {
            StageName::All | StageName::Orphan(_) => Some(0),
            StageName::Named(name) => {
                config.pipelines.iter().filter_map(|p| p.stages().iter().position(|(stage, _)| stage == name)).max()
            }
        };
        self.stages.iter().filter_map(index).min().unwrap_or(0)
    }
}

/// Runs until SIGINT or SIGTERM, then drains. A second signal ends the process at once.
pub(crate) async fn run(args: RunArgs, config: Config) -> ExitCode {
    let format = match config.telemetry.log_format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    let spans = HandlerSpans::default();
    logs::init(format, Some(&spans));
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "cannot listen for signals, so nothing was started: it could not be stopped cleanly");
            return ExitCode::FAILURE;
        }
    };
    let listener = match Listener::bind(config.admin.listen.as_deref(), args.lowest_stage(&config)).await {
        Ok(listener) => listener,
        Err(error) => return refuse(&error.to_string(), 1),
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let max_poll = config.kafka.max_poll_interval.max(config.kafka.session_timeout);
    let mut admin = Server::start(listener, max_poll, config.instance.clone());
    let properties = wire::properties(&config);
    let start = Builder::new(config).stages(args.stages).pipelines(args.pipelines).handler_spans(&spans).start();
    let app = tokio::select! {
        started = start => match started {
            Ok(app) => app,
            Err(error) => return refuse(&error.to_string(), error.exit_code()),
        },
        _ = interrupt.recv() => return ExitCode::SUCCESS,
        _ = terminate.recv() => return ExitCode::SUCCESS,
    };
    let stages = app.stages().iter().map(RunningStage::view).collect();
    admin.watch(Monitor::new(stages, &properties).spans(app.span_counts()));
    let shutdown = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        admin.draining();
        tracing::info!("draining; a second signal ends the process at once");
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::warn!("second signal: what was running runs again after its lease");
            std::process::exit(1);
        });
    };
    match app.run_until(shutdown).await {
        Ok(()) => {
            tracing::info!("drained");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error.to_string(), error.exit_code()),
    }
}

/// Told on stderr in full, whatever the log filter says.
#[allow(clippy::print_stderr, reason = "the command line talks to a person")]
fn refuse(message: &str, code: u8) -> ExitCode {
    eprintln!("pipeline: {}", super::as_given(message));
    ExitCode::from(code)
}
