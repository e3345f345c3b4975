//! The policy as tables: stage, result and circumstances to one action.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ladder::event::Origin;
use crate::ladder::headers::{Coordinates, IdSource, read};
use crate::ladder::rungs::LadderSpec;

const S: Duration = Duration::from_secs(1);
const ORIGIN_MS: i64 = 1_700_000_000_000;
const NOW: Timestamp = Timestamp::from_millis(1_700_000_010_000);

/// 5 s, 30 s, 300 s; the second with jitter; events expire after an hour.
fn ladder() -> Ladder {
    let mut spec = LadderSpec::new("orders", "billing", "shop").retry(5 * S).retry(30 * S).retry(300 * S);
    spec.retries[1].jitter = 0.1;
    spec.max_event_age = Some(3600 * S);
    spec.max_deferrals = 2;
    Ladder::new(spec).unwrap()
}

fn envelope(stage: usize) -> Envelope {
    let at = Coordinates { partition: 0, offset: 0, timestamp_ms: ORIGIN_MS };
    let mut envelope = read(&ladder(), stage, at, std::iter::empty(), &IdSource::default(), None);
    envelope.hop = stage as u64;
    envelope
}

fn check(stage: usize, failure: &Failure, expected: Action) {
    assert_eq!(decide(&ladder(), &envelope(stage), Err(failure), NOW, 0.0), expected, "stage {stage}: {failure:?}");
}

fn forward(stage: usize, wait: Duration) -> Action {
    Action::Forward { stage, due: NOW + wait }
}

const fn dead(reason: Reason) -> Action {
    Action::DeadLetter { reason }
}

#[test]
fn success_is_done_everywhere() {
    for stage in 0..=5 {
        assert_eq!(decide(&ladder(), &envelope(stage), Ok(()), NOW, 0.5), Action::Done);
    }
}

#[test]
fn transient_failures_climb_one_rung_and_end_exhausted() {
    let failure = Failure::transient("x");
    check(0, &failure, forward(1, 5 * S));
    check(1, &failure, forward(2, 30 * S));
    check(2, &failure, forward(3, 300 * S));
    check(3, &failure, dead(Reason::Exhausted));
}

#[test]
fn permanent_and_poison_leave_at_once_whatever_else_holds() {
    for stage in 0..=3 {
        check(stage, &Failure::permanent("x").retry_after(600 * S), dead(Reason::Permanent));
        check(stage, &Failure::poison("x").retry_after(600 * S), dead(Reason::Poison));
    }
}

#[test]
fn the_dlq_has_no_next() {
    for failure in [Failure::transient("x").retry_after(600 * S), Failure::permanent("x"), Failure::poison("x")] {
        check(4, &failure, Action::Done);
    }
}

#[test]
fn without_retry_stages_every_failure_is_exhausted() {
    let ladder = Ladder::new(LadderSpec::new("p", "g", "t")).unwrap();
    let decide = |failure: &Failure, stage| decide(&ladder, &envelope(stage), Err(failure), NOW, 0.0);
    assert_eq!(decide(&Failure::transient("x"), 0), dead(Reason::Exhausted));
    assert_eq!(decide(&Failure::transient("x").retry_after(S), 0), dead(Reason::Exhausted));
    assert_eq!(decide(&Failure::transient("x"), 1), Action::Done);
}

#[test]
fn retry_after_takes_the_smallest_stage_above_that_covers_it() {
    let asked = |secs| Failure::transient("x").retry_after(secs * S);
    check(0, &asked(1), forward(1, S));
    check(0, &asked(5), forward(1, 5 * S));
    check(0, &asked(6), forward(2, 6 * S));
    check(0, &asked(30), forward(2, 30 * S));
    check(0, &asked(31), forward(3, 31 * S));
    check(1, &asked(1), forward(2, S));
    check(2, &asked(1), forward(3, S));
}

#[test]
fn retry_after_beyond_every_stage_takes_the_last_and_at_most_twice_its_delay() {
    let asked = |secs| Failure::transient("x").retry_after(secs * S);
    check(0, &asked(301), forward(3, 301 * S));
    check(0, &asked(600), forward(3, 600 * S));
    check(0, &asked(601), forward(3, 600 * S));
    check(2, &Failure::transient("x").retry_after(Duration::MAX), forward(3, 600 * S));
}

#[test]
fn retry_after_of_nothing_keeps_the_delay() {
    check(0, &Failure::transient("x").retry_after(Duration::ZERO), forward(1, 5 * S));
    check(3, &Failure::transient("x").retry_after(Duration::ZERO), dead(Reason::Exhausted));
}

#[test]
fn the_last_stage_is_repeated_for_a_longer_retry_after_until_the_deferrals_are_used_up() {
    check(3, &Failure::transient("x").retry_after(301 * S), Action::Defer { due: NOW + 300 * S });
    check(3, &Failure::transient("x").retry_after(Duration::MAX), Action::Defer { due: NOW + 300 * S });
    check(3, &Failure::transient("x").retry_after(300 * S), dead(Reason::Exhausted));
    check(3, &Failure::transient("x").retry_after(S), dead(Reason::Exhausted));
    let long = Failure::transient("x").retry_after(301 * S);
    for (deferrals, expected) in
        [(1, Action::Defer { due: NOW + 300 * S }), (2, dead(Reason::Exhausted)), (3, dead(Reason::Exhausted))]
    {
        let envelope = Envelope { deferrals, ..envelope(3) };
        assert_eq!(decide(&ladder(), &envelope, Err(&long), NOW, 0.0), expected);
    }
}

#[test]
fn jitter_only_adds() {
    let failure = Failure::transient("x");
    for (draw, wait) in [(0.0, 30_000), (0.5, 31_500), (1.0, 33_000), (-5.0, 30_000), (7.0, 33_000), (f64::NAN, 30_000)]
    {
        let action = decide(&ladder(), &envelope(1), Err(&failure), NOW, draw);
        assert_eq!(action, forward(2, Duration::from_millis(wait)), "{draw}");
    }
}

#[test]
fn an_old_event_expires_at_a_transient_failure_only() {
    let at = |secs: u32| Timestamp::from_millis(ORIGIN_MS as u64) + secs * S;
    let decide = |envelope: &Envelope, failure: Failure, now| decide(&ladder(), envelope, Err(&failure), now, 0.0);
    let main = envelope(0);
    assert!(matches!(decide(&main, Failure::transient("x"), at(3600)), Action::Forward { .. }));
    let late = at(3600) + Duration::from_micros(1);
    assert_eq!(decide(&main, Failure::transient("x"), late), dead(Reason::Expired));
    assert_eq!(decide(&main, Failure::transient("x").retry_after(S), late), dead(Reason::Expired));
    assert_eq!(decide(&main, Failure::permanent("x"), late), dead(Reason::Permanent));
    assert_eq!(decide(&envelope(3), Failure::transient("x"), late), dead(Reason::Expired));
    // A redrive makes it young again.
    let redriven = Envelope { redriven_at: Some(at(3000)), ..main.clone() };
    assert!(matches!(decide(&redriven, Failure::transient("x"), late), Action::Forward { .. }));
    assert_eq!(decide(&redriven, Failure::transient("x"), at(6601)), dead(Reason::Expired));
    // Nobody knows its age.
    let origin = Origin { timestamp_ms: -1, ..main.origin.clone() };
    assert!(matches!(decide(&Envelope { origin, ..main }, Failure::transient("x"), late), Action::Forward { .. }));
}

#[test]
fn without_a_hop_left_a_move_halts_and_success_is_still_done() {
    let last = Envelope { hop: HOP_LIMIT - 1, ..envelope(1) };
    let halt = Action::Halt { reason: HaltReason::HopOverflow };
    for failure in [Failure::transient("x"), Failure::permanent("x"), Failure::poison("x")] {
        assert_eq!(decide(&ladder(), &last, Err(&failure), NOW, 0.0), halt);
    }
    assert_eq!(decide(&ladder(), &last, Ok(()), NOW, 0.0), Action::Done);
    let one_left = Envelope { hop: HOP_LIMIT - 2, ..envelope(1) };
    assert!(matches!(decide(&ladder(), &one_left, Err(&Failure::transient("x")), NOW, 0.0), Action::Forward { .. }));
}

#[test]
fn an_action_knows_its_rung() {
    let ladder = ladder();
    let name = |action: Action| target(&ladder, &envelope(3), &action).map(|rung| rung.name.to_string());
    assert_eq!(name(forward(2, S)).as_deref(), Some("retry-2"));
    assert_eq!(name(Action::Defer { due: NOW }).as_deref(), Some("retry-3"));
    assert_eq!(name(dead(Reason::Expired)).as_deref(), Some("dlq"));
    assert_eq!(name(Action::Done), None);
    assert_eq!(name(Action::Halt { reason: HaltReason::TooLarge }), None);
}

fn any_failure() -> impl Strategy<Value = Failure> {
    let class = prop_oneof![
        4 => Just(FailureClass::Transient), 1 => Just(FailureClass::Permanent), 1 => Just(FailureClass::Poison),
    ];
    let wish = prop_oneof![
        Just(None),
        (0..2_000_000_u64).prop_map(|ms| Some(Duration::from_millis(ms))),
        any::<u64>().prop_map(|s| Some(Duration::from_secs(s))),
    ];
    (class, wish).prop_map(|(class, retry_after)| Failure { class, message: String::new(), retry_after })
}

proptest! {
    #[test]
    fn every_event_gets_exactly_one_possible_action(
        delays in proptest::collection::btree_set(1..1_000_000_u64, 0..=16), stage in 0..20_usize, failure in any_failure(),
        deferrals in 0..20_u32, hop in 0..HOP_LIMIT, now in 0..u64::MAX / 2, draw in any::<f64>(), jitter in 0.0..=0.1_f64,
    ) {
        let mut spec = delays.iter().fold(LadderSpec::new("p", "g", "t"), |s, ms| s.retry(Duration::from_millis(*ms)));
        spec.retries.iter_mut().for_each(|retry| retry.jitter = jitter);
        let ladder = Ladder::new(spec).unwrap();
        let (n, now) = (ladder.retries().len(), Timestamp::from_micros(now));
        let envelope = Envelope { stage, deferrals, hop, ..envelope(0) };
        let delay = |stage: usize| ladder.rungs()[stage].delay.unwrap();
        match decide(&ladder, &envelope, Err(&failure), now, draw) {
            Action::Done => prop_assert!(stage > n),
            Action::Wait { .. } => prop_assert!(false, "it has run"),
            Action::Forward { stage: to, due } => {
                prop_assert!(failure.class == FailureClass::Transient && stage < to && to <= n);
                let floor = failure.retry_after.filter(|w| !w.is_zero()).map_or(delay(to), |wish| wish.min(delay(to)));
                prop_assert!(due >= now + floor);
                prop_assert!(due <= now + delay(to) * 2);
            }
            Action::Defer { due } => {
                prop_assert!(stage == n && deferrals < 10 && failure.retry_after > Some(delay(n)));
                prop_assert!(due >= now + delay(n));
            }
            Action::DeadLetter { reason } => {
                prop_assert!(stage <= n);
                prop_assert_eq!(reason == Reason::Exhausted, failure.class == FailureClass::Transient);
                prop_assert!(reason != Reason::Exhausted || stage == n);
            }
            Action::Halt { reason } => {
                prop_assert!(stage <= n && hop == HOP_LIMIT - 1);
                prop_assert_eq!(reason, HaltReason::HopOverflow);
            }
        }
    }
}

#[test]
fn whose_turn_it_is_not_waits_on_the_first_retry_stage_or_stays_on_its_own() {
    let at = |stage, hop| wait(&ladder(), &Envelope { stage, hop, ..envelope(0) }, NOW, 0.0);
    let delay = |stage: usize| ladder().rungs()[stage].delay.unwrap();
    for (stage, to) in [(0, 1), (1, 1), (2, 2)] {
        assert_eq!(at(stage, 7), Action::Wait { stage: to, due: NOW + delay(to) });
        assert_eq!(target(&ladder(), &envelope(0), &at(stage, 7)).map(|rung| rung.index), Some(to));
    }
    assert_eq!(at(1, HOP_LIMIT - 1), Action::Halt { reason: HaltReason::HopOverflow });
}
