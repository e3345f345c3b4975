//! The headers of a request: those that are the same for every event, and those of one event.
//!
//! Invariants: whatever an event carries, a request can be made of it: values are printable ASCII, percent-encoded as
//! the CloudEvents HTTP binding says; nothing is left out silently (`X-Ladder-Omitted` names what was too long). The
//! configuration cannot replace a header that belongs to us or to the protocol.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use super::{Body, Error};
use crate::handlers::{PRINTABLE, printable};
use crate::stage::ports::Event;
use crate::telemetry::trace_context::TraceContext;

static CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
static CE_ID: HeaderName = HeaderName::from_static("ce-id");
static CE_TYPE: HeaderName = HeaderName::from_static("ce-type");
static CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
static CE_TIME: HeaderName = HeaderName::from_static("ce-time");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static ATTEMPT: HeaderName = HeaderName::from_static("x-ladder-attempt");
static STAGE: HeaderName = HeaderName::from_static("x-ladder-stage");
static FENCE: HeaderName = HeaderName::from_static("x-ladder-fence");
static KEY: HeaderName = HeaderName::from_static("x-ladder-key");
static TOMBSTONE: HeaderName = HeaderName::from_static("x-ladder-tombstone");
static OMITTED: HeaderName = HeaderName::from_static("x-ladder-omitted");
static CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Names that the configuration may not use: ours, and those by which HTTP/1.1 frames a message.
const RESERVED: [&str; 15] = [
    "content-type",
    "idempotency-key",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "expect",
    "te",
    "trailer",
    "upgrade",
];

/// Ours whatever comes after.
const RESERVED_PREFIXES: [&str; 2] = ["ce-", "x-ladder-"];

/// A key or correlation id that is longer than this when encoded is left out: servers commonly refuse 8 KiB of headers.
/// The event id never is left out, because without it the sink could not tell events apart.
pub(super) const MAX_OPTIONAL: usize = 4096;

/// What percent-encoding leaves of a key: RFC 3986's unreserved characters.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The configured headers, or everything that is wrong with them.
pub(super) fn configured(headers: &BTreeMap<String, String>) -> (HeaderMap, Vec<Error>) {
    let mut map = HeaderMap::with_capacity(headers.len());
    let mut faults = Vec::new();
    for (name, value) in headers {
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            faults.push(Error::HeaderName(name.clone()));
            continue;
        };
        let lower = header.as_str();
        if RESERVED.contains(&lower) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
            faults.push(Error::ReservedHeader(name.clone()));
            continue;
        }
        match HeaderValue::from_str(value) {
            Ok(mut value) => {
                // It may be a secret.
                value.set_sensitive(true);
                if map.insert(header, value).is_some() {
                    faults.push(Error::DuplicateHeader(name.clone()));
                }
            }
            Err(_) => faults.push(Error::HeaderValue(name.clone())),
        }
    }
    (map, faults)
}

/// The headers of every request: the configured ones and our constants.
pub(super) fn constant(mut configured: HeaderMap, body: &Body) -> HeaderMap {
    configured.insert(CONTENT_TYPE, HeaderValue::from_static(body.content_type()));
    configured.insert(&CE_SPECVERSION, HeaderValue::from_static("1.0"));
    let agent = HeaderValue::from_static(concat!("retry-ladder/", env!("CARGO_PKG_VERSION")));
    configured.entry(USER_AGENT).or_insert(agent);
    configured
}

/// The headers of the request for one event.
pub(super) fn for_event(constant: &HeaderMap, event: &Event) -> HeaderMap {
    // Not a clone: that would have no room for what follows and grow twice.
    let mut headers = HeaderMap::with_capacity(constant.len() + 16);
    headers.extend(constant.iter().map(|(name, value)| (name.clone(), value.clone())));
    let mut values = Values { headers, buffer: BytesMut::with_capacity(512) };

    let id = values.put(&CE_ID, |b| encode(b, printable(&event.id)));
    values.headers.insert(&IDEMPOTENCY_KEY, id);
    values.put(&CE_TYPE, |b| encode(b, printable(&event.message)));
    let origin = &event.origin;
    values.put(&CE_SOURCE, |b| {
        b.put_u8(b'/');
        encode(b, percent_encode(origin.topic.as_bytes(), UNRESERVED));
        display(b, format_args!("/{}", origin.partition));
    });
    if let Some(time) = rfc3339(origin.timestamp_ms) {
        values.put(&CE_TIME, |b| display(b, format_args!("{time}")));
    }
    values.put(&ATTEMPT, |b| display(b, format_args!("{}", event.attempt)));
    values.put(&STAGE, |b| encode(b, printable(&event.stage_name)));
    values.put(&FENCE, |b| display(b, format_args!("{}", event.fence)));
    if event.record.value.is_none() {
        values.headers.insert(&TOMBSTONE, HeaderValue::from_static("true"));
    }

    let key_omitted = event.record.key.as_ref().is_some_and(|key| !values.put_short(&KEY, key, UNRESERVED));
    let correlation_id = event.header("correlation-id").or_else(|| event.header("x-correlation-id"));
    let correlation_omitted = correlation_id.is_some_and(|id| !values.put_short(&CORRELATION_ID, id, PRINTABLE));
    let omitted = match (key_omitted, correlation_omitted) {
        (false, false) => None,
        (true, false) => Some("X-Ladder-Key"),
        (false, true) => Some("X-Correlation-Id"),
        (true, true) => Some("X-Ladder-Key, X-Correlation-Id"),
    };
    if let Some(omitted) = omitted {
        values.headers.insert(&OMITTED, HeaderValue::from_static(omitted));
    }

    // A trace context that is not valid is to be ignored (W3C Trace Context, sections 3.2.3 and 3.3.1.1).
    // With tracing it is that of this execution, which is a child of the record's.
    let inbound = event.header("traceparent").filter(|parent| is_traceparent(parent));
    if let Some(trace) = event.trace {
        values.put(&TRACEPARENT, |b| display(b, format_args!("{trace}")));
    } else if let Some(parent) = inbound {
        values.put(&TRACEPARENT, |b| b.put_slice(parent));
    }
    if inbound.is_some()
        && let Some(state) = event.header("tracestate").filter(|state| is_tracestate(state))
    {
        values.put(&TRACESTATE, |b| b.put_slice(state));
    }
    values.headers
}

/// Header values written one after the other into one allocation, each a slice of it.
struct Values {
    headers: HeaderMap,
    buffer: BytesMut,
}

impl Values {
    fn put(&mut self, name: &'static HeaderName, write: impl FnOnce(&mut BytesMut)) -> HeaderValue {
        write(&mut self.buffer);
        let value = HeaderValue::from_maybe_shared(self.buffer.split().freeze());
        // All that is written is printable ASCII; should it not be, no value is better than no request.
        debug_assert!(value.is_ok(), "{name}");
        let value = value.unwrap_or(HeaderValue::from_static(""));
        self.headers.insert(name, value.clone());
        value
    }

    /// Whether there was room for it.
    fn put_short(&mut self, name: &'static HeaderName, value: &[u8], set: &'static AsciiSet) -> bool {
        // Encoding never shortens; so a hostile length costs nothing.
        let fits =
            value.len() <= MAX_OPTIONAL && percent_encode(value, set).map(str::len).sum::<usize>() <= MAX_OPTIONAL;
        if fits {
            self.put(name, |b| encode(b, percent_encode(value, set)));
        }
        fits
    }
}

fn encode(buffer: &mut BytesMut, text: PercentEncode<'_>) {
    for part in text {
        buffer.put_slice(part.as_bytes());
    }
}

fn display(buffer: &mut BytesMut, value: std::fmt::Arguments<'_>) {
    // A growing buffer takes everything.
    buffer.write_fmt(value).ok();
}

/// `None` before 1970 (−1: the broker had no time) and after 9999, which RFC 3339 cannot say.
fn rfc3339(ms: i64) -> Option<humantime::Rfc3339Timestamp> {
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    let ms = u64::try_from(ms).ok().filter(|ms| *ms < YEAR_10000_MS)?;
    Some(humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)))
}

/// One that everybody must pass on, and that is legal in a header whatever a later version adds to it.
fn is_traceparent(value: &[u8]) -> bool {
    value.len() <= 512 && value.iter().all(u8::is_ascii_graphic) && TraceContext::parse(value).is_some()
}

/// Legal in a header, and of the length that everybody must pass on.
fn is_tracestate(value: &[u8]) -> bool {
    (1..=512).contains(&value.len()) && value.iter().all(|b| (b' '..=b'~').contains(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handlers::testing::EventBuilder;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(event: EventBuilder) -> HeaderMap {
        for_event(&constant(HeaderMap::new(), &Body::Protobuf), &event.build())
    }

    #[track_caller]
    fn check(event: EventBuilder, name: &str, expect: Option<&str>) {
        let headers = headers(event);
        assert_eq!(headers.get(name).map(|v| v.to_str().unwrap()), expect, "{name}");
    }

    #[test]
    fn an_ordinary_event_has_these_headers_and_no_others() {
        let event = EventBuilder::new()
            .stage(2, "retry-2")
            .attempt(3)
            .header("traceparent", PARENT.as_bytes())
            .header("tracestate", b"vendor=1, other=2")
            .header("x-correlation-id", b"session-5")
            .header("x-other", b"stays in Kafka");
        let headers = headers(event);
        let mut got: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        got.sort_unstable();
        assert_eq!(
            got,
            [
                ("ce-id", "order-1"),
                ("ce-source", "/orders/3"),
                ("ce-specversion", "1.0"),
                ("ce-time", "2025-11-21T12:00:00.123Z"),
                ("ce-type", "shop.v1.OrderPlaced"),
                ("content-type", "application/x-protobuf"),
                ("idempotency-key", "order-1"),
                ("traceparent", PARENT),
                ("tracestate", "vendor=1, other=2"),
                ("user-agent", concat!("retry-ladder/", env!("CARGO_PKG_VERSION"))),
                ("x-correlation-id", "session-5"),
                ("x-ladder-attempt", "3"),
                ("x-ladder-fence", "7"),
                ("x-ladder-key", "customer-9"),
                ("x-ladder-stage", "retry-2"),
            ]
        );
    }

    #[test]
    fn ids_are_encoded_as_cloudevents_says_and_the_idempotency_key_is_the_same() {
        for name in ["ce-id", "idempotency-key"] {
            check(EventBuilder::new().id("a b\r\nX: y\"é%€"), name, Some("a%20b%0D%0AX:%20y%22%C3%A9%25%E2%82%AC"));
            check(EventBuilder::new().id(""), name, Some(""));
        }
        let long = "é".repeat(10_000);
        let encoded = "%C3%A9".repeat(10_000);
        check(EventBuilder::new().id(&long), "ce-id", Some(&encoded));
    }

    #[test]
    fn keys_are_percent_encoded_and_a_null_key_has_no_header() {
        let name = "x-ladder-key";
        check(EventBuilder::new().key(Some(b"a/b c\n\x00\xff~")), name, Some("a%2Fb%20c%0A%00%FF~"));
        check(EventBuilder::new().key(Some(b"")), name, Some(""));
        check(EventBuilder::new().key(None), name, None);
        check(EventBuilder::new().key(None), "x-ladder-omitted", None);
    }

    #[test]
    fn what_is_too_long_is_named() {
        let omitted = "x-ladder-omitted";
        let event = || EventBuilder::new().key(Some(&[b'k'; 10_240]));
        check(event(), "x-ladder-key", None);
        check(event(), omitted, Some("X-Ladder-Key"));
        let both = || event().header("correlation-id", &[b' '; MAX_OPTIONAL / 2]);
        check(both(), "x-correlation-id", None);
        check(both(), omitted, Some("X-Ladder-Key, X-Correlation-Id"));
        let correlation = EventBuilder::new().header("correlation-id", &[b'c'; MAX_OPTIONAL + 1]);
        check(correlation, omitted, Some("X-Correlation-Id"));
        let longest = "k".repeat(MAX_OPTIONAL);
        check(EventBuilder::new().key(Some(longest.as_bytes())), "x-ladder-key", Some(&longest));
        check(EventBuilder::new().key(Some(longest.as_bytes())), omitted, None);
    }

    #[test]
    fn correlation_ids_come_from_either_header() {
        let name = "x-correlation-id";
        check(EventBuilder::new(), name, None);
        check(EventBuilder::new().header("correlation-id", b"one"), name, Some("one"));
        check(EventBuilder::new().header("x-correlation-id", b"two"), name, Some("two"));
        let both = EventBuilder::new().header("x-correlation-id", b"two").header("correlation-id", b"one");
        check(both, name, Some("one"));
        check(EventBuilder::new().header("correlation-id", b"\xff\n"), name, Some("%FF%0A"));
    }

    #[test]
    fn times_that_rfc_3339_cannot_say_are_left_out() {
        let name = "ce-time";
        check(EventBuilder::new().origin_timestamp(0), name, Some("1970-01-01T00:00:00.000Z"));
        check(EventBuilder::new().origin_timestamp(253_402_300_799_999), name, Some("9999-12-31T23:59:59.999Z"));
        for ms in [-1, i64::MIN, 253_402_300_800_000, i64::MAX] {
            check(EventBuilder::new().origin_timestamp(ms), name, None);
        }
    }

    #[test]
    fn tombstones_are_told_from_empty_messages() {
        let name = "x-ladder-tombstone";
        check(EventBuilder::new().tombstone(), name, Some("true"));
        check(EventBuilder::new().payload(b""), name, None);
    }

    #[test]
    fn only_a_valid_trace_context_is_passed_on() {
        let valid = |value: &str| is_traceparent(value.as_bytes());
        assert!(valid(PARENT));
        assert!(valid(&PARENT.replacen("00", "cc", 1)));
        assert!(valid(&format!("{}-what-the-future-will-be-like", PARENT.replacen("00", "cc", 1))));
        for broken in [
            "",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.to_uppercase(),
            &PARENT.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            &format!("cc{}\n", &PARENT[2..]),
            &format!("cc{}-{}", &PARENT[2..], "x".repeat(500)),
        ] {
            assert!(!valid(broken), "{broken:?}");
        }
        // The span of the execution goes before the record's.
        let child = PARENT.replace("b7ad6b7169203331", "00f067aa0ba902b7");
        let traced = || EventBuilder::new().trace(&child).header("tracestate", b"vendor=1");
        check(traced().header("traceparent", PARENT.as_bytes()), "traceparent", Some(&child));
        check(traced().header("traceparent", PARENT.as_bytes()), "tracestate", Some("vendor=1"));
        check(traced(), "traceparent", Some(&child));
        check(traced(), "tracestate", None);
        let state_alone = EventBuilder::new().header("tracestate", b"vendor=1");
        check(state_alone, "tracestate", None);
        let broken_state = EventBuilder::new().header("traceparent", PARENT.as_bytes()).header("tracestate", b"a\n");
        check(broken_state, "tracestate", None);
    }

    proptest! {
        #[test]
        fn no_event_can_break_a_header(id: String, stage: String, key: Vec<u8>, ms: i64, name in "traceparent|tracestate|correlation-id", value: Vec<u8>) {
            let event = EventBuilder::new().id(&id).stage(1, &stage).key(Some(&key)).origin_timestamp(ms)
                .header("traceparent", PARENT.as_bytes()).header(&name, &value);
            let headers = headers(event);
            prop_assert!(headers.values().all(|v| v.to_str().is_ok()));
            let decoded = percent_encoding::percent_decode(headers["ce-id"].as_bytes()).decode_utf8().unwrap();
            prop_assert_eq!(decoded, id);
            if let Some(encoded) = headers.get("x-ladder-key") {
                let decoded: Vec<u8> = percent_encoding::percent_decode(encoded.as_bytes()).collect();
                prop_assert_eq!(decoded, key);
            }
        }
    }
}
