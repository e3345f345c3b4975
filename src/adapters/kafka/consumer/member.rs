//! The member of the group: what is done when partitions are given to it and taken from it.
//!
//! Invariants
//! - No partition is assigned without a place to start at ([`start`]): that is found out here, not by librdkafka.
//! - On revoke the lanes drain before the partition is given up.
//! - When the membership is lost the lanes are let go: what runs there keeps its lease and is settled, nothing is stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::hops::Hops;
use super::{Assigned, Options, start};
use crate::adapters::kafka::client::{Connection, missing_right};
use crate::adapters::kafka::raw;
use crate::stage::lanes::{LaneCommand, LaneHost};

/// How long the group's coordinator may take to say where new partitions start; meanwhile nothing is polled. Longer than
/// a coordinator takes to move.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// The same while the last owner's transaction may be open: its time-out, and until the coordinator looks for such.
const STABLE_TIMEOUT: Duration = Duration::from_secs(45);

/// How long after the loss of its membership a client may hear of a request that it sent without one: it waits at most
/// a session for a coordinator, and 60 s for its answer.
fn in_doubt(session_timeout: Duration) -> Duration {
    session_timeout + Duration::from_secs(60)
}

/// What a client knows of its place in the group.
pub(super) struct Context {
    pub(super) connection: Connection,
    options: Options,
    pub(super) host: Arc<dyn LaneHost>,
    lanes: Mutex<HashMap<i32, Assigned>>,
    /// Where hops and offsets go together.
    pub(super) hops: Option<Arc<Mutex<Hops>>>,
    /// When the membership was lost last, other than by being fenced.
    lost: Mutex<Option<Instant>>,
    /// Whether this client ever had a place in the group.
    joined: AtomicBool,
    /// This client is about to be closed: by its end, or because another has to take its place.
    pub(super) over: AtomicBool,
}

impl Context {
    pub(super) fn new(options: Options, host: Arc<dyn LaneHost>, hops: Option<Arc<Mutex<Hops>>>) -> Self {
        Self {
            connection: Connection::new(format!("consumer of {}", options.topic)),
            options,
            host,
            lanes: Mutex::new(HashMap::new()),
            hops,
            lost: Mutex::new(None),
            joined: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn lanes(&self) -> MutexGuard<'_, HashMap<i32, Assigned>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The membership is gone and others may own the partitions already: what runs holds its leases and settles, nothing
    /// is stored.
    pub(super) fn lose(&self, taken: impl Iterator<Item = Assigned>) {
        self.host.member(false);
        for assigned in taken {
            assigned.lane.command(LaneCommand::Drain);
        }
    }

    /// Whether being fenced says nothing of another process. librdkafka forgets its member id when it loses its membership,
    /// and still sends what it had to send: commits of what was stored, in nobody's name, and heartbeats that are tried
    /// again, in the old one's. A coordinator that knows the `instance` takes that for a second process. A client that never
    /// had a place takes that of whoever has its `instance`; it meets a second process there when two are started at once,
    /// of which the one that was first in place then ends, or when its own request was done twice: by a coordinator that
    /// moved.
    pub(super) fn is_fenced_by_itself(&self) -> bool {
        let lost = *self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        !self.joined.load(Ordering::Relaxed)
            || lost.is_some_and(|at| at.elapsed() < in_doubt(self.options.session_timeout))
    }

    /// Drains these lanes, at most the drain time; gives back what they reached and those that were not done by then.
    /// Without a `member`ship nothing can be committed meanwhile.
    pub(super) fn drain(
        &self,
        member: Option<&BaseConsumer<Self>>,
        mut lanes: Vec<(i32, Assigned)>,
    ) -> (TopicPartitionList, Vec<Assigned>) {
        for (_, assigned) in &lanes {
            assigned.lane.command(LaneCommand::Drain);
            if member.is_none() {
                assigned.lane.command(LaneCommand::Withhold);
            }
        }
        let deadline = Instant::now() + self.options.drain_timeout;
        while lanes.iter().any(|(_, a)| !a.lane.ended()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            if let Some(consumer) = member {
                self.commit(consumer, lanes.iter_mut().map(|(p, assigned)| (*p, assigned)), false);
            }
        }
        if let Some(consumer) = member {
            self.commit(consumer, lanes.iter_mut().map(|(p, assigned)| (*p, assigned)), true);
        }
        let mut reached = TopicPartitionList::new();
        for (partition, assigned) in &lanes {
            if let Some(position) = assigned.lane.position()
                && position != assigned.stored
            {
                self.add(&mut reached, *partition, position);
            }
        }
        (reached, lanes.into_iter().map(|(_, a)| a).filter(|a| !a.lane.ended()).collect())
    }

    pub(super) fn add(&self, list: &mut TopicPartitionList, partition: i32, position: i64) {
        if let Err(error) = list.add_partition_offset(&self.options.topic, partition, Offset::Offset(position)) {
            tracing::error!(topic = %self.options.topic, partition, position, %error, "cannot store an offset");
        }
    }

    /// In transactions, where that is how hops and offsets go.
    pub(super) fn commit<'a>(
        &self,
        consumer: &BaseConsumer<Self>,
        lanes: impl Iterator<Item = (i32, &'a mut Assigned)>,
        at_last: bool,
    ) {
        if let Some(hops) = &self.hops {
            hops.lock().unwrap_or_else(PoisonError::into_inner).commit(consumer, lanes, at_last);
        }
    }

    pub(super) fn store(&self, consumer: &BaseConsumer<Self>, reached: &TopicPartitionList) {
        if reached.count() == 0 || self.hops.is_some() {
            return;
        }
        if let Err(error) = consumer.store_offsets(reached) {
            // A partition that was lost meanwhile: its new owner reads again from what was committed.
            tracing::debug!(topic = %self.options.topic, %error, "offsets not stored");
        }
    }

    /// Where nobody says in time where to start, another client has to try: this one would never ask again.
    fn set_starts(&self, consumer: &BaseConsumer<Self>, assigned: &TopicPartitionList) {
        if assigned.count() == 0 || self.over.load(Ordering::Relaxed) {
            return;
        }
        let Options { topic, group_id, session_timeout, .. } = &self.options;
        let patience = match self.hops {
            Some(_) => STABLE_TIMEOUT,
            None => (*session_timeout).min(START_TIMEOUT),
        };
        if let Err(error) = start::set(consumer, topic, assigned, patience)
            && !consumer.assignment_lost()
        {
            let why = missing_right(&error, topic, Some(group_id), "Read").unwrap_or_else(|| error.to_string());
            let partitions = self.partitions(assigned);
            tracing::warn!(topic, ?partitions, why, "partitions were assigned, but where to start could not be read");
            self.over.store(true, Ordering::Relaxed);
        }
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<i32> {
        list.elements().iter().filter(|e| e.topic() == self.options.topic).map(|e| e.partition()).collect()
    }
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.connection.log(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.error(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = self.partitions(list);
                tracing::debug!(topic = %self.options.topic, ?partitions, "partitions assigned");
                self.host.member(true);
                self.joined.store(true, Ordering::Relaxed);
                self.set_starts(consumer, list);
                let mut lanes = self.lanes();
                for partition in partitions {
                    raw::split_off(consumer, &self.options.topic, partition);
                    let lane = self.host.open(partition);
                    lanes.insert(partition, Assigned::new(lane));
                }
            }
            Rebalance::Revoke(list) => {
                let partitions = self.partitions(list);
                tracing::debug!(topic = %self.options.topic, ?partitions, "partitions revoked");
                let taken: Vec<_> = {
                    let mut lanes = self.lanes();
                    partitions.iter().filter_map(|p| lanes.remove(p).map(|a| (*p, a))).collect()
                };
                if consumer.assignment_lost() {
                    tracing::warn!(topic = %self.options.topic, ?partitions, "membership lost; joining again");
                    // Fenced already, perhaps for what it has sent since it lost its place.
                    if consumer.client().fatal_error().is_none() || !raw::has_member_id(consumer) {
                        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                    }
                    self.lose(taken.into_iter().map(|(_, assigned)| assigned));
                } else {
                    let (reached, late) = self.drain(Some(consumer), taken);
                    self.store(consumer, &reached);
                    if !late.is_empty() {
                        // They are let go, not stopped: what runs keeps its lease and is settled, so that the next owner,
                        // who reads these events again, finds them busy and then finished.
                        tracing::warn!(
                            topic = %self.options.topic, partitions = late.len(), timeout = ?self.options.drain_timeout,
                            "handlers still run after the drain time; the partitions move on, what runs is finished here"
                        );
                    }
                }
            }
            Rebalance::Error(error) => tracing::warn!(topic = %self.options.topic, %error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // A partition that was paused when it was taken away would come back paused.
        if let Rebalance::Assign(list) = rebalance
            && list.count() > 0
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(topic = %self.options.topic, %error, "cannot resume new partitions");
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _offsets: &TopicPartitionList) {
        match result {
            Ok(()) => self.connection.is_up(),
            Err(error) => tracing::debug!(topic = %self.options.topic, %error, "offsets not committed; tried again"),
        }
    }
}
