//! W2: events at a steady rate, all failing: how late each stage starts them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::{self, Bench, Dedup, usage};
use crate::report::Report;

pub async fn run(bench: &mut Bench, report: &Report, rate: u64, seconds: u64) {
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
