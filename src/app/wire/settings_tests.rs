//! What of the configuration reaches which stage.

use super::*;
use crate::config::Sources;

fn pipeline(keys: &str) -> config::Pipeline {
    let yaml = format!(
        "pipelines: {{orders: {{topic: orders, message: shop.v1.OrderPlaced, handler: {{log: {{}}}}, \
         retries: [{{delay: 5s, concurrency: 7}}, {{delay: 30s}}], {keys}}}}}"
    );
    let loaded = config::load(&Sources::inline("topics.yaml", &yaml)).unwrap_or_else(|faults| panic!("{faults}"));
    loaded.config.pipelines.into_iter().next().unwrap()
}

/// Settings of main.
fn main(keys: &str) -> StageSettings {
    settings(&pipeline(keys)).swap_remove(0)
}

#[test]
fn each_stage_has_the_pipelines_settings_but_for_its_own_concurrency() {
    let all = settings(&pipeline("concurrency: 9, handler_timeout: 12s"));
    assert_eq!(all.iter().map(|s| s.concurrency).collect::<Vec<_>>(), [9, 7, 9, 9]);
    assert!(all.iter().all(|s| s.handler_timeout == Duration::from_secs(12)));
}

#[test]
fn the_dlq_claims_nothing_orders_nothing_and_sees_tombstones() {
    let all = settings(&pipeline("order: stage, tombstones: dead_letter"));
    let seen: Vec<_> = all.iter().map(|s| (s.dedup, s.order, s.tombstones)).collect();
    let usual = (Dedup::Required, Order::Stage, Tombstones::DeadLetter);
    assert_eq!(seen, [usual, usual, usual, (Dedup::Off, Order::None, Tombstones::Deliver)]);
}

#[test]
fn every_choice_of_store_and_outage_has_its_way_of_claiming() {
    for (keys, dedup) in [
        ("store: redis", Dedup::Required),
        ("store: memory, on_unavailable: pause", Dedup::Required),
        ("store: redis, on_unavailable: process", Dedup::BestEffort),
        ("store: off", Dedup::Off),
    ] {
        assert_eq!(main(&format!("idempotency: {{{keys}}}")).dedup, dedup, "{keys}");
    }
}

#[test]
fn choices_and_windows_arrive_as_written() {
    let s = main(
        "order: none, tombstones: skip, compat_headers: [spring], window: {waiting: 5, waiting_bytes: 128KiB, in_flight: 6}",
    );
    assert_eq!((s.order, s.tombstones), (Order::None, Tombstones::Skip));
    assert_eq!((s.compat.kafka, s.compat.spring), (false, true));
    assert_eq!((s.max_waiting, s.max_waiting_bytes, s.max_in_flight), (5, 128 << 10, 6));
    assert_eq!(main("tombstones: deliver").tombstones, Tombstones::Deliver);
}

#[test]
fn times_to_remember_arrive_and_a_redriven_copy_is_remembered_as_long_as_the_dlq_keeps_it() {
    let hours = |n: u64| Duration::from_secs(3_600 * n);
    let s = main("idempotency: {lease: 20s, done_ttl: 48h, handed_ttl: 72h}, dlq: {retention: 240h}");
    assert_eq!((s.lease, s.done_ttl, s.handed_ttl), (Duration::from_secs(20), hours(48), hours(72)));
    assert_eq!(s.redriven_ttl, hours(240));
}

#[test]
fn ids_come_from_the_configured_headers_or_field() {
    assert_eq!(main("event_id: {header: [a, b]}").id_source, IdSource::Headers(vec!["a".into(), "b".into()]));
    assert_eq!(main("event_id: {field: order_id}").id_source, IdSource::Field);
}

#[test]
fn what_a_stage_is_given_by_default_is_what_the_configuration_says_by_default() {
    let (wired, default) = (main(""), StageSettings::default());
    // `Debug` shows every field, so none can be forgotten here.
    assert_eq!(format!("{wired:?}"), format!("{default:?}"));
}

#[test]
fn breaker_and_brake_are_there_by_default_as_configured_and_gone_when_switched_off() {
    let by_default = outage(&pipeline("max_deferrals: 3"));
    let window = BrakeSettings::default().window + Duration::from_secs(35); // and the ladder
    let brake = BrakeSettings { window, ..BrakeSettings::default() };
    assert_eq!(by_default, OutageSettings { breaker: Some(BreakerSettings::default()), brake: Some(brake) });
    let own = outage(&pipeline(
        "breaker: {consecutive_failures: 7, min_time: 2s, slow_failures: 4, slow_time: 3s, cool_down: 5s, max_cool_down: 6s}, \
         brake: {ratio: 0.1, min_events: 8, window: 9m, cool_down: 10s, max_cool_down: 11s}",
    ));
    let s = Duration::from_secs;
    let breaker = BreakerSettings {
        consecutive_failures: 7,
        min_time: s(2),
        slow_failures: 4,
        slow_time: s(3),
        cool_down: s(5),
        max_cool_down: s(6),
    };
    let brake = BrakeSettings { ratio: 0.1, min_events: 8, window: s(575), cool_down: s(10), max_cool_down: s(11) };
    assert_eq!(own, OutageSettings { breaker: Some(breaker), brake: Some(brake) });
    let off = outage(&pipeline("breaker: {enabled: false}, brake: {enabled: false}"));
    assert_eq!(off, OutageSettings::default());
}

#[test]
fn the_ladder_has_the_pipelines_names_delays_and_limits() {
    let ladder = ladder(&pipeline("group: billing, max_event_age: 1d, max_deferrals: 3")).unwrap();
    let rungs: Vec<_> = ladder.rungs().iter().map(|rung| (&*rung.topic, rung.delay.map(|d| d.as_secs()))).collect();
    assert_eq!(
        rungs,
        [
            ("orders", None),
            ("orders.billing.retry-1", Some(5)),
            ("orders.billing.retry-2", Some(30)),
            ("orders.billing.dlq", None),
        ]
    );
    assert_eq!((ladder.max_event_age(), ladder.max_deferrals()), (Some(Duration::from_secs(86_400)), 3));
}
