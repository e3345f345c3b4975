//! Redis, as far as deduplication uses it: the plain commands of the protocol on keys with a time to live, its way of
//! forgetting, and the deliberately broken forms of those commands; and the calls that reach it, or do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use retry_ladder::ladder::event::{ClaimReply, Mark};
use retry_ladder::ladder::lane::{ClaimId, Input, Slot};
use retry_ladder::ladder::sequence::{Place, Queue, TurnReply};
use retry_ladder::stage::ports::{Claim, CopyKey};

use super::broken::Broken;
use super::case::Fault;
use super::lane::Held;
use super::ledger::CopyId;
use super::queue::Event;
use super::world::{LEASE, LaneId, MS, ProcessId, SECOND, Time, World};

/// What one command of a batch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Claim,
    Renew,
    Settle(Mark),
    Release,
    /// Takes the place, or renews it: good until then.
    Join(Time),
    Leave,
}

/// One command.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) slot: Slot,
    pub(crate) copy: CopyId,
    pub(crate) key: CopyKey,
    pub(crate) id: ClaimId,
    pub(crate) claim: Claim,
    /// With `order: ladder`.
    pub(crate) place: Option<Place>,
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Claim(ClaimReply, TurnReply),
    /// Of a renewal or a release: whether it was still ours.
    Ours(bool),
    Recorded,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Vec<u8>,
    expires: Time,
    copy: CopyId,
}

/// The server.
#[derive(Default)]
pub(crate) struct Store {
    entries: BTreeMap<CopyKey, Entry>,
    queues: BTreeMap<Arc<str>, Queue>,
    /// What each write replaced, for a failover to a replica that had not seen it.
    undo: Vec<(Time, CopyKey, CopyId, Option<Entry>)>,
}

const DAY: Time = 24 * 60 * 60 * 1_000_000;

impl Store {
    /// Performs one command.
    pub(crate) fn apply(
        &mut self,
        now: Time,
        command: &Command,
        lease: Duration,
        room: usize,
        broken: Option<Broken>,
    ) -> Answer {
        let Command { key, copy, claim, .. } = command;
        let turn = match command.op {
            Op::Claim => self.turn(now, command, room),
            _ => TurnReply::default(),
        };
        let live = self.entries.get(key).filter(|entry| entry.expires > now);
        let ours = live.is_some_and(|entry| entry.value == claim.to_string().as_bytes());
        let until = now + lease.as_micros() as Time;
        match command.op {
            Op::Join(good_until) => {
                if let Some(place) = &command.place {
                    let queue = self.queues.entry(Arc::clone(&place.queue)).or_default();
                    queue.join(place.offset, Duration::from_micros(good_until));
                }
                Answer::Recorded
            }
            Op::Leave => {
                self.leave(command);
                Answer::Recorded
            }
            Op::Claim => match live {
                None if broken == Some(Broken::NoLease) => {
                    self.write(now, key, *copy, Some((b"1".to_vec(), now + DAY)));
                    Answer::Claim(ClaimReply::Claimed, turn)
                }
                None => {
                    self.write(now, key, *copy, Some((claim.to_string().into_bytes(), until)));
                    Answer::Claim(ClaimReply::Claimed, turn)
                }
                Some(entry) => match ClaimReply::to_existing(&entry.value, claim) {
                    ClaimReply::Busy if broken == Some(Broken::BusyDropped) => Answer::Claim(ClaimReply::Done, turn),
                    reply => Answer::Claim(reply, turn),
                },
            },
            Op::Renew if ours => {
                self.write(now, key, *copy, Some((claim.to_string().into_bytes(), until)));
                Answer::Ours(true)
            }
            Op::Release if ours => {
                self.write(now, key, *copy, None);
                Answer::Ours(true)
            }
            Op::Renew if broken == Some(Broken::NoLease) => Answer::Ours(true),
            Op::Renew | Op::Release => Answer::Ours(false),
            Op::Settle(_) if broken == Some(Broken::SettleForgotten) => Answer::Recorded,
            Op::Settle(mark) => {
                self.mark(now, key, *copy, mark);
                Answer::Recorded
            }
        }
    }

    fn turn(&mut self, now: Time, command: &Command, room: usize) -> TurnReply {
        let Some(place) = &command.place else { return TurnReply::default() };
        let room = if command.copy.hop == 0 { room } else { usize::MAX };
        let queue = self.queues.get_mut(&place.queue);
        queue.map(|queue| queue.turn(place.offset, Duration::from_micros(now), room)).unwrap_or_default()
    }

    fn leave(&mut self, command: &Command) {
        if let Some(place) = &command.place
            && let Some(queue) = self.queues.get_mut(&place.queue)
        {
            queue.leave(place.offset);
        }
    }

    /// Queues in which somebody still is.
    pub(crate) fn queues(&self) -> usize {
        self.queues.values().filter(|queue| !queue.is_empty()).count()
    }

    /// Records a copy as finished or moved on, whatever was there.
    pub(crate) fn mark(&mut self, now: Time, key: &CopyKey, copy: CopyId, mark: Mark) {
        let value: &[u8] = if mark == Mark::Done { b"1" } else { b"F" };
        self.write(now, key, copy, Some((value.to_vec(), now + DAY)));
    }

    fn write(&mut self, now: Time, key: &CopyKey, copy: CopyId, value: Option<(Vec<u8>, Time)>) {
        let before = match value {
            Some((value, expires)) => self.entries.insert(key.clone(), Entry { value, expires, copy }),
            None => self.entries.remove(key),
        };
        self.undo.push((now, key.clone(), copy, before));
    }

    /// Forgets one key; the copy that it was about.
    pub(crate) fn lose_one(&mut self, rng: &mut fastrand::Rng) -> Option<CopyId> {
        let n = self.entries.len();
        let key = self.entries.keys().nth(if n == 0 { return None } else { rng.usize(..n) })?.clone();
        self.entries.remove(&key).map(|entry| entry.copy)
    }

    /// Forgets everything; the copies that it was about.
    pub(crate) fn flush(&mut self) -> Vec<CopyId> {
        self.queues.clear();
        std::mem::take(&mut self.entries).into_values().map(|entry| entry.copy).collect()
    }

    /// Forgets every write since `since`; the copies that they were about.
    pub(crate) fn fail_over(&mut self, since: Time) -> Vec<CopyId> {
        let mut lost = Vec::new();
        while self.undo.last().is_some_and(|(at, ..)| *at >= since) {
            let Some((_, key, copy, before)) = self.undo.pop() else { break };
            match before {
                Some(entry) => self.entries.insert(key, entry),
                None => self.entries.remove(&key),
            };
            lost.push(copy);
        }
        lost
    }

    /// Copies that are known as finished or moved on.
    pub(crate) fn marked(&self, now: Time) -> BTreeSet<CopyId> {
        let marks = self.entries.values().filter(|entry| entry.expires > now && !entry.value.starts_with(b"P"));
        marks.map(|entry| entry.copy).collect()
    }
}

/// The store's adapter gives a command up.
const STORE_TIMEOUT: Time = SECOND;

/// A batch on its way to the store.
pub(crate) struct Request {
    lane: LaneId,
    process: ProcessId,
    sent: Time,
    batch: Vec<Command>,
    /// When the answer is there; `None`: nobody waits for it any more.
    answer_after: Option<Time>,
    refused: Vec<bool>,
}

impl World {
    /// A process sends a batch; the fate of it is drawn here.
    pub(crate) fn call_store(&mut self, lane: LaneId, process: ProcessId, batch: Vec<Command>, sent: Time) {
        if batch.is_empty() {
            return;
        }
        self.note(|| {
            let commands: Vec<_> = batch.iter().map(|c| format!("{:?} {}", c.op, c.copy)).collect();
            format!("lane {lane}: store: {}", commands.join(", "))
        });
        let there = self.network();
        let back = self.network();
        let refused = batch.iter().map(|_| self.chance(Fault::StoreRefused, 0.2)).collect();
        let mut request = Request { lane, process, sent, batch, answer_after: Some(back), refused };
        let down = self.now < self.outage_until && self.outage_of.is_none_or(|cut| cut == process);
        if !down && !self.chance(Fault::StoreLost, 0.25) {
            return self.after(there, Event::Ask(Box::new(request)));
        }
        // No answer in time; the batch is lost, or applied all the same, perhaps long after it was given up.
        for command in &request.batch {
            self.ledger.unanswered(command.copy, request.process, self.now);
        }
        let nothing = request.batch.iter().map(|command| (command, None)).collect();
        let reply = reply(&request.batch, nothing, World::boot(sent), self.broken);
        self.after(STORE_TIMEOUT, Event::Reply(lane, Box::new(reply)));
        if !down && self.rng.u8(..3) > 0 {
            request.answer_after = None;
            let there = if self.rng.bool() { there } else { self.rng.u64(0..6_000) * MS };
            self.after(there, Event::Ask(Box::new(request)));
        }
    }

    pub(crate) fn asked(&mut self, request: Request) {
        let gone = !self.processes[request.process].alive;
        if gone && self.rng.bool() {
            return; // it never left the process
        }
        let mut answers = Vec::with_capacity(request.batch.len());
        for (command, refused) in request.batch.iter().zip(&request.refused) {
            if *refused {
                self.ledger.unanswered(command.copy, request.process, self.now);
                answers.push((command, None));
            } else {
                answers.push((command, Some(self.store.apply(self.now, command, LEASE, self.room, self.broken))));
            }
        }
        if let Some(back) = request.answer_after {
            let reply = reply(&request.batch, answers, World::boot(request.sent), self.broken);
            self.after(back, Event::Reply(request.lane, Box::new(reply)));
        }
    }
}

/// What a process is told of a batch.
pub(crate) enum Reply {
    /// The lane's own business.
    Lane(Input<Held>),
    /// The same, and whose turn it is.
    Claimed(Input<Held>, Vec<(Slot, TurnReply)>),
    Settled(Vec<(Slot, bool)>),
    Joined(Vec<(Slot, bool)>),
    Left(Vec<(Slot, bool)>),
}

fn recorded(answers: Vec<(&Command, Option<Answer>)>) -> Vec<(Slot, bool)> {
    answers.into_iter().map(|(command, answer)| (command.slot, answer.is_some())).collect()
}

/// What the lane is told of a batch.
fn reply(batch: &[Command], answers: Vec<(&Command, Option<Answer>)>, sent: Duration, broken: Option<Broken>) -> Reply {
    let ours = |answer| match answer {
        _ if broken == Some(Broken::LostLeaseIgnored) => Some(true),
        Some(Answer::Ours(ours)) => Some(ours),
        _ => None,
    };
    match batch[0].op {
        Op::Claim => {
            let turns = answers.iter().filter_map(|(c, answer)| match answer {
                Some(Answer::Claim(_, turn)) => Some((c.slot, *turn)),
                _ => None,
            });
            let turns = turns.collect();
            let claim = |answer| match answer {
                Some(Answer::Claim(reply, _)) => Some(reply),
                _ => (broken == Some(Broken::NoAnswerIsYes)).then_some(ClaimReply::Claimed),
            };
            let claims = answers.into_iter().map(|(c, answer)| (c.slot, claim(answer))).collect();
            Reply::Claimed(Input::Claimed(claims, sent), turns)
        }
        Op::Renew => Reply::Lane(Input::Renewed(
            answers.into_iter().map(|(c, answer)| (c.slot, c.id, ours(answer))).collect(),
            sent,
        )),
        Op::Settle(_) => Reply::Settled(recorded(answers)),
        Op::Join(_) => Reply::Joined(recorded(answers)),
        Op::Leave => Reply::Left(recorded(answers)),
        Op::Release => Reply::Lane(Input::Released(batch.iter().map(|c| c.slot).collect())),
    }
}
