//! What the monitor saw and the stages counted, as metrics and as JSON.
//!
//! Every series of a stage is there from its start, at 0: an alert on a rate needs the zero before the first event.

use serde_json::{Value, json};

use super::health::pauses;
use super::monitor::Figures;
use super::retention::Alarm;
use crate::adapters::kafka::admin::Retention;
use crate::app::engine::StageView;
use crate::ladder::event::Reason;
use crate::stage::histogram::{BOUNDS_US, Histogram};
use crate::stage::stats::{Attempt, Label, Operation, PauseReason, Produced, StageStats, repairable};
use crate::telemetry::metrics::{self as m, Exposition, Metric};
use crate::telemetry::process::ProcessStats;
use crate::telemetry::traces::{Counts, QUEUE};

/// The metrics of these stages and of the process.
pub fn metrics(stages: &[(&StageView, Figures)]) -> Exposition {
    let mut out = Exposition::default();
    for (view, figures) in stages {
        let context = view.context();
        let stage = [&**context.ladder.pipeline(), &*context.rung().name];
        counters(&mut out, stage, &context.stats);
        gauges(&mut out, stage, figures);
        let paused = pauses(view, figures);
        for reason in PauseReason::ALL {
            let [pipeline, stage] = stage;
            out.add(&m::PAUSED, &[pipeline, stage, reason.as_str()], u8::from(paused.contains(reason)));
        }
    }
    if let Some(stats) = ProcessStats::read() {
        process(&mut out, &stats);
    }
    out
}

/// What the system says of the process.
fn process(out: &mut Exposition, process: &ProcessStats) {
    out.add(&m::PROCESS_CPU, &[], process.cpu_seconds);
    out.add(&m::PROCESS_RESIDENT, &[], process.resident_bytes);
    out.add(&m::PROCESS_VIRTUAL, &[], process.virtual_bytes);
    out.add(&m::PROCESS_OPEN_FDS, &[], process.open_fds);
    if let Some(max) = process.max_fds {
        out.add(&m::PROCESS_MAX_FDS, &[], max);
    }
    out.add(&m::PROCESS_THREADS, &[], process.threads);
    out.add(&m::PROCESS_START, &[], process.start_seconds);
}

/// What became of the spans of the process.
pub fn spans(out: &mut Exposition, counts: &Counts) {
    let (exported, failed, dropped) = (counts.exported(), counts.failed(), counts.dropped());
    out.add(&m::SPANS_PROCESSED, &[""], exported + failed);
    out.add(&m::SPANS_PROCESSED, &["queue_full"], dropped);
    out.add(&m::SPANS_EXPORTED, &[""], exported);
    out.add(&m::SPANS_EXPORTED, &["export_failed"], failed);
    out.add(&m::SPAN_QUEUE_SIZE, &[], counts.offered().saturating_sub(exported + failed + dropped));
    out.add(&m::SPAN_QUEUE_CAPACITY, &[], QUEUE);
}

/// What a stage counted.
pub fn counters(out: &mut Exposition, [pipeline, stage]: [&str; 2], stats: &StageStats) {
    let both = [pipeline, stage];
    for (outcome, count) in outcomes(stats) {
        out.add(&m::EVENTS, &[pipeline, stage, outcome], count);
    }
    let order = [("behind", &stats.behind), ("full", &stats.queue_full), ("lapsed", &stats.lapsed)];
    for (result, counter) in order {
        out.add(&m::ORDER, &[pipeline, stage, result], counter.get());
    }
    for attempt in Attempt::ALL {
        out.add(&m::ATTEMPTS, &[pipeline, stage, attempt.as_str()], stats.attempts.of(*attempt).get());
    }
    histogram(out, &m::HANDLER_DURATION, &both, &stats.handler_seconds);
    histogram(out, &m::LATENESS, &both, stats.lateness.coarse());
    out.add(&m::EARLY, &both, stats.early.get());
    for produced in Produced::ALL {
        out.add(&m::PRODUCED, &[pipeline, stage, produced.as_str()], stats.produced.of(*produced).get());
    }
    for operation in Operation::ALL {
        let (calls, op) = (stats.store(*operation), operation.as_str());
        histogram(out, &m::IDEMPOTENCY, &[pipeline, stage, op], &calls.seconds);
        for answer in operation.answers() {
            let count = calls.answers.of(*answer).get();
            out.add(&m::IDEMPOTENCY_TOTAL, &[pipeline, stage, op, answer.as_str()], count);
        }
    }
    out.add(&m::LEASES_LOST, &both, stats.leases_lost.get());
    for reason in Reason::ALL {
        out.add(&m::DEAD_LETTERS, &[pipeline, stage, reason.as_str()], stats.dead_lettered(reason).get());
    }
    for (header, counter) in repairable().zip(&stats.repaired_headers) {
        out.add(&m::HEADERS_REPAIRED, &[pipeline, stage, header], counter.get());
    }
}

fn outcomes(stats: &StageStats) -> [(&'static str, u64); 6] {
    [
        ("done", stats.done.get()),
        ("forwarded", stats.forwarded.get() + stats.deferred.get() + stats.behind.get()),
        ("dead_lettered", stats.dead_letters()),
        ("duplicate", stats.duplicates.get()),
        ("busy", stats.busy.get()),
        ("released", stats.released.get()),
    ]
}

fn gauges(out: &mut Exposition, stage: [&str; 2], figures: &Figures) {
    out.add(&m::WAITING, &stage, figures.waiting);
    out.add(&m::OVERDUE, &stage, figures.overdue);
    out.add(&m::OVERDUE_SECONDS, &stage, figures.oldest_overdue.as_secs_f64());
    out.add(&m::LAG, &stage, figures.lag);
    out.add(&m::OLDEST_UNPROCESSED, &stage, figures.oldest_unprocessed.as_secs_f64());
    match figures.retention {
        Retention::Unknown => {}
        Retention::Forever => out.add(&m::RETENTION, &stage, "+Inf"),
        Retention::Limited(limit) => out.add(&m::RETENTION, &stage, limit.as_secs_f64()),
    }
    out.add(&m::IN_FLIGHT, &stage, figures.in_flight);
    out.add(&m::PARTITIONS, &stage, figures.partitions.len());
    out.add(&m::BACKLOG_UNKNOWN, &stage, u8::from(figures.kafka.is_some()));
}

fn histogram(out: &mut Exposition, metric: &'static Metric, values: &[&str], h: &Histogram) {
    let cumulative = h.cumulative();
    // Cut to what fits the buckets, should a value have come in between.
    let count = cumulative[BOUNDS_US.len()];
    let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6);
    out.histogram(metric, values, bounds.zip(cumulative), count, h.sum().as_secs_f64());
}

/// One stage for `/status`.
pub fn status(view: &StageView, figures: &Figures) -> Value {
    let context = view.context();
    let (stats, rung) = (&context.stats, context.rung());
    let quantile = |q| stats.lateness.quantile(q).map(|d| d.as_secs_f64() * 1e3);
    let outcomes: serde_json::Map<_, _> =
        outcomes(stats).into_iter().map(|(outcome, count)| (outcome.to_owned(), count.into())).collect();
    json!({
        "pipeline": &**context.ladder.pipeline(),
        "stage": &*rung.name,
        "topic": &*rung.topic,
        "group": &*rung.group_id,
        "member": view.is_member(),
        "partitions": figures.partitions,
        "waiting": figures.waiting,
        "depth": view.is_last().then_some(figures.waiting),
        "overdue": figures.overdue,
        "oldest_overdue_ms": millis(figures.oldest_overdue),
        "lag": figures.lag,
        "oldest_unprocessed_ms": millis(figures.oldest_unprocessed),
        "retention_ms": figures.retention.limit().map(millis),
        "retention_alarm": Alarm::of(figures.oldest_unprocessed, figures.retention).map(Alarm::as_str),
        "in_flight": figures.in_flight,
        "paused": pauses(view, figures).iter().map(|r| r.as_str()).collect::<Vec<_>>(),
        "halted_partitions": figures.halted,
        "kafka": figures.kafka,
        "last_poll_ms": millis(view.since_last_poll()),
        "executions": stats.executions.get(),
        "events": outcomes,
        "lateness_ms": { "p50": quantile(0.5), "p99": quantile(0.99), "max": quantile(1.0) },
    })
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_open_any_number_of_files_tells_no_limit() {
        #[track_caller]
        fn check(max_fds: Option<u64>, sample: Option<&str>) {
            let mut out = Exposition::default();
            process(&mut out, &ProcessStats { open_fds: 7, max_fds, ..ProcessStats::default() });
            let text = out.render();
            assert!(text.contains("\nprocess_open_fds 7\n"), "{text}");
            assert_eq!(text.lines().find(|line| line.starts_with("process_max_fds")), sample, "{text}");
        }
        check(Some(1024), Some("process_max_fds 1024"));
        check(None, None);
    }
}
