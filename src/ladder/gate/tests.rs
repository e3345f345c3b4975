//! What a gate lets through, and what of it may still start later.

use super::*;

const BREAKER: BreakerSettings = BreakerSettings {
    consecutive_failures: 3,
    min_time: Duration::ZERO,
    slow_failures: 3,
    slow_time: Duration::ZERO,
    cool_down: Duration::from_secs(1),
    max_cool_down: Duration::from_secs(4),
};
const FAILED: Answer = Answer::Failed(None);
const MAIN: usize = 0;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn gates(stages: usize) -> Gates {
    let mut gates = Gates::new(OutageSettings { breaker: Some(BREAKER), brake: None }, ms(0));
    (0..stages).for_each(|stage| assert_eq!(gates.join(stage == MAIN, true, 4), stage));
    gates
}

fn concluded(gates: &mut Gates, at: u64, stage: usize, grant: Grant, answer: Answer) -> Vec<Change> {
    let end = if answer == Answer::Up { End::Done } else { End::Retried };
    gates.concluded(ms(at), stage, Some(grant), answer, end, |_| 0)
}

/// Opened at 0 for 1 s; what was granted before.
fn open(stages: usize) -> (Gates, Grant) {
    let mut gates = gates(stages);
    let Asked::Granted(4, grant) = gates.ask(ms(0), MAIN, 4) else { panic!("it is open") };
    let changes: Vec<_> = (0..3).flat_map(|_| concluded(&mut gates, 0, MAIN, grant, FAILED)).collect();
    assert!(matches!(changes[..], [Change::Breaker(BreakerChange::Opened { .. })]), "{changes:?}");
    assert_eq!(gates.ask(ms(999), MAIN, 4), Asked::Shut(Some(ms(1))));
    (gates, grant)
}

/// As [`open`], and one is tried since 1 s.
fn trying(stages: usize) -> (Gates, Grant, Grant) {
    let (mut gates, before) = open(stages);
    let Asked::Granted(1, grant) = gates.ask(ms(1_000), MAIN, 4) else { panic!("one is tried") };
    (gates, before, grant)
}

#[test]
fn what_was_let_through_before_it_shut_does_not_start_any_more() {
    let (gates, before) = open(1);
    assert!(!gates.may_start(MAIN, before));
    let (mut gates, before, grant) = trying(1);
    assert!(!gates.may_start(MAIN, before) && gates.may_start(MAIN, grant));
    assert!(matches!(concluded(&mut gates, 1_001, MAIN, grant, Answer::Up)[..], [Change::Breaker(_)]));
    assert!(!gates.may_start(MAIN, before), "it ramps up");
    for _ in 0..3 {
        concluded(&mut gates, 1_002, MAIN, grant, Answer::Up);
    }
    assert!(!gates.is_restricted() && gates.may_start(MAIN, before));
}

#[test]
fn only_what_is_tried_takes_up_the_limit_and_decides() {
    let (mut gates, before, grant) = trying(1);
    // Three of those from before end: neither their results nor their permits are anything to the trial.
    assert_eq!(concluded(&mut gates, 1_001, MAIN, before, Answer::Up), []);
    assert_eq!(concluded(&mut gates, 1_001, MAIN, before, FAILED), []);
    gates.returned(3, before);
    assert_eq!((gates.ask(ms(1_002), MAIN, 1), gates.on_trial()), (Asked::Shut(None), 1));
    // The one that is tried never ran: the next takes its place.
    gates.returned(1, grant);
    assert_eq!(gates.ask(ms(1_003), MAIN, 9), Asked::Granted(1, grant));
    assert!(matches!(
        concluded(&mut gates, 1_004, MAIN, grant, FAILED)[..],
        [Change::Breaker(BreakerChange::ProbeFailed { cool_down })] if cool_down == ms(2_000)
    ));
    assert_eq!(gates.ask(ms(1_005), MAIN, 1), Asked::Shut(Some(ms(1_999))));
}

#[test]
fn a_command_shuts_one_stage_at_once_and_for_what_was_let_through() {
    let mut gates = gates(2);
    let Asked::Granted(4, grant) = gates.ask(ms(0), MAIN, 4) else { panic!("it is open") };
    gates.command(MAIN, true);
    assert_eq!((gates.ask(ms(1), MAIN, 1), gates.may_start(MAIN, grant)), (Asked::Shut(None), false));
    assert_eq!(gates.ask(ms(1), 1, 2), Asked::Granted(2, grant));
    gates.command(MAIN, false);
    assert!(gates.may_start(MAIN, grant), "nothing has changed since");
}

#[test]
fn stages_that_wait_take_turns_and_one_that_is_paused_keeps_none_out() {
    let (mut gates, _, grant) = trying(3);
    gates.returned(1, grant);
    (1..3).for_each(|stage| gates.waits(stage, true));
    // Main had the last turn.
    assert_eq!(gates.ask(ms(1_001), MAIN, 1), Asked::Shut(None));
    assert_eq!(gates.ask(ms(1_001), 2, 1), Asked::Shut(None), "stage 1 comes before it");
    gates.command(1, true);
    assert_eq!(gates.ask(ms(1_001), 2, 1), Asked::Granted(1, grant));
    gates.returned(1, grant);
    gates.waits(2, false);
    assert_eq!(gates.ask(ms(1_002), MAIN, 1), Asked::Granted(1, grant));
}

#[test]
fn a_resume_tries_at_once() {
    let (mut gates, before) = open(1);
    assert_eq!(gates.resume(ms(10), |_| 0), None);
    let Asked::Granted(1, grant) = gates.ask(ms(10), MAIN, 4) else { panic!("one is tried") };
    assert!(grant != before && gates.may_start(MAIN, grant));
}
