//! The flags of `pipeline dlq`.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::Error;
use crate::admin::dlq::book::Fate;
use crate::admin::dlq::fingerprint::Fingerprint;
use crate::admin::dlq::order::{START, target, who};
use crate::admin::dlq::redrive::Order;
use crate::admin::dlq::select::{self, Selection};
use crate::ladder::rungs::Ladder;

/// Find, understand, send back and put aside what is on a pipeline's DLQ.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline dlq groups                                    what kinds of errors there are
  pipeline dlq list --class permanent --since 2h         the letters of the last two hours
  pipeline dlq show 3:1742                               one letter: value, headers, history
  pipeline dlq redrive --fingerprint 1f0c39a2b4d6 --rate 200
  pipeline dlq discard --event-id order-7 --reason 'cancelled by hand'")]
pub(crate) struct DlqArgs {
    /// The pipeline whose DLQ is meant; may be left out when the file has only one
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) pipeline: Option<String>,
    #[command(subcommand)]
    pub(super) action: Action,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Groups of like errors, with their counts
    ///
    /// Errors are alike when class and text are, numbers, ids and quotations aside.
    #[command(after_help = "Example:\n  pipeline dlq groups --since 1d")]
    Groups {
        #[command(flatten)]
        select: SelectArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The letters, one a line
    #[command(after_help = "Example:\n  pipeline dlq list --fingerprint 1f0c39a2b4d6 --limit 10")]
    List {
        #[command(flatten)]
        select: SelectArgs,
        /// Print JSON, one object a line, all that match
        #[arg(long)]
        json: bool,
    },
    /// One letter in full: value, headers, history
    #[command(after_help = "Examples:\n  pipeline dlq show 3:1742\n  pipeline dlq show order-7")]
    Show {
        /// PARTITION:OFFSET on the DLQ, or an event id (of several letters the last)
        #[arg(value_name = "LETTER")]
        letter: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The letters in full as JSON lines, to be looked at or corrected and redriven with `redrive --from`
    #[command(after_help = "Example:\n  pipeline dlq export --class permanent > letters.jsonl")]
    Export {
        #[command(flatten)]
        select: SelectArgs,
    },
    Redrive(RedriveArgs),
    Discard(DiscardArgs),
    /// The jobs that dealt with letters: who, when, what, how far
    #[command(after_help = "Example:\n  pipeline dlq jobs")]
    Jobs {
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
}

/// Which letters; flags given together narrow the choice.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct SelectArgs {
    /// Of this group of like errors, as `groups` prints it
    #[arg(long, value_name = "F")]
    fingerprint: Option<Fingerprint>,
    /// Of this class
    #[arg(long, value_name = "C", value_parser = ["transient", "permanent", "poison", "exhausted", "expired"])]
    class: Option<String>,
    /// Dead-lettered at or after: RFC 3339, Unix ms, or how long ago (`2h`)
    #[arg(long, value_name = "T")]
    since: Option<String>,
    /// Dead-lettered before
    #[arg(long, value_name = "T")]
    until: Option<String>,
    /// With this key
    #[arg(long, value_name = "K")]
    key: Option<String>,
    /// Of this event
    #[arg(long, value_name = "ID")]
    event_id: Option<String>,
    /// With this header (repeatable: all of them)
    #[arg(long = "header", value_name = "K=V", value_parser = select::header)]
    headers: Vec<(String, String)>,
    /// On this partition of the DLQ
    #[arg(long, value_name = "P")]
    partition: Option<i32>,
    /// At these offsets of the partition, both included
    #[arg(long, value_name = "A..B", value_parser = select::offsets, requires = "partition")]
    offsets: Option<RangeInclusive<i64>>,
    /// With this fate
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum State {
    Open,
    Redriven,
    Discarded,
}

impl SelectArgs {
    pub(super) fn selection(&self, now_ms: i64) -> Result<Selection, Error> {
        let instant = |flag: &str, text: &Option<String>| {
            let read = text.as_ref().map(|text| select::instant(text, now_ms)).transpose();
            read.map_err(|why| Error::Usage(format!("--{flag}: {why}")))
        };
        Ok(Selection {
            fingerprint: self.fingerprint,
            class: self.class.clone(),
            since_ms: instant("since", &self.since)?,
            until_ms: instant("until", &self.until)?,
            key: self.key.clone(),
            event_id: self.event_id.clone(),
            headers: self.headers.clone(),
            partition: self.partition,
            offsets: self.offsets.clone(),
            state: self.state.map(|state| match state {
                State::Open => Fate::Open,
                State::Redriven => Fate::Redriven,
                State::Discarded => Fate::Discarded,
            }),
            limit: self.limit,
        })
    }
}

/// What `redrive` and `discard` share.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct DealArgs {
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Stop a job that is at work on this DLQ
    #[arg(long)]
    take_over: bool,
    /// Print the job as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Send letters back into the ladder: each at most once, however often this is asked for
///
/// Without a selection all open letters. A killed redrive is gone on with by asking for the same again.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline dlq redrive --fingerprint 1f0c39a2b4d6 --dry-run
  pipeline dlq redrive --class exhausted --since 1d --rate 100 --stop-at 20% --yes
  pipeline dlq redrive --from corrected.jsonl")]
pub(super) struct RedriveArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Where to: `start` (the first retry stage, due now), the name of a retry stage, or `main` (other groups on the
    /// topic read it as a new event)
    #[arg(long, value_name = "STAGE", default_value = START)]
    to: String,
    /// At most so many a second
    #[arg(long, value_name = "N", value_parser = crate::cli::values::rate)]
    rate: Option<f64>,
    /// Stop when more than this share of the copies came back to the DLQ; `100%` never stops
    #[arg(long, value_name = "SHARE", default_value = "50%", value_parser = share)]
    stop_at: f64,
    /// Redrive the letters in this file (out of `export`) with the values that stand there
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<PathBuf>,
    /// Drop fields of corrected letters that the message's declaration does not have; they are kept otherwise
    #[arg(long, requires = "from")]
    drop_unknown: bool,
    #[command(flatten)]
    deal: DealArgs,
}

impl RedriveArgs {
    pub(super) fn order(&self, now_ms: i64, ladder: &Ladder) -> Result<(DealArgs, Order), Error> {
        let order = Order {
            selection: self.select.selection(now_ms)?,
            target: Some(target(&self.to, ladder).map_err(|why| Error::Usage(format!("--to {}: {why}", self.to)))?),
            to: Some(self.to.clone()),
            reason: None,
            rate: self.rate,
            stop_at: (self.stop_at < 1.0).then_some(self.stop_at),
            corrected: HashMap::new(),
            drop_unknown: self.drop_unknown,
            who: who(),
            take_over: self.deal.take_over,
        };
        Ok((self.deal.clone(), order))
    }
}

/// Put letters aside: they stay on the DLQ, marked as dealt with
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:\n  pipeline dlq discard --fingerprint 1f0c39a2b4d6 --reason 'test orders'")]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Why; kept with the job
    #[arg(long, value_name = "T")]
    reason: String,
    /// Discard every open letter; needed when nothing is selected
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    deal: DealArgs,
}

impl DiscardArgs {
    pub(super) fn order(&self, now_ms: i64) -> Result<(DealArgs, Order), Error> {
        let selection = self.select.selection(now_ms)?;
        if selection == Selection::default() && !self.all {
            return Err(Error::Usage("nothing is selected; discard every open letter with --all".to_owned()));
        }
        let order = Order {
            selection,
            reason: Some(self.reason.clone()),
            who: who(),
            take_over: self.deal.take_over,
            ..Order::default()
        };
        Ok((self.deal.clone(), order))
    }
}

/// `50%` or `0.5`.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim(), 100.0),
        None => (text.trim(), 1.0),
    };
    match number.parse::<f64>() {
        Ok(n) if (0.0..=unit).contains(&n) => Ok(n / unit),
        _ => Err(format!("`{text}` is no share: `50%` or `0.5`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_or_a_fraction() {
        assert_eq!([share("50%"), share("0.25"), share("100 %"), share("1")], [Ok(0.5), Ok(0.25), Ok(1.0), Ok(1.0)]);
        for wrong in ["50", "-1%", "x", "", "101%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
