//! The producer behind `pipeline produce`: its settings, its acknowledgements, and the wait for broker and topic.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::util::Timeout;

use super::publish::{EVENT_ID, Error, Failure, NO_RIGHT, TRACEPARENT};
use crate::adapters::kafka::remedy_of_refusal;
use crate::ladder::event::Timestamp;
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::{Span, SpanKind, TraceContext, Tracer};

/// `client.id`, unless the properties name another.
pub(crate) const CLIENT_ID: &str = "retry-ladder-produce";

/// A topic must stay unknown this long: a new one takes a moment to be known to every broker.
const TOPIC_GRACE: Duration = Duration::from_secs(2);

/// Counts acknowledgements on the producer's side.
#[derive(Debug, Default)]
pub(super) struct Acks {
    pub(super) acknowledged: AtomicU64,
    /// Taken out by the publisher as it polls.
    pub(super) failures: Mutex<Vec<Failure>>,
    last_error: Mutex<Option<String>>,
    spans: Option<Spans>,
}

/// Tells the first span of each traced event.
#[derive(Debug)]
pub(super) struct Spans {
    pub(super) tracer: Arc<dyn Tracer>,
    pub(super) topic: Arc<str>,
}

impl Spans {
    /// From the handing over to the acknowledgement, or to its failure. All that is to be known stands in the record.
    fn sent(&self, message: &BorrowedMessage<'_>, error: Option<&KafkaError>) {
        let header = |name| message.headers()?.iter().find(|h| h.key == name)?.value;
        let Some(context) = header(TRACEPARENT).and_then(TraceContext::parse).filter(|c| c.is_sampled()) else {
            return;
        };
        let end = SystemClock.now().wall;
        let start = message.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok());
        let event_id = header(EVENT_ID).map(String::from_utf8_lossy).unwrap_or_default();
        let error = error.map(not_acknowledged);
        self.tracer.write(&Span {
            kind: SpanKind::Send,
            context,
            parent: None,
            start: start.map_or(end, |ms| Timestamp::from_millis(ms).min(end)),
            end,
            topic: &self.topic,
            partition: Some(message.partition()).filter(|partition| *partition >= 0),
            offset: Some(message.offset()).filter(|offset| *offset >= 0 && error.is_none()),
            key: message.key().map(Bytes::copy_from_slice).as_ref(),
            event_id: &event_id.into(),
            stage: None,
            due: None,
            error: error.as_deref().map(|text| ("not_acknowledged", text)),
            action: None,
        });
    }
}

impl ClientContext for Acks {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down follows the reason why: keep the reason.
        if last.is_none() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *last = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Acks {
    /// The line of the JSON input, 0 for generated events.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        if let Some(spans) = &self.spans {
            match result {
                Ok(message) => spans.sent(message, None),
                Err((error, message)) => spans.sent(message, Some(error)),
            }
        }
        match result {
            Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::Release);
            }
            Err((error, message)) => {
                let event_id = message
                    .headers()
                    .and_then(|headers| headers.iter().find(|h| h.key == EVENT_ID).and_then(|h| h.value))
                    .map(|id| String::from_utf8_lossy(id).into_owned());
                let line = (line > 0).then_some(line as u64);
                let failure = Failure { line, event_id, error: not_acknowledged(error) };
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
        }
    }
}

/// A delivery error in the user's terms.
pub(super) fn not_acknowledged(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            "too large for the topic: raise its max.message.bytes or make the event smaller".to_owned()
        }
        Some(RDKafkaErrorCode::MessageTimedOut) => {
            "not acknowledged in time: the broker is down or too few replicas are in sync".to_owned()
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => "this user may not write to the topic".to_owned(),
        _ => format!("not acknowledged: {error}"),
    }
}

/// A producer; nothing is sent yet.
pub(super) fn connect(
    brokers: &str,
    properties: &BTreeMap<String, String>,
    spans: Option<Spans>,
) -> Result<BaseProducer<Acks>, Error> {
    let mut config = ClientConfig::new();
    config
        .set("client.id", CLIENT_ID)
        .set("compression.type", "lz4")
        // The topic's limit decides, not the client's.
        .set("message.max.bytes", "16777216")
        .set("message.timeout.ms", "120000");
    for (name, value) in properties {
        config.set(name, value);
    }
    config
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        // librdkafka takes the success of a later batch for that of an earlier one, which a broker that meets the
        // producer for the first time may have refused: what is told as acknowledged would be lost.
        .set("max.in.flight.requests.per.connection", "1")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        // A misspelt topic must be told, not made.
        .set("allow.auto.create.topics", "false");
    config.create_with_context(Acks { spans, ..Acks::default() }).map_err(|e| Error::Config(format!("kafka: {e}")))
}

/// Waits for a broker and asks it for the topic's partitions; `stop` ends the wait.
pub(super) fn topic_partitions(
    producer: &BaseProducer<Acks>,
    brokers: &str,
    topic: &str,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<u32, Error> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(100);
    let mut unknown_since = None;
    loop {
        let left = patience.saturating_sub(started.elapsed());
        let answer = metadata(producer.client(), topic, left.min(Duration::from_secs(2)));
        // Long enough to take in all that the client tells about its connections.
        producer.poll(Duration::from_millis(20));
        let detail = match answer {
            Ok(Ok(0)) | Ok(Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {
                if unknown_since.get_or_insert_with(Instant::now).elapsed() >= TOPIC_GRACE.min(patience) {
                    return Err(Error::TopicMissing { topic: topic.to_owned() });
                }
                "the topic is not known".to_owned()
            }
            Ok(Ok(partitions)) => return Ok(partitions),
            Ok(Err(RDKafkaErrorCode::LeaderNotAvailable)) => "the topic has no leader".to_owned(),
            Ok(Err(RDKafkaErrorCode::TopicAuthorizationFailed)) => {
                return Err(Error::TopicRefused { topic: topic.to_owned(), detail: NO_RIGHT.to_owned() });
            }
            Ok(Err(code)) => {
                return Err(Error::TopicRefused { topic: topic.to_owned(), detail: code.to_string() });
            }
            Err(error) => {
                let told = producer.context().last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((cause, remedy)) = told.as_ref().and_then(|cause| Some((cause, remedy_of_refusal(cause)?)))
                {
                    return Err(Error::Config(format!("kafka at {brokers} cannot be used: {cause}; {remedy}")));
                }
                told.unwrap_or_else(|| error.to_string())
            }
        };
        let left = patience.saturating_sub(started.elapsed());
        if left.is_zero() || stop.load(Ordering::Relaxed) {
            return Err(Error::Unreachable { brokers: brokers.to_owned(), waited: started.elapsed(), detail });
        }
        tracing::debug!(detail, "waiting for the topic");
        producer.poll(pause.min(left));
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// The topic's number of partitions, or the broker's error for it.
fn metadata(
    client: &Client<Acks>,
    topic: &str,
    timeout: Duration,
) -> Result<Result<u32, RDKafkaErrorCode>, KafkaError> {
    // Zero would mean no wait at all and a refusal without having asked.
    let timeout = timeout.max(Duration::from_millis(100));
    let metadata = client.fetch_metadata(Some(topic), Timeout::After(timeout))?;
    Ok(match metadata.topics().iter().find(|t| t.name() == topic) {
        None => Err(RDKafkaErrorCode::UnknownTopic),
        Some(found) => match found.error() {
            Some(error) => Err(error.into()),
            None => Ok(u32::try_from(found.partitions().len()).unwrap_or(u32::MAX)),
        },
    })
}
