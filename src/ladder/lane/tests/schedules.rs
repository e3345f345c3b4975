//! Random schedules: a world that answers whatever the lane asks, in any order, with any outcome. As in the shell,
//! several inputs may come before the effects of the first are performed.

use proptest::prelude::*;

use super::*;

/// A world that answers whatever the lane asks, in any order, with any outcome.
struct World {
    rig: Rig,
    asked: Vec<Asked>,
    free_permits: usize,
    arrived: i64,
    finished: Vec<i64>,
    running: Vec<Slot>,
    key_of: fn(i64) -> Option<u64>,
    /// What is asked for now is performed later, together with what comes.
    late: bool,
}

#[derive(Clone, Debug)]
enum Asked {
    Claim(Slot, Duration),
    Renew(Slot, ClaimId, Duration),
    Settle(Slot),
    Release(Slot),
    Publish(Slot),
}

const PERMITS: usize = 4;

impl World {
    fn new(order: Order, dedup: Dedup) -> Self {
        Self {
            rig: Rig::new(order, dedup),
            asked: Vec::new(),
            free_permits: PERMITS,
            arrived: 0,
            finished: Vec::new(),
            running: Vec::new(),
            key_of: |offset| (offset % 3 != 0).then_some(offset as u64 % 3),
            late: false,
        }
    }

    fn feed(&mut self, input: Input<i64>) -> Result<(), TestCaseError> {
        let before = self.rig.lane.position();
        let now = self.rig.now();
        self.rig.lane.step(now, input, &mut self.rig.fx);
        self.finished.extend(self.rig.fx.finished.drain(..).map(|(offset, _)| offset));
        let open = (0..self.arrived).find(|offset| !self.finished.contains(offset));
        let truth = open.or((self.arrived > 0).then_some(self.arrived));
        if !self.rig.lane.draining {
            prop_assert_eq!(self.rig.lane.position(), truth, "the watermark is the first open offset");
        }
        prop_assert!(self.rig.lane.position() >= before, "the watermark never falls");
        if self.late { Ok(()) } else { self.perform() }
    }

    fn perform(&mut self) -> Result<(), TestCaseError> {
        let fx = &self.rig.fx;
        let lane = &self.rig.lane;
        let sent = self.rig.now().boot;
        self.free_permits += fx.permits;
        self.running.retain(|s| !fx.cancel.contains(s));
        self.running.extend(&fx.start);
        let occupied = |slot: &Slot| matches!(lane.entries.get(*slot as usize), Some(Some(_)));
        for slot in &fx.start {
            prop_assert!(lane.is_running(*slot), "started without a lease");
            prop_assert!(lane.due(*slot) <= self.rig.now().wall, "started early");
        }
        prop_assert!(fx.cancel.iter().all(occupied), "cancels a finished event");
        prop_assert!(fx.renew.iter().all(|(slot, _)| occupied(slot)), "renews the lease of a finished event");
        self.asked.extend(fx.claim.iter().map(|s| Asked::Claim(*s, sent)));
        self.asked.extend(fx.renew.iter().map(|(s, c)| Asked::Renew(*s, *c, sent)));
        self.asked.extend(fx.settle.iter().map(|(s, _)| Asked::Settle(*s)));
        self.asked.extend(fx.release.iter().map(|(s, _)| Asked::Release(*s)));
        self.asked.extend(fx.publish.iter().chain(&fx.shrink).map(|s| Asked::Publish(*s)));
        self.rig.fx.clear();
        let lane = &self.rig.lane;
        prop_assert_eq!(self.free_permits + lane.permits_held().0, PERMITS, "permits are neither lost nor made");
        let mut keys: Vec<_> = self.running.iter().filter_map(|s| (self.key_of)(*lane.get(*s))).collect();
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        prop_assert!(lane.config.order == Order::None || keys.len() == all, "two of one key run at once");
        Ok(())
    }

    fn act(&mut self, choice: u8, dice: u8) -> Result<(), TestCaseError> {
        let pick = |n: usize| usize::from(dice) % n.max(1);
        self.late = choice >= 128;
        match choice % 5 {
            0 if !self.rig.lane.paused() => {
                let offset = self.arrived;
                self.arrived += 1;
                let due = self.rig.now().wall + Duration::from_millis(u64::from(dice) * 20);
                let key = (self.key_of)(offset);
                let arrival = Arrival { offset, due, key, bytes: 10, fence: 0, item: offset };
                self.feed(Input::Arrived(vec![arrival]))
            }
            1 => {
                let n = self.free_permits.min(self.rig.lane.wanted(self.rig.now()));
                self.free_permits -= n;
                self.feed(Input::Permits(n, 0))
            }
            2 if !self.asked.is_empty() => {
                let asked = self.asked.swap_remove(pick(self.asked.len()));
                self.answer(asked, dice)
            }
            3 if !self.running.is_empty() => {
                let slot = self.running.swap_remove(pick(self.running.len()));
                if dice.is_multiple_of(8) {
                    return self.feed(Input::NotStarted(slot));
                }
                let verdict = [Verdict::Done, Verdict::Publish, Verdict::Fenced][usize::from(dice >> 4) % 3];
                self.feed(Input::Returned(slot, verdict))
            }
            _ => {
                self.rig.ms += u64::from(dice) * 40;
                self.feed(Input::Tick)
            }
        }
    }

    fn answer(&mut self, asked: Asked, dice: u8) -> Result<(), TestCaseError> {
        let fails = dice.is_multiple_of(4);
        match asked {
            Asked::Claim(slot, sent) => {
                let reply = match dice % 8 {
                    0 => None,
                    1 => Some(ClaimReply::Busy),
                    2 => Some(ClaimReply::AlreadyOurs),
                    3 => Some(ClaimReply::Done),
                    4 => Some(ClaimReply::Corrupt("?".into())),
                    _ => Some(ClaimReply::Claimed),
                };
                self.feed(Input::Claimed(vec![(slot, reply)], sent))
            }
            Asked::Renew(slot, claim, sent) => {
                let reply = if fails { None } else { Some(!dice.is_multiple_of(3)) };
                self.feed(Input::Renewed(vec![(slot, claim, reply)], sent))
            }
            Asked::Settle(slot) => self.feed(Input::Settled(vec![(slot, !fails)])),
            Asked::Release(slot) => self.feed(Input::Released(vec![slot])),
            Asked::Publish(slot) => {
                let delivery = match dice % 4 {
                    0 => Delivery::Failed,
                    1 => Delivery::TooLarge,
                    _ => Delivery::Acknowledged,
                };
                self.feed(Input::Published(slot, delivery))
            }
        }
    }

    /// From here on everything works: every event must come to its end.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.late = false;
        self.perform()?;
        for _ in 0..10_000 {
            if self.finished.len() as i64 == self.arrived {
                break;
            }
            if let Some(asked) = self.asked.pop() {
                // 7: claimed, renewed, recorded, acknowledged.
                self.answer(asked, 7)?;
            } else if let Some(slot) = self.running.pop() {
                self.feed(Input::Returned(slot, Verdict::Done))?;
            } else {
                self.act(1, 0)?; // at once: 1 is below 128
                self.rig.ms += 500;
                self.feed(Input::Tick)?;
            }
        }
        prop_assert_eq!(self.finished.len() as i64, self.arrived, "every event comes to its end");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens_nothing_is_lost_early_or_out_of_order(
        actions in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..200),
        stage_order in any::<bool>(),
        dedup in prop_oneof![Just(Dedup::Off), Just(Dedup::Required), Just(Dedup::BestEffort)],
    ) {
        let order = if stage_order { Order::Stage } else { Order::None };
        let mut world = World::new(order, dedup);
        for (choice, dice) in actions {
            world.act(choice, dice)?;
        }
        world.finish()?;
    }

    #[test]
    fn a_drain_always_ends_and_never_passes_an_open_offset(
        actions in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..120),
        rest in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..60),
    ) {
        let mut world = World::new(Order::Stage, Dedup::Required);
        for (choice, dice) in actions {
            world.act(choice, dice)?;
        }
        world.feed(Input::Drain)?;
        for (choice, dice) in rest {
            if choice % 5 != 0 {
                world.act(choice, dice)?;
            }
        }
        world.late = false;
        world.perform()?;
        for _ in 0..2_000 {
            if world.rig.lane.drained() {
                break;
            }
            if let Some(asked) = world.asked.pop() {
                world.answer(asked, 7)?;
            } else if let Some(slot) = world.running.pop() {
                world.feed(Input::Returned(slot, Verdict::Done))?;
            } else {
                world.rig.ms += 500;
                world.feed(Input::Tick)?;
            }
        }
        prop_assert!(world.rig.lane.drained());
        let open = (0..world.arrived).find(|offset| !world.finished.contains(offset));
        prop_assert!(world.rig.lane.position() <= open.or(Some(world.arrived)));
    }
}
