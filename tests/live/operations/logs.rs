//! What processes log: JSON with the ids of an event, levels by who must act, and no line per event above DEBUG.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{LIMIT, Ladder, until};

const EVENTS: usize = 300;

/// A run in which every event fails on every stage and ends in the DLQ, with a collector that is not there.
fn storm(filter: &str) -> (BTreeSet<String>, Vec<Value>) {
    let mut ladder = Ladder::created(1);
    ladder.simulate("fail_ratio", 1);
    ladder.simulate("dead_ratio", 1);
    ladder.simulate("permanent_ratio", 0);
    // Everything fails on purpose: how fast the machine is must not decide whether one of them tells of it.
    for guard in ["breaker", "brake"] {
        ladder.pipeline()[guard] = json!({ "enabled": false });
    }
    ladder.config["telemetry"] = json!({ "log_format": "json", "otlp_endpoint": "http://127.0.0.1:1" });
    let ids = ladder.produce_all("main", EVENTS);
    let mut all = ladder.start_with("all", &["--stage", "all"], &[("RUST_LOG", filter)]);
    let told = |log: &str| {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == "dead letters").filter_map(|line| line["new"].as_u64()).sum::<u64>()
    };
    until("every event is in the DLQ", || ladder.dead_letters().len() >= EVENTS, || all.log());
    // The stage of the DLQ sums up when it ends at the latest.
    all.signal(Signal::TERM);
    assert_eq!(all.exit_code(LIMIT), 0);
    let log = all.log();
    assert!(told(&log) > 0, "{log}");
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    (ids, lines.collect())
}

#[test]
fn lines_about_an_event_carry_its_ids() {
    let (ids, lines) = storm("warn,retry_ladder=debug");
    let mut failures: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    let mut traces: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
        let Some(id) = line["event_id"].as_str() else { continue };
        assert_eq!(line["level"], "DEBUG", "{line}");
        let trace = line["trace_id"].as_str().unwrap_or_else(|| panic!("no trace id: {line}"));
        assert!(trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
        traces.entry(id).or_default().insert(trace);
        let [stage, attempt] = [&line["stage"], &line["attempt"]];
        let (Some(stage), Some(attempt)) = (stage.as_str(), attempt.as_u64()) else { panic!("{line}") };
        if line["message"] == "execution failed" {
            failures.entry(id).or_default().push((stage, attempt));
        }
    }
    for id in &ids {
        assert_eq!(failures[&**id], [("main", 1), ("retry-1", 2), ("retry-2", 3)], "{id}");
        assert_eq!(traces[&**id].len(), 1, "one trace through all stages: {id}");
    }
    assert_eq!(failures.len(), ids.len());
}

#[test]
fn a_storm_of_failures_without_a_collector_is_no_storm_of_lines() {
    let (_, lines) = storm("info");
    assert!(lines.len() < 40, "{} lines: {lines:#?}", lines.len());
    let of = |level: &str| lines.iter().filter(|line| line["level"] == level).collect::<Vec<_>>();
    assert_eq!(of("ERROR"), [&Value::Null; 0], "nobody has to act: the DLQ is where they are to be");
    let warnings = of("WARN");
    // That the collector is not there, and at the end how many spans it cost.
    assert!((1..=2).contains(&warnings.len()), "{warnings:#?}");
    assert!(lines.iter().all(|line| line["event_id"].is_null()), "{lines:#?}");
}
