//! The bytes of one record, owned: key, value and headers in one allocation, nothing interpreted.

use bytes::Bytes;

use crate::ladder::headers::{NextHeader, NextHeaders, TRACEPARENT, TRACESTATE};
use crate::telemetry::trace_context::TraceContext;

/// A record as the broker delivered it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Partition number.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// The record's timestamp, Unix milliseconds; −1 when the broker had none.
    pub timestamp_ms: i64,
    /// The key, `None` when null.
    pub key: Option<Bytes>,
    /// The value, `None` when null (a tombstone).
    pub value: Option<Bytes>,
    /// Header names and values in their order. Names are bytes: Kafka does not hold producers to UTF-8.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

impl Record {
    /// The headers as the codec in [`crate::ladder::headers`] takes them.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
        self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref()))
    }

    /// The headers of a copy made from this record, without copying what both share.
    pub fn headers_of_copy(&self, next: NextHeaders) -> Vec<(Bytes, Option<Bytes>)> {
        let values = Bytes::from(next.values);
        let header = |header| match header {
            NextHeader::Inbound(index) => self.headers[index].clone(),
            NextHeader::Own { name, value } => (Bytes::from_static(name.as_bytes()), Some(values.slice(value))),
        };
        next.headers.into_iter().map(header).collect()
    }

    /// The first header of this name that has a value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(n, _)| *n == name.as_bytes()).and_then(|(_, v)| v)
    }

    /// The last header of this name, as Kafka's own `lastHeader`; `None` when there is none or it has no value.
    fn last_header(&self, name: &str) -> Option<&[u8]> {
        let last = self.headers.iter().rev().find(|(n, _)| n == name.as_bytes())?;
        last.1.as_deref()
    }

    /// The span that produced it, when its `traceparent` is valid.
    pub fn trace(&self) -> Option<TraceContext> {
        TraceContext::parse(self.last_header(TRACEPARENT)?)
    }

    /// Its `tracestate`; worth something together with a valid [`Record::trace`] only.
    pub fn trace_state(&self) -> Option<&str> {
        std::str::from_utf8(self.last_header(TRACESTATE)?).ok()
    }

    /// The correlation id that its producer gave it, where it is text.
    pub fn correlation_id(&self) -> Option<&str> {
        let value = self.header("correlation-id").or_else(|| self.header("x-correlation-id"))?;
        std::str::from_utf8(value).ok()
    }

    /// Bytes held in memory, about.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Bytes::len) + 64).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers + 128
    }
}
