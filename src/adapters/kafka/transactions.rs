//! A transactional producer for work that must happen once however often it is begun: records of several topics
//! appear together or not at all, and whoever opens the same transactional id ends the one before.
//!
//! Every call blocks. Not for the stages: see [`super::producer`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::{Properties, raw};
use crate::stage::ports::Outgoing;

/// What a killed process left open holds back readers of the same partitions at most this long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
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
    /// Another process has opened the same transactional id since.
    #[error("another process has taken over `{0}`; nothing of the last batch was written")]
    Fenced(String),
    /// A record is larger than its topic allows; nothing of the batch was written.
    #[error("a record is too large for its topic; raise its max.message.bytes")]
    TooLarge,
    /// Nothing of the batch was written.
    #[error("kafka: transaction failed: {0}")]
    Aborted(String),
}

#[derive(Default)]
struct Context {
    /// The first record of the running transaction that was refused.
    refused: Mutex<Option<KafkaError>>,
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
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let error = match result {
            Err((error, _)) => error.clone(),
            Ok(message) if message.offset() < 0 => KafkaError::MessageProduction(RDKafkaErrorCode::Unknown),
            Ok(_) => return,
        };
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// A producer that owns its transactional id until another opens it.
pub struct Transactions {
    producer: BaseProducer<Context>,
    id: String,
}

impl Transactions {
    /// Opens the id: what another process has begun under it is aborted, what it still tries fails.
    ///
    /// # Errors
    /// When Kafka does not answer or does not allow it.
    pub fn open(properties: &Properties, id: &str) -> Result<Self, Error> {
        let mut config = properties.base();
        config
            .set("compression.type", "lz4")
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", "100000000");
        for (key, value) in &properties.producer {
            config.set(key, value);
        }
        let timeout = TRANSACTION_TIMEOUT.as_millis().to_string();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "1")
            // One request at a time: of several, librdkafka takes a refused one for written when a later one was
            // (see `super::producer`).
            .set("max.in.flight.requests.per.connection", "1")
            .set("transactional.id", id)
            .set("transaction.timeout.ms", &timeout)
            .set("message.timeout.ms", &timeout);
        let producer: BaseProducer<Context> =
            BaseProducer::from_config_and_context(&config, Context::default()).map_err(Error::Config)?;
        producer.init_transactions(TIMEOUT).map_err(|source| Error::Open { id: id.to_owned(), source })?;
        Ok(Self { producer, id: id.to_owned() })
    }

    /// Writes these records in one transaction.
    ///
    /// # Errors
    /// Then none of them was written. [`Error::Aborted`] may be tried again.
    pub fn write(&self, records: &[Outgoing]) -> Result<(), Error> {
        *self.producer.context().refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.producer.begin_transaction().map_err(|e| self.error(e))?;
        let sent = records.iter().try_for_each(|record| self.send(record));
        let committed = match sent {
            Ok(()) => self.commit(),
            Err(error) => Err(error),
        };
        let Err(error) = committed else { return Ok(()) };
        let refused = self.producer.context().refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        let error = self.error(refused.filter(|_| !is_fenced(&error)).unwrap_or(error));
        if !matches!(error, Error::Fenced(_)) {
            self.producer.abort_transaction(TIMEOUT).map_err(|e| self.error(e))?;
        }
        Err(error)
    }

    fn send(&self, record: &Outgoing) -> Result<(), KafkaError> {
        let mut native: BaseRecord<'_, [u8], [u8], ()> = BaseRecord::to(&record.topic);
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
                        return Err(error);
                    }
                    self.producer.poll(Duration::from_millis(10));
                    native = again;
                }
            }
        }
    }

    /// Commits when every record has an offset of its own.
    fn commit(&self) -> Result<(), KafkaError> {
        self.producer.flush(TIMEOUT)?;
        if let Some(refused) = &*self.producer.context().refused.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(refused.clone());
        }
        let begun = Instant::now();
        loop {
            match self.producer.commit_transaction(TIMEOUT) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && begun.elapsed() < TIMEOUT => {}
                other => return other,
            }
        }
    }

    fn error(&self, error: KafkaError) -> Error {
        if is_fenced(&error) {
            return Error::Fenced(self.id.clone());
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => Error::TooLarge,
            _ => Error::Aborted(error.to_string()),
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
