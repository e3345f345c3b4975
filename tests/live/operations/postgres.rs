//! Events into a real PostgreSQL by real processes: workers that are killed, a database that is away.

use std::sync::Arc;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::json;

use super::harness::{LIMIT, Ladder, Load, Worker, until};
use crate::postgres_server::PostgresServer;
use crate::support::client_config;

/// A ladder whose events become rows of `orders`.
fn ladder(server: &PostgresServer, concurrency: usize, keys: serde_json::Value) -> Ladder {
    let mut ladder = Ladder::created(2);
    let mut postgres = json!({ "url": server.url(), "table": "orders", "migrate": true });
    postgres.as_object_mut().expect("a map").extend(keys.as_object().expect("a map").clone());
    ladder.pipeline()["handler"] = json!({ "postgres": postgres });
    ladder.pipeline()["concurrency"] = concurrency.into();
    ladder
}

/// Rows, and different ids among them and among the messages in them.
fn rows(server: &PostgresServer) -> [usize; 3] {
    let exists = server.query("select to_regclass('orders') is not null");
    if exists != [["t"]] {
        return [0; 3];
    }
    let counts = server.query("select count(*), count(distinct event_id), count(distinct unique_id) from orders");
    [0, 1, 2].map(|i| counts[0][i].parse().expect("a number"))
}

fn every_event_has_its_row(server: &PostgresServer, ladder: &Ladder, worker: &Worker, sent: usize) {
    until(
        "every event has its row",
        || rows(server)[1] == sent,
        || format!("{:?} of {sent}\n{}", rows(server), worker.log()),
    );
    assert_eq!(rows(server), [sent; 3]);
    assert_eq!(ladder.dead_letters(), [""; 0]);
}

#[test]
fn a_worker_that_is_killed_again_and_again_leaves_one_row_for_each_event() {
    let server = PostgresServer::new();
    let ladder = Arc::new(ladder(&server, 200, json!({ "batch_size": 50 })));
    // The restarted worker has its predecessor's partitions at once.
    let start = |name: &str| ladder.start_with(name, &[], &[("PIPELINE_INSTANCE", "one")]);
    let load = Load::start(&ladder, "main", 500);
    for kill in 0..4 {
        let before = rows(&server)[0];
        let mut worker = start(&format!("worker-{kill}"));
        until("rows are written", || rows(&server)[0] >= before + 400, || worker.log());
        worker.kill();
    }
    let worker = start("last");
    let sent = load.finish().len();
    every_event_has_its_row(&server, &ladder, &worker, sent);
}

#[test]
fn a_database_that_is_down_for_seconds_costs_no_event_and_few_attempts() {
    let mut server = PostgresServer::new();
    let mut ladder = ladder(&server, 32, json!({ "batch_size": 16, "connect_timeout": "1s" }));
    ladder.pipeline()["retries"] = json!([{ "delay": "5s" }, { "delay": "10s" }]);
    let ladder = Arc::new(ladder);
    let worker = ladder.start("worker", &[]);
    let load = Load::start(&ladder, "main", 200);
    until("it works", || rows(&server)[0] > 200, || worker.log());

    server.stop();
    until("it notices", || worker.log().contains("the handler's target seems down"), || worker.log());
    let sent = load.sent().len();
    until("six seconds of events come", || load.sent().len() > sent + 1_200, || format!("{}", load.sent().len()));
    server.start();
    let sent = load.finish().len();
    every_event_has_its_row(&server, &ladder, &worker, sent);
    // What was in hand when it went, and some probes; without the breaker it would be all of them.
    let burnt = hops(&ladder);
    assert!((1..400).contains(&burnt), "{burnt} used an attempt");
}

/// Records on the first retry topic.
fn hops(ladder: &Ladder) -> i64 {
    let consumer: BaseConsumer = client_config().create().expect("a consumer");
    let count = |partition| {
        let (low, high) = consumer.fetch_watermarks(&ladder.topic("retry-1"), partition, LIMIT).expect("watermarks");
        high - low
    };
    (0..2).map(count).sum()
}

#[test]
fn a_table_that_does_not_fit_ends_with_64_and_the_sql_that_would_make_it() {
    let server = PostgresServer::new();
    let ladder = ladder(&server, 32, json!({ "migrate": false }));
    let mut worker = ladder.start("worker", &[]);
    assert_eq!(worker.exit_code(LIMIT), 64, "{}", worker.log());
    let log = worker.log();
    for part in
        ["pipelines.orders.handler.postgres.table", "it does not exist", "create table if not exists \"orders\""]
    {
        assert!(log.contains(part), "no `{part}` in {log}");
    }
    let output = ladder.call(&["config", "sql"]);
    assert!(output.status.success());
    server.query(&String::from_utf8(output.stdout).expect("text"));
    let worker = ladder.start("again", &[]);
    ladder.produce_one("main", 0, "one");
    until("it is written", || rows(&server) == [1; 3], || worker.log());
}

#[test]
fn a_database_that_is_not_there_at_start_ends_with_69() {
    let mut server = PostgresServer::new();
    server.stop();
    let mut ladder = ladder(&server, 32, json!({ "connect_timeout": "500ms" }));
    ladder.config["kafka"]["startup_timeout"] = "10s".into();
    let mut worker = ladder.start("worker", &[]);
    assert_eq!(worker.exit_code(LIMIT), 69, "{}", worker.log());
    let log = worker.log();
    assert!(log.contains("handler.postgres.url: not reachable within 10s"), "{log}");
}
