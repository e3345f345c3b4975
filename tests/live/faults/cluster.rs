//! Three brokers, three copies of everything, two of them in sync at least.

use super::harness::{Run, fault_test, seconds};
use crate::redis_server::RedisServer;
use crate::support::kafka_server::KafkaCluster;

fault_test!(a_broker_of_three_that_is_killed_costs_no_event, |test: &str| {
    let redis = RedisServer::start();
    let mut kafka = KafkaCluster::start(3);
    let mut run = Run::new(test, &kafka.brokers(), &redis.url(), 3);
    run.orders.session_ms = 20_000;
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);

    let topic = run.orders.topic.clone();
    let leader = kafka.leader(&topic, 0).expect("a leader");
    kafka.kill(leader);
    run.load_until("another leads", |_| kafka.leader(&topic, 0).is_some_and(|now| now != leader));
    run.load_until_all_work(&["a", "b"]);
    run.load(seconds(1.0));
    kafka.restart(leader);
    run.load_until_all_work(&["a", "b"]);
    // Whatever was with a producer is acknowledged in the end, and its lease goes on until then: no excuse.
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
