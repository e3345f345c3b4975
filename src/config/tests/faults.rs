//! That all faults are told at once, and none hides another. What each says is held by tests/messages, word by word.

use super::super::{Endpoint, Order, Sources, load};
use super::{LEAST, config, faults, sources, with};

/// Exactly one fault, at `path`, whose text has all of `words`.
#[track_caller]
fn check(yaml: &str, path: &str, words: &[&str]) {
    let faults = faults(&sources(yaml));
    let paths: Vec<_> = faults.0.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(paths, [path], "{faults}");
    for word in words {
        assert!(faults.to_string().contains(word), "no `{word}` in: {faults}");
    }
}

/// The same with a further section beside the least pipeline.
#[track_caller]
fn beside(section: &str, path: &str, words: &[&str]) {
    check(&format!("{LEAST}\n{section}\n"), path, words);
}

#[test]
fn a_ladder_has_from_none_to_16_retry_stages() {
    let many: Vec<_> = (1..=16).map(|i| format!("{{delay: {i}s}}")).collect();
    assert_eq!(config(&with("retries: []")).pipelines[0].retries.len(), 0);
    assert_eq!(config(&with(&format!("retries: [{}]", many.join(", ")))).pipelines[0].retries.len(), 16);
}

#[test]
fn order_across_the_ladder_has_keys_of_its_own() {
    let kept = &config(&with("order: ladder, order_patience: 2h, order_room: 5")).pipelines[0];
    assert_eq!((kept.order, kept.order_patience.as_secs(), kept.order_room), (Order::Ladder, 7_200, 5));
}

#[test]
fn one_fault_of_a_pipeline_hides_no_other() {
    let check = |keys: &str, expected: &[&str]| {
        let faults = faults(&sources(&with(keys)));
        let paths: Vec<_> = faults.0.iter().map(|f| f.path.trim_start_matches("pipelines.orders.")).collect();
        assert_eq!(paths, expected, "{faults}");
    };
    check("retries: [{delay: 5s}, {delay: soon}, {delay: 1s}]", &["retries[1].delay", "retries[2].delay"]);
    check("retries: [{delay: soon}, {delay: 5s, name: a b}]", &["retries[0].delay", "retries[1].name"]);
    check("retries: [{delay: soon}, {delay: 1h}], retention: 2h", &["retries[0].delay", "retention"]);
    check("retries: [{delay: 1h}, {delay: 1h}], retention: 1h", &["retries[1].delay", "retention"]);
    check(
        "group: a b, dlq: {name: c d}, window: {waiting_bytes: 1}, concurrency: 0",
        &["concurrency", "window.waiting_bytes", "group", "dlq.name"],
    );
    // An unreadable delay says nothing about the order of the others, nor about the retention that they need.
    check("retries: [{delay: 5s}, {delay: soon}, {delay: 6s}]", &["retries[1].delay"]);
}

#[test]
fn pipelines_may_share_a_main_topic_and_one_may_read_the_dlq_of_another() {
    let two = |a: &str, b: &str| {
        let least = "message: shop.v1.OrderPlaced, handler: {log: {}}";
        format!("pipelines: {{a: {{{least}, {a}}}, b: {{{least}, {b}}}}}")
    };
    assert_eq!(config(&two("topic: t", "topic: t")).pipelines.len(), 2);
    assert_eq!(config(&two("topic: t", "topic: t.a.dlq")).pipelines.len(), 2, "a DLQ may be somebody's main topic");
}

#[test]
fn a_handler_without_keys_is_chosen_by_its_name() {
    let handler = |h: &str| LEAST.replace("{log: {}}", h);
    assert_eq!(config(&handler("{log: null}")).pipelines[0].handler.kind(), "log");
    assert_eq!(config(&handler("{http: null, log: {}}")).pipelines[0].handler.kind(), "log");
}

#[test]
fn a_pipeline_needs_topic_message_and_handler() {
    let faults = faults(&sources("pipelines: {orders: {}}"));
    let told: Vec<_> = faults.0.iter().map(|f| (f.path.as_str(), f.problem.as_str())).collect();
    assert_eq!(
        told,
        [
            ("pipelines.orders.topic", "missing"),
            ("pipelines.orders.handler", "missing"),
            // Not always: with a registry it may be left out.
            ("pipelines.orders.message", "missing"),
        ]
    );
}

#[test]
fn with_a_registry_no_message_has_to_be_named() {
    let framed = LEAST.replace("message: shop.v1.OrderPlaced", "framing: confluent");
    let registered = format!("registry: {{urls: ['http://localhost:8081']}}\n{framed}");
    assert_eq!(config(&registered).pipelines[0].message, None);
}

#[test]
fn urls_of_redis_are_one_server_or_the_nodes_of_a_cluster() {
    let list = config(&format!("{LEAST}\nredis: {{url: ['redis://:p@a', 'redis://:p@b:1/0']}}")).redis.url;
    assert!(list.one().is_none());
    assert_eq!(list.all().iter().map(Endpoint::reveal).collect::<Vec<_>>(), ["redis://:p@a", "redis://:p@b:1/0"]);
    assert_eq!(format!("{list:?}"), "[\"redis://:***@a\", \"redis://:***@b:1/0\"]");
    for url in ["redis://a", "redis+unix:///run/redis.sock", "valkey://:p@h:1/2"] {
        assert_eq!(config(&format!("{LEAST}\nredis: {{url: '{url}'}}")).redis.url.one().unwrap().reveal(), url);
    }
    if cfg!(feature = "tls") {
        assert_eq!(
            config(&format!("{LEAST}\nredis: {{url: 'rediss://a'}}")).redis.url.one().unwrap().url().scheme(),
            "rediss"
        );
    } else {
        beside("redis: {url: 'rediss://a'}", "redis.url", &["no TLS"]);
    }
}

#[test]
fn properties_that_the_promise_rests_on_are_refused_with_their_reason() {
    for section in ["properties", "consumer_properties", "producer_properties"] {
        for (name, value, word) in [
            ("enable.auto.offset.store", "true", "events lost"),
            ("enable.auto.commit", "false", "committed"),
            ("auto.offset.reset", "latest", "skipped"),
            ("enable.idempotence", "false", "doubled"),
            ("acks", "1", "in-sync"),
            ("request.required.acks", "1", "in-sync"),
            ("group.id", "x", "share offsets"),
            ("group.instance.id", "x", "instance"),
            ("partition.assignment.strategy", "range", "cooperative-sticky"),
            ("group.protocol", "consumer", "classic"),
            ("transactional.id", "x", "transactions"),
            ("isolation.level", "read_uncommitted", "aborted"),
            ("max.in.flight.requests.per.connection", "9", "reorder"),
            ("message.timeout.ms", "1000", "kafka.message_timeout"),
            ("enable.partition.eof", "true", "no event"),
            ("bootstrap.servers", "x:1", "kafka.brokers"),
            ("session.timeout.ms", "1000", "kafka.session_timeout"),
            ("max.poll.interval.ms", "1000", "kafka.max_poll_interval"),
            ("delivery.report.only.error", "true", "acknowledgements"),
            ("allow.auto.create.topics", "true", "topics create"),
        ] {
            beside(&format!("kafka: {{{section}: {{{name}: {value}}}}}"), &format!("kafka.{section}.{name}"), &[word]);
        }
    }
    // Without a token the client would wait for ever.
    for tokens in ["sasl.mechanism: OAUTHBEARER", "sasl.mechanisms: oauthbearer", "sasl.oauthbearer.method: oidc"] {
        let path = format!("kafka.properties.{}", tokens.split(':').next().unwrap());
        beside(
            &format!("kafka: {{properties: {{{tokens}}}}}"),
            &path,
            &["this build", "SCRAM-SHA-512", "docs/security.md"],
        );
    }
    let fine = "kafka: {properties: {socket.keepalive.enable: true, linger.ms: 5}, brokers: 'a:1, b:2,[::1]:3'}";
    assert_eq!(config(&format!("{LEAST}\n{fine}")).kafka.properties.get("linger.ms"), Some("5"));
}

#[test]
fn all_faults_are_told_at_once() {
    let yaml = "
kafak: {}
kafka: {properties: {acks: 1}, drain_timeout: 10}
redis: {url: 'http://x'}
defaults: {concurrency: none}
pipelines:
  a: {topic: t, message: m.M, handler: {http: {timeout: 5}}, retries: [{delay: 2s}, {delay: 1s}]}
  b: {topic: t, mesage: m.M, handler: {log: {}}, retention: 1m, dlq: {name: t}}
";
    let faults = faults(&sources(yaml));
    let mut paths: Vec<_> = faults.0.iter().map(|f| f.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "defaults.concurrency", // once, not once for each pipeline
            "kafak",
            "kafka.drain_timeout",
            "kafka.properties.acks",
            "pipelines.a.handler.http.timeout",
            "pipelines.a.handler.http.url",
            "pipelines.a.retries[1].delay",
            "pipelines.b.dlq.name",
            "pipelines.b.mesage",
            "pipelines.b.message",
            "pipelines.b.retention",
            "redis.url",
        ],
        "{faults}"
    );
    assert!(faults.to_string().starts_with("12 faults in the configuration\n"));
}

#[test]
fn faults_never_show_secrets() {
    let yaml = format!(
        "{LEAST}
redis: {{url: 'http://:hunter2@x', pasword: hunter2, url_password: [hunter2]}}
kafka: {{properties: {{sasl.password: {{a: hunter2}}, ssl.key.pem: hunter2, sasl.mechanism: {{sasl.password: hunter2}}}}}}
telemetry: {{otlp_endpoint: 'hunter2://a:hunter2@[x'}}
"
    );
    let faults = faults(&sources(&yaml));
    let text = format!("{faults} {faults:?} {}", serde_json::to_string(&faults.0).unwrap());
    assert!(!text.replace("hunter2://", "").contains("hunter2"), "{text}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_text_loads_or_has_faults(text in "[a-z{}:\\[\\], \n0-9'&*!%-]{0,80}", value: String) {
        for sources in [sources(&text), sources(&with(&text)), Sources::inline("t", LEAST).env([("PIPELINE_REDIS__URL", value)])] {
            if let Err(faults) = load(&sources) {
                proptest::prop_assert!(!faults.0.is_empty());
            }
        }
    }
}
