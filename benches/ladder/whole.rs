//! W1: events that lie ready on main and all fail, through every rung to the DLQ, by all stages in one process.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::{self, Bench, Dedup, usage};
use crate::raw;
use crate::report::Report;

const DELAYS: [u64; 3] = [1, 2, 4];

/// The wall contains the delays of the rungs; the yardstick is what the raw loop takes for as many executions.
pub async fn run(bench: &mut Bench, report: &Report, events: usize) {
    let ladder = bench.ladder(&DELAYS.map(Duration::from_secs)).await;
    bench.preload_elsewhere(&ladder, 0, events, None).await;
    let raw = raw::forward(bench, &ladder, 0, events);
    let pipeline = bench.pipeline(&ladder, load::failing(), Dedup::Redis);
    let (before, start) = (usage(), Instant::now());
    let mut stages: Vec<_> = (0..=DELAYS.len()).map(|stage| bench.engine.start(&pipeline, stage).unwrap()).collect();
    let last = stages[DELAYS.len()].stats().clone();
    load::until(|| last.dead_letters() >= events as u64, Duration::from_secs(600)).await;
    let (wall, usage) = (start.elapsed().as_secs_f64(), usage());
    let executions = stages.iter().map(|stage| stage.stats().executions.get()).sum::<u64>();
    let early = stages.iter().map(|stage| stage.stats().early.get()).sum::<u64>();
    let (delays, needs) = (DELAYS.iter().sum::<u64>() as f64, executions as f64 / raw.rate);
    let (ratio, cpu_us) = ((wall - delays) / needs, (usage.cpu - before.cpu) * 1e6 / executions as f64);
    println!(
        "whole: {events} events from main to the DLQ, delays 1/2/4 s, deduplication Redis, {executions} executions"
    );
    println!("  {}", raw::settings(bench, 0));
    println!(
        "wall {wall:.1} s, of it {delays} s delays; the rest is {ratio:.2} x the {needs:.1} s that the raw loop needs at \
         {:.0}/s; {:.0} executions/s, {cpu_us:.2} us cpu each; max rss {} MiB; early {early}",
        raw.rate,
        executions as f64 / (wall - delays),
        usage.max_rss_mib,
    );
    report.add(json!({
        "workload": "whole", "events": events, "executions": executions, "wall_s": wall, "delays_s": delays,
        "raw_rate": raw.rate, "ratio_to_raw": ratio, "cpu_us": cpu_us, "max_rss_mib": usage.max_rss_mib, "early": early,
    }));
    load::stop(&mut stages).await;
}
