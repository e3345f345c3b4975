//! A worker is frozen (SIGSTOP) for longer than its leases and its session, and woken.

use std::collections::BTreeMap;

use retry_ladder::prove::ledger::{Cause, Held, InHand};

use super::harness::{Run, fault_test, now_us, seconds};
use crate::redis_server::RedisServer;
use crate::worker::journal::{self, Step};

/// Threads of a worker's runtime. Each can be frozen in the middle of a step, which it then ends when it is woken: no
/// check of a lease can lie between the check and the deed.
const THREADS: usize = 2;

fault_test!(a_frozen_worker_that_wakes_after_its_leases_publishes_and_settles_nothing_new, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    // Long enough for many to be at work at any instant, short enough to be over when the worker wakes.
    run.orders.latency_ms = 400;
    run.start("zombie");
    run.start("other");
    run.load_until_all_work(&["zombie", "other"]);
    run.load(seconds(1.0));

    run.load_until("it has much in hand", |run| {
        let now_us = now_us();
        journal::interruption(Cause::Frozen, &run.journal("zombie"), now_us..=now_us).in_hand.len() > 4 * THREADS
    });

    run.worker("zombie").freeze();
    let frozen_us = now_us();
    let in_hand = |run: &Run| run.interruptions().last().expect("just told").in_hand.clone();
    run.interrupted("zombie", Cause::Frozen, frozen_us..=frozen_us);
    let held = in_hand(&run);
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

    // What the zombie did with the copies that it had in hand, before it claimed them anew.
    let mut deeds: BTreeMap<Step, Vec<String>> = BTreeMap::new();
    let executions = std::fs::read_to_string(run.orders.executions()).expect("the executions file");
    for held in held.iter().filter(|held| held.how == InHand::Claimed) {
        let ended = |line: &str| {
            let fields: Vec<&str> = line.split(' ').collect();
            let of_held = fields[0] == "end" && fields[4] == held.fence.to_string() && fields[5] == held.id;
            of_held.then(|| fields[1].parse::<u64>().expect("a time"))
        };
        let ended_us = executions.lines().find_map(ended);
        if ended_us.is_some_and(|at| at <= frozen_us) {
            continue; // it was through with its handler before: whatever it settles is the truth
        }
        if ended_us.is_some() {
            deeds.entry(Step::Acknowledged).or_default().push(format!("{} was executed to its end", held.id));
        }
        let of_held = run.journal("zombie").into_iter().filter(|line| (&line.id, line.hop) == (&held.id, held.hop));
        let after = of_held.filter(|line| line.at_us >= woken_us);
        for line in after.take_while(|line| !matches!(line.step, Step::Claimed { .. })) {
            if matches!(line.step, Step::Published | Step::Settling) {
                deeds.entry(line.step).or_default().push(format!("{} of hop {}", line.id, line.hop));
            }
        }
    }
    assert!(deeds.values().all(|deeds| deeds.len() <= THREADS), "a zombie's deeds: {deeds:#?}");
    let ledger = run.finish();
    let queued = held.iter().filter(|held| held.how != InHand::Claimed).count();
    eprintln!("{test}: {} in hand, {queued} of them with the producer", held.len());
    assert!(ledger.summary().repeated > 0, "nothing ran again, so nobody was away");
});
