//! What the brake judges, when it stops and what releases it: virtual time, then random sequences.

use proptest::prelude::*;

use super::*;

const SETTINGS: BrakeSettings = BrakeSettings {
    ratio: 0.5,
    min_events: 100,
    window: Duration::from_secs(600),
    cool_down: Duration::from_secs(60),
    max_cool_down: Duration::from_secs(200),
};

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn new() -> Brake {
    Brake::new(SETTINGS, s(1_000), 0)
}

/// Dead letters at a time, with so many entered by then.
fn dead(brake: &mut Brake, at: u64, count: u64, entered: u64) -> Option<BrakeChange> {
    (0..count).fold(None, |change, _| change.or(brake.dead_letter(s(at), entered)))
}

/// Stopped at 1,010 s.
fn stopped() -> Brake {
    let mut brake = new();
    let change = dead(&mut brake, 1_010, 50, 100);
    assert_eq!(change, Some(BrakeChange::Stopped { dead: 50, entered: 100, cool_down: s(60) }));
    brake
}

#[test]
fn it_stops_at_the_ratio_once_enough_have_entered() {
    assert_eq!(dead(&mut new(), 1_010, 99, 99), None, "too few are no measure");
    assert_eq!(dead(&mut new(), 1_010, 49, 100), None);
    stopped();
}

#[test]
fn what_is_older_than_the_window_no_longer_counts() {
    let mut brake = new();
    assert_eq!(dead(&mut brake, 1_010, 49, 100), None);
    // 100 more entered since, none of the first 100 counts.
    assert_eq!(dead(&mut brake, 1_900, 40, 200), None);
    let change = dead(&mut brake, 1_901, 60, 250);
    assert!(matches!(change, Some(BrakeChange::Stopped { entered, .. }) if entered < 150), "{change:?}");
    // To the length of a part, a sixtieth.
    let mut brake = new();
    dead(&mut brake, 1_009, 1, 10);
    dead(&mut brake, 1_601, 1, 10);
    assert_eq!(
        brake.parts.iter().map(|part| (part.entered, part.dead)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (0, 1)
    );
}

#[test]
fn a_window_of_no_length_is_no_trouble() {
    let mut brake = Brake::new(BrakeSettings { window: Duration::ZERO, ..SETTINGS }, s(1_000), 0);
    assert!(dead(&mut brake, 1_000, 100, 100).is_some());
}

#[test]
fn a_long_time_without_a_dead_letter_does_not_hide_a_storm() {
    let mut brake = new();
    // A million entered in ten windows without a dead letter: only the last window's share counts.
    assert_eq!(dead(&mut brake, 7_000, 1, 1_000_000), None);
    let window: u64 = brake.parts.iter().map(|part| part.entered).sum();
    assert!((99_000..=102_000).contains(&window), "{window}");
    // Then all fail: after a window at the latest it stops, though it is fewer than before.
    let stopped = (1..=600).find(|n| dead(&mut brake, 7_000 + n, 100, 1_000_000 + n * 100).is_some());
    assert!(stopped.is_some_and(|n| n < 590), "{stopped:?}");
}

#[test]
fn after_the_cool_down_one_event_is_tried_and_its_end_decides() {
    let mut brake = stopped();
    assert_eq!((brake.limit(s(1_069)), brake.opens_at()), (Some(0), Some(s(1_070))));
    assert_eq!((brake.limit(s(1_070)), brake.opens_at()), (Some(1), None));
    for cool_down in [120, 200, 200] {
        let now = 1_100;
        let change = brake.probed(s(now), Probe::Dead, 101);
        assert_eq!(change, Some(BrakeChange::ProbeFailed { cool_down: s(cool_down) }));
        assert_eq!((brake.limit(s(now + cool_down - 1)), brake.limit(s(now + cool_down))), (Some(0), Some(1)));
    }
    assert_eq!(brake.probed(s(2_000), Probe::Retried, 104), Some(BrakeChange::ProbeFailed { cool_down: s(200) }));
    assert_eq!(brake.limit(s(2_200)), Some(1));
    assert_eq!(brake.probed(s(2_200), Probe::Done, 105), Some(BrakeChange::Released));
    assert_eq!(brake.limit(s(2_200)), None);
    assert_eq!(dead(&mut brake, 2_201, 99, 204), None, "it begins anew");
    let change = dead(&mut brake, 2_202, 1, 205);
    assert_eq!(change, Some(BrakeChange::Stopped { dead: 100, entered: 100, cool_down: s(60) }));
}

#[test]
fn a_command_releases_it_and_ends_of_others_do_not() {
    let mut brake = stopped();
    assert_eq!(brake.probed(s(1_020), Probe::Done, 100), None, "it ran when the brake stopped the others");
    assert_eq!(dead(&mut brake, 1_020, 100, 200), None, "nor do they stop it for longer");
    assert_eq!((brake.limit(s(1_021)), brake.opens_at()), (Some(0), Some(s(1_070))));
    assert_eq!(brake.release(s(1_021), 100), Some(BrakeChange::Released));
    assert_eq!((brake.limit(s(1_021)), brake.release(s(1_022), 100)), (None, None));
    assert_eq!(dead(&mut brake, 1_023, 1, 101), None, "what was counted before is forgotten");
}

#[test]
fn only_what_can_be_compared_is() {
    let dead = |reason, on_main, is_recent| DeadLetter { reason, on_main, is_recent, redriven: false };
    for (has_main, dead, expected) in [
        (true, dead(Reason::Permanent, true, false), true),
        (true, dead(Reason::Exhausted, false, true), true),
        (true, dead(Reason::Exhausted, false, false), false), // it entered before this process counted
        (true, DeadLetter { redriven: true, ..dead(Reason::Permanent, false, true) }, false),
        (false, dead(Reason::Exhausted, false, true), false), // on a last rung most fail again
        (false, dead(Reason::Expired, false, true), false),
        (false, dead(Reason::Permanent, false, true), true),
        (false, dead(Reason::Poison, false, false), true),
    ] {
        assert_eq!(counts(has_main, dead), expected, "{has_main} {dead:?}");
    }
}

proptest! {
    /// Whatever comes when: nothing that entered is counted twice, and it never stops below its ratio.
    #[test]
    fn it_never_stops_below_the_ratio_of_what_entered_since_it_began(
        steps in prop::collection::vec((0_u64..50, 0_u64..40, prop::bool::ANY), 1..300),
    ) {
        let mut brake = new();
        let (mut now, mut entered, mut dead) = (1_000, 0, 0_u64);
        for (wait, more, dies) in steps {
            now += wait;
            entered += more;
            if !dies {
                continue;
            }
            dead += 1;
            let change = brake.dead_letter(s(now), entered);
            let window: u64 = brake.parts.iter().map(|part| part.entered).sum();
            prop_assert!(window <= entered);
            prop_assert!(brake.parts.len() <= PARTS as usize + 2, "{} parts", brake.parts.len());
            if now <= 1_600 {
                prop_assert_eq!(window, entered);
                prop_assert_eq!(change.is_some(), entered >= 100 && dead * 2 >= entered);
            }
            if change.is_some() {
                break;
            }
        }
    }
}
