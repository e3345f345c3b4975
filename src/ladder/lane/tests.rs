//! The lane by example; [`schedules`] tries it at random.

mod hops;
mod leases;
mod schedules;

use super::*;
use crate::ladder::event::ClaimReply;

const LEASE: Duration = Duration::from_secs(15);

/// A lane with its time and what it last asked for.
struct Rig {
    lane: Lane<i64>,
    fx: Effects<i64>,
    ms: u64,
}

impl Rig {
    fn new(order: Order, dedup: Dedup) -> Self {
        Self {
            lane: Lane::new(LaneConfig {
                order,
                dedup,
                lease: LEASE,
                max_waiting: 4,
                max_waiting_bytes: 1_000,
                max_in_flight: 8,
                max_in_flight_bytes: 2_000,
                first_sequence: 1,
                seed: 7,
            }),
            fx: Effects::default(),
            ms: 1_000_000,
        }
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::from_millis(self.ms), boot: Duration::from_millis(self.ms) }
    }

    fn step(&mut self, input: Input<i64>) -> &Effects<i64> {
        let now = self.now();
        self.fx.clear();
        self.lane.step(now, input, &mut self.fx);
        &self.fx
    }

    fn later(&mut self, by: Duration) -> &Effects<i64> {
        self.ms += by.as_millis() as u64;
        self.step(Input::Tick)
    }

    /// An event that is due `after` from now.
    fn arrive(&mut self, offset: i64, key: Option<u64>, after: Duration) {
        let due = self.now().wall + after;
        let arrival = Arrival { offset, due, key, bytes: 10, fence: 0, item: offset };
        self.step(Input::Arrived(vec![arrival]));
    }

    fn permits(&mut self, n: usize) -> &Effects<i64> {
        self.step(Input::Permits(n, 0))
    }

    fn claimed(&mut self, slot: Slot, reply: ClaimReply) -> &Effects<i64> {
        let sent = self.now().boot;
        self.step(Input::Claimed(vec![(slot, Some(reply))], sent))
    }

    fn renewed(&mut self, slot: Slot, reply: Option<bool>) -> &Effects<i64> {
        let (claim, sent) = (self.lane.claim(slot), self.now().boot);
        self.step(Input::Renewed(vec![(slot, claim, reply)], sent))
    }

    /// One event that runs with a lease; its slot.
    fn running(&mut self, offset: i64) -> Slot {
        self.arrive(offset, None, Duration::ZERO);
        let slot = self.permits(1).claim[0];
        assert_eq!(self.claimed(slot, ClaimReply::Claimed).start, [slot]);
        slot
    }

    /// One event that is with the producer; its slot.
    fn publishing(&mut self, offset: i64) -> Slot {
        let slot = self.running(offset);
        assert_eq!(self.step(Input::Returned(slot, Verdict::Publish)).publish, [slot]);
        slot
    }
}

#[test]
fn success_is_settled_before_the_offset_is_done() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(5);
    let fx = rig.step(Input::Returned(slot, Verdict::Done));
    assert_eq!((fx.settle.as_slice(), fx.permits), ([(slot, Mark::Done)].as_slice(), 1));
    assert_eq!(rig.lane.position(), Some(5));
    let fx = rig.step(Input::Settled(vec![(slot, true)]));
    assert_eq!(fx.finished, [(5, Finish::Settled(Mark::Done))]);
    assert_eq!(rig.lane.position(), Some(6));
}

#[test]
fn a_failure_moves_on_only_after_the_acknowledgement() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.publishing(5);
    assert_eq!(rig.lane.position(), Some(5));
    let fx = rig.step(Input::Published(slot, Delivery::Acknowledged));
    assert_eq!(fx.settle, [(slot, Mark::MovedOn)]);
    rig.step(Input::Settled(vec![(slot, true)]));
    assert_eq!(rig.lane.position(), Some(6));
}

#[test]
fn without_deduplication_nothing_is_claimed_or_settled() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    rig.arrive(1, None, Duration::ZERO);
    let fx = rig.permits(1);
    assert!(fx.claim.is_empty());
    let slot = fx.start[0];
    let fx = rig.step(Input::Returned(slot, Verdict::Done));
    assert_eq!(fx.finished, [(1, Finish::Settled(Mark::Done))]);
}

#[test]
fn nothing_starts_before_its_due() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    rig.arrive(1, None, Duration::from_secs(5));
    assert_eq!(rig.lane.wanted(rig.now()), 0);
    assert_eq!(rig.lane.next_tick().0, Some(rig.now().wall + Duration::from_secs(5)));
    rig.later(Duration::from_millis(4_999));
    assert_eq!((rig.lane.wanted(rig.now()), rig.lane.waiting()), (0, 1));
    rig.later(Duration::from_millis(1));
    assert_eq!((rig.lane.wanted(rig.now()), rig.lane.waiting(), rig.lane.in_flight()), (1, 0, 1));
}

#[test]
fn permits_that_cannot_be_used_come_back() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    rig.arrive(1, None, Duration::ZERO);
    let fx = rig.permits(5);
    assert_eq!((fx.start.len(), fx.permits), (1, 4));
}

#[test]
fn events_of_one_key_run_one_at_a_time_in_offset_order() {
    let mut rig = Rig::new(Order::Stage, Dedup::Off);
    for (offset, key) in [(1, Some(7)), (2, Some(7)), (3, None), (4, Some(8)), (5, Some(7))] {
        rig.arrive(offset, key, Duration::ZERO);
    }
    let started = |rig: &Rig| rig.fx.start.iter().map(|s| *rig.lane.get(*s)).collect::<Vec<_>>();
    rig.permits(9);
    assert_eq!(started(&rig), [1, 3, 4]);
    let first = rig.fx.start[0];
    // The next goes as soon as the one before has returned, whatever becomes of its publish.
    rig.step(Input::Returned(first, Verdict::Publish));
    rig.permits(9);
    assert_eq!(started(&rig), [2]);
    let second = rig.fx.start[0];
    rig.step(Input::Returned(second, Verdict::Done));
    rig.permits(9);
    assert_eq!(started(&rig), [5]);
}

#[test]
fn a_lost_lease_keeps_the_order_of_its_key() {
    let mut rig = Rig::new(Order::Stage, Dedup::Required);
    rig.arrive(1, Some(7), Duration::ZERO);
    rig.arrive(2, Some(7), Duration::ZERO);
    let slot = rig.permits(9).claim[0];
    rig.claimed(slot, ClaimReply::Claimed);
    assert_eq!(rig.later(LEASE).cancel, [slot]);
    assert_eq!(rig.lane.wanted(rig.now()), 0, "the second must not overtake the first");
    rig.later(Duration::from_secs(2));
    assert_eq!(rig.permits(9).claim, [slot]);
}

#[test]
fn a_busy_event_is_parked_and_the_others_go_on() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let fx = rig.claimed(slot, ClaimReply::Busy);
    assert_eq!((fx.busy, fx.permits), (1, 1));
    let other = rig.running(2);
    rig.step(Input::Returned(other, Verdict::Done));
    rig.step(Input::Settled(vec![(other, true)]));
    assert_eq!(rig.lane.position(), Some(1), "its offset is not done");
    rig.later(Duration::from_secs(2));
    assert_eq!(rig.permits(1).claim, [slot]);
    let fx = rig.claimed(slot, ClaimReply::Done);
    assert_eq!(fx.finished, [(1, Finish::Duplicate)]);
    assert_eq!(rig.lane.position(), Some(3));
}

#[test]
fn each_claim_has_a_sequence_and_a_higher_fence_of_its_own() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let first = rig.lane.claim(slot);
    rig.claimed(slot, ClaimReply::Busy);
    rig.later(Duration::from_secs(2));
    rig.permits(1);
    let second = rig.lane.claim(slot);
    assert!(second.sequence > first.sequence && second.fence > first.fence);
}

#[test]
fn a_claim_without_a_reply_gets_a_new_fence_once_it_is_older_than_the_lease() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let first = rig.lane.claim(slot);
    let unanswered = |rig: &mut Rig, after: Duration| {
        let sent = rig.now().boot;
        rig.step(Input::Claimed(vec![(slot, None)], sent));
        rig.later(after);
        assert_eq!(rig.permits(1).claim, [slot]);
        rig.lane.claim(slot)
    };
    assert_eq!(unanswered(&mut rig, LEASE - Duration::from_millis(1)), first, "the store may hold it");
    // Meanwhile another instance may have run the event and died: its fence is at most a lease old.
    let second = unanswered(&mut rig, Duration::from_secs(1));
    assert!(second.sequence > first.sequence && second.fence >= first.fence + LEASE.as_millis() as u64, "{second:?}");
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
fn without_the_store_nothing_starts_and_one_probe_goes_out() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    for offset in 0..3 {
        rig.arrive(offset, None, Duration::ZERO);
    }
    let slots = rig.permits(3).claim.clone();
    let sent = rig.now().boot;
    rig.step(Input::Claimed(slots.iter().map(|s| (*s, None)).collect(), sent));
    assert!(rig.lane.store_down());
    assert_eq!(rig.fx.permits, 3);
    rig.later(STORE_PROBE);
    assert_eq!(rig.lane.wanted(rig.now()), 1);
    let slot = rig.permits(1).claim[0];
    assert_eq!(rig.lane.wanted(rig.now()), 0, "one probe at a time");
    rig.claimed(slot, ClaimReply::Claimed);
    assert_eq!(rig.lane.wanted(rig.now()), 2);
}

#[test]
fn with_best_effort_events_run_unclaimed_and_end_unsettled_while_the_store_is_away() {
    let mut rig = Rig::new(Order::None, Dedup::BestEffort);
    rig.arrive(1, None, Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    let sent = rig.now().boot;
    assert_eq!(rig.step(Input::Claimed(vec![(slot, None)], sent)).start, [slot]);
    rig.step(Input::Returned(slot, Verdict::Done));
    assert_eq!(rig.step(Input::Settled(vec![(slot, false)])).finished.len(), 1);
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
fn a_settlement_is_repeated_until_it_is_confirmed() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    rig.step(Input::Returned(slot, Verdict::Done));
    for _ in 0..8 {
        assert!(rig.step(Input::Settled(vec![(slot, false)])).finished.is_empty());
        assert_eq!(rig.later(Duration::from_secs(5)).settle, [(slot, Mark::Done)]);
    }
    assert_eq!(rig.step(Input::Settled(vec![(slot, true)])).finished.len(), 1);
}

#[test]
fn a_refused_fence_releases_the_claim_and_claims_again() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.running(1);
    let claim = rig.lane.claim(slot);
    let fx = rig.step(Input::Returned(slot, Verdict::Fenced));
    assert_eq!((fx.release.as_slice(), fx.permits), ([(slot, claim)].as_slice(), 1));
    rig.step(Input::Released(vec![slot]));
    rig.later(Duration::from_secs(2));
    assert_eq!(rig.permits(1).claim, [slot]);
    assert!(rig.lane.claim(slot).fence > claim.fence);
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

#[test]
fn a_drain_starts_nothing_releases_late_claims_and_waits_for_what_is_owed() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let runs = rig.running(1);
    rig.arrive(2, None, Duration::ZERO);
    let claiming = rig.permits(1).claim[0];
    rig.arrive(3, None, Duration::ZERO);
    rig.arrive(4, None, Duration::from_secs(9));
    rig.step(Input::Drain);
    assert_eq!(rig.lane.wanted(rig.now()), 0);
    let fx = rig.claimed(claiming, ClaimReply::Claimed);
    assert_eq!((fx.start.len(), fx.release.len(), fx.permits), (0, 1, 1));
    rig.step(Input::Released(vec![claiming]));
    assert!(!rig.lane.drained());
    rig.step(Input::Returned(runs, Verdict::Done));
    rig.step(Input::Settled(vec![(runs, true)]));
    assert!(rig.lane.drained());
    assert_eq!(rig.lane.position(), Some(2), "what never started is read again by the next owner");
}

#[test]
fn too_large_shrinks_and_then_halts_without_skipping() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    let slot = rig.publishing(1);
    assert_eq!(rig.step(Input::Published(slot, Delivery::TooLarge)).shrink, [slot]);
    rig.step(Input::Published(slot, Delivery::Unpublishable));
    assert!(rig.lane.halted());
    rig.arrive(2, None, Duration::ZERO);
    assert_eq!(rig.lane.wanted(rig.now()), 0);
    assert_eq!(rig.lane.position(), Some(1));
}

#[test]
fn a_full_window_pauses_and_a_half_empty_one_resumes() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    for offset in 0..4 {
        rig.arrive(offset, None, Duration::from_secs(1 + offset as u64));
    }
    assert!(rig.lane.paused());
    rig.later(Duration::from_secs(1));
    assert!(rig.lane.paused(), "three of four still wait");
    rig.later(Duration::from_secs(1));
    assert!(!rig.lane.paused());
}

#[test]
fn the_bytes_of_waiting_events_pause_too() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    let due = rig.now().wall + Duration::from_secs(1);
    rig.step(Input::Arrived(vec![Arrival { offset: 1, due, key: None, bytes: 1_000, fence: 0, item: 1 }]));
    assert!(rig.lane.paused());
}

#[test]
fn the_bytes_of_events_in_flight_pause_too_and_are_given_back() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    let due = rig.now().wall;
    rig.step(Input::Arrived(vec![Arrival { offset: 1, due, key: None, bytes: 2_000, fence: 0, item: 1 }]));
    assert!(rig.lane.paused());
    let slot = rig.permits(1).start[0];
    rig.step(Input::Returned(slot, Verdict::Done));
    assert!(!rig.lane.paused());
}

#[test]
fn what_was_not_started_gives_its_claim_and_its_permit_back_and_is_ready_again() {
    let mut rig = Rig::new(Order::Stage, Dedup::Required);
    rig.arrive(1, Some(7), Duration::ZERO);
    rig.arrive(2, Some(7), Duration::ZERO);
    let slot = rig.permits(1).claim[0];
    rig.claimed(slot, ClaimReply::Claimed);
    let claim = rig.lane.claim(slot);
    let fx = rig.step(Input::NotStarted(slot));
    assert_eq!((fx.release.as_slice(), fx.permits, fx.latest_permits), ([(slot, claim)].as_slice(), 1, 1));
    assert_eq!(rig.lane.wanted(rig.now()), 0, "the next of its key waits for it");
    rig.step(Input::Released(vec![slot]));
    assert_eq!(rig.permits(1).claim, [slot]);
    assert_eq!(rig.lane.position(), Some(1));
    assert!(rig.lane.claim(slot).sequence > claim.sequence);
    // A drain forgets it.
    rig.claimed(slot, ClaimReply::Claimed);
    rig.step(Input::Drain);
    rig.step(Input::NotStarted(slot));
    assert!(!rig.lane.drained());
    rig.step(Input::Released(vec![slot]));
    assert!(rig.lane.drained());
    // It was cancelled in the same moment.
    assert!(rig.step(Input::NotStarted(slot)).is_empty());
}

#[test]
fn what_was_not_started_without_a_claim_is_the_next_that_starts() {
    for dedup in [Dedup::Off, Dedup::BestEffort] {
        let mut rig = Rig::new(Order::None, dedup);
        (1..3).for_each(|offset| rig.arrive(offset, None, Duration::ZERO));
        let start = |rig: &mut Rig| -> Slot {
            let fx = rig.permits(1);
            let Some(slot) = fx.claim.first().copied() else { return fx.start[0] };
            let sent = rig.now().boot;
            rig.step(Input::Claimed(vec![(slot, None)], sent)).start[0]
        };
        let slot = start(&mut rig);
        let fx = rig.step(Input::NotStarted(slot));
        assert!(fx.release.is_empty() && fx.permits == 1, "{dedup:?}");
        assert_eq!(start(&mut rig), slot, "{dedup:?}");
    }
}

#[test]
fn permits_of_an_earlier_grant_are_told_apart() {
    let mut rig = Rig::new(Order::None, Dedup::Off);
    (1..4).for_each(|offset| rig.arrive(offset, None, Duration::ZERO));
    let old = rig.step(Input::Permits(1, 5)).start[0];
    // One too many comes back at once.
    let fx = rig.step(Input::Permits(3, 6));
    assert_eq!((fx.start.len(), fx.permits, fx.latest_permits), (2, 1, 1));
    let new = fx.start[0];
    assert_eq!((rig.lane.grant(old), rig.lane.grant(new), rig.lane.latest_grant()), (5, 6, 6));
    assert_eq!(rig.lane.permits_held(), (3, 2));
    let mut back = |slot| {
        let fx = rig.step(Input::Returned(slot, Verdict::Done));
        (fx.permits, fx.latest_permits)
    };
    assert_eq!((back(old), back(new)), ((1, 0), (1, 1)));
    // Those that came free before a new grant are not of it.
    let mut fx = Effects::default();
    let now = rig.now();
    (4..6).for_each(|offset| rig.arrive(offset, None, Duration::ZERO));
    let slot = rig.step(Input::Permits(1, 6)).start[0];
    rig.lane.step(now, Input::Returned(slot, Verdict::Done), &mut fx);
    rig.lane.step(now, Input::Permits(1, 7), &mut fx);
    assert_eq!((fx.permits, fx.latest_permits), (1, 0));
}
