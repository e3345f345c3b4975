//! Whole-ladder benchmarks on a real Kafka and Redis: `cargo bench --bench ladder -- lateness|forward|whole|parked|happy|overhead [options]`.
//!
//! Speed is judged by ratios: `forward` runs a bare consume → produce loop and the engine in turn in one run. Where
//! every event fails on purpose, breaker and brake are off: they exist to stop just that.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

#[path = "ladder/load.rs"]
mod load;
#[path = "ladder/overhead.rs"]
mod overhead;
#[path = "ladder/raw.rs"]
mod raw;
#[path = "ladder/report.rs"]
mod report;
#[path = "ladder/whole.rs"]
mod whole;

use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use clap::{Parser, Subcommand};
use load::{Bench, Dedup, usage};
use report::{Report, Spread};
use retry_ladder::stage::ports::Handler;
use retry_ladder::stage::stats::StageStats;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Whole-ladder benchmarks on a real Kafka and Redis")]
struct Args {
    /// Kafka brokers.
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092", global = true)]
    brokers: String,
    /// Redis url.
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
    let mut bench = Bench::new(&args.brokers, &args.redis, args.partitions, args.concurrency, &args.properties).await;
    bench.max_in_flight = args.in_flight.unwrap_or(bench.max_in_flight);
    let report = Report(args.json);
    match args.what {
        What::Lateness { rate, seconds } => lateness(&mut bench, &report, rate, seconds).await,
        What::Forward { events, rounds, dedup } => {
            let dedup = Dedup::parse(&dedup);
            let drain = Drain { name: "forward", stage: 1, handler: load::failing(), events, rounds, dedup };
            drain.run(&mut bench, &report).await;
        }
        What::Happy { events, rounds, dedup } => {
            let dedup = Dedup::parse(&dedup);
            let drain = Drain { name: "happy", stage: 0, handler: load::succeeding(), events, rounds, dedup };
            drain.run(&mut bench, &report).await;
        }
        What::Whole { events } => whole::run(&mut bench, &report, events).await,
        What::Parked { events, wait_secs } => {
            parked(&mut bench, &report, events, Duration::from_secs(wait_secs)).await;
        }
        What::Preload { topic, group, events, wait_secs } => {
            bench.preload(&topic.into(), &group, events, wait_secs.map(Duration::from_secs)).await;
        }
        What::Overhead(options) => overhead::run(&mut bench, &options).await,
    }
}

async fn lateness(bench: &mut Bench, report: &Report, rate: u64, seconds: u64) {
    let delays = [1, 2, 4].map(Duration::from_secs);
    let ladder = bench.ladder(&delays).await;
    let pipeline = bench.pipeline(&ladder, load::failing(), Dedup::Redis);
    let mut stages: Vec<_> = (0..=3).map(|i| bench.engine.start(&pipeline, i).unwrap()).collect();
    load::warm_up(bench, &ladder, &stages).await;
    let before = usage();
    let start = Instant::now();
    let total = rate * seconds;
    bench.produce_at(&ladder, rate, total).await;
    load::until(|| stages[3].stats().dead_letters() >= total + load::WARM_UP, Duration::from_secs(60)).await;
    let (cpu, rss) = (usage().cpu - before.cpu, usage().max_rss_mib);
    println!("lateness at {rate}/s for {seconds} s, all failing, delays 1/2/4 s, {} partitions", bench.partitions);
    println!("stage     count    p50 ms   p90 ms   p99 ms   p99.9 ms   max ms   early");
    let mut rows = Vec::new();
    for stage in &stages[1..] {
        let h = &stage.stats().lateness;
        rows.push(json!({
            "stage": &*stage.context().rung().name, "count": h.count(), "early": stage.stats().early.get(),
            "p50_ms": h.quantile(0.5).map(|d| d.as_secs_f64() * 1e3),
            "p99_ms": h.quantile(0.99).map(|d| d.as_secs_f64() * 1e3),
            "p999_ms": h.quantile(0.999).map(|d| d.as_secs_f64() * 1e3),
            "max_ms": h.max().as_secs_f64() * 1e3,
        }));
        let ms = |q| h.quantile(q).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3);
        println!(
            "{:<8} {:>6} {:>9.2} {:>8.2} {:>8.2} {:>10.2} {:>8.2} {:>7}",
            stage.context().rung().name,
            h.count(),
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(0.999),
            h.max().as_secs_f64() * 1e3,
            stage.stats().early.get()
        );
    }
    println!("wall {:.1} s, cpu of this process {cpu:.1} s, max rss {rss} MiB", start.elapsed().as_secs_f64());
    report.add(json!({
        "workload": "lateness", "rate": rate, "seconds": seconds, "partitions": bench.partitions,
        "stages": rows, "cpu_s": cpu, "max_rss_mib": rss,
    }));
    load::stop(&mut stages).await;
}

/// Events that lie ready on one stage's topic, first to last finished, by raw loop and engine in turn.
struct Drain {
    name: &'static str,
    stage: usize,
    handler: Arc<dyn Handler>,
    events: usize,
    rounds: usize,
    dedup: Dedup,
}

struct Round {
    rate: f64,
    cpu_us: f64,
    raw: raw::Raw,
}

impl Drain {
    async fn run(self, bench: &mut Bench, report: &Report) {
        let Self { name, events, dedup, stage, .. } = self;
        println!("{name}: {events} events of one stage, deduplication {dedup:?}, raw loop and engine in turn");
        println!("  {}", raw::settings(bench, stage));
        println!("round      events/s   cpu us/event      raw events/s   raw cpu us/event   ratio");
        let mut rounds = Vec::new();
        for n in 1..=self.rounds {
            let round = self.round(bench).await;
            let Round { rate, cpu_us, raw } = &round;
            let ratio = rate / raw.rate;
            println!("{n:>5} {rate:>13.0} {cpu_us:>14.2} {:>17.0} {:>18.2} {ratio:>7.2}", raw.rate, raw.cpu_us);
            rounds.push(round);
        }
        let spread = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
        let (ratio, cpu) = (spread(|r| r.rate / r.raw.rate), spread(|r| r.cpu_us));
        let rss = usage().max_rss_mib;
        println!(
            "ratio median {:.2} (min {:.2}, max {:.2}), cpu us/event median {:.2}; max rss {rss} MiB",
            ratio.median, ratio.min, ratio.max, cpu.median
        );
        report.add(json!({
            "workload": name, "dedup": format!("{dedup:?}").to_lowercase(), "events": events,
            "partitions": bench.partitions, "rounds": rounds.len(), "settings": raw::settings(bench, stage),
            "ratio": ratio.json(), "cpu_us": cpu.json(), "rate": spread(|r| r.rate).json(),
            "raw_rate": spread(|r| r.raw.rate).json(), "raw_cpu_us": spread(|r| r.raw.cpu_us).json(),
            "max_rss_mib": rss,
        }));
    }

    async fn round(&self, bench: &mut Bench) -> Round {
        let ladder = bench.ladder(&[100, 200].map(Duration::from_millis)).await;
        let due = (self.stage > 0).then_some(Duration::ZERO);
        bench.preload_elsewhere(&ladder, self.stage, self.events, due).await;
        let raw = raw::forward(bench, &ladder, self.stage, self.events);
        let pipeline = bench.pipeline(&ladder, Arc::clone(&self.handler), self.dedup);
        let before = usage();
        let mut stages = vec![bench.engine.start(&pipeline, self.stage).unwrap()];
        let stats = Arc::clone(stages[0].stats());
        load::until(|| stats.executions.get() > 0, Duration::from_secs(60)).await;
        let start = Instant::now();
        let finished = |s: &StageStats| s.done.get() + s.forwarded.get() + s.dead_letters();
        load::until(|| finished(&stats) >= self.events as u64, Duration::from_secs(300)).await;
        let wall = start.elapsed().as_secs_f64();
        let cpu = usage().cpu - before.cpu;
        load::stop(&mut stages).await;
        Round { rate: self.events as f64 / wall, cpu_us: cpu * 1e6 / self.events as f64, raw }
    }
}

async fn parked(bench: &mut Bench, report: &Report, events: usize, wait: Duration) {
    let wait_secs = wait.as_secs();
    let ladder = bench.ladder(&[wait, wait * 2]).await;
    let preload = Instant::now();
    bench.preload_elsewhere(&ladder, 1, events, Some(wait)).await;
    println!(
        "parked: {events} events, due {} s after they were produced (produced in {:.1} s, by another process)",
        wait_secs,
        preload.elapsed().as_secs_f64()
    );
    let firsts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let pipeline = bench.pipeline(&ladder, load::recording(Arc::clone(&firsts), 1_000), Dedup::Redis);
    let rss_before = load::rss_mib();
    let mut stages = vec![bench.engine.start(&pipeline, 1).unwrap()];
    let stats = Arc::clone(stages[0].stats());
    let mut waiting_rss = 0;
    while stats.executions.get() == 0 {
        waiting_rss = waiting_rss.max(load::rss_mib());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let start = Instant::now();
    load::until(|| stats.forwarded.get() >= events as u64, Duration::from_secs(300)).await;
    let wall = start.elapsed().as_secs_f64();
    let mut firsts = firsts.lock().unwrap().clone();
    firsts.sort_unstable();
    let q = |q: f64| firsts[((firsts.len() - 1) as f64 * q) as usize] as f64 / 1e3;
    println!(
        "rss while waiting {waiting_rss} MiB (before the stage started {rss_before} MiB), max {} MiB",
        usage().max_rss_mib
    );
    println!(
        "first {} starts: late p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms; early {}",
        firsts.len(),
        q(0.5),
        q(0.99),
        q(1.0),
        stats.early.get()
    );
    let rate = events as f64 / wall;
    println!("drained at {rate:.0} events/s; lateness max {:?}", stats.lateness.max());
    report.add(json!({
        "workload": "parked", "events": events, "wait_s": wait_secs, "partitions": bench.partitions,
        "rss_waiting_mib": waiting_rss, "rss_before_mib": rss_before, "max_rss_mib": usage().max_rss_mib,
        "first_p50_ms": q(0.5), "first_p99_ms": q(0.99), "early": stats.early.get(), "drain_rate": rate,
    }));
    load::stop(&mut stages).await;
}
