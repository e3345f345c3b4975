//! What `pipeline topics create|check|list` does; how it is printed is [`crate::cli::topics`]'s part.
//!
//! Invariants: nothing is deleted and no setting altered; the only change to a topic that exists is that
//! [`create`] with `add_partitions` raises a retry topic to main's count. A second run finds everything as it is.
//!
//! `known` is everywhere [`plan::known_topics`] of all configured pipelines, also of those not asked about: none of
//! them is an orphan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::plan::{self, ActualTopic, Difference, Kind, PipelineTopics, TopicSpec};
use super::{Admin, Creation, Error, LOOK_AGAIN, Orphan, TopicState};

/// How long a broker may not know of a topic that was made through another.
const LATE: Duration = Duration::from_secs(10);

/// What was found, and done, about one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicReport {
    /// The topic as it should be.
    pub spec: TopicSpec,
    /// How it is now.
    pub state: State,
    /// Partitions before and after, where we added some, or why the cluster refused.
    pub raised: Option<Result<(i32, i32), String>>,
    /// Why its settings could not be read, where that is so: they were not checked then.
    pub unread: Option<String>,
}

/// How a topic is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be, since just now.
    Created,
    /// As it should be.
    Ok,
    /// It is there, and differs.
    Differs(Vec<Difference>),
    /// It is not there.
    Missing,
    /// It is not there, or this user may not see it.
    Hidden,
    /// It could not be created.
    Refused(String),
}

impl State {
    /// The word used in the output.
    pub const fn as_str(&self) -> &'static str {
        match self {
            State::Created => "created",
            State::Ok => "ok",
            State::Differs(_) => "differs",
            State::Missing => "missing",
            State::Hidden => "hidden",
            State::Refused(_) => "refused",
        }
    }

    /// Whether the topic is as it should be.
    pub const fn is_good(&self) -> bool {
        matches!(self, State::Created | State::Ok)
    }
}

/// All topics of some pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One entry per topic, in the order of pipelines and stages; a shared main topic comes once.
    pub topics: Vec<TopicReport>,
    /// Topics with a backlog that are no rung any more.
    pub orphans: Vec<Orphan>,
}

impl Report {
    /// Whether every topic is as it should be.
    pub fn is_good(&self) -> bool {
        self.topics.iter().all(|topic| topic.state.is_good())
    }
}

/// One row of `topics list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The topic as it should be.
    pub spec: TopicSpec,
    /// The topic as it is, where it is.
    pub actual: Option<ActualTopic>,
    /// End minus start offset over all partitions.
    pub messages: Option<u64>,
}

/// Creates what is missing and compares all. With `add_partitions`, raises retry topics to main's count.
///
/// # Errors
/// When the cluster does not answer. What it refuses is in the report.
pub async fn create(
    admin: &Admin,
    pipelines: &[PipelineTopics],
    known: &BTreeSet<String>,
    add_partitions: bool,
) -> Result<Report, Error> {
    let mut specs = specs(pipelines);
    let mut creations = BTreeMap::new();

    // Main first: the others take its partitions and its largest record.
    let mut states = admin.describe(&names(&specs)).await?;
    creations.extend(create_missing(admin, &specs, &states, |spec| spec.kind == Kind::Main).await?);
    if !creations.is_empty() {
        states.extend(admin.describe(&creations.keys().cloned().collect()).await?);
    }
    plan::align(&mut specs, &states);
    creations.extend(create_missing(admin, &specs, &states, |spec| spec.kind != Kind::Main).await?);

    let mut raised = BTreeMap::new();
    if add_partitions {
        states = admin.describe(&names(&specs)).await?;
        let short: BTreeMap<String, (i32, i32)> = specs
            .iter()
            .filter(|spec| matches!(spec.kind, Kind::Retry { .. }))
            .filter_map(|spec| match states.get(&spec.topic) {
                Some(TopicState::Exists(actual)) if actual.partitions < spec.partitions => {
                    Some((spec.topic.clone(), (actual.partitions, spec.partitions)))
                }
                _ => None,
            })
            .collect();
        let wanted = short.iter().map(|(topic, (_, to))| (topic.clone(), *to)).collect();
        for (topic, result) in admin.add_partitions(&wanted).await? {
            let counts = short.get(&topic).copied().unwrap_or_default();
            raised.insert(topic, result.map(|()| counts));
        }
    }

    let end = Instant::now() + LATE;
    let states = loop {
        let states = admin.describe(&names(&specs)).await?;
        if !lags_behind(&states, &creations) || Instant::now() >= end {
            break states;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    let mut report = report(&specs, &states, admin.list_orphans(pipelines, known).await?);
    for topic in &mut report.topics {
        topic.raised = raised.get(&topic.spec.topic).cloned();
        match creations.get(&topic.spec.topic) {
            Some(Creation::Created) if topic.state == State::Ok => topic.state = State::Created,
            Some(Creation::Refused(why)) => topic.state = State::Refused(why.clone()),
            _ => {}
        }
    }
    Ok(report)
}

/// Whether the broker that was asked does not know yet of a topic that another has made.
fn lags_behind(states: &BTreeMap<String, TopicState>, creations: &BTreeMap<String, Creation>) -> bool {
    let is_there = |creation: &Creation| !matches!(creation, Creation::Refused(_));
    creations.iter().any(|(topic, creation)| is_there(creation) && states.get(topic) == Some(&TopicState::Missing))
}

/// Compares all, changes nothing.
///
/// # Errors
/// When the cluster does not answer.
pub async fn check(admin: &Admin, pipelines: &[PipelineTopics], known: &BTreeSet<String>) -> Result<Report, Error> {
    let mut specs = specs(pipelines);
    let states = admin.describe(&names(&specs)).await?;
    plan::align(&mut specs, &states);
    Ok(report(&specs, &states, admin.list_orphans(pipelines, known).await?))
}

/// Every topic with its size.
///
/// # Errors
/// When the cluster does not answer.
pub async fn list(
    admin: &Admin,
    pipelines: &[PipelineTopics],
    known: &BTreeSet<String>,
) -> Result<(Vec<Row>, Vec<Orphan>), Error> {
    let specs = specs(pipelines);
    let states = admin.describe(&names(&specs)).await?;
    let mut rows = Vec::new();
    for spec in specs {
        let actual = match states.get(&spec.topic) {
            Some(TopicState::Exists(actual)) => Some(actual.clone()),
            _ => None,
        };
        let messages = match &actual {
            Some(actual) => admin.messages(&spec.topic, actual.partitions).await?,
            None => None,
        };
        rows.push(Row { spec, actual, messages });
    }
    Ok((rows, admin.list_orphans(pipelines, known).await?))
}

pub(super) fn specs(pipelines: &[PipelineTopics]) -> Vec<TopicSpec> {
    pipelines.iter().flat_map(plan::plan).collect()
}

pub(super) fn names(specs: &[TopicSpec]) -> BTreeSet<String> {
    specs.iter().map(|spec| spec.topic.clone()).collect()
}

async fn create_missing(
    admin: &Admin,
    specs: &[TopicSpec],
    states: &BTreeMap<String, TopicState>,
    which: impl Fn(&TopicSpec) -> bool,
) -> Result<BTreeMap<String, Creation>, Error> {
    let mut seen = BTreeSet::new();
    let missing: Vec<TopicSpec> = specs
        .iter()
        .filter(|spec| which(spec) && !matches!(states.get(&spec.topic), Some(TopicState::Exists(_))))
        .filter(|spec| seen.insert(&spec.topic))
        .cloned()
        .collect();
    if missing.is_empty() { Ok(BTreeMap::new()) } else { admin.create(&missing).await }
}

fn report(specs: &[TopicSpec], states: &BTreeMap<String, TopicState>, orphans: Vec<Orphan>) -> Report {
    let mut topics: Vec<TopicReport> = Vec::new();
    for spec in specs {
        let (state, unread) = match states.get(&spec.topic) {
            Some(TopicState::Exists(actual)) => {
                let differences = plan::compare(spec, actual);
                let state = if differences.is_empty() { State::Ok } else { State::Differs(differences) };
                // The settings of main are its owner's affair.
                let unread = actual.configs.as_ref().err().filter(|_| spec.kind != Kind::Main);
                (state, unread.cloned())
            }
            Some(TopicState::Hidden) => (State::Hidden, None),
            Some(TopicState::Missing) | None => (State::Missing, None),
        };
        match topics.iter_mut().find(|topic| topic.spec.topic == spec.topic) {
            // A main topic shared by two pipelines: one line, what either finds.
            Some(first) => merge(&mut first.state, state),
            None => topics.push(TopicReport { spec: spec.clone(), state, raised: None, unread }),
        }
    }
    Report { topics, orphans }
}

fn merge(first: &mut State, second: State) {
    match (first, second) {
        (State::Differs(all), State::Differs(more)) => {
            for difference in more {
                if !all.contains(&difference) {
                    all.push(difference);
                }
            }
        }
        (first @ State::Ok, second @ State::Differs(_)) => *first = second,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(name: &str, partitions: i32) -> PipelineTopics {
        PipelineTopics {
            pipeline: name.into(),
            topic: "orders".into(),
            group: name.into(),
            partitions,
            replication: 1,
            retries: vec![],
            retention: Duration::from_secs(60),
            dlq_topic: format!("orders.{name}.dlq"),
            dlq_retention: Duration::from_secs(60),
        }
    }

    fn exact(spec: &TopicSpec) -> TopicState {
        let configs = Ok(spec.configs.clone());
        TopicState::Exists(ActualTopic { partitions: spec.partitions, replication: spec.replication, configs })
    }

    #[test]
    fn a_main_topic_shared_by_two_groups_is_reported_once_with_what_either_finds() {
        let specs = specs(&[pipeline("inventory", 6), pipeline("analytics", 12)]);
        let states = specs.iter().rev().map(|spec| (spec.topic.clone(), exact(spec))).collect();
        let report = report(&specs, &states, vec![]);
        let lines: Vec<_> = report.topics.iter().map(|t| (t.spec.topic.as_str(), t.state.as_str())).collect();
        assert_eq!(
            lines,
            [
                ("orders", "differs"),
                ("orders.inventory.dlq", "ok"),
                ("orders.inventory.control", "ok"),
                ("orders.inventory.redrive", "ok"),
                ("orders.analytics.dlq", "ok"),
                ("orders.analytics.control", "ok"),
                ("orders.analytics.redrive", "ok"),
            ],
            "the second pipeline wants 12 partitions, there are 6"
        );
        assert!(!report.is_good());
    }

    #[test]
    fn a_broker_lags_behind_that_does_not_know_what_was_made_and_not_one_that_never_will() {
        fn check(creation: Creation, state: TopicState, lags: bool) {
            let (states, creations) = (BTreeMap::from([("t".into(), state)]), BTreeMap::from([("t".into(), creation)]));
            assert_eq!(lags_behind(&states, &creations), lags, "{creations:?} {states:?}");
        }
        check(Creation::Created, TopicState::Missing, true);
        check(Creation::Existed, TopicState::Missing, true);
        check(Creation::Existed, TopicState::Hidden, false);
        check(Creation::Refused("policy".into()), TopicState::Missing, false);
        check(Creation::Created, exact(&specs(&[pipeline("p", 1)])[0]), false);
    }

    #[test]
    fn a_topic_that_nobody_described_is_missing() {
        let report = report(&specs(&[pipeline("inventory", 6)]), &BTreeMap::new(), vec![]);
        assert!(report.topics.iter().all(|topic| topic.state == State::Missing));
    }

    #[test]
    fn unread_settings_are_told_and_differ_in_nothing() {
        let specs = specs(&[pipeline("inventory", 6)]);
        let states = specs.iter().map(|spec| {
            let configs = Err("not authorized".to_owned());
            (spec.topic.clone(), TopicState::Exists(ActualTopic { partitions: 6, replication: 1, configs }))
        });
        let report = report(&specs, &states.collect(), vec![]);
        assert!(report.is_good());
        let unread: Vec<_> = report.topics.iter().map(|topic| topic.unread.as_deref()).collect();
        assert_eq!(unread[0], None, "main is its owner's");
        assert_eq!(unread[1..], [Some("not authorized"); 3]);
    }
}
