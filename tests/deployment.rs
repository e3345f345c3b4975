//! What deploys the ladder says what the code says: ports, paths, time limits, names of stages, metrics, topics, secrets.
//!
//! That the files are well formed is for their own checkers (`scripts/verify deploy`).
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use figment::providers::{Format as _, Yaml};
use retry_ladder::admin::server::{DEFAULT_PORT, Listener, Server};
use retry_ladder::config::{Config, Sources, load};
use retry_ladder::telemetry::metrics;
use serde_json::Value;

/// What a process may take after its handlers: last acknowledgements, commit, leaving the group, spans (at most 3 s).
const MARGIN: Duration = Duration::from_secs(15);

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents of a file below deploy/kubernetes.
fn manifests(path: &str) -> Vec<Value> {
    let text = read(&format!("deploy/kubernetes/{path}"));
    text.split("\n---\n").map(|document| Yaml::from_str(document).unwrap()).collect()
}

fn manifest(path: &str) -> Value {
    manifests(path).remove(0)
}

/// The configuration that the pods are given, with the secrets where this test can put them.
fn config() -> (Config, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in manifest("secret.yaml")["stringData"].as_object().unwrap() {
        fs::write(folder.path().join(name), value.as_str().unwrap()).unwrap();
    }
    let text = read("deploy/kubernetes/topics.yaml");
    let here = text.replace("/run/secrets/ladder", folder.path().to_str().unwrap());
    assert_ne!(text, here);
    let loaded = load(&Sources::inline("topics.yaml", &here)).unwrap_or_else(|faults| panic!("{faults:?}"));
    (loaded.config, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_scrapers_ask_what_the_admin_server_answers() {
    let server = Server::start(Listener::bind(Some("127.0.0.1:0"), 0).await.unwrap(), Duration::from_secs(60), None);
    let deployment = manifest("stage/deployment.yaml");
    let pod = &deployment["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    let mut paths = vec![pod["metadata"]["annotations"]["prometheus.io/path"].as_str().unwrap()];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], container["ports"][0]["name"], "{probe}");
        paths.push(container[probe]["httpGet"]["path"].as_str().unwrap());
    }
    let statuses: Vec<_> = paths.iter().map(|path| get(&server, path)).collect();
    // Before the stages have started: alive, not ready.
    assert_eq!(statuses, [200, 200, 200, 503], "{paths:?}");
    assert_eq!(get(&server, "/nothing"), 404);

    assert_eq!(container["ports"][0]["containerPort"], DEFAULT_PORT);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], DEFAULT_PORT.to_string());
    let image = read("Dockerfile");
    for line in [format!("ENV PIPELINE_ADMIN__LISTEN=0.0.0.0:{DEFAULT_PORT}"), format!("EXPOSE {DEFAULT_PORT}")] {
        assert!(image.lines().any(|l| l == line), "Dockerfile: no `{line}`");
    }
}

fn get(server: &Server, path: &str) -> u16 {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_stop_leaves_time_to_drain() {
    let limit = config().0.kafka.drain_timeout + MARGIN;
    let pod = manifest("stage/deployment.yaml");
    let grace = pod["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(Duration::from_secs(grace) >= limit, "Kubernetes kills after {grace} s");
    let unit = read("deploy/systemd/retry-ladder@.service");
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    assert!(Duration::from_secs(stop.parse().unwrap()) >= limit, "systemd kills after {stop} s");
}

#[test]
fn every_stage_of_the_configuration_is_deployed_under_its_name() {
    let (config, _) = config();
    let stages: BTreeSet<_> = config.pipelines[0].stages().into_iter().map(|(stage, _)| stage).collect();
    let all = manifest("kustomization.yaml");
    let listed =
        all["resources"].as_array().unwrap().iter().filter_map(|r| r.as_str().unwrap().strip_prefix("stages/"));
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), stages);
    for stage in stages {
        let made = manifest(&format!("stages/{stage}/kustomization.yaml"));
        assert_eq!(made["nameSuffix"], format!("-{stage}"));
        assert_eq!(made["labels"][0]["pairs"]["app.kubernetes.io/component"], stage);
    }
    let deployment = manifest("stage/deployment.yaml");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], serde_json::json!(["--stage", "$(STAGE)"]));
    let source = &container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(*source, "metadata.labels['app.kubernetes.io/component']");
}

#[test]
fn scaling_asks_for_metrics_topics_and_groups_that_exist() {
    let (config, _) = config();
    let pipeline = &config.pipelines[0];
    let scaled = manifests("keda/scaled.yaml");
    assert_eq!(scaled.len(), pipeline.stages().len() - 1, "one for each stage but dlq");
    for (object, (stage, topic)) in scaled.iter().zip(pipeline.stages()) {
        assert_eq!(object["spec"]["scaleTargetRef"]["name"], format!("ladder-{stage}"));
        assert!(object["spec"]["maxReplicaCount"].as_u64().unwrap() <= u64::from(pipeline.partitions), "{stage}");
        assert_eq!(object["spec"]["minReplicaCount"], 1, "{stage}: whoever tells what is overdue must not end");
        let (kind, ask) = (&object["spec"]["triggers"][0]["type"], &object["spec"]["triggers"][0]["metadata"]);
        if stage == "main" {
            assert_eq!(*kind, "kafka");
            assert_eq!((&ask["topic"], &ask["consumerGroup"]), (&topic.into(), &pipeline.stage_group(&stage).into()));
        } else {
            // By lag a retry stage would scale on events that wait by design.
            let query = format!(r#"sum({}{{pipeline="{}",stage="{stage}"}})"#, metrics::OVERDUE.name, pipeline.name);
            assert_eq!((kind, &ask["query"]), (&"prometheus".into(), &query.into()));
        }
    }
}

#[test]
fn every_secret_file_that_is_named_is_given() {
    let (_, text) = config();
    let secret = manifest("secret.yaml");
    let named: BTreeSet<_> = text.split("/run/secrets/ladder/").skip(1).filter_map(|t| t.lines().next()).collect();
    let given: BTreeSet<_> = secret["stringData"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(named, given);
    for path in ["stage/deployment.yaml", "topics-job.yaml"] {
        let pod = &manifest(path)["spec"]["template"]["spec"];
        let mounts = &pod["containers"][0]["volumeMounts"];
        assert_eq!((&mounts[1]["name"], &mounts[1]["mountPath"]), (&"secrets".into(), &"/run/secrets/ladder".into()));
        // The image looks for topics.yaml in its working directory.
        assert!(read("Dockerfile").contains(&format!("WORKDIR {}\n", mounts[0]["mountPath"].as_str().unwrap())));
        assert_eq!(pod["enableServiceLinks"], false, "{path}: a Service named `pipeline` would be an unknown key");
    }

    let unit = read("deploy/systemd/retry-ladder@.service");
    let loaded = unit.lines().filter_map(|line| line.strip_prefix("LoadCredential=")?.split(':').next());
    let used: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once("=%d/")).collect();
    assert_eq!(loaded.collect::<Vec<_>>(), used.iter().map(|(_, file)| *file).collect::<Vec<_>>());
    let folder = tempfile::tempdir().unwrap();
    for (variable, file) in used {
        let path = folder.path().join(file);
        fs::write(&path, "redis://elsewhere:6379/0").unwrap();
        let minimal = "pipelines: { p: { topic: t, message: shop.v1.OrderPlaced, handler: { log: {} } } }";
        load(&Sources::inline("topics.yaml", minimal).env([(variable, path)])).unwrap_or_else(|f| panic!("{f:?}"));
    }
}
