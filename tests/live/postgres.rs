//! The postgres handler on a real PostgreSQL, without Kafka: what is written, which rows are refused, what a server in
//! trouble is taken for.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use retry_ladder::handlers::batched::BatchHandler as _;
use retry_ladder::handlers::postgres::{Error, Options, Plan, PoolOptions, PostgresHandler};
use retry_ladder::ladder::event::{FailureClass, Origin, Outcome, Timestamp};
use retry_ladder::messages::ml::v1::{PipelineStep, StepStatus};
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::stage::ports::Event;
use retry_ladder::stage::record::Record;

use crate::postgres_server::{PostgresServer, query};

const STEP: &str = "ml.v1.PipelineStep";

fn step(id: &str) -> PipelineStep {
    PipelineStep { unique_id: id.to_owned(), ..PipelineStep::default() }
}

/// An event as the engine hands it over; its id is the message's.
fn event(step: &PipelineStep, key: &[u8]) -> Event {
    let payload = Bytes::from(step.encode_to_vec());
    let record = Record {
        partition: 1,
        offset: 7,
        timestamp_ms: 1_763_726_400_123,
        key: Some(Bytes::copy_from_slice(key)),
        value: Some(payload.clone()),
        headers: vec![(Bytes::from_static(b"tenant"), Some(Bytes::from_static(b"acme")))],
    };
    Event {
        pipeline: "steps".into(),
        group: "steps".into(),
        message: STEP.into(),
        id: step.unique_id.as_str().into(),
        attempt: 1,
        stage: 0,
        stage_name: "main".into(),
        fence: 1,
        deadline: Timestamp::from_millis(0),
        origin: Origin { topic: "steps".into(), partition: 1, offset: 7, timestamp_ms: 1_763_726_400_123 },
        record: Arc::new(record),
        payload,
        trace: None,
    }
}

fn events(ids: &[&str]) -> Vec<Event> {
    ids.iter().map(|id| event(&step(id), id.as_bytes())).collect()
}

fn plan(columns: &[(&str, &str)]) -> Plan {
    let decoder = Decoder::new(STEP, None, Framing::Plain).expect("a built-in message");
    let columns: BTreeMap<_, _> = columns.iter().map(|(name, source)| ((*name).into(), (*source).into())).collect();
    Plan::new(decoder, Some("steps"), &columns).expect("a plan")
}

fn options(server: &PostgresServer) -> Options {
    Options { connect_timeout: Duration::from_secs(20), timeout: Duration::from_secs(30), ..Options::new(server.url()) }
}

async fn connect(server: &PostgresServer, columns: &[(&str, &str)]) -> Result<PostgresHandler, Error> {
    PostgresHandler::connect(options(server), plan(columns)).await
}

/// Class and message of each failure by event id; done ones are not there.
async fn failures(handler: &PostgresHandler, events: Vec<Event>) -> HashMap<String, (FailureClass, String)> {
    let ids: Vec<_> = events.iter().map(|event| event.id.to_string()).collect();
    let outcomes = handler.handle_batch(events).await;
    assert_eq!(outcomes.len(), ids.len());
    let failed = ids.into_iter().zip(outcomes).filter_map(|(id, outcome)| match outcome {
        Outcome::Failed(failure) => Some((id, (failure.class, failure.message))),
        _ => None,
    });
    failed.collect()
}

fn transient(failures: &HashMap<String, (FailureClass, String)>, count: usize, part: &str) {
    assert_eq!(failures.len(), count, "{failures:?}");
    for (class, message) in failures.values() {
        assert_eq!(*class, FailureClass::Transient);
        assert!(message.contains(part), "no `{part}` in {message}");
    }
}

#[tokio::test]
async fn a_message_becomes_a_row_with_a_column_for_each_field_once() {
    let server = PostgresServer::new();
    let migrating = Options { migrate: true, ..options(&server) };
    // Instances that start at the same time.
    let handlers = (0..6).map(|_| PostgresHandler::connect(migrating.clone(), plan(&[])));
    let handlers: Vec<_> = futures::future::join_all(handlers).await.into_iter().map(Result::unwrap).collect();
    let full = PipelineStep {
        run_id: "run 'x'".into(),
        status: StepStatus::Failed.into(),
        metrics: BTreeMap::from([("loss".into(), 0.25)]),
        created_at: Some(prost_types::Timestamp { seconds: 1_763_726_400, nanos: 5_000 }),
        elapsed: Some(prost_types::Duration { seconds: 90, nanos: 500_000_000 }),
        attempt: u32::MAX,
        artifact_uris: vec!["s3://a".into(), "s3://b".into()],
        ..step("full")
    };
    let batch = || vec![event(&full, b"k"), event(&step("empty"), b"k"), event(&full, b"k")];
    for handler in &handlers {
        assert_eq!(failures(handler, batch()).await, HashMap::new());
    }
    let client = server.client().await;
    let columns = "event_id, run_id, status, metrics->>'loss', created_at at time zone 'utc', elapsed, attempt, \
                   artifact_uris->>1, detail, inserted_at > now() - interval '1 hour'";
    let rows = query(&client, &format!("select {columns} from steps order by event_id")).await;
    let text = |row: &[&str]| row.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let empty = ["empty", "", "STEP_STATUS_UNSPECIFIED", "null", "null", "null", "0", "null", "", "t"];
    let full = [
        "full",
        "run 'x'",
        "STEP_STATUS_FAILED",
        "0.25",
        "2025-11-21 12:00:00.000005",
        "00:01:30.5",
        "4294967295",
        "s3://b",
        "",
        "t",
    ];
    assert_eq!(rows, [text(&empty), text(&full)]);
}

#[tokio::test]
async fn a_table_of_ones_own_takes_columns_of_its_own_types() {
    let server = PostgresServer::new();
    let client = server.client().await;
    query(
        &client,
        "create type status as enum ('STEP_STATUS_UNSPECIFIED', 'STEP_STATUS_RUNNING');
         create table steps (id uuid unique, at date, took text, key bytea, tenant varchar(10) not null, message json,
             status status, topic text, partition smallint, \"off set\" bigint, sent timestamptz,
             noted timestamptz not null default now(), twice int generated always as (partition * 2) stored)",
    )
    .await;
    let columns = [
        ("id", "$event_id"),
        ("at", "created_at"),
        ("took", "elapsed"),
        ("key", "$key"),
        ("tenant", "$header.tenant"),
        ("message", "$json"),
        ("status", "status"),
        ("topic", "$topic"),
        ("partition", "$partition"),
        ("off set", "$offset"),
        ("sent", "$timestamp"),
    ];
    let handler = connect(&server, &columns).await.unwrap();
    let id = "0b3c3e5e-0c7b-4b0e-9d0a-2f6f7c1d8e9a";
    let elapsed = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let created_at = Some(prost_types::Timestamp { seconds: 1_763_726_400, nanos: 0 });
    let one = PipelineStep { elapsed, created_at, status: StepStatus::Running.into(), ..step(id) };
    assert_eq!(failures(&handler, vec![event(&one, &[0xff, 0])]).await, HashMap::new());
    let select = "select id, at, took, key, tenant, message->>'uniqueId', status, topic, partition, \"off set\",
        sent at time zone 'utc', twice from steps";
    let expected = [
        id,
        "2025-11-21",
        "2s",
        "\\xff00",
        "acme",
        id,
        "STEP_STATUS_RUNNING",
        "steps",
        "1",
        "7",
        "2025-11-21 12:00:00.123",
        "2",
    ];
    assert_eq!(query(&client, select).await, [expected]);
}

#[tokio::test]
async fn bad_rows_fail_alone_whoever_finds_them() {
    let server = PostgresServer::new();
    let client = server.client().await;
    query(
        &client,
        "create table runs (run_id text primary key);
         insert into runs values ('known');
         create table steps (event_id text primary key, step varchar(5), attempt smallint check (attempt < 100),
             run_id text references runs, detail text unique, model text)",
    )
    .await;
    let columns = [
        ("event_id", "$event_id"),
        ("step", "step"),
        ("attempt", "attempt"),
        ("run_id", "run_id"),
        ("detail", "detail"),
        ("model", "model"),
    ];
    let handler = connect(&server, &columns).await.unwrap();
    let good = |id: &str| PipelineStep { run_id: "known".into(), detail: id.into(), ..step(id) };
    let mut steps: Vec<_> = (0..40).map(|n| good(&format!("good-{n:02}"))).collect();
    let bad = [
        ("nul", PipelineStep { model: "a\0b".into(), ..good("nul") }, FailureClass::Permanent, "NUL"),
        ("range", PipelineStep { attempt: 40_000, ..good("range") }, FailureClass::Permanent, "40000 is out of range"),
        ("long", PipelineStep { step: "evaluate".into(), ..good("long") }, FailureClass::Permanent, "value too long"),
        ("check", PipelineStep { attempt: 100, ..good("check") }, FailureClass::Permanent, "steps_attempt_check"),
        (
            "same",
            PipelineStep { detail: "good-00".into(), ..good("same") },
            FailureClass::Permanent,
            "steps_detail_key",
        ),
        (
            "early",
            PipelineStep { run_id: "to come".into(), ..good("early") },
            FailureClass::Transient,
            "steps_run_id_fkey",
        ),
    ];
    for (n, (_, step, ..)) in bad.iter().enumerate() {
        steps.insert(n * 7, step.clone());
    }
    let batch: Vec<_> = steps.iter().map(|step| event(step, b"k")).collect();
    let tombstone = {
        let mut event = event(&step("tombstone"), b"k");
        event.record = Arc::new(Record { value: None, ..(*event.record).clone() });
        event
    };
    let failed = failures(&handler, batch.into_iter().chain([tombstone]).collect()).await;
    assert_eq!(failed.len(), bad.len() + 1, "{failed:?}");
    for (id, _, class, part) in &bad {
        let (is, message) = &failed[*id];
        assert_eq!(is, class, "{id}: {message}");
        assert!(message.contains(part), "{id}: {message}");
    }
    assert_eq!(failed["tombstone"].0, FailureClass::Permanent);
    assert_eq!(query(&client, "select count(*) from steps where event_id like 'good-%'").await, [["40"]]);
    assert_eq!(query(&client, "select count(*) from steps").await, [["40"]]);
    // What it refers to has come.
    query(&client, "insert into runs values ('to come')").await;
    assert_eq!(failures(&handler, vec![event(&bad[5].1, b"k")]).await, HashMap::new());
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_refused_with_all_that_is_wrong() {
    let server = PostgresServer::new();
    let client = server.client().await;
    let columns =
        [("event_id", "$event_id"), ("metrics", "metrics"), ("at", "created_at"), ("gone", "step"), ("made", "run_id")];
    let Err(error) = connect(&server, &columns).await else { panic!("there is no table") };
    assert!(error.to_string().contains("it does not exist; right would be"), "{error}");
    assert_eq!(error.exit_code(), 64);
    query(
        &client,
        "create table steps (event_id text, metrics bigint, at boolean, made text generated always as ('x') stored,
            wanted text not null);
         create unique index on steps (event_id) where wanted <> ''",
    )
    .await;
    let Err(error) = connect(&server, &columns).await else { panic!("it does not fit") };
    for part in [
        "column metrics is bigint, which cannot take a list, map or message",
        "column at is boolean, which cannot take a timestamp",
        "column gone does not exist",
        "column made is generated by the server",
        "column event_id holds the event's id and has no unique index",
        "column wanted is not null, has no default and is not in `columns`",
    ] {
        assert!(error.to_string().contains(part), "no `{part}` in {error}");
    }
    // Columns are added; what would have to be changed still is wrong.
    query(&client, "drop table steps; create table steps (event_id text primary key, metrics jsonb)").await;
    let migrating = Options { migrate: true, ..options(&server) };
    let handler = PostgresHandler::connect(migrating, plan(&columns)).await.unwrap();
    assert_eq!(failures(&handler, events(&["a"])).await, HashMap::new());
}

#[tokio::test]
async fn a_server_that_refuses_at_start_is_a_fault_of_the_configuration() {
    let server = PostgresServer::new();
    for (url, part) in [
        (server.url().replace("/postgres", "/nowhere"), "database \"nowhere\" does not exist (3D000)"),
        (server.url().replace("app@", "nobody@"), "role \"nobody\" does not exist (28000)"),
    ] {
        let result = PostgresHandler::connect(Options { url, ..options(&server) }, plan(&[])).await;
        let Err(error) = result else { panic!("{part}") };
        assert_eq!((error.exit_code(), error.to_string().contains(part)), (64, true), "{error}");
    }
}

#[tokio::test]
async fn a_server_in_trouble_fails_the_batch_for_now_and_the_handler_goes_on_by_itself() {
    let mut server = PostgresServer::new();
    let pool = PoolOptions { max_size: 1, min_idle: 1, ..options(&server).pool };
    let options = Options {
        migrate: true,
        pool,
        connect_timeout: Duration::from_secs(4),
        timeout: Duration::from_secs(8),
        ..options(&server)
    };
    let columns = [("event_id", "$event_id"), ("run_id", "run_id")];
    let handler = PostgresHandler::connect(options, plan(&columns)).await.unwrap();
    assert_eq!(failures(&handler, events(&["before"])).await, HashMap::new());

    // A table that is locked, and a pool whose only connection waits for it.
    let client = server.client().await;
    query(&client, "begin; lock table steps").await;
    let (locked, waiting) = tokio::join!(failures(&handler, events(&["a", "b"])), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        failures(&handler, events(&["c"])).await
    });
    transient(&locked, 2, "postgres: ");
    transient(&waiting, 1, "no connection free within 4s: all 1 of the pool are in use");
    query(&client, "rollback").await;

    // A connection that is cut while it lies idle costs nothing.
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'retry-ladder'";
    assert_eq!(query(&client, cut).await, [["1"]]);
    assert_eq!(failures(&handler, events(&["a", "b", "c"])).await, HashMap::new());

    // Nobody there.
    server.stop();
    transient(&failures(&handler, events(&["d", "e"])).await, 2, "no connection within 4s: ");
    server.start();
    assert_eq!(failures(&handler, events(&["d", "e"])).await, HashMap::new());

    // A table that is gone is for people to mend, and no fault of the events.
    let client = server.client().await;
    query(&client, "alter table steps rename to elsewhere").await;
    transient(&failures(&handler, events(&["f", "g"])).await, 2, "42P01");
    query(&client, "alter table elsewhere rename to steps").await;
    assert_eq!(failures(&handler, events(&["f", "g"])).await, HashMap::new());
    assert_eq!(query(&client, "select count(*) from steps").await, [["8"]]);
}

/// Makes a server take writes, or none, as a primary does that became a standby.
async fn set_standby(server: &PostgresServer, is_standby: bool) {
    let on = if is_standby { "on" } else { "off" };
    let client = server.client().await;
    query(&client, &format!("alter system set default_transaction_read_only = {on}")).await;
    query(&client, "select pg_reload_conf()").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while query(&client, "show default_transaction_read_only").await != [[on]] {
        assert!(std::time::Instant::now() < deadline, "the server reads its settings again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_primary_that_became_a_standby_is_left_for_the_new_one() {
    let servers = [PostgresServer::new(), PostgresServer::new()];
    for server in &servers {
        query(&server.client().await, "create table steps (event_id text primary key)").await;
    }
    set_standby(&servers[1], true).await;
    let ports = servers.each_ref().map(|server| server.url().split([':', '/']).nth(4).expect("a port").to_owned());
    let url = format!(
        "postgres:///postgres?user=app&host=127.0.0.1,127.0.0.1&port={}&target_session_attrs=read-write",
        ports.join(",")
    );
    let options = Options { url, ..options(&servers[0]) };
    let handler = PostgresHandler::connect(options, plan(&[("event_id", "$event_id")])).await.unwrap();
    assert_eq!(failures(&handler, events(&["a", "b"])).await, HashMap::new());

    // Its connections stay open: nothing but the refusal tells of it.
    set_standby(&servers[0], true).await;
    set_standby(&servers[1], false).await;
    // Each that the pool has is found out and left in its turn.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let failed = failures(&handler, events(&["c"])).await;
        if failed.is_empty() {
            break;
        }
        transient(&failed, 1, "25006");
        assert!(std::time::Instant::now() < deadline, "its connections are kept");
    }
    for (server, expected) in servers.iter().zip(["a,b", "c"]) {
        let rows = query(&server.client().await, "select string_agg(event_id, ',' order by event_id) from steps").await;
        assert_eq!(rows, [[expected]]);
    }
}

/// The server's certificate as its arguments, and the authority's file.
#[cfg(feature = "tls")]
fn certificate(folder: &Path) -> (Vec<String>, String) {
    let made = crate::certificates::Certificates::make(folder);
    let set = |name: &str, value: &Path| ["-c".to_owned(), format!("{name}={}", value.display())];
    let arguments = [set("ssl", Path::new("on")), set("ssl_cert_file", &made.cert), set("ssl_key_file", &made.key)];
    (arguments.concat(), made.ca.display().to_string())
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_is_what_sslmode_and_its_root_certificate_say() {
    let mut root = String::new();
    let server = PostgresServer::with(|folder| {
        let (arguments, ca) = certificate(folder);
        root = ca;
        arguments
    });
    let client = server.client().await;
    for (host, query_of_url, expected) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), Some("f")),
        ("127.0.0.1", "sslmode=require".to_owned(), Some("t")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={root}"), Some("t")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={root}"), Some("t")),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={root}"), None),
        ("localhost", "sslmode=verify-full".to_owned(), None),
    ] {
        let app = format!("try-{}", fastrand::u32(..));
        let url = format!("{}?{query_of_url}&application_name={app}", server.url().replace("127.0.0.1", host));
        let migrating = Options { url, migrate: true, startup_timeout: Duration::from_millis(200), ..options(&server) };
        let connected = PostgresHandler::connect(migrating, plan(&[])).await;
        let Some(expected) = expected else {
            let error = connected.expect_err("not that server").to_string();
            assert!(error.contains("certificate"), "{error}");
            continue;
        };
        let handler = connected.unwrap();
        assert_eq!(failures(&handler, events(&["a"])).await, HashMap::new());
        let used = "select distinct ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name";
        assert_eq!(query(&client, &format!("{used} = '{app}'")).await, [[expected]], "{query_of_url}");
    }
}
