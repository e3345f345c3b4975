//! The lane's calls to the store: one batch per round and kind, and what comes back of it.

use std::iter;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::Task;
use crate::ladder::event::{ClaimReply, Now};
use crate::ladder::lane::{ClaimId, Effects, Slot};
use crate::stage::held::Held;
use crate::stage::ports::{Claim, SettleReply, StoreError, TurnReply};
use crate::stage::settle;
use crate::stage::stats::Operation;

/// A reply of the store to one batch.
pub(super) enum Reply {
    /// With whose turn it is, where that is asked.
    Claimed(Vec<(Slot, Option<ClaimReply>)>, Vec<(Slot, TurnReply)>, Duration),
    Renewed(Vec<(Slot, ClaimId, Option<bool>)>, Duration),
    /// Recorded or not, and how many of the recorded were no longer ours.
    Settled(Vec<(Slot, bool)>, u64),
    Released(Vec<Slot>),
    /// Whether each has its place now.
    Joined(Vec<(Slot, bool)>),
}

/// One for each entry of the batch, whatever the store gave back: an entry without a reply would stay for ever.
fn answers<R>(replies: Vec<Result<R, StoreError>>) -> impl Iterator<Item = Option<R>> {
    replies.into_iter().map(Result::ok).chain(iter::repeat_with(|| None))
}

impl Task<'_> {
    fn claim_of(&self, claim: ClaimId) -> Claim {
        Claim { process: self.ctx.process, sequence: claim.sequence, fence: claim.fence }
    }

    /// Whether settlements wait for the call before them, which has come back.
    pub(super) fn owes_settlements(&self) -> bool {
        !self.settling && !self.to_settle.is_empty()
    }

    /// One batch per round and kind. Of claims and settlements, the bulk, one call at a time is under way: what comes
    /// meanwhile makes the next batch larger, which costs Redis and us a fraction of many small ones.
    pub(super) fn call_store(&mut self, fx: &mut Effects<Box<Held>>, now: Now) {
        let (store, settings, sent) = (&self.ctx.store, &self.ctx.settings, now.boot);
        if !fx.claim.is_empty() {
            self.claiming = true;
            let slots = mem::take(&mut fx.claim);
            let batch = slots
                .iter()
                .map(|&slot| (Arc::clone(&self.lane.get(slot).key), self.claim_of(self.lane.claim(slot))))
                .collect();
            let call = store.claim(batch, settings.lease);
            let turns = self.turns(&slots);
            let stats = Arc::clone(&self.ctx.stats);
            self.calls.push(
                async move {
                    let claims = stats.store(Operation::Claim).observe(call);
                    let (replies, turns) = match turns {
                        Some(turns) => turns.beside(claims).await,
                        None => (claims.await, Vec::new()),
                    };
                    let turns = turns.into_iter().map(|(index, turn)| (slots[index], turn)).collect();
                    Reply::Claimed(slots.into_iter().zip(answers(replies)).collect(), turns, sent)
                }
                .boxed(),
            );
        }
        if !fx.renew.is_empty() {
            let mut renewals = mem::take(&mut fx.renew);
            // Later in the same round it may have been settled or given up.
            renewals.retain(|&(slot, claim)| self.lane.holds(slot, claim));
            let batch = renewals
                .iter()
                .map(|&(slot, claim)| (Arc::clone(&self.lane.get(slot).key), self.claim_of(claim)))
                .collect();
            let call = store.renew(batch, settings.lease);
            let stats = Arc::clone(&self.ctx.stats);
            self.calls.push(
                async move {
                    let replies = answers(stats.store(Operation::Renew).observe(call).await);
                    Reply::Renewed(renewals.into_iter().zip(replies).map(|((s, c), r)| (s, c, r)).collect(), sent)
                }
                .boxed(),
            );
        }
        self.to_settle.append(&mut fx.settle);
        if !self.settling && !self.to_settle.is_empty() {
            self.settling = true;
            let settlements = mem::take(&mut self.to_settle);
            let batch = settlements
                .iter()
                .map(|&(slot, mark)| {
                    let held = self.lane.get(slot);
                    let ttl = settle::ttl(settings, &held.envelope, mark);
                    (Arc::clone(&held.key), self.claim_of(self.lane.claim(slot)), mark, ttl)
                })
                .collect();
            let call = store.settle(batch);
            let leaving = self.leaving(&settlements);
            let stats = Arc::clone(&self.ctx.stats);
            self.calls.push(
                async move {
                    let unsettled = match leaving {
                        Some(leaving) => leaving.failed().await,
                        None => Vec::new(),
                    };
                    let mut lost = 0;
                    let replies = answers(stats.store(Operation::Settle).observe(call).await);
                    let settled = settlements.into_iter().zip(replies).map(|((slot, _), reply)| {
                        lost += u64::from(reply == Some(SettleReply::LeaseLost));
                        (slot, reply.is_some())
                    });
                    let mut settled: Vec<_> = settled.collect();
                    unsettled.into_iter().for_each(|index: usize| settled[index].1 = false);
                    Reply::Settled(settled, lost)
                }
                .boxed(),
            );
        }
        if !fx.release.is_empty() {
            let releases = mem::take(&mut fx.release);
            self.ctx.stats.released.add(releases.len() as u64);
            let batch = releases
                .iter()
                .map(|&(slot, claim)| (Arc::clone(&self.lane.get(slot).key), self.claim_of(claim)))
                .collect();
            let call = store.release(batch);
            let stats = Arc::clone(&self.ctx.stats);
            self.calls.push(
                async move {
                    // Released or not: what is not runs out by itself.
                    drop(stats.store(Operation::Release).observe(call).await);
                    Reply::Released(releases.into_iter().map(|(slot, _)| slot).collect())
                }
                .boxed(),
            );
        }
    }
}
