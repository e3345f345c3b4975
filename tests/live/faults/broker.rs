//! The broker goes and comes back, or its answers do not arrive.

use retry_ladder::prove::ledger::Cause;

use super::harness::{Run, fault_test, now_us, seconds};
use crate::proxy::Network;
use crate::redis_server::RedisServer;
use crate::support::kafka_server::KafkaCluster;
use crate::support::network::Wire;

fault_test!(a_broker_that_is_killed_and_restarted_costs_no_event, |test: &str| {
    let redis = RedisServer::start();
    let mut kafka = KafkaCluster::start(1);
    let mut run = Run::new(test, &kafka.brokers(), &redis.url(), 1);
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);

    let gone_us = now_us();
    kafka.kill(0);
    run.load(seconds(3.0));
    kafka.restart(0);
    run.load_until_all_work(&["a", "b"]);
    // Sessions may have ended meanwhile: then the partitions were given anew while copies were with the producer.
    run.all_interrupted(Cause::CutOff, gone_us..=now_us());
    run.finish();
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
        wire.set(Network::CutAtReply);
        run.load(seconds(0.4));
        wire.set(Network::Fine);
        run.load_until_all_work(&["a", "b"]);
    }
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
