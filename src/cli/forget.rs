//! `pipeline forget`: removes a pipeline's deduplication records before a deliberate replay, once it has counted them
//! and asked. The work is [`redis::Store::forget`]'s.
//!
//! Standard output carries the answer alone; what was found, progress and the question go to standard error.

use std::io::{self, Write};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;

use super::progress::Meter;
use crate::adapters::redis::{self, Removal, Tally};
use crate::app::wire;
use crate::config::{Config, Pipeline, Store};
use crate::ladder::headers::CopyKeys;
use crate::stage::ports::StoreError;

/// Longest wait for one page: nothing waits for this command as handlers wait for a claim.
const PATIENCE: Duration = Duration::from_secs(30);

/// Remove deduplication records, so that events that were finished are executed again when they are read again
///
/// Of all stages. Stop the pipeline first: what is in progress stays, and an event whose offset is not committed yet would
/// run twice. Then forget, and have the events read again: reset the group's offsets, or produce them once more.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline forget --pipeline orders --dry-run             how many records there are
  pipeline forget --pipeline orders --event-id order-7    those of one event
  pipeline forget --pipeline orders --yes --json          without asking, for scripts")]
pub(crate) struct ForgetArgs {
    /// The pipeline whose records are meant; may be left out when the file has only one
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// Only those of this event (`x-ladder-event-id`)
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    event_id: Option<String>,
    /// Remove those in progress, too
    ///
    /// Dangerous while the pipeline runs: an execution that has lost its record goes on until its next renewal (a third of
    /// the lease), and a second one can start beside it. Hardly ever needed: what a dead process left ends by itself within
    /// the lease.
    #[arg(long)]
    in_progress: bool,
    /// Count only
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why nothing, or not everything, was forgotten.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A flag that cannot be used, a pipeline without records in Redis, or no consent.
    #[error("{0}")]
    Usage(String),
    /// The ladder.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// Redis cannot be used.
    #[error(transparent)]
    Redis(#[from] redis::Error),
    /// Redis was lost, or refused.
    #[error("{source}; {removed} records were removed by then, the same command removes the others")]
    Lost {
        /// What happened.
        source: StoreError,
        /// Removed so far.
        removed: u64,
    },
    /// The output.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// The process's exit code for this error: 64 flags, configuration or no consent, 69 not reachable, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 64,
            Error::Wire(error) => error.exit_code(),
            Error::Redis(error) => error.exit_code(),
            Error::Lost { .. } | Error::Output(_) => 1,
        }
    }
}

/// What was found, and what of it was removed.
#[derive(Serialize)]
struct Answer<'a> {
    pipeline: &'a str,
    event_id: Option<&'a str>,
    dry_run: bool,
    found: Tally,
    removed: Tally,
}

/// Runs the command.
///
/// # Errors
/// When the pipeline keeps no records in Redis, Redis does not answer, or nobody consents.
pub(crate) async fn run(args: &ForgetArgs, config: &Config) -> Result<(), Error> {
    let pipeline = super::choose(config, args.pipeline.as_deref()).map_err(Error::Usage)?;
    let name = pipeline.name.as_str();
    let without = match pipeline.idempotency.store {
        Store::Redis => None,
        Store::Memory => Some("memory: its records are in the processes that run its stages, and end with them"),
        Store::Off => Some("off: it keeps no records"),
    };
    if let Some(store) = without {
        let why =
            format!("pipelines.{name}.idempotency.store is {store}; only with redis there is something to forget");
        return Err(Error::Usage(why));
    }
    let prefix = CopyKeys::new(&config.redis.prefix, &wire::ladder(pipeline)?).prefix(args.event_id.as_deref());
    let options = redis::Options { response_timeout: PATIENCE, ..wire::redis_options(config)? };
    let redis = wire::redis(config, options).await?;
    let removal = if args.in_progress { Removal::All } else { Removal::Ended };

    let found = walk(&redis, &prefix, Removal::Nothing).await?;
    let of = args.event_id.as_ref().map(|id| format!(", event {id}")).unwrap_or_default();
    let summary = format!("{name}{of}: {} ({prefix}* at {})", told(found), redis.url());
    let mut out = io::stdout();
    if args.dry_run && !args.json {
        writeln!(out, "{summary}")?;
    } else {
        super::note(&summary);
    }
    if found.in_progress > 0 {
        super::note(&in_progress(pipeline, args.in_progress));
    }
    let mut removed = Tally::default();
    if !args.dry_run && removal.of(found).total() > 0 {
        super::confirm(args.yes).map_err(Error::Usage)?;
        removed = removal.of(walk(&redis, &prefix, removal).await?);
    }
    let answer = Answer { pipeline: name, event_id: args.event_id.as_deref(), dry_run: args.dry_run, found, removed };
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&answer).map_err(io::Error::from)?)?;
    } else if !args.dry_run {
        writeln!(out, "{name}{of}: removed {}", told(removed))?;
    }
    Ok(())
}

/// One pass over the records, with its progress.
async fn walk(redis: &redis::Store, prefix: &str, removal: Removal) -> Result<Tally, Error> {
    let mut meter = Meter::new("keys looked at");
    let mut removed = 0;
    let walked = redis.forget(prefix, removal, |progress| {
        removed = removal.of(progress.found).total();
        meter.tell(progress.looked_at, progress.of, "");
    });
    let walked = walked.await;
    meter.end();
    walked.map_err(|source| Error::Lost { source, removed })
}

fn told(tally: Tally) -> String {
    let Tally { in_progress, done, moved_on, other } = tally;
    let records = if tally.total() == 1 { "record" } else { "records" };
    let other = if other > 0 { format!(", {other} that no instance wrote") } else { String::new() };
    format!("{} {records}: {done} done, {moved_on} moved on, {in_progress} in progress{other}", tally.total())
}

fn in_progress(pipeline: &Pipeline, removed: bool) -> String {
    let lease = crate::telemetry::duration::show(pipeline.idempotency.lease);
    if removed {
        return "records in progress are among them: where the pipeline runs, a second execution may start beside the \
                first"
            .to_owned();
    }
    format!(
        "what is in progress stays: its execution may be running, and without the record a second one could start \
         beside it. Stop the pipeline; what a dead process left ends by itself within {lease}"
    )
}
