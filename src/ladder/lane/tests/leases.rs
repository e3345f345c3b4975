//! Renewals and their replies, and what is kept past the local deadline.

use super::*;

#[test]
fn what_has_returned_is_kept_past_the_local_deadline_until_the_store_says_whose_it_is() {
    for (word, again) in [(true, false), (false, true)] {
        let mut rig = Rig::new(Order::None, Dedup::Required);
        let slot = rig.publishing(1);
        rig.renewed(slot, None);
        rig.later(LEASE);
        rig.step(Input::Published(slot, Delivery::Failed));
        for _ in 0..9 {
            let fx = rig.later(LEASE / 3);
            assert!(fx.publish.is_empty(), "without a lease nothing is published");
            assert_eq!(fx.renew.len(), 1, "it is asked for on and on");
            rig.renewed(slot, None);
        }
        assert_eq!(rig.lane.wanted(rig.now()), 0, "nor executed");
        rig.renewed(slot, Some(word));
        let fx = rig.later(LEASE / 3);
        assert_eq!(fx.publish.is_empty(), again);
        assert_eq!(rig.lane.wanted(rig.now()), usize::from(again));
    }
}

#[test]
fn the_reply_of_an_earlier_renewal_that_comes_late_does_not_shorten_the_lease() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    let (claim, earlier) = (rig.lane.claim(slot), rig.now().boot);
    rig.later(LEASE / 2);
    rig.renewed(slot, Some(true));
    rig.step(Input::Renewed(vec![(slot, claim, Some(true))], earlier));
    assert!(rig.later(LEASE / 2).cancel.is_empty());
    assert_eq!(rig.later(LEASE / 2).cancel, [slot]);
}

#[test]
fn a_claim_that_is_granted_before_the_due_of_a_clock_that_was_set_back_is_released() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let mut now = rig.now();
    now.wall = Timestamp::from_millis(rig.ms - 1);
    rig.fx.clear();
    rig.lane.step(now, Input::Claimed(vec![(slot, Some(ClaimReply::Claimed))], now.boot), &mut rig.fx);
    assert_eq!((rig.fx.start.len(), rig.fx.release.len(), rig.fx.permits), (0, 1, 1));
}

#[test]
fn a_renewal_that_is_not_answered_is_tried_again_before_the_next_third() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    assert_eq!(rig.later(LEASE / 3).renew.len(), 1);
    rig.renewed(slot, None);
    assert!(rig.later(STORE_PROBE - Duration::from_millis(1)).renew.is_empty());
    assert_eq!(rig.later(Duration::from_millis(1)).renew.len(), 1);
}

#[test]
fn a_lease_whose_claim_was_answered_late_is_renewed_after_a_third_of_it_all_the_same() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let (sent, slot) = (rig.now().boot, rig.permits(1).claim[0]);
    rig.later(LEASE / 2);
    assert_eq!(rig.step(Input::Claimed(vec![(slot, Some(ClaimReply::Claimed))], sent)).start, [slot]);
    assert_eq!(rig.later(Duration::ZERO).renew.len(), 1);
}
