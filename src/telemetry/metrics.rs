//! Every metric, declared once, and Prometheus' text format.
//!
//! A metric's type, labels and help stand here and nowhere else; where its numbers come from is `admin`'s. Labels never
//! carry event ids, keys or partitions, so the number of series depends on the configuration alone. Ours begin with
//! `ladder_`; what others have named keeps its name: `process_`, and for spans `otel_sdk_`, which are OpenTelemetry's
//! SDK metrics (semantic conventions 1.44) as Prometheus writes them.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};

/// The content type of [`Exposition::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of durations by size, in seconds.
    Histogram,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        })
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name; the unit is part of it.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// What they count: seconds, bytes, events …
    pub unit: &'static str,
    /// Its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// What it means, for a person.
    pub help: &'static str,
}

macro_rules! metrics {
    ($( $id:ident = $name:literal $kind:ident $unit:literal [$($label:literal),*] $help:literal; )*) => {
        $( #[doc = $help] pub static $id: Metric = Metric {
            name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help,
        }; )*
        /// All of them, in the order in which they are shown.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    EVENTS = "ladder_events_total" Counter "events" ["pipeline", "stage", "outcome"]
        "Events by what became of them here: done, forwarded (deferred ones and those behind another of their key included), dead_lettered, duplicate (known as finished or moved on); and times that an event was found busy (held by another instance) or released unstarted.";
    ORDER = "ladder_order_total" Counter "events" ["pipeline", "stage", "result"]
        "With order: ladder: times that an event was not run because an earlier one of its key is in the ladder: behind (moved on to wait), full (held back, its key's queue is full); and lapsed: earlier ones that are no longer waited for.";
    ATTEMPTS = "ladder_attempts_total" Counter "executions" ["pipeline", "stage", "result"]
        "Executions of the handler that ended: done, transient, permanent, poison, fenced (the sink refused the fence) or cancelled (lease or partition lost).";
    HANDLER_DURATION = "ladder_handler_duration_seconds" Histogram "seconds" ["pipeline", "stage"]
        "How long executions of the handler took; cancelled ones are not in it.";
    LATENESS = "ladder_lateness_seconds" Histogram "seconds" ["pipeline", "stage"]
        "Start minus due of each execution on a retry stage.";
    EARLY = "ladder_early_total" Counter "executions" ["pipeline", "stage"]
        "Executions before their due time; anything but 0 is a bug.";
    WAITING = "ladder_waiting_events" Gauge "events" ["pipeline", "stage"]
        "Events that are not due yet, on the partitions of this instance; on the dlq stage all records of the DLQ, redriven and discarded ones too. Exact for the events in memory, an estimate from the log for those beyond.";
    OVERDUE = "ladder_overdue_events" Gauge "events" ["pipeline", "stage"]
        "Events that are due and not started, on the partitions of this instance. Exact for the events in memory, an estimate from the log for those beyond.";
    OVERDUE_SECONDS = "ladder_overdue_seconds" Gauge "seconds" ["pipeline", "stage"]
        "For how long the oldest event that is due and not started has been due, 0 when there is none; on main since its record was written. An estimate beyond the events in memory.";
    LAG = "ladder_consumer_lag_events" Gauge "events" ["pipeline", "stage"]
        "End of the log minus the first offset that is not done, summed over the partitions of this instance; waiting events are part of it.";
    OLDEST_UNPROCESSED = "ladder_oldest_unprocessed_seconds" Gauge "seconds" ["pipeline", "stage"]
        "Age of the oldest record that is not done, on the partitions of this instance, 0 when there is none. Exact for the events in memory, an estimate from the log for those beyond.";
    RETENTION = "ladder_retention_seconds" Gauge "seconds" ["pipeline", "stage"]
        "For how long the stage's topic keeps records, handled or not (retention.ms); +Inf when age deletes none, absent while Kafka does not tell.";
    IN_FLIGHT = "ladder_in_flight" Gauge "events" ["pipeline", "stage"]
        "Events that were started and are not finished: claimed, running, with the producer, or being recorded.";
    PARTITIONS = "ladder_assigned_partitions" Gauge "partitions" ["pipeline", "stage"]
        "Partitions of this instance.";
    PRODUCED = "ladder_produced_total" Counter "records" ["pipeline", "stage", "result"]
        "Records handed to the producer, by its answer: acknowledged, too_large (tried again in a smaller form), unacknowledged (produced again).";
    IDEMPOTENCY = "ladder_idempotency_seconds" Histogram "seconds" ["pipeline", "stage", "op"]
        "How long the deduplication store took to answer a batch: claim, renew, settle or release.";
    IDEMPOTENCY_TOTAL = "ladder_idempotency_total" Counter "answers" ["pipeline", "stage", "op", "result"]
        "Answers of the deduplication store to single entries of its batches; unavailable: none in time, or an error.";
    LEASES_LOST = "ladder_leases_lost_total" Counter "leases" ["pipeline", "stage"]
        "Leases lost before the outcome was in hand, or found lost when it was recorded.";
    PAUSED = "ladder_paused" Gauge "flag" ["pipeline", "stage", "reason"]
        "1 while the stage starts nothing for this reason (halted: while at least one of its partitions is), else 0.";
    DEAD_LETTERS = "ladder_dead_letters_total" Counter "events" ["pipeline", "stage", "class"]
        "Events that this stage moved to the DLQ, by class: permanent, poison, exhausted, expired.";
    HEADERS_REPAIRED = "ladder_headers_repaired_total" Counter "headers" ["pipeline", "stage", "header"]
        "Headers that were missing or broken and were repaired; due_clamped: a due too far ahead; untrusted: a record whose ladder headers were all ignored.";
    BACKLOG_UNKNOWN = "ladder_backlog_unknown" Gauge "flag" ["pipeline", "stage"]
        "1 while Kafka does not tell the ends of the log: then what lies beyond the events in memory is as it was seen last.";
    SPANS_PROCESSED = "otel_sdk_processor_span_processed_total" Counter "spans" ["error_type"]
        "Spans that went to the exporter; with error_type queue_full: that were lost because the queue was full.";
    SPANS_EXPORTED = "otel_sdk_exporter_span_exported_total" Counter "spans" ["error_type"]
        "Spans that the collector took; with error_type export_failed: that were lost because it could not be reached, was too slow or refused them.";
    SPAN_QUEUE_SIZE = "otel_sdk_processor_span_queue_size" Gauge "spans" []
        "Spans that wait to be exported, those on their way included.";
    SPAN_QUEUE_CAPACITY = "otel_sdk_processor_span_queue_capacity" Gauge "spans" []
        "Most spans that may wait to be exported.";
    PROCESS_CPU = "process_cpu_seconds_total" Counter "seconds" []
        "CPU time of this process, user and system.";
    PROCESS_RESIDENT = "process_resident_memory_bytes" Gauge "bytes" []
        "Memory of this process that is in RAM.";
    PROCESS_VIRTUAL = "process_virtual_memory_bytes" Gauge "bytes" []
        "Address space of this process.";
    PROCESS_OPEN_FDS = "process_open_fds" Gauge "files" []
        "Open files, sockets included.";
    PROCESS_MAX_FDS = "process_max_fds" Gauge "files" []
        "Most files that may be open; absent when there is no limit.";
    PROCESS_THREADS = "process_threads" Gauge "threads" []
        "Threads of this process.";
    PROCESS_START = "process_start_time_seconds" Gauge "seconds" []
        "When this process started, in seconds since the Unix epoch.";
}

/// Samples of one moment.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<&'static str, String>,
}

impl Exposition {
    /// Adds a number. `values` are those of the metric's labels, in their order; one that is empty is left out, which
    /// means the same.
    pub fn add(&mut self, metric: &'static Metric, values: &[&str], number: impl Display) {
        debug_assert_ne!(metric.kind, Kind::Histogram);
        let out = self.samples.entry(metric.name).or_default();
        line(out, metric.name, "", metric.labels.iter().copied().zip(values.iter().copied()), number);
    }

    /// Adds a histogram: how many values are at most as large as each bound (in seconds), how many there are, their sum.
    pub fn histogram(
        &mut self,
        metric: &'static Metric,
        values: &[&str],
        cumulative: impl IntoIterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        debug_assert_eq!(metric.kind, Kind::Histogram);
        let out = self.samples.entry(metric.name).or_default();
        let labels = || metric.labels.iter().copied().zip(values.iter().copied());
        for (bound, at_most) in cumulative {
            let bound = bound.to_string();
            line(out, metric.name, "_bucket", labels().chain([("le", bound.as_str())]), at_most);
        }
        line(out, metric.name, "_bucket", labels().chain([("le", "+Inf")]), count);
        line(out, metric.name, "_sum", labels(), sum);
        line(out, metric.name, "_count", labels(), count);
    }

    /// All metrics that have samples, in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for metric in ALL {
            if let Some(samples) = self.samples.get(metric.name) {
                let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
                // Writing to a string does not fail.
                writeln!(out, "# HELP {} {help}\n# TYPE {0} {}", metric.name, metric.kind).ok();
                out.push_str(samples);
            }
        }
        out
    }
}

fn line<'a>(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    number: impl Display,
) {
    out.push_str(name);
    out.push_str(suffix);
    let mut separator = '{';
    for (label, value) in labels.filter(|(_, value)| !value.is_empty()) {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(out, "{separator}{label}=\"{value}\"").ok();
        separator = ',';
    }
    let end = if separator == ',' { "}" } else { "" };
    writeln!(out, "{end} {number}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_named_as_prometheus_wants_it() {
        for metric in ALL {
            let name = metric.name;
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            if matches!(metric.unit, "seconds" | "bytes") {
                assert!(name.trim_end_matches("_total").ends_with(metric.unit), "{name} is in {}", metric.unit);
            }
            for label in metric.labels {
                assert!(
                    ["pipeline", "stage", "outcome", "result", "op", "reason", "class", "header", "error_type"]
                        .contains(label)
                );
            }
            assert_eq!(ALL.iter().filter(|m| m.name == name).count(), 1, "{name}");
            assert!(metric.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn the_text_is_as_prometheus_reads_it() {
        let mut metrics = Exposition::default();
        metrics.add(&PROCESS_THREADS, &[], 7);
        metrics.add(&SPANS_EXPORTED, &[""], 2);
        metrics.add(&DEAD_LETTERS, &["a\"b\\c\nd", "main", "poison"], 3);
        metrics.histogram(&LATENESS, &["orders", "retry-1"], [(0.001, 1), (2.5, 4)], 5, 12.25);
        let text = metrics.render();
        let samples: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"ladder_lateness_seconds_bucket{pipeline="orders",stage="retry-1",le="0.001"} 1"#,
                r#"ladder_lateness_seconds_bucket{pipeline="orders",stage="retry-1",le="2.5"} 4"#,
                r#"ladder_lateness_seconds_bucket{pipeline="orders",stage="retry-1",le="+Inf"} 5"#,
                r#"ladder_lateness_seconds_sum{pipeline="orders",stage="retry-1"} 12.25"#,
                r#"ladder_lateness_seconds_count{pipeline="orders",stage="retry-1"} 5"#,
                r#"ladder_dead_letters_total{pipeline="a\"b\\c\nd",stage="main",class="poison"} 3"#,
                "otel_sdk_exporter_span_exported_total 2",
                "process_threads 7",
            ]
        );
        assert!(text.starts_with("# HELP ladder_lateness_seconds Start minus due"), "{text}");
        assert!(text.contains("\n# TYPE process_threads gauge\nprocess_threads 7\n"), "{text}");
    }
}
