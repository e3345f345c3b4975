//! Claims and leases: what a reply of the store means, renewal, the local deadline, giving up.

use std::time::Duration;

use super::{ClaimId, Dedup, Effects, Entry, Finish, Lane, NEVER, Order, STORE_PROBE, Slot, State, backoff};
use crate::ladder::event::{ClaimReply, Now};

impl<T> Lane<T> {
    pub(super) fn claimed(
        &mut self,
        now: Now,
        slot: Slot,
        reply: Option<ClaimReply>,
        sent: Duration,
        fx: &mut Effects<T>,
    ) {
        debug_assert_eq!(self.entry(slot).state, State::Claiming);
        self.store_down_until = match reply {
            Some(_) => None,
            None => Some(now.boot + STORE_PROBE),
        };
        match reply {
            Some(ClaimReply::Claimed) => self.leased(now, slot, sent, fx),
            Some(ClaimReply::AlreadyOurs) => {
                let entry = self.entry_mut(slot);
                entry.state = State::Confirming;
                fx.renew.extend(entry.claim.map(|claim| (slot, claim)));
            }
            Some(ClaimReply::Done | ClaimReply::MovedOn) => {
                self.permit_back(slot, fx);
                self.finish(now, slot, Finish::Duplicate, fx);
            }
            Some(ClaimReply::Busy) => {
                fx.busy += 1;
                self.permit_back(slot, fx);
                self.park(now, slot);
            }
            Some(ClaimReply::Corrupt(_)) => {
                fx.corrupt.push(slot);
                self.permit_back(slot, fx);
                self.park(now, slot);
            }
            None if self.config.dedup == Dedup::BestEffort && !self.draining && self.entry(slot).due <= now.wall => {
                self.start(now, slot, fx);
            }
            None => {
                // The store may hold the claim all the same; kept, so that the next try finds its own value.
                self.permit_back(slot, fx);
                self.back_to_ready(slot);
            }
        }
    }

    /// The claim is ours as of `sent`.
    pub(super) fn leased(&mut self, now: Now, slot: Slot, sent: Duration, fx: &mut Effects<T>) {
        let until = sent + self.config.lease;
        let entry = self.entry_mut(slot);
        entry.leased = true;
        entry.lost = false;
        entry.lease_until = until;
        let early = entry.due > now.wall;
        if early || self.draining {
            // The end, or the wall clock was set back while the claim was under way: never early.
            self.permit_back(slot, fx);
            self.release(slot, true, fx);
        } else if now.boot >= until {
            // The answer took longer than the lease: somebody else may hold it by now.
            fx.leases_lost += 1;
            self.permit_back(slot, fx);
            self.park(now, slot);
        } else {
            self.next_lease_check = self.next_lease_check.min(until);
            // By the lease's own age: a slow answer has used up a part of it.
            self.next_renewal = self.next_renewal.min(sent + self.config.lease / 3);
            self.start(now, slot, fx);
        }
    }

    pub(super) fn renewed(
        &mut self,
        now: Now,
        slot: Slot,
        claim: ClaimId,
        reply: Option<bool>,
        sent: Duration,
        fx: &mut Effects<T>,
    ) {
        let lease = self.config.lease;
        let Some(Some(entry)) = self.entries.get_mut(slot as usize) else { return };
        if entry.claim != Some(claim) {
            return; // finished, or given up and claimed anew, while the renewal was under way
        }
        match (entry.state, reply) {
            (State::Confirming, Some(true)) => self.leased(now, slot, sent, fx),
            (State::Confirming, Some(false)) => {
                self.permit_back(slot, fx);
                self.park(now, slot);
            }
            (State::Confirming, None) => {
                self.store_down_until = Some(now.boot + STORE_PROBE);
                self.permit_back(slot, fx);
                self.back_to_ready(slot);
            }
            (_, Some(true)) => entry.lease_until = entry.lease_until.max(sent + lease),
            (_, Some(false)) => self.lose(now, slot, fx),
            // Asked again soon: an outage that begins just before a renewal must not cost a whole third of the lease.
            (_, None) => self.next_renewal = self.next_renewal.min(now.boot + STORE_PROBE.min(lease / 3)),
        }
    }

    /// The lease is gone; or, of one that runs, can no longer be trusted.
    pub(super) fn lose(&mut self, now: Now, slot: Slot, fx: &mut Effects<T>) {
        let entry = self.entry_mut(slot);
        match entry.state {
            State::Running if !entry.lost => {
                fx.leases_lost += 1;
                fx.start.retain(|started| *started != slot);
                fx.cancel.push(slot);
                self.permit_back(slot, fx);
                self.park(now, slot);
            }
            State::Republish => {
                fx.leases_lost += 1;
                self.park_at_the_end(now, slot);
            }
            // With the producer: an acknowledgement still counts, a failure is not published again.
            State::Publishing => entry.lost = true,
            _ => {}
        }
    }

    /// Gives up the claim and tries again later, offset not done. Its key waits for it.
    pub(super) fn park(&mut self, now: Now, slot: Slot) {
        // Never as long as a lease: who waits for the lease of a killed process is there soon after it has run out.
        let most = self.config.lease / 4;
        let draw = self.draw();
        let entry = self.give_up(slot);
        entry.state = State::Parked;
        let delay = backoff(Duration::from_secs(1), entry.tries, most);
        entry.tries = entry.tries.saturating_add(1);
        self.arm(now.boot + delay.mul_f64(0.75 + 0.5 * draw), slot);
    }

    /// As [`Lane::park`], for an event whose handler had returned: its key has gone on to the next one meanwhile, so
    /// it joins again behind the last.
    pub(super) fn park_at_the_end(&mut self, now: Now, slot: Slot) {
        let last = match self.entry(slot).key {
            Some(key) if self.config.order == Order::Stage && !self.draining => self.tails.insert(key, slot),
            _ => None,
        };
        match last {
            Some(last) => {
                self.give_up(slot).state = State::Waiting;
                self.entry_mut(last).next = Some(slot);
            }
            None => self.park(now, slot),
        }
    }

    fn give_up(&mut self, slot: Slot) -> &mut Entry<T> {
        if self.entry(slot).state.is_owed() {
            self.owed -= 1;
        }
        let entry = self.entry_mut(slot);
        entry.claim = None;
        entry.leased = false;
        entry.lost = false;
        entry
    }

    /// `ready`: it may start again at once.
    pub(super) fn release(&mut self, slot: Slot, ready: bool, fx: &mut Effects<T>) {
        let entry = self.entry_mut(slot);
        entry.state = State::Releasing(ready);
        entry.leased = false;
        fx.release.extend(entry.claim.take().map(|claim| (slot, claim)));
    }

    pub(super) fn released(&mut self, now: Now, slot: Slot) {
        match self.entry(slot).state {
            State::Releasing(true) if !self.draining => {
                self.give_up(slot).state = State::Waiting;
                self.admit(now, slot);
            }
            State::Releasing(_) => self.park(now, slot),
            _ => {}
        }
    }

    /// At the local deadline a handler is cancelled, with or without an answer from the store (rule 2). What has returned
    /// is kept: nothing of it is published meanwhile, and a renewal that is confirmed later says that nobody else had it.
    pub(super) fn check_leases(&mut self, now: Now, fx: &mut Effects<T>) {
        let mut next = NEVER;
        for slot in 0..self.entries.len() as Slot {
            let Some(entry) = &self.entries[slot as usize] else { continue };
            if !entry.leased || entry.state != State::Running {
                continue;
            }
            if now.boot >= entry.lease_until {
                self.lose(now, slot, fx);
            } else {
                next = next.min(entry.lease_until);
            }
        }
        self.next_lease_check = next;
    }

    pub(super) fn renew_all(&mut self, now: Now, fx: &mut Effects<T>) {
        let young = self.config.lease * 5 / 6;
        let mut any = false;
        for (slot, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            if !entry.leased || !entry.state.holds_lease() {
                continue;
            }
            any = true;
            if !entry.lost && entry.lease_until.saturating_sub(now.boot) < young {
                fx.renew.extend(entry.claim.map(|claim| (slot as Slot, claim)));
            }
        }
        self.next_renewal = if any { now.boot + self.config.lease / 3 } else { NEVER };
    }
}
