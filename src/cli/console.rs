//! `pipeline console`: serves the web console until a signal.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};

use crate::admin::console::{self, Console};
use crate::config::{Config, LogFormat};
use crate::telemetry::logs;

/// Where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConsoleArgs {
    /// Address, instead of console.listen; one that is not on loopback needs console.token
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// Say where it is as JSON: `{"url"}`
    #[arg(long)]
    json: bool,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot start.
    #[error(transparent)]
    Start(#[from] console::Error),
    /// The server or the output.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// The process's exit code for this error: 64 flags or configuration, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Start(error) => error.exit_code(),
            Error::Io(_) => 1,
        }
    }
}

/// Serves until SIGINT or SIGTERM; jobs end their transaction then. A second signal ends the process at once.
///
/// # Errors
/// When the address cannot be used, or a pipeline cannot be built.
pub(crate) async fn run(args: &ConsoleArgs, config: &Config) -> Result<(), Error> {
    logs::init(
        match config.telemetry.log_format {
            LogFormat::Text => logs::Format::Text,
            LogFormat::Json => logs::Format::Json,
        },
        None,
    );
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let console = Console::bind(config).await?;
    let mut out = std::io::stdout().lock();
    let url = format!("http://{}/", console.address());
    if args.json {
        writeln!(out, "{}", serde_json::json!({ "url": url }))?;
    } else {
        writeln!(out, "console: {url}")?;
    }
    out.flush()?;
    drop(out);
    let shutdown = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(1);
        });
    };
    console.serve(shutdown).await?;
    Ok(())
}
