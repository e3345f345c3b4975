//! Headers of any kind: nothing panics, parks for ever, or is lost.

use super::*;

/// A record of `stage` with one header changed (`None`: taken out).
fn with(stage: usize, name: &str, value: Option<&str>) -> Record {
    let mut sent = retry(stage, 0, SECOND);
    sent.headers.retain(|(n, _)| n != name.as_bytes());
    sent.headers.extend(value.map(|value| header(name, value)));
    sent
}

/// It comes to its end within `latest` (as exactly as [`Rig::until`] looks), having run once.
async fn check(stage: usize, sent: Record, latest: Duration) -> Rig {
    let mut what = format!("stage {stage}, {:?}", sent.headers);
    what.truncate(1_000);
    let rig = Rig::new(stage, as_usual, fail);
    let mut lane = rig.lane([sent]);
    rig.until(&what, || lane.position() == Some(1)).await;
    assert!(rig.clock.elapsed() <= latest + MS * 30, "{:?}: {what}", rig.clock.elapsed());
    assert_eq!((rig.handler.count(), lane.state().halted()), (1, false), "{what}");
    let own: usize = rig
        .producer
        .published()
        .iter()
        .flat_map(|out| &out.headers)
        .filter(|(name, _)| name.starts_with(b"x-ladder-"))
        .map(|(name, value)| name.len() + value.as_ref().map_or(0, |v| v.len()))
        .sum();
    assert!(own <= 8 * 1_024, "{own} bytes of ours: {what}");
    rig.drain(&mut lane).await;
    rig
}

#[tokio::test(start_paused = true)]
async fn a_due_of_any_kind_parks_an_event_for_twice_the_delay_at_most() {
    let far = "99999999999999999999999999999";
    for value in
        [None, Some(""), Some("soon"), Some("-1"), Some("1e99"), Some(far), Some("18446744073709551615"), Some("0")]
    {
        let rig = check(RETRY_1, with(RETRY_1, "x-ladder-due", value), SECOND * 10).await;
        assert_eq!(rig.stats().repaired.get(), u64::from(value != Some("0")), "{value:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_without_a_timestamp_does_not_park() {
    for timestamp_ms in [-1, i64::MIN, 0] {
        let sent = Record { timestamp_ms, ..with(RETRY_1, "x-ladder-due", None) };
        check(RETRY_1, sent, SECOND * 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_header_with_every_kind_of_value_comes_to_an_end() {
    let huge = "9".repeat(100_000);
    let names = [
        "event-id",
        "stage",
        "attempt",
        "hop",
        "fence",
        "due",
        "origin",
        "group",
        "error",
        "history",
        "redrive",
        "redriven-at",
        "deferrals",
    ];
    let values = [
        None,
        Some(""),
        Some("-1"),
        Some("17"),
        Some("4294967296"),
        Some("9007199254740990x"),
        Some("ä€ \n\u{202e}"),
        Some("[[[[{"),
        Some(&huge[..]),
        Some(&huge[..19]),
    ];
    for stage in [MAIN, RETRY_1, RETRY_2, DLQ] {
        for name in names {
            for value in values {
                check(stage, with(stage, &format!("x-ladder-{name}"), value), SECOND * 60).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_and_values_that_are_no_text_come_to_an_end_and_travel_on() {
    let mut sent = retry(RETRY_1, 0, SECOND);
    let theirs = [(&b"\xff\xfe"[..], Some(&b"\x00\xff"[..])), (b"", Some(b"")), (b"x-ladder-unknown", None)];
    sent.headers.extend(theirs.map(|(n, v)| (Bytes::from_static(n), v.map(Bytes::from_static))));
    for name in ["stage", "hop", "due", "group", "event-id", "origin"] {
        sent.headers.push((format!("x-ladder-{name}").into(), Some(Bytes::from_static(b"\xff\x00\xfe"))));
        sent.headers.push((format!("x-ladder-{name}").into(), None));
    }
    let rig = check(RETRY_1, sent, SECOND * 10).await;
    let out = &rig.producer.published()[0];
    for (name, value) in theirs {
        assert!(out.headers.iter().any(|(n, v)| n == name && v.as_deref() == value), "{name:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_of_another_group_do_not_name_our_copies() {
    let rig = check(RETRY_1, with(RETRY_1, "x-ladder-group", Some("shipping")), SECOND * 10).await;
    assert_eq!(rig.stored("e0", 1), "-", "neither their hop is believed");
    let hop: u64 = value_of(&rig.producer.published()[0], "x-ladder-hop").parse().unwrap();
    assert!(hop > START_MS, "{hop}: above every real count");
}

#[tokio::test(start_paused = true)]
async fn a_record_on_main_that_was_copied_with_our_headers_is_a_new_event() {
    let rig = check(MAIN, retry(MAIN, 0, SECOND * 9_999), SECOND).await;
    let out = &rig.producer.published()[0];
    assert_eq!((value_of(out, "x-ladder-hop"), value_of(out, "x-ladder-attempt")), ("1", "1"));
    assert_eq!(value_of(out, "x-ladder-event-id"), format!("orders:0:0:{START_MS}"));
}
