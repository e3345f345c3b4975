//! A transactional producer for work that must happen once however often it is begun: records of several topics, and
//! offsets of a group, appear together or not at all, and whoever opens the same transactional id ends the one before.
//!
//! Invariants
//! - Commit and abort come only when every record has been answered: a commit that still has to flush takes 100 ms in
//!   rdkafka, and an abort that overtakes the first record is fatal in librdkafka. `message.timeout.ms` bounds the wait.
//! - A transaction that a broker gave up for its age is fatal to the producer (librdkafka knows no KIP-588), and a commit
//!   without an answer leaves open what happened: both are [`Error::Unknown`], and the next one to open the id knows.
//!
//! Every call blocks. Who uses it: the redrive of dead letters, and `consumer::hops`.

use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientContext, TopicPartitionList};

use super::{Properties, raw};
use crate::stage::ports::Outgoing;

/// What a killed process left open holds back readers of the same partitions at most this long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a record may go without an answer: less, so that it is our abort that ends a transaction.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// For opening, committing and aborting.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses the properties.
    #[error("kafka producer: {0}; check kafka.properties and kafka.producer_properties")]
    Config(#[source] KafkaError),
    /// No transactions with this cluster.
    #[error(
        "kafka: cannot open transactions as `{id}`: {source}; does this user have the right to write with that transactional id?"
    )]
    Open {
        /// Transactional id.
        id: String,
        /// The answer.
        source: KafkaError,
    },
    /// It takes them, and shows what was aborted.
    #[error("the embedded broker has no transactions")]
    Embedded,
    /// The brokers would commit offsets in transactions for members that have been replaced.
    #[error("transactional hops need a Kafka that knows ids of topics (2.8 or newer), and this one tells none of {0}")]
    TooOld(String),
    /// Another process has opened the same transactional id since.
    #[error("another process has taken over `{0}`; nothing of the last batch was written")]
    Fenced(String),
    /// A record is larger than its topic allows; nothing of the batch was written.
    #[error("a record is too large for its topic; raise its max.message.bytes")]
    TooLarge {
        /// Its place in the batch.
        place: usize,
    },
    /// The producer is of no more use, and whether the batch was written is not known.
    #[error("kafka: a transaction ended without a word: {0}")]
    Unknown(String),
    /// Nothing of the batch was written.
    #[error("kafka: transaction failed: {0}")]
    Aborted(String),
}

#[derive(Default)]
struct Context {
    answers: Mutex<Answers>,
}

/// What became of the records of the running transaction.
#[derive(Default)]
struct Answers {
    count: usize,
    /// The first that was refused.
    refused: Option<(usize, KafkaError)>,
}

impl Context {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        let mut answers = self.answers();
        answers.count += 1;
        let error = match result {
            Err((error, _)) => error.clone(),
            Ok(message) if message.offset() < 0 => KafkaError::MessageProduction(RDKafkaErrorCode::Unknown),
            Ok(_) => return,
        };
        answers.refused.get_or_insert((place, error));
    }
}

/// A producer that owns its transactional id until another opens it.
pub struct Transactions {
    producer: BaseProducer<Context>,
    id: String,
}

impl Transactions {
    /// Opens the id: what another process has begun under it is aborted, what it still tries fails. `batch_size`: as in
    /// [`super::producer::Options`].
    ///
    /// # Errors
    /// When Kafka does not answer or does not allow it.
    pub fn open(properties: &Properties, id: &str, batch_size: usize) -> Result<Self, Error> {
        let mut config = properties.base();
        config
            .set("compression.type", "lz4")
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", "100000000")
            // Whoever calls is blocked until a broker that was away is found again.
            .set("reconnect.backoff.max.ms", "2000");
        for (key, value) in &properties.producer {
            config.set(key, value);
        }
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "1")
            .set("batch.size", batch_size.to_string())
            // One request at a time: of several, librdkafka takes a refused one for written when a later one was
            // (see `super::producer`).
            .set("max.in.flight.requests.per.connection", "1")
            .set("transactional.id", id)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            .set("message.timeout.ms", MESSAGE_TIMEOUT.as_millis().to_string());
        let producer: BaseProducer<Context> =
            BaseProducer::from_config_and_context(&config, Context::default()).map_err(Error::Config)?;
        producer.init_transactions(TIMEOUT).map_err(|source| Error::Open { id: id.to_owned(), source })?;
        Ok(Self { producer, id: id.to_owned() })
    }

    /// Whether hops can go in transactions: this user may open ids like this one, and the brokers fence members of earlier
    /// generations (since 2.5; librdkafka does not tell, but it tells whether topics have ids, since 2.8).
    ///
    /// # Errors
    /// If not, or when Kafka does not answer.
    pub fn check(properties: &Properties, id: &str, topic: &str) -> Result<(), Error> {
        let opened = Self::open(properties, id, super::producer::Options::default().batch_size)?;
        let name = CString::new(topic).map_err(|_| Error::TooOld(topic.to_owned()))?;
        match raw::topic_id(opened.producer.client(), &name, TIMEOUT) {
            Some(_) => Ok(()),
            None => Err(Error::TooOld(topic.to_owned())),
        }
    }

    /// Writes these records in one transaction, and with them a group's offsets, where its member's metadata is given.
    ///
    /// # Errors
    /// Then none of them was written, but for [`Error::Unknown`]. [`Error::Aborted`] may be tried again.
    pub fn write(
        &self,
        records: &[&Outgoing],
        offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
    ) -> Result<(), Error> {
        *self.producer.context().answers() = Answers::default();
        self.producer.begin_transaction().map_err(|error| self.lost(&error))?;
        if let Err(error) = self.fill(records, offsets) {
            let refused = self.producer.context().answers().refused.take();
            let too_large = |(place, error): &(usize, KafkaError)| {
                let is_it = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
                is_it.then_some(Error::TooLarge { place: *place })
            };
            let why = match refused.as_ref().and_then(too_large) {
                Some(too_large) => too_large,
                None => self.error(&refused.map_or(error, |(_, error)| error)),
            };
            return Err(self.abort(why));
        }
        patiently(|| self.producer.commit_transaction(TIMEOUT)).map_err(|error| match &error {
            KafkaError::Transaction(refused) if refused.txn_requires_abort() => {
                self.abort(Error::Aborted(error.to_string()))
            }
            _ => self.lost(&error),
        })
    }

    fn abort(&self, why: Error) -> Error {
        match why {
            Error::Fenced(_) | Error::Unknown(_) => why,
            _ => patiently(|| self.producer.abort_transaction(TIMEOUT)).map_or_else(|e| self.lost(&e), |()| why),
        }
    }

    /// The producer is of no more use.
    fn lost(&self, error: &KafkaError) -> Error {
        if is_fenced(error) { Error::Fenced(self.id.clone()) } else { Error::Unknown(error.to_string()) }
    }

    /// Everything that a transaction holds; comes back when each record has its answer.
    fn fill(
        &self,
        records: &[&Outgoing],
        offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
    ) -> Result<(), KafkaError> {
        let mut handed_over = 0;
        let sent: Result<(), KafkaError> = records.iter().enumerate().try_for_each(|(place, record)| {
            self.send(place, record)?;
            handed_over += 1;
            Ok(())
        });
        // Each is answered within its own time-out.
        while self.producer.context().answers().count < handed_over {
            self.producer.poll(Duration::ZERO);
            // Not in `poll`, which spins through the last millisecond.
            std::thread::sleep(Duration::from_micros(300));
        }
        sent?;
        if let Some((_, refused)) = &self.producer.context().answers().refused {
            return Err(refused.clone());
        }
        match offsets {
            Some((offsets, member)) => {
                patiently(|| self.producer.send_offsets_to_transaction(offsets, member, MESSAGE_TIMEOUT))
            }
            None => Ok(()),
        }
    }

    fn send(&self, place: usize, record: &Outgoing) -> Result<(), KafkaError> {
        let mut native: BaseRecord<'_, [u8], [u8], usize> = BaseRecord::with_opaque_to(&record.topic, place);
        native.partition = record.partition;
        native.key = record.key.as_deref();
        native.payload = record.value.as_deref();
        native.headers = Some(raw::to_native(&record.headers));
        let begun = Instant::now();
        loop {
            match self.producer.send(native) {
                Ok(()) => return Ok(()),
                Err((error, again)) => {
                    let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    if !full || begun.elapsed() > TIMEOUT {
                        self.producer.context().answers().refused.get_or_insert((place, error.clone()));
                        return Err(error);
                    }
                    self.producer.poll(Duration::from_millis(10));
                    native = again;
                }
            }
        }
    }

    /// Of a transaction of which nothing was written.
    fn error(&self, error: &KafkaError) -> Error {
        let is_fatal = is_fenced(error) || self.producer.client().fatal_error().is_some();
        if is_fatal { self.lost(error) } else { Error::Aborted(error.to_string()) }
    }
}

/// Calls again what only took too long.
fn patiently(mut call: impl FnMut() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    let begun = Instant::now();
    loop {
        match call() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && begun.elapsed() < TIMEOUT => {}
            other => return other,
        }
    }
}

fn is_fenced(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    let code = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    };
    matches!(code, Some(Fenced | ProducerFenced | InvalidProducerEpoch))
}
