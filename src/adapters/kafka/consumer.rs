//! One poll thread per stage: takes records from Kafka, hands them to the lanes, stores their watermarks.
//!
//! Invariants
//! - Polling never stops while the stage runs, whatever the lanes do: no wait, however long, costs the membership.
//! - Each partition has a queue of its own, from which its lane is given what it has room for: a full lane holds up
//!   no other, and what was fetched for a busy one is not thrown away.
//! - Only offsets that a lane of the current assignment calls done are stored, with `store_offsets` (the watermark
//!   itself; rdkafka's `store_offset` would add one). librdkafka commits what is stored, every second, on revoke and
//!   on close.
//! - On revoke the lanes drain before the partition is given up.
//! - A member that lost its place is not fenced by what its own client still sent without it: it joins again.

mod hops;
mod member;
mod start;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;

use self::hops::Hops;
use self::member::Context;
use super::client::{Properties, missing_right};
use super::own::own;
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::lanes::{LaneCommand, LaneHandle, LaneHost};
use crate::stage::record::Record;

/// Why a stage's consumer ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses the properties.
    #[error("kafka consumer of {topic}: {source}; check kafka.properties and kafka.consumer_properties")]
    Config {
        /// Topic.
        topic: String,
        /// What it says.
        source: KafkaError,
    },
    /// Another member of the group has the same `instance`.
    #[error("kafka consumer of {topic}: fenced: another process runs with the same `instance`; give each its own")]
    Fenced {
        /// Topic.
        topic: String,
    },
    /// It was stopped, and handlers were still running after the drain time. They were cancelled; nothing is lost, their
    /// events run again.
    #[error(
        "{topic}: handlers of {partitions} partition(s) were still running after the drain time of {timeout:?} and were \
         cancelled; their events run again (raise kafka.drain_timeout, or lower handler_timeout)"
    )]
    Undrained {
        /// Topic.
        topic: String,
        /// How many partitions had running handlers.
        partitions: usize,
        /// The drain time.
        timeout: Duration,
    },
    /// The client cannot go on.
    #[error("kafka consumer of {topic}: {reason}")]
    Fatal {
        /// Topic.
        topic: String,
        /// What librdkafka says, or which task of ours is gone.
        reason: String,
    },
}

/// Settings of a stage's consumer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Topic of the stage.
    pub topic: String,
    /// Consumer group of the stage.
    pub group_id: String,
    /// Static member id (`instance` and the stage), `None` for dynamic membership.
    pub group_instance_id: Option<String>,
    /// After this much silence the group gives the partitions to others.
    pub session_timeout: Duration,
    /// How long running handlers may go on when a partition is taken away or the stage ends.
    pub drain_timeout: Duration,
    /// How long records wait in this stage: then little is fetched ahead, and without hurry.
    pub delay: Option<Duration>,
    /// How hops and offsets are committed in transactions; `None`: the client commits what is stored.
    pub transactional: Option<Transactional>,
}

/// How hops and offsets are committed in transactions.
#[derive(Clone, Debug)]
pub struct Transactional {
    /// Under which id; what its last owner left open is aborted.
    pub id: String,
    /// As the producer's.
    pub batch_size: usize,
}

/// Most records taken from one queue before they are handed over, and most bytes.
const BATCH: usize = 500;
const BATCH_BYTES: usize = 1 << 20;
/// Longest wait for a record or an event, so that pauses and watermarks are seen to.
const POLL: Duration = STORE_EVERY;
/// How long a lane may have no room before its partition is paused. A pause gives back the memory of what the client
/// has fetched ahead, which costs a new fetch: worth it for a lane that is stuck, or has all that it can hold until
/// something falls due; not for one that is busy, or takes its next portion in a moment.
const FULL: Duration = Duration::from_secs(2);
/// A lane whose next event falls due within this time will have room soon, and what it then takes in must be here.
const SOON: Duration = Duration::from_secs(1);
/// How long a fetch may wait at the broker: a partition that was not in it, because its queue was full, waits as long.
const FETCH_WAIT: Duration = Duration::from_millis(50);
/// How often watermarks are stored; librdkafka commits them every second.
const STORE_EVERY: Duration = Duration::from_millis(100);

/// A member learns of a rebalance by its next heartbeat, and until all have, the partitions that move stand still: so
/// heartbeats are frequent even where the session is long.
fn heartbeat(session_timeout: Duration) -> Duration {
    (session_timeout / 5).clamp(Duration::from_millis(1), Duration::from_secs(1))
}

struct Assigned {
    lane: LaneHandle,
    paused: bool,
    /// The position that was stored or, in transactions, committed last.
    stored: i64,
    /// Since when its lane has had no room.
    full_since: Option<Instant>,
    /// The client's queue of this partition, from the first look at it on.
    queue: Option<OwnQueue>,
    /// Polled and not yet handed over. Kept with the assignment: a record of an earlier one must not reach a later
    /// lane, whose watermark would then pass records that are still to come.
    batch: Vec<Record>,
}

struct OwnQueue {
    queue: PartitionQueue<Context>,
    /// False once it was seen empty and nothing has come since: among hundreds of partitions only a few are looked into.
    filled: Arc<AtomicBool>,
}

impl OwnQueue {
    /// A queue that wakes the calling thread when it is no longer empty.
    fn new(mut queue: PartitionQueue<Context>) -> Self {
        // What was there before the callback rings for nobody.
        let filled = Arc::new(AtomicBool::new(true));
        let (rings, poller) = (Arc::clone(&filled), std::thread::current());
        queue.set_nonempty_callback(move || {
            rings.store(true, Ordering::SeqCst);
            poller.unpark();
        });
        Self { queue, filled }
    }
}

impl Assigned {
    fn new(lane: LaneHandle) -> Self {
        Self { lane, paused: false, stored: -1, full_since: None, queue: None, batch: Vec::new() }
    }

    /// Whether its lane has had no room for long, and will not have any soon.
    fn wants_pause(&self) -> bool {
        self.full_since.is_some_and(|since| since.elapsed() >= FULL)
            && self.lane.next_due().is_none_or(|due| due > SystemClock.now().wall + SOON)
    }
}

/// A stage's consumer. [`StageConsumer::run`] is its poll thread.
pub struct StageConsumer {
    consumer: Arc<BaseConsumer<Context>>,
    config: ClientConfig,
    options: Options,
}

impl StageConsumer {
    /// A consumer that has subscribed to its topic; joins the group when it runs.
    ///
    /// # Errors
    /// When librdkafka refuses the properties.
    pub fn new(properties: &Properties, options: Options, host: Arc<dyn LaneHost>) -> Result<Self, Error> {
        let mut config = properties.base();
        config
            .set("group.id", &options.group_id)
            .set("session.timeout.ms", options.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", heartbeat(options.session_timeout).as_millis().to_string())
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.wait.max.ms", FETCH_WAIT.as_millis().to_string())
            .set("topic.metadata.refresh.interval.ms", "60000");
        // Fetched ahead for each partition: enough to keep its lane busy, and little memory with hundreds of them.
        config.set("queued.min.messages", "2000").set("queued.max.messages.kbytes", "1024");
        if let Some(delay) = options.delay {
            // Nothing is due sooner than that, so the broker may collect what comes: one answer instead of one an event.
            let wait = (delay / 4).clamp(Duration::from_millis(1), FETCH_WAIT);
            config.set("fetch.min.bytes", "32768").set("fetch.wait.max.ms", wait.as_millis().to_string());
            // What is not due yet is held by the lane; what was fetched beyond its window is thrown away at a pause.
            config.set("fetch.message.max.bytes", "65536");
        }
        for (key, value) in &properties.consumer {
            config.set(key, value);
        }
        // The promise rests on these; the configuration refuses them from the user.
        config
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "1000")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.partition.eof", "false");
        if let Some(instance) = &options.group_instance_id {
            config.set("group.instance.id", instance);
        }
        let hops = options.transactional.clone().map(|transactional| {
            config.set("enable.auto.commit", "false").set("isolation.level", "read_committed");
            Arc::new(Mutex::new(Hops::new(properties.clone(), transactional, options.topic.clone())))
        });
        Self::connect(config, options, host, hops)
    }

    fn connect(
        config: ClientConfig,
        options: Options,
        host: Arc<dyn LaneHost>,
        hops: Option<Arc<Mutex<Hops>>>,
    ) -> Result<Self, Error> {
        let context = Context::new(options.clone(), host, hops);
        let config_error = |source| Error::Config { topic: options.topic.clone(), source };
        let consumer: BaseConsumer<Context> =
            BaseConsumer::from_config_and_context(&config, context).map_err(config_error)?;
        consumer.subscribe(&[&options.topic]).map_err(config_error)?;
        Ok(Self { consumer: Arc::new(consumer), config, options })
    }

    /// The same member in a new client, the old one is of no more use.
    fn join_anew(self, why: &str) -> Result<Self, Error> {
        let Self { consumer, config, options } = self;
        tracing::warn!(topic = %options.topic, why, "joining with a new client");
        let context = Arc::clone(consumer.context());
        context.over.store(true, Ordering::Relaxed);
        // With the queues of its partitions goes all that keeps the client.
        let lanes = std::mem::take(&mut *context.lanes());
        context.lose(lanes.into_values());
        drop(consumer);
        Self::connect(config, options, Arc::clone(&context.host), context.hops.clone())
    }

    /// Polls until `stop` is set, then drains the lanes, stores what they reached and leaves the group.
    ///
    /// # Errors
    /// When the client cannot go on: fenced by another member, a fatal error, a lane that ended by itself. The lanes are
    /// drained all the same, so that what runs here is settled and not executed again by the next owner; nothing is
    /// stored then. Also when handlers outlast the drain time.
    pub fn run(mut self, stop: &AtomicBool, alive: impl Fn()) -> Result<(), Error> {
        let (context, result) = loop {
            let context = Arc::clone(self.consumer.context());
            match self.poll(&context, stop, &alive) {
                Err(Error::Fenced { .. }) if context.is_fenced_by_itself() => {
                    self = self.join_anew("fenced for what was sent without a membership")?;
                }
                Ok(()) if !stop.load(Ordering::Relaxed) => self = self.join_anew("partitions could not be started")?,
                result => break (context, result),
            }
        };
        context.over.store(true, Ordering::Relaxed);
        let lanes: Vec<_> = context.lanes().drain().collect();
        let (reached, late) = context.drain(result.is_ok().then_some(&*self.consumer), lanes);
        if result.is_ok() {
            context.store(&self.consumer, &reached);
        }
        // Dropping the consumer closes it: what is stored is committed, the group is left.
        for assigned in &late {
            assigned.lane.command(LaneCommand::Stop);
        }
        match result {
            Ok(()) if !late.is_empty() => Err(Error::Undrained {
                topic: self.options.topic.clone(),
                partitions: late.len(),
                timeout: self.options.drain_timeout,
            }),
            result => result,
        }
    }

    /// Until `stop` is set, or this client is of no more use.
    fn poll(&mut self, context: &Context, stop: &AtomicBool, alive: impl Fn()) -> Result<(), Error> {
        // Nothing is assigned yet, so no queue of a partition holds the client.
        if let Some(consumer) = Arc::get_mut(&mut self.consumer) {
            let poller = std::thread::current();
            consumer.set_nonempty_callback(move || poller.unpark());
        }
        let mut last_store = Instant::now();
        while !stop.load(Ordering::Relaxed) && !context.over.load(Ordering::Relaxed) {
            alive();
            self.serve_events(context)?;
            let mut lanes = context.lanes();
            let mut idle = true;
            for (partition, assigned) in lanes.iter_mut() {
                idle &= self.take(*partition, assigned)?;
                if !assigned.batch.is_empty() {
                    context.connection.is_up();
                    assigned.lane.hand_over(std::mem::take(&mut assigned.batch));
                }
            }
            self.see_to_pauses(&mut lanes);
            // It panicked. Its partition would stand still for ever with a member that looks healthy; another can go on.
            if let Some((partition, _)) = lanes.iter().find(|(_, assigned)| assigned.lane.ended()) {
                let reason =
                    format!("the task of partition {partition} panicked; nothing is lost, start the stage again");
                return Err(Error::Fatal { topic: self.options.topic.clone(), reason });
            }
            context.commit(&self.consumer, lanes.iter_mut().map(|(p, assigned)| (*p, assigned)), false);
            if last_store.elapsed() >= STORE_EVERY && context.hops.is_none() {
                last_store = Instant::now();
                self.store_watermarks(context, &mut lanes);
            }
            drop(lanes);
            if idle {
                // A queue that is no longer empty, or a lane that has room again, ends the wait.
                std::thread::park_timeout(POLL);
            }
        }
        Ok(())
    }

    /// Rebalances, commits, errors: what comes through the queue that is nobody's.
    fn serve_events(&self, context: &Context) -> Result<(), Error> {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            match event {
                Ok(message) => {
                    if let Some(assigned) = context.lanes().get_mut(&message.partition()) {
                        assigned.batch.push(own(&message));
                    }
                }
                Err(error) => self.check(&error)?,
            }
        }
        Ok(())
    }

    /// Takes out of the partition's queue what its lane has room for. Whether nothing is left to be taken now.
    fn take(&self, partition: i32, assigned: &mut Assigned) -> Result<bool, Error> {
        let own_queue = match &mut assigned.queue {
            Some(own_queue) => own_queue,
            none => {
                let Some(queue) = self.consumer.split_partition_queue(&self.options.topic, partition) else {
                    return Ok(true);
                };
                none.insert(OwnQueue::new(queue))
            }
        };
        let room = assigned.lane.room();
        if room == 0 {
            assigned.full_since.get_or_insert_with(Instant::now);
            return Ok(true);
        }
        assigned.full_since = None;
        if !own_queue.filled.swap(false, Ordering::SeqCst) {
            return Ok(true);
        }
        let mut bytes = 0;
        for _ in 0..room.min(BATCH) {
            match own_queue.queue.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    let record = own(&message);
                    bytes += record.value.as_ref().map_or(0, Bytes::len);
                    assigned.batch.push(record);
                }
                Some(Err(error)) => self.check(&error)?,
                None => return Ok(true),
            }
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        own_queue.filled.store(true, Ordering::SeqCst);
        Ok(false)
    }

    fn see_to_pauses(&self, lanes: &mut HashMap<i32, Assigned>) {
        let (mut pause, mut resume) = (TopicPartitionList::new(), TopicPartitionList::new());
        for (partition, assigned) in lanes.iter_mut() {
            let wanted = assigned.wants_pause();
            if wanted != assigned.paused {
                assigned.paused = wanted;
                let list = if wanted { &mut pause } else { &mut resume };
                list.add_partition(&self.options.topic, *partition);
            }
        }
        if pause.count() > 0
            && let Err(error) = self.consumer.pause(&pause)
        {
            tracing::warn!(topic = %self.options.topic, %error, "cannot pause; memory may grow");
        }
        if resume.count() > 0
            && let Err(error) = self.consumer.resume(&resume)
        {
            tracing::error!(topic = %self.options.topic, %error, "cannot resume a partition");
        }
    }

    fn store_watermarks(&self, context: &Context, lanes: &mut HashMap<i32, Assigned>) {
        let mut reached = TopicPartitionList::new();
        for (partition, assigned) in lanes.iter_mut() {
            if let Some(position) = assigned.lane.position()
                && position != assigned.stored
            {
                assigned.stored = position;
                context.add(&mut reached, *partition, position);
            }
        }
        context.store(&self.consumer, &reached);
    }

    fn check(&self, error: &KafkaError) -> Result<(), Error> {
        let topic = || self.options.topic.clone();
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::FencedInstanceId) => return Err(Error::Fenced { topic: topic() }),
            Some(RDKafkaErrorCode::PollExceeded) => {
                tracing::error!(topic = %self.options.topic, "max.poll.interval.ms exceeded: the poll thread was stopped");
            }
            // What librdkafka mends by itself, and says itself where it matters.
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve,
            ) => tracing::debug!(topic = %self.options.topic, %error, "poll"),
            // A right that was taken away, a topic that was deleted, a batch that cannot be read: somebody should know.
            _ => match missing_right(error, &self.options.topic, Some(&self.options.group_id), "Read") {
                Some(why) => {
                    tracing::warn!(topic = %self.options.topic, why, "nothing is consumed until this is given")
                }
                None => {
                    tracing::warn!(topic = %self.options.topic, %error, "the consumer reports an error and goes on");
                }
            },
        }
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            let reason = match self.consumer.client().fatal_error() {
                Some((RDKafkaErrorCode::FencedInstanceId, _)) => return Err(Error::Fenced { topic: topic() }),
                Some((_, reason)) => reason,
                None => error.to_string(),
            };
            return Err(Error::Fatal { topic: topic(), reason });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
