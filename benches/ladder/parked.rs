//! W4: events that wait, then fall due at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::{self, Bench, Dedup, usage};
use crate::report::Report;

pub async fn run(bench: &mut Bench, report: &Report, events: usize, wait: Duration) {
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
