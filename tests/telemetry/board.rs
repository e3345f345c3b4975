//! The dashboard, the alerts and the runbook in `deploy/` and `docs/` against each other and against the metrics that
//! processes tell. Whether the queries have answers is asked of a real Prometheus by tests/live.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[allow(dead_code, reason = "tests/live uses the rest")]
#[path = "../support/board.rs"]
mod shipped;

use retry_ladder::telemetry::metrics::ALL;

use shipped::{alerts, dashboard, faults, list, panels, queries, selectors, text, word, yaml};

const RUNBOOK: &str = "docs/runbook.md";
/// Grafana's names of units that the panels use.
const UNITS: [&str; 8] = ["s", "short", "percentunit", "eps", "ops", "cpm", "bytes", "none"];

#[test]
fn metrics_and_labels_are_found_in_a_query() {
    let found = selectors(
        r#"1 - sum by (stage) (rate(ladder_a{stage=~"x{y}",le="1"}[5m])) / max(ladder_b > 0) or foo[1m] and up{job="ladder_no"}"#,
    );
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["ladder_a", "ladder_b", "foo", "up"]);
    assert_eq!(found[0].1.iter().collect::<Vec<_>>(), ["le", "stage"]);
}

#[test]
fn a_metric_or_label_that_nobody_tells_is_a_fault() {
    assert_eq!(faults("ladder_nothing"), ["no process tells `ladder_nothing`"]);
    assert_eq!(faults(r#"ladder_events_total{outcomes="done"}"#), ["`ladder_events_total` has no label `outcomes`"]);
    assert_eq!(faults(r#"rate(ladder_lateness_seconds_bucket{le="1",stage="x",job="y"}[5m])"#), [""; 0]);
    // A histogram has no series of its own name.
    assert_eq!(faults("ladder_lateness_seconds").len(), 1);
}

#[test]
fn every_query_of_the_dashboard_names_metrics_that_processes_tell() {
    let dashboard = dashboard();
    let mut named = BTreeSet::new();
    for (title, query) in queries(&dashboard) {
        assert_eq!(faults(query), [""; 0], "{title}: {query}");
        let selectors = selectors(query);
        assert!(!selectors.is_empty(), "{title}: {query} asks for nothing");
        for (metric, labels) in selectors {
            let of_process = metric.starts_with("process_") || metric.starts_with("otel_sdk_");
            let by = if of_process { "job" } else { "pipeline" };
            assert!(labels.contains(by), "{title}: {metric} in {query} does not follow the variable ${by}");
            named.insert(metric);
        }
    }
    let ours = ALL.iter().map(|metric| metric.name).filter(|name| name.starts_with("ladder_"));
    let forgotten: Vec<_> = ours.filter(|name| !named.iter().any(|n| n.starts_with(name))).collect();
    assert_eq!(forgotten, [""; 0], "metrics that no panel shows");
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard["id"].is_null() && !word(&dashboard, "uid").is_empty());
    let mut ids = BTreeSet::new();
    let mut taken = BTreeMap::new();
    for panel in list(&dashboard, "panels") {
        let title = word(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: another panel has its id");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{title}: gridPos.{key}"));
        assert!(at("w") > 0 && at("h") > 0 && at("x") + at("w") <= 24, "{title} is not within the 24 columns");
        for cell in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert_eq!(taken.insert(cell, title), None, "{title} covers another panel at {cell:?}");
        }
    }
    for panel in panels(&dashboard) {
        let title = word(panel, "title");
        let unit = word(&panel["fieldConfig"]["defaults"], "unit");
        assert!(UNITS.contains(&unit), "{title}: {unit} is none of {UNITS:?}");
        assert!(word(panel, "description").len() > 30, "{title}: say what it shows and what is good");
        let mut letters = BTreeSet::new();
        for target in list(panel, "targets") {
            assert!(letters.insert(word(target, "refId")), "{title}: two queries have one refId");
        }
    }
    check_data_sources(&dashboard);
    let variables: Vec<_> =
        list(&dashboard["templating"], "list").iter().map(|v| (word(v, "name"), word(v, "type"))).collect();
    let expected = [("datasource", "datasource"), ("job", "query"), ("pipeline", "query"), ("stage", "query")];
    assert_eq!(variables, expected);
    for variable in &list(&dashboard["templating"], "list")[1..] {
        let query = word(&variable["query"], "query");
        let inner = query.strip_prefix("label_values(").and_then(|q| q.rsplit_once(", ")).expect("label_values").0;
        assert_eq!(faults(inner), [""; 0], "{query}");
    }
}

/// None is bound to an installation: each is the variable, or Grafana's own.
fn check_data_sources(value: &Value) {
    if let Some(source) = value.get("datasource") {
        let uid = word(source, "uid");
        assert!(["${datasource}", "-- Grafana --"].contains(&uid), "data source {uid}");
    }
    match value {
        Value::Object(map) => map.values().for_each(check_data_sources),
        Value::Array(list) => list.iter().for_each(check_data_sources),
        _ => {}
    }
}

#[test]
fn every_alert_says_what_it_means_and_has_its_section_in_the_runbook() {
    let rules = yaml("deploy/prometheus/alerts.yml");
    let sections = sections();
    let mut names = BTreeSet::new();
    for alert in alerts(&rules) {
        let name = word(alert, "alert");
        names.insert(name.to_owned());
        assert_eq!(faults(word(alert, "expr")), [""; 0], "{name}");
        assert!(["critical", "warning"].contains(&word(&alert["labels"], "severity")), "{name}");
        let annotations = &alert["annotations"];
        assert!(word(annotations, "summary").len() > 20 && word(annotations, "description").len() > 40, "{name}");
        let url = word(annotations, "runbook_url");
        let (page, anchor) = url.split_once('#').unwrap_or_else(|| panic!("{name}: {url} has no anchor"));
        assert!(page.ends_with(&format!("/{RUNBOOK}")), "{name}: {url}");
        assert_eq!(anchor, name.to_lowercase(), "{name}");
        let section = sections.get(anchor).unwrap_or_else(|| panic!("{RUNBOOK} has no section {name}"));
        for part in ["**Means**", "**Look**", "**Do**", "**Wake**"] {
            assert!(section.contains(part), "{RUNBOOK}, {name}: no {part}");
        }
    }
    let told: BTreeSet<_> = names.iter().map(|name| name.to_lowercase()).collect();
    let stale: Vec<_> = sections.keys().filter(|a| a.starts_with("ladder") && !told.contains(*a)).collect();
    assert!(stale.is_empty(), "{RUNBOOK} has sections of alerts that do not exist: {stale:?}");
}

#[test]
fn every_alert_is_shown_to_fire_and_not_to_fire() {
    let rules = yaml("deploy/prometheus/alerts.yml");
    let cases = yaml("deploy/prometheus/alerts_test.yml");
    let cases: Vec<_> = list(&cases, "tests").iter().flat_map(|test| list(test, "promql_expr_test")).collect();
    for alert in alerts(&rules) {
        let (name, severity) = (word(alert, "alert"), word(&alert["labels"], "severity"));
        let of_it = |case: &&&Value| word(case, "expr").contains(&format!("alertname=\"{name}\""));
        let fires = |case: &&Value| {
            list(case, "exp_samples").iter().any(|s| word(s, "labels").contains(&format!("severity=\"{severity}\"")))
        };
        assert!(cases.iter().filter(of_it).any(fires), "{name}: no case in which it fires as {severity}");
        assert!(cases.iter().filter(of_it).any(|case| !fires(case)), "{name}: no case in which it is quiet");
    }
}

/// The sections of the runbook by their anchors, as GitHub makes them.
fn sections() -> BTreeMap<String, String> {
    let page = text(RUNBOOK);
    let mut sections = BTreeMap::new();
    for section in format!("\n{page}").split("\n#").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        assert!(sections.insert(anchor.clone(), body.to_owned()).is_none(), "{RUNBOOK}: two sections are {anchor}");
    }
    sections
}
