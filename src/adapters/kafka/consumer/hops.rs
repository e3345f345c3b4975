//! `forward: transactional`: the hops and the offsets of a stage's partitions, in transactions.
//!
//! A transaction holds, for each partition that this consumer owns, a position and the hops of every event below it that
//! has one; so each hop appears in the log exactly once (to readers of what is committed) together with the offset that
//! says so. What follows from it:
//!
//! - **The gap.** An event that was decided waits, in its lane, until every event before it in its partition is finished
//!   or decided, too: a slow handler, a busy claim, a jittered due at the head holds back the hops behind it. The window
//!   bounds them; a hop is made only when it goes, so the wait costs no memory. What is stranded behind a gap when the
//!   partition is given up is executed again by the next owner.
//! - **One producer per consumer, on its thread.** Transactions run on the poll thread, so none is open while a rebalance
//!   takes partitions away: on revoke the lanes drain and their hops are committed before the partition goes. A transaction
//!   delays the next poll by its length (some ten milliseconds); all its calls end within time-outs that together are
//!   shorter than the least `max_poll_interval` that the configuration allows with it.
//! - **Zombies.** `group_metadata()` is asked anew for each transaction, before the shares: the coordinator refuses the
//!   offsets of a member of an earlier generation, and with them the transaction. Not of a client that has lost its
//!   membership and names none, as librdkafka does from then until the loss is polled; so such a one commits nothing.
//!   With a static `instance` the
//!   transactional id is stable, too, so that a restart aborts at once what its predecessor left open; without, it is
//!   random, and what a killed process left open is aborted after `transaction.timeout.ms` (15 s, and until the coordinator looks), until when the new
//!   owner waits for a stable offset and readers of the target partitions stand still.
//! - **Deduplication stays.** Claims are made before executions, as ever. `1` (done) is settled at once, because the effect
//!   has happened; `F` (moved on) after the commit, because only then the next copy exists. An event whose lease was lost
//!   while it waited is not sent, and executed again.
//! - **Failures.** Aborted: nothing was written, the lanes hold everything and offer it again (there is nothing to seek
//!   back to). Fenced, fatal, or a commit without an answer: the producer is made anew, which ends whatever was open, and
//!   then the group's committed offsets tell whether the transaction happened. Until they do nothing else is begun.
//!
//! Leaves to others: what may go (`ladder::lane::hops`), the transaction itself ([`transactions`]).
//!
//! [`transactions`]: crate::adapters::kafka::transactions

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::{Assigned, Transactional};
use crate::adapters::kafka::offsets::committed_offsets;
use crate::adapters::kafka::transactions::{Error, Transactions};
use crate::adapters::kafka::{Properties, raw};
use crate::stage::lanes::LaneCommand;
use crate::stage::ports::{Outgoing, PublishError, Share};

/// A transaction with hops begins this long after the one before,
const EVERY: Duration = Duration::from_millis(100);
/// or as soon as this many hops wait.
const MANY: usize = 500;
/// Positions alone are committed as seldom as in the other mode.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);
/// How long a lane is waited for: a handler that blocks its thread may keep it.
const LANE_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two tries of what failed.
const AGAIN: Duration = Duration::from_secs(1);
/// For the question what is committed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the hops of one stage's consumer.
pub(super) struct Hops {
    properties: Properties,
    transactional: Transactional,
    topic: String,
    /// Opened when there is something to write, and again after it was lost.
    writer: Option<Transactions>,
    /// Offered to a transaction of which it is not known whether it happened.
    in_doubt: Vec<Share>,
    next: Instant,
    next_positions: Instant,
    /// The last time that lanes were asked they gave little: their hops wait for a gap to close.
    gaps: bool,
    told: bool,
}

impl Hops {
    pub(super) fn new(properties: Properties, transactional: Transactional, topic: String) -> Self {
        let now = Instant::now();
        Self {
            properties,
            transactional,
            topic,
            writer: None,
            in_doubt: Vec::new(),
            next: now,
            next_positions: now,
            gaps: false,
            told: false,
        }
    }

    /// Commits what these partitions have, if it is time to; `at_last` it is.
    pub(super) fn commit<'a, C: ConsumerContext>(
        &mut self,
        consumer: &BaseConsumer<C>,
        lanes: impl Iterator<Item = (i32, &'a mut Assigned)>,
        at_last: bool,
    ) {
        let (now, mut lanes) = (Instant::now(), lanes.collect::<Vec<_>>());
        let waiting: usize = lanes.iter().map(|(_, assigned)| assigned.lane.state().hops()).sum();
        let many = waiting >= MANY && !self.gaps;
        if !at_last && ((waiting == 0 && now < self.next_positions) || (now < self.next && !many)) {
            return;
        }
        self.next = now + EVERY;
        self.next_positions = now + POSITIONS_EVERY;
        // Before the shares: see the zombies above.
        let Some(member) = consumer.group_metadata().filter(|_| raw::has_member_id(consumer)) else { return };
        if !self.in_doubt.is_empty() && !self.resolve(consumer, &mut lanes) {
            self.next = Instant::now() + AGAIN;
            return;
        }
        let shares = ask(&lanes);
        self.gaps = shares.iter().map(|share| share.hops.len()).sum::<usize>() < waiting / 2;
        let mut reached = TopicPartitionList::new();
        let mut positions = Vec::new();
        for (partition, assigned) in &lanes {
            // What is committed and not yet settled is not done for the lane: its own position may lie behind.
            let own = assigned.lane.position().filter(|position| *position > assigned.stored);
            let share = shares.iter().find(|share| share.partition == *partition).map(|share| share.position);
            if let Some(position) = share.or(own) {
                // Neither a bad partition nor a negative offset.
                drop(reached.add_partition_offset(&self.topic, *partition, Offset::Offset(position)));
                positions.push((*partition, position));
            }
        }
        if positions.is_empty() {
            return;
        }
        let records: Vec<&Outgoing> = shares.iter().flat_map(|share| &share.hops).map(|(_, record)| record).collect();
        let written = self.writer().and_then(|writer| writer.write(&records, Some((&reached, &member))));
        match written {
            Ok(()) => {
                tracing::debug!(topic = %self.topic, hops = records.len(), took = ?now.elapsed(), "transaction committed");
                if std::mem::take(&mut self.told) {
                    tracing::info!(topic = %self.topic, "transactions are committed again");
                }
                for (partition, assigned) in &mut lanes {
                    let position = positions.iter().find(|(p, _)| p == partition);
                    assigned.stored = position.map_or(assigned.stored, |(_, position)| *position);
                }
                shares.into_iter().for_each(|share| share.answer(|_| Ok(())));
            }
            Err(error) => self.failed(&error, shares),
        }
    }

    fn writer(&mut self) -> Result<&Transactions, Error> {
        Ok(match self.writer.take() {
            Some(writer) => self.writer.insert(writer),
            None => {
                let Transactional { id, batch_size } = &self.transactional;
                self.writer.insert(Transactions::open(&self.properties, id, *batch_size)?)
            }
        })
    }

    fn failed(&mut self, error: &Error, shares: Vec<Share>) {
        self.next = Instant::now() + AGAIN;
        if let Error::TooLarge { place } = error {
            let mut first = 0;
            for share in shares {
                let count = share.hops.len();
                let refused = place.checked_sub(first).filter(|place| *place < count);
                let aborted =
                    |place| Err(if refused == Some(place) { PublishError::TooLarge } else { PublishError::Aborted });
                share.answer(aborted);
                first += count;
            }
            return;
        }
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(topic = %self.topic, id = self.transactional.id, %error, "hops are not committed; trying again until they are");
        }
        // Otherwise nothing was written, and the shares say so themselves.
        if matches!(error, Error::Fenced(_) | Error::Unknown(_)) {
            self.writer = None;
            self.in_doubt = shares;
        }
    }

    /// Finds out whether the transaction in doubt happened; whether that is known now.
    fn resolve<C: ConsumerContext>(&mut self, consumer: &BaseConsumer<C>, lanes: &mut [(i32, &mut Assigned)]) -> bool {
        // Ends whatever is open under this id: after that the offsets are stable.
        if let Err(error) = self.writer() {
            tracing::debug!(topic = %self.topic, %error, "a transaction stays in doubt");
            return false;
        }
        let partitions = self.in_doubt.iter().map(|share| share.partition);
        let committed = match committed_offsets(consumer, &self.topic, partitions, TIMEOUT) {
            Ok(committed) => committed,
            Err(error) => {
                tracing::debug!(topic = %self.topic, %error, "a transaction stays in doubt");
                return false;
            }
        };
        for share in self.in_doubt.drain(..) {
            let at = committed.get(&share.partition).copied().unwrap_or(-1);
            if at < share.position {
                continue; // dropped: aborted
            }
            if let Some((_, assigned)) = lanes.iter_mut().find(|(partition, _)| *partition == share.partition) {
                assigned.stored = assigned.stored.max(share.position);
            }
            share.answer(|_| Ok(()));
        }
        true
    }
}

/// What the lanes with hops have for the next transaction.
fn ask(lanes: &[(i32, &mut Assigned)]) -> Vec<Share> {
    let (to, answers) = mpsc::channel();
    for (_, assigned) in lanes.iter().filter(|(_, assigned)| assigned.lane.state().hops() > 0) {
        assigned.lane.command(LaneCommand::Share(to.clone()));
    }
    drop(to);
    let until = Instant::now() + LANE_TIMEOUT;
    // A share that comes too late answers for itself.
    std::iter::from_fn(|| answers.recv_timeout(until.saturating_duration_since(Instant::now())).ok()).collect()
}
