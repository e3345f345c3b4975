//! What can go into a transaction.

use super::*;

/// Position, ready, lapsed and stranded.
#[track_caller]
fn check(rig: &Rig, position: i64, ready: &[Slot], lapsed: &[Slot], stranded: &[Slot]) {
    let expected =
        Hops { position: Some(position), ready: ready.into(), lapsed: lapsed.into(), stranded: stranded.into() };
    assert_eq!(rig.lane.hops(rig.now()), expected);
}

#[test]
fn a_hop_waits_until_everything_before_it_is_finished_or_a_hop_too() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slow = rig.running(4);
    let (five, six) = (rig.publishing(5), rig.publishing(6));
    check(&rig, 4, &[], &[], &[]);
    rig.step(Input::Returned(slow, Verdict::Done));
    check(&rig, 4, &[], &[], &[]); // not before that is recorded
    rig.step(Input::Settled(vec![(slow, true)]));
    check(&rig, 7, &[five, six], &[], &[]);
    let running = rig.running(9);
    let ten = rig.publishing(10);
    check(&rig, 9, &[five, six], &[], &[]);
    rig.step(Input::Returned(running, Verdict::Publish));
    check(&rig, 11, &[five, six, running, ten], &[], &[]);
}

#[test]
fn what_was_committed_holds_back_nobody_while_the_store_is_yet_to_confirm_it() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let (one, two) = (rig.publishing(1), rig.publishing(2));
    rig.step(Input::Published(one, Delivery::Acknowledged));
    check(&rig, 3, &[two], &[], &[]);
    rig.step(Input::Settled(vec![(one, false)]));
    check(&rig, 3, &[two], &[], &[]);
    assert_eq!(rig.lane.position(), Some(1));
}

#[test]
fn nothing_is_sent_without_a_lease_and_an_aborted_hop_is_offered_again() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.publishing(1);
    rig.later(LEASE);
    check(&rig, 1, &[], &[slot], &[]);
    rig.renewed(slot, Some(true));
    check(&rig, 2, &[slot], &[], &[]);
    rig.step(Input::Published(slot, Delivery::Failed));
    check(&rig, 1, &[], &[], &[]);
    assert_eq!(rig.later(Duration::from_secs(1)).publish, [slot]);
    check(&rig, 2, &[slot], &[], &[]);
    rig.renewed(slot, Some(false));
    check(&rig, 1, &[], &[slot], &[]);
    rig.step(Input::Published(slot, Delivery::Failed));
    rig.later(LEASE);
    assert_eq!(rig.lane.wanted(rig.now()), 1, "it is executed again");
}

#[test]
fn what_is_behind_an_event_that_a_drain_forgets_is_given_up_once_nothing_else_can_close_the_gap() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let one = rig.publishing(1);
    rig.arrive(2, None, LEASE * 9);
    let (running, four) = (rig.running(3), rig.publishing(4));
    rig.step(Input::Drain);
    check(&rig, 2, &[one], &[], &[]); // what runs may still end well
    rig.step(Input::Returned(running, Verdict::Publish));
    check(&rig, 2, &[one], &[], &[running, four]);
    for slot in [running, four] {
        let release = rig.step(Input::Published(slot, Delivery::Withheld)).release.clone();
        assert_eq!(
            release.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(),
            [slot],
            "others need not wait for its lease"
        );
        rig.step(Input::Released(vec![slot]));
    }
    rig.step(Input::Published(one, Delivery::Acknowledged));
    rig.step(Input::Settled(vec![(one, true)]));
    assert!(rig.lane.drained());
    assert_eq!(rig.lane.position(), Some(2));
}

#[test]
fn without_a_claim_there_is_nothing_to_release() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).start[0];
    rig.step(Input::Returned(slot, Verdict::Publish));
    rig.step(Input::Drain);
    assert!(rig.step(Input::Published(slot, Delivery::Withheld)).release.is_empty());
    assert!(rig.lane.drained());
}
