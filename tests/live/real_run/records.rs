//! What the records in the topics have to look like, header by header.

use std::collections::HashMap;

use serde_json::Value;

use super::evidence::{Evidence, Faults};
use super::plan::{End, Planned};
use super::topics::Stored;

/// Bytes of our headers in one record.
const MAX_OWN: usize = 8 * 1024;

/// Main records by the event's index.
type Origins<'a> = HashMap<usize, &'a Stored>;

impl Evidence<'_> {
    /// Every record on main is as produced, and there exactly once.
    pub(crate) fn check_main(&self, faults: &mut Faults) {
        let origins = self.origins();
        faults.unless(self.main.len() == origins.len() && origins.len() == self.plan.events.len(), || {
            format!("main has {} records of {} events", self.main.len(), origins.len())
        });
    }

    fn origins(&self) -> Origins<'_> {
        self.main.iter().map(|record| (self.event(record).index, record)).collect()
    }

    /// Every record that the ladder wrote.
    pub(crate) fn check_moved(&self, faults: &mut Faults) {
        let origins = self.origins();
        let off_plan = self.off_plan();
        for (stage, record) in self.moved() {
            let event = self.event(record);
            let mut check = Check { record, event, faults };
            check.carried(&origins, &self.group);
            match stage {
                Some(stage) => check.waiting(stage, off_plan.contains(event.id.as_str())),
                None => {
                    check.compat(&origins, &self.group);
                    if !off_plan.contains(event.id.as_str()) {
                        check.dead(self);
                    }
                }
            }
        }
    }
}

struct Check<'a> {
    record: &'a Stored,
    event: &'a Planned,
    faults: &'a mut Faults,
}

impl Check<'_> {
    fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        let (at, id) = (self.record.at(), &self.event.id);
        self.faults.unless(holds, || format!("{at} ({id}): {}", what()));
    }

    fn header(&mut self, name: &str, expect: impl ToString) {
        let (is, expect) = (self.record.text(name).to_owned(), expect.to_string());
        self.unless(is == expect, || format!("{name} is {is:?}, not {expect:?}"));
    }

    /// What passes through every hop.
    fn carried(&mut self, origins: &Origins<'_>, group: &str) {
        let (record, event) = (self.record, self.event);
        self.unless(record.key.as_deref() == Some(event.key.as_bytes()), || "another key".into());
        self.unless(record.value == event.value, || "another value".into());
        let Some(origin) = origins.get(&event.index) else { return };
        let (foreign, expect) = (record.foreign(), origin.foreign());
        self.unless(foreign == expect, || format!("headers of others are {foreign:?}, not {expect:?}"));
        self.unless(record.partition == origin.partition, || format!("was in partition {}", origin.partition));
        self.header("x-ladder-event-id", &event.id);
        self.header("x-ladder-group", group);
        let place = format!("{}:{}", origin.at(), origin.timestamp_ms);
        self.header("x-ladder-origin", place);
        // The trace goes on, whoever wrote its last span.
        let [trace, before] = [record, origin].map(|r| r.text("traceparent").get(3..35).map(str::to_owned));
        self.unless(trace == before && trace.is_some(), || format!("trace {trace:?}, was {before:?}"));
        let own = record.headers.len() - foreign.len();
        let bytes: usize = record.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum();
        self.unless(own >= 10 && bytes <= MAX_OWN, || format!("{own} headers of ours, {bytes} bytes in all"));
        let mut names: Vec<_> = record.headers.iter().map(|(n, _)| n).filter(|n| n.starts_with("x-ladder-")).collect();
        names.sort_unstable();
        let repeated = names.windows(2).any(|pair| pair[0] == pair[1]);
        self.unless(!repeated, || format!("a header of ours twice: {names:?}"));
    }

    /// On a retry topic.
    fn waiting(&mut self, stage: usize, off_plan: bool) {
        self.header("x-ladder-stage", stage);
        if off_plan {
            return;
        }
        let path = self.event.kind.path();
        let Some(place) = path.iter().position(|s| *s == stage) else {
            return self.unless(false, || format!("has no business on stage {stage}"));
        };
        self.header("x-ladder-attempt", place);
        self.header("x-ladder-hop", place);
        self.history(&path[..place], "transient");
        let error = self.record.text("x-ladder-error");
        self.unless(error.starts_with("transient: "), || format!("x-ladder-error is {error:?}"));
    }

    /// On the DLQ.
    fn dead(&mut self, evidence: &Evidence<'_>) {
        let End::Dead(class) = self.event.kind.end() else {
            return self.unless(false, || "has no business in the DLQ".into());
        };
        let path = self.event.kind.path();
        let error = self.record.text("x-ladder-error");
        let status = match class {
            "exhausted" => format!("exhausted: {}: status 500: ", evidence.target),
            "permanent" => format!("permanent: {}: status 422: ", evidence.target),
            _ => "poison: ".to_owned(),
        };
        let told = error.strip_prefix(&status).is_some_and(|text| !text.is_empty());
        self.unless(told, || format!("x-ladder-error is {error:?}, not \"{status}…\""));
        let last = path.last().copied().unwrap_or_default();
        self.header("x-ladder-stage", last);
        self.header("x-ladder-attempt", path.len());
        self.header("__dlq.errors.delivery.count", path.len());
        self.header("x-ladder-hop", path.len().max(1));
        // What cannot be read was never executed, but it was tried once, on main.
        self.history(if path.is_empty() { &[0] } else { &path }, class);
        if !path.is_empty() {
            let fence = self.record.number("x-ladder-fence");
            let given = |seen: &&super::observer::Seen| seen.id == self.event.id && seen.stage == last;
            let known = evidence.requests.iter().filter(given).any(|seen| seen.fence == fence);
            self.unless(known, || format!("x-ladder-fence {fence} was never given to the server"));
        }
    }

    fn history(&mut self, path: &[usize], last_class: &str) {
        let text = self.record.text("x-ladder-history");
        let Ok(Value::Array(entries)) = serde_json::from_str(text) else {
            return self.unless(false, || format!("x-ladder-history is {text:?}, no JSON array"));
        };
        let stages: Vec<_> = entries.iter().map(|entry| entry["s"].as_u64()).collect();
        let expect: Vec<_> = path.iter().map(|stage| Some(*stage as u64)).collect();
        self.unless(stages == expect, || format!("history of stages {stages:?}, not {expect:?}"));
        for (n, entry) in entries.iter().enumerate() {
            let class = if n + 1 == entries.len() { last_class } else { "transient" };
            let good = entry["e"] == class
                && entry["m"].as_str().is_some_and(|text| !text.is_empty() && text.len() <= 128)
                && entry["t"].as_u64().is_some_and(|ms| ms as i64 >= self.record.timestamp_ms - 600_000)
                && entry["ms"].is_u64();
            self.unless(good, || format!("history entry {entry}"));
        }
    }

    /// Kafka's own headers as text, Spring's in its binary encoding.
    fn compat(&mut self, origins: &Origins<'_>, group: &str) {
        let Some(origin) = origins.get(&self.event.index) else { return };
        let error = self.record.text("x-ladder-error");
        let (class, text) = error.split_once(": ").unwrap_or_default();
        for (name, expect) in [
            ("__dlq.errors.topic", origin.topic.clone()),
            ("__dlq.errors.partition", origin.partition.to_string()),
            ("__dlq.errors.offset", origin.offset.to_string()),
            ("__dlq.errors.group", group.to_owned()),
            ("__dlq.errors.message", text.to_owned()),
            ("kafka_dlt-original-topic", origin.topic.clone()),
            ("kafka_dlt-original-timestamp-type", "CreateTime".to_owned()),
            ("kafka_dlt-original-consumer-group", group.to_owned()),
            ("kafka_dlt-exception-message", text.to_owned()),
        ] {
            self.header(name, expect);
        }
        let fqcn = self.record.text("kafka_dlt-exception-fqcn");
        self.unless(fqcn.ends_with(class), || format!("kafka_dlt-exception-fqcn is {fqcn:?}"));
        for (name, expect) in [
            ("kafka_dlt-original-partition", origin.partition.to_be_bytes().to_vec()),
            ("kafka_dlt-original-offset", origin.offset.to_be_bytes().to_vec()),
            ("kafka_dlt-original-timestamp", origin.timestamp_ms.to_be_bytes().to_vec()),
        ] {
            let is = self.record.bytes(name);
            self.unless(is == Some(&expect), || format!("{name} is {is:?}, not {expect:?}"));
        }
    }
}
