//! What must hold for any bytes, one function a subject. The normal suite calls them with random input (`main.rs`), the
//! fuzz targets in `fuzz/` with input that is bred for coverage: one property, two sources.

use std::sync::LazyLock;
use std::time::Duration;

use retry_ladder::config::{self, Sources};
use retry_ladder::handlers::retry_after;
use retry_ladder::ladder::event::{Action, Failure, Reason, Timestamp};
use retry_ladder::ladder::headers::{self, CompatHeaders, Coordinates, Envelope, IdSource, Move, Shrink};
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::telemetry::trace_context::TraceContext;

/// The name of a fuzz target, and of the function in this file that it calls.
type Subject = (&'static str, &'static str, fn(&[u8]));

/// All of them.
pub(crate) const SUBJECTS: [Subject; 5] = [
    ("headers", "headers_read_and_round_trip", headers_read_and_round_trip),
    ("config", "config_loads_or_has_faults", config_loads_or_has_faults),
    ("framing", "framing_finds_the_payload", framing_finds_the_payload),
    ("retry_after", "retry_after_is_bounded", retry_after_is_bounded),
    ("traceparent", "traceparent_survives", traceparent_survives),
];

/// Takes numbers and byte strings off the front of the input; zeros and nothing at its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u64 {
        self.bytes(8).iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
    }

    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }
}

type Pairs = Vec<(Vec<u8>, Option<Vec<u8>>)>;

const NAMES: [&str; 20] = [
    headers::EVENT_ID,
    headers::STAGE,
    headers::ATTEMPT,
    headers::HOP,
    headers::FENCE,
    headers::DUE,
    headers::ORIGIN,
    headers::GROUP,
    headers::ERROR,
    headers::HISTORY,
    headers::REDRIVE,
    headers::REDRIVEN_AT,
    headers::DEFERRALS,
    headers::TRACEPARENT,
    headers::TRACESTATE,
    "ce_id",
    "ce_source",
    "MessageID",
    "__dlq.errors.topic",
    "kafka_dlt-original-offset",
];

static LADDER: LazyLock<Ladder> = LazyLock::new(|| {
    let spec = LadderSpec::new("orders", "billing", "shop");
    let spec = [5, 30, 300].into_iter().fold(spec, |spec, secs| spec.retry(Duration::from_secs(secs)));
    Ladder::new(spec).unwrap()
});

fn pairs(input: &mut Input<'_>) -> Pairs {
    let mut pairs = Vec::new();
    while !input.0.is_empty() && pairs.len() < 40 {
        let name = match NAMES.get(usize::from(input.byte() % 24)) {
            Some(name) => name.as_bytes().to_vec(),
            None => {
                let n = usize::from(input.byte() % 24);
                input.bytes(n).to_vec()
            }
        };
        let value = match input.byte() {
            0 => None,
            1..32 => Some(b"billing".to_vec()),
            32..64 => Some((input.number() >> (input.byte() % 64)).to_string().into_bytes()),
            n => Some(input.bytes(usize::from(n - 64)).to_vec()),
        };
        pairs.push((name, value));
    }
    pairs
}

fn iter(pairs: &Pairs) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
    pairs.iter().map(|(name, value)| (name.as_slice(), value.as_deref()))
}

fn read(stage: usize, at: Coordinates, pairs: &Pairs) -> Envelope {
    headers::read(&LADDER, stage, at, iter(pairs), &IdSource::default(), None)
}

fn is_own(name: &[u8]) -> bool {
    NAMES[..13].iter().any(|own| own.as_bytes() == name)
}

/// Any headers give an envelope within its limits, and the record that it moves on in is read back as what it was
/// written as: the same event, one hop further, own headers once and within their limit, others' untouched.
pub(crate) fn headers_read_and_round_trip(data: &[u8]) {
    let mut input = Input(data);
    let stage = usize::from(input.byte() % 6);
    // Kafka counts from 0; a timestamp is whatever a producer says.
    let (partition, offset) = (i32::from(input.byte()), (input.number() >> 1) as i64);
    let at = Coordinates { partition, offset, timestamp_ms: input.number() as i64 };
    let (choice, instant) = (input.byte(), input.number());
    let inbound = pairs(&mut input);
    let envelope = read(stage, at, &inbound);
    assert_eq!(envelope.stage, stage.min(LADDER.dlq().index));
    assert!(envelope.attempt <= headers::MAX_ATTEMPT && envelope.hop < headers::HOP_LIMIT);
    assert!(stage == 0 || envelope.hop > 0, "a copy that moved never has the key of the record on main");
    assert!(!envelope.event_id.trim().is_empty() && envelope.event_id.len() <= 2_048);
    assert_eq!(envelope.due.is_some(), LADDER.rungs()[envelope.stage].delay.is_some());
    assert_eq!(envelope, read(stage, at, &inbound), "the same at redelivery");
    let history = headers::history(iter(&inbound));
    assert!(history.len() <= headers::MAX_HISTORY);

    let due = Timestamp::from_millis(u64::try_from(at.timestamp_ms).unwrap_or_default());
    let action = match choice % 4 {
        0 => Action::Forward { stage: 1 + usize::from(choice >> 2) % 3, due },
        1 => Action::Defer { due },
        2 => Action::DeadLetter { reason: Reason::Exhausted },
        _ => Action::DeadLetter { reason: Reason::Permanent },
    };
    let target = match action {
        Action::Forward { stage, .. } => stage,
        Action::Defer { .. } => envelope.stage,
        _ => LADDER.dlq().index,
    };
    let failure = Failure::transient(String::from_utf8_lossy(data));
    let (took, claimed) = (Duration::from_millis(instant % 100_000), Timestamp::from_millis(instant >> 12));
    let fence = headers::next_fence(claimed, envelope.fence);
    let movement = Move {
        ladder: &LADDER,
        envelope: &envelope,
        action: &action,
        failure: &failure,
        started: due,
        took,
        fence,
        trace: None,
        compat: CompatHeaders::ALL,
    };
    let shrink = [Shrink::Full, Shrink::NoHistory, Shrink::NoErrorText, Shrink::NoCompat][usize::from(choice >> 6)];
    let Some(next) = headers::next(iter(&inbound), &movement, shrink) else {
        assert!(envelope.hop + 1 >= headers::HOP_LIMIT);
        return;
    };
    let next: Pairs = (next.pairs(iter(&inbound)).iter()).map(|(n, v)| (n.to_vec(), v.map(<[u8]>::to_vec))).collect();
    let own: Vec<_> = next.iter().filter(|(name, _)| is_own(name)).collect();
    for (number, (name, _)) in own.iter().enumerate() {
        assert!(own[number + 1..].iter().all(|(other, _)| other != name), "{name:?} occurs twice");
    }
    let size: usize = own.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum();
    assert!(size <= headers::MAX_OWN_BYTES, "{size} own bytes");
    let others = |pairs: &Pairs| -> Pairs {
        let foreign = |name: &[u8]| {
            let ours = is_own(name) || name.starts_with(b"__dlq.") || name.starts_with(b"kafka_dlt-");
            !ours && name != headers::TRACEPARENT.as_bytes() && name != headers::TRACESTATE.as_bytes()
        };
        pairs.iter().filter(|(name, _)| foreign(name)).cloned().collect()
    };
    assert_eq!(others(&next), others(&inbound));

    // What stands on the DLQ and on main goes nowhere by itself.
    if envelope.stage < LADDER.dlq().index && target > 0 && envelope.hop < headers::HOP_LIMIT >> 1 {
        let after = read(target, at, &next);
        assert_eq!((&after.event_id, after.hop), (&envelope.event_id, envelope.hop + 1));
        assert_eq!((&after.origin, after.redrives), (&envelope.origin, envelope.redrives));
        assert!(after.own && after.attempt >= envelope.attempt && after.fence == fence);
    }
}

/// Any text is a configuration or has faults, which can be told; a configuration can be printed and read again.
pub(crate) fn config_loads_or_has_faults(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::load(&Sources::inline("fuzz", text)) {
        Ok(loaded) => {
            let printed = loaded.print();
            assert!(!printed.is_empty() && !loaded.print_all().is_empty());
            drop(config::load(&Sources::inline("printed", &printed)));
        }
        Err(faults) => assert!(!faults.0.is_empty() && !faults.to_string().is_empty()),
    }
}

static DECODERS: LazyLock<Vec<Decoder>> = LazyLock::new(|| {
    let decoder = |message: &String| Decoder::new(message, None, Framing::Confluent).unwrap();
    Decoder::built_in().iter().map(decoder).collect()
});

/// Any value is framed or not; what was framed comes out again.
pub(crate) fn framing_finds_the_payload(data: &[u8]) {
    let schema_id = data.iter().fold(7_u32, |id, byte| id.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    for decoder in DECODERS.iter() {
        if let Ok(payload) = decoder.payload(data) {
            assert!(payload.start >= 6 && payload.end == data.len(), "{payload:?}");
            assert!(decoder.check(data).is_ok_and(|checked| checked == payload) || decoder.check(data).is_err());
        }
        let framed = decoder.frame(data.to_vec(), schema_id);
        let payload = decoder.payload(&framed).unwrap();
        assert_eq!(&framed[payload], data);
        assert_eq!(framed[1..5], schema_id.to_be_bytes());
    }
}

/// Any `Retry-After` is a wait up to the limit or none.
pub(crate) fn retry_after_is_bounded(data: &[u8]) {
    let mut input = Input(data);
    let now = Timestamp::from_micros(input.number());
    let wait = retry_after::parse(input.0, now);
    assert!(wait.is_none_or(|wait| wait <= retry_after::MAX));
    let digits = !input.0.is_empty() && input.0.iter().all(u8::is_ascii_digit);
    assert!(!digits || wait.is_some(), "digits are always a wait");
}

/// Any `traceparent` is a context that is written as it was read, or none.
pub(crate) fn traceparent_survives(data: &[u8]) {
    let Some(context) = TraceContext::parse(data) else { return };
    let text = context.to_string();
    let again = TraceContext::parse(text.as_bytes()).unwrap();
    // Flags that version 00 does not know are not passed on.
    assert_eq!((again.span_id(), again.is_sampled()), (context.span_id(), context.is_sampled()));
    assert_eq!(&text.as_bytes()[3..52], &data[3..52], "the ids stay");
    assert_eq!(context.child().trace_id(), context.trace_id());
}
