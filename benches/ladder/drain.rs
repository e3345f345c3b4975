//! W1-drain, W5 and the HTTP handler: the engine and its yardstick in turn, in one run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use retry_ladder::stage::ports::Handler;
use retry_ladder::stage::stats::StageStats;
use serde_json::json;

use crate::load::{self, Bench, Dedup, usage};
use crate::report::{Report, Spread};
use crate::{http, raw};

/// Events that lie ready on one stage's topic, first to last finished.
pub struct Drain {
    pub name: &'static str,
    pub stage: usize,
    pub handler: Arc<dyn Handler>,
    pub events: usize,
    pub rounds: usize,
    pub dedup: Dedup,
    pub yardstick: Yardstick,
}

/// What the engine is measured against.
pub enum Yardstick {
    /// A bare consume → produce loop.
    Kafka,
    /// A bare loop of requests.
    Http(http::Bare),
}

struct Round {
    rate: f64,
    cpu_us: f64,
    raw: raw::Raw,
}

impl Drain {
    pub async fn run(self, bench: &mut Bench, report: &Report) {
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
        let raw = match &self.yardstick {
            Yardstick::Kafka => raw::forward(bench, &ladder, self.stage, self.events),
            Yardstick::Http(bare) => bare.run(self.events).await,
        };
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
