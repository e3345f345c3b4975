//! A worker is killed: its partitions run again, how soon is measured with `LADDER_QUIET=1` (see [`promised`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{Ladder, Load, Worker, done, partition_of, started, until, until_done, within};
use crate::support::promised;

const MAIN: [&str; 2] = ["--stage", "main"];

fn partitions(worker: &Worker) -> BTreeSet<i32> {
    worker.starts().iter().map(|e| partition_of(&e.event_id)).collect()
}

/// Partitions with an event that was sent after `before` was taken and is done.
fn alive(before: &BTreeSet<String>, workers: &[&Worker]) -> BTreeSet<i32> {
    done(workers).difference(before).map(|id| partition_of(id)).collect()
}

/// Waits until both share the load.
fn until_shared(first: &Worker, second: &Worker) {
    until(
        "both get partitions",
        || [first, second].iter().all(|w| w.starts().len() >= 100),
        || format!("{:?}, {:?}\n{}\n{}", partitions(first), partitions(second), first.log(), second.log()),
    );
}

/// Nothing is lost; only what the killed worker had begun may have run again.
fn settle(load: Load, killed: &Worker, others: &[&Worker]) {
    let sent = load.finish();
    let all: Vec<_> = [killed].into_iter().chain(others.iter().copied()).collect();
    until_done(&sent, &all);
    let begun: BTreeSet<_> = killed.starts().into_iter().map(|e| e.event_id).collect();
    let repeated: Vec<_> = started(&all).into_iter().filter(|(_, n)| *n > 1).collect();
    assert!(repeated.iter().all(|(id, n)| begun.contains(id) && *n == 2), "{repeated:?}");
    assert!(repeated.len() <= 64, "more than could run at once: {repeated:?}");
}

#[test]
fn the_partitions_of_a_killed_worker_run_again_after_the_session() {
    let mut ladder = Ladder::created(6);
    ladder.simulate("latency", "5ms");
    let ladder = Arc::new(ladder);
    let load = Load::start(&ladder, "main", 100);
    let (mut first, second) = (ladder.start("first", &MAIN), ladder.start("second", &MAIN));
    until_shared(&first, &second);

    first.kill();
    let killed = Instant::now();
    let before = load.sent();
    // The session of 6 s, and 5 s for the rebalance: with the default session of 15 s it is 20 s.
    within(
        promised(Duration::from_secs(11)),
        "every partition runs again",
        || alive(&before, &[&second]).len() == 6,
        || format!("{:?} after {:?}", alive(&before, &[&second]), killed.elapsed()),
    );
    settle(load, &first, &[&second]);
}

#[test]
fn the_partitions_of_a_killed_worker_with_an_instance_run_again_when_it_is_restarted() {
    let mut ladder = Ladder::created(6);
    ladder.simulate("latency", "5ms");
    // So long that nothing here can wait for its end.
    ladder.config["kafka"]["session_timeout"] = "3m".into();
    let ladder = Arc::new(ladder);
    let load = Load::start(&ladder, "main", 100);
    let member = |name, instance| ladder.start_with(name, &MAIN, &[("PIPELINE_INSTANCE", instance)]);
    let (mut first, second) = (member("first", "one"), member("second", "two"));
    until_shared(&first, &second);

    first.kill();
    let before = load.sent();
    let restarted = Instant::now();
    let again = member("again", "one");
    within(
        promised(Duration::from_secs(5)),
        "every partition runs again",
        || alive(&before, &[&again, &second]).len() == 6,
        || format!("{:?} after {:?}", alive(&before, &[&again, &second]), restarted.elapsed()),
    );
    assert!(!alive(&before, &[&again]).is_empty(), "it has kept its partitions");
    settle(load, &first, &[&second, &again]);
}
