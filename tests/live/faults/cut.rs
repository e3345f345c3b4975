//! The network between one worker and the broker is cut; Redis stays in reach of it.

use retry_ladder::prove::proxy::Cut;

use super::harness::{Run, fault_test};
use crate::redis_server::RedisServer;
use crate::support::kafka_server::KafkaCluster;
use crate::support::network::Wire;

fault_test!(a_worker_cut_off_from_the_broker_loses_its_partitions_and_comes_back, |test: &str| {
    let redis = RedisServer::start();
    let (kafka, wire) = KafkaCluster::behind(|port| {
        let wire = Wire::to(port);
        let advertised = wire.port();
        (wire, advertised)
    });
    let mut run = Run::new(test, &kafka.brokers(), &redis.url(), 1);
    run.start_with("cut", |orders| orders.brokers = format!("127.0.0.1:{}", wire.port()));
    run.start("other");
    run.load_until_all_work(&["cut", "other"]);

    wire.set(Some(Cut::BlackHole));
    let sent = run.source.sent;
    run.load_until("its partitions run elsewhere", |run| run.claims_beyond("other", sent).len() == 4);
    let taken = run.source.sent;
    wire.set(None);
    run.load_until("it has partitions again", |run| !run.claims_beyond("cut", taken).is_empty());
    run.load_until_all_work(&["cut", "other"]);
    // It holds the leases of what is with its producer until that is acknowledged after the mend: no excuse.
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
