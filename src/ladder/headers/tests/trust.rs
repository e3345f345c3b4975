//! Whose headers are believed: rules 5 and 6 of the deduplication protocol, one table per topic.

use super::*;

/// Every header of ours, as another record of ours has them.
const FULL: [(&str, &str); 12] = [
    (EVENT_ID, "theirs"),
    (STAGE, "1"),
    (ATTEMPT, "4"),
    (HOP, "5"),
    (FENCE, "77"),
    (DUE, "99"),
    (ORIGIN, "other:0:1:2"),
    (ERROR, "transient: x"),
    (HISTORY, "[]"),
    (REDRIVE, "2"),
    (REDRIVEN_AT, "1600000000000"),
    (DEFERRALS, "3"),
];

fn record(group: &str, without: &[&str], extra: &[(&str, &str)]) -> Headers {
    let mut pairs: Vec<_> = FULL.into_iter().filter(|(name, _)| !without.contains(name)).collect();
    pairs.push((GROUP, group));
    pairs.retain(|(_, value)| !value.is_empty());
    pairs.extend(extra);
    headers(&pairs)
}

fn assert_new(envelope: &Envelope, id: &str) {
    assert_eq!(&*envelope.event_id, id);
    assert_eq!((envelope.hop, envelope.attempt, envelope.fence), (0, 0, 0));
    assert_eq!((envelope.redrives, envelope.deferrals, envelope.redriven_at, envelope.due), (0, 0, None, None));
    assert_eq!(envelope.origin, AT.on("shop"));
    assert!(!envelope.own);
    assert!(envelope.repaired.is_empty(), "{:?}", envelope.repaired);
}

#[test]
fn main_believes_a_redrive_of_our_own_group() {
    let envelope = read_at(0, AT, &record("billing", &[STAGE], &[]));
    assert_eq!(&*envelope.event_id, "theirs");
    assert_eq!((envelope.hop, envelope.attempt, envelope.fence), (5, 4, 77));
    assert_eq!((envelope.redrives, envelope.deferrals), (2, 3));
    assert_eq!(envelope.origin.to_string(), "other:0:1:2");
    assert!(envelope.own && !envelope.untrusted && envelope.repaired.is_empty());
}

#[test]
fn a_redrive_to_main_with_a_broken_hop_never_meets_an_older_key() {
    for hop in [None, Some("0"), Some("x")] {
        let extra: Vec<_> = hop.map(|hop| (HOP, hop)).into_iter().collect();
        let envelope = read_at(0, AT, &record("billing", &[STAGE, HOP], &extra));
        assert_eq!(envelope.hop, WRITTEN as u64, "{hop:?}");
        assert_eq!(envelope.repaired.names().collect::<Vec<_>>(), [HOP]);
    }
}

#[test]
fn main_reads_a_redrive_of_another_group_as_a_new_event_of_the_configured_id() {
    for group in ["analytics", "", "billing2", "Billing"] {
        let envelope = read_at(0, AT, &record(group, &[], &[]));
        assert_new(&envelope, "theirs");
        assert!(!envelope.untrusted);
        // The configured source decides, not our header.
        let source = IdSource::Headers(vec!["MessageID".into()]);
        let pairs = record(group, &[], &[("MessageID", "m")]);
        let envelope = read(&ladder(), 0, AT, iter(&pairs), &source, None);
        assert_new(&envelope, "m");
    }
}

#[test]
fn main_ignores_all_headers_of_a_record_that_another_service_copied() {
    for group in ["billing", "analytics", ""] {
        let envelope = read_at(0, AT, &record(group, &[REDRIVE], &[]));
        assert_new(&envelope, &format!("shop:3:42:{WRITTEN}"));
        assert!(envelope.untrusted);
        let envelope = read_at(0, AT, &record(group, &[REDRIVE], &[("MessageID", "m")]));
        assert_new(&envelope, "m");
    }
    // A hop without a value is a hop.
    let mut pairs = headers(&[(EVENT_ID, "e")]);
    pairs.push((HOP.into(), None));
    assert!(read_at(0, AT, &pairs).untrusted);
}

#[test]
fn main_takes_a_producers_id_but_no_other_header_without_hop_and_redrive() {
    for group in ["billing", "analytics", ""] {
        let envelope = read_at(0, AT, &record(group, &[REDRIVE, HOP], &[]));
        assert_new(&envelope, "theirs");
        assert!(!envelope.untrusted);
    }
}

#[test]
fn our_own_group_makes_our_id_win_over_the_configured_source() {
    let source = IdSource::Headers(vec!["MessageID".into()]);
    let id = |stage, pairs: &Headers| read(&ladder(), stage, AT, iter(pairs), &source, None).event_id;
    let own = record("billing", &[], &[("MessageID", "m")]);
    let foreign = record("analytics", &[], &[("MessageID", "m")]);
    for stage in [0, 1, 4] {
        assert_eq!(&*id(stage, &own), "theirs");
        assert_eq!(&*id(stage, &foreign), "m");
    }
    assert_eq!(&*id(0, &record("billing", &[HOP, REDRIVE], &[("MessageID", "m")])), "theirs");
    assert_eq!(&*id(1, &record("billing", &[EVENT_ID], &[("MessageID", "m")])), "m");
}

#[test]
fn a_retry_topic_believes_only_our_own_group() {
    for group in ["analytics", ""] {
        let envelope = read_at(1, AT, &record(group, &[], &[]));
        assert_eq!(&*envelope.event_id, "theirs");
        assert_eq!(envelope.hop, WRITTEN as u64);
        assert_eq!(envelope.origin, AT.on("shop.billing.retry-1"));
        assert_eq!((envelope.fence, envelope.redrives, envelope.deferrals, envelope.redriven_at), (0, 0, 0, None));
        // Bounded by the topic, so anybody may say them.
        assert_eq!((envelope.attempt, envelope.due), (4, Some(ms(99))));
        assert!(!envelope.own && !envelope.untrusted);
        assert_eq!(envelope.repaired.names().collect::<Vec<_>>(), [GROUP]);
    }
}

#[test]
fn a_bare_record_on_a_retry_topic_is_an_event_of_its_own() {
    let envelope = read_at(3, AT, &headers(&[]));
    let coordinates = format!("shop.billing.retry-3:3:42:{WRITTEN}");
    assert_eq!(*envelope.event_id, coordinates);
    assert_eq!(envelope.origin.to_string(), coordinates);
    assert_eq!((envelope.attempt, envelope.hop), (3, WRITTEN as u64));
    assert_eq!(envelope.due, Some(ms(WRITTEN + 300_000)));
    assert_eq!(envelope.repaired.names().collect::<Vec<_>>(), [STAGE, ATTEMPT, DUE, GROUP]);
}
