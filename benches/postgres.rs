//! How fast rows are inserted: `cargo bench --bench postgres -- --url postgres://app@127.0.0.1:5432/postgres`.
//!
//! No Kafka: events go through `Batched` and the postgres handler as the engine would hand them over, `--concurrency` at a
//! time. Two others in the same run tell what that is worth: one row per statement, and the server filling the same table by
//! itself, which is as fast as it can be. The table is made anew for each and dropped at the end.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use futures::stream::{self, StreamExt as _};
use prost::Message as _;
use retry_ladder::handlers::batched::{BatchOptions, Batched};
use retry_ladder::handlers::postgres::{Options, Plan, PostgresHandler};
use retry_ladder::ladder::event::{Origin, Outcome, Timestamp};
use retry_ladder::messages::ml::v1::PipelineStep;
use retry_ladder::messages::{Decoder, Framing};
use retry_ladder::stage::ports::{Event, Handler as _};
use retry_ladder::stage::record::Record;

const TABLE: &str = "retry_ladder_bench";

#[derive(Parser)]
#[command(about = "Bulk inserts into PostgreSQL")]
struct Args {
    /// Server and database.
    #[arg(long, env = "DATABASE_URL", default_value = "postgres://app@127.0.0.1:5432/postgres")]
    url: String,
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Rows per statement at most.
    #[arg(long, default_value_t = 100)]
    batch_size: usize,
    /// Events in hand at a time.
    #[arg(long, default_value_t = 800)]
    concurrency: usize,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    pool: u32,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let (client, connection) = tokio_postgres::connect(&args.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let drop_table = format!("drop table if exists {TABLE}");
    for (what, size, count) in
        [("one row per statement", 1, args.events / 10), ("batches", args.batch_size, args.events)]
    {
        client.batch_execute(&drop_table).await.unwrap();
        let handler = handler(&args, size).await;
        let (begun, cpu) = (Instant::now(), cpu());
        let outcomes = stream::iter(0..count).map(|n| handler.handle(event(n))).buffer_unordered(args.concurrency);
        let done = outcomes.filter(|outcome| std::future::ready(*outcome == Outcome::Done)).count().await;
        assert_eq!(done, count);
        tell(what, count, begun.elapsed(), Some(self::cpu() - cpu));
    }
    // What the last run wrote, written again by the server alone into a table with the same index.
    client.batch_execute(&format!("create table {TABLE}_copy (like {TABLE} including all)")).await.unwrap();
    let begun = Instant::now();
    let copy = format!("insert into {TABLE}_copy select * from {TABLE} on conflict do nothing");
    let rows = client.execute(&copy, &[]).await.unwrap();
    tell("the server by itself", rows as usize, begun.elapsed(), None);
    client.batch_execute(&format!("{drop_table}, {TABLE}_copy")).await.unwrap();
}

async fn handler(args: &Args, size: usize) -> Batched<PostgresHandler> {
    let decoder = Decoder::new("ml.v1.PipelineStep", None, Framing::Plain).unwrap();
    let plan = Plan::new(decoder, Some(TABLE), &BTreeMap::new()).unwrap();
    // One row per statement, and each waits for all before it: on a slow disk that is longer than a pipeline would wait.
    let patience = Duration::from_secs(600);
    let mut options =
        Options { migrate: true, timeout: patience, connect_timeout: patience, ..Options::new(&args.url) };
    options.pool.max_size = args.pool;
    let handler = PostgresHandler::connect(options, plan).await.unwrap();
    Batched::new(handler, BatchOptions { size, ..BatchOptions::default() })
}

fn event(n: usize) -> Event {
    let id = format!("step-{n:012}");
    let step = PipelineStep {
        unique_id: id.clone(),
        run_id: format!("run-{}", n % 1_000),
        step: "train".into(),
        status: 2,
        metrics: BTreeMap::from([("loss".into(), 0.25), ("examples_per_second".into(), 1_234.5)]),
        created_at: Some(prost_types::Timestamp { seconds: 1_763_726_400, nanos: 0 }),
        attempt: 1,
        ..PipelineStep::default()
    };
    let payload = Bytes::from(step.encode_to_vec());
    let record = Record {
        partition: 0,
        offset: n as i64,
        timestamp_ms: 0,
        key: None,
        value: Some(payload.clone()),
        headers: Vec::new(),
    };
    Event {
        pipeline: "bench".into(),
        group: "bench".into(),
        message: "ml.v1.PipelineStep".into(),
        id: id.into(),
        attempt: 1,
        stage: 0,
        stage_name: "main".into(),
        fence: 1,
        deadline: Timestamp::from_millis(0),
        origin: Origin { topic: "bench".into(), partition: 0, offset: n as i64, timestamp_ms: 0 },
        record: Arc::new(record),
        payload,
        trace: None,
    }
}

/// CPU time of this process; the server's is not in it.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn tell(what: &str, rows: usize, took: Duration, cpu: Option<Duration>) {
    let rate = rows as f64 / took.as_secs_f64();
    let cpu =
        cpu.map_or(String::new(), |cpu| format!(", {:.1} us CPU per row here", cpu.as_secs_f64() * 1e6 / rows as f64));
    println!("{what:<22} {rate:>9.0} rows/s{cpu}");
}
