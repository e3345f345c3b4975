//! Looks at running stages: what waits, what is overdue, how far they lag, on the partitions that are assigned now.
//!
//! Invariants
//! - Figures are made of what the lanes of the assigned partitions hold at the moment of asking, exactly, and of the log
//!   beyond it, as seen at most [`FRESH`] ago (while Kafka does not answer: as seen last). A partition that was taken
//!   away is not in them any more, so that sums over instances are totals.
//! - Asking never waits longer than [`PATIENCE`], whatever Kafka does, and at most one look per stage is under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{join, join_all};

use super::expose;
use super::retention::Retentions;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::admin::Retention;
use crate::adapters::kafka::lag::{Ask, Backlog, LogReader};
use crate::app::engine::StageView;
use crate::ladder::event::Timestamp;
use crate::stage::lanes::LaneView;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::traces::Counts;

/// How old a look at the log may be.
pub const FRESH: Duration = Duration::from_millis(500);
/// Longest wait for Kafka before what was seen last has to do.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// What a stage holds on the partitions of this instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Partitions that are assigned, in order.
    pub partitions: Vec<i32>,
    /// Events that are not due yet; on the rung without a next all records.
    pub waiting: u64,
    /// Events that are due and not started.
    pub overdue: u64,
    /// For how long the oldest of them is due.
    pub oldest_overdue: Duration,
    /// End of the log minus the first offset that is not done.
    pub lag: u64,
    /// Events that were started and are not finished.
    pub in_flight: u64,
    /// Age of the oldest record that is not done, by its own timestamp.
    pub oldest_unprocessed: Duration,
    /// For how long the topic keeps records.
    pub retention: Retention,
    /// Partitions that are halted.
    pub halted: Vec<i32>,
    /// A lane knows that the deduplication store does not answer.
    pub store_down: bool,
    /// Why the log beyond the lanes could not be looked at, if it could not.
    pub kafka: Option<String>,
}

/// One stage, and what is known of its log.
pub struct Watched {
    view: StageView,
    log: Arc<Log>,
}

struct Log {
    properties: Properties,
    /// Locked while a look is under way.
    reader: Mutex<Option<LogReader>>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    backlogs: HashMap<i32, Backlog>,
    failure: Option<String>,
}

impl Log {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the log; blocks its thread. Whoever comes while somebody looks goes away at once.
    fn look(&self, view: &StageView, asks: &[Ask], now: Timestamp) {
        let Ok(mut reader) = self.reader.try_lock() else { return };
        let rung = view.context().rung();
        let result = match reader.take() {
            Some(open) => Ok(open),
            None => LogReader::new(&self.properties, &rung.topic, &rung.group_id),
        };
        let answer = result.and_then(|open| {
            let open = reader.insert(open);
            open.backlog(asks, rung.delay, now)
        });
        let mut seen = self.seen();
        match answer {
            Ok(backlogs) => {
                seen.failure = None;
                seen.backlogs = backlogs.into_iter().map(|b| (b.partition, b)).collect();
            }
            Err(error) => seen.failure = Some(error.to_string()),
        }
        seen.at = Some(Instant::now());
    }
}

impl Watched {
    /// Watches a stage; nothing is asked yet.
    pub fn new(view: StageView, properties: Properties) -> Self {
        let log = Log { properties, reader: Mutex::new(None), seen: Mutex::new(Seen::default()) };
        Self { view, log: Arc::new(log) }
    }

    /// The stage.
    pub fn view(&self) -> &StageView {
        &self.view
    }

    /// What it holds now.
    pub async fn figures(&self) -> Figures {
        let mut lanes = self.view.look().await;
        lanes.sort_unstable_by_key(|(partition, _)| *partition);
        let now = self.view.context().clock.now().wall;
        self.refresh(&lanes, now).await;
        let seen = self.log.seen();
        Figures { kafka: seen.failure.clone(), ..figures(&lanes, &seen.backlogs, self.view.is_last(), now) }
    }

    async fn refresh(&self, lanes: &[(i32, LaneView)], now: Timestamp) {
        {
            let seen = self.log.seen();
            let fresh = seen.at.is_some_and(|at| at.elapsed() < FRESH);
            if fresh && lanes.iter().all(|(partition, _)| seen.backlogs.contains_key(partition)) {
                return;
            }
        }
        // Without a partition the question still tells whether Kafka answers.
        let asks = match lanes {
            [] => vec![Ask { partition: 0, from: Some(0) }],
            lanes => {
                lanes.iter().map(|(partition, lane)| Ask { partition: *partition, from: lane.delivered_to }).collect()
            }
        };
        let (log, view) = (Arc::clone(&self.log), self.view.clone());
        let look = tokio::task::spawn_blocking(move || log.look(&view, &asks, now));
        if tokio::time::timeout(PATIENCE, look).await.is_err() {
            self.log.seen().failure.get_or_insert_with(|| format!("no answer from kafka within {PATIENCE:?}"));
        }
    }
}

/// Joins what the lanes hold with what lies beyond them.
pub fn figures(lanes: &[(i32, LaneView)], backlogs: &HashMap<i32, Backlog>, is_last: bool, now: Timestamp) -> Figures {
    let mut figures = Figures::default();
    let (mut oldest, mut oldest_record): (Option<Timestamp>, Option<Timestamp>) = (None, None);
    for (partition, lane) in lanes {
        figures.partitions.push(*partition);
        figures.in_flight += lane.in_flight;
        figures.store_down |= lane.store_down;
        if lane.halted {
            figures.halted.push(*partition);
        }
        let log = backlogs.get(partition).copied().unwrap_or_default();
        let beyond_head = log.head.filter(|_| log.high > lane.delivered_to.unwrap_or(log.from));
        oldest_record = lane.oldest_record.into_iter().chain(beyond_head).chain(oldest_record).min();
        let high = log.high.max(lane.delivered_to.unwrap_or(log.from));
        let position = lane.position.unwrap_or(log.from);
        figures.lag += u64::try_from(high - position).unwrap_or_default();
        if is_last {
            figures.waiting += log.depth(); // dead letters wait for a person
            continue;
        }
        let next = lane.delivered_to.unwrap_or(log.from);
        figures.waiting += lane.waiting + log.waiting(next);
        let beyond = log.overdue(next);
        figures.overdue += lane.overdue + beyond;
        let dues = lane.oldest_overdue.into_iter().chain(log.oldest.filter(|_| beyond > 0));
        oldest = dues.chain(oldest).min();
    }
    let age = |at: Option<Timestamp>| at.map(|at| now.since(at)).unwrap_or_default();
    (figures.oldest_overdue, figures.oldest_unprocessed) = (age(oldest), age(oldest_record));
    figures
}

/// All stages of a process.
pub struct Monitor {
    stages: Vec<Watched>,
    retentions: Retentions,
    spans: Option<Arc<Counts>>,
}

impl Monitor {
    /// Watches these stages.
    pub fn new(views: Vec<StageView>, properties: &Properties) -> Self {
        let topics = views.iter().map(|view| view.context().rung().topic.to_string()).collect();
        let stages = views.into_iter().map(|view| Watched::new(view, properties.clone())).collect();
        Self { stages, retentions: Retentions::new(properties, topics), spans: None }
    }

    /// Tells of the export of spans, too, where there is one.
    #[must_use]
    pub fn spans(self, spans: Option<Arc<Counts>>) -> Self {
        Self { spans, ..self }
    }

    /// All metrics of the process.
    pub async fn metrics(&self) -> Exposition {
        let mut metrics = expose::metrics(&self.look().await);
        if let Some(counts) = &self.spans {
            expose::spans(&mut metrics, counts);
        }
        metrics
    }

    /// Each stage with what it holds now.
    pub async fn look(&self) -> Vec<(&StageView, Figures)> {
        let looks = join_all(self.stages.iter().map(|stage| async { (stage.view(), stage.figures().await) }));
        let (mut seen, ()) = join(looks, self.retentions.refresh()).await;
        for (view, figures) in &mut seen {
            figures.retention = self.retentions.of(&view.context().rung().topic);
        }
        seen
    }

    /// The stages.
    pub fn stages(&self) -> impl Iterator<Item = &StageView> {
        self.stages.iter().map(Watched::view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(100_000);

    fn lane(position: i64, delivered_to: i64, waiting: u64, overdue: u64) -> LaneView {
        let in_flight = u64::try_from(delivered_to - position).unwrap() - waiting - overdue;
        LaneView {
            position: Some(position),
            delivered_to: Some(delivered_to),
            waiting,
            overdue,
            oldest_overdue: (overdue > 0).then_some(Timestamp::from_millis(90_000)),
            in_flight,
            ..LaneView::default()
        }
    }

    fn log(partition: i32, from: i64, boundary: i64, high: i64) -> (i32, Backlog) {
        let oldest = (boundary > from).then_some(Timestamp::from_millis(95_000));
        (partition, Backlog { partition, low: 0, high, from, boundary, oldest, head: None })
    }

    fn check(lanes: &[(i32, LaneView)], logs: &[(i32, Backlog)], expected: (u64, u64, u64, u64)) {
        let seen = figures(lanes, &logs.iter().copied().collect(), false, NOW);
        let oldest_ms = u64::try_from(seen.oldest_overdue.as_millis()).unwrap();
        assert_eq!((seen.waiting, seen.overdue, oldest_ms, seen.lag), expected);
    }

    #[test]
    fn the_window_and_the_log_beyond_it_are_one_total() {
        check(&[], &[], (0, 0, 0, 0));
        // 10..210 in memory, all waiting; 210..1000 beyond, nothing due.
        check(&[(0, lane(10, 210, 200, 0))], &[log(0, 210, 210, 1_000)], (990, 0, 0, 990));
        // Started late: 5 run, 195 wait for a permit, 300 beyond are due, 490 are not.
        check(&[(0, lane(10, 210, 0, 195))], &[log(0, 210, 510, 1_000)], (490, 495, 10_000, 990));
        check(
            &[(0, lane(10, 210, 0, 0)), (1, lane(0, 5, 5, 0))],
            &[log(0, 210, 300, 300), log(1, 5, 5, 6)],
            (6, 90, 5_000, 296),
        );
    }

    #[test]
    fn a_log_seen_earlier_than_the_window_never_counts_twice_or_below_zero() {
        // The lane has read past the end, and past the boundary, that were seen.
        check(&[(0, lane(400, 420, 20, 0))], &[log(0, 210, 300, 410)], (20, 0, 0, 20));
        check(&[(0, lane(250, 260, 0, 10))], &[log(0, 210, 300, 410)], (110, 50, 10_000, 160));
        check(&[(0, lane(420, 420, 0, 0))], &[log(0, 210, 300, 410)], (0, 0, 0, 0));
    }

    #[test]
    fn the_oldest_unprocessed_record_is_in_a_lane_or_at_the_head_of_the_log_beyond_it() {
        let at = |seconds: u64| Some(Timestamp::from_millis(seconds * 1_000));
        let check = |lane: Option<u64>, head: Option<u64>, (from, high): (i64, i64), expected: u64| {
            let mut view = self::lane(10, 30, 20, 0);
            view.oldest_record = lane.and_then(at);
            let log = Backlog { high, head: head.and_then(at), ..self::log(0, from, from, high).1 };
            let seen = figures(&[(0, view)], &[(0, log)].into(), false, NOW);
            assert_eq!(seen.oldest_unprocessed, Duration::from_secs(expected), "{lane:?} {head:?} {from}..{high}");
        };
        check(Some(40), Some(70), (30, 900), 60);
        check(None, Some(70), (30, 900), 30);
        check(None, None, (30, 30), 0);
        // The lane has read what was seen beyond it, and is done with it.
        check(None, Some(70), (20, 30), 0);
        check(Some(99), Some(70), (20, 30), 1);
        // Written by a clock that is ahead of ours.
        check(Some(500), None, (30, 30), 0);
    }

    #[test]
    fn a_partition_that_was_taken_away_or_has_not_been_seen_adds_nothing_of_the_log() {
        check(&[], &[log(0, 0, 500, 1_000)], (0, 0, 0, 0));
        check(&[(0, lane(10, 30, 20, 0))], &[], (20, 0, 0, 20));
    }

    #[test]
    fn a_partition_of_which_nothing_was_delivered_yet_is_counted_from_what_was_committed() {
        check(&[(0, LaneView::default())], &[log(0, 700, 800, 1_000)], (200, 100, 5_000, 300));
    }

    #[test]
    fn on_the_rung_without_a_next_every_record_waits() {
        let seen = figures(&[(0, lane(90, 90, 0, 0))], &[log(0, 90, 90, 90)].into(), true, NOW);
        assert_eq!((seen.waiting, seen.overdue, seen.lag), (90, 0, 0));
    }
}
