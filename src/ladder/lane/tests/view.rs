//! What a lane tells of itself: to its shell, and to those who look at it.

use super::*;

#[test]
fn a_new_lane_holds_nothing_and_waits_for_nothing() {
    let Rig { lane, fx, .. } = &Rig::new(Order::None, Dedup::Required);
    let now = Now { wall: Timestamp::from_millis(1), boot: Duration::ZERO };
    assert_eq!((lane.waiting(), lane.in_flight(), lane.permits_held(), lane.wanted(now)), (0, 0, (0, 0), 0));
    assert_eq!((lane.position(), lane.delivered_to(), lane.next_tick()), (None, None, (None, None)));
    assert!(!lane.drained() && !lane.halted() && !lane.store_down() && !lane.paused() && !lane.is_running(0));
    assert!(fx.is_empty() && fx.latest_permits == 0);
}

#[test]
fn every_event_stands_somewhere() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.running(1);
    rig.arrive(2, None, Duration::ZERO);
    rig.arrive(3, None, Duration::from_millis(1));
    let standings = |rig: &Rig| -> Vec<Standing> { rig.lane.standings(rig.now().wall).map(|(_, s)| s).collect() };
    assert_eq!(standings(&rig), [Standing::Started, Standing::Overdue, Standing::Waiting]);
    assert_eq!((rig.lane.waiting(), rig.lane.in_flight(), rig.lane.delivered_to()), (1, 2, Some(4)));
    rig.later(Duration::from_millis(1));
    assert_eq!(standings(&rig), [Standing::Started, Standing::Overdue, Standing::Overdue]);
}

#[test]
fn a_claim_is_held_from_when_it_is_made_until_it_is_given_up() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let none = rig.lane.claim(0);
    assert_eq!((none, rig.lane.holds(0, none)), (ClaimId { sequence: 0, fence: 0 }, false));
    let slot = rig.permits(1).claim[0];
    let claim = rig.lane.claim(slot);
    let another = ClaimId { sequence: claim.sequence + 1, ..claim };
    assert!(rig.lane.holds(slot, claim) && !rig.lane.holds(slot, another) && !rig.lane.holds(slot + 1, claim));
    rig.claimed(slot, ClaimReply::Busy);
    assert!(!rig.lane.holds(slot, claim));
}

#[test]
fn only_what_runs_within_its_lease_may_start() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let runs = rig.running(1);
    rig.arrive(2, None, Duration::ZERO);
    let claiming = rig.permits(1).claim[0];
    let mut now = rig.now();
    assert!(rig.lane.may_start(now, runs) && !rig.lane.may_start(now, claiming));
    now.boot += LEASE;
    assert!(!rig.lane.may_start(now, runs));
}

#[test]
fn the_next_tick_is_the_first_instant_that_anything_waits_for() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::from_secs(60));
    let due = rig.now().wall + Duration::from_secs(60);
    assert_eq!(rig.lane.next_tick(), (Some(due), None));
    rig.running(2);
    assert_eq!(rig.lane.next_tick(), (Some(due), Some(rig.now().boot + LEASE / 3)), "its lease is renewed");
    rig.arrive(3, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    rig.claimed(slot, ClaimReply::Busy);
    let (_, boot) = rig.lane.next_tick();
    assert!(boot.unwrap() <= rig.now().boot + Duration::from_millis(1_250), "what is parked is tried again");
    rig.step(Input::Drain);
    assert_eq!(rig.lane.next_tick(), (None, boot), "what is not due is left to the next owner");
}

#[test]
fn a_store_that_is_down_is_probed_at_its_time_if_there_is_something_to_claim() {
    let down = |dedup| {
        let mut rig = Rig::new(Order::None, dedup);
        rig.arrive(1, None, Duration::ZERO);
        let (slot, sent) = (rig.permits(1).claim[0], rig.now().boot);
        rig.step(Input::Claimed(vec![(slot, None)], sent));
        rig
    };
    let mut rig = down(Dedup::Required);
    let at = rig.now().boot + STORE_PROBE;
    assert_eq!(rig.lane.next_tick().1, Some(at));
    rig.later(STORE_PROBE);
    assert_eq!((rig.lane.wanted(rig.now()), rig.lane.next_tick().1), (1, None), "it waits for a permit");
    let mut rig = down(Dedup::Required);
    rig.step(Input::Drain);
    assert_eq!(rig.lane.next_tick().1, None);
    assert_eq!(down(Dedup::BestEffort).lane.next_tick().1, None, "the event runs");
}

#[test]
fn effects_are_empty_when_nothing_is_in_them() {
    let fills: [fn(&mut Effects<i64>); 13] = [
        |fx| fx.claim.push(0),
        |fx| fx.start.push(0),
        |fx| fx.cancel.push(0),
        |fx| fx.publish.push(0),
        |fx| fx.shrink.push(0),
        |fx| fx.settle.push((0, Mark::Done)),
        |fx| fx.renew.push((0, ClaimId { sequence: 0, fence: 0 })),
        |fx| fx.release.push((0, ClaimId { sequence: 0, fence: 0 })),
        |fx| fx.finished.push((0, Finish::Duplicate)),
        |fx| fx.permits = 1,
        |fx| fx.busy = 1,
        |fx| fx.corrupt.push(0),
        |fx| fx.leases_lost = 1,
    ];
    for (number, fill) in fills.into_iter().enumerate() {
        let mut fx = Effects { latest_permits: 1, ..Effects::default() };
        assert!(fx.is_empty());
        fill(&mut fx);
        assert!(!fx.is_empty(), "{number}");
        fx.clear();
        assert!(fx.is_empty() && fx.latest_permits == 0, "{number}");
    }
}
