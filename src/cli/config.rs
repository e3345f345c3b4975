//! `pipeline config check|print|sql`: what the configuration says, or everything that is wrong with it.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::app::wire;
use crate::config::{EventId, Fault, Faults, Loaded, Pipeline, Sources, load};
use crate::telemetry::duration;

/// Exit code for bad flags and bad configuration.
pub(crate) const EXIT_CONFIG: u8 = 64;

/// Checks and shows the configuration.
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Says what each pipeline resolves to, or every fault with what would be right (exit code 64)
    #[command(after_help = "Example: PIPELINE_PROFILE=dev pipeline config check --config topics.yaml")]
    Check {
        /// One JSON object on standard output
        #[arg(long)]
        json: bool,
    },
    /// Shows the merged configuration as YAML, secrets masked
    #[command(after_help = "Example: pipeline config print --all > all-keys.yaml")]
    Print {
        /// Every key, with its meaning and default; the output is a valid configuration file
        #[arg(long)]
        all: bool,
        /// JSON in place of YAML
        #[arg(long)]
        json: bool,
    },
    /// Shows the SQL that makes the tables of the postgres handlers, as `migrate: true` would
    #[command(after_help = "Example: pipeline config sql | psql postgres://localhost/app")]
    Sql {
        /// One JSON object on standard output: `{"tables":[{"pipeline","sql"}]}`
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command: results to `out`, faults to `err`.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub(crate) fn run(
    args: &ConfigArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> std::io::Result<ExitCode> {
    let (Action::Check { json } | Action::Print { json, .. } | Action::Sql { json }) = args.action;
    let loaded = match load(sources) {
        Ok(loaded) => loaded,
        Err(faults) => return refuse(&faults, json, out, err),
    };
    let has_registry = !loaded.config.registry.urls.is_empty();
    let faults = Faults(loaded.config.pipelines.iter().flat_map(|p| unbuildable(p, has_registry)).collect());
    if matches!(args.action, Action::Check { .. } | Action::Sql { .. }) && !faults.0.is_empty() {
        return refuse(&faults, json, out, err);
    }
    let warnings = loaded.config.warnings();
    match args.action {
        Action::Check { json: true } => {
            let pipelines: Vec<_> = loaded.config.pipelines.iter().map(summary_json).collect();
            writeln!(
                out,
                "{}",
                json!({ "ok": true, "files": loaded.files, "warnings": warnings, "pipelines": pipelines })
            )?;
        }
        Action::Check { json: false } => {
            write!(out, "{}", summary(&loaded))?;
            for warning in &warnings {
                writeln!(err, "warning: {warning}")?;
            }
        }
        Action::Print { all, json: true } => writeln!(out, "{:#}", loaded.print_json(all))?,
        Action::Print { all: true, json: false } => write!(out, "{}", loaded.print_all())?,
        Action::Print { all: false, json: false } => write!(out, "{}", loaded.print())?,
        Action::Sql { json: true } => {
            let tables =
                tables(&loaded.config.pipelines).map(|(pipeline, sql)| json!({ "pipeline": pipeline, "sql": sql }));
            writeln!(out, "{}", json!({ "tables": tables.collect::<Vec<_>>() }))?;
        }
        Action::Sql { json: false } => {
            for (pipeline, sql) in tables(&loaded.config.pipelines) {
                write!(out, "-- pipeline {pipeline}\n{sql}")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The pipelines that write into a table, with what makes it.
fn tables(pipelines: &[Pipeline]) -> impl Iterator<Item = (&str, String)> {
    pipelines.iter().filter_map(|pipeline| match &pipeline.handler {
        #[cfg(feature = "postgres")]
        crate::config::Handler::Postgres(keys) => {
            let plan = wire::postgres::plan(pipeline, keys).ok()?;
            Some((pipeline.name.as_str(), plan.migration()))
        }
        _ => None,
    })
}

/// What only shows when a pipeline is built: no such message, no such field in it.
fn unbuildable(pipeline: &Pipeline, has_registry: bool) -> Vec<Fault> {
    if let Some(fault) = unreadable(pipeline, has_registry) {
        return vec![fault];
    }
    match wire::check_handler(pipeline) {
        #[cfg(feature = "postgres")]
        Err(wire::Error::PostgresPlan { pipeline, faults }) => faults
            .into_iter()
            .map(|fault| Fault {
                path: format!("pipelines.{pipeline}.handler.postgres.{}", fault.key),
                value: fault.value,
                problem: fault.problem,
                remedy: fault.remedy,
                source: None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn unreadable(pipeline: &Pipeline, has_registry: bool) -> Option<Fault> {
    let error = wire::payload_decoder(pipeline, has_registry).err()?;
    let (key, value) = match (&error, &pipeline.event_id) {
        (wire::Error::IdField { .. }, EventId::Field(field)) => ("event_id.field", field.clone()),
        _ => ("message", pipeline.message_name().to_owned()),
    };
    Some(Fault {
        path: format!("pipelines.{}.{key}", pipeline.name),
        value: Some(value),
        problem: std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
        remedy: "a message of the built-in protos or of `descriptor_set`, and a field of it".to_owned(),
        source: None,
    })
}

/// Tells every fault. For commands that need a configuration and have none.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub(crate) fn refuse(
    faults: &Faults,
    json: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> std::io::Result<ExitCode> {
    if json {
        writeln!(out, "{}", json!({ "ok": false, "faults": faults.0 }))?;
    } else {
        writeln!(err, "error: {faults}")?;
    }
    Ok(ExitCode::from(EXIT_CONFIG))
}

fn summary(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let files: Vec<_> = loaded.files.iter().map(|f| f.display().to_string()).collect();
    let from = if files.is_empty() { "no file".to_owned() } else { files.join(" < ") };
    let mut text = format!("ok: {from}\nkafka {}   redis {}\n", config.kafka.brokers, config.redis.url);
    for pipeline in &config.pipelines {
        text.push_str(&format!(
            "\npipeline {}   message {}   handler {}   deduplication {}   order {}\n",
            pipeline.name,
            pipeline.message.as_deref().unwrap_or("by the registry"),
            pipeline.handler.kind(),
            pipeline.idempotency.store.as_str(),
            pipeline.order.as_str(),
        ));
        let stages = pipeline.stages();
        let width = stages.iter().map(|(_, topic)| topic.len()).max().unwrap_or(0);
        for (i, (stage, topic)) in stages.iter().enumerate() {
            let delay = delay_of(pipeline, i).map_or_else(String::new, |d| format!("after {d}"));
            let group = pipeline.stage_group(stage);
            let line = format!("  {stage:<9} {topic:<width$}  {delay:<12} group {group}");
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

/// How long stage `i` waits; none for main and the DLQ.
fn delay_of(pipeline: &Pipeline, i: usize) -> Option<String> {
    let retry = pipeline.retries.get(i.checked_sub(1)?)?;
    Some(duration::show(retry.delay))
}

fn summary_json(pipeline: &Pipeline) -> serde_json::Value {
    let stages: Vec<_> = pipeline
        .stages()
        .iter()
        .enumerate()
        .map(|(i, (stage, topic))| {
            let retry = i.checked_sub(1).and_then(|i| pipeline.retries.get(i));
            let delay_ms = retry.map(|r| u64::try_from(r.delay.as_millis()).unwrap_or(u64::MAX));
            json!({ "stage": stage, "topic": topic, "group": pipeline.stage_group(stage), "delay_ms": delay_ms })
        })
        .collect();
    json!({
        "pipeline": pipeline.name,
        "topic": pipeline.topic,
        "group": pipeline.group,
        "message": pipeline.message,
        "handler": pipeline.handler.kind(),
        "stages": stages,
    })
}
