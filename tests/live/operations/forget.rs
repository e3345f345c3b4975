//! A deliberate replay: what was finished runs again only once its records are forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{LIMIT, Ladder, redis_url, started, until, until_done};

const EVENTS: usize = 10;

/// What `forget` answers, with no word beside the JSON on its standard output.
fn forget(ladder: &Ladder, arguments: &[&str]) -> Value {
    let output = ladder.call(&[&["forget", "--pipeline", "orders", "--json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Produces the same ids once more, runs the ladder until all of them are dealt with, and tells what was started.
fn replay(ladder: &Ladder, name: &str, executed: &BTreeSet<String>) -> BTreeMap<String, usize> {
    let end = ladder.committed(0).unwrap_or_default() + i64::try_from(EVENTS).unwrap_or_default();
    ladder.produce_all("main", EVENTS);
    let mut worker = ladder.start(name, &[]);
    until_done(executed, &[&worker]);
    until("all are committed", || ladder.committed(0) == Some(end), || format!("{:?}", ladder.committed(0)));
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(LIMIT), 0);
    started(&[&worker])
}

#[test]
fn what_is_forgotten_runs_again_and_nothing_else() {
    let mut ladder = Ladder::created(1);
    for (key, value) in [("fail_ratio", 0.5), ("dead_ratio", 0.0), ("permanent_ratio", 0.0)] {
        ladder.simulate(key, value);
    }
    ladder.simulate("max_failures", 2);
    let ids: BTreeSet<String> = (0..EVENTS).map(|n| format!("p0-{n}")).collect();
    let nothing = BTreeSet::new();

    let first = replay(&ladder, "first", &ids);
    let moved = first.values().sum::<usize>() - EVENTS;
    assert!(moved > 0, "some went up the ladder: {first:?}");
    assert_eq!(replay(&ladder, "duplicates", &nothing), BTreeMap::new(), "without forget they are duplicates");

    // As of a group and of a prefix whose names begin alike; and one of this pipeline that is in progress.
    let prefix = ladder.topic("main");
    let client = redis::Client::open(redis_url()).expect("a url");
    let mut redis = client.get_connection().expect("a redis");
    let others = [format!("{prefix}:{prefix}-2:{prefix}:p0-3:0"), format!("{prefix}-2:{prefix}:{prefix}:p0-3:0")];
    let claim = format!("{prefix}:{prefix}:{prefix}:p0-x:0");
    for (key, value) in [(&others[0], "1"), (&others[1], "1"), (&claim, "P.00000000000000ab-1.1")] {
        redis::cmd("SET").arg(key).arg(value).arg("EX").arg(600).exec(&mut redis).expect("a record");
    }

    let none = json!({ "in_progress": 0, "done": 0, "moved_on": 0, "other": 0 });
    let found = json!({ "in_progress": 1, "done": EVENTS, "moved_on": moved, "other": 0 });
    let dry = forget(&ladder, &["--dry-run"]);
    let expected = json!({ "pipeline": "orders", "event_id": null, "dry_run": true, "found": found, "removed": none });
    assert_eq!(dry, expected);
    let unasked = ladder.call(&["forget"]);
    assert_eq!(unasked.status.code(), Some(64), "{unasked:?}");
    assert!(told(&unasked).contains("confirm with --yes") && unasked.stdout.is_empty(), "{unasked:?}");

    let one = forget(&ladder, &["--event-id", "p0-3", "--yes"]);
    let one_moved = first["p0-3"] - 1;
    assert_eq!(one["removed"], json!({ "in_progress": 0, "done": 1, "moved_on": one_moved, "other": 0 }), "{one}");
    let again = replay(&ladder, "one", &BTreeSet::from(["p0-3".to_owned()]));
    assert_eq!(again, BTreeMap::from([("p0-3".to_owned(), first["p0-3"])]), "that event alone");

    let all = forget(&ladder, &["--yes"]);
    assert_eq!(all["found"], found);
    assert_eq!(all["removed"], json!({ "in_progress": 0, "done": EVENTS, "moved_on": moved, "other": 0 }));
    assert_eq!(replay(&ladder, "all", &ids), first, "all of them, as the first time");

    let left: Vec<Option<String>> =
        redis::cmd("MGET").arg(&others).arg(&claim).query(&mut redis).expect("their values");
    assert!(left.iter().all(Option::is_some), "what is not of this pipeline, or in progress, stays: {left:?}");
    assert_eq!(forget(&ladder, &["--event-id", "p0-x", "--in-progress", "--yes"])["removed"]["in_progress"], 1);
}

#[test]
fn a_pipeline_without_records_in_redis_has_nothing_to_forget() {
    let mut ladder = Ladder::new(1);
    ladder.config["redis"]["url"] = "redis://127.0.0.1:1".into();
    ladder.config["kafka"]["startup_timeout"] = "1s".into();
    for (store, word) in [("memory", "in the processes"), ("off", "keeps no records")] {
        ladder.pipeline()["idempotency"]["store"] = store.into();
        let refused = ladder.call(&["forget", "--yes"]);
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        assert!(told(&refused).contains(&format!("store is {store}")) && told(&refused).contains(word), "{refused:?}");
    }
    ladder.pipeline()["idempotency"]["store"] = "redis".into();
    for (arguments, code, word) in [
        (&["forget", "--yes"][..], 69, "not reachable"),
        (&["forget", "--yes", "--pipeline", "odrers"], 64, "configured: orders"),
        (&["forget", "--yes", "--event-id", ""], 64, "--event-id"),
    ] {
        let refused = ladder.call(arguments);
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        assert!(told(&refused).contains(word) && refused.stdout.is_empty(), "{refused:?}");
    }
}
