//! Kafka, as far as the ladder uses it: append-only partitions with gaps in their offsets, a producer whose
//! acknowledgements come late, get lost or are errors, consumer groups that move partitions and fence stale members,
//! and committed offsets. Each copy that is appended is held against the one that it was made from.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use bytes::Bytes;
use retry_ladder::ladder::headers::{self as names, Shrink};
use retry_ladder::ladder::lane::{Delivery, Input, Order, Slot};

use super::broken::Broken;
use super::case::Fault;
use super::lane::SimLane;
use super::ledger::{CopyId, Invariant};
use super::queue::Event;
use super::world::{EPOCH_MS, LaneId, MAX_DEFERRALS, MS, ProcessId, SECOND, Time, World};

pub(crate) type Headers = Vec<(Bytes, Option<Bytes>)>;

/// A record in a partition.
#[derive(Debug)]
pub(crate) struct Rec {
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    pub(crate) copy: CopyId,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Bytes,
    pub(crate) headers: Headers,
}

impl Rec {
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
        self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref()))
    }

    pub(crate) fn key_hash(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        self.key.as_ref()?.hash(&mut hasher);
        Some(hasher.finish())
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers().find(|(n, _)| *n == name.as_bytes())?;
        std::str::from_utf8(value?).ok()
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

/// A record on its way to the broker.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) copy: CopyId,
    pub(crate) rung: usize,
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Bytes,
    pub(crate) headers: Headers,
    pub(crate) shrink: Shrink,
    pub(crate) parent: Rc<Rec>,
}

/// One partition, with what its group knows of it.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Rc<Rec>>,
    pub(crate) end: i64,
    pub(crate) committed: Option<i64>,
    /// The lane that owns it in the group's eyes.
    pub(crate) owner: Option<LaneId>,
    pub(crate) epoch: u32,
    /// Its owner was told to give it up.
    pub(crate) revoking: bool,
}

impl World {
    /// A producer of the application writes an event to main.
    pub(crate) fn write_event(&mut self, event: usize) {
        let plan = &self.plans[event];
        let partition = plan.partition;
        let mut headers: Headers = vec![(Bytes::from_static(b"colour"), Some(Bytes::from_static(b"blue")))];
        if plan.has_id {
            headers.push((Bytes::from_static(b"MessageID"), Some(Bytes::from(format!("e{event}")))));
        }
        let key = plan.key.map(|key| Bytes::from(vec![b'k', key]));
        let twice = plan.has_id && self.chance(Fault::Twice, 0.2);
        for _ in 0..=usize::from(twice) {
            let copy = CopyId { event, hop: 0 };
            self.append(0, partition, copy, key.clone(), Bytes::from(vec![event as u8]), headers.clone());
        }
    }

    fn append(
        &mut self,
        rung: usize,
        partition: usize,
        copy: CopyId,
        key: Option<Bytes>,
        value: Bytes,
        headers: Headers,
    ) -> Rc<Rec> {
        let gap = if self.rng.u8(..4) == 0 { self.rng.i64(1..4) } else { 0 };
        let now = self.now / MS;
        let log = &mut self.logs[rung][partition];
        let offset = log.end + gap;
        log.end = offset + 1;
        let timestamp_ms = (EPOCH_MS + now) as i64;
        let record = Rc::new(Rec { offset, timestamp_ms, copy, key, value, headers });
        log.records.push(Rc::clone(&record));
        let owner = log.owner;
        self.note(|| format!("broker: {copy} is at {rung}/{partition}@{offset}"));
        if let Some(owner) = owner {
            self.fetch_soon(owner);
        }
        record
    }

    /// The process hands a record to its producer.
    pub(crate) fn produce(&mut self, lane: LaneId, process: ProcessId, slot: Slot, record: Outgoing) {
        let cut = self.processes[process].cut_until > self.now;
        let too_large = record.shrink < Shrink::NoCompat && self.chance(Fault::TooLarge, 0.3);
        let error = (cut && self.rng.bool()) || self.chance(Fault::ProduceError, 0.2);
        let (delivery, answer_after) = if too_large {
            (Delivery::TooLarge, self.rng.u64(1..20) * MS)
        } else if error {
            (Delivery::Failed, self.rng.u64(10..6_000) * MS)
        } else if self.chance(Fault::AckLost, 0.2) {
            (Delivery::Failed, self.rng.u64(10..3_000) * MS)
        } else if self.chance(Fault::AckLate, 0.2) {
            (Delivery::Acknowledged, self.rng.u64(100..9_000) * MS)
        } else {
            (Delivery::Acknowledged, self.rng.u64(2..12) * MS)
        };
        if too_large || error {
            return self.tell(answer_after, lane, slot, delivery);
        }
        // An acknowledged record was appended before; of one that was given up nobody knows when it will be.
        let appended = match delivery {
            Delivery::Acknowledged => self.rng.u64(1..=answer_after / MS / 2) * MS,
            _ => self.rng.u64(1..5_000) * MS,
        };
        if delivery == Delivery::Failed {
            self.doubled(&record);
            self.tell(answer_after, lane, slot, delivery);
        }
        let ack = (delivery == Delivery::Acknowledged).then(|| (slot, answer_after - appended));
        self.after(appended, Event::Append(process, lane, Box::new(record), ack));
    }

    /// The producer's answer to the lane.
    fn tell(&mut self, after: Time, lane: LaneId, slot: Slot, delivery: Delivery) {
        let delivery = match (self.broken, delivery) {
            (Some(Broken::DoneBeforeAck), _) => return, // it was taken for granted
            (Some(Broken::SettledWithoutAck), Delivery::Failed) => Delivery::Acknowledged,
            (_, delivery) => delivery,
        };
        self.after(after, Event::Ack(lane, slot, delivery));
    }

    fn doubled(&mut self, record: &Outgoing) {
        if record.rung == self.ladder.dlq().index {
            self.ledger.events[record.copy.event].doubled += 1;
        }
    }

    /// A record reaches the broker.
    pub(crate) fn appended(&mut self, lane: LaneId, record: Outgoing, ack: Option<(Slot, Time)>) {
        let partitions = self.partitions.0[record.rung] as usize;
        let by_key = || record.key.as_ref().map_or(0, |key| usize::from(key[1])) % partitions;
        let partition = record.partition.map_or_else(by_key, |partition| partition as usize);
        let times = if self.chance(Fault::Twice, 0.15) { 2 } else { 1 };
        for time in 0..times {
            if time > 0 {
                self.doubled(&record);
            }
            let (key, value) = (record.key.clone(), record.value.clone());
            let appended = self.append(record.rung, partition, record.copy, key, value, record.headers.clone());
            self.check_copy(record.rung, &record.parent, &appended);
            self.ledger.counts.hops += 1;
            if record.rung == self.ladder.dlq().index {
                self.ledger.dead_letter(record.copy.event, self.now);
                self.ledger.counts.dead_letters += 1;
            }
        }
        let fence = self.logs[record.rung][partition].records.last().and_then(|copy| copy.number(names::FENCE));
        self.ledger.moved_on(record.parent.copy, lane, fence.unwrap_or_default());
        if let Some((slot, after)) = ack {
            self.tell(after, lane, slot, Delivery::Acknowledged);
        }
    }

    /// Holds a copy against the record that it was made from, by the raw headers.
    fn check_copy(&mut self, rung: usize, parent: &Rec, copy: &Rec) {
        let mut faults: Vec<(Invariant, String)> = Vec::new();
        let mut own: Vec<&[u8]> = copy.headers().map(|(n, _)| n).filter(|n| n.starts_with(b"x-ladder-")).collect();
        let all = own.len();
        own.sort_unstable();
        own.dedup();
        if own.len() < all {
            faults.push((Invariant::HeadersKept, format!("{} own headers, {} different", all, own.len())));
        }
        let foreign = |record: &Rec| -> Headers {
            record.headers.iter().filter(|(name, _)| !name.starts_with(b"x-ladder-")).cloned().collect()
        };
        if (&parent.key, &parent.value) != (&copy.key, &copy.value) || foreign(parent) != foreign(copy) {
            faults.push((Invariant::HeadersKept, "key, value or others' headers changed".into()));
        }
        let hop = |record: &Rec| record.number(names::HOP).unwrap_or_default();
        let attempt = |record: &Rec| record.number(names::ATTEMPT).unwrap_or_default();
        let last = self.ladder.dlq().index as u64;
        if parent.copy.hop > 0 {
            for name in [names::EVENT_ID, names::ORIGIN, names::GROUP] {
                if parent.text(name) != copy.text(name) {
                    faults.push((Invariant::HeadersKept, format!("{name} changed")));
                }
            }
        }
        // Whose turn it is not moves once more, each time.
        let most = if self.order == Order::Ladder { u64::MAX } else { last + u64::from(MAX_DEFERRALS) };
        if hop(copy) != hop(parent) + 1 || hop(copy) > most {
            faults.push((Invariant::Bounded, format!("hop {} after {}", hop(copy), hop(parent))));
        }
        let charged = attempt(copy).wrapping_sub(attempt(parent));
        if charged > 0 && !self.ledger.was_executed(parent.copy) {
            faults.push((Invariant::AttemptsPaid, "it is charged for an execution that never was".into()));
        }
        if charged > 1 || attempt(copy) > last {
            faults.push((Invariant::Bounded, format!("attempt {} after {}", attempt(copy), attempt(parent))));
        }
        if rung as u64 != last && copy.number(names::STAGE) != Some(rung as u64) {
            faults.push((Invariant::Bounded, format!("stage {:?} on rung {rung}", copy.text(names::STAGE))));
        }
        if copy.number(names::FENCE).unwrap_or_default() < parent.number(names::FENCE).unwrap_or_default() {
            faults.push((Invariant::FencesGrow, "the fence fell".into()));
        }
        for (invariant, what) in faults {
            self.ledger.fail(self.now, invariant, format!("{}: {what}", copy.copy));
        }
    }

    // ---------------------------------------------------------------------------------------- consumer group

    /// Records for a lane.
    pub(crate) fn fetch(&mut self, lane: &mut SimLane) {
        lane.fetching = false;
        if lane.draining || lane.lane.paused() || self.processes[lane.process].cut_until > self.now {
            return;
        }
        let most = self.rng.usize(1..=3);
        let log = &self.logs[lane.rung][lane.partition];
        let from = log.records.partition_point(|record| record.offset < lane.fetch_from);
        let records: Vec<_> = log.records[from..].iter().take(most).cloned().collect();
        let Some(last) = records.last() else { return };
        lane.fetch_from = last.offset + 1;
        lane.arrive(self, records);
    }

    /// Whether there is something that a lane could fetch.
    pub(crate) fn is_behind(&self, lane: &SimLane) -> bool {
        let last = self.logs[lane.rung][lane.partition].records.last();
        last.is_some_and(|record| record.offset >= lane.fetch_from)
    }

    /// Gives a partition to a worker that can have it.
    pub(crate) fn assign(&mut self, rung: usize, partition: usize) {
        if self.logs[rung][partition].owner.is_some() {
            return;
        }
        let able: Vec<usize> = (0..self.workers.len())
            .filter(|worker| {
                let process = &self.processes[self.workers[*worker]];
                process.alive && !process.leaving && process.frozen_until <= self.now && process.cut_until <= self.now
            })
            .collect();
        if able.is_empty() {
            return self.after(SECOND / 2, Event::Assign(rung, partition));
        }
        let process = self.workers[able[self.rng.usize(..able.len())]];
        let id = self.lanes.len();
        let config = self.lane_config(id as u64);
        let log = &mut self.logs[rung][partition];
        log.epoch += 1;
        log.owner = Some(id);
        log.revoking = false;
        let mut lane = SimLane::new(id, process, rung, partition, log.epoch, config);
        lane.fetch_from = log.committed.unwrap_or(0);
        let from = lane.fetch_from;
        self.note(|| format!("group: {rung}/{partition} to process {process}, lane {id}, from {from}"));
        self.lanes.push(Some(Box::new(lane)));
        self.places.push(process);
        self.fetch_soon(id);
    }

    /// Asks the owner of a partition to give it up.
    pub(crate) fn revoke(&mut self, rung: usize, partition: usize) {
        let log = &mut self.logs[rung][partition];
        let Some(owner) = log.owner.filter(|_| !log.revoking) else { return };
        log.revoking = true;
        self.note(|| format!("group: {rung}/{partition} is taken from lane {owner}"));
        let heard = self.network();
        self.after(heard, Event::Drain(owner));
        self.after(3 * SECOND, Event::DrainOver(owner));
    }

    /// The membership of a process is over: others get its partitions, what it commits no longer counts.
    pub(crate) fn expel(&mut self, process: ProcessId) {
        for (rung, partition) in self.all_partitions() {
            let Some(id) = self.logs[rung][partition].owner.filter(|id| self.places[*id] == process) else { continue };
            self.disown(id);
            // It will hear of it.
            let heard = self.rng.u64(0..2_000) * MS;
            self.after(heard, Event::Drain(id));
        }
    }

    /// The group no longer counts this lane as the owner of its partition.
    pub(crate) fn disown(&mut self, id: LaneId) {
        for (rung, partition) in self.all_partitions() {
            let log = &mut self.logs[rung][partition];
            if log.owner == Some(id) {
                log.owner = None;
                log.epoch += 1;
                let pause = self.network();
                self.after(pause, Event::Assign(rung, partition));
            }
        }
    }

    /// The end of a revocation: what was reached is committed, the partition moves on.
    pub(crate) fn give_up(&mut self, lane: &mut SimLane) {
        self.commit(lane);
        if self.logs[lane.rung][lane.partition].owner == Some(lane.id) {
            self.note(|| format!("group: lane {} has given its partition up", lane.id));
            self.disown(lane.id);
        }
    }

    /// A commit reaches the group, which refuses those of earlier owners.
    pub(crate) fn commit(&mut self, lane: &mut SimLane) {
        lane.commit_due = false;
        let Some(mut position) = lane.lane.position() else { return };
        if self.broken == Some(Broken::HolesIgnored) {
            position = lane.lane.delivered_to().unwrap_or(position);
        }
        let log = &mut self.logs[lane.rung][lane.partition];
        if log.epoch != lane.epoch || log.owner != Some(lane.id) || self.processes[lane.process].cut_until > self.now {
            return;
        }
        lane.committed = Some(position);
        log.committed = Some(position);
        self.note(|| format!("group: {}/{} committed {position}", lane.rung, lane.partition));
        let log = &self.logs[lane.rung][lane.partition];
        let hole = log.records.iter().find(|r| r.offset < position && !self.ledger.is_resolved(r.copy));
        if let Some(hole) = hole {
            let what = format!("{position} of {}/{} past {} at {}", lane.rung, lane.partition, hole.copy, hole.offset);
            self.ledger.fail(self.now, Invariant::NoHoleCommitted, what);
        }
    }

    /// A drain begins.
    pub(crate) fn drain(&mut self, lane: &mut SimLane) {
        if !lane.draining {
            lane.draining = true;
            lane.input(self, Input::Drain);
        }
    }
}
