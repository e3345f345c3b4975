//! The one idempotent producer of a process: `acks=all`, acknowledgements routed to whoever published.
//!
//! Invariants
//! - Every record handed over is answered exactly once, by the poll thread or at once.
//! - An acknowledgement names the record's offset. librdkafka also reports records as delivered of which it only knows
//!   that a later batch of the partition was taken; a broker that does not know the producer yet takes any batch first,
//!   so the earlier one may be missing (refused for want of a leader or of replicas). Such a report, which has no
//!   offset, counts as none.
//! - A delivery error means that the outcome is unknown. A fatal error of the idempotent producer ends it: it is
//!   rebuilt here, its records are answered with an error, and the lanes publish them again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::client::{Connection, Properties, missing_right};
use super::raw;
use crate::stage::ports::{AckSink, Outgoing, PublishError, Publisher};

/// The producer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses the properties.
    #[error("kafka producer: {0}; check kafka.properties and kafka.producer_properties")]
    Config(#[source] KafkaError),
    /// No thread.
    #[error("kafka producer: no thread for it: {0}")]
    Thread(#[source] std::io::Error),
}

/// Settings of the producer.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a record may go unacknowledged before it is reported as failed. At least 120 s keeps the idempotent
    /// producer out of trouble.
    pub message_timeout: Duration,
    /// No batch may be larger, or records that are small enough would be refused with a large neighbour: the smallest
    /// `max.message.bytes` of the target topics.
    pub batch_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { message_timeout: Duration::from_secs(120), batch_size: 1_000_000 }
    }
}

/// Who waits for an acknowledgement.
struct Waiter {
    acks: Arc<dyn AckSink>,
    ticket: u64,
}

struct Context {
    connection: Connection,
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.connection.log(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.error(&error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Waiter>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Box<Waiter>) {
        let result = match result {
            // Told from the success of a later batch: see the module's invariants.
            Ok(message) if message.offset() < 0 => Err(PublishError::Unacknowledged(
                "only a later record of the partition was acknowledged, which proves nothing of this one".into(),
            )),
            Ok(_) => {
                self.connection.is_up();
                Ok(())
            }
            Err((error, message)) => Err(publish_error(error, message.topic())),
        };
        waiter.acks.acknowledged(waiter.ticket, result);
    }
}

fn publish_error(error: &KafkaError, topic: &str) -> PublishError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => PublishError::TooLarge,
        _ => PublishError::Unacknowledged(
            missing_right(error, topic, None, "Write").unwrap_or_else(|| error.to_string()),
        ),
    }
}

/// The one idempotent producer of a process.
pub struct KafkaPublisher {
    properties: Properties,
    options: Options,
    current: RwLock<Arc<BaseProducer<Context>>>,
    poller: Arc<Poller>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Poller {
    /// Producers to be polled: the current one, and fatally failed ones until all their records are answered.
    producers: Mutex<Vec<Arc<BaseProducer<Context>>>>,
    stop: AtomicBool,
}

impl KafkaPublisher {
    /// A producer; connects in the background.
    ///
    /// # Errors
    /// When librdkafka refuses the properties, or no thread can be had.
    pub fn new(properties: Properties, options: Options) -> Result<Self, Error> {
        let producer = Arc::new(build(&properties, &options)?);
        let poller =
            Arc::new(Poller { producers: Mutex::new(vec![Arc::clone(&producer)]), stop: AtomicBool::new(false) });
        let thread = std::thread::Builder::new()
            .name("kafka-producer".into())
            .spawn({
                let poller = Arc::clone(&poller);
                move || poller.run()
            })
            .map_err(Error::Thread)?;
        Ok(Self { properties, options, current: RwLock::new(producer), poller, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until everything handed over was answered, at most `timeout`; whether it was.
    pub fn flush(&self, timeout: Duration) -> bool {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        current.flush(timeout).is_ok()
    }

    fn rebuild(&self, failed: &Arc<BaseProducer<Context>>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, failed) {
            return; // somebody else already did
        }
        let reason = failed.client().fatal_error().map(|(_, reason)| reason).unwrap_or_default();
        match build(&self.properties, &self.options) {
            Ok(fresh) => {
                tracing::warn!(
                    reason,
                    "the idempotent producer failed for good and was rebuilt; its records are published again"
                );
                let fresh = Arc::new(fresh);
                self.poller.producers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&fresh));
                *current = fresh;
            }
            Err(error) => tracing::error!(%error, reason, "the idempotent producer failed and cannot be rebuilt"),
        }
    }
}

fn build(properties: &Properties, options: &Options) -> Result<BaseProducer<Context>, Error> {
    let mut config = properties.base();
    config
        // 10 was tried: fewer requests, but a lane's window is full of events that linger, and fewer
        // events a second come through (docs/performance.md).
        .set("linger.ms", "2")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", "262144")
        .set("message.max.bytes", "100000000")
        .set("batch.size", options.batch_size.to_string());
    for (key, value) in &properties.producer {
        config.set(key, value);
    }
    // The promise rests on these; the configuration refuses them from the user.
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", options.message_timeout.as_millis().to_string());
    let context = Context { connection: Connection::new("producer") };
    BaseProducer::from_config_and_context(&config, context).map_err(Error::Config)
}

/// How long one poll waits for a delivery report, and a drop for the poll. rdkafka spins through the last millisecond of
/// each: at 100 ms that alone was 0.6 % of a core in an idle process.
const POLL: Duration = Duration::from_millis(250);

impl Poller {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let producers = self.producers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some((last, older)) = producers.split_last() else { return };
            for producer in older {
                producer.poll(Duration::ZERO);
            }
            if !older.is_empty() {
                let mut list = self.producers.lock().unwrap_or_else(PoisonError::into_inner);
                list.retain(|p| Arc::ptr_eq(p, last) || p.in_flight_count() > 0);
            }
            last.poll(POLL);
        }
    }
}

impl Publisher for KafkaPublisher {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let producer = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let waiter = Box::new(Waiter { acks: Arc::clone(acks), ticket });
        let mut native: BaseRecord<'_, [u8], [u8], Box<Waiter>> = BaseRecord::with_opaque_to(&record.topic, waiter);
        native.partition = record.partition;
        native.key = record.key.as_deref();
        native.payload = record.value.as_deref();
        native.headers = Some(raw::to_native(&record.headers));
        if let Err((error, native)) = producer.send(native) {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                let failed = Arc::clone(&producer);
                drop(producer);
                self.rebuild(&failed);
            }
            let waiter = native.delivery_opaque;
            waiter.acks.acknowledged(waiter.ticket, Err(publish_error(&error, &record.topic)));
        }
    }
}

impl Drop for KafkaPublisher {
    fn drop(&mut self) {
        self.poller.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
            && thread.join().is_err()
        {
            tracing::error!("the producer's poll thread panicked, which is a bug");
        }
    }
}

#[cfg(test)]
mod tests;
