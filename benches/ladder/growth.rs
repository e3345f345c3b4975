//! What grows with what: CPU per event with the number of events, memory with partitions, and what an idle process costs.
//!
//! Memory and idle CPU are those of a process of its own that runs one stage and nothing else.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::load::{self, Bench, Dedup, ladder_of, usage};
use crate::report::{Report, Spread};

/// CPU of an idle process with 300 partitions, share of one core.
const IDLE_AIM: f64 = 0.01;
/// CPU per event may differ by so much from few events to many.
const FLAT_AIM: f64 = 0.1;
/// More than a partition's window of waiting events.
const WAITING: usize = 400;
/// Every load is repeated until so many events went through, so that its CPU can be told from noise.
const AT_LEAST: usize = 100_000;

/// A stage in a process of its own.
#[derive(clap::Args)]
pub struct Stage {
    #[arg(long)]
    topic: String,
    #[arg(long)]
    stage: usize,
    /// Looks at itself for so long, then ends.
    #[arg(long)]
    seconds: Option<u64>,
}

pub async fn run(bench: &mut Bench, report: &Report, events: usize, time: Duration) {
    println!("growth: CPU per event of one stage whose events are due and fail, deduplication in Redis");
    let mut costs = Vec::new();
    for size in [events / 100, events / 10, events] {
        let rounds = AT_LEAST.div_ceil(size).clamp(1, 10);
        let mut each = Vec::new();
        for _ in 0..rounds {
            each.push(cpu_per_event(bench, size).await);
        }
        let cost = Spread::of(each.into_iter());
        println!(
            "{size:>9} events, {rounds} rounds: {:.2} us/event (min {:.2}, max {:.2})",
            cost.median, cost.min, cost.max
        );
        costs.push((size, cost));
    }
    let (least, most) = costs.iter().fold((f64::MAX, 0.0_f64), |(a, b), (_, c)| (a.min(c.median), b.max(c.median)));
    let flat = most / least - 1.0;
    println!("from least to most {:.0} %, aim {:.0} %: {}", flat * 100.0, FLAT_AIM * 100.0, met(flat <= FLAT_AIM));

    println!("partitions   waiting events   rss MiB   cpu of a core   wake-ups/s");
    let mut rows = Vec::new();
    for (partitions, waiting) in [(6, WAITING), (60, WAITING), (300, WAITING), (300, 0)] {
        bench.partitions = partitions;
        let seen = settled(bench, waiting * partitions as usize, time).await;
        let of = |key: &str| seen[key].as_f64().unwrap_or(f64::NAN);
        let (rss, cpu, wakeups) = (of("rss_mib"), of("cpu"), of("wakeups"));
        println!(
            "{partitions:>10} {:>16} {rss:>9.0} {:>13.2} % {wakeups:>12.0}",
            waiting * partitions as usize,
            cpu * 100.0
        );
        rows.push(json!({"partitions": partitions, "waiting_per_partition": waiting, "seen": seen}));
        if waiting == 0 {
            println!(
                "idle with {partitions} partitions, aim {:.0} % of a core: {}",
                IDLE_AIM * 100.0,
                met(cpu < IDLE_AIM)
            );
        }
    }
    report.add(json!({
        "workload": "growth", "spread": flat,
        "cpu_us": costs.iter().map(|(n, c)| json!({"events": n, "cpu_us": c.json()})).collect::<Vec<_>>(),
        "processes": rows,
    }));
}

fn met(is: bool) -> &'static str {
    if is { "met" } else { "missed" }
}

/// From the first execution to the last.
async fn cpu_per_event(bench: &mut Bench, events: usize) -> f64 {
    let ladder = bench.ladder(&[100, 200].map(Duration::from_millis)).await;
    bench.preload_elsewhere(&ladder, 1, events, Some(Duration::ZERO)).await;
    let pipeline = bench.pipeline(&ladder, load::failing(), Dedup::Redis);
    let stage = bench.engine.start(&pipeline, 1).unwrap();
    let stats = std::sync::Arc::clone(stage.stats());
    load::until(|| stats.executions.get() > 0, Duration::from_secs(60)).await;
    let (cpu, done) = (usage().cpu, stats.forwarded.get());
    load::until(|| stats.forwarded.get() >= events as u64, Duration::from_secs(600)).await;
    let cost = (usage().cpu - cpu) * 1e6 / (stats.forwarded.get() - done) as f64;
    load::stop(&mut [stage]).await;
    cost
}

/// A process that runs one stage whose events wait for an hour.
async fn settled(bench: &mut Bench, waiting: usize, time: Duration) -> Value {
    let ladder = bench.ladder(&DELAYS).await;
    if waiting > 0 {
        bench.preload_elsewhere(&ladder, 1, waiting, Some(DELAYS[0])).await;
    }
    let mut child = bench.another();
    child.args(["stage", "--topic", ladder.topic(), "--stage", "1", "--seconds", &time.as_secs().to_string()]);
    let output = tokio::task::spawn_blocking(move || child.stderr(Stdio::inherit()).output()).await.unwrap().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

const DELAYS: [Duration; 2] = [Duration::from_secs(3_600), Duration::from_secs(7_200)];

/// Runs the stage, prints what it took as JSON.
pub async fn stage(bench: &mut Bench, options: Stage) {
    let ladder = ladder_of(&options.topic, &DELAYS);
    let pipeline = bench.pipeline(&ladder, load::failing(), Dedup::Redis);
    let mut stages = vec![bench.engine.start(&pipeline, options.stage).unwrap()];
    let stats = std::sync::Arc::clone(stages[0].stats());
    let Some(seconds) = options.seconds else {
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        load::stop(&mut stages).await;
        println!("{}", json!({"executed": stats.executions.get(), "cpu_s": usage().cpu, "rss_mib": load::rss_mib()}));
        return;
    };
    // Partitions are assigned and windows full when the process has come to rest.
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (cpu, wakeups, start) = (usage().cpu, load::wakeups(), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let wall = start.elapsed().as_secs_f64();
    let seen = json!({
        "rss_mib": load::rss_mib(), "cpu": (usage().cpu - cpu) / wall,
        "wakeups": (load::wakeups() - wakeups) as f64 / wall,
    });
    load::stop(&mut stages).await;
    println!("{seen}");
}
