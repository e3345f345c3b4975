//! The proof is not blind: workers that break the promise on purpose make it fail, by the invariant that they break.
//!
//! Needs the feature `sabotage` and the real services: `cargo test --features sabotage --test sabotage`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::process::Command;

use serde_json::Value;

fn service(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: start the services with `scripts/services up`"))
}

/// Events at work are some hundred milliseconds long, so that a kill always finds some: `sabotage` must lose them.
fn check(sabotage: &str, broken: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .current_dir(folder.path())
        .args(["prove", "--brokers", &service("KAFKA_BROKERS"), "--redis", &service("REDIS_URL")])
        .args(["--events", "1500", "--rate", "100", "--kills", "4", "--freezes", "0", "--redis-outages", "0"])
        .args(["--latency", "800ms", "--lease", "15s", "--seed", "5", "--report", report.to_str().unwrap()])
        .env("TMPDIR", folder.path())
        .env("LADDER_PROVE_SABOTAGE", sabotage)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{sabotage} went unnoticed: {out}\n{err}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let invariants = report["invariants"].as_array().unwrap();
    let found: Vec<&str> =
        invariants.iter().filter(|i| i["holds"] == false).map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!(found, broken, "{sabotage}: {out}");
    assert!(report["lost"].as_u64().unwrap() > 0 && out.contains("THE PROMISE WAS BROKEN"), "{out}");
}

#[test]
fn setnx_without_a_lease_before_the_effect_loses_what_a_kill_finds_at_work() {
    check("setnx", &["nothing_lost"]);
}

#[test]
fn an_offset_done_before_the_acknowledgement_loses_what_a_kill_finds_with_the_producer() {
    check("early-offset", &["nothing_lost"]);
}

#[test]
fn a_busy_copy_dropped_is_lost_when_its_holder_was_killed() {
    check("drop-busy", &["nothing_lost"]);
}
