//! What `deploy/` ships for Prometheus and Grafana, against a real Prometheus that scrapes real processes: every query of
//! the dashboard has an answer, every alert rule is evaluated, and a process that goes away is seen.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::harness::{Ladder, Worker, until};
use crate::board;

const PER_PARTITION: usize = 150;
const PARTITIONS: i32 = 2;
const STAGES: [&str; 4] = ["main", "retry-1", "retry-2", "dlq"];

#[test]
fn every_panel_has_data_and_every_alert_is_evaluated() {
    let mut ladder = Ladder::created(PARTITIONS);
    for (key, ratio) in [("fail_ratio", 0.5), ("dead_ratio", 0.2), ("permanent_ratio", 0.2)] {
        ladder.simulate(key, ratio);
    }
    // Nobody listens where the spans go.
    let variables =
        [("PIPELINE_ADMIN__LISTEN", "127.0.0.1:0"), ("PIPELINE_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let mut workers: Vec<_> =
        STAGES.iter().map(|stage| ladder.start_with(stage, &["--stage", stage], &variables)).collect();
    let targets: Vec<_> = workers.iter().map(address).collect();
    let prometheus = Prometheus::start(&targets);

    // Rates need what was before the first event.
    prometheus.until("count(ladder_assigned_partitions > 0)", |n| n == STAGES.len() as f64);
    let events = ladder.produce_all("main", PER_PARTITION).len();
    let ended = r#"sum(ladder_events_total{stage!="dlq",outcome=~"done|dead_lettered"})"#;
    prometheus.until(ended, |n| n >= events as f64);
    prometheus.until("max(ladder_consumer_lag_events)", |n| n == 0.0);
    assert_eq!(prometheus.values(ended), [events as f64], "the counters add up to what was produced");
    let dead = ladder.dead_letters().len() as f64;
    prometheus.until("sum(ladder_dead_letters_total)", |n| n == dead);
    prometheus.until(r#"sum(ladder_waiting_events{stage="dlq"})"#, |n| n == dead);

    prometheus.until(r#"count(otel_sdk_exporter_span_exported_total{error_type="export_failed"} > 0)"#, |n| {
        n == STAGES.len() as f64
    });

    let dashboard = board::dashboard();
    let queries = board::queries(&dashboard);
    assert!(queries.len() > 30, "{queries:?}");
    let empty =
        || -> Vec<_> { queries.iter().filter(|(_, query)| prometheus.values(&fill(query)).is_empty()).collect() };
    until("every query of the dashboard has data", || empty().is_empty(), || format!("without: {:#?}", empty()));

    for (variable, expected) in [("pipeline", vec!["orders"]), ("stage", vec!["dlq", "main", "retry-1", "retry-2"])] {
        let answer = prometheus.get(&format!("/api/v1/label/{variable}/values?match[]=ladder_assigned_partitions"));
        assert_eq!(answer["data"], serde_json::json!(expected), "values of ${variable}");
    }

    let rules = board::yaml("deploy/prometheus/alerts.yml");
    let evaluated = || -> Vec<Value> {
        let answer = prometheus.get("/api/v1/rules");
        let groups = board::list(&answer["data"], "groups").iter();
        groups.flat_map(|group| board::list(group, "rules").to_vec()).filter(|rule| rule["health"] == "ok").collect()
    };
    until(
        "every alert is evaluated without an error",
        || evaluated().len() == board::alerts(&rules).len(),
        || prometheus.get("/api/v1/rules").to_string(),
    );
    for name in ["LadderEarlyStart", "LadderHalted", "LadderPaused", "LadderStageDown", "LadderHeadersRepaired"] {
        let rule = evaluated().into_iter().find(|rule| rule["name"] == name).expect("it is evaluated");
        assert_eq!(rule["state"], "inactive", "{rule}");
    }

    workers[1].kill();
    prometheus.until(r#"count(ALERTS{alertname="LadderStageDown",stage="retry-1",pipeline="orders"})"#, |n| n == 1.0);
    prometheus.until(r#"count(ALERTS{alertname="LadderProcessDown"})"#, |n| n == 1.0);
}

/// Where a process tells its metrics.
fn address(worker: &Worker) -> String {
    let find = || {
        let log = worker.log();
        let line = log.lines().find(|line| line.contains("health, metrics and status"))?;
        Some(line.split_once("address=")?.1.split_whitespace().next()?.to_owned())
    };
    until("its admin server listens", || find().is_some(), || worker.log());
    find().expect("found just now")
}

/// A query as Grafana sends it with everything chosen.
fn fill(query: &str) -> String {
    let filled = query.replace("$__rate_interval", "10m").replace("$__range", "10m");
    let filled = ["$pipeline", "$stage", "$job"].iter().fold(filled, |query, variable| query.replace(variable, ".*"));
    assert!(!filled.contains('$'), "a variable that this test does not know: {filled}");
    filled
}

/// A Prometheus of this test's own, with the shipped configuration but other targets and a shorter interval.
struct Prometheus {
    url: String,
    process: Child,
    log: PathBuf,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[String]) -> Self {
        let binary = std::env::var_os("PROMETHEUS").unwrap_or_else(|| {
            panic!(
                "PROMETHEUS is not set: this test needs a Prometheus; get one with `scripts/services setup prometheus`, \
                 then eval \"$(scripts/services env)\""
            )
        });
        let folder = tempfile::tempdir().expect("a folder");
        let config = board::text("deploy/prometheus/prometheus.yml");
        let shipped = config.lines().find(|line| line.trim_start().starts_with("- targets:")).expect("targets");
        let ours = format!("      - targets: {}", serde_json::json!(targets));
        let config = config.replace(shipped, &ours).replace("5s", "2s");
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("the configuration");
        std::fs::copy(board::path("deploy/prometheus/alerts.yml"), folder.path().join("alerts.yml"))
            .expect("the rules");
        let log = folder.path().join("log");
        let process = Command::new(&binary)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = reqwest::Client::new();
        let mut prometheus = Self { url: String::new(), process, log, client, runtime, _folder: folder };
        prometheus.wait();
        prometheus
    }

    fn wait(&mut self) {
        let log = self.log.clone();
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        let find = || {
            let text = text();
            let line = text.lines().find(|line| line.contains("msg=\"Listening on\""))?;
            Some(line.split_once("address=")?.1.split_whitespace().next()?.to_owned())
        };
        let process = &mut self.process;
        until(
            "prometheus listens",
            || {
                let ended = process.try_wait().expect("it can be watched");
                assert!(ended.is_none(), "prometheus ended: {}", text());
                find().is_some()
            },
            text,
        );
        self.url = format!("http://{}", find().expect("found just now"));
        until("prometheus is ready", || self.fetch("/-/ready").is_ok(), text);
    }

    fn fetch(&self, path: &str) -> reqwest::Result<String> {
        self.runtime.block_on(async {
            self.client.get(format!("{}{path}", self.url)).send().await?.error_for_status()?.text().await
        })
    }

    fn get(&self, path: &str) -> Value {
        let text = self.fetch(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer
    }

    /// The finite values of a query's answer.
    fn values(&self, query: &str) -> Vec<f64> {
        let answer = self.get(&format!("/api/v1/query?query={}", utf8_percent_encode(query, NON_ALPHANUMERIC)));
        let samples = board::list(&answer["data"], "result").iter();
        let values = samples.filter_map(|sample| sample["value"][1].as_str()?.parse::<f64>().ok());
        values.filter(|value| value.is_finite()).collect()
    }

    /// Waits until a query has one value, and one that is as wanted.
    fn until(&self, query: &str, is_so: impl Fn(f64) -> bool) {
        let state = || format!("{:?}\n{}", self.values(query), self.get("/api/v1/targets?state=active"));
        until(query, || matches!(self.values(query)[..], [value] if is_so(value)), state);
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // A failed test must not leave it behind; that it has ended by itself is no news then.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
