//! One look at every stage of some pipelines, from Kafka alone but for pauses that only instances know.
//!
//! What cannot be looked at says why and hides nothing else. From outside nobody sees what runs at the moment, so
//! overdue events include those whose handler is running, and a committed offset is up to a second old.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::{join_all, join3};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::dlq::standing::{Depth, Standing};
use super::instances::{self, Instances, Pause};
use super::retention::Alarm;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::admin::{self, Admin, Connection, Retention};
use crate::adapters::kafka::control::{self, ControlReader, Order, Orders};
use crate::adapters::kafka::lag::{self, Ask, LogReader};
use crate::app::wire;
use crate::config::Config;
use crate::ladder::event::Timestamp;
use crate::stage::clock::{Clock, SystemClock};

/// Longest wait for what is ordered.
const ORDERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// A pipeline that cannot be built.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// A pipeline was asked for that is none of the file's.
    #[error("--pipeline {name}: no such pipeline; configured: {}", configured.join(", "))]
    UnknownPipeline {
        /// As given.
        name: String,
        /// Those that there are.
        configured: Vec<String>,
    },
    /// The client that asks instances.
    #[error("http client: {0}")]
    Http(#[from] reqwest::Error),
    /// The look was given up.
    #[error("looking at kafka ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl Error {
    /// The process's exit code for this error: 64 flags or configuration, 69 not reachable, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Admin(e) => e.exit_code(),
            Error::Wire(_) | Error::UnknownPipeline { .. } => 64,
            Error::Http(_) | Error::Ended(_) => 1,
        }
    }
}

/// One look at all pipelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Each pipeline.
    pub pipelines: Vec<PipelineStatus>,
}

impl Status {
    /// The process's exit code for it: 0 when every stage was seen, 69 when a topic is missing, else 1.
    pub fn exit_code(&self) -> u8 {
        let stages = self.pipelines.iter().flat_map(|pipeline| &pipeline.stages);
        let unseen = stages.filter_map(|stage| match stage {
            StageLook::Seen(_) => None,
            StageLook::Unseen(unseen) => Some(if unseen.missing { 69 } else { 1 }),
        });
        unseen.max().unwrap_or(0)
    }
}

/// One pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PipelineStatus {
    /// Its name.
    pub pipeline: String,
    /// Its stages, main first, the DLQ last.
    pub stages: Vec<StageLook>,
}

/// What came of looking at a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant, reason = "one a stage, and nearly all are the large one")]
pub enum StageLook {
    /// It was seen.
    Seen(StageStatus),
    /// Its topic is missing, or Kafka did not answer.
    Unseen(Unseen),
}

/// A stage that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// Its name.
    pub stage: String,
    /// Its topic.
    pub topic: String,
    /// Why.
    pub error: String,
    /// There is no such topic.
    #[serde(skip)]
    pub missing: bool,
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
    /// Whether waiting and overdue are estimates.
    pub estimated: bool,
    /// Age of the oldest record that is not done.
    pub oldest_unprocessed_ms: u64,
    /// For how long the topic keeps records; `None`: for ever, or not known.
    pub retention_ms: Option<u64>,
    /// `warning` when that record is past half of it, `critical` past 80 %.
    pub retention_alarm: Option<&'static str>,
    /// By whom it is paused, where it is paused by command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<Order>,
    /// Instances of it that told what else pauses it; of its other members that is not known.
    pub asked: usize,
    /// Where else it is paused, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<Pause>,
    /// On the DLQ: every record that it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u64>,
    /// On the DLQ: what became of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letters: Option<Letters>,
    /// Sum of the group's positions: what it grows by between two looks was dealt with.
    #[serde(skip)]
    pub position: u64,
    /// Sum of the log's ends: what it grows by between two looks has come.
    #[serde(skip)]
    pub end: u64,
}

/// What became of the letters of a DLQ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Letters {
    /// So many of each fate.
    Counted(Depth),
    /// The redrive topic does not tell.
    Unknown {
        /// Why.
        error: String,
    },
}

/// What to look at for one stage; the connection stays between looks.
struct Source {
    stage: String,
    topic: String,
    group: String,
    delay: Option<Duration>,
    /// Of the DLQ: the topic that says what became of its letters.
    book_topic: Option<String>,
    standing: Standing,
    properties: Properties,
    /// None before the first look, and after one that failed.
    reader: Option<LogReader>,
}

impl Source {
    fn look(&mut self, now: Timestamp) -> StageLook {
        let mut open = || {
            let reader = match self.reader.take() {
                Some(reader) => reader,
                None => LogReader::new(&self.properties, &self.topic, &self.group)?,
            };
            let reader = self.reader.insert(reader);
            let asks: Vec<_> = (0..reader.partitions()?).map(|partition| Ask { partition, from: None }).collect();
            Ok::<_, lag::Error>((reader.backlog(&asks, self.delay, now)?, reader.members()?))
        };
        let (backlogs, members) = match open() {
            Ok(seen) => seen,
            Err(error) => {
                // Opened anew by the next look.
                self.reader = None;
                let missing = matches!(error, lag::Error::Missing { .. });
                let (stage, topic) = (self.stage.clone(), self.topic.clone());
                return StageLook::Unseen(Unseen { stage, topic, error: error.to_string(), missing });
            }
        };
        let mut status =
            StageStatus { stage: self.stage.clone(), topic: self.topic.clone(), members, ..StageStatus::default() };
        for backlog in &backlogs {
            status.lag += backlog.lag();
            status.position += u64::try_from(backlog.from).unwrap_or_default();
            status.end += u64::try_from(backlog.high).unwrap_or_default();
            if self.book_topic.is_some() {
                status.waiting += backlog.depth();
            } else {
                status.waiting += backlog.waiting(backlog.from);
                status.overdue += backlog.overdue(backlog.from);
            }
        }
        let age = |oldest: Option<Timestamp>| {
            let age = oldest.map(|at| now.since(at)).unwrap_or_default();
            u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
        };
        if let Some(book_topic) = &self.book_topic {
            status.depth = Some(status.waiting);
            status.letters = Some(match self.standing.refresh(&self.properties, &self.topic, book_topic) {
                Ok(()) => Letters::Counted(self.standing.depth()),
                Err(error) => Letters::Unknown { error: error.to_string() },
            });
        } else {
            status.oldest_overdue_ms = age(backlogs.iter().filter_map(|b| b.oldest).min());
            status.estimated = status.waiting + status.overdue > 0;
        }
        status.oldest_unprocessed_ms = age(backlogs.iter().filter_map(|b| b.head).min());
        StageLook::Seen(status)
    }
}

/// Looks at the stages of some pipelines from outside, as often as asked.
pub struct Outside {
    pipelines: Vec<(String, Vec<Source>)>,
    connection: Connection,
    admin: Option<Admin>,
    instances: Instances,
    properties: Properties,
    /// Of each pipeline, where its orders are kept.
    control: BTreeMap<String, String>,
    /// None before the first look, and after one that failed.
    reader: Option<ControlReader>,
    /// What is ordered, by topic.
    orders: BTreeMap<String, Orders>,
}

impl Outside {
    /// Connects with the first look.
    ///
    /// # Errors
    /// When a pipeline is unknown or cannot be built.
    pub fn new(config: &Config, chosen: &[String]) -> Result<Self, Error> {
        if let Some(name) = chosen.iter().find(|name| config.pipeline(name).is_none()) {
            let configured = config.pipelines.iter().map(|p| p.name.clone()).collect();
            return Err(Error::UnknownPipeline { name: name.clone(), configured });
        }
        let properties: Properties = wire::properties(config);
        let (mut pipelines, mut control) = (Vec::new(), BTreeMap::new());
        for pipeline in config.pipelines.iter().filter(|p| chosen.is_empty() || chosen.contains(&p.name)) {
            let ladder = wire::ladder(pipeline)?;
            let sources = ladder.rungs().iter().map(|rung| Source {
                stage: rung.name.to_string(),
                topic: rung.topic.to_string(),
                group: rung.group_id.to_string(),
                delay: rung.delay,
                book_topic: (rung.index == ladder.dlq().index).then(|| ladder.redrive_topic().to_string()),
                standing: Standing::default(),
                properties: properties.clone(),
                reader: None,
            });
            pipelines.push((pipeline.name.clone(), sources.collect()));
            control.insert(pipeline.name.clone(), wire::topics(pipeline).control_topic());
        }
        Ok(Self {
            pipelines,
            connection: wire::connection(config),
            admin: None,
            instances: Instances::new(config)?,
            properties,
            control,
            reader: None,
            orders: BTreeMap::new(),
        })
    }

    /// One look, all stages at the same time.
    ///
    /// # Errors
    /// When librdkafka refuses the properties, or the process ends. What Kafka does not tell is in the status.
    pub async fn look(&mut self) -> Result<Status, Error> {
        let orders = self.read_orders();
        let now = SystemClock.now().wall;
        let names: Vec<_> = self.pipelines.iter().map(|(name, sources)| (name.clone(), sources.len())).collect();
        let sources = std::mem::take(&mut self.pipelines).into_iter().flat_map(|(_, sources)| sources);
        let sources: Vec<_> = sources.collect();
        let topics = sources.iter().map(|source| source.topic.clone()).collect();
        let looks = join_all(sources.into_iter().map(|mut source| {
            tokio::task::spawn_blocking(move || {
                let look = source.look(now);
                (source, look)
            })
        }));
        let instances = self.instances.clone();
        let (answers, retentions, said) = join3(looks, self.retentions(&topics), instances.ask()).await;
        let retentions = retentions?;
        match orders.await? {
            Ok((reader, orders)) => {
                self.reader = Some(reader);
                for (topic, orders) in control::newest(orders) {
                    self.orders.entry(topic).or_default().extend(orders);
                }
            }
            Err(error) => tracing::debug!(%error, "pauses by command unknown"),
        }
        let mut answers = answers.into_iter();
        let mut pipelines = Vec::new();
        for (pipeline, count) in names {
            let (mut sources, mut stages) = (Vec::new(), Vec::new());
            for answer in answers.by_ref().take(count) {
                let (source, mut look) = answer?;
                if let StageLook::Seen(stage) = &mut look {
                    let retention = retentions.get(&stage.topic).copied().unwrap_or_default();
                    stage.retention_ms = retention.limit().map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
                    let oldest = Duration::from_millis(stage.oldest_unprocessed_ms);
                    stage.retention_alarm = Alarm::of(oldest, retention).map(Alarm::as_str);
                    let order = self.control.get(&pipeline).and_then(|at| self.orders.get(at)?.get(&stage.stage));
                    (stage.asked, stage.pauses) = instances::of_stage(&said, &stage.topic, &source.group);
                    stage.paused = order.filter(|order| order.paused).cloned();
                }
                sources.push(source);
                stages.push(look);
            }
            self.pipelines.push((pipeline.clone(), sources));
            pipelines.push(PipelineStatus { pipeline, stages });
        }
        Ok(Status { pipelines })
    }

    /// What is ordered since the last look.
    fn read_orders(&mut self) -> JoinHandle<Result<(ControlReader, Vec<control::Read>), control::Error>> {
        let (reader, properties) = (self.reader.take(), self.properties.clone());
        if reader.is_none() {
            self.orders.clear();
        }
        let (topics, groups) = (self.control.values().cloned().collect::<Vec<_>>(), self.pipelines.first());
        let group = groups.and_then(|(_, sources)| sources.first()).map_or(String::new(), |main| main.group.clone());
        tokio::task::spawn_blocking(move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => ControlReader::new(&properties, &group, topics)?,
            };
            let orders = reader.catch_up(ORDERS_TIMEOUT)?;
            Ok((reader, orders))
        })
    }

    /// What cannot be read is left out: it is the least of what is to be seen.
    async fn retentions(&mut self, topics: &BTreeSet<String>) -> Result<BTreeMap<String, Retention>, admin::Error> {
        let admin = match self.admin.take() {
            Some(admin) => admin,
            None => Admin::new(self.connection.clone())?,
        };
        let told = admin.retentions(topics).await;
        self.admin = Some(admin);
        Ok(told.unwrap_or_else(|error| {
            tracing::debug!(%error, "retention of the topics unknown");
            BTreeMap::new()
        }))
    }
}
