//! Each fault: where it is told, in which words, with which remedy; and that all are told at once.

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

/// The same with further keys in the least pipeline; `path` is below it.
#[track_caller]
fn pipeline(keys: &str, path: &str, words: &[&str]) {
    check(&with(keys), &format!("pipelines.orders.{path}"), words);
}

/// The same with a further section beside the least pipeline.
#[track_caller]
fn beside(section: &str, path: &str, words: &[&str]) {
    check(&format!("{LEAST}\n{section}\n"), path, words);
}

#[test]
fn unknown_keys_are_faults_with_the_nearest_known_one() {
    beside("kafak: {}", "kafak", &["unknown key", "did you mean `kafka`?"]);
    beside("kafka: {broker: x}", "kafka.broker", &["did you mean `brokers`?", "x"]);
    beside("redis: {colour: red}", "redis.colour", &["one of url, ca, prefix"]);
    pipeline("retires: []", "retires", &["did you mean `retries`?"]);
    pipeline("retries: [{delay: 5s, dely: 1s}]", "retries[0].dely", &["did you mean `delay`?"]);
    pipeline("idempotency: {ttl: 1h}", "idempotency.ttl", &["unknown key"]);
    beside("defaults: {concurency: 3}", "defaults.concurency", &["did you mean `concurrency`?"]);
}

#[test]
fn durations_sizes_and_shares_need_their_unit() {
    pipeline("retries: [{delay: 5}]", "retries[0].delay", &["= 5 ", "without a unit", "`5s` are seconds"]);
    pipeline("retries: [{delay: soon}]", "retries[0].delay", &["not a duration", "`250ms`"]);
    pipeline("retries: [{}]", "retries[0].delay", &["missing", "a duration as text"]);
    pipeline("retries: [{delay: 0s}]", "retries[0].delay", &["out of range"]);
    pipeline("retention: 604800", "retention", &["`604800s` are seconds"]);
    pipeline("window: {waiting_bytes: 4194304}", "window.waiting_bytes", &["without a unit", "`4MiB`"]);
    pipeline("window: {waiting_bytes: 1KiB}", "window.waiting_bytes", &["from 64KiB to 1GiB"]);
    pipeline("retries: [{delay: 5s, jitter: 20 %}]", "retries[0].jitter", &["20 %", "out of range", "from 0 to 0.1"]);
    pipeline("retries: [{delay: 5s, jitter: 10}]", "retries[0].jitter", &["`10 %`"]);
    beside("telemetry: {sample_ratio: 2}", "telemetry.sample_ratio", &["from 0 to 1"]);
}

#[test]
fn wrong_types_are_faults() {
    pipeline("concurrency: many", "concurrency", &["many", "a whole number"]);
    pipeline("concurrency: \"8\"", "concurrency", &["a whole number"]);
    pipeline("concurrency: 0", "concurrency", &["from 1 to 100000"]);
    pipeline("concurrency: -1", "concurrency", &["-1"]);
    pipeline("partitions: 0", "partitions", &["from 1"]);
    pipeline("replication: 0", "replication", &["from 1"]);
    pipeline("retries: {delay: 5s}", "retries", &["not a list"]);
    pipeline("dlq: none", "dlq", &["not a map"]);
    pipeline("allow_unsafe_topics: maybe", "allow_unsafe_topics", &["`true` or `false`"]);
    pipeline("group: 7", "group", &["not a text", "quotes"]);
    beside("admin: {listen: here}", "admin.listen", &["0.0.0.0:9464"]);
    beside("admin: {instances: [worker-1]}", "admin.instances[0]", &["worker-1:9464"]);
    pipeline("dlq: {webhook: \"ftp://chat.example\"}", "dlq.webhook", &["not a url of HTTP", "https://"]);
    beside("console: {listen: here}", "console.listen", &["127.0.0.1:9490"]);
    beside("console: {token: hunter2}", "console.token", &["***", "at least 16 characters"]);
    beside("instance: a b", "instance", &["a b", "letters"]);
    beside("telemetry: {otlp_endpoint: localhost}", "telemetry.otlp_endpoint", &["not a url"]);
    beside("telemetry: {log_format: jsn}", "telemetry.log_format", &["did you mean `json`?"]);
    check("pipelines: [orders]", "pipelines", &["not a map"]);
    check("[1, 2]", "topics.yaml", &["not a map of settings"]);
    check("a: b: c", "topics.yaml", &["not valid YAML", "line 1"]);
    check("pipelines: {a: {topic: x, topic: y}}", "pipelines.a.topic", &["twice"]);
    check("{}", "pipelines", &["at least one pipeline"]);
}

#[test]
fn words_are_chosen_from_a_list() {
    pipeline("tombstones: deadletter", "tombstones", &["did you mean `dead_letter`?"]);
    pipeline("order: laddr", "order", &["did you mean `ladder`?"]);
    pipeline("framing: avro", "framing", &["one of plain, confluent"]);
    pipeline("compat_headers: [kafka, sprig]", "compat_headers[1]", &["did you mean `spring`?"]);
    pipeline("idempotency: {store: valkey}", "idempotency.store", &["redis, memory, off"]);
    pipeline("event_id: {header: []}", "event_id.header", &["at least one"]);
    pipeline("event_id: {headers: [a]}", "event_id.headers", &["did you mean `header`?"]);
    pipeline("event_id: {header: [a], field: b}", "event_id", &["at once", "exactly one"]);
}

#[test]
fn order_across_the_ladder_is_kept_in_a_store_that_is_waited_for() {
    let keys = |idempotency: &str| format!("order: ladder, idempotency: {{{idempotency}}}");
    pipeline(&keys("store: off"), "idempotency.store", &["keeps the order in the store", "redis"]);
    pipeline(&keys("on_unavailable: process"), "idempotency.on_unavailable", &["cannot be kept", "pause"]);
    pipeline("order: ladder, forward: transactional", "forward", &["not offered together", "idempotent"]);
    pipeline("order: ladder, order_room: 0", "order_room", &["= 0"]);
    let kept = &config(&with("order: ladder, order_patience: 2h, order_room: 5")).pipelines[0];
    assert_eq!((kept.order, kept.order_patience.as_secs(), kept.order_room), (Order::Ladder, 7_200, 5));
}

#[test]
fn delays_rise_strictly() {
    pipeline("retries: [{delay: 5s}, {delay: 5s}]", "retries[1].delay", &["= 5s", "not longer than", "rise strictly"]);
    pipeline("retries: [{delay: 5s}, {delay: 1s}, {delay: 9s}]", "retries[1].delay", &["more than 5s"]);
    let many: Vec<_> = (1..=17).map(|i| format!("{{delay: {i}s}}")).collect();
    pipeline(&format!("retries: [{}]", many.join(", ")), "retries", &["17 retry stages", "at most 16"]);
    assert_eq!(config(&with("retries: []")).pipelines[0].retries.len(), 0);
    assert_eq!(config(&with(&format!("retries: [{}]", many[..16].join(", ")))).pipelines[0].retries.len(), 16);
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
fn every_stage_has_a_topic_of_its_own() {
    let two = |a: &str, b: &str| format!("retries: [{{delay: 1s, name: {a}}}, {{delay: 2s, name: {b}}}]");
    pipeline(&two("x", "x"), "retries[1].name", &["retry-2 has the topic of retry-1"]);
    pipeline(&two("x", "orders"), "retries[1].name", &["retry-2 has the topic of main"]);
    pipeline("dlq: {name: orders}", "dlq.name", &["dlq has the topic of main"]);
    pipeline("dlq: {name: orders.orders.retry-2}", "dlq.name", &["dlq has the topic of retry-2"]);
    pipeline("dlq: {name: a topic}", "dlq.name", &["not a topic name"]);
    pipeline("group: größe", "group", &["not a name that topics"]);
    check(&LEAST.replace("topic: orders", "topic: o/rders"), "pipelines.orders.topic", &["not a topic name"]);
}

#[test]
fn pipelines_share_neither_group_nor_retry_topics() {
    let two = |a: &str, b: &str| {
        let least = "message: shop.v1.OrderPlaced, handler: {log: {}}";
        format!("pipelines: {{a: {{{least}, {a}}}, b: {{{least}, {b}}}}}")
    };
    check(&two("topic: t, group: g", "topic: t, group: g"), "pipelines.b.group", &["pipeline a", "same group"]);
    let named = |topic: &str| format!("topic: t, retries: [{{delay: 1s, name: {topic}}}]");
    check(&two(&named("r"), &named("r")), "pipelines.b.retries[0].name", &["retry-1 in pipeline a"]);
    check(&two("topic: t, dlq: {name: d}", "topic: t, dlq: {name: d}"), "pipelines.b.dlq.name", &["dlq in pipeline a"]);
    check(&two("topic: t", "topic: t.a.retry-1"), "pipelines.b.topic", &["retry-1 in pipeline a"]);
    assert_eq!(config(&two("topic: t", "topic: t")).pipelines.len(), 2);
    assert_eq!(config(&two("topic: t", "topic: t.a.dlq")).pipelines.len(), 2, "a DLQ may be somebody's main topic");
}

#[test]
fn times_agree_with_each_other() {
    pipeline(
        "idempotency: {done_ttl: 20d}, retries: [{delay: 8d}]",
        "retention",
        &["7d", "while they wait", "more than 16d"],
    );
    pipeline("idempotency: {done_ttl: 1h}", "idempotency.done_ttl", &["1h", "at least 24h"]);
    pipeline(
        "retention: 9d, retries: [{delay: 2d}]",
        "idempotency.done_ttl",
        &["24h", "at least 4d", "twice the ladder"],
    );
    pipeline("idempotency: {handed_ttl: 23h}", "idempotency.handed_ttl", &["at least done_ttl"]);
    pipeline("idempotency: {lease: 1s}", "idempotency.lease", &["from 3s to 10m"]);
    pipeline("handler_timeout: 5s, handler: {http: {url: 'http://x/'}}", "handler", &["stands twice"]);
    beside("kafka: {drain_timeout: 5m}", "kafka.drain_timeout", &["kafka.max_poll_interval", "less than 5m"]);
    beside("kafka: {max_poll_interval: 12s}", "kafka.session_timeout", &["15s", "at most 12s"]);
    beside("kafka: {message_timeout: 60s}", "kafka.message_timeout", &["from 2m"]);
    check(
        &format!("kafka: {{max_poll_interval: 1m}}\n{}\n", with("forward: transactional")),
        "kafka.max_poll_interval",
        &["1m", "orders", "at least 3m"],
    );
}

#[test]
fn a_breaker_or_a_brake_that_could_never_work_as_meant_is_refused() {
    pipeline(
        "breaker: {cool_down: 1m}",
        "breaker.max_cool_down",
        &["30s", "shorter than the first", "at least cool_down, 1m"],
    );
    pipeline("brake: {max_cool_down: 1m}", "brake.max_cool_down", &["1m", "at least cool_down, 5m"]);
    pipeline("breaker: {consecutive_failures: 5}", "breaker.slow_failures", &["rare events", "at most 5"]);
    pipeline("breaker: {min_time: 1m}", "breaker.slow_time", &["shorter than min_time", "at least min_time, 1m"]);
    pipeline("brake: {ratio: 0}", "brake.ratio", &["0.01"]);
}

#[test]
fn exactly_one_handler() {
    let handler = |h: &str| LEAST.replace("{log: {}}", h);
    let at = "pipelines.orders.handler";
    check(&handler("{}"), at, &["none is chosen", "http, postgres, log, simulate"]);
    check(&handler("null"), at, &["none is chosen"]);
    check(&handler("{log: {}, simulate: {}}"), at, &["log and simulate at once"]);
    check(&handler("{htpt: {}}"), "pipelines.orders.handler.htpt", &["did you mean `http`?"]);
    let pg = "pipelines.orders.handler.postgres";
    let postgres = |keys: &str| handler(&format!("{{postgres: {{url: 'postgres://u@h/d', {keys}}}}}"));
    check(&handler("{postgres: {}}"), &format!("{pg}.url"), &["missing"]);
    check(&handler("{postgres: {url: 'http://h/d'}}"), &format!("{pg}.url"), &["not a url of PostgreSQL"]);
    check(&postgres("timeout: 29s"), &format!("{pg}.timeout"), &["29s", "with flush_interval", "less than 30s"]);
    check(
        &postgres("timeout: 1s"),
        &format!("{pg}.connect_timeout"),
        &["5s", "longer than timeout", "at most timeout, 1s"],
    );
    check(&postgres("pool_min_idle: 5"), &format!("{pg}.pool_min_idle"), &["more than there may be", "at most"]);
    check(&postgres("columns: [a]"), &format!("{pg}.columns"), &["not a map", "a map from column to source"]);
    check(&postgres("columns: {a: {b: c}}"), &format!("{pg}.columns.a"), &["not a text"]);
    check(&handler("{http: {}}"), "pipelines.orders.handler.http.url", &["missing"]);
    check(&handler("{http: {url: 'ftp://x/'}}"), "pipelines.orders.handler.http.url", &["not a url of HTTP"]);
    check(&handler("{http: {url: x}}"), "pipelines.orders.handler.http.url", &["not a url"]);
    check(
        &handler("{http: {url: 'http://x/', timeout: 40s}}"),
        "pipelines.orders.handler.http.timeout",
        &["40s", "longer than handler_timeout", "at most 30s"],
    );
    check(
        &handler("{http: {url: 'http://x/', classify: {44: done}}}"),
        "pipelines.orders.handler.http.classify.44",
        &["from 200 to 599"],
    );
    check(
        &handler("{http: {url: 'http://x/', classify: {404: later}}}"),
        "pipelines.orders.handler.http.classify.404",
        &["done, transient, permanent"],
    );
    check(
        &handler("{http: {url: 'http://x/', headers: {'a b': c}}}"),
        "pipelines.orders.handler.http.headers.a b",
        &["not a header name"],
    );
    check(
        &handler("{simulate: {dead_ratio: 0.7, permanent_ratio: 0.7}}"),
        "pipelines.orders.handler.simulate.dead_ratio",
        &["together at most 1"],
    );
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
    check(&LEAST.replace("shop.v1.OrderPlaced", "shop/v1"), "pipelines.orders.message", &["shop.v1.OrderPlaced"]);
    pipeline("descriptor_set: no/such/file", "descriptor_set", &["no such file"]);
}

#[test]
fn a_registry_is_checked_and_what_depends_on_it() {
    beside("registry: {urls: ['ftp://x']}", "registry.urls[0]", &["not a url of HTTP"]);
    beside("registry: {urls: ['http://a'], user: u, token: t}", "registry.token", &["***", "there is a user, too"]);
    beside("registry: {urls: ['http://u:p@a'], token: t}", "registry.token", &["either a token or a user"]);
    beside("registry: {password: p}", "registry.user", &["a password without its user"]);
    beside("registry: {ca: no/such/file}", "registry.ca", &["no such file"]);

    let framed = LEAST.replace("message: shop.v1.OrderPlaced", "framing: confluent");
    check(&framed, "pipelines.orders.message", &["missing, and there is no registry to ask"]);
    let registered = format!("registry: {{urls: ['http://localhost:8081']}}\n{framed}");
    assert_eq!(config(&registered).pipelines[0].message, None);
    let by_field = registered.replace("framing: confluent", "framing: confluent, event_id: {field: unique_id}");
    check(&by_field, "pipelines.orders.event_id.field", &["read before any schema is looked up", "unique_id"]);
}

#[test]
fn redis_urls_are_checked() {
    beside("redis: {url: 'http://localhost'}", "redis.url", &["`http`", "rediss:// for TLS"]);
    beside("redis: {url: 'redis://localhost/x'}", "redis.url", &["not a url of redis"]);
    beside("redis: {url: []}", "redis.url", &["empty list", "nodes of a cluster"]);
    beside("redis: {url: ['redis://a', 'http://b']}", "redis.url[1]", &["`http`"]);
    beside("redis: {url: ['redis://a/3']}", "redis.url[0]", &["no database but 0"]);
    beside("redis: {url: ['redis://a', 'redis+unix:///run/r.sock']}", "redis.url[1]", &["not reached by sockets"]);
    beside("redis: {url: ['redis://:p@a', 'redis://:q@b']}", "redis.url[1]", &["differ from the first url's"]);
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
    beside("kafka: {properties: {no.such.thing: 1}}", "kafka.properties.no.such.thing", &["No such configuration"]);
    beside("kafka: {properties: {security.protocol: tls}}", "kafka.properties.security.protocol", &["Invalid value"]);
    // Without a token the client would wait for ever.
    for tokens in ["sasl.mechanism: OAUTHBEARER", "sasl.mechanisms: oauthbearer", "sasl.oauthbearer.method: oidc"] {
        let path = format!("kafka.properties.{}", tokens.split(':').next().unwrap());
        beside(
            &format!("kafka: {{properties: {{{tokens}}}}}"),
            &path,
            &["this build", "SCRAM-SHA-512", "docs/security.md"],
        );
    }
    beside("kafka: {properties: {sasl: {password: x}}}", "kafka.properties.sasl", &["one key", "password: \"***\""]);
    beside("kafka: {brokers: 'localhost:kafka'}", "kafka.brokers", &["host:port"]);
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
