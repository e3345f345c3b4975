//! A worker is frozen (SIGSTOP) for longer than its leases and its session, and woken.

use retry_ladder::prove::journal::Blow;
use retry_ladder::prove::ledger::{Cause, Held, InHand};

use super::harness::{Run, fault_test, now_us, seconds};
use crate::redis_server::RedisServer;
use crate::worker::THREADS;
use crate::worker::journal::Step;

/// From one instant to another, Unix microseconds.
fn freeze(from_us: u64, to_us: u64) -> Blow {
    Blow { cause: Cause::Frozen, from_us, to_us }
}

fault_test!(a_frozen_worker_that_wakes_after_its_leases_publishes_and_settles_nothing_new, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    // Long enough for many to be at work at any instant, short enough to be over when the worker wakes.
    run.orders.latency_ms = 400;
    run.start("zombie");
    run.start("other");
    run.load_until_all_work(&["zombie", "other"]);
    run.load(seconds(1.0));

    let in_hand = |run: &Run, from_us: u64| run.in_hand("zombie", freeze(from_us, u64::MAX)).in_hand;
    run.load_until("it has much in hand", |run| in_hand(run, now_us()).len() > 4 * THREADS);

    run.worker("zombie").freeze();
    let frozen_us = now_us();
    let held = in_hand(&run, frozen_us);
    assert!(held.len() > THREADS, "nothing to see: it had {held:?} in hand");
    // Claimed by the other, or known to it: the settlement may have arrived just before.
    let all_taken = |run: &Run| {
        let lines = run.journal("other");
        let taken = |held: &Held| {
            lines.iter().filter(|line| (&line.id, line.hop) == (&held.id, held.hop)).any(|line| match line.step {
                Step::Claimed { fence, .. } => fence > held.fence,
                step => step == Step::Known,
            })
        };
        held.iter().filter(|held| held.how == InHand::Claimed).all(taken)
    };
    // Its session is longer than its leases: by then they are over twice.
    run.load_until("the other has taken over what it had in hand", |run| {
        now_us() - frozen_us > 6_000_000 && all_taken(run)
    });
    let woken_us = now_us();
    run.worker("zombie").wake();
    run.load_until_all_work(&["zombie", "other"]);

    // The ledger counts what it does anew, and lets each thread end the step that it was in.
    run.interrupted("zombie", freeze(frozen_us, woken_us));
    let ledger = run.finish();
    let queued = held.iter().filter(|held| held.how != InHand::Claimed).count();
    eprintln!("{test}: {} in hand, {queued} of them with the producer", held.len());
    assert!(ledger.summary().repeated > 0, "nothing ran again, so nobody was away");
});
