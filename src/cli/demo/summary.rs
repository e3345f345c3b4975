//! The end of the demo: does it add up? Done comes from the handler's own record, dead from reading the DLQ back, and
//! the engine's counters only have to agree.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::End;
use super::feed::{Feed, event_id};
use super::recorder::Executions;
use super::screen::grouped;
use super::setup::{Demo, MAX_RECORD_BYTES};
use crate::adapters::kafka::embedded::record_bytes;
use crate::app::engine::RunningStage;
use crate::ladder::headers;
use crate::stage::record::Record;

/// Lost events that are named.
const NAMED: usize = 5;

/// What became of the events.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    produced: u64,
    done: u64,
    dead_lettered: u64,
    lost: u64,
    /// Still on the ladder when the demo was interrupted.
    #[serde(skip_serializing_if = "is_zero")]
    unfinished: u64,
    executions: u64,
    repeated_unexplained: u64,
    early: u64,
    lateness_ms: Lateness,
    stages: Vec<StageSummary>,
    #[serde(skip)]
    aside: Aside,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What only people are told.
#[derive(Clone, Debug, Default)]
struct Aside {
    by_class: BTreeMap<String, u64>,
    retries: u64,
    problems: Vec<String>,
}

/// Start − due of every execution in a delayed stage; zeros when there was none.
#[derive(Clone, Debug, Default, Serialize)]
struct Lateness {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Lateness {
    fn of(mut values: Vec<Duration>) -> Self {
        values.sort_unstable();
        // The smallest value that the share `q` of all does not exceed.
        let quantile = |q: f64| {
            let rank = (values.len() as f64 * q).ceil() as usize;
            values.get(rank.max(1) - 1).map_or(0.0, |d| d.as_micros() as f64 / 1e3)
        };
        Self { p50: quantile(0.5), p99: quantile(0.99), max: quantile(1.0) }
    }
}

/// What one stage did, by the engine's counters.
#[derive(Clone, Debug, Default, Serialize)]
struct StageSummary {
    stage: String,
    executions: u64,
    done: u64,
    forwarded: u64,
    dead_lettered: u64,
}

impl Summary {
    /// Reads the DLQ back and counts.
    pub(super) async fn take(demo: &Demo, feed: &Feed, end: End) -> anyhow::Result<Self> {
        let dlq = Arc::clone(&demo.ladder.dlq().topic);
        let dead = tokio::task::spawn_blocking({
            let broker = Arc::clone(&demo.broker);
            move || broker.read(&dlq)
        });
        let dead = dead.await??;
        // The DLQ's own stage executes nothing: it only looks.
        let (stages, _) = demo.stages.split_at(demo.ladder.dlq().index);
        let stages = stages.iter().map(stage_summary).collect();
        let mut summary = count(&feed.produced(), &demo.recorder.executions(), &dead, stages, end);
        summary.aside.problems.extend(feed.failures());
        Ok(summary)
    }

    /// Everything that does not add up.
    pub(super) fn problems(&self, asked: u64, end: End) -> Vec<String> {
        let mut problems = self.aside.problems.clone();
        let mut check = |holds: bool, what: String| {
            if !holds {
                problems.push(what);
            }
        };
        check(
            end != End::Standstill,
            format!("nothing moved for {} s, so the demo gave up", super::STANDSTILL.as_secs()),
        );
        check(
            end != End::Finished || self.produced == asked,
            format!("{asked} events were asked for, {} produced", self.produced),
        );
        let sum = self.done + self.dead_lettered + self.lost + self.unfinished;
        check(
            sum == self.produced,
            format!("done, dead-lettered and lost are {sum} in all, produced {}", self.produced),
        );
        check(self.early == 0, format!("{} executions started before their due time", self.early));
        check(self.repeated_unexplained == 0, format!("{} executions were repeated", self.repeated_unexplained));
        for (what, own, engine) in [
            ("executions", self.executions, self.total(|s| s.executions)),
            ("done", self.done, self.total(|s| s.done)),
            ("dead-lettered", self.dead_lettered, self.total(|s| s.dead_lettered)),
        ] {
            check(own == engine, format!("{what}: {own} were seen, the engine counts {engine}"));
        }
        problems
    }

    fn total(&self, of: impl Fn(&StageSummary) -> u64) -> u64 {
        self.stages.iter().map(of).sum()
    }

    /// One object on one line.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people.
    pub(super) fn text(&self, problems: &[String]) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: &str, note: &str| {
            let line = format!("{name:<14}{value:>9}   {note}");
            // A String takes everything.
            writeln!(text, "{}", line.trim_end()).ok();
        };
        row("produced", &grouped(self.produced), "");
        row("done", &grouped(self.done), "by the handler's own record");
        let classes: Vec<_> = self.aside.by_class.iter().map(|(class, n)| format!("{} {class}", grouped(*n))).collect();
        let classes = if classes.is_empty() { String::new() } else { format!(": {}", classes.join(", ")) };
        row("dead-lettered", &grouped(self.dead_lettered), &format!("read back from the DLQ{classes}"));
        row("lost", &grouped(self.lost), "");
        if self.unfinished > 0 {
            row("unfinished", &grouped(self.unfinished), "still on the ladder at the interrupt");
        }
        let Lateness { p50, p99, max } = &self.lateness_ms;
        let (retries, repeated, early) = (grouped(self.aside.retries), self.repeated_unexplained, self.early);
        let note = format!("{retries} retries, {repeated} repeated, {early} started early");
        row("executions", &grouped(self.executions), &note);
        let note = format!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms (start - due)");
        row("lateness", "", &note);
        writeln!(text, "\n{:<9}{:>11}{:>9}{:>11}{:>15}", "stage", "executions", "done", "forwarded", "dead-lettered")
            .ok();
        for stage in &self.stages {
            let numbers = [stage.executions, stage.done, stage.forwarded, stage.dead_lettered].map(grouped);
            let [executions, done, forwarded, dead] = &numbers;
            writeln!(text, "{:<9}{executions:>11}{done:>9}{forwarded:>11}{dead:>15}", stage.stage).ok();
        }
        text.push('\n');
        let (produced, done, dead) = (grouped(self.produced), grouped(self.done), grouped(self.dead_lettered));
        match problems {
            [] if self.unfinished > 0 => {
                let unfinished = grouped(self.unfinished);
                writeln!(
                    text,
                    "It adds up so far: {produced} = {done} done + {dead} dead-lettered + {unfinished} unfinished."
                )
                .ok();
            }
            [] => {
                writeln!(text, "It adds up: {produced} produced = {done} done + {dead} dead-lettered, none lost.").ok();
                text.push_str("The same ladder on a Kafka and Redis of your own: pipeline --help\n");
            }
            problems => {
                text.push_str("It does NOT add up:\n");
                for problem in problems {
                    writeln!(text, "  {problem}").ok();
                }
            }
        }
        text
    }
}

fn stage_summary(stage: &RunningStage) -> StageSummary {
    let stats = stage.stats();
    StageSummary {
        stage: stage.context().rung().name.to_string(),
        executions: stats.executions.get(),
        done: stats.done.get(),
        forwarded: stats.forwarded.get(),
        dead_lettered: stats.dead_letters(),
    }
}

/// Counts distinct events by their ids.
fn count(produced: &[u64], own: &Executions, dlq: &[Record], stages: Vec<StageSummary>, end: End) -> Summary {
    let mut aside = Aside { retries: own.lateness.len() as u64, ..Aside::default() };
    let mut dead: HashSet<&str> = HashSet::new();
    for record in dlq {
        let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let place = || format!("{} [{}] at {}", "a DLQ record", record.partition, record.offset);
        match text(headers::EVENT_ID) {
            Some(id) if dead.insert(id) => {
                let class = text(headers::ERROR).and_then(|e| e.split(':').next()).unwrap_or("unknown");
                *aside.by_class.entry(class.to_owned()).or_default() += 1;
            }
            Some(id) => aside.problems.push(format!("{id} is in the DLQ more than once")),
            None => aside.problems.push(format!("{} has no event id", place())),
        }
        if record_bytes(record) > MAX_RECORD_BYTES {
            aside.problems.push(format!(
                "{} takes {} bytes; this demo reckons with {MAX_RECORD_BYTES}",
                place(),
                record_bytes(record)
            ));
        }
    }
    let ids: Vec<String> = produced.iter().map(|n| event_id(*n)).collect();
    let missing: Vec<&String> =
        ids.iter().filter(|id| !own.done.contains(id.as_str()) && !dead.contains(id.as_str())).collect();
    let both = own.done.iter().filter(|id| dead.contains(&***id)).count();
    if both > 0 {
        aside.problems.push(format!("{both} events are both done and dead-lettered"));
    }
    let missing_count = missing.len() as u64;
    let (lost, unfinished) = if end == End::Interrupted { (0, missing_count) } else { (missing_count, 0) };
    if lost > 0 {
        let named: Vec<_> = missing.iter().take(NAMED).map(|id| id.as_str()).collect();
        let more = if missing.len() > NAMED { ", …" } else { "" };
        aside.problems.push(format!("{lost} events are neither done nor in the DLQ: {}{more}", named.join(", ")));
    }
    Summary {
        produced: produced.len() as u64,
        done: own.done.len() as u64,
        dead_lettered: dead.len() as u64,
        lost,
        unfinished,
        executions: own.count,
        repeated_unexplained: own.repeated,
        early: own.early,
        lateness_ms: Lateness::of(own.lateness.clone()),
        stages,
        aside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(n: u64, error: &str) -> Record {
        let header = |name: &'static str, value: String| (name.into(), Some(value.into()));
        Record {
            partition: 0,
            offset: n as i64,
            timestamp_ms: 0,
            key: None,
            value: None,
            headers: vec![header(headers::EVENT_ID, event_id(n)), header(headers::ERROR, error.to_owned())],
        }
    }

    fn own(done: &[u64]) -> Executions {
        let done = done.iter().map(|n| event_id(*n).into()).collect();
        Executions { count: 4, done, ..Executions::default() }
    }

    fn stages(executions: u64, done: u64, dead_lettered: u64) -> Vec<StageSummary> {
        vec![StageSummary { stage: "main".into(), executions, done, forwarded: 0, dead_lettered }]
    }

    /// Three events were produced: 1, 2 and 3.
    fn check(own: &Executions, dlq: &[Record], stages: Vec<StageSummary>, end: End, problems: &[&str]) -> Summary {
        let summary = count(&[1, 2, 3], own, dlq, stages, end);
        assert_eq!(summary.problems(3, end), problems);
        summary
    }

    #[test]
    fn what_adds_up_has_no_problems() {
        let dlq = [dead(3, "exhausted: simulated")];
        let summary = check(&own(&[1, 2]), &dlq, stages(4, 2, 1), End::Finished, &[]);
        assert_eq!((summary.produced, summary.done, summary.dead_lettered, summary.lost), (3, 2, 1, 0));
        let text = summary.text(&[]);
        assert!(text.contains("\nIt adds up: 3 produced = 2 done + 1 dead-lettered, none lost.\n"), "{text}");
        assert!(text.contains(": 1 exhausted\n"), "{text}");
    }

    #[test]
    fn every_fault_is_told() {
        let dlq = [dead(3, "exhausted: x")];
        let finished = End::Finished;
        check(&own(&[1]), &dlq, stages(4, 1, 1), finished, &["1 events are neither done nor in the DLQ: order-000002"]);
        check(
            &own(&[1, 2, 3]),
            &dlq,
            stages(4, 3, 1),
            finished,
            &["1 events are both done and dead-lettered", "done, dead-lettered and lost are 4 in all, produced 3"],
        );
        check(&own(&[1, 2]), &dlq, stages(5, 2, 1), finished, &["executions: 4 were seen, the engine counts 5"]);
        let twice = [dead(3, "exhausted: x"), dead(3, "exhausted: x")];
        check(&own(&[1, 2]), &twice, stages(4, 2, 1), finished, &["order-000003 is in the DLQ more than once"]);
        let early = Executions { early: 1, repeated: 2, ..own(&[1, 2]) };
        check(
            &early,
            &dlq,
            stages(4, 2, 1),
            finished,
            &["1 executions started before their due time", "2 executions were repeated"],
        );
    }

    #[test]
    fn what_is_on_the_ladder_at_an_interrupt_is_not_lost() {
        let summary = check(&own(&[1]), &[dead(3, "permanent: x")], stages(4, 1, 1), End::Interrupted, &[]);
        assert_eq!((summary.lost, summary.unfinished), (0, 1));
        assert!(summary.json().contains(r#""lost":0,"unfinished":1,"#), "{}", summary.json());
    }

    #[test]
    fn lateness_is_told_by_rank() {
        let check = |values: &[u64], expected: (f64, f64, f64)| {
            let lateness = Lateness::of(values.iter().map(|us| Duration::from_micros(*us)).collect());
            assert_eq!((lateness.p50, lateness.p99, lateness.max), expected, "{values:?}");
        };
        check(&[], (0.0, 0.0, 0.0));
        check(&[1_500], (1.5, 1.5, 1.5));
        check(&(1..=100).rev().map(|ms| ms * 1_000).collect::<Vec<_>>(), (50.0, 99.0, 100.0));
    }
}
