//! Spans in OpenTelemetry's words: names, kinds and attributes by the semantic conventions for messaging and Kafka
//! (v1.44, status development), ours under `ladder.`.
//!
//! | span | kind | from … to |
//! |---|---|---|
//! | `send <topic>` | PRODUCER | decision to publish … acknowledgement |
//! | `wait <topic>` | INTERNAL | decision of the stage before … dispatch |
//! | `process <topic>` | CONSUMER | one execution |
//!
//! Invariant: nothing an event carries makes a span large: keys and texts are bounded.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry::trace::{self as otel, SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::ladder::event::{Action, Timestamp};
use crate::stage::ports::{Sampling, Span, SpanKind, TraceContext, Tracer};
use crate::telemetry::traces::SpanQueue;

/// A key that is longer, or no text, is left out.
const MAX_KEY: usize = 200;
/// The text of an error is cut to this many bytes, as in the header.
const MAX_ERROR: usize = 512;

/// Writes spans to the process's export.
#[derive(Debug)]
pub struct OtelTracer {
    queue: SpanQueue,
    sampling: Sampling,
    client_id: Arc<str>,
    scope: InstrumentationScope,
}

impl OtelTracer {
    /// `client_id` is that of the Kafka clients.
    pub fn new(queue: SpanQueue, sampling: Sampling, client_id: &str) -> Self {
        let scope = InstrumentationScope::builder("retry-ladder").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { queue, sampling, client_id: client_id.into(), scope }
    }

    fn data(&self, span: &Span<'_>) -> SpanData {
        let (operation, kind) = match span.kind {
            SpanKind::Wait => ("wait", otel::SpanKind::Internal),
            SpanKind::Process => ("process", otel::SpanKind::Consumer),
            SpanKind::Send => ("send", otel::SpanKind::Producer),
        };
        let mut events = SpanEvents::default();
        if span.kind == SpanKind::Process {
            events.events.extend(span.action.map(|action| decision(action, span.end)));
        }
        let parent_span_id = span.parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.span_id()));
        SpanData {
            span_context: context(span.context),
            parent_span_id,
            // Only a send's parent is of this process.
            parent_span_is_remote: span.parent.is_some() && span.kind != SpanKind::Send,
            span_kind: kind,
            name: format!("{operation} {}", span.topic).into(),
            start_time: time(span.start),
            end_time: time(span.end.max(span.start)),
            attributes: self.attributes(operation, span),
            dropped_attributes_count: 0,
            events,
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, |(_, text)| Status::error(cut(text).to_owned())),
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn attributes(&self, operation: &'static str, span: &Span<'_>) -> Vec<KeyValue> {
        let mut all = Vec::with_capacity(20);
        let mut put = |name: &'static str, value: opentelemetry::Value| all.push(KeyValue::new(name, value));
        put("messaging.system", "kafka".into());
        put("messaging.operation.name", operation.into());
        if span.kind != SpanKind::Wait {
            put("messaging.operation.type", operation.into());
            put("messaging.client.id", shared(&self.client_id));
        }
        put("messaging.destination.name", shared(span.topic));
        if let Some(partition) = span.partition {
            put("messaging.destination.partition.id", partition.to_string().into());
        }
        if let Some(offset) = span.offset {
            put("messaging.kafka.offset", offset.into());
        }
        if let Some(key) = span.key.and_then(text) {
            put("messaging.kafka.message.key", key.into());
        }
        put("messaging.message.id", shared(span.event_id));
        put("ladder.event_id", shared(span.event_id));
        if let Some(stage) = &span.stage {
            // Who sends is no matter of a group.
            if span.kind != SpanKind::Send {
                put("messaging.consumer.group.name", shared(stage.group_id));
            }
            put("ladder.pipeline", shared(stage.pipeline));
            put("ladder.stage", shared(stage.name));
            put("ladder.attempt", i64::from(stage.attempt).into());
        }
        if let Some(due) = span.due {
            let start = if span.kind == SpanKind::Wait { span.end } else { span.start };
            put("ladder.due_ms", i64::try_from(due.ceil_millis()).unwrap_or(i64::MAX).into());
            put("ladder.lateness_ms", (start.since(due).as_secs_f64() * 1_000.0).into());
        }
        if let Some((class, _)) = span.error {
            put("error.type", class.to_owned().into());
        }
        if let Some(action) = span.action {
            put("ladder.action", name(action).into());
            if let Some(reason) = reason(action) {
                put("ladder.reason", reason.into());
            }
        }
        all
    }
}

impl Tracer for OtelTracer {
    fn sampling(&self) -> Sampling {
        self.sampling
    }

    fn write(&self, span: &Span<'_>) {
        self.queue.offer(self.data(span));
    }
}

/// What a failure led to, as an event of its span.
fn decision(action: &Action, at: Timestamp) -> otel::Event {
    let mut attributes = Vec::new();
    if let Action::Forward { due, .. } | Action::Defer { due } | Action::Wait { due, .. } = action {
        attributes.push(KeyValue::new("ladder.due_ms", i64::try_from(due.ceil_millis()).unwrap_or(i64::MAX)));
    }
    attributes.extend(reason(action).map(|reason| KeyValue::new("ladder.reason", reason)));
    otel::Event::new(name(action), time(at), attributes, 0)
}

const fn name(action: &Action) -> &'static str {
    match action {
        Action::Done => "done",
        Action::Forward { .. } => "forward",
        Action::Defer { .. } => "defer",
        Action::Wait { .. } => "wait",
        Action::DeadLetter { .. } => "dead_letter",
        Action::Halt { .. } => "halt",
    }
}

const fn reason(action: &Action) -> Option<&'static str> {
    match action {
        Action::DeadLetter { reason } => Some(reason.as_str()),
        Action::Halt { reason } => Some(reason.as_str()),
        Action::Done | Action::Forward { .. } | Action::Defer { .. } | Action::Wait { .. } => None,
    }
}

fn context(context: TraceContext) -> SpanContext {
    let (trace, span) = (TraceId::from(context.trace_id()), SpanId::from(context.span_id()));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(at.as_micros())
}

fn shared(text: &Arc<str>) -> opentelemetry::Value {
    StringValue::from(Arc::clone(text)).into()
}

fn text(key: &Bytes) -> Option<String> {
    std::str::from_utf8(key).ok().filter(|key| key.len() <= MAX_KEY).map(str::to_owned)
}

fn cut(text: &str) -> &str {
    let end = (0..=MAX_ERROR.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests;
