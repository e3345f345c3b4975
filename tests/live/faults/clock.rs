//! The wall clock of one worker is five minutes off.

use super::harness::{Run, fault_test, seconds};
use crate::redis_server::RedisServer;

const FIVE_MINUTES_MS: i64 = 5 * 60 * 1_000;

fault_test!(a_worker_whose_clock_is_five_minutes_ahead_loses_nothing_and_holds_nobody_up, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    run.start_with("ahead", |orders| orders.clock_ahead_ms = FIVE_MINUTES_MS);
    run.start("right");
    run.load_until_all_work(&["ahead", "right"]);
    run.load(seconds(4.0));
    // Dues five minutes ahead are not waited for: the broker's clock has stamped the records.
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});

fault_test!(a_worker_whose_clock_is_five_minutes_behind_loses_and_repeats_nothing, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    // It decides dues on main; on a retry stage it would wait for five minutes, as is right by its clock.
    run.start_with("behind", |orders| {
        orders.clock_ahead_ms = -FIVE_MINUTES_MS;
        orders.stages = vec![0];
    });
    run.start("right");
    run.load_until_all_work(&["behind", "right"]);
    run.load(seconds(4.0));
    let summary = run.finish().summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});
