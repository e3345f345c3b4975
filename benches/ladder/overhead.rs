//! What telemetry costs: the same load with and without it, in turn in one run, the order changing from round to round.
//!
//! On: spans of a share of the events go to an OTLP collector, and the metrics are scraped over HTTP each second, which
//! also asks Kafka for what lies beyond the windows. Off: neither. Every event of this load fails, so sampling from the
//! first failure on, the default, would trace all of them: it is off here unless asked for.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use retry_ladder::adapters::otel::OtelTracer;
use retry_ladder::admin::monitor::Monitor;
use retry_ladder::admin::server::{Listener, Server};
use retry_ladder::app::engine::Pipeline;
use retry_ladder::stage::ports::Sampling;
use retry_ladder::telemetry::traces::{self, Traces};

use crate::load::{self, Bench, Dedup, Drain};

/// The aim: with telemetry at least this share of the rate without.
const AIM: f64 = 0.9;

#[derive(clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 400_000)]
    events: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// redis | off
    #[arg(long, default_value = "redis")]
    dedup: String,
    /// Share of the events that are traced.
    #[arg(long, default_value_t = 0.01)]
    sample_ratio: f64,
    /// Trace every event from its first failure on, which are all here.
    #[arg(long)]
    sample_on_failure: bool,
    /// An OTLP collector that takes gRPC; `scripts/services up jaeger` starts one.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", default_value = "http://localhost:4317")]
    otlp: String,
}

pub async fn run(bench: &mut Bench, options: &Options) {
    let Options { events, rounds, sample_ratio, sample_on_failure, .. } = *options;
    println!(
        "overhead: {events} due events of one stage, deduplication {}; telemetry: {sample_ratio} of them traced{}, a \
         scrape each second",
        options.dedup,
        if sample_on_failure { " and all from their first failure on" } else { "" },
    );
    println!("round   off events/s   off cpu us/event   on events/s   on cpu us/event   ratio   spans   scrapes");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let (off, (on, seen)) = if round % 2 == 1 {
            let off = without(bench, options).await;
            (off, with(bench, options).await)
        } else {
            let on = with(bench, options).await;
            (without(bench, options).await, on)
        };
        let ratio = on.rate / off.rate;
        ratios.push(ratio);
        println!(
            "{round:>5} {:>14.0} {:>18.2} {:>13.0} {:>17.2} {ratio:>7.2} {:>7} {:>9}",
            off.rate, off.cpu_us, on.rate, on.cpu_us, seen.spans, seen.scrapes
        );
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!(
        "ratio median {median:.2} (min {:.2}, max {:.2}), aim {AIM}: {}",
        ratios[0],
        ratios[ratios.len() - 1],
        if median >= AIM { "met" } else { "missed" }
    );
}

/// What came out of the process.
struct Seen {
    spans: u64,
    scrapes: u64,
}

async fn without(bench: &mut Bench, options: &Options) -> Drain {
    bench.engine.tracer = None;
    let pipeline = prepared(bench, options).await;
    load::drain(bench.engine.start(&pipeline, 1).unwrap(), options.events).await
}

async fn with(bench: &mut Bench, options: &Options) -> (Drain, Seen) {
    let traces = Traces::start(traces::Options {
        endpoint: options.otlp.clone(),
        headers: Vec::new(),
        ca: None,
        service: "retry-ladder-bench",
        instance: "overhead".into(),
    });
    let traces = traces.unwrap();
    let sampling = Sampling { ratio: options.sample_ratio, on_failure: options.sample_on_failure };
    let pipeline = prepared(bench, options).await;
    bench.engine.tracer = Some(Arc::new(OtelTracer::new(traces.queue(), sampling, "bench")));
    let stage = bench.engine.start(&pipeline, 1).unwrap();
    let listener = Listener::bind(Some("127.0.0.1:0"), 1).await.unwrap();
    let mut server = Server::start(listener, Duration::from_secs(300), None);
    server.watch(Monitor::new(vec![stage.view()], &bench.properties));
    let url = format!("http://{}/metrics", server.address());
    let scrapes = Cell::new(0);
    let scraper = async {
        let client = reqwest::Client::new();
        loop {
            let text = client.get(&url).send().await.unwrap().text().await.unwrap();
            assert!(text.contains("ladder_events_total{"), "{text}");
            scrapes.set(scrapes.get() + 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let drain = tokio::select! {
        drain = load::drain(stage, options.events) => drain,
        () = scraper => unreachable!("it goes on"),
    };
    bench.engine.tracer = None;
    let counts = Arc::clone(traces.counts());
    let lost = traces.shutdown().await;
    let spans = counts.exported();
    assert!(
        spans > 0,
        "no span got to {}: is there a collector? `scripts/services up jaeger` starts one",
        options.otlp
    );
    if lost > 0 {
        println!("      ({lost} spans were lost)");
    }
    (drain, Seen { spans, scrapes: scrapes.get() })
}

async fn prepared(bench: &mut Bench, options: &Options) -> Pipeline {
    let ladder = bench.ladder(&[100, 200].map(Duration::from_millis)).await;
    bench.preload_elsewhere(&ladder, 1, options.events, Some(Duration::ZERO)).await;
    bench.pipeline(&ladder, load::failing(), Dedup::parse(&options.dedup))
}
