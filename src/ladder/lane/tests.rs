//! The lane by example; [`schedules`] tries it at random.

mod hops;
mod leases;
mod schedules;
mod view;

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
    assert_eq!(rig.lane.claim(slot).fence, rig.ms, "the handler has a fence all the same");
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
fn nothing_starts_before_its_due_of_a_clock_that_was_set_back() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    assert_eq!((rig.lane.waiting(), rig.lane.in_flight()), (0, 1));
    let due = rig.now().wall;
    rig.ms -= 1;
    let fx = rig.permits(1);
    assert_eq!((fx.claim.len(), fx.permits), (0, 1));
    assert_eq!((rig.lane.wanted(rig.now()), rig.lane.next_tick().0), (0, Some(due)));
    rig.later(Duration::from_millis(1));
    assert_eq!(rig.permits(1).claim.len(), 1);
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
    let unanswered = |after: Duration| {
        let mut rig = Rig::new(Order::None, Dedup::Required);
        rig.arrive(1, None, Duration::ZERO);
        let slot = rig.permits(1).claim[0];
        let (first, sent) = (rig.lane.claim(slot), rig.now().boot);
        rig.step(Input::Claimed(vec![(slot, None)], sent));
        rig.later(after);
        assert_eq!(rig.permits(1).claim, [slot]);
        (first, rig.lane.claim(slot))
    };
    let (first, second) = unanswered(LEASE - Duration::from_millis(1));
    assert_eq!(first, second, "the store may hold it");
    // Meanwhile another instance may have run the event and died: its fence is at most a lease old.
    let (first, second) = unanswered(LEASE);
    assert!(second.sequence > first.sequence && second.fence >= first.fence + LEASE.as_millis() as u64, "{second:?}");
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
    assert_eq!(rig.permits(2).permits, 2, "they are of no use, and put nothing off");
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
fn a_drain_takes_nothing_in_and_claims_nothing_again() {
    let mut rig = Rig::new(Order::None, Dedup::Required);
    rig.arrive(1, None, Duration::ZERO);
    let (slot, sent) = (rig.permits(1).claim[0], rig.now().boot);
    rig.step(Input::Drain);
    rig.arrive(2, None, Duration::ZERO);
    assert_eq!(rig.lane.delivered_to(), Some(2));
    assert_eq!(rig.step(Input::Claimed(vec![(slot, None)], sent)).permits, 1);
    rig.later(STORE_PROBE);
    assert_eq!((rig.lane.wanted(rig.now()), rig.permits(1).permits), (0, 1));
    assert!(rig.lane.drained());
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
fn each_window_pauses_when_it_is_full_and_resumes_at_half() {
    /// Events of these bytes, all due or all waiting; so many of them leave the window.
    #[track_caller]
    fn check(waiting: bool, bytes: &[usize], leave: usize, paused: [bool; 2]) {
        let mut rig = Rig::new(Order::None, Dedup::Off);
        for (offset, bytes) in (0..).zip(bytes) {
            let due = rig.now().wall + Duration::from_secs(if waiting { 1 + offset as u64 } else { 0 });
            let arrival = Arrival { offset, due, key: None, bytes: *bytes, fence: 0, item: offset };
            rig.step(Input::Arrived(vec![arrival]));
        }
        let before = rig.lane.paused();
        if waiting {
            rig.later(Duration::from_secs(leave as u64));
        } else {
            for slot in rig.permits(leave).start.clone() {
                rig.step(Input::Returned(slot, Verdict::Done));
            }
        }
        assert_eq!([before, rig.lane.paused()], paused);
    }
    check(true, &[1; 3], 0, [false, false]);
    check(true, &[1; 4], 1, [true, true]);
    check(true, &[1; 4], 2, [true, false]);
    check(true, &[999], 0, [false, false]);
    check(true, &[499, 501], 1, [true, true]);
    check(true, &[500, 500], 1, [true, false]);
    check(false, &[1; 7], 0, [false, false]);
    check(false, &[1; 8], 3, [true, true]);
    check(false, &[1; 8], 4, [true, false]);
    check(false, &[1_999], 0, [false, false]);
    check(false, &[999, 1_001], 1, [true, true]);
    check(false, &[1_000, 1_000], 1, [true, false]);
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
