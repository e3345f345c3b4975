//! Repairs, ids, keys and fences.

use proptest::prelude::*;

use super::*;

fn repairs(envelope: &Envelope) -> Vec<&'static str> {
    envelope.repaired.names().collect()
}

#[test]
fn a_new_record_on_main_starts_from_nothing() {
    let envelope = read_at(0, AT, &headers(&[("MessageID", "m-1"), ("x-app", "1")]));
    let expected = Envelope {
        event_id: "m-1".into(),
        stage: 0,
        failed_stage: None,
        attempt: 0,
        hop: 0,
        fence: 0,
        due: None,
        origin: AT.on("shop"),
        redrives: 0,
        redriven_at: None,
        deferrals: 0,
        repaired: Repairs::default(),
        untrusted: false,
        own: false,
    };
    assert_eq!(envelope, expected);
}

#[test]
fn a_healthy_record_is_read_as_it_was_written() {
    let envelope = read_at(2, AT, &on_retry_2(&[(REDRIVE, "3"), (REDRIVEN_AT, "1699999995000"), (DEFERRALS, "4")]));
    assert_eq!(&*envelope.event_id, "id-1");
    assert_eq!((envelope.stage, envelope.attempt, envelope.hop, envelope.fence), (2, 2, 2, 1_699_999_999_000));
    assert_eq!(envelope.due, Some(ms(WRITTEN + 30_000)));
    assert_eq!(envelope.origin.to_string(), "shop:3:7:1699999990000");
    assert_eq!((envelope.redrives, envelope.deferrals), (3, 4));
    assert_eq!(envelope.redriven_at, Some(ms(1_699_999_995_000)));
    assert!(envelope.own && !envelope.untrusted && envelope.repaired.is_empty());
}

/// One header broken on `retry-2`: what is repaired and what it counts as.
fn check(change: (&str, &str), repaired: &[&str], seen: impl Fn(&Envelope) -> bool) {
    let envelope = read_at(2, AT, &on_retry_2(&[change]));
    assert_eq!(repairs(&envelope), repaired, "{change:?}");
    assert!(seen(&envelope), "{change:?}: {envelope:?}");
    assert_eq!(envelope.stage, 2);
}

#[test]
fn broken_values_are_repaired_from_the_topic_and_counted() {
    for stage in ["1", "3", "0", "-2", "two", "2 ", "99999999999999999999", ""] {
        check((STAGE, stage), &[STAGE], |e| e.attempt == 2);
    }
    for attempt in ["18", "-1", "many", "", "4294967298"] {
        check((ATTEMPT, attempt), &[ATTEMPT], |e| e.attempt == 2);
    }
    check((ATTEMPT, "+1"), &[ATTEMPT], |e| e.attempt == 2);
    check((ATTEMPT, "17"), &[], |e| e.attempt == 17);
    check((ATTEMPT, "0"), &[], |e| e.attempt == 0);
    check((FENCE, "x"), &[FENCE], |e| e.fence == 0);
    check((FENCE, ""), &[], |e| e.fence == 0);
    check((FENCE, "9007199254740991"), &[], |e| e.fence == (1 << 53) - 1);
    // It could not rise any more.
    check((FENCE, "9007199254740992"), &[FENCE], |e| e.fence == 0);
    check((FENCE, "18446744073709551615"), &[FENCE], |e| e.fence == 0);
    check((REDRIVE, "x"), &[REDRIVE], |e| e.redrives == 1);
    check((REDRIVE, "0"), &[REDRIVE], |e| e.redrives == 1);
    check((REDRIVEN_AT, "x"), &[REDRIVEN_AT], |e| e.redriven_at.is_none());
    check((DEFERRALS, "x"), &[DEFERRALS], |e| e.deferrals == 0);
    check((DEFERRALS, "4294967296"), &[DEFERRALS], |e| e.deferrals == 0);
    check((DEFERRALS, "4294967295"), &[], |e| e.deferrals == u32::MAX);
}

#[test]
fn a_stage_has_to_be_told_on_retry_topics_and_to_be_right_wherever_it_is_told() {
    for (rung, stage, repaired) in [(1, "", true), (1, "1", false), (0, "", false), (0, "0", false), (0, "1", true)] {
        let record = on_retry_2(&[(STAGE, stage), (REDRIVE, "1"), (DUE, "1")]);
        let envelope = read_at(rung, AT, &record);
        assert_eq!(envelope.repaired.contains(STAGE), repaired, "{stage:?} on {rung}");
        assert_eq!(envelope.repaired.is_empty(), !repaired, "{envelope:?}");
    }
}

#[test]
fn a_broken_due_follows_the_record_and_a_far_one_is_clamped() {
    check((DUE, ""), &[DUE], |e| e.due == Some(ms(WRITTEN + 30_000)));
    check((DUE, "soon"), &[DUE], |e| e.due == Some(ms(WRITTEN + 30_000)));
    check((DUE, "9999999999999999"), &["due_clamped"], |e| e.due == Some(ms(WRITTEN + 60_000)));
    check((DUE, "1"), &[], |e| e.due == Some(ms(1)));
    assert!(read_at(2, AT, &on_retry_2(&[(DUE, "9999999999999999")])).repaired.contains("due_clamped"));
}

#[test]
fn nothing_is_due_on_main_and_on_the_dlq() {
    assert_eq!(read_at(0, AT, &headers(&[(DUE, "5")])).due, None);
    assert_eq!(read_at(4, AT, &on_retry_2(&[])).due, None);
}

#[test]
fn the_dlq_tells_the_stage_that_failed_last() {
    let envelope = read_at(4, AT, &on_retry_2(&[(STAGE, "3"), (ATTEMPT, "4")]));
    assert_eq!((envelope.stage, envelope.failed_stage, envelope.attempt), (4, Some(3), 4));
    assert!(envelope.repaired.is_empty());
    assert_eq!(read_at(4, AT, &on_retry_2(&[(STAGE, "0")])).failed_stage, Some(0));
    let broken = read_at(4, AT, &on_retry_2(&[(STAGE, "4"), (ATTEMPT, "x")]));
    assert_eq!((broken.failed_stage, broken.attempt, repairs(&broken)), (None, 4, vec![STAGE, ATTEMPT]));
    assert_eq!(read_at(99, AT, &on_retry_2(&[])).stage, 4);
}

#[test]
fn a_broken_hop_is_the_record_timestamp() {
    for hop in ["", "0", "-1", "x", "9007199254740991", "9007199254740992"] {
        check((HOP, hop), &[HOP], |e| e.hop == WRITTEN as u64);
    }
    // The highest that counts leaves room for more moves than any event makes: a forged hop must not halt a partition.
    check((HOP, "8444249301319679"), &[], |e| e.hop < HOP_LIMIT - (1 << 49) && e.hop == 8444249301319679);
}

#[test]
fn a_repaired_hop_without_a_plausible_timestamp_is_above_all_others_and_tells_records_apart() {
    let hop = |stage, offset, timestamp_ms| {
        let at = Coordinates { partition: 0, offset, timestamp_ms };
        read_at(stage, at, &on_retry_2(&[(HOP, ""), (STAGE, &stage.to_string())])).hop
    };
    for timestamp in [-1, 0, 3, i64::MIN, i64::MAX] {
        for offset in [0, 1, i64::MAX] {
            assert!((1 << 52..HOP_LIMIT - (1 << 50)).contains(&hop(2, offset, timestamp)), "{timestamp} {offset}");
        }
    }
    assert_eq!(hop(2, 5, -1), hop(2, 5, -1));
    assert_ne!(hop(2, 5, -1), hop(2, 6, -1));
    assert_ne!(hop(2, 5, -1), hop(1, 5, -1));
}

#[test]
fn a_retry_record_without_origin_has_its_own_coordinates() {
    let coordinates = format!("shop.billing.retry-2:3:42:{WRITTEN}");
    for origin in ["", "shop:3:7", "shop:3:7:1:2", "sh op:3:7:1", ":3:7:1", "shop:-3:7:1", "shop:3:-7:1", "shop:3:7:-2"]
    {
        check((ORIGIN, origin), &[ORIGIN], |e| e.origin.to_string() == coordinates && &*e.event_id == "id-1");
    }
    check((ORIGIN, "shop:3:7:-1"), &[], |e| e.origin.timestamp_ms == -1);
    let envelope = read_at(2, AT, &on_retry_2(&[(ORIGIN, ""), (EVENT_ID, "")]));
    assert_eq!(*envelope.event_id, coordinates);
    assert_eq!(repairs(&envelope), [EVENT_ID, ORIGIN]);
}

#[test]
fn a_retry_record_without_id_falls_back_to_its_origin() {
    check((EVENT_ID, ""), &[EVENT_ID], |e| &*e.event_id == "shop:3:7:1699999990000");
}

#[test]
fn the_last_header_of_a_name_counts() {
    let mut pairs = on_retry_2(&[]);
    pairs.extend(headers(&[(ATTEMPT, "1"), (ATTEMPT, "3")]));
    assert_eq!(read_at(2, AT, &pairs).attempt, 3);
    pairs.push((ATTEMPT.into(), None));
    let envelope = read_at(2, AT, &pairs);
    assert_eq!((envelope.attempt, repairs(&envelope)), (2, vec![ATTEMPT]));
}

fn check_id(pairs: &[(&str, &str)], id: &str) {
    assert_eq!(&*read_at(0, AT, &headers(pairs)).event_id, id, "{pairs:?}");
}

#[test]
fn ids_come_from_the_first_usable_source() {
    let coordinates = format!("shop:3:42:{WRITTEN}");
    check_id(&[], &coordinates);
    check_id(&[("MessageID", "m"), ("ce_id", "c"), ("ce_source", "s"), (EVENT_ID, "e")], "e");
    check_id(&[("MessageID", "m"), ("ce_id", "c"), ("ce_source", "s")], "s/c");
    check_id(&[("MessageID", "m"), ("ce_id", "c")], "m");
    check_id(&[("MessageID", "m"), ("ce_source", "s")], "m");
    check_id(&[("MessageID", "m"), ("ce_id", "c"), ("ce_source", " ")], "m");
    for missing in ["", "0", " ", "\t\n", " 0 ", "\u{a0}"] {
        check_id(&[(EVENT_ID, missing), ("MessageID", "m")], "m");
        check_id(&[("MessageID", missing)], &coordinates);
        check_id(&[("ce_id", missing), ("ce_source", "s")], &coordinates);
    }
    check_id(&[("MessageID", "00")], "00");
    check_id(&[("MessageID", "m"), ("MessageID", "n")], "n");
    let not_utf8 = vec![(b"MessageID".to_vec(), Some(vec![0xff, b'm']))];
    assert_eq!(*read_at(0, AT, &not_utf8).event_id, coordinates);
}

#[test]
fn source_and_id_of_cloud_events_cannot_be_mistaken_for_others() {
    check_id(&[("ce_source", "/a/b"), ("ce_id", "c")], "/a/b/c");
    check_id(&[("ce_source", "/a"), ("ce_id", "b/c")], "/a/b%2Fc");
    check_id(&[("ce_source", "/a"), ("ce_id", "b%2Fc")], "/a/b%252Fc");
}

#[test]
fn the_field_of_the_payload_is_the_id_where_it_is_configured() {
    let ladder = ladder();
    let id = |stage, pairs: &Headers, field| read(&ladder, stage, AT, iter(pairs), &IdSource::Field, field).event_id;
    let main = headers(&[("MessageID", "m"), (EVENT_ID, "e")]);
    assert_eq!(&*id(0, &main, Some("f")), "f");
    for missing in [None, Some(""), Some("0"), Some("  ")] {
        assert_eq!(*id(0, &main, missing), format!("shop:3:42:{WRITTEN}"));
    }
    assert_eq!(&*id(2, &on_retry_2(&[]), Some("f")), "id-1");
}

#[test]
fn an_id_too_long_to_travel_is_hashed() {
    let id = "x".repeat(2049);
    let read = read_at(0, AT, &headers(&[("MessageID", &id)])).event_id;
    assert!(read.starts_with("sha256=") && read.len() == 71, "{read}");
    let keys = CopyKeys::new("idem", &ladder());
    assert_eq!(keys.prefix(Some(&id)), keys.prefix(Some(&read)), "found by the id that its producer gave it, too");
    check_id(&[("MessageID", &id[1..])], &id[1..]);
}

#[test]
fn keys_name_one_copy_and_nothing_else() {
    let ladder = ladder();
    let keys = CopyKeys::new("idem", &ladder);
    assert_eq!(&*keys.key("id-1", 2), "idem:billing:shop:id-1:2");
    assert_eq!(copy_key("idem", &ladder, &read_at(2, AT, &on_retry_2(&[]))), keys.key("id-1", 2));
    assert_eq!(&*keys.key("a:b{c}%ü *", 0), "idem:billing:shop:a%3Ab%7Bc%7D%25%C3%BC%20%2A:0");
    assert_eq!(&*CopyKeys::new("a:b", &ladder).key("i", 0), "a%3Ab:billing:shop:i:0");
    assert_eq!(&*keys.key(&"x".repeat(200), 0), format!("idem:billing:shop:{}:0", "x".repeat(200)));
    assert_eq!(
        &*keys.key(&"a".repeat(201), 1),
        // sha-256 of 201 times `a`, from coreutils.
        "idem:billing:shop:sha256=a92efd82109373e58f9a2056dee01e807e216ce6075f7051207c0a9f7d666e50:1"
    );
    assert_eq!(keys.prefix(None), "idem:billing:shop:");
    assert_eq!(keys.prefix(Some("id:1")), "idem:billing:shop:id%3A1:");
}

#[test]
fn a_fence_is_the_time_or_one_more_than_the_last() {
    let at = Timestamp::from_micros(1_700_000_000_999);
    assert_eq!(next_fence(at, 0), 1_700_000_000);
    assert_eq!(next_fence(at, 1_699_999_999), 1_700_000_000);
    assert_eq!(next_fence(at, 1_700_000_000), 1_700_000_001);
    assert_eq!(next_fence(at, (1 << 53) - 1), (1 << 53) - 1);
}

#[test]
fn an_unreadable_history_is_none_and_a_long_one_keeps_the_newest() {
    let history_of = |json: &str| history(iter(&headers(&[(HISTORY, json)])).collect::<Vec<_>>().into_iter()).len();
    for broken in ["", "[", "{}", "[1]", "null", "[{\"s\":1}]", &"[".repeat(5000), &"9".repeat(9000)] {
        assert_eq!(history_of(broken), 0, "{broken:.20}");
    }
    // Ours never exceed the limit, so a longer one is not ours.
    assert_eq!(history_of(&format!("[{}{}]", r#"{"s":1,"t":1,"ms":2,"e":"x","m":"y"}"#, " ".repeat(8192))), 0);
    let entry = |n: usize| format!(r#"{{"s":{n},"t":1,"ms":2,"e":"transient","m":"a\u0007\"b"}}"#);
    let json = format!("[{}]", (0..20).map(entry).collect::<Vec<_>>().join(","));
    let pairs = headers(&[(HISTORY, &json)]);
    let entries = history(iter(&pairs));
    assert_eq!(entries.iter().map(|e| e.stage).collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
    assert_eq!(entries[0].message, "a \"b");
}

#[test]
fn a_history_of_whatever_origin_keeps_to_the_limits_of_ours() {
    let (plain, escaped) = ("e".repeat(130), format!("{}€", r#"\""#.repeat(127)));
    for (class, message, expected) in [
        ("transient", plain.as_str(), "e".repeat(128)),
        ("transient", &escaped, "\"".repeat(127)), // and no half of a character
        ("sixteen-bytes-..", "m", "m".to_owned()),
        ("sixteen-bytes-..too long", "m", "m".to_owned()),
        ("sixteen-bytes-.\\u0007too long", "m", "m".to_owned()),
    ] {
        let json = format!(r#"[{{"s":1,"t":1,"ms":2,"e":"{class}","m":"{message}"}}]"#);
        let pairs = headers(&[(HISTORY, &json)]);
        let entries = history(iter(&pairs));
        assert_eq!(entries[0].message, expected);
        assert!(class == "transient" || entries[0].class.len() == 16, "{}", entries[0].class);
    }
    // Of exactly the limit.
    let filled = |left: usize| format!("[{}{}]", r#"{"s":1,"t":1,"ms":2,"e":"x","m":"y"}"#, " ".repeat(left));
    let json = filled(MAX_OWN_BYTES - filled(0).len());
    assert_eq!(history(iter(&headers(&[(HISTORY, &json)]))).len(), 1);
}

#[test]
fn an_error_is_a_class_and_a_text() {
    assert_eq!(parse_error(b"transient: a: b"), Some(("transient", "a: b")));
    assert_eq!(parse_error(b"poison: "), Some(("poison", "")));
    assert_eq!(parse_error(b"poison"), None);
    assert_eq!(parse_error(b"\xff: x"), None);
}

/// Headers of ours, nearly of ours and of nobody, with values from numbers to noise.
pub(super) fn hostile() -> impl Strategy<Value = Headers> {
    let name = prop_oneof![
        4 => (0..NAMES.len()).prop_map(|i| NAMES[i].as_bytes().to_vec()),
        1 => prop_oneof![Just("ce_id"), Just("ce_source"), Just("MessageID"), Just(TRACEPARENT), Just(TRACESTATE),
             Just("__dlq.errors.topic"), Just("kafka_dlt-original-offset")].prop_map(|n| n.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        any::<u64>().prop_map(|n| n.to_string().into_bytes()),
        (0..5_u64).prop_map(|n| n.to_string().into_bytes()),
        Just(b"billing".to_vec()),
        Just(b"shop:1:2:3".to_vec()),
        "[\\[\\]{}:,\"0-9a-z]{0,40}".prop_map(String::into_bytes),
        (0..3_000_usize).prop_map(|n| vec![b'7'; n]),
        Just(br#"[{"s":1,"t":1,"ms":2,"e":"transient","m":"x"}]"#.to_vec()),
    ];
    proptest::collection::vec((name, proptest::option::weighted(0.9, value)), 0..24)
}

proptest! {
    #[test]
    fn any_bytes_give_an_envelope_within_its_limits(
        pairs in hostile(), stage in 0..7_usize, partition in any::<i32>(), offset in any::<i64>(), timestamp_ms in any::<i64>(),
    ) {
        let ladder = ladder();
        let at = Coordinates { partition, offset, timestamp_ms };
        let envelope = read_at(stage, at, &pairs);
        prop_assert_eq!(envelope.stage, stage.min(4));
        prop_assert!(envelope.attempt <= MAX_ATTEMPT);
        prop_assert!(envelope.hop < HOP_LIMIT);
        prop_assert!(stage == 0 || envelope.hop > 0);
        prop_assert!(!envelope.event_id.trim().is_empty() && &*envelope.event_id != "0" && envelope.event_id.len() <= 2048);
        prop_assert_eq!(envelope.due.is_some(), ladder.rungs()[envelope.stage].delay.is_some());
        let again = read_at(stage, at, &pairs);
        prop_assert_eq!(envelope, again);
        let _: Vec<_> = history(iter(&pairs));
    }

    #[test]
    fn distinct_copies_have_distinct_keys(a in ".{1,60}", b in ".{1,60}", hop_a in any::<u64>(), hop_b in any::<u64>()) {
        let keys = CopyKeys::new("idem", &ladder());
        let (key_a, key_b) = (keys.key(&a, hop_a), keys.key(&b, hop_b));
        prop_assert_eq!(key_a == key_b, a == b && hop_a == hop_b);
        prop_assert_eq!(key_a.split(':').count(), 5);
        prop_assert!(key_a.bytes().all(|b| b.is_ascii_alphanumeric() || b":%-_.~=".contains(&b)));
    }
}
