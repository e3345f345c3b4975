//! The rules of a ladder, one fault a line.

use super::*;

const S: Duration = Duration::from_secs(1);

fn spec() -> LadderSpec {
    LadderSpec::new("orders", "billing", "shop").retry(5 * S).retry(30 * S).retry(300 * S)
}

#[test]
fn rungs_have_the_names_topics_and_groups_of_the_contract() {
    let ladder = Ladder::new(spec()).unwrap();
    let seen: Vec<_> = ladder.rungs().iter().map(|r| (r.index, &*r.name, &*r.topic, &*r.group_id)).collect();
    assert_eq!(
        seen,
        [
            (0, "main", "shop", "billing"),
            (1, "retry-1", "shop.billing.retry-1", "billing.retry-1"),
            (2, "retry-2", "shop.billing.retry-2", "billing.retry-2"),
            (3, "retry-3", "shop.billing.retry-3", "billing.retry-3"),
            (4, "dlq", "shop.billing.dlq", "billing.dlq"),
        ]
    );
    assert_eq!(ladder.total_delay(), 335 * S);
    assert_eq!(ladder.retries().len(), 3);
    assert_eq!(ladder.last_retry().unwrap().index, 3);
    assert_eq!(ladder.dlq().index, 4);
    assert_eq!(ladder.dlq().delay, None);
    assert_eq!(ladder.above(1).first().unwrap().index, 2);
    assert!(ladder.above(3).is_empty() && ladder.above(4).is_empty() && ladder.above(99).is_empty());
    assert_eq!(&**ladder.redrive_topic(), "shop.billing.redrive");
    assert_eq!(ladder.max_deferrals(), 10);
    assert_eq!(ladder.rung_named("retry-2").unwrap().index, 2);
}

#[test]
fn a_ladder_may_have_no_retry_stage() {
    let ladder = Ladder::new(LadderSpec::new("p", "g", "t")).unwrap();
    assert_eq!(ladder.rungs().len(), 2);
    assert!(ladder.retries().is_empty() && ladder.last_retry().is_none());
    assert_eq!(ladder.dlq().index, 1);
    assert_eq!(ladder.total_delay(), Duration::ZERO);
}

#[test]
fn topics_can_be_named_by_hand() {
    let mut spec = spec();
    spec.retries[1].topic = Some("second".into());
    spec.dlq_topic = Some("graveyard".into());
    let ladder = Ladder::new(spec).unwrap();
    assert_eq!(&*ladder.rungs()[2].topic, "second");
    assert_eq!(&*ladder.dlq().topic, "graveyard");
}

#[test]
fn sixteen_retry_stages_are_possible() {
    let spec = (1..=16).fold(LadderSpec::new("p", "g", "t"), |spec, i| spec.retry(i * S));
    assert_eq!(Ladder::new(spec).unwrap().dlq().index, 17);
}

fn check(change: impl Fn(&mut LadderSpec), keys: &[&str], texts: &[&str]) {
    let mut spec = spec();
    change(&mut spec);
    let faults = Ladder::new(spec).expect_err("a fault");
    assert_eq!(faults.iter().map(LadderFault::key).collect::<Vec<_>>(), keys);
    for (fault, text) in faults.iter().zip(texts) {
        assert!(fault.to_string().contains(text), "{fault}");
    }
}

#[test]
fn faults_name_the_key_the_value_and_what_would_be_right() {
    check(|s| s.group = " ".into(), &["group"], &["needs a name"]);
    check(|s| s.pipeline = String::new(), &["pipeline"], &["needs a name"]);
    check(|s| s.retries[1].delay = 5 * S, &["retries[1].delay"], &["longer than 5s"]);
    check(|s| s.retries[1].delay = S, &["retries[1].delay"], &["is 1s"]);
    check(|s| s.retries[0].delay = Duration::ZERO, &["retries[0].delay"], &["at least 1ms"]);
    check(|s| s.retries[2].jitter = 0.11, &["retries[2].jitter"], &["between 0 and 0.1"]);
    check(|s| s.retries[2].jitter = -0.01, &["retries[2].jitter"], &[]);
    check(|s| s.retries[2].jitter = f64::NAN, &["retries[2].jitter"], &[]);
    check(|s| s.max_event_age = Some(Duration::ZERO), &["max_event_age"], &["leave it out"]);
    check(
        |s| s.retries.extend((0..14).map(|i| RetrySpec { delay: (400 + i) * S, topic: None, jitter: 0.0 })),
        &["retries"],
        &["17 stages, at most 16"],
    );
    check(|s| s.topic = "sh op".into(), &["topic"], &["`sh op` is no legal topic name"]);
    check(|s| s.dlq_topic = Some("..".into()), &["dlq.topic"], &[]);
    check(|s| s.dlq_topic = Some("x".repeat(250)), &["dlq.topic"], &[]);
    check(|s| s.retries[0].topic = Some(String::new()), &["retries[0].topic"], &[]);
}

#[test]
fn topics_must_be_pairwise_distinct() {
    check(
        |s| s.dlq_topic = Some("shop.billing.retry-2".into()),
        &["dlq.topic"],
        &["already that of `retries[1].topic`"],
    );
    check(|s| s.dlq_topic = Some("shop".into()), &["dlq.topic"], &["already that of `topic`"]);
    check(|s| s.retries[1].topic = Some("shop".into()), &["retries[1].topic"], &[]);
    check(|s| s.dlq_topic = Some("shop_billing.retry-2".into()), &["dlq.topic"], &["`.` and `_`"]);
    check(|s| s.dlq_topic = Some("shop.billing.redrive".into()), &["redrive topic"], &[]);
}

#[test]
fn every_fault_is_reported_at_once() {
    check(
        |s| {
            s.pipeline.clear();
            s.retries[1].delay = S;
            s.retries[0].jitter = 1.0;
            s.dlq_topic = Some("shop".into());
        },
        &["pipeline", "retries[0].jitter", "retries[1].delay", "dlq.topic"],
        &[],
    );
}

#[test]
fn a_group_must_fit_into_a_header() {
    let mut spec = spec();
    spec.group = "g".repeat(256);
    assert_eq!(Ladder::new(spec), Err(vec![LadderFault::GroupTooLong { len: 256 }]));
}
