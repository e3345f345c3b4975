//! `pipeline topics create|check|list`: arguments and output; the work is [`crate::adapters::kafka::admin::topics`]'s.
//!
//! Standard output carries one line per topic, or with `--json` one JSON value and nothing else; reasons, remedies
//! and topics of removed rungs that need attention go to standard error.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::adapters::kafka::admin::plan::{Kind, PipelineTopics, known_topics};
use crate::adapters::kafka::admin::topics::{self, Report, Row, State, TopicReport};
use crate::adapters::kafka::admin::{self, Admin, Connection, Orphan};
use crate::telemetry::duration;

/// Everything is as it should be.
const FINE: u8 = 0;
/// Something differs or is missing.
const DIFFERS: u8 = 1;

/// Create, check or list the topics of the configured pipelines.
#[derive(Clone, Debug, clap::Args)]
pub struct TopicsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TopicsCommand,
}

/// What to do with the topics.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum TopicsCommand {
    /// Create every topic that is missing, and compare the rest
    ///
    /// Prints one line per topic: created, ok, or "differs: what". Never deletes a topic and never alters one (except
    /// --add-partitions), so it is safe to repeat. Exit code 1 when something differs.
    #[command(after_help = "Example:\n  pipeline topics create --config topics.yaml --add-partitions")]
    Create {
        /// Which pipelines, and how to print.
        #[command(flatten)]
        common: CommonArgs,
        /// Raise retry topics that have fewer partitions than their main topic to its count
        #[arg(long)]
        add_partitions: bool,
    },
    /// Compare the topics with the configuration, change nothing
    ///
    /// Also lists topics that hold a backlog and are no rung any more. Exit code 1 when something is missing or differs.
    #[command(after_help = "Example:\n  pipeline topics check --pipeline orders")]
    Check {
        /// Which pipelines, and how to print.
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Show every topic with its partitions, retention, delay and number of messages
    #[command(after_help = "Example:\n  pipeline topics list --json")]
    List {
        /// Which pipelines, and how to print.
        #[command(flatten)]
        common: CommonArgs,
    },
}

/// What all three take.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CommonArgs {
    /// Only this pipeline (repeatable); default: all
    #[arg(long = "pipeline", value_name = "NAME")]
    pub pipelines: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why the command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// `--pipeline` names none of the file's.
    #[error("--pipeline {name}: no such pipeline; configured: {}", configured.join(", "))]
    UnknownPipeline {
        /// As given.
        name: String,
        /// Those that there are.
        configured: Vec<String>,
    },
    /// The output.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Admin(e) => e.exit_code(),
            Error::UnknownPipeline { .. } => 64,
            Error::Output(_) => 1,
        }
    }
}

/// Runs one of the commands and returns the process's exit code: 0 fine, 1 something differs or is missing.
///
/// # Errors
/// When the cluster cannot be reached within `timeout`, a pipeline is unknown, or the output is closed.
pub async fn run(
    command: &TopicsCommand,
    connection: Connection,
    timeout: Duration,
    pipelines: &[PipelineTopics],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<u8, Error> {
    let (TopicsCommand::Create { common, .. } | TopicsCommand::Check { common } | TopicsCommand::List { common }) =
        command;
    let chosen = choose(pipelines, &common.pipelines)?;
    // Of all pipelines: a topic of one that was not chosen is no orphan.
    let known = known_topics(pipelines);
    let admin = Admin::connect(connection, timeout).await?;
    match command {
        TopicsCommand::Create { add_partitions, .. } => {
            let report = topics::create(&admin, &chosen, &known, *add_partitions).await?;
            print_report(&report, admin.brokers(), common.json, out, err)
        }
        TopicsCommand::Check { .. } => {
            let report = topics::check(&admin, &chosen, &known).await?;
            print_report(&report, admin.brokers(), common.json, out, err)
        }
        TopicsCommand::List { .. } => {
            let (rows, orphans) = topics::list(&admin, &chosen, &known).await?;
            if common.json {
                list_json(&rows, &orphans, out)?
            } else {
                list_table(&rows, &orphans, out)?
            }
            Ok(FINE)
        }
    }
}

fn choose(pipelines: &[PipelineTopics], names: &[String]) -> Result<Vec<PipelineTopics>, Error> {
    for name in names {
        if !pipelines.iter().any(|p| p.pipeline == *name) {
            let configured = pipelines.iter().map(|p| p.pipeline.clone()).collect();
            return Err(Error::UnknownPipeline { name: name.clone(), configured });
        }
    }
    let chosen = |p: &&PipelineTopics| names.is_empty() || names.contains(&p.pipeline);
    Ok(pipelines.iter().filter(chosen).cloned().collect())
}

fn print_report(
    report: &Report,
    brokers: &str,
    as_json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<u8, Error> {
    if as_json {
        let topics: Vec<Value> = report.topics.iter().map(|topic| topic_json(topic, brokers)).collect();
        let orphans: Vec<Value> = report.orphans.iter().map(orphan_json).collect();
        writeln!(out, "{:#}", json!({ "topics": topics, "orphans": orphans }))?;
    } else {
        let width = report.topics.iter().map(|topic| topic.spec.topic.len()).max().unwrap_or_default();
        for topic in &report.topics {
            writeln!(out, "{:width$}  {}", topic.spec.topic, state_text(topic))?;
        }
        for orphan in &report.orphans {
            writeln!(out, "{:width$}  orphan: {orphan}", orphan.topic)?;
        }
    }
    for topic in &report.topics {
        explain(topic, brokers, err)?;
    }
    Ok(if report.is_good() { FINE } else { DIFFERS })
}

fn state_text(topic: &TopicReport) -> String {
    let mut text = match &topic.state {
        State::Differs(differences) => {
            let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
            format!("differs: {}", texts.join("; "))
        }
        State::Refused(why) => format!("refused: {why}"),
        State::Hidden => "hidden: missing, or this user may not describe it".to_owned(),
        other => other.as_str().to_owned(),
    };
    if let Some(Ok((from, to))) = &topic.raised {
        text.push_str(&format!(" (partitions raised from {from} to {to})"));
    }
    text
}

fn explain(topic: &TopicReport, brokers: &str, err: &mut dyn Write) -> io::Result<()> {
    let name = &topic.spec.topic;
    match &topic.state {
        State::Differs(differences) => {
            for difference in differences {
                writeln!(err, "{name}: {} ({}): {}", difference.what, difference.severity.as_str(), difference.why)?;
                writeln!(err, "  remedy: {}", super::as_given(&difference.remedy.command(name, brokers)))?;
            }
        }
        State::Missing => writeln!(err, "{name}: missing\n  remedy: {}", super::as_given("scripts/create-topics.sh"))?,
        State::Created | State::Ok | State::Hidden | State::Refused(_) => {}
    }
    if let Some(Err(why)) = &topic.raised {
        writeln!(err, "{name}: partitions could not be added: {why}")?;
    }
    if let Some(why) = &topic.unread {
        writeln!(err, "{name}: warning: settings could not be read, so they were not checked: {why}")?;
    }
    Ok(())
}

fn topic_json(topic: &TopicReport, brokers: &str) -> Value {
    let differences: Vec<Value> = match &topic.state {
        State::Differs(differences) => differences
            .iter()
            .map(|d| {
                json!({
                    "what": d.what,
                    "is": d.is,
                    "should_be": d.should_be,
                    "severity": d.severity.as_str(),
                    "why": d.why,
                    "remedy": d.remedy.command(&topic.spec.topic, brokers),
                })
            })
            .collect(),
        _ => vec![],
    };
    let mut value = json!({
        "pipeline": topic.spec.pipeline,
        "stage": topic.spec.stage,
        "topic": topic.spec.topic,
        "state": topic.state.as_str(),
        "differences": differences,
    });
    if let State::Refused(why) = &topic.state {
        value["reason"] = json!(why);
    }
    if let Some(Ok((from, to))) = &topic.raised {
        value["partitions_raised"] = json!({ "from": from, "to": to });
    }
    if let Some(why) = &topic.unread {
        value["settings_unread"] = json!(why);
    }
    value
}

fn orphan_json(orphan: &Orphan) -> Value {
    json!({
        "pipeline": orphan.pipeline,
        "stage": orphan.stage,
        "topic": orphan.topic,
        "group": orphan.group,
        "backlog": orphan.backlog,
    })
}

fn list_json(rows: &[Row], orphans: &[Orphan], out: &mut dyn Write) -> io::Result<()> {
    let topics: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "pipeline": row.spec.pipeline,
                "stage": row.spec.stage,
                "topic": row.spec.topic,
                "exists": row.actual.is_some(),
                "partitions": row.actual.as_ref().map(|actual| actual.partitions),
                "replication": row.actual.as_ref().map(|actual| actual.replication),
                "retention_ms": retention_ms(row),
                "delay_ms": delay(row).map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
                "messages": row.messages,
            })
        })
        .collect();
    let orphans: Vec<Value> = orphans.iter().map(orphan_json).collect();
    writeln!(out, "{:#}", json!({ "topics": topics, "orphans": orphans }))
}

fn list_table(rows: &[Row], orphans: &[Orphan], out: &mut dyn Write) -> io::Result<()> {
    let header = ["PIPELINE", "STAGE", "TOPIC", "PARTITIONS", "REPLICATION", "RETENTION", "DELAY", "MESSAGES"];
    let mut table = vec![header.map(str::to_owned)];
    for row in rows {
        let actual = row.actual.as_ref();
        let unknown = || if actual.is_some() { "?" } else { "-" }.to_owned();
        table.push([
            row.spec.pipeline.clone(),
            row.spec.stage.clone(),
            row.spec.topic.clone(),
            actual.map_or_else(|| "missing".to_owned(), |actual| actual.partitions.to_string()),
            actual.map_or_else(unknown, |actual| actual.replication.to_string()),
            retention_ms(row).map_or_else(unknown, retention_text),
            delay(row).map_or_else(|| "-".to_owned(), duration::show),
            row.messages.map_or_else(unknown, |count| count.to_string()),
        ]);
    }
    let widths: Vec<usize> =
        (0..header.len()).map(|i| table.iter().map(|row| row[i].len()).max().unwrap_or_default()).collect();
    for row in &table {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, width))| {
            // Names to the left, figures to the right.
            if i < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    for orphan in orphans {
        writeln!(out, "orphan: {}: {orphan}", orphan.topic)?;
    }
    Ok(())
}

fn delay(row: &Row) -> Option<Duration> {
    match row.spec.kind {
        Kind::Retry { delay } => Some(delay),
        Kind::Main | Kind::Dlq | Kind::Notes => None,
    }
}

fn retention_ms(row: &Row) -> Option<i64> {
    row.actual.as_ref()?.configs.as_ref().ok()?.get("retention.ms")?.parse().ok()
}

fn retention_text(ms: i64) -> String {
    u64::try_from(ms).map_or_else(|_| "for ever".to_owned(), |ms| duration::show(Duration::from_millis(ms)))
}

#[cfg(test)]
mod tests;
