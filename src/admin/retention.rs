//! Warns before a topic's retention deletes events that nobody has handled.
//!
//! Kafka deletes by age, and asks no group. [`Retentions`] knows for how long each topic keeps records, read again now
//! and then because somebody may lower it; [`Alarm`] says how near the oldest unprocessed record is to that; [`watch`]
//! puts it into the log, once when it begins, rises or is over, and from time to time while it lasts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::monitor::{Figures, Monitor, PATIENCE};
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::admin::{Admin, Connection, Retention};
use crate::app::engine::StageView;
use crate::telemetry::duration::{self, coarse};

/// How old the knowledge of the topics' settings may be.
const SETTINGS_FRESH: Duration = Duration::from_secs(300);
/// Kafka did not tell: asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How often [`watch`] looks.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often an alarm that lasts is repeated in the log.
const REPEAT: Duration = Duration::from_secs(15 * 60);

/// How near the oldest unprocessed record is to being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// It is older than half of the topic's retention.
    Warning,
    /// It is older than 80 % of it: events are about to be lost.
    Critical,
}

impl Alarm {
    /// For a record of this age.
    pub fn of(oldest: Duration, retention: Retention) -> Option<Self> {
        let limit = retention.limit()?;
        if oldest > limit.mul_f64(0.8) { Some(Alarm::Critical) } else { (oldest > limit / 2).then_some(Alarm::Warning) }
    }

    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Alarm::Warning => "warning",
            Alarm::Critical => "critical",
        }
    }
}

/// What a person is told of a record this old, such as `4d 2h of 7d`.
pub fn used(oldest: Duration, limit: Duration) -> String {
    format!("{} of {}", coarse(oldest), duration::show(limit))
}

/// For how long some topics keep records.
pub struct Retentions {
    properties: Properties,
    topics: BTreeSet<String>,
    /// Held while somebody asks.
    asking: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    ask_at: Option<Instant>,
    retentions: BTreeMap<String, Retention>,
}

impl Retentions {
    /// Of these topics; nothing is asked yet.
    pub fn new(properties: &Properties, topics: BTreeSet<String>) -> Self {
        let known = Mutex::default();
        Self { properties: properties.clone(), topics, asking: tokio::sync::Mutex::default(), known }
    }

    /// As known last.
    pub fn of(&self, topic: &str) -> Retention {
        self.known().retentions.get(topic).copied().unwrap_or_default()
    }

    /// Asks Kafka when what is known is old, and waits for it at most [`PATIENCE`].
    pub async fn refresh(&self) {
        let Ok(_asking) = self.asking.try_lock() else { return };
        if self.topics.is_empty() || self.known().ask_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        // A client for this one question: it comes every few minutes.
        let connection =
            Connection { brokers: self.properties.brokers.clone(), properties: self.properties.common.clone() };
        let answer = async { Admin::new(connection)?.retentions(&self.topics).await };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let mut known = self.known();
        match answer {
            Ok(Ok(retentions)) => {
                known.retentions = retentions;
                known.ask_at = Some(Instant::now() + SETTINGS_FRESH);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "retention of the topics unknown");
                known.ask_at = Some(Instant::now() + ASK_AGAIN);
            }
            Err(_) => known.ask_at = Some(Instant::now() + ASK_AGAIN),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is to be said about a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    Alarm(Alarm),
    Over,
}

/// What was said last, and when.
#[derive(Debug, Default)]
struct Told(Option<(Alarm, Duration)>);

impl Told {
    /// What is to be said now; `at` is the time since some start.
    fn say(&mut self, alarm: Option<Alarm>, at: Duration) -> Option<Say> {
        match (self.0, alarm) {
            (None, None) => None,
            (Some(_), None) => {
                self.0 = None;
                Some(Say::Over)
            }
            (Some((last, told)), Some(now)) if now <= last && at.saturating_sub(told) < REPEAT => None,
            (_, Some(now)) => {
                self.0 = Some((now, at));
                Some(Say::Alarm(now))
            }
        }
    }
}

/// Looks from time to time, for ever, and logs what is near its deletion.
pub fn watch(monitor: &Monitor) -> impl Future<Output = ()> {
    watch_every(monitor, LOOK_EVERY)
}

async fn watch_every(monitor: &Monitor, every: Duration) {
    let begun = Instant::now();
    let mut told: HashMap<usize, Told> = HashMap::new();
    loop {
        for (i, (view, figures)) in monitor.look().await.into_iter().enumerate() {
            let alarm = Alarm::of(figures.oldest_unprocessed, figures.retention);
            if let Some(say) = told.entry(i).or_default().say(alarm, begun.elapsed()) {
                log(view, &figures, say);
            }
        }
        tokio::time::sleep(every).await;
    }
}

fn log(view: &StageView, figures: &Figures, say: Say) {
    let context = view.context();
    let (pipeline, rung) = (context.ladder.pipeline(), context.rung());
    let used = used(figures.oldest_unprocessed, figures.retention.limit().unwrap_or_default());
    let (stage, topic, lag) = (&*rung.name, &*rung.topic, figures.lag);
    match say {
        Say::Alarm(Alarm::Warning) => tracing::warn!(
            %pipeline, stage, topic, lag, oldest = used,
            "the oldest unprocessed event is past half of its topic's retention: catch up, or raise retention.ms"
        ),
        Say::Alarm(Alarm::Critical) => tracing::error!(
            %pipeline, stage, topic, lag, oldest = used,
            "the oldest unprocessed event is about to be deleted by its topic's retention: raise retention.ms now"
        ),
        Say::Over => {
            tracing::info!(%pipeline, stage, topic, "no unprocessed event is near its topic's retention any more")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn half_of_the_retention_warns_and_most_of_it_is_critical() {
        let check = |hours: u32, expected: Option<Alarm>| {
            assert_eq!(Alarm::of(HOUR * hours, Retention::Limited(HOUR * 100)), expected, "{hours}");
            assert_eq!(Alarm::of(HOUR * hours, Retention::Forever), None);
            assert_eq!(Alarm::of(HOUR * hours, Retention::Unknown), None);
        };
        check(0, None);
        check(50, None);
        check(51, Some(Alarm::Warning));
        check(80, Some(Alarm::Warning));
        check(81, Some(Alarm::Critical));
        check(1_000, Some(Alarm::Critical));
    }

    #[test]
    fn retention_is_what_the_settings_say() {
        let check = |settings: &[(&str, &str)], expected: Retention| {
            let settings = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(Retention::of(&settings), expected, "{settings:?}");
        };
        check(&[("retention.ms", "3600000"), ("cleanup.policy", "delete")], Retention::Limited(HOUR));
        check(&[("retention.ms", "3600000"), ("cleanup.policy", "compact,delete")], Retention::Limited(HOUR));
        check(&[("retention.ms", "3600000"), ("cleanup.policy", "compact")], Retention::Forever);
        check(&[("retention.ms", "-1")], Retention::Forever);
        check(&[("cleanup.policy", "delete")], Retention::Unknown);
        check(&[("retention.ms", "soon")], Retention::Unknown);
    }

    #[test]
    fn an_alarm_is_told_when_it_begins_rises_lasts_and_ends_and_floods_nobody() {
        let mut told = Told::default();
        let mut said = Vec::new();
        let hour =
            |from: u64, alarm: Option<Alarm>| (from * 3_600..(from + 1) * 3_600).step_by(30).map(move |s| (s, alarm));
        let looks = hour(0, None)
            .chain(hour(1, Some(Alarm::Warning)))
            .chain(hour(2, Some(Alarm::Critical)))
            .chain(hour(3, None));
        for (second, alarm) in looks {
            said.extend(told.say(alarm, Duration::from_secs(second)).map(|say| (second / 60, say)));
        }
        let (warning, critical) = (Say::Alarm(Alarm::Warning), Say::Alarm(Alarm::Critical));
        let minutes = [(60, warning), (75, warning), (90, warning), (105, warning)];
        let more = [(120, critical), (135, critical), (150, critical), (165, critical), (180, Say::Over)];
        assert_eq!(said, [&minutes[..], &more].concat());
    }

    #[test]
    fn ages_are_told_as_coarse_as_a_person_reads_them() {
        assert_eq!(used(HOUR * 98 + Duration::from_secs(61), HOUR * 168), "4d 2h of 7d");
    }
}
