//! From the handler's outcome to offset done: publish, settle, finish. From success or an acknowledgement in hand
//! there is no way back to executing.

use std::time::Duration;

use super::{Dedup, Delivery, Effects, Finish, Lane, MAX_BACKOFF, Order, STORE_PROBE, Slot, State, Verdict, backoff};
use crate::ladder::event::{Mark, Now};

impl<T> Lane<T> {
    /// Its claim is given back, so that whoever may start it can.
    pub(super) fn not_started(&mut self, slot: Slot, fx: &mut Effects<T>) {
        if !self.is_running(slot) {
            return; // given up in the same moment
        }
        self.permit_back(slot, fx);
        match self.entry(slot).leased {
            true => self.release(slot, true, fx),
            false => self.back_to_ready(slot),
        }
    }

    pub(super) fn returned(&mut self, now: Now, slot: Slot, verdict: Verdict, fx: &mut Effects<T>) {
        if !self.is_running(slot) {
            return; // it was cancelled in the same moment: its outcome no longer counts, its permit is back already
        }
        self.permit_back(slot, fx);
        match verdict {
            Verdict::Done => {
                self.returned_in_order(now, slot);
                self.settle_as(now, slot, Mark::Done, fx);
            }
            Verdict::Publish if self.lease_gone(now, slot) => {
                fx.leases_lost += 1;
                self.park(now, slot);
            }
            Verdict::Publish => {
                self.returned_in_order(now, slot);
                self.publish(slot, fx);
            }
            Verdict::Fenced if self.entry(slot).leased => self.release(slot, false, fx),
            Verdict::Fenced => self.park(now, slot),
            Verdict::Halt => self.halt(slot),
        }
    }

    pub(super) fn published(&mut self, now: Now, slot: Slot, delivery: Delivery, fx: &mut Effects<T>) {
        debug_assert_eq!(self.entry(slot).state, State::Publishing);
        self.publishing -= 1;
        match delivery {
            Delivery::Acknowledged => self.settle_as(now, slot, Mark::MovedOn, fx),
            Delivery::Unpublishable => self.halt(slot),
            Delivery::Withheld if self.entry(slot).leased && !self.entry(slot).lost => self.release(slot, false, fx),
            Delivery::Withheld => self.park(now, slot),
            Delivery::TooLarge | Delivery::Failed if self.entry(slot).lost => {
                fx.leases_lost += 1;
                self.park_at_the_end(now, slot);
            }
            Delivery::TooLarge => {
                self.publishing += 1;
                fx.shrink.push(slot);
            }
            Delivery::Failed => {
                let entry = self.entry_mut(slot);
                entry.state = State::Republish;
                let delay = backoff(Duration::from_millis(250), entry.tries, MAX_BACKOFF);
                entry.tries = entry.tries.saturating_add(1);
                self.arm(now.boot + delay, slot);
            }
        }
    }

    pub(super) fn republish(&mut self, now: Now, slot: Slot, fx: &mut Effects<T>) {
        if self.lease_gone(now, slot) {
            // Unconfirmed, which is not lost: the store's next word on the lease decides.
            self.arm(now.boot + STORE_PROBE, slot);
        } else {
            self.publish(slot, fx);
        }
    }

    fn publish(&mut self, slot: Slot, fx: &mut Effects<T>) {
        self.entry_mut(slot).state = State::Publishing;
        self.publishing += 1;
        fx.publish.push(slot);
    }

    /// Success or the acknowledgement is in hand: from here only forward.
    pub(super) fn settle_as(&mut self, now: Now, slot: Slot, mark: Mark, fx: &mut Effects<T>) {
        if self.config.dedup == Dedup::Off {
            self.finish(now, slot, Finish::Settled(mark), fx);
        } else {
            let entry = self.entry_mut(slot);
            entry.state = State::Settling(mark);
            entry.tries = 0;
            fx.settle.push((slot, mark));
        }
    }

    pub(super) fn settled(&mut self, now: Now, slot: Slot, recorded: bool, fx: &mut Effects<T>) {
        let State::Settling(mark) = self.entry(slot).state else {
            debug_assert!(false, "nothing else ends a settlement");
            return;
        };
        if recorded || self.config.dedup == Dedup::BestEffort {
            self.finish(now, slot, Finish::Settled(mark), fx);
        } else {
            let entry = self.entry_mut(slot);
            entry.state = State::Resettle(mark);
            let delay = backoff(Duration::from_millis(250), entry.tries, Duration::from_secs(5));
            entry.tries = entry.tries.saturating_add(1);
            self.arm(now.boot + delay, slot);
        }
    }

    pub(super) fn finish(&mut self, now: Now, slot: Slot, how: Finish, fx: &mut Effects<T>) {
        self.key_passed_on(now, slot);
        let Some(entry) = self.entries[slot as usize].take() else { return };
        debug_assert!(entry.state.is_owed());
        self.owed -= 1;
        self.in_flight -= 1;
        self.in_flight_bytes -= entry.bytes;
        self.watermark.done(entry.ticket);
        self.free.push(slot);
        // A renewal that was asked for in the same round would name a free slot, or the next tenant.
        fx.renew.retain(|(renewed, _)| *renewed != slot);
        fx.finished.push((entry.item, how));
    }

    pub(super) fn halt(&mut self, slot: Slot) {
        self.owed -= 1;
        self.entry_mut(slot).state = State::Halted;
        self.halted = true;
    }

    /// Whether nothing may be published any more for this event.
    pub fn lease_gone(&self, now: Now, slot: Slot) -> bool {
        let entry = self.entry(slot);
        entry.lost || (entry.leased && now.boot >= entry.lease_until)
    }

    fn returned_in_order(&mut self, now: Now, slot: Slot) {
        if self.config.order != Order::Ladder {
            self.key_passed_on(now, slot);
        }
    }

    /// The event of this key that comes after `slot` may go. Nothing happens the second time.
    fn key_passed_on(&mut self, now: Now, slot: Slot) {
        let entry = self.entry_mut(slot);
        let Some(key) = entry.key else { return };
        match entry.next.take() {
            Some(next) => self.admit(now, next),
            None if self.tails.get(&key) == Some(&slot) => {
                self.tails.remove(&key);
            }
            None => {}
        }
    }
}
