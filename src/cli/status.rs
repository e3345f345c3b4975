//! `pipeline status`: every stage of the configured pipelines as Kafka alone shows it, whether it runs or not.
//!
//! What is waiting, overdue and lagging is [`crate::adapters::kafka::lag`]'s; here it is summed, printed and repeated.
//! From outside nobody sees what runs at the moment, so overdue events include those whose handler is running, and a
//! committed offset is up to a second old.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use futures::future::try_join_all;
use serde::Serialize;

use crate::adapters::kafka::Properties;
use crate::adapters::kafka::admin::{self, Admin};
use crate::adapters::kafka::control::{self, ControlReader, Order, Orders};
use crate::adapters::kafka::lag::{self, Ask, LogReader};
use crate::app::wire;
use crate::config::Config;
use crate::ladder::event::Timestamp;
use crate::stage::clock::{Clock, SystemClock};

/// How often `--watch` looks again.
const EVERY: Duration = Duration::from_secs(2);
/// Longest wait for what is ordered.
const ORDERS_TIMEOUT: Duration = Duration::from_secs(15);

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
    /// The cluster.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// One of its answers.
    #[error(transparent)]
    Log(#[from] lag::Error),
    /// What is paused by command.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// A pipeline that cannot be built.
    #[error(transparent)]
    Wire(#[from] wire::Error),
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
    /// The look was given up.
    #[error("looking at kafka ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl Error {
    /// The process's exit code for this error: 64 flags or configuration, 69 not reachable or topics missing, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Admin(e) => e.exit_code(),
            Error::Control(e) => e.exit_code(),
            Error::Log(lag::Error::Missing { .. }) => 69,
            Error::Log(lag::Error::Config { .. }) | Error::Wire(_) | Error::UnknownPipeline { .. } => 64,
            Error::Log(lag::Error::Request { .. }) | Error::Output(_) | Error::Ended(_) => 1,
        }
    }
}

/// One look at all pipelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Each pipeline.
    pub pipelines: Vec<PipelineStatus>,
}

/// One pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PipelineStatus {
    /// Its name.
    pub pipeline: String,
    /// Its stages, main first, the DLQ last.
    pub stages: Vec<StageStatus>,
}

/// One stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub stage: String,
    /// Its topic.
    pub topic: String,
    /// Events that are not due yet; on the DLQ its depth: every record that it holds.
    pub waiting: u64,
    /// Events that are due and not done.
    pub overdue: u64,
    /// For how long the oldest of them is due; on main, since it was written.
    pub oldest_overdue_ms: u64,
    /// End of the log minus committed offset.
    pub lag: u64,
    /// Members of its group.
    pub members: usize,
    /// By whom it is paused, where it is paused by command. Breaker, brake and store are seen at each instance only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<Order>,
    /// Whether waiting and overdue are estimates.
    #[serde(skip)]
    pub estimated: bool,
}

/// What to look at for one stage; the connection stays between looks.
struct Source {
    stage: String,
    topic: String,
    delay: Option<Duration>,
    is_last: bool,
    reader: LogReader,
}

impl Source {
    fn look(&mut self, now: Timestamp) -> Result<StageStatus, lag::Error> {
        let asks: Vec<_> = (0..self.reader.partitions()?).map(|partition| Ask { partition, from: None }).collect();
        let backlogs = match self.is_last {
            true => self.reader.bounds(&asks)?,
            false => self.reader.backlog(&asks, self.delay, now)?,
        };
        let members = self.reader.members()?;
        let mut status =
            StageStatus { stage: self.stage.clone(), topic: self.topic.clone(), members, ..StageStatus::default() };
        for backlog in &backlogs {
            status.lag += backlog.lag();
            if self.is_last {
                status.waiting += backlog.depth();
            } else {
                status.waiting += backlog.waiting(backlog.from);
                status.overdue += backlog.overdue(backlog.from);
            }
        }
        let oldest = backlogs.iter().filter_map(|b| b.oldest).min();
        let age = oldest.map(|due| now.since(due)).unwrap_or_default();
        status.oldest_overdue_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        status.estimated = status.waiting + status.overdue > 0;
        Ok(status)
    }
}

/// Looks at the stages of some pipelines from outside, as often as asked.
pub struct Outside {
    pipelines: Vec<(String, Vec<Source>)>,
    /// `None` after a look that failed.
    orders: Option<ControlReader>,
    /// What is ordered, by topic.
    ordered: BTreeMap<String, Orders>,
    /// Topic of the orders of each pipeline.
    topics: BTreeMap<String, String>,
}

impl Outside {
    /// Opens a client for each stage; connects with the first look.
    ///
    /// # Errors
    /// When a pipeline is unknown or librdkafka refuses a property.
    pub fn new(config: &Config, chosen: &[String]) -> Result<Self, Error> {
        if let Some(name) = chosen.iter().find(|name| config.pipeline(name).is_none()) {
            let configured = config.pipelines.iter().map(|p| p.name.clone()).collect();
            return Err(Error::UnknownPipeline { name: name.clone(), configured });
        }
        let properties: Properties = wire::properties(config);
        let mut pipelines = Vec::new();
        let chosen: Vec<_> =
            config.pipelines.iter().filter(|p| chosen.is_empty() || chosen.contains(&p.name)).collect();
        let topics: BTreeMap<_, _> = chosen.iter().map(|p| (p.name.clone(), wire::topics(p).control_topic())).collect();
        let group = chosen.first().map_or("", |p| &p.group);
        let orders = ControlReader::new(&properties, group, topics.values().cloned())?;
        for pipeline in chosen {
            let ladder = wire::ladder(pipeline)?;
            let mut sources = Vec::new();
            for rung in ladder.rungs() {
                sources.push(Source {
                    stage: rung.name.to_string(),
                    topic: rung.topic.to_string(),
                    delay: rung.delay,
                    is_last: rung.index == ladder.dlq().index,
                    reader: LogReader::new(&properties, &rung.topic, &rung.group_id)?,
                });
            }
            pipelines.push((pipeline.name.clone(), sources));
        }
        Ok(Self { pipelines, orders: Some(orders), ordered: BTreeMap::new(), topics })
    }

    /// One look, all stages at the same time.
    ///
    /// # Errors
    /// When Kafka does not answer, or a topic is missing; then everything is opened anew by the next [`Outside::new`].
    pub async fn look(&mut self) -> Result<Status, Error> {
        let now = SystemClock.now().wall;
        let names: Vec<_> = self.pipelines.iter().map(|(name, sources)| (name.clone(), sources.len())).collect();
        let looks =
            std::mem::take(&mut self.pipelines).into_iter().flat_map(|(_, sources)| sources).map(|mut source| {
                tokio::task::spawn_blocking(move || {
                    let status = source.look(now);
                    (source, status)
                })
            });
        let orders = self.orders.take().map(|mut reader| {
            tokio::task::spawn_blocking(move || reader.catch_up(ORDERS_TIMEOUT).map(|orders| (reader, orders)))
        });
        let mut answers = try_join_all(looks).await?.into_iter();
        if let Some(orders) = orders {
            let (reader, orders) = orders.await??;
            self.orders = Some(reader);
            for (topic, orders) in control::newest(orders) {
                self.ordered.entry(topic).or_default().extend(orders);
            }
        }
        let mut pipelines = Vec::new();
        for (pipeline, count) in names {
            let (mut sources, mut stages) = (Vec::new(), Vec::new());
            for (source, status) in answers.by_ref().take(count) {
                sources.push(source);
                let mut status = status?;
                let ordered = self.topics.get(&pipeline).and_then(|topic| self.ordered.get(topic)?.get(&status.stage));
                status.paused = ordered.filter(|order| order.paused).cloned();
                stages.push(status);
            }
            self.pipelines.push((pipeline.clone(), sources));
            pipelines.push(PipelineStatus { pipeline, stages });
        }
        Ok(Status { pipelines })
    }
}

/// Runs the command.
///
/// # Errors
/// When Kafka does not answer within the start-up time, a topic is missing, or the output is closed.
pub(crate) async fn run(args: &StatusArgs, config: &Config) -> Result<(), Error> {
    let mut outside = Outside::new(config, &args.pipelines)?;
    Admin::connect(wire::connection(config), config.kafka.startup_timeout).await?;
    let in_place = args.watch && !args.json && io::stdout().is_terminal();
    loop {
        let text = match outside.look().await {
            Ok(status) if args.json => {
                let json =
                    if args.watch { serde_json::to_string(&status) } else { serde_json::to_string_pretty(&status) };
                json.map_err(io::Error::from)? + "\n"
            }
            Ok(status) => table(&status),
            // Watching goes on: Kafka may come back.
            Err(error @ (Error::Log(_) | Error::Control(_))) if in_place => {
                outside = Outside::new(config, &args.pipelines)?;
                format!("{error}\n")
            }
            Err(error) => return Err(error),
        };
        let mut out = io::stdout().lock();
        if in_place {
            // Home, then each line over the old one, then nothing below.
            let text = text.replace('\n', "\x1b[K\n");
            write!(out, "\x1b[H{text}\x1b[J")?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()?;
        drop(out);
        if !args.watch {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// The status for a person.
pub fn table(status: &Status) -> String {
    let mut out = String::new();
    let mut estimated = false;
    for pipeline in &status.pipelines {
        let stages = &pipeline.stages;
        let topic = stages.iter().map(|s| s.topic.len()).max().unwrap_or_default().max(5);
        // Writing to a string does not fail.
        writeln!(out, "{}", pipeline.pipeline).ok();
        writeln!(
            out,
            "  {:<9}  {:<topic$}  {:>10}  {:>10}  {:>14}  {:>10}  {:>7}",
            "STAGE", "TOPIC", "WAITING", "OVERDUE", "OLDEST OVERDUE", "LAG", "MEMBERS"
        )
        .ok();
        let (depth, rungs) = match stages.split_last() {
            Some((dlq, rungs)) => (Some(dlq), rungs),
            None => (None, &stages[..]),
        };
        for stage in rungs.iter().chain(depth) {
            let is_last = depth.is_some_and(|dlq| std::ptr::eq(dlq, stage));
            let mark = |n: u64| if stage.estimated && n > 0 { format!("~{n}") } else { n.to_string() };
            estimated |= stage.estimated && !is_last;
            let (waiting, overdue) =
                if is_last { ("-".to_owned(), "-".to_owned()) } else { (mark(stage.waiting), mark(stage.overdue)) };
            let oldest = match stage.oldest_overdue_ms {
                0 => "-".to_owned(),
                ms => {
                    humantime::format_duration(Duration::from_millis(if ms < 10_000 { ms } else { ms / 1_000 * 1_000 }))
                        .to_string()
                }
            };
            writeln!(
                out,
                "  {:<9}  {:<topic$}  {waiting:>10}  {overdue:>10}  {oldest:>14}  {:>10}  {:>7}",
                stage.stage, stage.topic, stage.lag, stage.members
            )
            .ok();
        }
        if let Some(dlq) = depth {
            writeln!(out, "  dead letters in the DLQ: {}", dlq.waiting).ok();
        }
        for stage in stages {
            if let Some(order) = &stage.paused {
                writeln!(out, "  {} is paused by command {order}", stage.stage).ok();
            }
        }
        out.push('\n');
    }
    if estimated {
        out.push_str("~ estimated from the log: exact while dues rise with offsets and every offset holds an event\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &str, waiting: u64, overdue: u64, oldest_overdue_ms: u64) -> StageStatus {
        StageStatus {
            stage: name.into(),
            topic: format!("orders.{name}"),
            waiting,
            overdue,
            oldest_overdue_ms,
            lag: waiting + overdue,
            members: 2,
            paused: None,
            estimated: waiting + overdue > 0,
        }
    }

    fn sample() -> Status {
        let stages = vec![stage("main", 0, 0, 0), stage("retry-1", 120, 7, 65_432), stage("dlq", 3, 0, 0)];
        Status { pipelines: vec![PipelineStatus { pipeline: "orders".into(), stages }] }
    }

    #[test]
    fn the_table_marks_estimates_and_tells_the_depth_of_the_dlq() {
        let text = table(&sample());
        let lines: Vec<_> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "orders",
                "STAGE TOPIC WAITING OVERDUE OLDEST OVERDUE LAG MEMBERS",
                "main orders.main 0 0 - 0 2",
                "retry-1 orders.retry-1 ~120 ~7 1m 5s 127 2",
                "dlq orders.dlq - - - 3 2",
                "dead letters in the DLQ: 3",
                "",
                "~ estimated from the log: exact while dues rise with offsets and every offset holds an event",
            ]
        );
    }

    #[test]
    fn a_pause_by_command_is_told_with_who_when_and_why() {
        let mut status = sample();
        let order = Order { paused: true, by: "ann@host".into(), at_ms: 0, reason: Some("deploy".into()) };
        status.pipelines[0].stages[1].paused = Some(order);
        let text = table(&status);
        assert!(
            text.contains("  retry-1 is paused by command since 1970-01-01T00:00:00Z by ann@host: deploy\n"),
            "{text}"
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["pipelines"][0]["stages"][1]["paused"]["by"], "ann@host");
    }

    #[test]
    fn the_json_has_the_promised_keys_and_no_other() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert!(json.starts_with(r#"{"pipelines":[{"pipeline":"orders","stages":[{"stage":"main","topic":"orders.main","waiting":0,"overdue":0,"oldest_overdue_ms":0,"lag":0,"members":2},{"stage":"retry-1","#), "{json}");
    }
}
