//! What deploys the ladder says what the code says: ports, paths, time limits, names of stages, metrics, topics, secrets.
//!
//! That the files are well formed is for their own checkers (`scripts/verify deploy`).
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
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

/// The configuration of the pods, at a Kafka that is not there, and the binary to be run with it.
fn in_a_pod(arguments: &[&str], environment: &[(String, String)]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in manifest("secret.yaml")["stringData"].as_object().unwrap() {
        fs::write(folder.path().join(name), value.as_str().unwrap()).unwrap();
    }
    let text = read("deploy/kubernetes/topics.yaml").replace("/run/secrets/ladder", folder.path().to_str().unwrap());
    // The ConfigMap's file, by the name that is looked for where no flag names one.
    let file = &manifest("kustomization.yaml")["configMapGenerator"][0]["files"][0];
    fs::write(folder.path().join(file.as_str().unwrap()), text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .envs([("PIPELINE_KAFKA__BROKERS", "127.0.0.1:1"), ("PIPELINE_KAFKA__STARTUP_TIMEOUT", "1s")])
        .env("PIPELINE_ADMIN__LISTEN", "127.0.0.1:0")
        .output()
        .unwrap()
}

/// 64 would be flags, a configuration or a stage that the code does not know.
#[test]
fn the_binary_takes_what_each_deployment_tells_it_and_looks_for_kafka() {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    // `pipeline` is the image's entry point, so its arguments are the containers'.
    assert!(
        read("Dockerfile").contains("\nENTRYPOINT [\"pipeline\"]") && read("Dockerfile").contains("--bin pipeline")
    );
    let args_of = |file: &str| -> Vec<String> {
        let container = manifest(file)["spec"]["template"]["spec"]["containers"][0].clone();
        container["args"].as_array().unwrap().iter().map(text).collect()
    };
    let unit = read("deploy/systemd/retry-ladder@.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/pipeline ")).unwrap();
    let start = start.split(' ').map(str::to_owned).collect::<Vec<_>>();
    // Each with what the other two variants add to it.
    let patches = manifest("static-members/kustomization.yaml")["patches"][0]["patch"].as_str().unwrap().to_owned();
    let patches: Value = Yaml::from_str(&patches).unwrap();
    let added =
        patches.as_array().unwrap().iter().map(|patch| &patch["value"]).filter(|value| value["name"].is_string());
    let added: Vec<_> =
        added.map(|v| (text(&v["name"]), v["value"].as_str().unwrap_or("ladder-main-0").to_owned())).collect();
    assert_eq!(added.len(), 2, "{patches}");
    let (config, _) = config();
    let stages = config.pipelines[0].stages().into_iter().map(|(stage, _)| stage);
    let mut calls = vec![args_of("topics-job.yaml")];
    for stage in stages {
        let told = |args: &[String], name: &str| args.iter().map(|arg| arg.replace(name, &stage)).collect::<Vec<_>>();
        calls.push(told(&args_of("stage/deployment.yaml"), "$(STAGE)"));
        calls.push(told(&start, "%i"));
    }
    calls.dedup();
    let check = |call: &[String], code: i32| {
        let arguments: Vec<_> = call.iter().map(String::as_str).collect();
        let output = in_a_pod(&arguments, &added);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{call:?}: {told}");
        assert!(code == 64 || told.contains("kafka not reachable at 127.0.0.1:1"), "{call:?}: {told}");
    };
    std::thread::scope(|scope| calls.iter().for_each(|call| drop(scope.spawn(|| check(call, 69)))));
    check(&["--stage".to_owned(), "retry-4".to_owned()], 64);
    // What systemd is not to try again.
    assert!(unit.contains("\nRestartPreventExitStatus=64 70\n"));
    let check = in_a_pod(&["config", "check"], &added);
    assert_eq!(check.status.code(), Some(0), "{}", String::from_utf8_lossy(&check.stderr));
}

/// As `COPY . .` finds them: cargo refuses a manifest whose targets are not there.
#[test]
fn the_image_is_built_from_all_that_the_manifest_names_under_its_version_and_compiler() {
    let folder = tempfile::tempdir().unwrap();
    for name in read(".dockerignore").lines().filter_map(|line| line.strip_prefix('!')) {
        std::os::unix::fs::symlink(format!("{}/{name}", env!("CARGO_MANIFEST_DIR")), folder.path().join(name)).unwrap();
    }
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let tag = &manifest("kustomization.yaml")["images"][0]["newTag"];
    assert_eq!(*tag, env!("CARGO_PKG_VERSION"));

    let (image, workflow) = (read("Dockerfile"), read(".github/workflows/ci.yml"));
    let rust = image.lines().find_map(|line| line.strip_prefix("FROM rust:")?.split("-slim-").next()).unwrap();
    assert!(workflow.contains(&format!("container: rust:{rust}-bookworm")), "CI does not use rust {rust}");
    let user = manifest("stage/deployment.yaml")["spec"]["template"]["spec"]["securityContext"]["runAsUser"].clone();
    assert!(image.contains(&format!("\nUSER {user}:{user}\n")), "the pods' user is {user}");
}

#[test]
fn ports_are_the_same_everywhere() {
    let (config, _) = config();
    let targets: Value = Yaml::from_str(&read("deploy/prometheus/prometheus.yml")).unwrap();
    let targets = targets["scrape_configs"][0]["static_configs"][0]["targets"].as_array().unwrap().clone();
    let stages = u16::try_from(config.pipelines[0].stages().len()).unwrap();
    let expected: Vec<_> = (DEFAULT_PORT..DEFAULT_PORT + stages).map(|port| format!("127.0.0.1:{port}")).collect();
    assert_eq!(targets, expected, "each stage's default port");

    // `LADDER_…_PORT:-1234` and Jaeger's `env:LADDER_…_PORT:-1234`.
    let defaults = |file: &str| -> BTreeSet<(String, String)> {
        let text = read(file);
        let found = text.split("LADDER_").skip(1).filter_map(|rest| {
            let (name, rest) = rest.split_once(":-")?;
            let port = rest.split('}').next()?;
            (name.ends_with("_PORT") && port.parse::<u16>().is_ok()).then(|| (name.to_owned(), port.to_owned()))
        });
        found.collect()
    };
    let of_services = defaults("scripts/services");
    assert!(of_services.len() >= 10, "{of_services:?}");
    for file in ["docker-compose.yml", "deploy/jaeger.yaml"] {
        let here = defaults(file);
        assert!(
            !here.is_empty() && here.is_subset(&of_services),
            "{file}: {here:?}, scripts/services: {of_services:?}"
        );
    }
    let port = |name: &str| of_services.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let shipped = load(&Sources::inline("topics.yaml", &read("topics.yaml"))).unwrap().config;
    assert_eq!(shipped.kafka.brokers, format!("localhost:{}", port("KAFKA_PORT")));
    assert_eq!(shipped.redis.url.to_string(), format!("redis://localhost:{}/0", port("REDIS_PORT")));
    let endpoint = shipped.telemetry.otlp_endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    assert_eq!(endpoint.trim_end_matches('/'), format!("http://localhost:{}", port("OTLP_GRPC_PORT")));
}
