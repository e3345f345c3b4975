//! Where events end: done, on the next topic, in the DLQ, known already.

use super::ports::{Answer, Fault, Lines};
use super::*;
use crate::ladder::event::Reason;
use crate::stage::context::Tombstones;

#[tokio::test(start_paused = true)]
async fn success_is_recorded_before_the_position_moves() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.fail(|f| f.settle = Fault::Down);
    let mut lane = rig.lane(records(0..1));
    rig.until("it ran", || rig.handler.count() == 1).await;
    rig.pass(SECOND * 20).await;
    assert_eq!(lane.position(), Some(0), "nothing is recorded yet");
    rig.store.all(Fault::None);
    rig.position(&lane, 1).await;
    assert_eq!(rig.stored("e0", 0), "1");
    assert_eq!((rig.stats().done.get(), rig.handler.count(), rig.producer.count()), (1, 1, 0));
    assert_eq!(rig.drain(&mut lane).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_failure_moves_on_unchanged_but_for_our_headers_and_is_recorded_after_the_acknowledgement() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Hold]);
    let mut sent = record(0);
    sent.partition = 2;
    sent.headers.push(header("colour", "blue"));
    sent.headers.push(("no value".into(), None));
    let lane = rig.lane([sent.clone()]);
    rig.until("it is with the producer", || rig.producer.held() == 1).await;
    assert_eq!(lane.position(), Some(0));
    assert!(rig.stored("e0", 0).starts_with("P."), "{}", rig.stored("e0", 0));
    rig.producer.answer_held(Ok(()));
    rig.position(&lane, 1).await;
    assert_eq!(rig.stored("e0", 0), "F");
    assert_eq!((rig.stats().forwarded.get(), rig.stats().done.get()), (1, 0));

    let out = &rig.producer.published()[0];
    assert_eq!((&*out.topic, out.partition), ("orders.billing.retry-1", Some(2)));
    assert_eq!((&out.key, &out.value), (&sent.key, &sent.value));
    assert_eq!(out.headers[..3], sent.headers[..], "what others wrote comes first, untouched");
    let due = START_MS + 5_000;
    let checks = [
        ("x-ladder-event-id", "e0".to_owned()),
        ("x-ladder-stage", "1".into()),
        ("x-ladder-attempt", "1".into()),
        ("x-ladder-hop", "1".into()),
        ("x-ladder-due", due.to_string()),
        ("x-ladder-origin", format!("orders:2:0:{START_MS}")),
        ("x-ladder-error", "transient: no luck".into()),
        ("x-ladder-fence", rig.handler.events()[0].fence.to_string()),
    ];
    for (name, expected) in checks {
        assert_eq!(value_of(out, name), expected, "{name}");
    }
}

#[test]
fn a_hop_keeps_its_partition_where_the_target_has_as_many_and_goes_by_key_elsewhere() {
    let partitions = Partitions(vec![3, 2, 3, 6]);
    let targets = [1, 2, 3].map(|target| partitions.keep(MAIN, target, 1));
    assert_eq!(targets, [None, Some(1), Some(1)]);
    assert_eq!(partitions.keep(3, 2, 1), None, "main has fewer than the source");
    assert_eq!((partitions.keep(MAIN, 2, 5), partitions.keep(MAIN, 9, 0)), (None, None), "unknown numbers");
}

/// Runs one record with one outcome; the topic that it went to, empty for none.
async fn goes_to(stage: usize, sent: Record, outcome: Outcome) -> (Rig, String) {
    let rig = Rig::new(stage, as_usual, move |_| {
        let outcome = outcome.clone();
        async move { outcome }
    });
    let end = sent.offset + 1;
    let mut lane = rig.lane([sent]);
    rig.position(&lane, end).await;
    assert_eq!(rig.drain(&mut lane).await, Some(end));
    let topic = rig.producer.published().first().map_or(String::new(), |out| out.topic.to_string());
    (rig, topic)
}

#[tokio::test(start_paused = true)]
async fn each_outcome_goes_where_the_ladder_says() {
    let transient = || Failure::transient("t");
    let after = |s: u64| Outcome::Failed(transient().retry_after(SECOND * s as u32));
    let cases = [
        (MAIN, Outcome::Done, ""),
        (MAIN, Outcome::Failed(transient()), "retry-1"),
        (MAIN, Outcome::Failed(Failure::permanent("p")), "dlq"),
        (MAIN, Outcome::Failed(Failure::poison("p")), "dlq"),
        (MAIN, after(3), "retry-1"),
        (MAIN, after(20), "retry-2"),
        (MAIN, after(20_000), "retry-2"),
        (RETRY_1, Outcome::Failed(transient()), "retry-2"),
        (RETRY_1, after(20), "retry-2"),
        (RETRY_2, Outcome::Failed(transient()), "dlq"),
        (RETRY_2, after(20), "dlq"),
        (RETRY_2, after(31), "retry-2"),
        (DLQ, Outcome::Done, ""),
        (DLQ, Outcome::Failed(transient()), ""),
    ];
    for (stage, outcome, expected) in cases {
        let sent = if stage == MAIN { record(7) } else { retry(stage, 7, SECOND) };
        let (rig, topic) = goes_to(stage, sent, outcome.clone()).await;
        let expected = if expected.is_empty() { String::new() } else { format!("orders.billing.{expected}") };
        assert_eq!(topic, expected, "stage {stage}, {outcome:?}");
        assert_eq!(rig.handler.count(), 1);
        assert_eq!(rig.stored("e7", stage as u64), if topic.is_empty() { "1" } else { "F" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_deferral_charges_no_attempt_and_is_counted_as_such() {
    let wish = Outcome::Failed(Failure::transient("later").retry_after(SECOND * 60));
    let (rig, _) = goes_to(RETRY_2, retry(RETRY_2, 0, SECOND), wish).await;
    let out = &rig.producer.published()[0];
    let seen = ["stage", "attempt", "hop", "deferrals", "due"].map(|name| value_of(out, &format!("x-ladder-{name}")));
    let due = (START_MS + 31_000).to_string();
    assert_eq!(seen, ["2", "2", "3", "1", &due]);
    assert_eq!((rig.stats().deferred.get(), rig.stats().forwarded.get()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_wish_is_kept_in_the_due() {
    let wish = Outcome::Failed(Failure::transient("later").retry_after(SECOND * 20));
    let (rig, _) = goes_to(MAIN, record(0), wish).await;
    assert_eq!(value_of(&rig.producer.published()[0], "x-ladder-due"), (START_MS + 20_000).to_string());
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_read_goes_to_the_dlq_and_never_to_a_handler() {
    let rig = Rig::new(MAIN, as_usual, done);
    let sent = Record { value: Some("bad".into()), ..record(0) };
    let lane = rig.lane([sent.clone()]);
    rig.position(&lane, 1).await;
    let out = &rig.producer.published()[0];
    assert_eq!((&*out.topic, &out.value), ("orders.billing.dlq", &sent.value), "the original bytes");
    assert_eq!((value_of(out, "x-ladder-error"), value_of(out, "x-ladder-attempt")), ("poison: not a message", "0"));
    assert_eq!((rig.handler.count(), rig.stats().executions.get()), (0, 0));
    assert_eq!(rig.stats().dead_lettered(Reason::Poison).get(), 1);
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn tombstones_are_treated_as_configured() {
    for (tombstones, executions, published) in
        [(Tombstones::DeadLetter, 0, 1), (Tombstones::Deliver, 1, 0), (Tombstones::Skip, 0, 0)]
    {
        let rig = Rig::new(MAIN, |s| s.tombstones = tombstones, done);
        let lane = rig.lane([Record { value: None, ..record(0) }]);
        rig.position(&lane, 1).await;
        assert_eq!((rig.handler.count(), rig.producer.count()), (executions, published), "{tombstones:?}");
        let out = rig.producer.published();
        assert!(out.iter().all(|out| out.value.is_none() && &*out.topic == "orders.billing.dlq"), "{out:?}");
        rig.is_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_finished_or_moved_on_is_done_without_a_run() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.records.set(&rig.ctx.keys.key("e0", 0), "1", SECOND * 99);
    rig.store.records.set(&rig.ctx.keys.key("e1", 0), "F", SECOND * 99);
    let lane = rig.lane(records(0..3));
    rig.position(&lane, 3).await;
    assert_eq!(rig.handler.ids(), ["e2"]);
    assert_eq!((rig.stats().duplicates.get(), rig.stats().done.get()), (2, 1));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_is_not_acknowledged_is_repeated_until_it_is() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Unacknowledged; 4]);
    let lane = rig.lane(records(0..1));
    rig.position(&lane, 1).await;
    assert_eq!((rig.producer.count(), rig.handler.count(), rig.stats().republished.get()), (5, 1, 4));
    let hops: Vec<_> = rig.producer.published().iter().map(|out| value_of(out, "x-ladder-hop").to_owned()).collect();
    assert_eq!(hops, ["1"; 5], "all of them are one copy");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_broker_is_a_line_a_second_that_counts_and_not_one_for_each_event() {
    let (subscriber, lines) = Lines::new();
    let _guard = tracing::subscriber::set_default(subscriber);
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Unacknowledged; 400]);
    let lane = rig.lane(records(0..100));
    rig.position(&lane, 100).await;
    rig.pass(SECOND * 60).await;
    let lines = lines.lock().unwrap().clone();
    assert!((2..=8).contains(&lines.len()), "{lines:?}");
    let count = |line: &String| -> u64 {
        for part in ["publish not acknowledged", "topic=orders", "partition=0", "timed out"] {
            assert!(line.contains(part), "{part} in {line}");
        }
        line.split_once("count=").unwrap().1.split(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(lines.iter().map(count).sum::<u64>(), 400);
}

#[tokio::test(start_paused = true)]
async fn the_id_may_be_a_field_of_the_payload() {
    let rig = Rig::new(MAIN, |s| s.id_source = crate::ladder::headers::IdSource::Field, done);
    let lane = rig.lane([Record { value: Some("order-9".into()), ..record(0) }]);
    rig.position(&lane, 1).await;
    assert_eq!(rig.stored("order-9", 0), "1");
}

#[tokio::test(start_paused = true)]
async fn the_handler_is_told_all_of_the_event() {
    let rig = Rig::new(RETRY_2, as_usual, done);
    let lane = rig.lane([retry(RETRY_2, 3, Duration::ZERO)]);
    rig.position(&lane, 4).await;
    let event = &rig.handler.events()[0];
    assert_eq!((&*event.pipeline, &*event.group, &*event.message), ("orders", "billing", "shop.v1.OrderPlaced"));
    assert_eq!((&*event.id, event.attempt, event.stage, &*event.stage_name), ("e3", 3, 2, "retry-2"));
    assert_eq!((event.fence, event.deadline.floor_millis()), (START_MS, START_MS + 30_000));
    assert_eq!((event.origin.offset, event.record.offset, &event.payload[..]), (3, 3, &b"value"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_settled_copy_is_remembered_and_the_first_after_a_redrive_as_long_as_its_dead_letter_may_be_redriven() {
    let days = |n: u32| SECOND * 86_400 * n;
    for (outcome, redrive, attempt, expected) in [
        (Outcome::Done, "", "1", days(2)),
        (Outcome::Failed(Failure::transient("t")), "", "1", days(3)),
        (Outcome::Done, "1", "0", days(30)),
        (Outcome::Failed(Failure::transient("t")), "1", "0", days(30)),
        (Outcome::Done, "1", "1", days(2)),
    ] {
        let tune = |s: &mut StageSettings| (s.done_ttl, s.handed_ttl, s.redriven_ttl) = (days(2), days(3), days(30));
        let what = format!("{outcome:?}, redrive {redrive:?}, attempt {attempt}");
        let rig = Rig::new(RETRY_1, tune, move |_| std::future::ready(outcome.clone()));
        let mut sent = retry(RETRY_1, 0, Duration::ZERO);
        sent.headers.retain(|(name, _)| name != "x-ladder-attempt");
        sent.headers.push(header("x-ladder-attempt", attempt));
        sent.headers.extend((!redrive.is_empty()).then(|| header("x-ladder-redrive", redrive)));
        let lane = rig.lane([sent]);
        rig.position(&lane, 1).await;
        let (_, ttl) = rig.store.records.get(&rig.ctx.keys.key("e0", 1)).expect("recorded");
        assert!(ttl <= expected && ttl > expected - SECOND, "{ttl:?}: {what}");
    }
}
