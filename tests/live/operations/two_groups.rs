//! `examples/two-groups.yaml` as it is shipped, on topics and groups of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use retry_ladder::handlers::executions::Execution;

use super::harness::{LIMIT, pipeline, records, redis_url, until};
use crate::support::{brokers, unique};

const EVENTS: usize = 400;
const NAMES: [&str; 2] = ["inventory", "analytics"];

fn command(folder: &Path, topic: &str) -> Command {
    let mut command = pipeline(folder);
    command.arg("--config").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/two-groups.yaml"));
    command
        .env("PIPELINE_KAFKA__BROKERS", brokers())
        .env("PIPELINE_REDIS__URL", redis_url())
        .env("PIPELINE_REDIS__PREFIX", topic)
        .env("PIPELINE_DEFAULTS__TOPIC", topic);
    for (name, delays) in [("inventory", "[200ms, 500ms, 900ms]"), ("analytics", "[300ms, 700ms]")] {
        let key = |key: &str| format!("PIPELINE_PIPELINES__{}__{key}", name.to_uppercase());
        let retries = delays.replace('[', "[{delay: ").replace(", ", "}, {delay: ").replace(']', "}]");
        command.env(key("RETRIES"), retries).env(key("GROUP"), format!("{topic}-{name}"));
        command.env(key("HANDLER__SIMULATE__RECORD"), folder.join(name));
    }
    command
}

/// Events by what came of them: done, and started at all.
fn executed(file: &Path) -> (BTreeSet<String>, BTreeMap<String, usize>) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let (mut done, mut started) = (BTreeSet::new(), BTreeMap::new());
    for execution in text.lines().filter_map(Execution::parse) {
        match execution.outcome.as_deref() {
            None => *started.entry(execution.event_id).or_insert(0) += 1,
            Some("done") => drop(done.insert(execution.event_id)),
            Some(_) => {}
        }
    }
    (done, started)
}

#[test]
fn each_group_sees_every_event_and_retries_and_dead_letters_on_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let topic = unique("two-groups");
    for arguments in [&["topics", "create"][..], &["produce", "--pipeline", "inventory", "--count", "400"]] {
        let output = command(folder.path(), &topic).args(arguments).output().expect("run pipeline");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).expect("a log");
    let mut child = command(folder.path(), &topic).stdin(Stdio::null()).stderr(file).spawn().expect("start pipeline");

    let dlq = |name: &str| records(&format!("{topic}.{topic}-{name}.dlq"));
    let outcome = |name: &str| {
        let dead: BTreeSet<String> = dlq(name).iter().map(|r| r.id().to_owned()).collect();
        (executed(&folder.path().join(name)), dead)
    };
    let log = || std::fs::read_to_string(&log).unwrap_or_default();
    for name in NAMES {
        let ended = || {
            let ((done, _), dead) = outcome(name);
            done.len() + dead.len() == EVENTS
        };
        until("every event ends in this group", ended, log);
    }
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let begun = std::time::Instant::now();
    while child.try_wait().expect("it can be watched").is_none() {
        assert!(begun.elapsed() < LIMIT, "{}", log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    let [(inventory, dead_here), (analytics, dead_there)] = NAMES.map(outcome);
    for ((done, started), dead) in [(&inventory, &dead_here), (&analytics, &dead_there)] {
        assert_eq!(started.len(), EVENTS, "every event ran");
        assert!(done.is_disjoint(dead) && !dead.is_empty(), "{dead:?}");
        assert!(started.values().any(|n| *n > 1), "some were tried again");
    }
    assert_ne!(dead_here, dead_there);
    assert!(dead_here.iter().any(|id| analytics.0.contains(id)), "what is dead for one is done for the other");
    // No copy of one group's ladder is in the other's.
    for (name, stages) in [("inventory", 3), ("analytics", 2)] {
        let group = format!("{topic}-{name}");
        for stage in 1..=stages {
            let copies = records(&format!("{topic}.{group}.retry-{stage}"));
            assert!(!copies.is_empty() && copies.iter().all(|copy| copy.header("x-ladder-group") == group));
        }
    }
}
