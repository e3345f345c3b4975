//! Redis loses records: flushed by hand, or a replica takes over that lacks the last writes. With a worker killed in
//! the same moment, what it had settled and not committed is known to nobody.
//!
//! What is not committed may be old, where something before it is still open: so whatever was settled before may run
//! again, and the ledger has to see to it that nothing else does, and that nothing is lost.

use super::harness::{Run, fault_test, now_us, seconds};
use crate::redis_server::RedisServer;
use crate::support::network::Wire;

/// Answers that were under way when Redis forgot are written down a little later.
const UNDER_WAY_US: u64 = 500_000;

fault_test!(a_flushed_redis_loses_nothing_and_repeats_only_what_it_forgot, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    run.orders.latency_ms = 60;
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);
    run.load(seconds(2.0));

    redis.command(&["FLUSHALL"]);
    run.kill("a");
    let gone_us = now_us();
    run.load(seconds(1.0));
    run.all_forgotten(0..=gone_us + UNDER_WAY_US);
    run.start("c");
    run.load_until_all_work(&["b", "c"]);
    // A second flush, in peace: what runs is claimed anew, nobody else has it.
    redis.command(&["FLUSHALL"]);
    let flushed_us = now_us();
    run.load(seconds(2.0));
    run.all_forgotten(0..=flushed_us + UNDER_WAY_US);
    run.load_until_all_work(&["b", "c"]);
    run.finish();
});

fault_test!(a_failover_that_lost_the_last_writes_loses_no_event, |test: &str| {
    let mut primary = RedisServer::start();
    let replica = RedisServer::start();
    let port = primary.port().to_string();
    replica.command(&["REPLICAOF", "127.0.0.1", &port]);
    let wire = Wire::to(primary.port());
    let mut run = Run::shared(test, &wire.redis_url());
    run.orders.latency_ms = 60;
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);
    let in_sync = |_: &Run| replica.command(&["INFO", "replication"]).contains("master_link_status:up");
    run.load_until("the replica has caught up", in_sync);

    // From here on nothing is replicated; the replica is promoted two seconds later.
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    let parted_us = now_us();
    run.load(seconds(2.0));
    primary.kill();
    run.kill("a");
    wire.lead_to(replica.port());
    let promoted_us = now_us();
    run.load(seconds(1.0));
    run.all_forgotten(parted_us - UNDER_WAY_US..=promoted_us + UNDER_WAY_US);
    run.start("c");
    run.load_until_all_work(&["b", "c"]);
    run.finish();
});
