//! `pipeline status`: every stage of the configured pipelines as Kafka alone shows it, whether it runs or not.
//!
//! [`Outside`] looks, `table` writes it for a person; here it is printed and repeated. With `--watch` it goes on
//! whatever Kafka does, until SIGINT or SIGTERM: on a terminal in place, on its alternate screen, which is left as it
//! was found; elsewhere one look after the other.

mod table;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};

use crate::adapters::kafka::admin::{self, Admin};
use crate::admin::outside;
use crate::app::wire;
use crate::cli::plain::plain;
use crate::config::Config;
use crate::stage::clock::{Clock, SystemClock};
use crate::telemetry::duration;

pub use crate::admin::outside::{Outside, PipelineStatus, StageLook, StageStatus, Status, Unseen};
pub use table::table;

/// How often `--watch` looks again.
const EVERY: Duration = Duration::from_secs(2);
/// After this time of silence a person is told that Kafka is waited for.
const SILENCE: Duration = Duration::from_secs(2);

/// What of, and how.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct StatusArgs {
    /// Only this pipeline (repeatable); default: all
    #[arg(long = "pipeline", value_name = "NAME")]
    pub pipelines: Vec<String>,
    /// Look again every 2 seconds until interrupted: a table in place on a terminal, else one after the other
    #[arg(long)]
    pub watch: bool,
    /// Print JSON; with --watch one object a line
    #[arg(long)]
    pub json: bool,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Looking.
    #[error(transparent)]
    Look(#[from] outside::Error),
    /// The output.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

impl From<admin::Error> for Error {
    fn from(error: admin::Error) -> Self {
        Error::Look(error.into())
    }
}

impl Error {
    /// The process's exit code for this error: 64 flags or configuration, 69 not reachable, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Look(e) => e.exit_code(),
            Error::Output(_) => 1,
        }
    }
}

/// Runs the command and returns the process's exit code: 0 fine (a signal that ends `--watch` included), 69 a topic is
/// missing, 1 a stage could not be looked at.
///
/// # Errors
/// When Kafka does not answer within the start-up time, or the output cannot be written.
pub(crate) async fn run(args: &StatusArgs, config: &Config) -> Result<u8, Error> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let in_place = args.watch && !args.json && io::stdout().is_terminal();
    let mut screen = None;
    let looks = async {
        let mut outside = Outside::new(config, &args.pipelines)?;
        connect(config).await?;
        if in_place {
            screen = Some(Screen::open()?);
        }
        loop {
            let status = outside.look().await?;
            let text = text(args, &status)?;
            match &mut screen {
                Some(screen) => screen.show(&text)?,
                None => print(&text)?,
            }
            if !args.watch {
                return Ok(status.exit_code());
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let result = tokio::select! {
        result = looks => match result {
            // `pipeline status --watch | head`: whoever read has seen enough.
            Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            result => result,
        },
        _ = interrupt.recv() => Ok(if args.watch { 0 } else { 130 }),
        _ = terminate.recv() => Ok(if args.watch { 0 } else { 143 }),
    };
    if let Some(screen) = screen {
        screen.close()?;
    }
    result
}

async fn connect(config: &Config) -> Result<(), Error> {
    let timeout = config.kafka.startup_timeout;
    let connect = Admin::connect(wire::connection(config), timeout);
    tokio::pin!(connect);
    match tokio::time::timeout(SILENCE.min(timeout), &mut connect).await {
        Ok(connected) => connected?,
        Err(_) => {
            let brokers = &config.kafka.brokers;
            super::note(&format!("kafka at {brokers} does not answer yet; waiting up to {}", duration::show(timeout)));
            connect.await?
        }
    };
    Ok(())
}

fn text(args: &StatusArgs, status: &Status) -> Result<String, Error> {
    Ok(match (args.json, args.watch) {
        (true, true) => serde_json::to_string(status).map_err(io::Error::from)? + "\n",
        (true, false) => serde_json::to_string_pretty(status).map_err(io::Error::from)? + "\n",
        (false, true) => {
            let now = SystemClock.now().wall;
            let now = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(now.floor_millis()));
            format!(
                "{now}, every {}, Ctrl-C ends\n\n{}\n",
                duration::show(EVERY),
                super::as_given(&plain(&table(status)))
            )
        }
        (false, false) => super::as_given(&plain(&table(status))),
    })
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A terminal's alternate screen.
struct Screen {
    /// What stands there.
    text: String,
}

impl Screen {
    fn open() -> io::Result<Self> {
        // Alternate screen, no cursor, long lines cut and not wrapped.
        print("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J")?;
        Ok(Self { text: String::new() })
    }

    /// Each line over the old one, in one write: nothing flickers.
    fn show(&mut self, text: &str) -> io::Result<()> {
        print(&frame(text))?;
        text.clone_into(&mut self.text);
        Ok(())
    }

    /// Leaves the terminal as it was, with the last look on it.
    fn close(self) -> io::Result<()> {
        print(&format!("\x1b[?7h\x1b[?25h\x1b[?1049l{}", self.text.trim_end()))?;
        print("\n")
    }
}

/// Lines are placed by number, so that more of them than the screen has never scroll it.
fn frame(text: &str) -> String {
    let mut frame = String::new();
    for (i, line) in text.trim_end().lines().enumerate() {
        frame.push_str(&format!("\x1b[{};1H{line}\x1b[K", i + 1));
    }
    frame.push_str("\x1b[J");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_overwrites_line_by_line_and_never_clears_the_screen_or_scrolls_it() {
        assert_eq!(frame("a\n\nb\n"), "\x1b[1;1Ha\x1b[K\x1b[2;1H\x1b[K\x1b[3;1Hb\x1b[K\x1b[J");
    }

    #[test]
    fn a_look_is_one_line_of_json_while_watching() {
        let status = Status { pipelines: vec![] };
        let args = |watch| StatusArgs { watch, json: true, ..StatusArgs::default() };
        assert_eq!(text(&args(true), &status).unwrap(), "{\"pipelines\":[]}\n");
        assert_eq!(text(&args(false), &status).unwrap(), "{\n  \"pipelines\": []\n}\n");
    }
}
