//! Whole-ladder benchmarks on a real Kafka and Redis: `cargo bench --bench ladder -- WORKLOAD [options]`.
//!
//! Speed is judged by ratios: `forward`, `happy` and `http` run a bare loop and the engine in turn in one run. Every event
//! fails, or succeeds, on purpose: breaker and brake, which an `Engine` without `guard` does not have, would stop it.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

#[path = "ladder/drain.rs"]
mod drain;
#[path = "ladder/growth.rs"]
mod growth;
#[path = "ladder/http.rs"]
mod http;
#[path = "ladder/lateness.rs"]
mod lateness;
#[path = "ladder/load.rs"]
mod load;
#[path = "ladder/overhead.rs"]
mod overhead;
#[path = "ladder/parked.rs"]
mod parked;
#[path = "ladder/raw.rs"]
mod raw;
#[path = "ladder/report.rs"]
mod report;
#[path = "ladder/spread.rs"]
mod spread;
#[path = "ladder/whole.rs"]
mod whole;

use std::time::Duration;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use clap::{Parser, Subcommand};
use drain::{Drain, Yardstick};
use load::{Bench, Dedup};
use report::Report;
use retry_ladder::stage::context::Forward;

#[derive(Parser)]
#[command(about = "Whole-ladder benchmarks on a real Kafka and Redis")]
struct Args {
    /// Kafka brokers.
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092", global = true)]
    brokers: String,
    /// Redis url; several, with commas: a cluster.
    #[arg(long, env = "REDIS_URL", default_value = "redis://localhost:6379/0", global = true)]
    redis: String,
    /// Partitions of each topic.
    #[arg(long, default_value_t = 6, global = true)]
    partitions: i32,
    /// Handlers in flight per stage.
    #[arg(long, default_value_t = 256, global = true)]
    concurrency: usize,
    /// Events of one partition that may be past their due time and not finished (the engine's default).
    #[arg(long, global = true)]
    in_flight: Option<usize>,
    /// idempotent | transactional: how the engine sends on.
    #[arg(long = "forward", default_value = "idempotent", global = true)]
    forward: String,
    /// Order among events of one key: stage | ladder. With `ladder` each event has a key of its own: what it costs, not
    /// how long a key waits.
    #[arg(long, default_value = "stage", global = true)]
    order: String,
    /// Also appends each result to this file, one JSON object a line.
    #[arg(long, global = true)]
    json: Option<std::path::PathBuf>,
    /// Properties for the consumer or the producer of raw loop and engine alike, `KEY=VALUE`.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    properties: Vec<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// W2: events at a steady rate, all failing, delays 1/2/4 s: start − due per stage.
    Lateness {
        #[arg(long, default_value_t = 300)]
        rate: u64,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// W1-drain: events that are due, one stage, first to last forward; against a bare loop, in turn.
    Forward {
        #[arg(long, default_value_t = 400_000)]
        events: usize,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// redis | off
        #[arg(long, default_value = "redis")]
        dedup: String,
    },
    /// W1: events on main that all fail, through every rung to the DLQ, by all stages in one process.
    Whole {
        #[arg(long, default_value_t = 1_000_000)]
        events: usize,
    },
    /// W4: events that wait, then fall due at once: RSS while waiting, lateness of the first 1,000, drain rate.
    Parked {
        #[arg(long, default_value_t = 500_000)]
        events: usize,
        #[arg(long, default_value_t = 60)]
        wait_secs: u64,
    },
    /// Produces the events of `parked`, in a process of its own so that the memory of `parked` is the engine's alone.
    #[command(hide = true)]
    Preload {
        #[arg(long)]
        topic: String,
        #[arg(long)]
        group: String,
        #[arg(long)]
        events: usize,
        #[arg(long)]
        wait_secs: Option<u64>,
    },
    /// The HTTP handler and a server that answers at once, against a bare loop of the same client, connections and server.
    Http {
        #[arg(long, default_value_t = 200_000)]
        events: usize,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// CPU per event from 10^4 events to so many; memory by partitions, with full windows; CPU of an idle process.
    Growth {
        #[arg(long, default_value_t = 1_000_000)]
        events: usize,
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Worker processes that share one stage: who did how much, and what each node of a Redis Cluster was asked.
    Spread {
        #[arg(long, default_value_t = 400_000)]
        events: usize,
        #[arg(long, default_value_t = 4)]
        workers: usize,
    },
    /// A server that answers each request at once, until its standard input ends; prints its port.
    #[command(hide = true)]
    Answer,
    /// A stage until standard input ends or the time is over; prints what it took.
    #[command(hide = true)]
    Stage(growth::Stage),
    /// What telemetry costs: `forward` with tracing and a scraper, against the same with neither, in turn.
    Overhead(overhead::Options),
    /// W5: events that succeed at once, against a bare loop.
    Happy {
        #[arg(long, default_value_t = 400_000)]
        events: usize,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// redis | off
        #[arg(long, default_value = "redis")]
        dedup: String,
    },
}

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(args));
}

async fn run(args: Args) {
    if let What::Answer = args.what {
        return http::answer().await;
    }
    let mut bench = Bench::new(&args.brokers, &args.redis, args.partitions, args.concurrency, &args.properties).await;
    bench.max_in_flight = args.in_flight.unwrap_or(bench.max_in_flight);
    bench.forward = match &*args.forward {
        "idempotent" => Forward::Idempotent,
        "transactional" => Forward::Transactional,
        _ => panic!("--forward is idempotent or transactional"),
    };
    bench.order = load::order(&args.order);
    let bench = &mut bench;
    let report = &Report(args.json);
    let yardstick = Yardstick::Kafka;
    match args.what {
        What::Lateness { rate, seconds } => lateness::run(bench, report, rate, seconds).await,
        What::Forward { events, rounds, dedup } => {
            let (dedup, handler) = (Dedup::parse(&dedup), load::failing());
            Drain { name: "forward", stage: 1, handler, events, rounds, dedup, yardstick }.run(bench, report).await;
        }
        What::Happy { events, rounds, dedup } => {
            let (dedup, handler) = (Dedup::parse(&dedup), load::succeeding());
            Drain { name: "happy", stage: 0, handler, events, rounds, dedup, yardstick }.run(bench, report).await;
        }
        What::Http { events, rounds } => {
            let server = http::Server::start();
            let (handler, yardstick) = (server.handler(), Yardstick::Http(server.bare(bench)));
            let dedup = Dedup::Redis;
            Drain { name: "http", stage: 0, handler, events, rounds, dedup, yardstick }.run(bench, report).await;
        }
        What::Whole { events } => whole::run(bench, report, events).await,
        What::Parked { events, wait_secs } => parked::run(bench, report, events, Duration::from_secs(wait_secs)).await,
        What::Preload { topic, group, events, wait_secs } => {
            bench.preload(&topic.into(), &group, events, wait_secs.map(Duration::from_secs)).await;
        }
        What::Growth { events, seconds } => growth::run(bench, report, events, Duration::from_secs(seconds)).await,
        What::Stage(stage) => growth::stage(bench, stage).await,
        What::Spread { events, workers } => spread::run(bench, report, events, workers).await,
        What::Overhead(options) => overhead::run(bench, &options).await,
        What::Answer => unreachable!("it needs no Kafka"),
    }
    bench.clean_up().await;
}
