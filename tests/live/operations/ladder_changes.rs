//! A ladder that is changed while events wait in it: a rung added, removed or renamed, its delay changed, main's
//! partitions raised. Nothing is stranded, and nothing runs before the due that was written.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{LIMIT, Ladder, Worker, records, until, until_done};
use crate::support::client_config;

const PARTITIONS: i32 = 2;
const EVENTS: usize = 5;

/// A ladder of these delays whose handler fails, with all events waiting behind the stages that ran: `main`, or `main`
/// and `retry-1`. The events and their dues.
fn with_backlog(delays: &[&str], ran: &[&str]) -> (Ladder, BTreeMap<String, u64>) {
    let mut ladder = Ladder::new(PARTITIONS);
    ladder.pipeline()["retries"] = retries(delays);
    ladder.simulate("fail_ratio", 1);
    ladder.simulate("dead_ratio", 1);
    ladder.simulate("permanent_ratio", 0);
    create_topics(&ladder);
    let ids = ladder.produce_all("main", EVENTS);
    let stages: Vec<&str> = ran.iter().flat_map(|stage| ["--stage", stage]).collect();
    let mut worker = ladder.start("before", &stages);
    let topic = ladder.topic(&format!("retry-{}", ran.len()));
    until("all wait", || records(&topic).len() == ids.len(), || worker.log());
    stop(&mut worker);
    ladder.simulate("fail_ratio", 0);
    let due = |text: &str| text.parse().expect("a due");
    (ladder, records(&topic).iter().map(|r| (r.id().to_owned(), due(r.header("x-ladder-due")))).collect())
}

fn retries(delays: &[&str]) -> Value {
    delays.iter().map(|delay| json!({ "delay": delay })).collect()
}

fn create_topics(ladder: &Ladder) -> String {
    let output = ladder.call(&["topics", "create"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("utf-8")
}

fn check_topics(ladder: &Ladder) -> String {
    String::from_utf8(ladder.call(&["topics", "check"]).stdout).expect("utf-8")
}

fn stop(worker: &mut Worker) {
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(LIMIT), 0);
}

/// Each event ran once, not before its due, in this stage.
#[track_caller]
fn ran_once_when_due(worker: &Worker, dues: &BTreeMap<String, u64>, stage: &str) {
    let ids: BTreeSet<String> = dues.keys().cloned().collect();
    until_done(&ids, &[worker]);
    let starts = worker.starts();
    assert_eq!(starts.len(), dues.len(), "{starts:?}");
    for start in starts {
        assert_eq!(start.stage, stage, "{start:?}");
        let due = dues[&start.event_id];
        assert!(start.at.floor_millis() >= due, "{start:?} was due at {due}");
    }
}

#[test]
fn a_rung_that_is_removed_is_told_until_it_is_drained() {
    let (mut ladder, dues) = with_backlog(&["200ms", "1500ms"], &["main", "retry-1"]);
    ladder.pipeline()["retries"] = retries(&["200ms"]);
    let orphan = ladder.topic("retry-2");
    let told = format!("orphan: {} messages", dues.len());
    assert!(check_topics(&ladder).contains(&told), "{}", check_topics(&ladder));

    // Those that run know of it, and leave it alone.
    let rest = ladder.start("rest", &[]);
    until("it is told at start", || rest.log().contains(&format!("--stage orphan:{orphan}")), || rest.log());
    let mut drain = ladder.start("drain", &["--stage", &format!("orphan:{orphan}")]);
    ran_once_when_due(&drain, &dues, "retry-2");
    assert_eq!(rest.starts(), []);
    stop(&mut drain);
    until("it is no orphan any more", || !check_topics(&ladder).contains("orphan"), || check_topics(&ladder));
    assert_eq!(ladder.dead_letters(), [""; 0]);
}

#[test]
fn what_fails_on_a_renamed_rung_goes_on_in_the_ladder_as_it_is_now() {
    let (mut ladder, dues) = with_backlog(&["1500ms"], &["main"]);
    let orphan = ladder.topic("retry-1");
    // Shorter as well: the dues that the former rung wrote hold all the same.
    ladder.pipeline()["retries"] = json!([{ "delay": "300ms", "name": format!("{orphan}-short") }]);
    // The drain's execution is the second attempt; it fails, the third succeeds.
    ladder.simulate("fail_ratio", 1);
    ladder.simulate("dead_ratio", 0);
    ladder.simulate("max_failures", 2);
    create_topics(&ladder);
    let worker = ladder.start("after", &["--stage", "all", "--stage", &format!("orphan:{orphan}")]);
    let ids: BTreeSet<String> = dues.keys().cloned().collect();
    until_done(&ids, &[&worker]);
    let moved: BTreeSet<String> = records(&format!("{orphan}-short")).iter().map(|r| r.id().to_owned()).collect();
    let starts = worker.starts();
    let runs = |id: &str| starts.iter().filter(|start| start.event_id == id).collect::<Vec<_>>();
    for (id, due) in &dues {
        let runs = runs(id);
        assert_eq!(runs.len(), if moved.contains(id) { 2 } else { 1 }, "{runs:?}");
        assert!(runs[0].at.floor_millis() >= *due, "{:?} was due at {due}", runs[0]);
    }
    assert_eq!(ladder.dead_letters(), [""; 0]);
}

#[test]
fn a_rung_that_is_added_is_the_next_for_what_waits_below_it() {
    let (mut ladder, dues) = with_backlog(&["200ms", "1s"], &["main", "retry-1"]);
    ladder.pipeline()["retries"] = retries(&["200ms", "700ms", "1s"]);
    ladder.simulate("fail_ratio", 1);
    let created = create_topics(&ladder);
    assert!(created.lines().any(|line| line.contains("retry-3") && line.contains("created")), "{created}");
    let worker = ladder.start("after", &[]);
    until("all have gone the whole way", || ladder.dead_letters().len() == dues.len(), || worker.log());
    let starts = worker.starts();
    for (id, due) in &dues {
        let runs: Vec<_> = starts.iter().filter(|start| start.event_id == *id).collect();
        assert_eq!(runs.iter().map(|run| &*run.stage).collect::<Vec<_>>(), ["retry-2", "retry-3"]);
        assert!(runs[0].at.floor_millis() >= *due, "{:?} was due at {due}", runs[0]);
    }
    for letter in records(&ladder.topic("dlq")) {
        assert_eq!(letter.header("x-ladder-attempt"), "4");
    }
}

#[test]
fn a_delay_that_is_changed_leaves_the_dues_that_are_written() {
    for (before, after) in [("1s", "3s"), ("2s", "1100ms")] {
        let (mut ladder, dues) = with_backlog(&[before], &["main"]);
        ladder.pipeline()["retries"] = retries(&[after]);
        create_topics(&ladder);
        let worker = ladder.start("after", &["--stage", "retry-1"]);
        ran_once_when_due(&worker, &dues, "retry-1");
    }
}

#[test]
fn a_delay_that_is_cut_to_less_than_half_cuts_the_dues_to_twice_itself() {
    let (mut ladder, _) = with_backlog(&["1h"], &["main"]);
    let cut = records(&ladder.topic("retry-1")).into_iter();
    let cut = cut.map(|r| (r.id().to_owned(), r.timestamp_ms as u64 + 1_000)).collect();
    ladder.pipeline()["retries"] = retries(&["500ms"]);
    let worker = ladder.start("after", &["--stage", "retry-1"]);
    ran_once_when_due(&worker, &cut, "retry-1");
}

#[tokio::test]
async fn partitions_that_main_gains_are_worked_and_their_failures_find_a_place() {
    let (mut ladder, dues) = with_backlog(&["500ms"], &["main"]);
    let client: AdminClient<DefaultClientContext> = client_config().create().expect("admin client");
    let main = ladder.topic("main");
    client.create_partitions([&NewPartitions::new(&main, 4)], &AdminOptions::new()).await.expect("an answer")[0]
        .as_ref()
        .expect("raised");
    ladder.simulate("fail_ratio", 1);
    ladder.simulate("dead_ratio", 0);
    ladder.simulate("max_failures", 1);
    for partition in 2..4 {
        ladder.produce_one("main", partition, &format!("new-{partition}"));
    }
    let ids: BTreeSet<String> = dues.keys().cloned().chain((2..4).map(|p| format!("new-{p}"))).collect();
    // Retry topics have two partitions still.
    let mut worker = ladder.start("fewer", &[]);
    until_done(&ids, &[&worker]);
    stop(&mut worker);
    let retried = records(&ladder.topic("retry-1"));
    assert!(retried.iter().filter(|r| r.id().starts_with("new-")).count() == 2, "{retried:?}");

    // Raised, they keep main's numbers again.
    ladder.pipeline()["partitions"] = 4.into();
    let raised = ladder.call(&["topics", "create", "--add-partitions"]);
    let raised = String::from_utf8_lossy(&raised.stdout);
    assert!(raised.contains("partitions raised from 2 to 4"), "{raised}");
    let worker = ladder.start("as-many", &[]);
    ladder.produce_one("main", 3, "last");
    until_done(&BTreeSet::from(["last".to_owned()]), &[&worker]);
    let retried = records(&ladder.topic("retry-1"));
    assert_eq!(retried.iter().find(|r| r.id() == "last").map(|r| r.partition), Some(3));
}
