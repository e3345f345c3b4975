//! `order: ladder` in the simulated shell: mirrors `stage::lane::turns`, and what comes back from the store.

use retry_ladder::ladder::event::{Action, Failure, Now, Timestamp};
use retry_ladder::ladder::lane::{Delivery, Input, Slot, Verdict};
use retry_ladder::ladder::route;
use retry_ladder::ladder::sequence::{Turn, TurnReply};

use super::broken::Broken;
use super::lane::{Doing, Held, SimLane};
use super::store::Reply;
use super::world::World;

impl SimLane {
    /// The store's answer.
    pub(crate) fn reply(&mut self, world: &mut World, reply: Reply) {
        match reply {
            Reply::Lane(input) => self.input(world, input),
            Reply::Claimed(input, turns) => {
                for (slot, TurnReply { turn, lapsed }) in turns {
                    self.lane.get_mut(slot).turn = turn;
                    world.ledger.lapsed(lapsed);
                }
                self.input(world, input);
            }
            Reply::Joined(replies) => {
                for (slot, joined) in replies {
                    if joined {
                        self.doing.push_back(Doing::Joined(slot));
                    } else {
                        self.step(world, Input::Published(slot, Delivery::Failed));
                    }
                }
            }
            Reply::Settled(mut replies) => {
                let unsettled = std::mem::take(&mut self.unsettled);
                replies.iter_mut().for_each(|(slot, recorded)| *recorded &= !unsettled.contains(slot));
                self.input(world, Input::Settled(replies));
            }
            Reply::Left(replies) => {
                self.unsettled = replies.into_iter().filter(|(_, left)| !left).map(|(slot, _)| slot).collect();
                self.doing.push_back(Doing::Left);
            }
        }
    }

    pub(crate) fn waits_its_turn(&mut self, world: &mut World, slot: Slot, now: Now) -> bool {
        let draw = world.rng.f64();
        let held = self.lane.get_mut(slot);
        let verdict = match held.turn {
            _ if world.broken == Some(Broken::TurnIgnored) => return false,
            Turn::Free | Turn::First => return false,
            Turn::Behind(_) if held.envelope.repaired.contains("due_clamped") && !held.paused => {
                held.paused = true;
                Verdict::Fenced
            }
            Turn::Behind(_) => {
                let action = route::wait(&world.ladder, &held.envelope, now.wall, draw);
                let verdict = Verdict::of(&action);
                held.started = now.wall;
                held.failed = Some((Failure::transient("not its turn"), action));
                world.ledger.counts.behind += 1;
                verdict
            }
            Turn::Full(_) => Verdict::Fenced,
        };
        world.note(|| format!("lane {}: {} waits: {:?}", self.id, held.record.copy, held.turn));
        self.step_at(world, now, Input::Returned(slot, verdict));
        true
    }
}

impl Held {
    /// `stage::lane::turns`.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.place.as_ref()?;
        match self.failed.as_ref()?.1 {
            Action::Forward { due, .. } | Action::Defer { due } | Action::Wait { due, .. } => Some(due),
            _ => None,
        }
    }
}
