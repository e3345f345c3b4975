//! An [`Event`] for the tests of handlers, with every part replaceable; and what they log.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tracing_subscriber::fmt::MakeWriter;

use crate::ladder::event::{Origin, Timestamp};
use crate::stage::clock::{Clock, Now};
use crate::stage::ports::{Event, TraceContext};
use crate::stage::record::Record;

/// The instant of [`FixedClock`]: 1994-11-06T08:49:37Z, the example of RFC 9110.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

/// A clock that stands still at [`NOW`].
pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Now {
        Now { wall: NOW, boot: std::time::Duration::ZERO }
    }
}

/// What is logged.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// The lines of INFO and above that are written on this thread while `run` runs.
    pub(crate) fn lines(json: bool, run: impl FnOnce()) -> Vec<String> {
        let captured = Self::default();
        let builder = tracing_subscriber::fmt().with_writer(captured.clone()).with_ansi(false);
        if json {
            tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), run);
        } else {
            tracing::subscriber::with_default(builder.finish(), run);
        }
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Builds events; starts from a plain one on `main`.
pub(crate) struct EventBuilder {
    event: Event,
    record: Record,
}

impl EventBuilder {
    pub(crate) fn new() -> Self {
        let payload = Bytes::from_static(b"payload \x00\xff");
        Self {
            event: Event {
                pipeline: "orders".into(),
                group: "billing".into(),
                message: "shop.v1.OrderPlaced".into(),
                id: "order-1".into(),
                attempt: 1,
                stage: 0,
                stage_name: "main".into(),
                fence: 7,
                deadline: NOW,
                origin: Origin { topic: "orders".into(), partition: 3, offset: 42, timestamp_ms: 1_763_726_400_123 },
                record: Arc::new(Record {
                    partition: 3,
                    offset: 42,
                    timestamp_ms: 1_763_726_400_123,
                    key: None,
                    value: None,
                    headers: Vec::new(),
                }),
                payload: payload.clone(),
                trace: None,
            },
            record: Record {
                partition: 3,
                offset: 42,
                timestamp_ms: 1_763_726_400_123,
                key: Some(Bytes::from_static(b"customer-9")),
                value: Some(payload),
                headers: Vec::new(),
            },
        }
    }

    pub(crate) fn id(mut self, id: &str) -> Self {
        self.event.id = id.into();
        self
    }

    pub(crate) fn attempt(mut self, attempt: u32) -> Self {
        self.event.attempt = attempt;
        self
    }

    pub(crate) fn stage(mut self, index: usize, name: &str) -> Self {
        self.event.stage = index;
        self.event.stage_name = name.into();
        self
    }

    pub(crate) fn origin_timestamp(mut self, ms: i64) -> Self {
        self.event.origin.timestamp_ms = ms;
        self
    }

    pub(crate) fn key(mut self, key: Option<&[u8]>) -> Self {
        self.record.key = key.map(Bytes::copy_from_slice);
        self
    }

    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.event.payload = Bytes::copy_from_slice(payload);
        self.record.value = Some(self.event.payload.clone());
        self
    }

    /// A null value.
    pub(crate) fn tombstone(mut self) -> Self {
        self.event.payload = Bytes::new();
        self.record.value = None;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &[u8]) -> Self {
        self.record.headers.push((Bytes::copy_from_slice(name.as_bytes()), Some(Bytes::copy_from_slice(value))));
        self
    }

    pub(crate) fn trace(mut self, parent: &str) -> Self {
        self.event.trace = TraceContext::parse(parent.as_bytes());
        self
    }

    pub(crate) fn build(self) -> Event {
        Event { record: Arc::new(self.record), ..self.event }
    }
}
