//! Redis is killed and comes back while the ladder runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use retry_ladder::handlers::simulate::{SimulateOptions, Verdict};

use super::harness::{Ladder, Load, now, until};
use crate::redis_server::RedisServer;

/// An executed claim may have been answered just before Redis went.
const LAST_CLAIMS: Duration = Duration::from_millis(1_500);

/// What the rule says must run for each event: attempt n on stage n - 1, until it is done or the ladder ends.
pub(super) fn expected(rule: &SimulateOptions, id: &str) -> (Vec<(String, u32)>, bool) {
    let mut runs = Vec::new();
    for (attempt, stage) in (1..).zip(["main", "retry-1", "retry-2"]) {
        runs.push((stage.to_owned(), attempt));
        match rule.verdict(id, attempt) {
            Verdict::Done => return (runs, false),
            Verdict::Permanent => break,
            Verdict::Transient => {}
        }
    }
    (runs, true)
}

#[test]
fn a_redis_that_is_killed_and_restarted_loses_and_repeats_nothing() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut ladder = Ladder::created(4);
    ladder.config["redis"]["url"] = redis.url().into();
    // Longer than Redis is away: what runs when it goes is settled when it is back.
    ladder.pipeline()["idempotency"]["lease"] = "1m".into();
    let rule = SimulateOptions { fail_ratio: 0.5, dead_ratio: 0.3, ..SimulateOptions::default() };
    ladder.simulate("fail_ratio", rule.fail_ratio);
    ladder.simulate("dead_ratio", rule.dead_ratio);
    ladder.simulate("latency", "20ms");
    let ladder = Arc::new(ladder);
    let load = Load::start(&ladder, "main", 100);
    let workers = [ladder.start("first", &[]), ladder.start("second", &[])];
    let starts = || workers.iter().map(|w| w.starts().len()).collect::<Vec<_>>();
    until("both run", || starts().iter().all(|n| *n >= 100), || format!("{:?}", starts()));

    redis.kill();
    let gone = now() + LAST_CLAIMS;
    let logged = |what: &str| workers.iter().map(|w| w.log().matches(what).count()).collect::<Vec<_>>();
    until("both notice", || logged("redis is gone") == [1, 1], || format!("{:?}", logged("redis")));
    let sent = load.sent().len();
    until("events come meanwhile", || load.sent().len() > sent + 400, || format!("{}", load.sent().len()));
    let back = now();
    redis.restart();
    until("both come back by themselves", || logged("redis is back") == [1, 1], || format!("{:?}", logged("redis")));

    let sent = load.finish();
    let mut dead: Vec<_> = sent.iter().filter(|id| expected(&rule, id).1).cloned().collect();
    dead.sort();
    let want: usize = sent.iter().map(|id| expected(&rule, id).0.len()).sum();
    let ends = || workers.iter().map(|w| w.ends().len()).sum::<usize>();
    until("every execution has happened", || ends() >= want, || format!("{} of {want}", ends()));
    until("the dead letters are there", || ladder.dead_letters().len() >= dead.len(), || format!("{}", dead.len()));

    let mut ran: BTreeMap<String, Vec<(String, u32)>> = BTreeMap::new();
    for execution in workers.iter().flat_map(|w| w.starts()) {
        assert!(!(gone..back).contains(&execution.at), "started while Redis was gone: {execution:?}");
        ran.entry(execution.event_id).or_default().push((execution.stage, execution.attempt));
    }
    for id in &sent {
        let mut runs = ran.remove(id).unwrap_or_default();
        runs.sort_by_key(|(_, attempt)| *attempt);
        assert_eq!(runs, expected(&rule, id).0, "{id}");
    }
    assert!(ran.is_empty(), "{ran:?}");
    assert_eq!(ladder.dead_letters(), dead);
    assert_eq!((logged("redis is gone"), logged("redis is back")), (vec![1, 1], vec![1, 1]));
}
