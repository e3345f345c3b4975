//! Leases: how they are kept, what their loss takes away, and what is kept all the same.

use super::*;

#[test]
fn the_lease_of_a_halted_event_is_left_to_run_out() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    rig.step(Input::Returned(slot, Verdict::Halt));
    assert!(rig.later(LEASE / 3).renew.is_empty());
}

#[test]
fn a_claim_made_anew_in_the_same_instant_has_a_higher_fence() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    let first = rig.lane.claim(slot);
    assert_eq!(rig.step(Input::NotStarted(slot)).release, [(slot, first)]);
    rig.step(Input::Released(vec![slot]));
    assert_eq!(rig.permits(1).claim, [slot]);
    assert_eq!(rig.lane.claim(slot).fence, first.fence + 1);
}

#[test]
fn an_event_that_was_busy_for_long_is_published_again_as_soon_as_any_other() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    for _ in 0..4 {
        let slot = rig.permits(1).claim[0];
        rig.claimed(slot, ClaimReply::Busy);
        rig.later(Duration::from_secs(5));
    }
    let slot = rig.permits(1).claim[0];
    rig.claimed(slot, ClaimReply::Claimed);
    rig.step(Input::Returned(slot, Verdict::Publish));
    rig.step(Input::Published(slot, Delivery::Failed));
    assert!(rig.later(Duration::from_millis(249)).publish.is_empty());
    assert_eq!(rig.later(Duration::from_millis(1)).publish, [slot]);
}

#[test]
fn parked_events_do_not_all_come_back_in_the_same_instant() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    (0..8).for_each(|offset| rig.arrive(offset, None, Duration::ZERO));
    for slot in rig.permits(8).claim.clone() {
        rig.claimed(slot, ClaimReply::Busy);
    }
    rig.later(Duration::from_millis(749));
    assert_eq!(rig.lane.wanted(rig.now()), 0);
    rig.later(Duration::from_millis(251));
    assert!((1..8).contains(&rig.lane.wanted(rig.now())), "{} at the middle", rig.lane.wanted(rig.now()));
    rig.later(Duration::from_millis(250));
    assert_eq!(rig.lane.wanted(rig.now()), 8);
}

#[test]
fn a_timer_of_an_event_that_is_finished_does_not_wake_its_slots_next_tenant() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.publishing(1);
    rig.step(Input::Published(slot, Delivery::Failed));
    rig.renewed(slot, Some(false));
    // Parked for 1.5 s at least; the timer of the publish lets it go earlier, and it turns out to be finished.
    rig.later(Duration::from_millis(1_400));
    assert_eq!(rig.permits(1).claim, [slot]);
    rig.claimed(slot, ClaimReply::Done);
    rig.arrive(2, None, Duration::ZERO);
    assert_eq!(rig.permits(1).claim, [slot]);
    rig.claimed(slot, ClaimReply::Busy);
    rig.later(Duration::from_millis(749));
    assert_eq!(rig.lane.wanted(rig.now()), 0, "it is parked for 0.75 s of its own");
}

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
    let fx = rig.step(Input::Claimed(vec![(slot, Some(ClaimReply::Claimed))], sent));
    assert_eq!((fx.start.as_slice(), fx.renew.len()), ([slot].as_slice(), 1));
}

#[test]
fn a_claim_whose_reply_was_lost_is_tried_again_as_it_was_and_confirmed_by_a_renewal() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let claim = rig.lane.claim(slot);
    let sent = rig.now().boot;
    rig.step(Input::Claimed(vec![(slot, None)], sent));
    assert_eq!(rig.lane.wanted(rig.now()), 0, "the store is down");
    rig.later(STORE_PROBE);
    assert_eq!(rig.permits(1).claim, [slot]);
    assert_eq!(rig.lane.claim(slot), claim);
    let fx = rig.claimed(slot, ClaimReply::AlreadyOurs);
    assert_eq!((fx.start.len(), fx.renew.as_slice()), (0, [(slot, claim)].as_slice()));
    let sent = rig.now().boot;
    assert_eq!(rig.step(Input::Renewed(vec![(slot, claim, Some(true))], sent)).start, [slot]);
}

#[test]
fn leases_are_renewed_each_third_and_live_on() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    for _ in 0..10 {
        let renew = rig.later(LEASE / 3).renew.clone();
        assert_eq!(renew.len(), 1);
        let sent = rig.now().boot;
        let fx = rig.step(Input::Renewed(vec![(slot, renew[0].1, Some(true))], sent));
        assert!(fx.cancel.is_empty());
    }
}

#[test]
fn at_the_local_deadline_the_handler_is_cancelled_without_an_answer_from_the_store() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    assert!(rig.later(LEASE - Duration::from_millis(1)).cancel.is_empty());
    let fx = rig.later(Duration::from_millis(1));
    assert_eq!((fx.cancel.as_slice(), fx.permits, fx.leases_lost), ([slot].as_slice(), 1, 1));
}

#[test]
fn a_renewal_is_taken_back_when_its_event_finishes_before_it_is_sent() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(5);
    rig.step(Input::Returned(slot, Verdict::Done));
    assert_eq!(rig.later(LEASE / 3).renew.len(), 1);
    let now = rig.now();
    rig.lane.step(now, Input::Settled(vec![(slot, true)]), &mut rig.fx);
    assert_eq!(rig.fx.finished, [(5, Finish::Settled(Mark::Done))]);
    assert_eq!(rig.fx.renew, []);
}

#[test]
fn an_outcome_that_comes_together_with_the_loss_of_its_lease_no_longer_counts() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(5);
    assert_eq!(rig.later(LEASE).cancel, [slot]);
    let now = rig.now();
    rig.lane.step(now, Input::Returned(slot, Verdict::Done), &mut rig.fx);
    assert_eq!((rig.fx.settle.as_slice(), rig.fx.permits), ([].as_slice(), 1));
    assert_eq!(rig.lane.position(), Some(5));
}

#[test]
fn a_start_is_taken_back_when_the_lease_is_lost_before_it_is_performed() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(5);
    assert_eq!(rig.fx.start, [slot]);
    rig.ms += LEASE.as_millis() as u64;
    let now = rig.now();
    rig.lane.step(now, Input::Tick, &mut rig.fx);
    assert!(rig.fx.start.is_empty());
    assert!(!rig.lane.is_running(slot));
}

#[test]
fn a_lease_counts_from_before_the_claim_was_sent() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let sent = rig.now().boot;
    rig.ms += LEASE.as_millis() as u64;
    let fx = rig.step(Input::Claimed(vec![(slot, Some(ClaimReply::Claimed))], sent));
    assert!(fx.start.is_empty(), "the answer took as long as the lease");
    assert_eq!(fx.leases_lost, 1);
}

#[test]
fn a_failure_after_the_lease_was_lost_publishes_nothing() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    rig.ms += LEASE.as_millis() as u64;
    let fx = rig.step(Input::Returned(slot, Verdict::Publish));
    assert!(fx.publish.is_empty());
    assert_eq!((fx.leases_lost, fx.permits), (1, 1));
    rig.later(Duration::from_secs(2));
    assert_eq!(rig.permits(1).claim, [slot], "it is claimed again");
}

#[test]
fn success_after_the_lease_was_lost_is_settled_all_the_same() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    rig.ms += LEASE.as_millis() as u64;
    assert_eq!(rig.step(Input::Returned(slot, Verdict::Done)).settle, [(slot, Mark::Done)]);
}

#[test]
fn an_acknowledgement_after_the_lease_was_lost_is_settled_all_the_same() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.publishing(1);
    rig.later(LEASE * 2);
    let fx = rig.step(Input::Published(slot, Delivery::Acknowledged));
    assert_eq!(fx.settle, [(slot, Mark::MovedOn)]);
}

#[test]
fn a_delivery_error_publishes_again_while_the_lease_holds_and_not_once_it_is_lost() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.publishing(1);
    rig.step(Input::Published(slot, Delivery::Failed));
    assert_eq!(rig.later(Duration::from_millis(250)).publish, [slot]);
    rig.renewed(slot, Some(false));
    rig.step(Input::Published(slot, Delivery::Failed));
    assert!(rig.later(Duration::from_secs(1)).publish.is_empty());
    rig.later(Duration::from_secs(2));
    assert_eq!(rig.permits(1).claim, [slot]);
}

#[test]
fn a_late_answer_to_a_renewal_does_not_touch_the_slots_next_tenant() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    let old = rig.lane.claim(slot);
    rig.step(Input::Returned(slot, Verdict::Done));
    rig.step(Input::Settled(vec![(slot, true)]));
    assert_eq!(rig.running(2), slot);
    let sent = rig.now().boot;
    assert!(rig.step(Input::Renewed(vec![(slot, old, Some(false))], sent)).cancel.is_empty());
}
