//! Which layer wins, and how names in the environment find their keys.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::super::{EventId, Order, Sources, Store, load};
use super::{LEAST, config, faults, loaded, sources, with};

fn seconds(config: &super::Config) -> Vec<u64> {
    config.pipelines[0].retries.iter().map(|r| r.delay.as_secs()).collect()
}

/// A directory with these files.
fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn at(dir: &Path, file: &str) -> Sources {
    Sources::new(Some(dir.join(file)))
}

#[test]
fn a_pipeline_without_further_keys_has_the_defaults() {
    let config = config(LEAST);
    let p = &config.pipelines[0];
    assert_eq!((p.topic.as_str(), p.group.as_str(), p.dlq.topic.as_str()), ("orders", "orders", "orders.orders.dlq"));
    assert_eq!(seconds(&config), [5, 30, 300]);
    assert_eq!(p.retries[2].topic, "orders.orders.retry-3");
    assert_eq!(p.idempotency.lease, Duration::from_secs(15));
    assert_eq!(p.idempotency.handed_ttl, p.idempotency.done_ttl);
    assert_eq!((p.window.waiting, p.window.waiting_bytes.0, p.window.in_flight), (1000, 4 << 20, 1000));
    assert_eq!((p.partitions, p.concurrency, p.max_deferrals), (6, 64, 10));
    assert_eq!(p.max_event_age, None);
    assert_eq!(config.kafka.session_timeout, Duration::from_secs(15));
    assert_eq!(config.telemetry.otlp_endpoint, None);
    assert_eq!(p.stage_group("main"), "orders");
    assert_eq!(p.stage_group("retry-2"), "orders.retry-2");
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let dir = dir(&[
        ("topics.yaml", &format!("{LEAST}\nkafka: {{brokers: file:1}}\nredis: {{prefix: file}}")),
        ("topics.prod.yaml", "kafka: {brokers: profile:1, session_timeout: 20s}\ninstance: profile"),
    ]);
    let file = at(dir.path(), "topics.yaml");
    let brokers = |sources: &Sources| loaded(sources).config.kafka.brokers;
    assert_eq!(brokers(&sources(LEAST)), "localhost:9092");
    assert_eq!(brokers(&file), "file:1");
    let profile = [("PIPELINE_PROFILE", "prod")];
    assert_eq!(brokers(&file.clone().env(profile)), "profile:1");
    let env = file.env([profile[0], ("PIPELINE_KAFKA__BROKERS", "env:1"), ("OTHER_KAFKA__BROKERS", "x:1")]);
    assert_eq!(brokers(&env), "env:1");
    let flag = env.flag("--brokers", "kafka.brokers", "flag:1");
    let config = loaded(&flag).config;
    assert_eq!(config.kafka.brokers, "flag:1");
    assert_eq!(config.redis.prefix, "file", "maps merge deep");
    assert_eq!((config.kafka.session_timeout, config.instance), (Duration::from_secs(20), Some("profile".to_owned())));
}

#[test]
fn lists_replace() {
    let dir = dir(&[
        ("topics.yaml", &with("retries: [{delay: 5s}, {delay: 6s}]")),
        ("topics.dev.yaml", "pipelines: {orders: {retries: [{delay: 1s}]}}"),
    ]);
    assert_eq!(seconds(&loaded(&at(dir.path(), "topics.yaml").env([("PIPELINE_PROFILE", "dev")])).config), [1]);
}

#[test]
fn a_profile_must_have_its_file() {
    let dir = dir(&[("topics.yaml", LEAST), ("other.yaml", LEAST), ("topics.dev.yaml", "instance: dev")]);
    let told = faults(&at(dir.path(), "topics.yaml").env([("PIPELINE_PROFILE", "prod")]));
    assert_eq!((told.0.len(), told.0[0].path.as_str()), (1, "PIPELINE_PROFILE"));
    assert!(told.to_string().contains("topics.prod.yaml"), "{told}");
    let told = faults(&at(dir.path(), "topics.yaml").env([("PIPELINE_PROFILE", "../x")]));
    assert!(told.to_string().contains("is not a name"), "{told}");
    let beside = loaded(&at(dir.path(), "other.yaml").env([("PIPELINE_PROFILE", "dev")]));
    assert_eq!(beside.config.instance.as_deref(), Some("dev"), "topics.<profile>.yaml stands beside any file");
    assert_eq!(loaded(&at(dir.path(), "topics.yaml").env([("PIPELINE_PROFILE", "")])).config.instance, None);
}

#[test]
fn a_named_file_must_exist() {
    let told = faults(&Sources::new(Some("no/such.yaml".into())));
    assert_eq!(told.0[0].path, "--config");
    assert!(told.to_string().contains("no/such.yaml"), "{told}");
}

#[test]
fn every_file_that_cannot_be_read_is_told() {
    let dir = dir(&[("topics.yaml", "a: b: c"), ("topics.dev.yaml", "x: [")]);
    let told = faults(&at(dir.path(), "topics.yaml").env([("PIPELINE_PROFILE", "dev")]));
    assert_eq!(told.0.len(), 2, "{told}");
}

#[test]
fn variables_reach_every_kind_of_key() {
    let yaml = "
kafka: {properties: {sasl.username: file}}
pipelines:
  Orders-EU: {topic: orders, message: m.M, handler: {http: {url: 'http://x/', headers: {X-Tenant: eu}}}}
";
    let config = loaded(&sources(yaml).env([
        ("PIPELINE_PIPELINES__ORDERS_EU__CONCURRENCY", "8"),
        ("PIPELINE_PIPELINES__ORDERS_EU__RETRIES", "[{delay: 1s}, {delay: 2s, jitter: 5 %}]"),
        ("PIPELINE_PIPELINES__ORDERS_EU__ALLOW_UNSAFE_TOPICS", "true"),
        ("PIPELINE_PIPELINES__ORDERS_EU__MAX_EVENT_AGE", "1d"),
        ("PIPELINE_PIPELINES__ORDERS_EU__COMPAT_HEADERS", "[]"),
        ("PIPELINE_PIPELINES__ORDERS_EU__GROUP", "7"),
        ("PIPELINE_PIPELINES__ORDERS_EU__HANDLER__HTTP__HEADERS__X_TENANT", "us"),
        ("PIPELINE_PIPELINES__ORDERS_EU__HANDLER__HTTP__HEADERS__X_NEW", "1"),
        ("PIPELINE_PIPELINES__ORDERS_EU__HANDLER__HTTP__CLASSIFY__404", "transient"),
        ("PIPELINE_KAFKA__PROPERTIES__SASL_USERNAME", "env"),
        ("PIPELINE_KAFKA__PROPERTIES__SASL_PASSWORD", "null # no: comment"),
        ("PIPELINE_TELEMETRY__SAMPLE_RATIO", "0.5"),
        ("PIPELINE_INSTANCE", "w1"),
        ("PIPELINE_ADMIN__LISTEN", ""),
        ("PIPELINE_WORKSPACE", "set by a build agent"),
    ]))
    .config;
    let p = config.pipeline("Orders-EU").unwrap();
    assert_eq!((p.concurrency, p.group.as_str(), p.allow_unsafe_topics), (8, "7", true));
    assert_eq!((seconds(&config), p.retries[1].jitter), (vec![1, 2], 0.05));
    assert_eq!(p.max_event_age, Some(Duration::from_secs(86_400)));
    assert!(p.compat_headers.is_empty());
    let super::super::Handler::Http(http) = &p.handler else { panic!("{:?}", p.handler) };
    assert_eq!(http.headers.reveal().collect::<Vec<_>>(), [("X-Tenant", "us"), ("x-new", "1")]);
    assert_eq!(http.classify.0.len(), 1);
    assert_eq!(config.kafka.properties.get("sasl.username"), Some("env"));
    assert_eq!(config.kafka.properties.get("sasl.password"), Some("null # no: comment"), "text stays as it is");
    assert_eq!((config.telemetry.sample_ratio.0, config.instance.as_deref()), (0.5, Some("w1")));
    assert_eq!(config.admin.listen, None, "an empty variable is none");
}

#[test]
fn faults_name_the_layer_that_set_the_value() {
    let told = faults(&sources(LEAST).env([("PIPELINE_KAFAK__BROKERS", "x"), ("PIPELINE_BOGUS", "1")]));
    let told: Vec<_> = told.0.iter().map(|f| (f.path.as_str(), f.source.as_deref())).collect();
    assert_eq!(told, [("bogus", Some("PIPELINE_BOGUS")), ("kafak", Some("PIPELINE_KAFAK__BROKERS"))]);
    let told = faults(&sources(&with("concurrency: no")).env([("PIPELINE_PIPELINES__ORDERS__PARTITIONS", "six")]));
    let told: Vec<_> = told.0.iter().map(|f| f.source.as_deref()).collect();
    assert_eq!(told, [Some("PIPELINE_PIPELINES__ORDERS__PARTITIONS"), Some("topics.yaml")]);
    let told = faults(&sources(LEAST).flag("--brokers", "kafka.brokers", "a b"));
    assert_eq!(told.0[0].source.as_deref(), Some("--brokers"));
    let told = faults(&sources(LEAST).env([("PIPELINE_KAFKA____BROKERS", "x")]));
    assert_eq!(told.0[0].path, "PIPELINE_KAFKA____BROKERS");
}

#[test]
fn defaults_hold_for_all_pipelines_and_their_own_keys_win() {
    let config = config(
        "
defaults: {topic: t, message: m.M, handler: {simulate: {seed: 7}}, idempotency: {store: off, lease: 5s}, max_event_age: 1d}
pipelines:
  a:
  b: {order: none, idempotency: {store: memory}, handler: {log: {}}, max_event_age: null, event_id: {field: id}}
",
    );
    let (a, b) = (&config.pipelines[0], &config.pipelines[1]);
    assert_eq!((a.order, b.order), (Order::Stage, Order::None));
    assert_eq!((a.idempotency.store, b.idempotency.store), (Store::Off, Store::Memory));
    assert_eq!(b.idempotency.lease, Duration::from_secs(5), "maps merge deep");
    assert_eq!((a.handler.kind(), b.handler.kind()), ("simulate", "log"), "another kind replaces");
    assert_eq!((a.max_event_age.is_some(), b.max_event_age.is_some()), (true, false), "null is none");
    assert_eq!(b.event_id, EventId::Field("id".to_owned()), "another kind replaces the default");
}

#[test]
fn a_later_layer_chooses_another_handler() {
    let sources = sources(LEAST).env([
        ("PIPELINE_PIPELINES__ORDERS__HANDLER__HTTP__URL", "http://x/"),
        ("PIPELINE_PIPELINES__ORDERS__HANDLER__HTTP__BODY", "json"),
    ]);
    assert_eq!(loaded(&sources).config.pipelines[0].handler.kind(), "http");
}

#[test]
fn secrets_come_from_files() {
    let dir = dir(&[("url", "redis://:hunter2@h:1/0\n"), ("password", "pa ss\n"), ("empty", "\n")]);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let yaml = format!(
        "{LEAST}\nredis: {{url_file: '{}'}}\nkafka: {{properties: {{sasl.password_file: '{}'}}}}",
        path("url"),
        path("password")
    );
    let from_files = loaded(&sources(&yaml));
    let printed = from_files.print_all();
    assert!(!printed.contains("hunter2") && !printed.contains("pa ss"), "{printed}");
    assert_eq!(loaded(&sources(&printed)).config, from_files.config, "the files are named, so that it loads again");
    let config = from_files.config;
    assert_eq!(config.redis.url.one().unwrap().reveal(), "redis://:hunter2@h:1/0");
    assert_eq!(config.kafka.properties.get("sasl.password"), Some("pa ss"), "only the line end goes");
    assert!(!format!("{config:?}").contains("hunter2") && !format!("{config:?}").contains("pa ss"), "{config:?}");

    let env = sources(&format!("{LEAST}\nredis: {{url: 'redis://file:1'}}"));
    let env = env.env([("PIPELINE_REDIS__URL_FILE", path("url"))]);
    assert_eq!(
        loaded(&env).config.redis.url.one().unwrap().reveal(),
        "redis://:hunter2@h:1/0",
        "the later layer wins over `url`"
    );
    let env = sources(&yaml)
        .env([("PIPELINE_REDIS__URL", "redis://env:1"), ("PIPELINE_KAFKA__PROPERTIES__SASL_PASSWORD", "x")]);
    let config = loaded(&env).config;
    assert_eq!(config.redis.url.one().unwrap().reveal(), "redis://env:1", "and `url` over an earlier `url_file`");
    assert_eq!(config.kafka.properties.get("sasl.password"), Some("x"));

    for (file, word) in [("empty", "empty"), ("none", "cannot be read")] {
        let told = faults(&sources(&format!("{LEAST}\nredis: {{url_file: '{}'}}", path(file))));
        assert_eq!(told.0[0].path, "redis.url_file");
        assert!(told.to_string().contains(word), "{told}");
    }
    let both = format!("{LEAST}\nredis: {{url_file: '{}', url: 'redis://x'}}", path("url"));
    assert!(faults(&sources(&both)).to_string().contains("one of the two"));
}

#[test]
fn the_shipped_files_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = at(root, "topics.yaml");
    let config = loaded(&shipped).config;
    assert_eq!((seconds(&config), config.pipelines[0].handler.kind()), (vec![5, 30, 300], "simulate"));
    let dev = loaded(&shipped.clone().env([("PIPELINE_PROFILE", "dev")])).config;
    assert_eq!(seconds(&dev), [1, 2, 4]);
    let groups = loaded(&at(root, "examples/two-groups.yaml")).config;
    let names: Vec<_> = groups.pipelines.iter().map(|p| (p.group.as_str(), p.topic.as_str())).collect();
    assert_eq!(names, [("analytics", "orders"), ("inventory", "orders")]);
    assert_ne!(groups.pipelines[0].handler, groups.pipelines[1].handler);

    let example = fs::read_to_string(root.join(".env.example")).unwrap();
    let vars: Vec<_> = example
        .lines()
        .filter_map(|l| l.trim_start_matches('#').split_once('='))
        .filter(|(k, _)| k.starts_with("PIPELINE_") && !k.ends_with("_FILE"))
        .map(|(k, v)| (k, v.trim_matches('\''))) // as a shell reads it
        .collect();
    assert!(vars.len() > 8, "the commented variables are checked, too");
    if let Err(faults) = load(&shipped.env(vars)) {
        panic!("{faults}");
    }
}

/// What the shipped file shows as comments must be true as well.
#[test]
fn the_commented_handlers_of_the_shipped_file_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("topics.yaml")).unwrap();
    for kind in ["http", "postgres"] {
        let (mut active, mut is_chosen) = (String::new(), false);
        for line in text.lines() {
            match line.find("# ").filter(|i| *i == 6).map(|_| &line[8..]) {
                Some(line) => {
                    is_chosen = line.starts_with(&format!("{kind}:")) || is_chosen && line.starts_with(' ');
                    if is_chosen {
                        active.push_str(&format!("      {line}\n"));
                    }
                }
                None if line.starts_with("      simulate") || line.starts_with("        ") => {}
                None => active.push_str(&format!("{line}\n")),
            }
        }
        assert_eq!(config(&active).pipelines[0].handler.kind(), kind, "{active}");
    }
}
