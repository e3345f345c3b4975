//! What `config print` shows loads again, and shows no secret.

use super::super::{Sources, keys, load};
use super::{LEAST, loaded, sources};

const RICH: &str = "
kafka: {brokers: 'a:1,b:2', properties: {security.protocol: sasl_plaintext, linger.ms: 5}, drain_timeout: 1s 500ms}
redis: {prefix: 'yes'}
instance: 'a1'
defaults: {concurrency: 7}
telemetry: {sample_ratio: 25 %, otlp_endpoint: 'https://collector:4317'}
pipelines:
  a: {topic: t, message: m.M, handler: {log: {}}, retries: [], event_id: {field: id}, compat_headers: []}
  b.c-d:
    topic: t
    group: '0'
    message: m.M
    retries: [{delay: 90s, jitter: 10 %, name: x}, {delay: 1h 30m, concurrency: 3}]
    max_event_age: 36h
    window: {waiting_bytes: 1MB}
    handler: {http: {url: 'http://x:1/a?b=c', classify: {404: transient}, headers: {X-A: 'it''s: \"q\" #1'}}}
";

#[test]
fn print_all_is_a_valid_file_that_loads_to_the_same_configuration() {
    for yaml in [LEAST, RICH] {
        let first = loaded(&sources(yaml));
        let text = first.print_all();
        let again = loaded(&sources(&text));
        assert_eq!(again.config, first.config, "{text}");
        assert_eq!(again.print_all(), text);
    }
}

#[test]
fn print_is_a_valid_file_that_loads_to_the_same_configuration() {
    for yaml in [LEAST, RICH] {
        let first = loaded(&sources(yaml));
        let text = first.print();
        assert_eq!(loaded(&sources(&text)).config, first.config, "{text}");
    }
}

#[test]
fn print_all_has_every_key_with_its_meaning() {
    let text = loaded(&sources(RICH)).print_all();
    let lines: Vec<_> = text.lines().map(|l| l.trim_start_matches([' ', '#', '-'])).collect();
    for key in keys() {
        let name = key.path.rsplit('.').next().unwrap().trim_end_matches("[]");
        // Of `header` and `field`, of file and value, only the one in use is there.
        assert!(lines.iter().any(|l| l.starts_with(&format!("{name}:"))), "{} is missing in\n{text}", key.path);
        let said = key.doc.lines().next().unwrap();
        assert!(!said.is_empty() && lines.iter().any(|l| l.contains(said)), "{} has no comment", key.path);
    }
}

#[test]
fn every_default_is_valid_and_every_key_is_told_once() {
    let all: Vec<_> = keys().collect();
    let mut paths: Vec<_> = all.iter().map(|k| k.path.as_str()).collect();
    for path in ["kafka.brokers", "pipelines.<name>.retries[].delay", "pipelines.<name>.handler.http.url"] {
        assert!(paths.contains(&path), "{paths:?}");
    }
    paths.sort_unstable();
    let count = paths.len();
    paths.dedup();
    assert_eq!(paths.len(), count);
    // Each default, given as what a user would write, is accepted and changes nothing.
    let least = loaded(&sources(LEAST)).config;
    for key in &all {
        let Some(default) = key.default else { continue };
        let Some(rest) = key.path.strip_prefix("pipelines.<name>.") else {
            continue;
        };
        if rest.contains("[]") || rest.starts_with("handler") {
            continue;
        }
        let nested = rest.split('.').rev().fold(default.to_owned(), |inner, k| format!("{{ {k}: {inner} }}"));
        let text = format!("defaults: {nested}\n{LEAST}");
        assert_eq!(loaded(&sources(&text)).config, least, "{text}");
    }
}

#[test]
fn nothing_shown_has_a_secret() {
    let secret = "hunter2";
    let yaml = format!(
        "
redis: {{url: 'rediss://app:{secret}@h:1/0'}}
kafka:
  properties: {{sasl.password: {secret}, ssl.key.password: {secret}, sasl.username: seen}}
telemetry: {{otlp_endpoint: 'http://u:{secret}@c:4317'}}
pipelines:
  orders:
    topic: t
    message: m.M
    handler: {{http: {{url: 'http://u:{secret}@x/?api_key={secret}', headers: {{Authorization: Bearer {secret}, X-Api-Key: {secret}}}}}}}
"
    );
    if cfg!(not(feature = "tls")) {
        return; // rediss:// and ssl.* are faults there
    }
    let loaded = loaded(&sources(&yaml).env([("PIPELINE_KAFKA__CONSUMER_PROPERTIES__SASL_PASSWORD", secret)]));
    let shown = [
        loaded.print(),
        loaded.print_all(),
        loaded.print_json(true).to_string(),
        loaded.print_json(false).to_string(),
        format!("{loaded:?} {:#?} {}", loaded.config, loaded.config.redis.url.one().unwrap()),
    ];
    for text in shown {
        assert!(
            !text.contains(secret) && text.contains("***") && text.contains("seen") || text.starts_with("Loaded"),
            "{text}"
        );
        assert!(!text.contains(secret), "{text}");
    }
    assert_eq!(loaded.config.redis.url.one().unwrap().reveal(), format!("rediss://app:{secret}@h:1/0"));
}

#[test]
fn print_names_the_layers_above_the_file() {
    let text = loaded(&Sources::inline("topics.yaml", LEAST).env([("PIPELINE_KAFKA__BROKERS", "env:1")])).print();
    assert!(text.contains("  brokers: env:1   # PIPELINE_KAFKA__BROKERS\n"), "{text}");
}

#[test]
fn json_has_values_as_json() {
    let json = loaded(&sources(RICH)).print_json(true);
    assert_eq!(json["pipelines"]["b.c-d"]["retries"][1]["delay"], "1h 30m");
    assert_eq!(json["pipelines"]["b.c-d"]["retries"][1]["concurrency"], 3);
    assert_eq!(json["telemetry"]["sample_ratio"], 0.25);
    assert_eq!(json["pipelines"]["a"]["handler"], serde_json::json!({"log": {}}));
}

#[test]
fn print_all_as_a_person_sees_it() {
    let text = loaded(&sources(RICH)).print_all();
    for part in [
        "    retries:\n        # How long an event waits here before it is tried again.\n      - delay: 1m 30s\n",
        "      - delay: 1h 30m\n        name: null\n        jitter: 0.0\n        concurrency: 3\n",
        "      # simulate:\n      #   # Another seed, other events that fail.\n      #   seed: 0\n",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
}

#[test]
fn a_map_given_in_a_variable_is_shown_as_a_map_with_its_secrets_masked() {
    let yaml = "pipelines: { p: { topic: t, message: shop.v1.OrderPlaced, handler: { log: {} } } }";
    let handler = r#"{http: {url: "http://h:1/x?token=topsecret", headers: {Authorization: "Bearer topsecret"}}}"#;
    let sources = Sources::inline("test", yaml).env([("PIPELINE_PIPELINES__P__HANDLER", handler)]);
    let printed = load(&sources).unwrap().print();
    assert!(!printed.contains("topsecret") && printed.contains("Authorization"), "{printed}");
    assert!(load(&Sources::inline("printed", &printed)).is_ok(), "{printed}");
}

#[test]
fn what_may_be_a_secret_is_masked_in_faults_too() {
    let yaml = "kafka: { properties: { sasl.pasword: topsecret, sasl.jaas.config: topsecret } }\n\
                redis: { url: \"rediss//:topsecret@h:1\" }\n\
                pipelines: { p: { topic: t, message: m, handler: { log: {} } } }";
    let faults = load(&Sources::inline("test", yaml)).unwrap_err().to_string();
    assert!(!faults.contains("topsecret") && faults.contains("sasl.pasword"), "{faults}");
}
