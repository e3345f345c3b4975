//! Whether stages may start: the broker answers, every topic is there, none would break the delivery promise.
//!
//! Refuses on unsafe and missing topics; everything else is a warning, settings that may not be read included.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::plan::{self, Kind, PipelineTopics, Severity, TopicSpec};
use super::topics::{names, specs};
use super::{Admin, Error, LOOK_AGAIN, TopicState};

/// How long a missing topic may stay missing: a broker learns of a topic made through another a moment later.
const MISSING_GRACE: Duration = Duration::from_secs(2);

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartupOptions {
    /// Longest wait for a broker to answer (`startup_timeout`).
    pub timeout: Duration,
    /// Start although a topic would break the promise; each fault becomes a warning.
    pub allow_unsafe_topics: bool,
}

/// What was found by a check that passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartupReport {
    /// Partitions of each topic.
    pub partitions: BTreeMap<String, i32>,
    /// The smallest `max.message.bytes` of them; `None` where none could be read.
    pub max_message_bytes: Option<usize>,
    /// What the operator should know, one text each.
    pub warnings: Vec<String>,
}

/// Waits for the broker and checks every topic of these pipelines. `known` are the topics of all configured
/// pipelines ([`plan::known_topics`]), of which none is an orphan.
///
/// # Errors
/// [`Error::Unreachable`], [`Error::Missing`] and [`Error::Unsafe`], whose [`Error::exit_code`] the process ends with.
pub async fn startup_check(
    admin: &Admin,
    pipelines: &[PipelineTopics],
    known: &BTreeSet<String>,
    options: StartupOptions,
) -> Result<StartupReport, Error> {
    let begun = Instant::now();
    admin.wait_reachable(options.timeout).await?;
    let grace = MISSING_GRACE.min(options.timeout.saturating_sub(begun.elapsed()));
    let mut specs = specs(pipelines);
    let mut asked = admin.clone();
    let states = loop {
        match described(&asked, &specs, Instant::now() + grace).await {
            // A broker that died a moment ago is still named to clients as the one to ask. A new client asks who it is now.
            Err(Error::Unreachable { .. }) if begun.elapsed() < options.timeout => asked = admin.anew()?,
            answer => break answer?,
        }
    };
    plan::align(&mut specs, &states);
    let mut report = judge(&specs, &states, admin.brokers(), options.allow_unsafe_topics)?;
    match admin.list_orphans(pipelines, known).await {
        Ok(orphans) => report.warnings.extend(orphans.iter().map(|orphan| format!("{}: {orphan}", orphan.topic))),
        Err(e) => report.warnings.push(format!("topics of removed rungs could not be looked for: {e}")),
    }
    Ok(report)
}

async fn described(admin: &Admin, specs: &[TopicSpec], end: Instant) -> Result<BTreeMap<String, TopicState>, Error> {
    loop {
        let states = admin.describe(&names(specs)).await?;
        let is_there = |spec: &TopicSpec| matches!(states.get(&spec.topic), Some(TopicState::Exists(_)));
        // Whoever has no topics for notes need not wait for them at every start.
        let complete = specs.iter().all(|spec| spec.kind == Kind::Notes || is_there(spec));
        if complete || Instant::now() >= end {
            return Ok(states);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn smallest_limit(specs: &[TopicSpec], states: &BTreeMap<String, TopicState>) -> Option<usize> {
    let limit = |state: &TopicState| match state {
        TopicState::Exists(topic) => topic.configs.as_ref().ok()?.get("max.message.bytes")?.parse().ok(),
        _ => None,
    };
    let takes_events = specs.iter().filter(|spec| spec.kind != Kind::Notes);
    takes_events.filter_map(|spec| limit(states.get(&spec.topic)?)).min()
}

/// The decision, without I/O.
fn judge(
    specs: &[TopicSpec],
    states: &BTreeMap<String, TopicState>,
    brokers: &str,
    allow_unsafe: bool,
) -> Result<StartupReport, Error> {
    let mut report = StartupReport { max_message_bytes: smallest_limit(specs, states), ..StartupReport::default() };
    let (mut missing, mut faults) = (Vec::new(), Vec::new());
    for spec in specs {
        let topic = &spec.topic;
        let actual = match states.get(topic) {
            Some(TopicState::Exists(actual)) => actual,
            None | Some(TopicState::Missing | TopicState::Hidden) if spec.kind == Kind::Notes => {
                let hidden = matches!(states.get(topic), Some(TopicState::Hidden));
                let hidden = if hidden { " (or hidden: this user may not describe it)" } else { "" };
                let unable = match spec.stage.as_str() {
                    "control" => "`pipeline pause` has nowhere to be kept; followed once it is there",
                    _ => "`pipeline dlq` cannot deal with dead letters",
                };
                report.warnings.push(format!(
                    "{topic} is missing{hidden}, so {unable}; remedy: scripts/create-topics.sh creates it"
                ));
                continue;
            }
            Some(TopicState::Hidden) => {
                missing.push(format!("{topic} (or hidden: this user may not describe it)"));
                continue;
            }
            Some(TopicState::Missing) | None => {
                missing.push(topic.clone());
                continue;
            }
        };
        report.partitions.insert(topic.clone(), actual.partitions);
        if let (Err(why), true) = (&actual.configs, spec.kind != Kind::Main) {
            report.warnings.push(format!("{topic}: settings could not be read, so they were not checked: {why}"));
        }
        for difference in plan::compare(spec, actual) {
            let remedy = difference.remedy.command(topic, brokers);
            let text = format!("{topic}: {difference}: {}; remedy: {remedy}", difference.why);
            if difference.severity == Severity::Unsafe { faults.push(text) } else { report.warnings.push(text) }
        }
    }
    missing.dedup();
    if !missing.is_empty() {
        return Err(Error::Missing { brokers: brokers.to_owned(), topics: missing });
    }
    if !faults.is_empty() && !allow_unsafe {
        return Err(Error::Unsafe { faults });
    }
    report.warnings.splice(0..0, faults.into_iter().map(|fault| format!("unsafe: {fault}")));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::super::plan::{ActualTopic, RetryTopic};
    use super::*;

    fn specs() -> Vec<TopicSpec> {
        plan::plan(&PipelineTopics {
            pipeline: "orders".into(),
            topic: "orders".into(),
            group: "billing".into(),
            partitions: 6,
            replication: 1,
            retries: vec![RetryTopic {
                name: "retry-1".into(),
                topic: "orders.billing.retry-1".into(),
                delay: Duration::from_secs(5),
            }],
            retention: Duration::from_secs(3600),
            dlq_topic: "orders.billing.dlq".into(),
            dlq_retention: Duration::from_secs(3600),
        })
    }

    fn states(change: impl Fn(&str, &mut ActualTopic)) -> BTreeMap<String, TopicState> {
        let exact = |spec: &TopicSpec| {
            let configs = Ok(spec.configs.clone());
            let mut actual = ActualTopic { partitions: spec.partitions, replication: spec.replication, configs };
            change(&spec.stage, &mut actual);
            (spec.topic.clone(), TopicState::Exists(actual))
        };
        specs().iter().map(exact).collect()
    }

    fn set(actual: &mut ActualTopic, key: &str, value: &str) {
        actual.configs.as_mut().unwrap().insert(key.into(), value.into());
    }

    #[test]
    fn topics_as_planned_start_without_a_warning() {
        let report = judge(&specs(), &states(|_, _| ()), "b:9092", false).unwrap();
        assert_eq!(report.warnings, [""; 0]);
        assert_eq!(report.partitions.len(), 5);
        assert_eq!(report.partitions["orders.billing.retry-1"], 6);
    }

    #[test]
    fn a_missing_topic_ends_with_69_and_names_the_script() {
        let mut states = states(|_, _| ());
        states.insert("orders.billing.dlq".into(), TopicState::Missing);
        states.insert("orders.billing.retry-1".into(), TopicState::Hidden);
        let error = judge(&specs(), &states, "b:9092", true).unwrap_err();
        assert_eq!(error.exit_code(), 69);
        assert_eq!(
            error.to_string(),
            "topics missing at b:9092: orders.billing.retry-1 (or hidden: this user may not describe it), \
             orders.billing.dlq; remedy: scripts/create-topics.sh creates them"
        );
    }

    #[test]
    fn without_the_topics_for_notes_stages_start_with_a_warning() {
        let mut states = states(|_, _| ());
        for topic in ["orders.billing.control", "orders.billing.redrive"] {
            states.insert(topic.into(), TopicState::Missing);
        }
        let report = judge(&specs(), &states, "b:9092", false).unwrap();
        let [control, redrive] = &report.warnings[..] else { panic!("{report:?}") };
        assert!(control.starts_with("orders.billing.control is missing, so `pipeline pause`"), "{control}");
        assert!(redrive.starts_with("orders.billing.redrive is missing, so `pipeline dlq`"), "{redrive}");
    }

    #[test]
    fn a_small_limit_of_a_topic_for_notes_does_not_shrink_batches_of_events() {
        let limits = states(|stage, actual| {
            set(actual, "max.message.bytes", if matches!(stage, "control" | "redrive") { "1000" } else { "4000000" });
        });
        assert_eq!(judge(&specs(), &limits, "b:9092", false).unwrap().max_message_bytes, Some(4_000_000));
    }

    #[test]
    fn an_unsafe_topic_ends_with_64_unless_allowed() {
        let states = states(|stage, actual| {
            if stage == "retry-1" {
                set(actual, "cleanup.policy", "compact");
                actual.partitions = 3;
            }
        });
        let error = judge(&specs(), &states, "b:9092", false).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let text = error.to_string();
        assert!(text.contains("orders.billing.retry-1: cleanup.policy is compact, should be delete"), "{text}");
        assert!(text.contains("--add-config cleanup.policy=delete"), "{text}");
        assert!(text.contains("allow_unsafe_topics"), "{text}");
        assert!(!text.contains("partitions"), "only what refuses: {text}");

        let warnings = judge(&specs(), &states, "b:9092", true).unwrap().warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("unsafe: orders.billing.retry-1: cleanup.policy"), "{warnings:?}");
        assert!(warnings[1].starts_with("orders.billing.retry-1: partitions is 3, should be 6"), "{warnings:?}");
    }

    #[test]
    fn settings_that_may_not_be_read_are_a_warning() {
        let states = states(|_, actual| actual.configs = Err("topic authorization failed".into()));
        let warnings = judge(&specs(), &states, "b:9092", false).unwrap().warnings;
        assert_eq!(
            warnings[0],
            "orders.billing.retry-1: settings could not be read, so they were not checked: topic authorization failed"
        );
        assert_eq!(warnings.len(), 4, "retry-1, dlq, control and redrive; main is its owner's: {warnings:?}");
    }
}
