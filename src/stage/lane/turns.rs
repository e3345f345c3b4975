//! `order: ladder`: the rules of [`crate::ladder::sequence`] as calls to the store. Whose turn it is is asked beside the
//! claim, a place is taken before the next copy is produced, and given back before the end is recorded.
//!
//! Everything here is passed over with any other order.

use std::iter;
use std::mem;
use std::sync::Arc;

use futures::FutureExt;

use super::Task;
use super::calls::Reply;
use crate::ladder::event::{Action, ClaimReply, Failure, Mark, Now};
use crate::ladder::lane::{Delivery, Effects, Input, Order, Slot, Verdict};
use crate::ladder::route;
use crate::stage::held::Held;
use crate::stage::ports::{IdempotencyStore, Place, StoreError, Turn, TurnReply};

/// Places of a batch, each with its index there.
type Places = Vec<(usize, Place)>;

/// Asks whose turn it is, for the events of one batch of claims.
pub(super) struct Turns {
    store: Arc<dyn IdempotencyStore>,
    places: Places,
    room: usize,
}

impl Turns {
    /// Asks beside the claims. A claim counts as answered only together with its turn.
    pub(super) async fn beside(
        self,
        claims: impl Future<Output = Vec<Result<ClaimReply, StoreError>>>,
    ) -> (Vec<Result<ClaimReply, StoreError>>, Vec<(usize, TurnReply)>) {
        let asked = self.places.iter().map(|(_, place)| place.clone()).collect();
        let (mut replies, turns) = futures::join!(claims, self.store.turns(asked, self.room));
        let mut told = Vec::with_capacity(self.places.len());
        for ((index, _), turn) in self.places.into_iter().zip(each(turns)) {
            match (replies.get_mut(index), turn) {
                (Some(reply), Err(error)) => *reply = Err(error),
                (Some(_), Ok(turn)) => told.push((index, turn)),
                (None, _) => {}
            }
        }
        (replies, told)
    }
}

/// Gives places back before their events' ends are recorded.
pub(super) struct Leaving {
    store: Arc<dyn IdempotencyStore>,
    places: Places,
}

impl Leaving {
    /// The settlements of the batch whose place could not be given back: they do not count, and are repeated.
    pub(super) async fn failed(self) -> Vec<usize> {
        let (indices, places): (Vec<usize>, Vec<Place>) = self.places.into_iter().unzip();
        let replies = self.store.leave(places).await;
        indices.into_iter().zip(each(replies)).filter(|(_, left)| left.is_err()).map(|(index, _)| index).collect()
    }
}

/// One for each entry, whatever the store gave back.
fn each<R>(replies: Vec<Result<R, StoreError>>) -> impl Iterator<Item = Result<R, StoreError>> {
    replies.into_iter().chain(iter::repeat_with(|| Err(StoreError("no reply".into()))))
}

impl Task<'_> {
    fn in_order(&self) -> bool {
        self.ctx.settings.order == Order::Ladder
    }

    fn places(&self, slots: impl Iterator<Item = Slot>, has_one: impl Fn(&Held) -> bool) -> Places {
        let held = slots.map(|slot| self.lane.get(slot)).enumerate().filter(|(_, held)| has_one(held));
        held.filter_map(|(index, held)| Some((index, held.place.clone()?))).collect()
    }

    /// To be asked beside the claims of these; `None`: nothing to ask.
    pub(super) fn turns(&self, slots: &[Slot]) -> Option<Turns> {
        if !self.in_order() {
            return None;
        }
        let places = self.places(slots.iter().copied(), |_| true);
        // What is in the ladder already has to move: the one that it waits for may be behind it in its lane.
        let room = if self.ctx.stage == 0 { self.ctx.settings.order_room } else { usize::MAX };
        let store = Arc::clone(&self.ctx.store);
        (!places.is_empty()).then_some(Turns { store, places, room })
    }

    /// Notes whose turn it is.
    pub(super) fn heed(&mut self, turns: Vec<(Slot, TurnReply)>) {
        for (slot, TurnReply { turn, lapsed }) in turns {
            let held = self.lane.get_mut(slot);
            held.turn = turn;
            if lapsed > 0 {
                tracing::warn!(
                    event_id = &*held.envelope.event_id,
                    stage = &*self.ctx.rung().name,
                    queue = held.place.as_ref().map(|place| &*place.queue),
                    lapsed,
                    "events ahead of this one did not come back within `order_patience`; their key goes on without them"
                );
                self.ctx.stats.lapsed.add(lapsed);
            }
        }
    }

    /// Whether the event may not run now; then it is on its way to wait.
    pub(super) fn waits_its_turn(&mut self, slot: Slot, now: Now) -> bool {
        let held = self.lane.get_mut(slot);
        let verdict = match held.turn {
            Turn::Free | Turn::First => return false,
            // Given back and claimed again, as after a refused fence. Only once: it holds its key up meanwhile, and the
            // one that it waits for may be behind it in this very lane.
            Turn::Behind(_) if held.envelope.repaired.contains("due_clamped") && !held.paused => {
                held.paused = true;
                Verdict::Fenced
            }
            Turn::Behind(ahead) => {
                let action = route::wait(&self.ctx.ladder, &held.envelope, now.wall, self.rng.f64());
                let verdict = Verdict::of(&action);
                let why = format!("not its turn: the event of its key at offset {ahead} is in the ladder");
                held.started = now.wall;
                held.failed = Some((Failure::transient(why), action));
                verdict
            }
            Turn::Full(ahead) => {
                if !mem::replace(&mut self.told_full, true) {
                    tracing::warn!(
                        event_id = &*held.envelope.event_id,
                        stage = &*self.ctx.rung().name,
                        partition = held.record.partition,
                        queue = held.place.as_ref().map(|place| &*place.queue),
                        ahead,
                        "as many events of one key as `order_room` allows wait in the ladder; the next ones hold their \
                         partition up until there is room"
                    );
                }
                self.ctx.stats.queue_full.add(1);
                Verdict::Fenced
            }
        };
        self.step_at(now, Input::Returned(slot, verdict));
        true
    }

    /// Takes the events off the list that need a place before their next copy is produced, and gets it for them.
    pub(super) fn take_places(&mut self, fx: &mut Effects<Box<Held>>, now: Now) {
        if !self.in_order() {
            return;
        }
        let (slots, others): (Vec<Slot>, Vec<Slot>) =
            fx.publish.drain(..).partition(|&slot| self.lane.get(slot).next_due().is_some());
        fx.publish = others;
        // As before every publish: what is no longer ours takes no place.
        let (gone, slots): (Vec<Slot>, Vec<Slot>) = slots.into_iter().partition(|&s| self.lane.lease_gone(now, s));
        for slot in gone {
            self.step_at(now, Input::Published(slot, Delivery::Failed));
        }
        if slots.is_empty() {
            return;
        }
        let patience = self.ctx.settings.order_patience;
        let batch = slots.iter().filter_map(|&slot| {
            let held = self.lane.get(slot);
            Some((held.place.clone()?, held.next_due()?.since(now.wall) + patience))
        });
        let call = self.ctx.store.join(batch.collect());
        self.calls.push(
            async move { Reply::Joined(slots.into_iter().zip(each(call.await).map(|joined| joined.is_ok())).collect()) }
                .boxed(),
        );
    }

    /// What has its place goes to the producer; the others try again.
    pub(super) fn joined(&mut self, replies: Vec<(Slot, bool)>) {
        for (slot, joined) in replies {
            if joined {
                self.publish(slot);
            } else {
                self.step(Input::Published(slot, Delivery::Failed));
            }
        }
    }

    /// Places to be given back before these settlements; `None`: there are none.
    pub(super) fn leaving(&self, settlements: &[(Slot, Mark)]) -> Option<Leaving> {
        if !self.in_order() {
            return None;
        }
        let marks: Vec<Mark> = settlements.iter().map(|(_, mark)| *mark).collect();
        let mut places = self.places(settlements.iter().map(|(slot, _)| *slot), |held| held.turn == Turn::First);
        places.retain(|(index, _)| {
            marks[*index] == Mark::Done || self.lane.get(settlements[*index].0).next_due().is_none()
        });
        (!places.is_empty()).then_some(Leaving { store: Arc::clone(&self.ctx.store), places })
    }
}

impl Held {
    /// When its next copy is due, where it has a place and goes on waiting in the ladder.
    fn next_due(&self) -> Option<crate::ladder::event::Timestamp> {
        self.place.as_ref()?;
        match self.failed.as_ref()?.1 {
            Action::Forward { due, .. } | Action::Defer { due } | Action::Wait { due, .. } => Some(due),
            Action::Done | Action::DeadLetter { .. } | Action::Halt { .. } => None,
        }
    }
}
