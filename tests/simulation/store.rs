//! Redis, as far as deduplication uses it: the plain commands of the protocol on keys with a time to live, its way of
//! forgetting, and the deliberately broken forms of those commands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use retry_ladder::ladder::event::{ClaimReply, Mark};
use retry_ladder::ladder::lane::{ClaimId, Slot};
use retry_ladder::stage::ports::{Claim, CopyKey};

use super::broken::Broken;
use super::ledger::CopyId;
use super::world::Time;

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
