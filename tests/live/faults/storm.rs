//! Members join and leave all the time.

use super::harness::{Run, fault_test, seconds};
use crate::redis_server::RedisServer;

fault_test!(in_a_storm_of_rebalances_every_event_runs_as_often_as_it_should, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    run.orders.latency_ms = 60;
    run.start("m0");
    run.load_until_all_work(&["m0"]);
    // Every two seconds one more or one less; in between the group is hardly ever at rest.
    for n in 1..=6 {
        run.start(&format!("m{n}"));
        run.load(seconds(2.0));
        if n % 2 == 0 {
            // One leaves while another comes.
            run.stop(&format!("m{}", n - 1));
        } else if n > 1 {
            run.stop(&format!("m{}", n - 3));
        }
    }
    run.load_until_all_work(&["m6"]);
    // Nothing was killed, so there is no excuse.
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
