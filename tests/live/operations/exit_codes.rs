//! Processes that are not let in: exit code, and a message that names the fault and its remedy. Nothing was started.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::harness::{LIMIT, Ladder, config, pipeline, started, until, until_done};
use crate::support::create_topic;

/// Runs the ladder with these arguments and expects it to refuse: within `limit`, with this code and these words.
fn check_within(limit: Duration, ladder: &Ladder, arguments: &[&str], code: i32, words: &[&str]) {
    let begun = Instant::now();
    let mut refused = ladder.start("refused", arguments);
    assert_eq!(refused.exit_code(LIMIT), code, "{arguments:?}\n{}", refused.log());
    assert!(begun.elapsed() < limit, "{:?}\n{}", begun.elapsed(), refused.log());
    let told = refused.log();
    for word in words {
        assert!(told.contains(word), "no `{word}` in:\n{told}");
    }
    assert!(!told.contains("stage starts"), "{told}");
    assert_eq!(refused.executions(), []);
}

/// A fault that needs no server to be found: `change` makes it.
fn check(change: impl FnOnce(&mut Value), arguments: &[&str], words: &[&str]) {
    let mut ladder = Ladder::new(1);
    // Whoever asks for a server gets 69 and not 64.
    ladder.config["kafka"]["brokers"] = "127.0.0.1:1".into();
    ladder.config["redis"]["url"] = "redis://127.0.0.1:1".into();
    ladder.config["kafka"]["startup_timeout"] = "2s".into();
    change(&mut ladder.config);
    check_within(LIMIT, &ladder, arguments, 64, words);
}

fn orders(config: &mut Value) -> &mut Value {
    &mut config["pipelines"]["orders"]
}

#[test]
fn faulty_flags_and_configurations_end_with_64() {
    check(|_| (), &["--stag", "main"], &["--stag", "--stage"]);
    check(|_| (), &["--stage", "retry-0"], &["retry-0", "main, retry-1"]);
    check(|_| (), &["--stage", "retry-7"], &["--stage retry-7", "main, retry-1, retry-2, dlq"]);
    check(|_| (), &["--pipeline", "odrers"], &["--pipeline odrers", "configured: orders"]);
    check(|_| (), &["--config", "no-such.yaml"], &["no-such.yaml"]);
    check(|c| c["kafak"] = json!({}), &[], &["kafak", "did you mean `kafka`?"]);
    check(|c| orders(c)["retrys"] = json!([]), &[], &["pipelines.orders.retrys", "did you mean `retries`?"]);
    check(
        |c| orders(c)["retries"] = json!([{ "delay": "5s" }, { "delay": "5s" }]),
        &[],
        &["pipelines.orders.retries[1].delay", "5s", "longer"],
    );
    check(
        |c| {
            orders(c)["retries"] = json!([{ "delay": "5s", "name": "late" }]);
            orders(c)["dlq"] = json!({ "name": "late" });
        },
        &[],
        &["pipelines.orders.dlq.name", "late"],
    );
    check(
        |c| orders(c)["message"] = "shop.v1.OrderPlaecd".into(),
        &[],
        &["shop.v1.OrderPlaecd", "shop.v1.OrderPlaced"],
    );
    check(
        |c| {
            orders(c)["retries"] = json!([{ "delay": "2h" }]);
            orders(c)["retention"] = "1h".into();
        },
        &[],
        &["pipelines.orders.retention", "= 1h", "more than 4h"],
    );
    // Two at once: both are told.
    check(
        |c| {
            c["kafak"] = json!({});
            orders(c)["concurrency"] = 0.into();
        },
        &[],
        &["2 faults", "kafak", "pipelines.orders.concurrency"],
    );
}

#[test]
fn servers_that_are_not_there_end_with_69_within_the_startup_timeout() {
    let mut ladder = Ladder::created(1);
    ladder.config["kafka"]["startup_timeout"] = "2s".into();
    ladder.config["redis"]["url"] = "redis://127.0.0.1:1".into();
    check_within(Duration::from_secs(15), &ladder, &[], 69, &["redis", "127.0.0.1:1", "refused"]);
    ladder.config["kafka"]["brokers"] = "127.0.0.1:1".into();
    check_within(
        Duration::from_secs(10),
        &ladder,
        &[],
        69,
        &["kafka not reachable at 127.0.0.1:1 within 2s", "refused"],
    );
}

#[tokio::test]
async fn topics_that_are_missing_or_would_lose_events_are_refused() {
    let missing = Ladder::new(1);
    let retry = missing.topic("retry-1");
    check_within(LIMIT, &missing, &[], 69, &["topics missing", &retry, "scripts/create-topics.sh"]);

    let mut compacted = Ladder::new(1);
    compacted.pipeline()["retention"] = "1d".into();
    let retry = compacted.topic("retry-1");
    create_topic(&retry, 1, &[("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")]).await;
    compacted.call(&["topics", "create"]);
    let words = [&*retry, "cleanup.policy is compact, should be delete", "--add-config cleanup.policy=delete"];
    check_within(LIMIT, &compacted, &[], 64, &words);

    let mut short = Ladder::new(1);
    short.pipeline()["retries"] = json!([{ "delay": "1h" }]);
    let retry = short.topic("retry-1");
    create_topic(&retry, 1, &[("retention.ms", "1800000"), ("message.timestamp.type", "LogAppendTime")]).await;
    short.call(&["topics", "create"]);
    check_within(LIMIT, &short, &[], 64, &[&retry, "retention.ms is 1800000", "--add-config retention.ms="]);
}

#[test]
fn the_earlier_of_two_with_one_instance_ends_with_70_and_what_it_was_running_is_not_repeated() {
    let mut ladder = Ladder::created(1);
    ladder.config["instance"] = "one".into();
    ladder.simulate("latency", "4s");
    let mut sent = ladder.produce_all("main", 2);
    let mut earlier = ladder.start("earlier", &["--stage", "main"]);
    until("the earlier one runs", || earlier.starts().len() == sent.len(), || earlier.log());

    let mut later = ladder.start("later", &["--stage", "main"]);
    assert_eq!(earlier.exit_code(LIMIT), 70, "{}", earlier.log());
    assert!(earlier.log().contains("another process runs with the same `instance`"), "{}", earlier.log());
    assert_eq!(earlier.ends().len(), sent.len(), "what was running was waited for");
    ladder.produce_one("main", 0, "p0-after");
    sent.insert("p0-after".to_owned());
    until_done(&sent, &[&earlier, &later]);
    assert!(later.runs());
    assert!(started(&[&earlier, &later]).values().all(|n| *n == 1));
}

#[test]
fn a_refusal_is_told_on_standard_error_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut faulty = config("any", 1);
    faulty["kafak"] = json!({});
    std::fs::write(folder.path().join("topics.yaml"), faulty.to_string()).expect("write");
    let output = pipeline(folder.path()).stdin(Stdio::null()).output().expect("run pipeline");
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}
