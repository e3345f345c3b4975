//! Several processes of one stage: they share its partitions, and pass them on without running anything twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::process::Signal;

use super::harness::{LIMIT, Ladder, Load, Worker, done, partition_of, started, until, until_done};

const STAGE: [&str; 2] = ["--stage", "retry-2"];

fn partitions(worker: &Worker) -> BTreeSet<i32> {
    worker.starts().iter().map(|e| partition_of(&e.event_id)).collect()
}

/// Waits until something that is sent from now on is done from every partition.
fn until_all_run(load: &Load, workers: &[&Worker]) {
    let before = load.sent();
    until(
        "every partition runs",
        || done(workers).difference(&before).map(|id| partition_of(id)).collect::<BTreeSet<_>>().len() == 6,
        || format!("{:?}", workers.iter().map(|w| partitions(w)).collect::<Vec<_>>()),
    );
}

#[test]
fn members_that_join_and_leave_under_load_run_every_event_once() {
    let mut ladder = Ladder::created(6);
    ladder.simulate("latency", "10ms");
    ladder.simulate("jitter", "60ms");
    let ladder = Arc::new(ladder);
    let load = Load::start(&ladder, "retry-2", 150);

    let first = ladder.start("first", &STAGE);
    let mut second = ladder.start("second", &STAGE);
    until(
        "both members get partitions",
        || [&first, &second].iter().all(|w| w.starts().len() >= 50),
        || format!("{:?}, {:?}", partitions(&first), partitions(&second)),
    );

    let mut third = ladder.start("third", &STAGE);
    until("the third gets partitions, too", || third.starts().len() >= 50, || third.log());

    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(LIMIT), 0);
    until_all_run(&load, &[&first, &third]);

    // One leaves while another joins.
    let fourth = ladder.start("fourth", &STAGE);
    third.signal(Signal::INT);
    assert_eq!(third.exit_code(LIMIT), 0);
    until("the fourth gets partitions", || fourth.starts().len() >= 50, || fourth.log());
    until_all_run(&load, &[&first, &fourth]);

    let sent = load.finish();
    let workers = [&first, &second, &third, &fourth];
    until_done(&sent, &workers);
    let counts = started(&workers);
    assert_eq!(counts.keys().collect::<Vec<_>>(), sent.iter().collect::<Vec<_>>());
    let repeated: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).collect();
    assert!(repeated.is_empty(), "of {} events these ran twice: {repeated:?}", sent.len());
}
