//! The broker goes and comes back, or its answers do not arrive.

use retry_ladder::prove::proxy::Cut;

use super::harness::{Run, fault_test, seconds};
use crate::redis_server::RedisServer;
use crate::support::kafka_server::KafkaCluster;
use crate::support::network::Wire;

fault_test!(a_broker_that_is_away_for_longer_than_a_session_costs_no_event_and_fences_nobody, |test: &str| {
    let redis = RedisServer::start();
    let mut kafka = KafkaCluster::start(1);
    let mut run = Run::new(test, &kafka.brokers(), &redis.url(), 1);
    // The broker will remember this member by its name; the member will have forgotten its id.
    run.start_with("a", |orders| orders.instance = Some("a".into()));
    run.start("b");
    run.load_until_all_work(&["a", "b"]);

    kafka.kill(0);
    let lost = |run: &Run, name: &str| run.worker(name).log().contains("membership lost");
    run.load_until("their sessions end", |run| lost(run, "a") && lost(run, "b"));
    kafka.restart(0);
    run.load_until_all_work(&["a", "b"]);
    // The partitions were given anew while copies were with the producer: their leases go on, there is no excuse.
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});

fault_test!(acknowledgements_that_are_lost_on_the_way_copy_and_repeat_nothing, |test: &str| {
    let redis = RedisServer::start();
    let (kafka, wire) = KafkaCluster::behind(|port| {
        let wire = Wire::to(port);
        let advertised = wire.port();
        (wire, advertised)
    });
    let mut run = Run::new(test, &kafka.brokers(), &redis.url(), 1);
    let brokers = format!("127.0.0.1:{}", wire.port());
    run.orders.session_ms = 20_000;
    for name in ["a", "b"] {
        run.start_with(name, |orders| orders.brokers = brokers.clone());
    }
    run.load_until_all_work(&["a", "b"]);
    // Requests arrive, the first answer ends the connection unseen: what was produced is there and unacknowledged.
    for _ in 0..4 {
        wire.set(Some(Cut::AtReply));
        run.load(seconds(0.4));
        wire.set(None);
        run.load_until_all_work(&["a", "b"]);
    }
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
