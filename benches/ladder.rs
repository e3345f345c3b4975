//! Whole-ladder benchmarks on a real Kafka and Redis: `cargo bench --bench ladder -- lateness|forward|parked|happy|overhead [options]`.
//!
//! Speed is judged by ratios: `forward` runs a bare consume → produce loop and the engine in turn in one run. Every
//! event fails on purpose; there is no breaker in this version that would have to be switched off.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

#[path = "ladder/load.rs"]
mod load;
#[path = "ladder/overhead.rs"]
mod overhead;
#[path = "ladder/raw.rs"]
mod raw;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use load::{Bench, Dedup, usage};

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
    /// W4: events that wait, then fall due at once: RSS while waiting, lateness of the first 1,000, drain rate.
    Parked {
        #[arg(long, default_value_t = 500_000)]
        events: usize,
        #[arg(long, default_value_t = 60)]
        wait_secs: u64,
    },
    /// What telemetry costs: `forward` with tracing and a scraper, against the same with neither, in turn.
    Overhead(overhead::Options),
    /// W5: events that succeed at once, against a bare loop.
    Happy {
        #[arg(long, default_value_t = 400_000)]
        events: usize,
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
    let mut bench = Bench::new(&args.brokers, &args.redis, args.partitions, args.concurrency).await;
    match args.what {
        What::Lateness { rate, seconds } => lateness(&mut bench, rate, seconds).await,
        What::Forward { events, rounds, dedup } => forward(&mut bench, events, rounds, Dedup::parse(&dedup)).await,
        What::Parked { events, wait_secs } => parked(&mut bench, events, Duration::from_secs(wait_secs)).await,
        What::Overhead(options) => overhead::run(&mut bench, &options).await,
        What::Happy { events, dedup } => happy(&mut bench, events, Dedup::parse(&dedup)).await,
    }
}

async fn lateness(bench: &mut Bench, rate: u64, seconds: u64) {
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
    for stage in &stages[1..] {
        let h = &stage.stats().lateness;
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
    load::stop(&mut stages).await;
}

async fn forward(bench: &mut Bench, events: usize, rounds: usize, dedup: Dedup) {
    let delays = [100, 200].map(Duration::from_millis);
    let mut ratios = Vec::new();
    println!("forward: {events} due events of one stage, deduplication {dedup:?}, raw loop and engine in turn");
    println!("round      events/s   cpu us/event      raw events/s   raw cpu us/event   ratio");
    for round in 1..=rounds {
        let ladder = bench.ladder(&delays).await;
        bench.preload(&ladder, 1, events).await;
        let raw = raw::forward(bench, &ladder, events);
        let pipeline = bench.pipeline(&ladder, load::failing(), dedup);
        let stage = bench.engine.start(&pipeline, 1).unwrap();
        let load::Drain { rate, cpu_us } = load::drain(stage, events).await;
        ratios.push(rate / raw.rate);
        println!(
            "{round:>5} {rate:>13.0} {cpu_us:>14.2} {:>17.0} {:>18.2} {:>7.2}",
            raw.rate,
            raw.cpu_us,
            rate / raw.rate
        );
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "ratio median {:.2} (min {:.2}, max {:.2}); max rss {} MiB",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
        usage().max_rss_mib
    );
}

async fn parked(bench: &mut Bench, events: usize, wait: Duration) {
    let ladder = bench.ladder(&[wait, wait * 2]).await;
    let preload = Instant::now();
    bench.preload_due(&ladder, 1, events, Some(wait)).await;
    println!(
        "parked: {events} events, due {} s after they were produced (produced in {:.1} s)",
        wait.as_secs(),
        preload.elapsed().as_secs_f64()
    );
    let exe = std::env::current_exe().unwrap();
    drop(exe);
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
    println!("drained at {:.0} events/s; lateness max {:?}", events as f64 / wall, stats.lateness.max());
    load::stop(&mut stages).await;
}

async fn happy(bench: &mut Bench, events: usize, dedup: Dedup) {
    let ladder = bench.ladder(&[Duration::from_secs(1)]).await;
    bench.preload(&ladder, 0, events).await;
    let raw = raw::forward_from(bench, &ladder, 0, events);
    let pipeline = bench.pipeline(&ladder, load::succeeding(), dedup);
    let before = usage();
    let mut stages = vec![bench.engine.start(&pipeline, 0).unwrap()];
    let stats = Arc::clone(stages[0].stats());
    load::until(|| stats.executions.get() > 0, Duration::from_secs(30)).await;
    let start = Instant::now();
    load::until(|| stats.done.get() >= events as u64, Duration::from_secs(120)).await;
    let rate = events as f64 / start.elapsed().as_secs_f64();
    println!(
        "happy path: {rate:.0} events/s, cpu {:.2} us/event, raw loop {:.0}/s, ratio {:.2}",
        (usage().cpu - before.cpu) * 1e6 / events as f64,
        raw.rate,
        rate / raw.rate
    );
    load::stop(&mut stages).await;
}
