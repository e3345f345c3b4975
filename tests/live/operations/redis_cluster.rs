//! A Redis Cluster moves slots and loses a primary while the ladder runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use retry_ladder::handlers::executions::Execution;
use retry_ladder::handlers::simulate::SimulateOptions;

use super::harness::{Ladder, Load, Worker, until};
use super::redis_restart::expected;
use crate::redis_cluster::RedisCluster;

/// An execution of one event at one attempt.
type Run = (String, String, u32);

fn run_of(execution: &Execution) -> Run {
    (execution.event_id.clone(), execution.stage.clone(), execution.attempt)
}

/// Executions of one copy that were under way at the same time. One that was cancelled has no end in the record.
fn overlaps(workers: &[Worker]) -> Vec<String> {
    let mut spans: BTreeMap<Run, Vec<_>> = BTreeMap::new();
    for worker in workers {
        let mut begun = BTreeMap::new();
        for execution in worker.executions() {
            match execution.outcome {
                None => drop(begun.insert(run_of(&execution), execution.at)),
                Some(_) => {
                    if let Some(start) = begun.remove(&run_of(&execution)) {
                        spans.entry(run_of(&execution)).or_default().push((start, execution.at));
                    }
                }
            }
        }
    }
    let mut found = Vec::new();
    for (run, mut spans) in spans {
        spans.sort_unstable();
        let is_within = |pair: &[(_, _)]| pair[1].0 < pair[0].1;
        found.extend(spans.windows(2).filter(|pair| is_within(pair)).map(|pair| format!("{run:?}: {pair:?}")));
    }
    found
}

#[test]
fn a_cluster_that_moves_slots_and_loses_a_primary_loses_no_event_and_runs_none_twice_at_once() {
    let mut cluster = RedisCluster::start(3, true);
    let mut ladder = Ladder::created(4);
    ladder.config["redis"]["url"] = cluster.urls()[..2].into();
    let rule = SimulateOptions { fail_ratio: 0.5, dead_ratio: 0.3, ..SimulateOptions::default() };
    ladder.simulate("fail_ratio", rule.fail_ratio);
    ladder.simulate("dead_ratio", rule.dead_ratio);
    ladder.simulate("latency", "20ms");
    let ladder = Arc::new(ladder);
    let load = Load::start(&ladder, "main", 100);
    let workers = [ladder.start("first", &[]), ladder.start("second", &[])];
    let starts = || workers.iter().map(|w| w.starts().len()).collect::<Vec<_>>();
    until("both run", || starts().iter().all(|n| *n >= 100), || format!("{:?}", starts()));

    for slot in cluster.slots_of(0).take(300) {
        cluster.move_slot(slot, 0, 1, || {});
    }
    let logged = |what: &str| workers.iter().all(|w| w.log().contains(what));
    assert!(!logged("redis cluster is not whole"), "a slot that moves is no outage");

    cluster.nodes[2].kill();
    until("both notice", || logged("redis cluster is not whole"), || workers[0].log());
    until("both find the replica that took over", || logged("redis cluster is whole again"), || workers[0].log());

    let sent = load.finish();
    let want: BTreeSet<Run> = sent
        .iter()
        .flat_map(|id| expected(&rule, id).0.into_iter().map(move |(stage, attempt)| (id.clone(), stage, attempt)))
        .collect();
    let ran = || -> BTreeSet<Run> { workers.iter().flat_map(Worker::ends).map(|e| run_of(&e)).collect() };
    until("every execution has happened", || ran().is_superset(&want), || format!("{} of {}", ran().len(), want.len()));
    assert_eq!(ran(), want, "and no other");
    assert_eq!(overlaps(&workers), Vec::<String>::new());

    let dead: BTreeSet<_> = sent.iter().filter(|id| expected(&rule, id).1).cloned().collect();
    let letters = || ladder.dead_letters().into_iter().collect::<BTreeSet<_>>();
    until("the dead letters are there", || letters().is_superset(&dead), || format!("{}", dead.len()));
    assert_eq!(letters(), dead);
}
