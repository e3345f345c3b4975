//! Traces as Jaeger's API tells them, and what must hold of their spans.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::{service, until};

#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) parent: String,
    pub(super) start_us: u64,
    pub(super) end_us: u64,
    pub(super) tags: HashMap<String, String>,
    pub(super) instance: String,
}

/// The spans of a trace, as soon as there are so many.
pub(super) async fn trace(id: &str, count: usize) -> Vec<Span> {
    let url = format!("{}/api/traces/{id}", service("JAEGER_URL"));
    let mut last = Vec::new();
    let spans = until("the trace is in Jaeger", async || {
        let body = reqwest::get(&url).await.ok()?.text().await.ok()?;
        last = spans(&serde_json::from_str(&body).ok()?);
        (last.len() >= count).then(|| last.clone())
    });
    spans.await
}

fn spans(answer: &Value) -> Vec<Span> {
    let tags = |list: &Value| -> HashMap<String, String> {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        list.as_array().into_iter().flatten().map(|t| (t["key"].as_str().unwrap().into(), text(&t["value"]))).collect()
    };
    let trace = &answer["data"][0];
    let spans = trace["spans"].as_array().into_iter().flatten().map(|span| {
        let start_us = span["startTime"].as_u64().unwrap();
        let references = span["references"].as_array().unwrap();
        assert!(references.iter().all(|r| r["refType"] == "CHILD_OF"), "{references:?}");
        let process = &trace["processes"][span["processID"].as_str().unwrap()];
        Span {
            name: span["operationName"].as_str().unwrap().to_owned(),
            id: span["spanID"].as_str().unwrap().to_owned(),
            parent: references.first().map_or("-", |r| r["spanID"].as_str().unwrap()).to_owned(),
            start_us,
            end_us: start_us + span["duration"].as_u64().unwrap(),
            tags: tags(&span["tags"]),
            instance: tags(&process["tags"])["service.instance.id"].clone(),
        }
    });
    spans.collect()
}

/// Each span with its parent by name.
#[track_caller]
pub(super) fn check_tree(spans: &[Span], expect: &[(&str, &str)]) {
    let name = |id: &str| spans.iter().find(|s| s.id == id).map_or(id, |s| &s.name).to_owned();
    let tree: BTreeSet<_> = spans.iter().map(|s| (s.name.clone(), name(&s.parent))).collect();
    let expect: BTreeSet<_> = expect.iter().map(|(n, p)| ((*n).to_owned(), (*p).to_owned())).collect();
    assert_eq!(tree, expect);
    assert_eq!(spans.len(), expect.len(), "no span twice");
}

#[track_caller]
pub(super) fn find<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no span `{name}`"))
}

/// The wait lasted as long as configured, but for the lateness that the stage itself owns to.
#[track_caller]
pub(super) fn check_wait(spans: &[Span], topic: &str, delay_ms: u64) {
    let (wait, process) = (find(spans, &format!("wait {topic}")), find(spans, &format!("process {topic}")));
    let lasted = (wait.end_us - wait.start_us) as f64 / 1_000.0;
    let late: f64 = wait.tags["ladder.lateness_ms"].parse().unwrap();
    assert!((lasted - late - delay_ms as f64).abs() <= 50.0, "waited {lasted} ms, late {late} ms, delay {delay_ms} ms");
    assert!(lasted >= delay_ms as f64 - 1.0, "never early: {lasted} ms");
    assert_eq!(wait.end_us, process.start_us);
}

pub(super) fn trace_id(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap_or_else(|| panic!("no traceparent: {traceparent:?}"))
}
