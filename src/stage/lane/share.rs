//! The lane's part in `forward: transactional`: hops wait until they are asked for, and are made only then, so that
//! waiting costs no memory beyond the event itself. What may go is the pure lane's decision ([`Lane::hops`]).
//!
//! [`Lane::hops`]: crate::ladder::lane::Lane::hops

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::Task;
use crate::ladder::lane::{Delivery, Hops, Input, Slot};
use crate::stage::context::Forward;
use crate::stage::ports::Share;
use crate::stage::settle;

impl Task<'_> {
    pub(super) fn is_transactional(&self) -> bool {
        self.ctx.settings.forward == Forward::Transactional
    }

    /// It is asked for, in its time.
    pub(super) fn hop_waits(&mut self, slot: Slot) {
        if self.abandoned {
            self.hop_failed(slot, Delivery::Withheld);
        }
    }

    fn hop_failed(&mut self, slot: Slot, why: Delivery) {
        if self.lane.is_publishing(slot) {
            self.step(Input::Published(slot, why));
        }
    }

    /// The partition is somebody else's, or about to be: what was decided here and not committed is decided there anew.
    pub(super) fn abandon_hops(&mut self) {
        if self.is_transactional() && !std::mem::replace(&mut self.abandoned, true) {
            self.fx.shrink.clear();
            for slot in self.lane.undelivered() {
                self.hop_failed(slot, Delivery::Withheld);
            }
        }
    }

    pub(super) fn share(&mut self, to: &Sender<Share>) {
        let now = self.ctx.clock.now();
        // The answers to the share before came first, and what they say of an event must not be overlooked.
        while let Ok((ticket, result)) = self.acked.try_recv() {
            self.acknowledged(now, ticket, result);
        }
        if !self.fx.shrink.is_empty() {
            return; // smaller the next time
        }
        let Hops { position, ready, lapsed, stranded } = self.lane.hops(now);
        for slot in lapsed {
            self.hop_failed(slot, Delivery::Failed);
        }
        for slot in stranded {
            self.hop_failed(slot, Delivery::Withheld);
        }
        let Some(partition) = ready.first().map(|slot| self.lane.get(*slot).record.partition) else { return };
        let mut hops = Vec::with_capacity(ready.len());
        for slot in ready {
            match settle::next_copy(self.ctx, self.lane.get(slot), self.lane.claim(slot).fence) {
                Some(record) => hops.push((u64::from(slot), record)),
                // The position would pass it: the others go another time.
                None => return self.hop_failed(slot, Delivery::Unpublishable),
            }
        }
        let Some(position) = position else { return };
        // Who asked may have lost patience: then the share answers for itself.
        drop(to.send(Share { partition, position, hops, acks: Arc::clone(&self.acks) }));
    }
}
