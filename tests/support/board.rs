//! What `deploy/` says to Prometheus and Grafana, read from the shipped files: queries, alerts, the metrics they name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use figment::Figment;
use figment::providers::{Format, Yaml};
use serde_json::Value;

use retry_ladder::telemetry::metrics::{ALL, Kind};

/// A file of this package.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Its text.
pub(crate) fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A YAML file.
pub(crate) fn yaml(name: &str) -> Value {
    Figment::from(Yaml::string(&text(name))).extract().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The dashboard.
pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&text("deploy/grafana/ladder.json")).expect("ladder.json is JSON")
}

/// A list in a document.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("`{key}` is a list in {value}"))
}

/// A text in a document.
pub(crate) fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` is a text in {value}"))
}

/// Every panel that shows something, those in folded rows included.
pub(crate) fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = list(dashboard, "panels").iter();
    all.flat_map(|p| std::iter::once(p).chain(p["panels"].as_array().into_iter().flatten()))
        .filter(|p| p["type"] != "row")
        .collect()
}

/// Every query of every panel, with the panel's title.
pub(crate) fn queries(dashboard: &Value) -> Vec<(&str, &str)> {
    let panels = panels(dashboard).into_iter();
    panels.flat_map(|p| list(p, "targets").iter().map(move |t| (word(p, "title"), word(t, "expr")))).collect()
}

/// Every alert of the rules.
pub(crate) fn alerts(rules: &Value) -> Vec<&Value> {
    list(rules, "groups").iter().flat_map(|group| list(group, "rules")).collect()
}

/// The series that a process can tell, by name, with their labels.
pub(crate) fn series() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut all = BTreeMap::new();
    for metric in ALL {
        let labels: BTreeSet<_> = metric.labels.iter().copied().collect();
        if metric.kind == Kind::Histogram {
            for suffix in ["_count", "_sum"] {
                all.insert(format!("{}{suffix}", metric.name), labels.clone());
            }
            let labels = labels.into_iter().chain(["le"]).collect();
            all.insert(format!("{}_bucket", metric.name), labels);
        } else {
            all.insert(metric.name.to_owned(), labels);
        }
    }
    all
}

/// What is wrong with the names and labels of a query.
pub(crate) fn faults(query: &str) -> Vec<String> {
    let known = series();
    let mut faults = Vec::new();
    for (name, labels) in selectors(query) {
        let Some(has) = known.get(&name) else {
            faults.push(format!("no process tells `{name}`"));
            continue;
        };
        let strange = labels.iter().filter(|l| !has.contains(l.as_str()) && !["job", "instance"].contains(&l.as_str()));
        faults.extend(strange.map(|label| format!("`{name}` has no label `{label}`")));
    }
    faults
}

/// The metrics of a PromQL expression and the labels that each is matched by: what stands before `{` or `[`, and all that
/// is named like ours.
pub(crate) fn selectors(query: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '"') {
        rest = &rest[start..];
        if rest.starts_with('"') {
            rest = rest[1..].split_once('"').map_or("", |(_, after)| after);
            continue;
        }
        let (name, after) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        let ours = name.starts_with("ladder_") || name.starts_with("process_");
        rest = after;
        if let Some(inside) = after.strip_prefix('{') {
            let (labels, after) = matchers(inside);
            found.push((name.to_owned(), labels));
            rest = after;
        } else if ours || after.starts_with('[') {
            found.push((name.to_owned(), BTreeSet::new()));
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// The labels up to the closing brace, and what comes after it.
fn matchers(mut rest: &str) -> (BTreeSet<String>, &str) {
    let mut labels = BTreeSet::new();
    loop {
        let Some(at) = rest.find(|c: char| is_word(c) || c == '"' || c == '}') else { return (labels, "") };
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('}') {
            return (labels, after);
        }
        if let Some(inside) = rest.strip_prefix('"') {
            rest = inside.split_once('"').map_or("", |(_, after)| after);
            continue;
        }
        let (label, after) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        labels.insert(label.to_owned());
        rest = after;
    }
}
