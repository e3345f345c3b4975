//! The tests: many schedules, one again, and the broken builds.

use std::env;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::broken::Broken;
use super::case::{Case, FAULTS};
use super::ledger::{Counts, Invariant, Violation};
use super::world::World;

const DEFAULT_SCHEDULES: u64 = 100_000;
const THREADS: u64 = 2;

fn variable<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|why| panic!("{name}={text}: {why}")))
}

fn run(case: Case, broken: Option<Broken>) -> (Vec<Violation>, Counts) {
    let world = play(case, broken, false);
    (world.ledger.violations, world.ledger.counts)
}

fn play(case: Case, broken: Option<Broken>, traced: bool) -> World {
    let mut world = World::new(case, broken, traced);
    // Its message is on standard error already.
    if catch_unwind(AssertUnwindSafe(|| world.run())).is_err() {
        let now = world.now;
        world.ledger.violations.clear();
        world.ledger.fail(now, Invariant::NoPanic, "it panicked");
    }
    world
}

fn fails(case: Case, broken: Option<Broken>, invariant: Invariant) -> bool {
    run(case, broken).0.iter().any(|violation| violation.invariant == invariant)
}

/// The same failure with fewer kinds of fault and fewer events.
fn shrink(mut case: Case, broken: Option<Broken>, invariant: Invariant) -> Case {
    for (fault, _) in FAULTS {
        let less = Case { faults: case.faults.without(*fault), ..case };
        if less != case && fails(less, broken, invariant) {
            case = less;
        }
    }
    for events in 1..case.events {
        let less = Case { events, ..case };
        if fails(less, broken, invariant) {
            return less;
        }
    }
    case
}

/// Everything about a schedule that failed.
fn report(case: Case, broken: Option<Broken>) -> String {
    let world = play(case, broken, true);
    let mut text = String::new();
    for line in world.trace.iter().flatten() {
        writeln!(text, "{line}").unwrap();
    }
    for violation in &world.ledger.violations {
        writeln!(text, "VIOLATED {violation}").unwrap();
    }
    text
}

#[test]
fn every_promise_is_kept_in_every_schedule() {
    let schedules = variable("LADDER_SCHEDULES").unwrap_or(DEFAULT_SCHEDULES);
    let first = variable::<Case>("LADDER_SEED").map_or(0, |case| case.seed);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failed: Mutex<Option<(Case, Violation)>> = Mutex::new(None);
    let total = Mutex::new(Counts::default());
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut counts = Counts::default();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= schedules {
                        break;
                    }
                    let case = Case::new(first + number);
                    let (violations, counted) = run(case, None);
                    counts.add(&counted);
                    if let Some(violation) = violations.into_iter().next() {
                        failed.lock().unwrap().get_or_insert((case, violation));
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                total.lock().unwrap().add(&counts);
            });
        }
    });
    println!("{schedules} schedules in {:.1?}: {:?}", start.elapsed(), total.lock().unwrap());
    if let Some((case, violation)) = failed.into_inner().unwrap() {
        let small = shrink(case, None, violation.invariant);
        panic!(
            "{}\n{violation}\nin {case}; shrunk to {small}, again by\n\n    \
             LADDER_SEED={small} cargo test --test simulation replay -- --nocapture\n",
            report(small, None)
        );
    }
}

#[test]
fn replay() {
    let case: Case = variable("LADDER_SEED").unwrap_or(Case::new(1));
    let report = report(case, None);
    println!("{case}\n{report}");
    assert!(!report.contains("VIOLATED"), "{case} fails, see above");
    assert_eq!(report, self::report(case, None), "a schedule is the same each time");
}

/// The first schedule in which a broken build violates this invariant.
fn find(broken: Broken, invariant: Invariant) -> Option<u64> {
    (0..BITES_WITHIN).find(|seed| fails(Case::new(*seed), Some(broken), invariant))
}

const BITES_WITHIN: u64 = 5_000;

#[test]
fn broken_builds_fail_for_the_right_reason() {
    use Invariant::*;
    for (broken, invariant) in [
        // The three of the proof.
        (Broken::NoLease, NothingLost),
        (Broken::NoLease, NoHoleCommitted),
        (Broken::DoneBeforeAck, NothingLost),
        (Broken::DoneBeforeAck, NoHoleCommitted),
        (Broken::BusyDropped, NothingLost),
        (Broken::BusyDropped, NoHoleCommitted),
        // Others.
        (Broken::SameHop, NothingLost),
        (Broken::SameHop, Bounded),
        (Broken::MovedOnBeforeAck, NothingLost),
        (Broken::SettledWithoutAck, NothingLost),
        (Broken::LostLeaseIgnored, OneAtATime),
        (Broken::SettleForgotten, StoreSettled),
        (Broken::SettleForgotten, RepeatsExplained),
        (Broken::HolesIgnored, NoHoleCommitted),
        (Broken::HolesIgnored, NothingLost),
        (Broken::DueIgnored, NeverEarly),
        (Broken::HeadersAppended, HeadersKept),
        (Broken::EndlessDeferrals, Bounded),
        (Broken::KeysIgnored, KeyOrder),
        (Broken::NoAnswerIsYes, RepeatsExplained),
        (Broken::CancelUnheard, OneAtATime),
        (Broken::ClaimsStartAnyway, StoppedStarts),
        (Broken::FailsAtTheGate, AttemptsPaid),
        (Broken::TriedUncounted, OneIsTried),
        (Broken::OpeningUnheard, ComesToAnEnd),
        (Broken::SuccessUntold, Reopens),
        (Broken::PermitKept, PermitsKept),
        (Broken::TurnIgnored, LadderOrder),
        (Broken::NoPlace, LadderOrder),
        (Broken::PlaceKept, QueuesEmpty),
    ] {
        match find(broken, invariant) {
            Some(seed) => println!("{broken:?}: {invariant:?} after {} schedules", seed + 1),
            None => panic!("{broken:?} does not violate {invariant:?} within {BITES_WITHIN} schedules"),
        }
    }
}
