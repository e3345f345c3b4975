//! The next record's headers, looked at as bytes.

use super::*;
use crate::ladder::event::{Action, Failure, HaltReason, Reason};

fn forward(stage: usize) -> Action {
    Action::Forward { stage, due: Timestamp::from_micros(1_700_000_035_000_001) }
}

const DEFER: Action = Action::Defer { due: Timestamp::from_millis(1_700_000_300_000) };
pub(super) const EXHAUSTED: Action = Action::DeadLetter { reason: Reason::Exhausted };

/// Headers of the move of a record read at `AT` on `stage`.
pub(super) struct Case<'a> {
    pub(super) stage: usize,
    pub(super) inbound: &'a Headers,
    pub(super) action: Action,
    pub(super) failure: Failure,
    pub(super) fence: u64,
    pub(super) trace: Option<Trace<'a>>,
    pub(super) compat: CompatHeaders,
    pub(super) shrink: Shrink,
    /// Instead of the inbound one.
    pub(super) hop: Option<u64>,
}

impl<'a> Case<'a> {
    pub(super) fn new(stage: usize, inbound: &'a Headers, action: Action) -> Self {
        let failure = Failure::transient("connection refused");
        let compat = CompatHeaders::ALL;
        Self {
            stage,
            inbound,
            action,
            failure,
            fence: 1_700_000_000_500,
            trace: None,
            compat,
            shrink: Shrink::Full,
            hop: None,
        }
    }

    pub(super) fn write(&self) -> Option<Headers> {
        let ladder = ladder();
        let mut envelope = read_at(self.stage, AT, self.inbound);
        envelope.hop = self.hop.unwrap_or(envelope.hop);
        let m = Move {
            ladder: &ladder,
            envelope: &envelope,
            action: &self.action,
            failure: &self.failure,
            started: Timestamp::from_micros(1_700_000_005_000_900),
            took: Duration::from_micros(12_900),
            fence: self.fence,
            trace: self.trace,
            compat: self.compat,
        };
        let out = next(iter(self.inbound), &m, self.shrink)?;
        Some(out.pairs(iter(self.inbound)).iter().map(|(n, v)| (n.to_vec(), v.map(<[u8]>::to_vec))).collect())
    }
}

pub(super) fn value<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    let mut found = headers.iter().filter(|(n, _)| n == name.as_bytes());
    let value = found.next().map(|(_, value)| value.as_deref().unwrap_or_default());
    assert!(found.next().is_none(), "{name} twice");
    value
}

fn text<'h>(headers: &'h Headers, name: &str) -> &'h str {
    std::str::from_utf8(value(headers, name).unwrap_or_else(|| panic!("no {name}"))).unwrap()
}

/// Name and value of ours, as anything but the codec would tell them.
pub(super) fn is_own(name: &[u8], compat: bool) -> bool {
    NAMES.iter().any(|n| n.as_bytes() == name)
        || (compat && (name.starts_with(b"__dlq.errors.") || name.starts_with(b"kafka_dlt-")))
}

#[test]
fn a_first_failure_writes_every_header_of_the_contract() {
    let inbound = headers(&[("app", "1"), ("MessageID", "m-1")]);
    let out = Case::new(0, &inbound, forward(1)).write().unwrap();
    let history = r#"[{"s":0,"t":1700000005000,"ms":12,"e":"transient","m":"connection refused"}]"#;
    let expected = headers(&[
        ("app", "1"),
        ("MessageID", "m-1"),
        ("x-ladder-event-id", "m-1"),
        ("x-ladder-stage", "1"),
        ("x-ladder-attempt", "1"),
        ("x-ladder-hop", "1"),
        ("x-ladder-fence", "1700000000500"),
        ("x-ladder-due", "1700000035001"),
        ("x-ladder-origin", "shop:3:42:1700000000000"),
        ("x-ladder-group", "billing"),
        ("x-ladder-error", "transient: connection refused"),
        ("x-ladder-history", history),
    ]);
    assert_eq!(out, expected);
}

#[test]
fn later_failures_replace_and_never_append() {
    let inbound = on_retry_2(&[
        (ERROR, "transient: old"),
        (HISTORY, r#"[{"s":0,"t":1,"ms":2,"e":"transient","m":"first"}]"#),
        (REDRIVE, "2"),
        (REDRIVEN_AT, "1699999995000"),
        (DEFERRALS, "1"),
    ]);
    let out = Case::new(2, &inbound, forward(3)).write().unwrap();
    assert_eq!((text(&out, STAGE), text(&out, ATTEMPT), text(&out, HOP)), ("3", "3", "3"));
    assert_eq!(text(&out, ORIGIN), "shop:3:7:1699999990000");
    assert_eq!(text(&out, EVENT_ID), "id-1");
    assert_eq!((text(&out, REDRIVE), text(&out, REDRIVEN_AT), text(&out, DEFERRALS)), ("2", "1699999995000", "1"));
    assert_eq!(text(&out, ERROR), "transient: connection refused");
    let history = serde_json::from_str::<serde_json::Value>(text(&out, HISTORY)).unwrap();
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert_eq!(history[0]["m"], "first");
    assert_eq!(history[1]["s"], 2);
}

#[test]
fn a_deferral_is_counted_but_not_charged() {
    let inbound = on_retry_2(&[(STAGE, "3"), (ATTEMPT, "3"), (DEFERRALS, "4"), (DUE, "1")]);
    let out = Case::new(3, &inbound, DEFER).write().unwrap();
    assert_eq!((text(&out, STAGE), text(&out, ATTEMPT), text(&out, HOP)), ("3", "3", "3"));
    assert_eq!((text(&out, DEFERRALS), text(&out, DUE)), ("5", "1700000300000"));
}

#[test]
fn poison_is_not_charged_because_no_handler_saw_it() {
    let inbound = headers(&[]);
    let mut case = Case::new(0, &inbound, Action::DeadLetter { reason: Reason::Poison });
    (case.failure, case.fence) = (Failure::poison("invalid tag"), 0);
    let out = case.write().unwrap();
    assert_eq!((text(&out, ATTEMPT), text(&out, ERROR)), ("0", "poison: invalid tag"));
    assert_eq!(value(&out, FENCE), None);
    assert_eq!(text(&out, "__dlq.errors.delivery.count"), "0");
}

#[test]
fn attempts_stop_at_their_limit_instead_of_falling() {
    let inbound = on_retry_2(&[(ATTEMPT, "17")]);
    assert_eq!(text(&Case::new(2, &inbound, forward(3)).write().unwrap(), ATTEMPT), "17");
}

#[test]
fn the_fence_never_falls() {
    let inbound = on_retry_2(&[(FENCE, "1800000000000")]);
    assert_eq!(text(&Case::new(2, &inbound, forward(3)).write().unwrap(), FENCE), "1800000000000");
    // Nor at the end of its range, where a forged one may stand.
    let inbound = on_retry_2(&[(FENCE, "9007199254740991")]);
    let fence = next_fence(ms(WRITTEN), read_at(2, AT, &inbound).fence);
    let out = Case { fence, ..Case::new(2, &inbound, forward(3)) }.write().unwrap();
    assert_eq!(read_at(3, AT, &out).fence, 9007199254740991);
}

#[test]
fn a_dead_letter_tells_the_stage_that_failed_last_and_the_reason() {
    let inbound = on_retry_2(&[(STAGE, "3"), (ATTEMPT, "3"), (HOP, "3")]);
    let out = Case::new(3, &inbound, EXHAUSTED).write().unwrap();
    assert_eq!((text(&out, STAGE), text(&out, ATTEMPT), text(&out, HOP)), ("3", "4", "4"));
    assert_eq!(text(&out, ERROR), "exhausted: connection refused");
    assert_eq!(value(&out, DUE), None);
    let read = read_at(4, AT, &out);
    assert_eq!((read.failed_stage, read.attempt), (Some(3), 4));
    assert!(read.repaired.is_empty(), "{:?}", read.repaired);
}

#[test]
fn nothing_is_written_where_nothing_moves() {
    let inbound = headers(&[]);
    assert_eq!(Case::new(0, &inbound, Action::Done).write(), None);
    assert_eq!(Case::new(0, &inbound, Action::Halt { reason: HaltReason::TooLarge }).write(), None);
    let inbound = on_retry_2(&[]);
    let mut last = Case::new(2, &inbound, forward(3));
    last.hop = Some(HOP_LIMIT - 1);
    assert_eq!(last.write(), None);
    last.hop = Some(HOP_LIMIT - 2);
    assert_eq!(text(&last.write().unwrap(), HOP), "9007199254740991");
}

#[test]
fn dead_letters_carry_kafkas_own_headers_as_text() {
    let inbound = on_retry_2(&[]);
    let out = Case::new(2, &inbound, EXHAUSTED).write().unwrap();
    for (name, expected) in [
        ("__dlq.errors.topic", "shop"),
        ("__dlq.errors.partition", "3"),
        ("__dlq.errors.offset", "7"),
        ("__dlq.errors.group", "billing"),
        ("__dlq.errors.delivery.count", "3"),
        ("__dlq.errors.message", "connection refused"),
    ] {
        assert_eq!(text(&out, name), expected, "{name}");
    }
}

#[test]
fn dead_letters_carry_springs_headers_in_its_binary_encoding() {
    let inbound = on_retry_2(&[(ORIGIN, "shop:258:4328719365:1699999990000")]);
    let out = Case::new(2, &inbound, EXHAUSTED).write().unwrap();
    for (name, expected) in [
        ("kafka_dlt-original-topic", b"shop".as_slice()),
        ("kafka_dlt-original-partition", &[0, 0, 1, 2]),
        ("kafka_dlt-original-offset", &[0, 0, 0, 1, 2, 3, 4, 5]),
        ("kafka_dlt-original-timestamp", &[0, 0, 1, 0x8b, 0xcf, 0xe5, 0x40, 0xf0]),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        ("kafka_dlt-original-consumer-group", b"billing"),
        ("kafka_dlt-exception-fqcn", b"retry_ladder.exhausted"),
        ("kafka_dlt-exception-message", b"connection refused"),
    ] {
        assert_eq!(value(&out, name), Some(expected), "{name}");
    }
    for (origin, timestamp, kind) in
        [("shop:0:1:-1", [0xff; 8], "NoTimestampType"), ("shop:0:0:0", [0; 8], "CreateTime")]
    {
        let inbound = on_retry_2(&[(ORIGIN, origin)]);
        let out = Case::new(2, &inbound, EXHAUSTED).write().unwrap();
        assert_eq!(value(&out, "kafka_dlt-original-timestamp"), Some(timestamp.as_slice()));
        assert_eq!(text(&out, "kafka_dlt-original-timestamp-type"), kind);
        assert_eq!(text(&out, ORIGIN), origin);
    }
}

#[test]
fn an_origin_with_a_timestamp_of_a_producers_invention_is_written_so_that_it_can_be_read() {
    let at = Coordinates { timestamp_ms: -5, ..AT };
    assert_eq!(read_at(0, at, &headers(&[])).origin.to_string(), "shop:3:42:-1");
}

#[test]
fn compat_headers_can_be_switched_off_and_belong_to_dead_letters_only() {
    let theirs = [("kafka_dlt-original-topic", "upstream"), ("__dlq.errors.topic", "upstream")];
    let inbound = headers(&theirs);
    let forwarded = Case::new(0, &inbound, forward(1)).write().unwrap();
    assert_eq!(forwarded[..2], inbound[..]);
    assert_eq!(forwarded.iter().filter(|(n, _)| is_own(n, true) && !is_own(n, false)).count(), 2);

    let with = |compat| Case { compat, ..Case::new(0, &inbound, EXHAUSTED) }.write().unwrap();
    assert_eq!(with(CompatHeaders::NONE)[..2], inbound[..]);
    let kafka = with(CompatHeaders { kafka: true, spring: false });
    assert_eq!((text(&kafka, theirs[0].0), text(&kafka, theirs[1].0)), ("upstream", "shop"));
    let spring = with(CompatHeaders { kafka: false, spring: true });
    assert_eq!((text(&spring, theirs[0].0), text(&spring, theirs[1].0)), ("shop", "upstream"));
    assert_eq!(value(&spring, "__dlq.errors.offset"), None);
}

#[test]
fn a_given_trace_context_replaces_the_inbound_one() {
    let inbound = headers(&[(TRACEPARENT, "old"), (TRACESTATE, "a=1"), ("z", "")]);
    let with = |trace| Case { trace, ..Case::new(0, &inbound, forward(1)) }.write().unwrap();
    let kept = with(None);
    assert_eq!(kept[..3], inbound[..]);
    let replaced = with(Some(Trace { parent: "new", state: Some("b=2") }));
    assert_eq!((text(&replaced, TRACEPARENT), text(&replaced, TRACESTATE)), ("new", "b=2"));
    assert_eq!(value(&with(Some(Trace { parent: "new", state: None })), TRACESTATE), None);
    let long = "x".repeat(513);
    assert_eq!(value(&with(Some(Trace { parent: "new", state: Some(&long) })), TRACESTATE), None);
    assert_eq!(value(&with(Some(Trace { parent: "new", state: Some("") })), TRACESTATE), None);
    let endless = "y".repeat(129);
    assert_eq!(text(&with(Some(Trace { parent: &endless, state: None })), TRACEPARENT), "old");
    assert_eq!(text(&with(Some(Trace { parent: &endless[1..], state: None })), TRACEPARENT), &endless[1..]);
}

#[test]
fn of_repeated_inbound_trace_headers_the_last_one_stays() {
    let inbound =
        headers(&[(TRACEPARENT, "1"), ("app", "a"), (TRACEPARENT, "2"), (TRACESTATE, "s"), (TRACESTATE, "t")]);
    let out = Case::new(0, &inbound, forward(1)).write().unwrap();
    assert_eq!(out[..3], headers(&[("app", "a"), (TRACEPARENT, "2"), (TRACESTATE, "t")])[..]);
    assert_eq!((text(&out, TRACEPARENT), text(&out, TRACESTATE)), ("2", "t"));
}

#[test]
fn error_texts_are_cut_at_a_character_and_made_harmless() {
    let inbound = headers(&[]);
    let with = |message: &str| {
        Case { failure: Failure::transient(message), ..Case::new(0, &inbound, forward(1)) }.write().unwrap()
    };
    // 171 × 3 bytes = 513: the last one does not fit.
    let out = with(&"€".repeat(171));
    assert_eq!(text(&out, ERROR), format!("transient: {}", "€".repeat(170)));
    let history: serde_json::Value = serde_json::from_str(text(&out, HISTORY)).unwrap();
    assert_eq!(history[0]["m"], "€".repeat(42));
    let out = with("a\r\nb\0c\u{1b}[31m\u{85}\u{202e}d\te");
    assert_eq!(text(&out, ERROR), "transient: a  b c [31m  d e");
}

#[test]
fn a_record_too_large_gives_up_history_then_text_then_compat_then_nothing() {
    let inbound = on_retry_2(&[]);
    let mut sizes = Vec::new();
    let mut level = Some(Shrink::Full);
    while let Some(shrink) = level {
        let out = Case { shrink, ..Case::new(2, &inbound, EXHAUSTED) }.write().unwrap();
        assert_eq!(value(&out, HISTORY).is_some(), shrink < Shrink::NoHistory);
        let error = if shrink < Shrink::NoErrorText { "exhausted: connection refused" } else { "exhausted: " };
        assert_eq!(text(&out, ERROR), error);
        let compat = value(&out, "kafka_dlt-exception-message");
        assert_eq!(compat.is_some(), shrink < Shrink::NoCompat);
        assert!(compat.is_none_or(|text| text.is_empty() == (shrink >= Shrink::NoErrorText)));
        assert_eq!((text(&out, EVENT_ID), text(&out, HOP)), ("id-1", "3"));
        sizes.push(out.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>());
        level = shrink.smaller();
    }
    assert_eq!(sizes.len(), 4);
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
}

#[test]
fn a_history_has_eight_entries_and_gives_up_its_oldest_for_room() {
    let entry = |n: usize, m: &str| format!(r#"{{"s":{n},"t":{0},"ms":{0},"e":"transient","m":"{m}"}}"#, u64::MAX);
    let history = |m: &str| format!("[{}]", (0..8).map(|n| entry(n, m)).collect::<Vec<_>>().join(","));
    let stages = |out: &Headers| -> Vec<u64> {
        let json: serde_json::Value = serde_json::from_str(text(out, HISTORY)).unwrap();
        json.as_array().unwrap().iter().map(|entry| entry["s"].as_u64().unwrap()).collect()
    };
    let inbound = on_retry_2(&[(HISTORY, &history("x"))]);
    assert_eq!(stages(&Case::new(2, &inbound, forward(3)).write().unwrap()), [1, 2, 3, 4, 5, 6, 7, 2]);

    // Quotes double in JSON: with everything else at its limit the oldest entries no longer fit.
    let id = "i".repeat(2048);
    let origin = format!("{}:3:7:1699999990000", "t".repeat(249));
    let inbound = on_retry_2(&[(HISTORY, &history(&r#"\""#.repeat(128))), (EVENT_ID, &id), (ORIGIN, &origin)]);
    let state = "s".repeat(512);
    let own_bytes = |state: &str| {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let (failure, trace) = (Failure::transient("\"".repeat(600)), Some(Trace { parent, state: Some(state) }));
        let out = Case { failure, trace, ..Case::new(2, &inbound, EXHAUSTED) }.write().unwrap();
        let kept = stages(&out);
        assert!(kept.ends_with(&[7, 2]) && (kept.len() < 8 || state.len() < 512), "{kept:?}");
        out.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>()
    };
    // As the room shrinks byte by byte, an entry stays up to the very last.
    let sizes: Vec<usize> = (100..=512).map(|n| own_bytes(&state[..n])).collect();
    assert_eq!(sizes.iter().max(), Some(&MAX_OWN_BYTES));
}

#[test]
fn a_history_of_another_group_is_not_passed_on() {
    let inbound = on_retry_2(&[(GROUP, "analytics"), (HISTORY, r#"[{"s":0,"t":1,"ms":2,"e":"x","m":"theirs"}]"#)]);
    let out = Case::new(2, &inbound, forward(3)).write().unwrap();
    assert!(!text(&out, HISTORY).contains("theirs"));
    assert_eq!(text(&out, GROUP), "billing");
}
