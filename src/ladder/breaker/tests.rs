//! When the breaker opens, probes, ramps up and closes: times in virtual milliseconds, then random sequences.

use proptest::prelude::*;

use super::*;
use crate::ladder::event::Failure;

const SETTINGS: BreakerSettings = BreakerSettings {
    consecutive_failures: 5,
    min_time: Duration::from_secs(1),
    slow_failures: 3,
    slow_time: Duration::from_secs(30),
    cool_down: Duration::from_secs(1),
    max_cool_down: Duration::from_secs(8),
};
const FAILED: Answer = Answer::Failed(None);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Answers at these times, in ms.
fn told(breaker: &mut Breaker, answers: &[(u64, Answer)]) -> Option<BreakerChange> {
    answers.iter().fold(None, |_, (at, answer)| breaker.concluded(ms(*at), 0, *answer))
}

fn new() -> Breaker {
    Breaker::new(SETTINGS, 16)
}

/// Opened at 1 s for 1 s.
fn open() -> Breaker {
    let mut breaker = new();
    let change = told(&mut breaker, &[(0, FAILED), (1, FAILED), (2, FAILED), (3, FAILED), (1_000, FAILED)]);
    assert_eq!(change, Some(BreakerChange::Opened { failures: 5, over: ms(1_000), cool_down: ms(1_000) }));
    breaker
}

fn probing() -> Breaker {
    let mut breaker = open();
    assert_eq!(breaker.limit(ms(2_000)), Some(1));
    breaker
}

#[track_caller]
fn stays_closed(answers: &[(u64, Answer)]) {
    let mut breaker = new();
    assert_eq!(told(&mut breaker, answers), None);
    assert!(breaker.is_closed() && breaker.limit(ms(100_000)).is_none());
}

#[test]
fn it_opens_only_for_a_run_that_is_long_in_number_and_in_time() {
    stays_closed(&[(0, FAILED), (500, FAILED), (2_000, FAILED), (3_000, FAILED)]); // too few
    stays_closed(&[(0, FAILED), (1, FAILED), (2, FAILED), (3, FAILED), (4, FAILED), (999, FAILED)]); // a hiccup
    let up = Answer::Up;
    stays_closed(&[(0, FAILED), (500, FAILED), (600, FAILED), (900, FAILED), (901, up), (1_500, FAILED)]);
    open();
}

#[test]
fn at_a_low_rate_few_failures_over_a_long_time_are_enough() {
    stays_closed(&[(0, FAILED), (10_000, FAILED), (29_999, FAILED)]);
    stays_closed(&[(0, FAILED), (30_000, FAILED)]);
    let mut breaker = new();
    let change = told(&mut breaker, &[(0, FAILED), (15_000, FAILED), (30_000, FAILED)]);
    assert_eq!(change, Some(BreakerChange::Opened { failures: 3, over: ms(30_000), cool_down: ms(1_000) }));
}

#[test]
fn only_a_transient_failure_says_that_the_target_may_be_down() {
    let wish = Some(Duration::from_secs(9));
    for (outcome, answer) in [
        (Outcome::Done, Answer::Up),
        (Outcome::Failed(Failure::permanent("404")), Answer::Up),
        (Outcome::Failed(Failure::poison("garbage")), Answer::Up),
        (Outcome::Failed(Failure::transient("timed out")), FAILED),
        (Outcome::Failed(Failure::transient("503").retry_after(Duration::from_secs(9))), Answer::Failed(wish)),
    ] {
        assert_eq!(Answer::of(&outcome), answer, "{outcome:?}");
    }
}

#[test]
fn it_is_calm_until_something_fails() {
    let mut breaker = new();
    assert!(breaker.is_calm());
    told(&mut breaker, &[(0, FAILED)]);
    assert!(!breaker.is_calm());
    told(&mut breaker, &[(1, Answer::Up)]);
    assert!(breaker.is_calm());
}

#[test]
fn nothing_starts_before_the_end_of_the_cool_down_then_one() {
    let mut breaker = open();
    assert_eq!((breaker.limit(ms(1_999)), breaker.opens_at()), (Some(0), Some(ms(2_000))));
    assert!(breaker.is_open() && !breaker.is_calm());
    assert_eq!((breaker.limit(ms(2_000)), breaker.opens_at()), (Some(1), None));
    assert!(breaker.is_open(), "nothing has shown that the target is up");
}

#[test]
fn results_while_it_is_open_change_nothing() {
    let mut breaker = open();
    assert_eq!(told(&mut breaker, &[(1_100, Answer::Up), (1_200, FAILED)]), None);
    assert_eq!((breaker.limit(ms(1_999)), breaker.limit(ms(2_000))), (Some(0), Some(1)));
    // Nor does a stage that answered then hold the ramp.
    let mut breaker = open();
    breaker.concluded(ms(1_100), 1, Answer::Up);
    assert_eq!(breaker.limit(ms(2_000)), Some(1));
    breaker.concluded(ms(2_000), 2, Answer::Up);
    let change = (2_001..=2_003).filter_map(|at| breaker.concluded(ms(at), 2, FAILED)).last();
    assert_eq!(change, Some(BreakerChange::Opened { failures: 3, over: ms(2), cool_down: ms(2_000) }));
}

#[test]
fn each_probe_that_fails_doubles_the_cool_down_up_to_the_longest() {
    let mut breaker = probing();
    let mut now = 2_000;
    for seconds in [2, 4, 8, 8, 8] {
        let cool_down = Duration::from_secs(seconds);
        assert_eq!(breaker.concluded(ms(now), 0, FAILED), Some(BreakerChange::ProbeFailed { cool_down }));
        now += seconds * 1_000;
        assert_eq!((breaker.limit(ms(now - 1)), breaker.limit(ms(now))), (Some(0), Some(1)));
    }
}

#[test]
fn a_target_that_asks_for_time_gets_it_within_the_longest_cool_down() {
    for (wish, cool_down) in [(0, 2), (5, 5), (600, 8)] {
        let mut breaker = probing();
        let change = breaker.concluded(ms(2_000), 0, Answer::Failed(Some(Duration::from_secs(wish))));
        assert_eq!(change, Some(BreakerChange::ProbeFailed { cool_down: Duration::from_secs(cool_down) }));
    }
    // The next cool-down grows from our own, not from the wish.
    let mut breaker = probing();
    breaker.concluded(ms(2_000), 0, Answer::Failed(Some(Duration::from_secs(8))));
    assert_eq!(breaker.limit(ms(10_000)), Some(1));
    assert_eq!(breaker.concluded(ms(10_000), 0, FAILED), Some(BreakerChange::ProbeFailed { cool_down: ms(4_000) }));
}

#[test]
fn after_a_success_it_ramps_up_to_the_full_concurrency() {
    let mut breaker = probing();
    assert_eq!(breaker.concluded(ms(2_000), 0, Answer::Up), Some(BreakerChange::Ramping));
    assert!(!breaker.is_open() && !breaker.is_closed());
    for limit in 2..16 {
        assert_eq!(breaker.limit(ms(2_001)), Some(limit));
        let change = breaker.concluded(ms(2_001), 0, Answer::Up);
        assert_eq!(change, (limit == 15).then_some(BreakerChange::Closed));
    }
    assert!(breaker.is_closed() && breaker.is_calm());
    assert_eq!(breaker.limit(ms(2_002)), None);
}

#[test]
fn a_ramp_goes_on_to_the_concurrency_of_all_stages() {
    let mut breaker = probing();
    breaker.add_concurrency(4);
    let closed = (0..).find(|_| breaker.concluded(ms(2_000), 0, Answer::Up) == Some(BreakerChange::Closed));
    assert_eq!(closed, Some(18));
}

#[test]
fn a_ramp_at_a_low_rate_ends_by_time() {
    let mut breaker = probing();
    told(&mut breaker, &[(2_000, Answer::Up), (11_999, Answer::Up)]);
    assert_eq!(breaker.limit(ms(11_999)), Some(3));
    assert_eq!(breaker.concluded(ms(12_000), 0, Answer::Up), Some(BreakerChange::Closed));
}

#[test]
fn a_ramp_bears_single_failures_and_ends_with_a_run_of_them() {
    let mut breaker = probing();
    breaker.concluded(ms(2_000), 0, Answer::Up);
    assert_eq!(told(&mut breaker, &[(2_001, FAILED), (2_002, FAILED), (2_003, Answer::Up), (2_004, FAILED)]), None);
    assert_eq!(breaker.limit(ms(2_005)), Some(3));
    let change = told(&mut breaker, &[(2_006, FAILED), (2_014, FAILED)]);
    assert_eq!(change, Some(BreakerChange::Opened { failures: 3, over: ms(10), cool_down: ms(2_000) }));
}

#[test]
fn a_stage_that_always_fails_does_not_end_the_ramp_of_another() {
    for (stage, other) in [(0, 3), (0, 63), (63, 0), (64, 1)] {
        let mut breaker = probing();
        breaker.concluded(ms(2_000), stage, Answer::Up);
        for _ in 0..100 {
            assert_eq!(breaker.concluded(ms(2_001), other, FAILED), None);
        }
        // Once the other fails, too, the target is down again.
        let change = breaker.concluded(ms(2_002), stage, FAILED);
        assert_eq!(change, Some(BreakerChange::Opened { failures: 101, over: ms(1), cool_down: ms(2_000) }));
    }
}

#[test]
fn a_target_that_dies_again_in_the_ramp_opens_the_breaker_though_another_stage_now_idle_was_up() {
    let ramping = || {
        let mut breaker = probing();
        breaker.concluded(ms(2_000), 1, Answer::Up);
        breaker
    };
    // Stage 1 has nothing to do from here on.
    for (pause, failures) in [(250, 5), (15_000, 3)] {
        let mut breaker = ramping();
        let run: Vec<_> = (0..failures).map(|n| (3_000 + n * pause, FAILED)).collect();
        let (last, before) = run.split_last().unwrap();
        assert_eq!(told(&mut breaker, before), None);
        let over = ms((failures - 1) * pause);
        let opened = BreakerChange::Opened { failures: failures as u32, over, cool_down: ms(2_000) };
        assert_eq!(told(&mut breaker, &[*last]), Some(opened));
    }
    // While it is not idle its successes hold the ramp, however often the other fails.
    let mut breaker = Breaker { full: 1_000, ..ramping() };
    for n in 0..100 {
        breaker.concluded(ms(3_000 + n * 900), 1, Answer::Up);
        for wait in [100, 200, 300, 400, 500, 600] {
            assert_eq!(breaker.concluded(ms(3_000 + n * 900 + wait), 0, FAILED), None);
        }
    }
}

#[test]
fn a_relapse_soon_after_it_closed_goes_on_with_the_longer_cool_down() {
    for (pause, cool_down) in [(500, 2_000), (999, 2_000), (1_000, 1_000), (60_000, 1_000)] {
        let mut breaker = probing();
        for _ in 0..15 {
            breaker.concluded(ms(2_000), 0, Answer::Up);
        }
        assert!(breaker.is_closed());
        let from = 2_000 + pause;
        let run: Vec<_> = (0..5).map(|n| (from + n * 250, FAILED)).collect();
        let change = told(&mut breaker, &run);
        assert_eq!(change, Some(BreakerChange::Opened { failures: 5, over: ms(1_000), cool_down: ms(cool_down) }));
    }
}

#[test]
fn who_says_that_the_target_is_back_ends_the_cool_down() {
    let mut breaker = open();
    breaker.probe_now();
    assert_eq!(breaker.limit(ms(1_001)), Some(1));
    let mut closed = new();
    closed.probe_now();
    assert!(closed.is_closed());
}

proptest! {
    /// Random answers at random times, with a model of what may be: never more starts than the state allows, no
    /// opening without a run of failures, and a target that stays up closes it again.
    #[test]
    fn whatever_comes_it_opens_only_after_a_run_and_closes_once_the_target_is_up(
        steps in prop::collection::vec((0_u64..2_000, prop::bool::weighted(0.3), 0_u64..10), 1..400),
    ) {
        let mut breaker = new();
        let (mut now, mut run) = (0, 0_u32);
        for (wait, up, wish) in steps {
            now += wait;
            let limit = breaker.limit(ms(now));
            prop_assert_eq!(limit.is_none(), breaker.is_closed());
            prop_assert_eq!(breaker.is_open(), matches!(limit, Some(0 | 1)));
            let was_open = breaker.is_open();
            let answer = if up { Answer::Up } else { Answer::Failed(Some(Duration::from_secs(wish))) };
            run = if up { 0 } else { run + 1 };
            let change = breaker.concluded(ms(now), 0, answer);
            match change {
                Some(BreakerChange::Opened { failures, cool_down, .. }) => {
                    prop_assert!(!was_open && failures <= run && failures >= 3);
                    prop_assert!(cool_down >= SETTINGS.cool_down && cool_down <= SETTINGS.max_cool_down);
                    run = 0;
                }
                Some(BreakerChange::ProbeFailed { cool_down }) => {
                    prop_assert!(limit == Some(1) && !up && cool_down <= SETTINGS.max_cool_down);
                    run = 0;
                }
                Some(BreakerChange::Ramping) => prop_assert!(limit == Some(1) && up),
                Some(BreakerChange::Closed) => prop_assert!(up && !was_open),
                None => {}
            }
            if limit == Some(0) {
                prop_assert!(change.is_none() && breaker.limit(ms(now)) == Some(0));
                run = 0;
            }
            if up {
                prop_assert!(!breaker.is_open() || limit == Some(0));
            }
        }
        // The longest cool-down, one probe, a ramp of one for each success.
        now += 8_000;
        for _ in 0..17 {
            prop_assert_ne!(breaker.limit(ms(now)), Some(0));
            breaker.concluded(ms(now), 0, Answer::Up);
        }
        prop_assert!(breaker.is_closed() && breaker.is_calm());
    }
}
