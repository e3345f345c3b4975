//! `pipeline pause|resume`: writes what is to be, waits until it is written; the running stages follow by themselves.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::adapters::kafka::admin::plan::{known_topics, orphan_stage};
use crate::adapters::kafka::admin::{self, Admin};
use crate::adapters::kafka::control::{self, Order};
use crate::adapters::kafka::lag::{self, LogReader};
use crate::app::builder::ORPHAN;
use crate::app::wire;
use crate::config::{Config, Pipeline};
use crate::stage::clock::{Clock, SystemClock};

/// Longest wait for the order to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Which stages.
#[derive(Clone, Debug, clap::Args)]
pub struct PauseArgs {
    /// This stage: main, retry-1 …, dlq, or all of them (repeatable); orphan:TOPIC: a former rung that is drained
    #[arg(long = "stage", value_name = "STAGE", required = true)]
    pub stages: Vec<String>,
    /// Only of this pipeline (repeatable); default: of all pipelines
    #[arg(long = "pipeline", value_name = "NAME")]
    pub pipelines: Vec<String>,
    /// Why, for those who wonder later; shown by `pipeline status` and in the log
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why nothing, or not everything, was ordered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--pipeline` names none of the file's.
    #[error("--pipeline {name}: no such pipeline; configured: {}", configured.join(", "))]
    UnknownPipeline {
        /// As given.
        name: String,
        /// Those that there are.
        configured: Vec<String>,
    },
    /// `--stage` names no stage of a chosen pipeline.
    #[error("--stage {stage}: no chosen pipeline has it; it is one of {}, or all; or orphan:TOPIC, a topic that was a rung once", stages.join(", "))]
    UnknownStage {
        /// As given.
        stage: String,
        /// Those that there are.
        stages: Vec<String>,
    },
    /// The cluster.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The order.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// How many follow.
    #[error(transparent)]
    Log(#[from] lag::Error),
    /// The output.
    #[error("output: {0}")]
    Output(#[from] io::Error),
    /// The work was given up.
    #[error("asking kafka ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl Error {
    /// The process's exit code for this error: 64 flags or settings, 69 not reachable or the topic missing, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::UnknownPipeline { .. } | Error::UnknownStage { .. } => 64,
            Error::Admin(e) => e.exit_code(),
            Error::Control(e) => e.exit_code(),
            Error::Log(_) | Error::Output(_) | Error::Ended(_) => 1,
        }
    }
}

/// Pauses the stages, or lets them go on.
///
/// # Errors
/// When a name is unknown (nothing is ordered then), or an order could not be written.
pub(crate) async fn run(args: &PauseArgs, paused: bool, config: &Config) -> Result<(), Error> {
    let chosen = chosen(args, config)?;
    Admin::connect(wire::connection(config), config.kafka.startup_timeout).await?;
    let by = who();
    let mut told = Vec::new();
    for (pipeline, stages) in chosen {
        let properties = wire::properties(config);
        let topic = wire::topics(pipeline).control_topic();
        let at_ms = SystemClock.now().wall.floor_millis();
        let order = Order { paused, by: by.clone(), at_ms, reason: args.reason.clone() };
        let groups: Vec<_> = stages.iter().map(|stage| group(pipeline, stage)).collect();
        let (group, named) = (pipeline.group.clone(), stages.clone());
        let members = tokio::task::spawn_blocking(move || -> Result<Vec<Option<usize>>, control::Error> {
            control::write(&properties, &group, &topic, &named, &order, WRITE_TIMEOUT)?;
            // How many follow is good to know, no more.
            let members = |group: &String| LogReader::new(&properties, "", group).ok()?.members().ok();
            Ok(groups.iter().map(members).collect())
        });
        for (stage, members) in stages.into_iter().zip(members.await??) {
            told.push((pipeline.name.clone(), stage, members));
        }
    }
    tell(&told, paused, args.json, &mut io::stdout())?;
    Ok(())
}

fn tell(
    told: &[(String, String, Option<usize>)],
    paused: bool,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), io::Error> {
    if as_json {
        let stage = |(pipeline, stage, members): &(String, String, Option<usize>)| json!({ "pipeline": pipeline, "stage": stage, "paused": paused, "members": members });
        let stages: Vec<Value> = told.iter().map(stage).collect();
        return writeln!(out, "{:#}", json!({ "stages": stages }));
    }
    for (pipeline, stage, members) in told {
        let word = if paused { "paused" } else { "resumed" };
        let follow = match members {
            Some(0) => "; no instance runs it now, those that start will follow".to_owned(),
            Some(1) => "; 1 instance follows within 2 s".to_owned(),
            Some(n) => format!("; {n} instances follow within 2 s"),
            None => "; those that run it follow within 2 s".to_owned(),
        };
        writeln!(out, "{pipeline} {stage}: {word}{follow}")?;
    }
    Ok(())
}

/// The stages of each pipeline, in their order.
fn chosen<'c>(args: &PauseArgs, config: &'c Config) -> Result<Vec<(&'c Pipeline, Vec<String>)>, Error> {
    for name in &args.pipelines {
        if config.pipeline(name).is_none() {
            let configured = config.pipelines.iter().map(|p| p.name.clone()).collect();
            return Err(Error::UnknownPipeline { name: name.clone(), configured });
        }
    }
    let pipelines = config.pipelines.iter().filter(|p| args.pipelines.is_empty() || args.pipelines.contains(&p.name));
    let pipelines: Vec<_> = pipelines.collect();
    let mut all: Vec<String> = Vec::new();
    for (stage, _) in pipelines.iter().flat_map(|p| p.stages()) {
        if !all.contains(&stage) {
            all.push(stage);
        }
    }
    let known = known_topics(&config.pipelines.iter().map(wire::topics).collect::<Vec<_>>());
    let is_orphan = |stage: &String, of: &Pipeline| {
        let topic = stage.strip_prefix(ORPHAN);
        topic.is_some_and(|topic| orphan_stage(&wire::topics(of), &known, topic).is_some())
    };
    let is_known = |stage: &String| {
        stage == "all" || all.contains(stage) || pipelines.iter().any(|pipeline| is_orphan(stage, pipeline))
    };
    if let Some(stage) = args.stages.iter().find(|stage| !is_known(stage)) {
        return Err(Error::UnknownStage { stage: stage.clone(), stages: all });
    }
    let named = |stage: &String| args.stages.iter().any(|s| s == "all" || s == stage);
    let stages = |p: &Pipeline| {
        let rungs = p.stages().into_iter().map(|(stage, _)| stage).filter(named);
        rungs.chain(args.stages.iter().filter(|stage| is_orphan(stage, p)).cloned()).collect::<Vec<_>>()
    };
    Ok(pipelines.into_iter().map(|p| (p, stages(p))).filter(|(_, stages)| !stages.is_empty()).collect())
}

/// The consumer group of a stage, or of a former one.
fn group(pipeline: &Pipeline, stage: &str) -> String {
    let former = stage.strip_prefix(ORPHAN).and_then(|topic| topic.strip_prefix(&pipeline.topic));
    former.map_or_else(|| pipeline.stage_group(stage), |rest| rest.trim_start_matches('.').to_owned())
}

/// `user@host`, as far as either is known.
fn who() -> String {
    let user =
        ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_else(|| "somebody".into());
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(host) => format!("{user}@{}", host.trim()),
        Err(_) => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn config() -> Config {
        let one = |topic: &str, retries: &str| {
            format!("{{topic: {topic}, message: shop.v1.OrderPlaced, handler: {{log: {{}}}}, retries: {retries}}}")
        };
        let yaml = format!("pipelines: {{a: {}, b: {}}}", one("a", "[{delay: 1s}, {delay: 2s}]"), one("b", "[]"));
        load(&Sources::inline("test", &yaml)).unwrap().config
    }

    fn check(stages: &[&str], pipelines: &[&str], expected: &[(&str, &[&str])]) {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let args = PauseArgs { stages: owned(stages), pipelines: owned(pipelines), reason: None, json: false };
        let config = config();
        let found = chosen(&args, &config).unwrap();
        let found: Vec<_> = found.iter().map(|(p, stages)| (p.name.as_str(), stages.clone())).collect();
        let expected: Vec<_> = expected.iter().map(|(name, stages)| (*name, owned(stages))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_stage_is_meant_of_every_pipeline_that_has_it_unless_one_is_named() {
        check(&["main"], &[], &[("a", &["main"]), ("b", &["main"])]);
        check(&["retry-2"], &[], &[("a", &["retry-2"])]);
        check(&["all"], &["b"], &[("b", &["main", "dlq"])]);
        check(&["dlq", "main"], &["a"], &[("a", &["main", "dlq"])]);
    }

    #[test]
    fn a_former_rung_is_meant_by_its_topic_and_belongs_to_one_pipeline() {
        check(&["orphan:b.b.retry-9", "main"], &[], &[("a", &["main"]), ("b", &["main", "orphan:b.b.retry-9"])]);
        let config = config();
        let pipeline = config.pipeline("b").unwrap();
        assert_eq!(
            (group(pipeline, "orphan:b.b.retry-9"), group(pipeline, "dlq")),
            ("b.retry-9".into(), "b.dlq".into())
        );
        // A rung, a topic of nobody's, one of a pipeline that was not chosen.
        for (topic, chosen) in [("a.a.retry-1", None), ("c.c.retry-1", None), ("a.a.retry-9", Some("b".to_owned()))] {
            let stages = vec![format!("orphan:{topic}")];
            let args = PauseArgs { stages, pipelines: chosen.into_iter().collect(), reason: None, json: false };
            assert!(matches!(super::chosen(&args, &config), Err(Error::UnknownStage { .. })), "{topic}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused_with_those_that_are() {
        let args = |stage: &str, pipeline: &[&str]| PauseArgs {
            stages: vec![stage.into()],
            pipelines: pipeline.iter().map(|p| (*p).to_owned()).collect(),
            reason: None,
            json: false,
        };
        let config = config();
        let error = chosen(&args("retry-1", &["b"]), &config).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--stage retry-1: no chosen pipeline has it; it is one of main, dlq, or all; or orphan:TOPIC, a topic that was a rung once"
        );
        assert_eq!(error.exit_code(), 64);
        let error = chosen(&args("main", &["c"]), &config).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.exit_code()),
            ("--pipeline c: no such pipeline; configured: a, b", 64)
        );
    }

    #[test]
    fn it_tells_who_follows() {
        let told = |members| [("orders".to_owned(), "main".to_owned(), members)];
        let printed = |members, as_json| {
            let mut out = Vec::new();
            tell(&told(members), true, as_json, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(printed(Some(2), false), "orders main: paused; 2 instances follow within 2 s\n");
        assert_eq!(
            printed(Some(0), false),
            "orders main: paused; no instance runs it now, those that start will follow\n"
        );
        let json: Value = serde_json::from_str(&printed(Some(2), true)).unwrap();
        assert_eq!(json["stages"][0], json!({"pipeline": "orders", "stage": "main", "paused": true, "members": 2}));
    }
}
