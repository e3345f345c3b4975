//! A ladder whose process is killed (SIGKILL) between any two steps of an event's life, on a real Kafka and a real
//! Redis: after a restart nothing is lost, and an event ends a second time only where the delivery promise says so.
//!
//! Each case has topics, groups and keys of its own and runs the ladder in a child process (`worker`), which is
//! this very test executed again. The child dies while events keep coming; then it is started again, or another member
//! takes over, until every group has committed the end of its log. The verdict is the ledger's, from outside evidence.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use retry_ladder::prove::journal::{self, Blow, Step};
use retry_ladder::prove::ledger::{self, Copy, InHand, Interruption, Summary};

use crate::outside;
use crate::support::{brokers, redis_url, unique};
use crate::worker::evidence::{self, PATIENCE, looker};
use crate::worker::load::Source;
use crate::worker::process::{LogsOnFailure, Worker};
use crate::worker::{self, Moment, ORDERS, Orders, Point};

const PARTITIONS: i32 = 3;
const SIGKILL: i32 = 9;
/// Events that come before the kill and after it, at least.
const BEFORE: usize = 40;
const AFTER: usize = 8;

/// One case: where the process dies, and what must be seen of it.
struct Case {
    point: Point,
    /// Where the restarted process dies again.
    again: Option<Point>,
    /// Lease of a claim, milliseconds.
    lease_ms: u64,
    /// A second instance that lives on.
    second: bool,
    /// Whether the killed process is started again; if not, the second takes over when its session has ended.
    restart: bool,
    /// What the evidence must show beyond being in order.
    expect: fn(&Outcome),
}

/// What a case came to.
struct Outcome {
    summary: Summary,
    kills: Vec<Interruption>,
    /// Copies that had been settled and whose offset was not committed when the process died.
    uncommitted: usize,
    /// Claims found busy after the kill.
    busy: usize,
}

fn at(moment: Moment, stage: usize, ids: &str, nth: usize) -> Case {
    Case {
        point: Point { moment, stage, ids: ids.into(), nth },
        again: None,
        lease_ms: 3_000,
        second: false,
        restart: true,
        expect: |_| {},
    }
}

impl Case {
    fn expect(self, expect: fn(&Outcome)) -> Self {
        Self { expect, ..self }
    }
}

// ---------------------------------------------------------------------------------------------- what must be seen

/// The copy at the point was in hand in this way, so the kill came when it should.
fn died_with(outcome: &Outcome, how: InHand) {
    let kill = &outcome.kills[0];
    assert!(kill.in_hand.iter().any(|held| held.how == how), "nothing was {how:?}: {:?}", kill.in_hand);
}

fn with_a_claim(outcome: &Outcome) {
    died_with(outcome, InHand::Claimed);
    nothing_ended_twice(outcome);
}

fn with_an_open_event(outcome: &Outcome) {
    with_a_claim(outcome);
    assert!(outcome.summary.repeated > 0, "its execution was cut off, so it must run again");
    assert!(outcome.uncommitted > 0, "offsets behind an open event were committed");
}

fn with_an_effect(outcome: &Outcome) {
    with_a_claim(outcome);
    assert!(outcome.summary.repeated > 0, "the effect was not recorded in redis, so it must happen again");
}

fn with_an_acknowledgement(outcome: &Outcome) {
    died_with(outcome, InHand::Acknowledged);
    assert!(outcome.summary.repeated > 0, "the move was not recorded in redis, so it must be executed again");
    assert!(outcome.summary.copied_again > 0, "and moved again");
}

fn with_a_second_end(outcome: &Outcome) {
    died_with(outcome, InHand::Acknowledged);
    assert!(outcome.summary.ended_twice > 0, "the one place where it may happen, and it did not");
}

fn with_a_settlement(outcome: &Outcome) {
    assert!(outcome.uncommitted > 0, "every settled offset was committed: the kill came too late");
    nothing_ended_twice(outcome);
}

fn nothing_ended_twice(outcome: &Outcome) {
    // What was with the producer may have been acknowledged just before.
    let moving = outcome.kills.iter().flat_map(|k| &k.in_hand).any(|held| held.how != InHand::Claimed);
    assert!(moving || outcome.summary.ended_twice == 0, "{}", outcome.summary);
}

/// Makes a test of cases. The same test, executed again with orders in its environment, is the process to be killed.
macro_rules! crash_test {
    ($name:ident, $cases:expr) => {
        #[test]
        fn $name() {
            match std::env::var(ORDERS) {
                Ok(orders) => worker::run(&orders),
                Err(_) => check(concat!("crash_points::", stringify!($name)), $cases),
            }
        }
    };
}

crash_test!(
    killed_on_main_after_any_step_nothing_is_lost_and_only_what_was_in_hand_runs_again,
    vec![
        at(Moment::Claimed, 0, "", 9).expect(with_a_claim),
        at(Moment::Running, 0, "", 7).expect(with_an_open_event),
        at(Moment::Effect, 0, "ok-", 5).expect(with_an_effect),
        at(Moment::Acknowledged, 0, "f1-", 4).expect(with_an_acknowledgement),
        at(Moment::Settled, 0, "", 12).expect(with_a_settlement),
        at(Moment::BeforeCommit, 0, "", 12).expect(with_a_settlement),
    ]
);

crash_test!(
    killed_on_a_retry_stage_after_any_step_nothing_is_lost_and_only_what_was_in_hand_runs_again,
    vec![
        at(Moment::Claimed, 1, "", 5).expect(with_a_claim),
        at(Moment::Running, 1, "", 5).expect(with_an_open_event),
        at(Moment::Effect, 1, "f1-", 3).expect(with_an_effect),
        at(Moment::Acknowledged, 1, "f9-", 2).expect(with_an_acknowledgement),
        at(Moment::Settled, 1, "", 5).expect(with_a_settlement),
        at(Moment::BeforeCommit, 1, "", 5).expect(with_a_settlement),
        at(Moment::Effect, 2, "f2-", 2).expect(with_an_effect),
    ]
);

crash_test!(
    killed_while_dead_lettering_the_event_is_in_the_dlq_at_least_once_and_byte_identical,
    vec![
        at(Moment::Acknowledged, 0, "perm-", 2).expect(with_an_acknowledgement),
        at(Moment::Acknowledged, 0, "junk-", 2).expect(|o| {
            died_with(o, InHand::Acknowledged);
            assert!(o.summary.copied_again > 0, "not recorded in redis, so it must be dead-lettered again");
        }),
        at(Moment::Acknowledged, 2, "f9-", 2).expect(with_an_acknowledgement),
        at(Moment::Settled, 0, "perm-", 2).expect(with_a_settlement),
        at(Moment::Settled, 2, "f9-", 2).expect(with_a_settlement),
    ]
);

crash_test!(
    an_event_ends_twice_only_when_killed_between_an_acknowledgement_and_its_record,
    vec![
        // Its handler would succeed the second time: killed before anything of the failure was moved, it ends once …
        at(Moment::Effect, 0, "flip-", 2).expect(with_an_effect),
        at(Moment::Effect, 0, "heal-", 2).expect(with_an_effect),
        // … and between the acknowledgement of its next copy and the record in Redis, it is done and moved on as well.
        at(Moment::Acknowledged, 0, "flip-", 2).expect(with_a_second_end),
        at(Moment::Acknowledged, 0, "heal-", 2).expect(with_a_second_end),
    ]
);

crash_test!(
    a_copy_of_a_killed_process_is_busy_until_its_lease_ends_whoever_asks_for_it,
    vec![
        // The lease outlives the restart by far, so the restarted process meets it.
        Case {
            lease_ms: 8_000,
            ..at(Moment::Effect, 0, "f1-", 3).expect(|o| {
                with_an_effect(o);
                assert!(o.busy > 0, "nobody met the lease");
            })
        },
        // Killed twice over.
        Case {
            again: Some(Point { moment: Moment::Acknowledged, stage: 1, ids: "f9-".into(), nth: 1 }),
            ..at(Moment::Acknowledged, 0, "f1-", 3).expect(with_an_acknowledgement)
        },
        // A second instance lives on beside it …
        Case { second: true, ..at(Moment::Effect, 0, "", 6).expect(with_an_effect) },
        // … and takes over for good.
        Case { second: true, restart: false, ..at(Moment::Acknowledged, 0, "f1-", 2).expect(with_an_acknowledgement) },
    ]
);

// ---------------------------------------------------------------------------------------------- running a case

/// Runs the cases side by side: most of their time is waiting for leases and memberships.
fn check(test: &str, cases: Vec<Case>) {
    let mut failed = 0;
    std::thread::scope(|scope| {
        let cases: Vec<_> = cases.iter().map(|case| scope.spawn(move || run(test, case))).collect();
        failed = cases.into_iter().map(std::thread::ScopedJoinHandle::join).filter(Result::is_err).count();
    });
    assert_eq!(failed, 0, "cases failed, see above");
}

fn run(test: &str, case: &Case) {
    let begun = Instant::now();
    let what = format!("{:?} on stage {} at {:?}", case.point.moment, case.point.stage, case.point.ids);
    let topic = unique("crash");
    let folder = tempfile::Builder::new().prefix("ladder-crash").tempdir().expect("a folder");
    let a1 = Orders {
        name: "a1".into(),
        brokers: brokers(),
        redis: redis_url(),
        prefix: topic.clone(),
        group: unique("g"),
        partitions: PARTITIONS,
        delays_ms: vec![300, 800],
        lease_ms: case.lease_ms,
        session_ms: 6_000,
        latency_ms: 0,
        clock_ahead_ms: 0,
        instance: case.restart.then(|| "a".into()),
        stages: Vec::new(),
        folder: folder.path().to_owned(),
        kill: Some(case.point.clone()),
        transactional: false,
        topic,
    };
    evidence::create_topics(&a1, 1);
    let _logs = LogsOnFailure::new(&what, folder.path());

    // Events keep coming while the process lives and dies.
    let mut source = Source::new(&a1.brokers, &a1.topic, PARTITIONS, 7);
    let mut alive = Vec::new();
    if case.second {
        let instance = case.restart.then(|| "b".into());
        alive.push(Worker::start(test, &Orders { name: "b".into(), kill: None, instance, ..a1.clone() }));
    }
    let mut kills = vec![send_until_killed(&mut source, Worker::start(test, &a1))];
    let uncommitted = uncommitted(&a1);
    if case.again.is_some() {
        let a2 = Orders { name: "a2".into(), kill: case.again.clone(), ..a1.clone() };
        kills.push(send_until_killed(&mut source, Worker::start(test, &a2)));
    }
    let survivor = Orders { name: if case.restart { "a3" } else { "b" }.into(), kill: None, ..a1.clone() };
    if case.restart {
        alive.push(Worker::start(test, &survivor));
    }
    source.send(AFTER);
    let produced = source.finish();
    evidence::wait_until_committed(&a1, &mut alive);
    let journal = || alive.iter().find(|worker| worker.name() == survivor.name).expect("it lives").journal();
    let busy = journal().iter().filter(|line| line.step == Step::Busy).count();
    for worker in alive {
        let name = worker.orders.name.clone();
        let status = worker.stop();
        assert!(status.success(), "{what}: {name} was asked to stop and ended with {status}");
    }

    let ledger = evidence::ledger(&a1, produced, kills);
    let faults = ledger.faults();
    assert!(faults.is_empty(), "{what}: {} faults:\n{}", faults.len(), faults.join("\n"));
    let summary = ledger.summary();
    eprintln!("{what}: {summary}, {uncommitted} uncommitted, {busy} busy, {:.1?}", begun.elapsed());
    (case.expect)(&Outcome { summary, kills: ledger.interruptions.clone(), uncommitted, busy });

    evidence::clean_up(&a1, ledger);
}

/// Some forty events a second until the worker has died at its point, and a few more.
fn send_until_killed(source: &mut Source, mut worker: Worker) -> Interruption {
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        source.send(1);
        match worker.ended() {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(25)),
        }
        assert!(Instant::now() < deadline, "{} did not come to its point: {:?}", worker.name(), worker.orders.kill);
    };
    assert_eq!(status.signal(), Some(SIGKILL), "{}: {status}", worker.name());
    source.send(BEFORE.saturating_sub(source.sent));
    let told = journal::read(&worker.orders.journal(), &[Blow::kill()], worker::THREADS).expect("its marks");
    told.interruptions.into_iter().next().expect("of the kill")
}

/// How many copies the killed process had settled on the stage of its point without committing their offsets.
fn uncommitted(orders: &Orders) -> usize {
    let stage = orders.kill.as_ref().map_or(0, |point| point.stage);
    let ladder = orders.ladder();
    let rung = &ladder.rungs()[stage];
    let committed = outside::committed(&looker(orders, &rung.group_id), &rung.topic, PARTITIONS);
    let lines = worker::journal::read(&orders.journal());
    let settled = lines.iter().filter(|line| line.step == Step::Settled && line.hop == stage as u64);
    let settled: BTreeSet<&str> = settled.map(|line| line.id.as_str()).collect();
    let open = |copy: &Copy| copy.offset >= committed[copy.partition as usize];
    let copies = outside::read_back(&orders.brokers, &rung.topic, PARTITIONS);
    let id = |copy: &Copy| ledger::text(&copy.headers, "x-ladder-event-id").map(str::to_owned);
    copies.iter().filter(|c| open(c)).filter_map(id).filter(|id| settled.contains(id.as_str())).count()
}
