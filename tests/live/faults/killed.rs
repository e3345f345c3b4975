//! The work of a killed worker goes on: at its restart where it has an instance, without one after the session. How soon,
//! 5 s and 20 s, is measured on a machine with nothing else to do:
//!
//! ```text
//! LADDER_QUIET=1 scripts/test --live killed
//! ```

use std::time::{Duration, Instant};

use retry_ladder::prove::ledger::InHand;

use super::harness::{Run, fault_test, now_us, seconds};
use crate::redis_server::RedisServer;
use crate::support::promised;
use crate::worker::journal::Step;

const LEASE_MS: u64 = 6_000;
/// A claim that was found busy is tried again within so much of the lease.
const AGAIN: f64 = 0.32;

/// What the killed worker had in hand runs again within one lease.
fn assert_in_hand_runs_again(run: &Run, killed_us: u64, others: &[&str]) {
    let journals: Vec<_> = others.iter().flat_map(|name| run.journal(name)).collect();
    let limit_us = killed_us + LEASE_MS * 1_000 + (AGAIN * LEASE_MS as f64 * 1_000.0) as u64;
    let limit_us = limit_us + promised(seconds(5.0)).as_micros() as u64;
    for held in &run.interruptions().last().expect("it was killed").in_hand {
        if held.how != InHand::Claimed {
            continue; // its next copy may be there
        }
        let again = journals.iter().find(|line| {
            (&line.id, line.hop) == (&held.id, held.hop) && matches!(line.step, Step::Claimed { .. } | Step::Known)
        });
        let at_us = again.unwrap_or_else(|| panic!("nobody has claimed {held:?}")).at_us;
        assert!(at_us <= limit_us, "{} ms after the kill: {held:?}", (at_us - killed_us) / 1_000);
    }
}

fault_test!(a_killed_worker_with_an_instance_runs_again_within_5_s, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    run.orders.latency_ms = 300;
    run.orders.lease_ms = LEASE_MS;
    // So long that nothing here can wait for its end.
    run.orders.session_ms = 180_000;
    run.start_with("a", |orders| orders.instance = Some("one".into()));
    run.start_with("b", |orders| orders.instance = Some("two".into()));
    run.load_until_all_work(&["a", "b"]);
    run.load(seconds(1.0));

    run.kill("a");
    let (killed_us, sent) = (now_us(), run.source.sent);
    run.start_with("again", |orders| orders.instance = Some("one".into()));
    let all = |run: &Run| run.claims_beyond("again", sent).union(&run.claims_beyond("b", sent)).count() == 4;
    let begun = Instant::now();
    run.load_within(promised(seconds(5.0)), "every partition runs again", all);
    eprintln!("{test}: every partition after {:.1?}", begun.elapsed());
    run.load(Duration::from_millis(LEASE_MS * 4 / 3 + 5_000).saturating_sub(begun.elapsed()));
    assert_in_hand_runs_again(&run, killed_us, &["again", "b"]);
    run.finish();
});

fault_test!(the_partitions_of_a_killed_worker_run_again_within_20_s, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    run.orders.latency_ms = 300;
    run.orders.lease_ms = LEASE_MS;
    // The default.
    run.orders.session_ms = 15_000;
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);
    run.load(seconds(1.0));

    run.kill("a");
    let sent = run.source.sent;
    let begun = Instant::now();
    run.load_within(promised(seconds(20.0)), "every partition runs again", |run| {
        run.claims_beyond("b", sent).len() == 4
    });
    eprintln!("{test}: every partition after {:.1?}", begun.elapsed());
    run.finish();
});
