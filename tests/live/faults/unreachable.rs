//! Redis does not answer, or refuses to write. (Killed and restarted: `operations::redis_restart`.)

use retry_ladder::prove::proxy::Cut;

use super::harness::{Run, fault_test, now_us, seconds};
use crate::redis_server::RedisServer;
use crate::support::network::Wire;
use crate::worker::journal::Step;

/// Claims that were under way or answered just before may still be written down.
const UNDER_WAY_US: u64 = 2_000_000;

/// While nothing can be claimed, nothing is.
fn assert_still(run: &Run, names: &[&str], from_us: u64, to_us: u64) {
    for name in names {
        let claims = run.journal(name).into_iter().filter(|line| matches!(line.step, Step::Claimed { .. }));
        let early = claims.filter(|line| (from_us + UNDER_WAY_US..to_us).contains(&line.at_us)).count();
        assert_eq!(early, 0, "{name} claimed events that it cannot have");
    }
}

fault_test!(a_redis_that_swallows_everything_for_longer_than_a_lease_loses_nothing, |test: &str| {
    let redis = RedisServer::start();
    let wire = Wire::to(redis.port());
    let mut run = Run::shared(test, &wire.redis_url());
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);

    wire.set(Some(Cut::BlackHole));
    let cut_us = now_us();
    run.load(seconds(6.5));
    let mended_us = now_us();
    wire.set(None);
    run.load_until_all_work(&["a", "b"]);
    assert_still(&run, &["a", "b"], cut_us, mended_us);
    run.all_cut_off(cut_us..=mended_us);
    let summary = run.finish().summary();
    // Handlers were through long before their leases ended, and success is not given up for a lease.
    assert_eq!((summary.copied_again, summary.ended_twice), (0, 0), "{summary}");
});

fault_test!(a_redis_without_memory_stops_the_stages_and_loses_nothing, |test: &str| {
    let redis = RedisServer::start();
    let set = |limit: &str| redis.command(&["CONFIG", "SET", "maxmemory", limit]);
    let mut run = Run::shared(test, &redis.url());
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);

    set("1");
    let full_us = now_us();
    run.load(seconds(4.0));
    let freed_us = now_us();
    set("0");
    run.load_until_all_work(&["a", "b"]);
    assert_still(&run, &["a", "b"], full_us, freed_us);
    // Renewals need no memory, so nothing that ran was given up: no excuse.
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
