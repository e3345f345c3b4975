//! Several processes of one stage: they share its partitions, and pass them on without running anything twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::process::Signal;

use super::harness::{LIMIT, Ladder, Load, Worker, done, partition_of, started, until, until_done};

const STAGE: [&str; 2] = ["--stage", "retry-2"];

fn partitions(worker: &Worker) -> BTreeSet<i32> {
    worker.starts().iter().map(|e| partition_of(&e.event_id)).collect()
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

    let third = ladder.start("third", &STAGE);
    until("the third gets partitions, too", || third.starts().len() >= 50, || third.log());

    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(LIMIT), 0);
    let left = load.sent();
    until(
        "the others run what comes after the second has left, from every partition",
        || {
            let ran = done(&[&first, &third]);
            ran.difference(&left).map(|id| partition_of(id)).collect::<BTreeSet<_>>().len() == 6
        },
        || format!("{:?}, {:?}", partitions(&first), partitions(&third)),
    );

    let sent = load.finish();
    let workers = [&first, &second, &third];
    until_done(&sent, &workers);
    let counts = started(&workers);
    assert_eq!(counts.keys().collect::<Vec<_>>(), sent.iter().collect::<Vec<_>>());
    let repeated: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).collect();
    assert!(repeated.is_empty(), "of {} events these ran twice: {repeated:?}", sent.len());
}
