//! Redis, as far as deduplication uses it: the plain commands of the protocol on keys with a time to live, its way of
//! forgetting, and the deliberately broken forms of those commands; and the calls that reach it, or do not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use retry_ladder::ladder::event::{ClaimReply, Mark};
use retry_ladder::ladder::lane::{ClaimId, Input, Slot};
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
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Claim(ClaimReply),
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
    /// What each write replaced, for a failover to a replica that had not seen it.
    undo: Vec<(Time, CopyKey, CopyId, Option<Entry>)>,
}

const DAY: Time = 24 * 60 * 60 * 1_000_000;

impl Store {
    /// Performs one command.
    pub(crate) fn apply(&mut self, now: Time, command: &Command, lease: Duration, broken: Option<Broken>) -> Answer {
        let Command { key, copy, claim, .. } = command;
        let live = self.entries.get(key).filter(|entry| entry.expires > now);
        let ours = live.is_some_and(|entry| entry.value == claim.to_string().as_bytes());
        let until = now + lease.as_micros() as Time;
        match command.op {
            Op::Claim => match live {
                None if broken == Some(Broken::NoLease) => {
                    self.write(now, key, *copy, Some((b"1".to_vec(), now + DAY)));
                    Answer::Claim(ClaimReply::Claimed)
                }
                None => {
                    self.write(now, key, *copy, Some((claim.to_string().into_bytes(), until)));
                    Answer::Claim(ClaimReply::Claimed)
                }
                Some(entry) => match ClaimReply::to_existing(&entry.value, claim) {
                    ClaimReply::Busy if broken == Some(Broken::BusyDropped) => Answer::Claim(ClaimReply::Done),
                    reply => Answer::Claim(reply),
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
                answers.push((command, Some(self.store.apply(self.now, command, LEASE, self.broken))));
            }
        }
        if let Some(back) = request.answer_after {
            let reply = reply(&request.batch, answers, World::boot(request.sent), self.broken);
            self.after(back, Event::Reply(request.lane, Box::new(reply)));
        }
    }
}

/// What the lane is told of a batch.
fn reply(
    batch: &[Command],
    answers: Vec<(&Command, Option<Answer>)>,
    sent: Duration,
    broken: Option<Broken>,
) -> Input<Held> {
    let ours = |answer| match answer {
        _ if broken == Some(Broken::LostLeaseIgnored) => Some(true),
        Some(Answer::Ours(ours)) => Some(ours),
        _ => None,
    };
    match batch[0].op {
        Op::Claim => {
            let claim = |answer| match answer {
                Some(Answer::Claim(reply)) => Some(reply),
                _ => (broken == Some(Broken::NoAnswerIsYes)).then_some(ClaimReply::Claimed),
            };
            Input::Claimed(answers.into_iter().map(|(c, answer)| (c.slot, claim(answer))).collect(), sent)
        }
        Op::Renew => {
            Input::Renewed(answers.into_iter().map(|(c, answer)| (c.slot, c.id, ours(answer))).collect(), sent)
        }
        Op::Settle(_) => Input::Settled(answers.into_iter().map(|(c, answer)| (c.slot, answer.is_some())).collect()),
        Op::Release => Input::Released(batch.iter().map(|c| c.slot).collect()),
    }
}
