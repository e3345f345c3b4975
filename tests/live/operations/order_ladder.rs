//! `order: ladder` under kills: two keys with many events that fail by the handler's rule, and a key beside them. What
//! happened in which order is read from the handlers' own files.

use std::collections::BTreeMap;

use retry_ladder::handlers::simulate::{SimulateOptions, Verdict};
use retry_ladder::ladder::event::Timestamp;

use super::harness::{Ladder, Worker, done, until};

const PER_KEY: usize = 40;

/// When each event was done first.
fn first_done(workers: &[&Worker]) -> BTreeMap<String, Timestamp> {
    let mut first = BTreeMap::new();
    for end in workers.iter().flat_map(|worker| worker.ends()).filter(|e| e.outcome.as_deref() == Some("done")) {
        let at = first.entry(end.event_id).or_insert(end.at);
        *at = end.at.min(*at);
    }
    first
}

#[test]
fn effects_of_one_key_happen_in_the_order_of_main_while_workers_are_killed() {
    let mut ladder = Ladder::created(2);
    ladder.pipeline()["order"] = "ladder".into();
    ladder.simulate("fail_ratio", 0.35);
    ladder.simulate("dead_ratio", 0.15);
    ladder.simulate("max_failures", 2);
    ladder.simulate("latency", "2ms");
    // What fails here fails on purpose.
    ladder.pipeline()["breaker"] = serde_json::json!({ "enabled": false });
    ladder.pipeline()["brake"] = serde_json::json!({ "enabled": false });

    let rule = SimulateOptions { fail_ratio: 0.35, dead_ratio: 0.15, max_failures: 2, ..SimulateOptions::default() };
    // Who has waited its turn has not used main's attempt: two are left.
    let ends_well = |id: &&String| (1..=2).any(|attempt| rule.verdict(id, attempt) == Verdict::Done);
    let fails_first = |id: &String| rule.verdict(id, 1) != Verdict::Done;
    let ids = |key: &str, n| (0..n).map(|i| format!("{key}-{i}")).collect::<Vec<_>>();
    let (a, b) = (ids("a", PER_KEY), ids("b", PER_KEY));
    let good = (0..).map(|i| format!("c-{i}")).find(|id| !fails_first(id)).expect("most succeed at once");
    assert!([&a, &b].iter().all(|ids| ids.iter().filter(|id| fails_first(id)).count() >= 5), "the rule fails too few");
    // Both in partition 0, one after the other in turn, and behind them the other key.
    let both = a.iter().zip(&b).flat_map(|(a, b)| [("a", a.as_str()), ("b", b.as_str())]);
    ladder.produce_keyed(0, both.chain([("c", good.as_str())]));

    let mut workers = vec![ladder.start("worker-0", &[]), ladder.start("worker-1", &[])];
    for kill in 0..3 {
        let all = |workers: &[Worker]| done(&workers.iter().collect::<Vec<_>>()).len();
        let goal = (kill + 1) * PER_KEY / 3;
        until("some are done", || all(&workers) >= goal, || format!("{} done", all(&workers)));
        workers[kill].kill();
        workers.push(ladder.start(&format!("worker-{}", kill + 2), &[]));
    }
    let workers: Vec<&Worker> = workers.iter().collect();
    let expected: Vec<String> = a.iter().chain(&b).chain([&good]).cloned().collect();
    until(
        "every event is done or dead-lettered",
        || {
            let (done, dead) = (done(&workers), ladder.dead_letters());
            expected.iter().all(|id| done.contains(id) || dead.contains(id))
        },
        || {
            let (done, dead) = (done(&workers), ladder.dead_letters());
            format!(
                "open: {:?}",
                expected.iter().filter(|id| !done.contains(*id) && !dead.contains(id)).collect::<Vec<_>>()
            )
        },
    );

    let first = first_done(&workers);
    for ids in [&a, &b] {
        let times: Vec<_> = ids.iter().filter_map(|id| first.get(id)).collect();
        assert!(times.is_sorted(), "{ids:?}: {times:?}");
        let missing: Vec<_> = ids.iter().filter(ends_well).filter(|id| !first.contains_key(*id)).collect();
        assert!(missing.is_empty(), "not done: {missing:?}");
    }
    let last = first.values().max().expect("some are done");
    assert!(first[&good] < *last, "the other key did not wait");
}
