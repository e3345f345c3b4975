//! A collector that hangs, and one that is gone: spans are lost, no event is, and none is late for it.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::{DELAYS, Pipeline, Sink, service, until};

/// What the proxy before the collector does.
const PASS: u8 = 0;
const SWALLOW: u8 = 1;
const REFUSE: u8 = 2;

/// A proxy before the collector that can be cut.
async fn proxy(collector: &str) -> (String, Arc<AtomicU8>) {
    let target = collector.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mode = Arc::new(AtomicU8::new(PASS));
    let state = Arc::clone(&mode);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (target, state) = (target.clone(), Arc::clone(&state));
            tokio::spawn(async move {
                if state.load(Ordering::Relaxed) != PASS {
                    return;
                }
                let mut to = TcpStream::connect(&target).await.expect("the collector");
                let cut = async {
                    while state.load(Ordering::Relaxed) == PASS {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                    () = cut => {}
                }
                // Swallowing: the connection stays, nobody reads it.
                while state.load(Ordering::Relaxed) == SWALLOW {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
    });
    (address, mode)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_and_dies_costs_spans_only() {
    const EVENTS: usize = 3_000;
    let (collector, mode) = proxy(&service("OTEL_EXPORTER_OTLP_ENDPOINT")).await;
    let sink = Sink::start(|_| 200).await;
    let pipeline = Pipeline::new(&sink, &collector, &DELAYS);
    let stage = pipeline.run("main");
    let mut produce = tokio::process::Command::from(pipeline.command(&["produce", "--rate", "500", "--count", "3000"]));
    let mut produce = produce.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    for (events, next) in [(EVENTS / 3, SWALLOW), (2 * EVENTS / 3, REFUSE)] {
        until("a third of the events", async || (sink.calls().len() >= events).then_some(())).await;
        mode.store(next, Ordering::Relaxed);
    }
    until("all events", async || (sink.calls().len() >= EVENTS).then_some(())).await;
    assert!(produce.wait().await.unwrap().success(), "lost spans are no failure");
    let took = stage.end().await;
    assert!(took < Duration::from_secs(20), "the end is bounded: {took:?}");

    let calls = sink.calls();
    let ids: BTreeSet<_> = calls.iter().map(|call| call.event_id.as_str()).collect();
    assert_eq!((calls.len(), ids.len()), (EVENTS, EVENTS), "none lost, none twice");
    // The first tenth also waits for the group to form.
    let from = calls[EVENTS / 10].at;
    let (healthy, hanging, dead) = (calls[EVENTS / 3].at, calls[2 * EVENTS / 3].at, calls[EVENTS - 1].at);
    let rate = |events: usize, time: Duration| events as f64 / time.as_secs_f64();
    let before = rate(EVENTS / 3 - EVENTS / 10, healthy - from).min(500.0);
    for after in [rate(EVENTS / 3, hanging - healthy), rate(EVENTS / 3, dead - hanging)] {
        assert!(after >= 0.8 * before, "{after} events a second after {before}");
    }
    check_log(&pipeline.log("main"));
}

/// The loss is told once, as a warning, and summed up at the end.
#[track_caller]
fn check_log(log: &str) {
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let told = |what: &str| {
        lines.iter().filter(|l| l["message"].as_str().is_some_and(|m| m.contains(what))).collect::<Vec<_>>()
    };
    assert_eq!(told("does not take spans").len(), 1, "{log}");
    let summary = told("traces are incomplete");
    assert_eq!(summary.len(), 1, "{log}");
    assert!(summary[0]["lost"].as_u64().is_some_and(|lost| lost > 0), "{log}");
    assert!(lines.iter().all(|line| line["level"] != "ERROR"), "{log}");
}
