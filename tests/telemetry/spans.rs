//! What `/metrics` tells of the export of spans.

use std::sync::Arc;
use std::time::Duration;

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::adapters::otel::OtelTracer;
use retry_ladder::admin::monitor;
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::ports::{Sampling, Span, SpanKind, TraceContext, Tracer};
use retry_ladder::telemetry::traces;

use crate::parser;

#[tokio::test(start_paused = true)]
async fn spans_are_counted_by_what_became_of_them() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let options = traces::Options {
        endpoint: format!("http://{free}"),
        headers: Vec::new(),
        ca: None,
        service: "retry-ladder",
        instance: "i".into(),
    };
    let export = traces::Traces::start(options).expect("nobody need be there");
    let monitor = monitor::Monitor::new(Vec::new(), &Properties::default()).spans(Some(Arc::clone(export.counts())));
    let now = SystemClock.now().wall;
    let tracer = OtelTracer::new(export.queue(), Sampling::default(), "c");
    let event_id = Arc::from("e");
    let topic = Arc::from("t");
    let span = Span {
        kind: SpanKind::Process,
        context: TraceContext::root(1.0),
        parent: None,
        start: now,
        end: now,
        topic: &topic,
        partition: None,
        offset: None,
        key: None,
        event_id: &event_id,
        stage: None,
        due: None,
        error: None,
        action: None,
    };
    // Nothing else runs until this test waits for something.
    (0..traces::QUEUE + 3).for_each(|_| tracer.write(&span));
    let all = |samples: &parser::Samples| {
        [
            "otel_sdk_processor_span_processed_total",
            "otel_sdk_processor_span_processed_total{error_type=\"queue_full\"}",
            "otel_sdk_exporter_span_exported_total",
            "otel_sdk_exporter_span_exported_total{error_type=\"export_failed\"}",
            "otel_sdk_processor_span_queue_size",
        ]
        .map(|series| samples[series])
    };
    let capacity = traces::QUEUE as f64;
    let samples = parser::parse(&monitor.metrics().await.render());
    assert_eq!(all(&samples), [0.0, 3.0, 0.0, 0.0, capacity]);
    assert_eq!(samples["otel_sdk_processor_span_queue_capacity"], capacity);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let samples = parser::parse(&monitor.metrics().await.render());
        let [processed, full, exported, failed, queued] = all(&samples);
        assert_eq!((processed, full, exported, failed + queued), (failed, 3.0, 0.0, capacity));
        if queued == 0.0 {
            break;
        }
    }
}
