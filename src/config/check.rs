//! From keys to [`Config`]: fills in what follows from other keys, and checks what no key can check alone.
//!
//! A check across keys is left out where one of them has a fault already: what would follow from a fault helps nobody.

mod transactions;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::kafka_properties::{refused, reserved};
use super::keys::{EventId, Handler, HttpHandler, Keys, PipelineKeys, Registry};
use super::model::{Config, Dlq, Endpoint, Framing, Idempotency, Pipeline, Properties, Retry, ladder_length};
use super::report::{At, Report};
use super::secret::MASK;
use super::text::show_duration;

/// Longest ladder.
pub const MAX_RETRIES: usize = 16;
/// Longest name that Kafka takes for a topic.
const MAX_TOPIC: usize = 249;
/// Shortest token of the console: shorter ones can be guessed.
const MIN_TOKEN: usize = 16;
const MIN_DONE_TTL: Duration = Duration::from_secs(24 * 3600);

/// The typed configuration, or none after faults were reported.
pub(super) fn build(keys: &Keys, report: &mut Report<'_>) -> Option<Config> {
    check_kafka(keys, report);
    check_redis(keys, report);
    check_process(keys, report);
    check_registry(&keys.registry, report);
    let has_registry = !keys.registry.urls.is_empty();
    let pipelines: Vec<Pipeline> =
        keys.pipelines.0.iter().map(|(name, p)| pipeline(name, p, has_registry, report)).collect();
    if pipelines.is_empty() && report.clean(&At::of(&["pipelines"])) {
        let remedy = "at least one pipeline, in ./topics.yaml or in the file that --config names";
        report.fault(&At::of(&["pipelines"]), "there is none", remedy);
    }
    check_shared(&pipelines, report);
    transactions::check(&keys.kafka, &pipelines, report);
    Some(Config {
        kafka: keys.kafka.clone(),
        redis: keys.redis.clone(),
        registry: keys.registry.clone(),
        pipelines,
        instance: keys.instance.clone(),
        admin: keys.admin.clone(),
        telemetry: keys.telemetry.clone(),
        console: keys.console.clone(),
    })
}

fn check_kafka(keys: &Keys, report: &mut Report<'_>) {
    let at = At::of(&["kafka"]);
    let kafka = &keys.kafka;
    let is_address = |b: &str| {
        let (host, port) = b.rsplit_once(':').unwrap_or((b, "9092"));
        !host.is_empty() && !host.contains([' ', '/']) && port.parse::<u16>().is_ok_and(|p| p > 0)
    };
    let brokers = at.key("brokers");
    if report.clean(&brokers) && !kafka.brokers.split(',').all(|b| is_address(b.trim())) {
        report.fault(
            &brokers,
            "not a list of servers",
            "host:port, separated by commas, like `kafka-1:9092,kafka-2:9092`",
        );
    }
    for (key, properties) in [
        ("properties", &kafka.properties),
        ("consumer_properties", &kafka.consumer_properties),
        ("producer_properties", &kafka.producer_properties),
    ] {
        check_properties(properties, &at.key(key), report);
    }
    let (drain, poll, session) = (at.key("drain_timeout"), at.key("max_poll_interval"), at.key("session_timeout"));
    if report.clean(&drain) && report.clean(&poll) && kafka.drain_timeout >= kafka.max_poll_interval {
        report.fault_with(
            &drain,
            Some(show_duration(kafka.drain_timeout)),
            "the drain outlasts kafka.max_poll_interval, so the group would take this member for stuck",
            format!("less than {}", show_duration(kafka.max_poll_interval)),
        );
    }
    if report.clean(&session) && report.clean(&poll) && kafka.session_timeout > kafka.max_poll_interval {
        report.fault_with(
            &session,
            Some(show_duration(kafka.session_timeout)),
            "longer than kafka.max_poll_interval, which librdkafka refuses",
            format!("at most {}", show_duration(kafka.max_poll_interval)),
        );
    }
}

fn check_properties(properties: &Properties, at: &At, report: &mut Report<'_>) {
    for (name, property) in &properties.0 {
        let here = if property.file.is_some() { at.key(&format!("{name}_file")) } else { at.key(name) };
        if let Some(rule) = reserved(name) {
            report.fault(&here, format!("may not be set: {}", rule.reason), rule.remedy);
        } else if let Some((problem, remedy)) = refused(name, &property.value) {
            report.fault(&here, problem, remedy);
        }
    }
}

fn check_redis(keys: &Keys, report: &mut Report<'_>) {
    let at = At::of(&["redis"]);
    check_ca(keys.redis.ca.as_deref(), &at, report);
    let endpoints = &keys.redis.url;
    let key = at.key(if endpoints.all().iter().any(|url| url.file.is_some()) { "url_file" } else { "url" });
    if !report.clean(&at.key("url")) || !report.clean(&key) {
        return; // told already
    }
    if let Some(endpoint) = endpoints.one() {
        check_redis_url(endpoint, &key, report);
        return;
    }
    let login = |endpoint: &Endpoint| {
        let url = endpoint.url();
        (url.scheme().to_owned(), url.username().to_owned(), url.password().map(str::to_owned))
    };
    for (i, endpoint) in endpoints.all().iter().enumerate() {
        let at = if endpoint.file.is_some() { key.clone() } else { key.index(i) };
        if !check_redis_url(endpoint, &at, report) {
            continue;
        }
        let url = endpoint.url();
        if url.scheme().contains("unix") {
            report.fault(&at, "nodes of a Redis Cluster are not reached by sockets", "redis://host:port");
        } else if !["", "/", "/0"].contains(&url.path()) {
            report.fault(&at, "a Redis Cluster has no database but 0", "redis://host:port");
        } else if login(endpoint) != login(&endpoints.all()[0]) {
            let problem = "scheme, user or password differ from the first url's";
            report.fault(
                &at,
                problem,
                "the same for all nodes of a Redis Cluster: those not listed are reached by them, too",
            );
        }
    }
}

/// Whether it is one.
fn check_redis_url(endpoint: &Endpoint, at: &At, report: &mut Report<'_>) -> bool {
    let scheme = endpoint.url().scheme();
    if !["redis", "rediss", "valkey", "valkeys", "redis+unix", "unix"].contains(&scheme) {
        let remedy = "redis://host:port/db, rediss:// for TLS, redis+unix:///path of a socket";
        report.fault(at, format!("the scheme `{scheme}` is none of Redis"), remedy);
    } else if cfg!(not(feature = "tls")) && ["rediss", "valkeys"].contains(&scheme) {
        report.fault(at, "this build has no TLS", "a build with the feature `tls`, or redis://");
    } else if let Err(e) = redis::IntoConnectionInfo::into_connection_info(endpoint.reveal()) {
        // Behind the dash stands only what kind of error it is.
        let why = e.to_string().to_lowercase();
        let why = why.split(" - ").next().unwrap_or_default();
        report.fault(at, format!("not a url of Redis: {why}"), "redis://host:port/db");
    } else {
        return true;
    }
    false
}

fn check_process(keys: &Keys, report: &mut Report<'_>) {
    let instance = At::of(&["instance"]);
    if let Some(id) = &keys.instance
        && !is_kafka_name(id)
    {
        report.fault(&instance, "not a name for a member", "at most 249 letters, digits, `-`, `_`, `.`");
    }
    let listen = At::of(&["admin", "listen"]);
    if let Some(address) = &keys.admin.listen
        && address.replace("localhost", "127.0.0.1").parse::<SocketAddr>().is_err()
    {
        report.fault(&listen, "not an address", "ip:port, like `127.0.0.1:9464` or `0.0.0.0:9464`");
    }
    for (i, address) in keys.admin.instances.iter().enumerate() {
        let is_address =
            address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            report.fault(
                &At::of(&["admin"]).key("instances").index(i),
                "not an address",
                "host:port, like `worker-1:9464`",
            );
        }
    }
    if keys.console.listen.replace("localhost", "127.0.0.1").parse::<SocketAddr>().is_err() {
        let at = At::of(&["console", "listen"]);
        report.fault(&at, "not an address", "ip:port, like `127.0.0.1:9490` or `0.0.0.0:9490`");
    }
    if let Some(token) = &keys.console.token
        && token.reveal().chars().count() < MIN_TOKEN
    {
        let at = At::of(&["console"]).key(if token.file.is_some() { "token_file" } else { "token" });
        report.fault_with(
            &at,
            Some(MASK.to_owned()),
            "too short",
            format!("at least {MIN_TOKEN} characters, like those of `openssl rand -hex 24`"),
        );
    }
    if let Some(endpoint) = &keys.telemetry.otlp_endpoint {
        check_http_url(endpoint, &At::of(&["telemetry"]).key("otlp_endpoint"), "http://localhost:4317", report);
    }
    let jaeger = At::of(&["telemetry"]).key("jaeger_url");
    check_http_url(&keys.telemetry.jaeger_url, &jaeger, "http://localhost:16686", report);
}

fn check_registry(registry: &Registry, report: &mut Report<'_>) {
    let at = At::of(&["registry"]);
    for (i, url) in registry.urls.iter().enumerate() {
        check_http_url(url, &at.key("urls").index(i), "http://localhost:8081", report);
    }
    let token = at.key(if registry.token.as_ref().is_some_and(|t| t.file.is_some()) { "token_file" } else { "token" });
    let has_user = registry.user.is_some() || registry.urls.iter().any(|u| !u.url().username().is_empty());
    if registry.token.is_some() && has_user {
        report.fault_with(&token, Some(MASK.to_owned()), "there is a user, too", "either a token or a user");
    }
    if registry.password.is_some() && registry.user.is_none() {
        report.fault_with(&at.key("user"), None, "a password without its user", "the user, or no password");
    }
    check_ca(registry.ca.as_deref(), &at, report);
}

fn check_ca(ca: Option<&Path>, at: &At, report: &mut Report<'_>) {
    if let Some(ca) = ca.filter(|ca| !ca.is_file()) {
        let problem = "there is no such file";
        report.fault_with(&at.key("ca"), Some(ca.display().to_string()), problem, "a PEM file of certificates");
    }
}

fn check_http_url(endpoint: &Endpoint, at: &At, example: &str, report: &mut Report<'_>) {
    let url = endpoint.url();
    match url.scheme() {
        "https" if cfg!(not(feature = "tls")) => {
            report.fault(at, "this build has no TLS", "a build with the feature `tls`, or http://");
        }
        "http" | "https" if url.has_host() => {}
        _ => report.fault(at, "not a url of HTTP", format!("a url like {example}")),
    }
}

fn is_kafka_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_TOPIC
        && !matches!(name, "." | "..")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// One pipeline with its names filled in.
fn pipeline(name: &str, keys: &PipelineKeys, has_registry: bool, report: &mut Report<'_>) -> Pipeline {
    let at = At::of(&["pipelines", name]);
    let group = keys.group.clone().unwrap_or_else(|| name.to_owned());
    let derived = |stage: &str| format!("{}.{group}.{stage}", keys.topic);
    let retries: Vec<Retry> = (1..)
        .zip(&keys.retries)
        .map(|(i, rung)| Retry {
            delay: rung.delay,
            jitter: rung.jitter.0,
            topic: rung.name.clone().unwrap_or_else(|| derived(&format!("retry-{i}"))),
            concurrency: rung.concurrency,
        })
        .collect();
    let idempotency = &keys.idempotency;
    let pipeline = Pipeline {
        name: name.to_owned(),
        topic: keys.topic.clone(),
        message: keys.message.clone(),
        descriptor_set: keys.descriptor_set.clone(),
        framing: keys.framing,
        partitions: keys.partitions,
        replication: keys.replication,
        retries,
        retention: keys.retention,
        dlq: Dlq {
            topic: keys.dlq.name.clone().unwrap_or_else(|| derived("dlq")),
            retention: keys.dlq.retention,
            webhook: keys.dlq.webhook.clone(),
            webhook_every: keys.dlq.webhook_every,
        },
        concurrency: keys.concurrency,
        order: keys.order,
        forward: keys.forward,
        order_patience: keys.order_patience,
        order_room: keys.order_room,
        tombstones: keys.tombstones,
        max_event_age: keys.max_event_age,
        event_id: keys.event_id.clone(),
        idempotency: Idempotency {
            store: idempotency.store,
            lease: idempotency.lease,
            done_ttl: idempotency.done_ttl,
            handed_ttl: idempotency.handed_ttl.unwrap_or(idempotency.done_ttl),
            on_unavailable: idempotency.on_unavailable,
        },
        handler: keys.handler.clone(),
        handler_timeout: keys.handler_timeout,
        window: keys.window.clone(),
        breaker: keys.breaker.clone(),
        brake: keys.brake.clone(),
        max_deferrals: keys.max_deferrals,
        compat_headers: keys.compat_headers.clone(),
        allow_unsafe_topics: keys.allow_unsafe_topics,
        group,
    };
    check_names(&pipeline, keys, &at, report);
    let readable = readable(&pipeline, &at, report);
    check_ladder(&pipeline, &readable, &at, report);
    check_times(&pipeline, keys, &readable, &at, report);
    check_outage(&pipeline, &at, report);
    super::order::check(&pipeline, &at, report);
    check_message(&pipeline, has_registry, &at, report);
    check_handler(&pipeline, &at.key("handler"), report);
    pipeline
}

fn check_names(pipeline: &Pipeline, keys: &PipelineKeys, at: &At, report: &mut Report<'_>) {
    let remedy = "a name of Kafka: at most 249 letters, digits, `.`, `_`, `-`";
    let topic_is_good = is_kafka_name(&pipeline.topic);
    if report.clean(&at.key("topic")) && !topic_is_good {
        report.fault(&at.key("topic"), "not a topic name", remedy);
    }
    let group_is_good = is_kafka_name(&pipeline.group);
    if report.clean(&at.key("group")) && !group_is_good {
        report.fault_with(
            &at.key("group"),
            Some(pipeline.group.clone()),
            "not a name that topics can be made from",
            remedy,
        );
    }
    let rungs = pipeline.retries.iter().zip(&keys.retries).enumerate();
    let by_hand = rungs.map(|(i, (r, k))| (at.key("retries").index(i).key("name"), &r.topic, k.name.is_some()));
    for (at, topic, by_hand) in
        by_hand.chain([(at.key("dlq").key("name"), &pipeline.dlq.topic, keys.dlq.name.is_some())])
    {
        // What is wrong with topic and group is told; the names made from them follow.
        if is_kafka_name(topic) || !(by_hand || topic_is_good && group_is_good) {
            continue;
        }
        let problem = if by_hand { "not a topic name" } else { "the name made from topic and group is too long" };
        report.fault_with(&at, Some(topic.clone()), problem, remedy);
    }
}

/// The stages whose delay has no fault, each with its place: an unreadable one hides nothing about the others.
fn readable<'p>(pipeline: &'p Pipeline, at: &At, report: &Report<'_>) -> Vec<(usize, &'p Retry)> {
    let retries = pipeline.retries.iter().enumerate();
    retries.filter(|(i, _)| report.clean(&at.key("retries").index(*i).key("delay"))).collect()
}

/// Delays rise; every stage has a topic of its own.
fn check_ladder(pipeline: &Pipeline, readable: &[(usize, &Retry)], at: &At, report: &mut Report<'_>) {
    let retries = at.key("retries");
    if pipeline.retries.len() > MAX_RETRIES {
        let problem = format!("{} retry stages", pipeline.retries.len());
        report.fault(&retries, problem, format!("at most {MAX_RETRIES}"));
    }
    for pair in readable.windows(2) {
        let ((_, before), (i, retry)) = (pair[0], pair[1]);
        if retry.delay <= before.delay {
            let before = show_duration(before.delay);
            report.fault(
                &retries.index(i).key("delay"),
                format!("not longer than the delay before it, {before}"),
                format!("more than {before}: delays rise strictly from stage to stage"),
            );
        }
    }
    let mut seen: HashMap<&str, String> = HashMap::from([(pipeline.topic.as_str(), "main".to_owned())]);
    for (i, (stage, topic)) in pipeline.stages().into_iter().enumerate().skip(1) {
        let here = if stage == "dlq" { at.key("dlq").key("name") } else { retries.index(i - 1).key("name") };
        if let Some(other) = seen.get(topic) {
            let problem = format!("{stage} has the topic of {other}");
            report.fault_with(&here, Some(topic.to_owned()), problem, "a topic of its own for each stage");
        }
        seen.insert(topic, stage);
    }
}

fn check_times(
    pipeline: &Pipeline,
    keys: &PipelineKeys,
    readable: &[(usize, &Retry)],
    at: &At,
    report: &mut Report<'_>,
) {
    // At least so long, when a delay is faulty: too short for that is too short for all.
    let ladder = ladder_length(readable.iter().map(|(_, retry)| *retry));
    let longest = readable.iter().map(|(_, retry)| retry.delay).max().unwrap_or_default();
    let needed = ladder.max(longest.saturating_mul(2));
    let retention = at.key("retention");
    if report.clean(&retention) && pipeline.retention <= needed {
        report.fault_with(
            &retention,
            Some(show_duration(pipeline.retention)),
            "events could be deleted while they wait: not longer than the ladder and twice its longest delay",
            format!("more than {}", show_duration(needed)),
        );
    }
    let idempotency = at.key("idempotency");
    let done_ttl = idempotency.key("done_ttl");
    let least = MIN_DONE_TTL.max(ladder.saturating_mul(2));
    if report.clean(&done_ttl) && pipeline.idempotency.done_ttl < least {
        report.fault_with(
            &done_ttl,
            Some(show_duration(pipeline.idempotency.done_ttl)),
            "finished events would be forgotten while copies of them may still come",
            format!("at least {} (24h or more, and twice the ladder)", show_duration(least)),
        );
    }
    let handed_ttl = idempotency.key("handed_ttl");
    if keys.idempotency.handed_ttl.is_some()
        && report.clean(&done_ttl)
        && report.clean(&handed_ttl)
        && pipeline.idempotency.handed_ttl < pipeline.idempotency.done_ttl
    {
        let remedy = format!("at least done_ttl, {}, or nothing", show_duration(pipeline.idempotency.done_ttl));
        report.fault(&handed_ttl, "moved events would be forgotten before finished ones", remedy);
    }
}

/// A breaker or a brake that never works is worse than none.
fn check_outage(pipeline: &Pipeline, at: &At, report: &mut Report<'_>) {
    let (breaker, brake) = (&pipeline.breaker, &pipeline.brake);
    for (at, cool_down, max_cool_down) in [
        (at.key("breaker"), breaker.cool_down, breaker.max_cool_down),
        (at.key("brake"), brake.cool_down, brake.max_cool_down),
    ] {
        let max = at.key("max_cool_down");
        if report.clean(&at.key("cool_down")) && report.clean(&max) && max_cool_down < cool_down {
            let remedy = format!("at least cool_down, {}", show_duration(cool_down));
            report.fault_with(&max, Some(show_duration(max_cool_down)), "shorter than the first cool-down", remedy);
        }
    }
    let at = at.key("breaker");
    if report.clean(&at) && breaker.enabled && breaker.slow_failures > breaker.consecutive_failures {
        let problem = "more than consecutive_failures: the rule for rare events would never be the first to open it";
        let remedy = format!("at most {}", breaker.consecutive_failures);
        report.fault_with(&at.key("slow_failures"), Some(breaker.slow_failures.to_string()), problem, remedy);
    }
    if report.clean(&at) && breaker.enabled && breaker.slow_time < breaker.min_time {
        let remedy = format!("at least min_time, {}", show_duration(breaker.min_time));
        let slow_time = Some(show_duration(breaker.slow_time));
        report.fault_with(&at.key("slow_time"), slow_time, "shorter than min_time", remedy);
    }
}

fn check_message(pipeline: &Pipeline, has_registry: bool, at: &At, report: &mut Report<'_>) {
    let is_ident = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let message = at.key("message");
    let remedy = "package and message, like `shop.v1.OrderPlaced`";
    match &pipeline.message {
        _ if !report.clean(&message) => {}
        Some(name) if !name.split('.').all(is_ident) => {
            report.fault(&message, "not the full name of a message", remedy);
        }
        None if pipeline.framing == Framing::Confluent && has_registry => {
            if let EventId::Field(path) = &pipeline.event_id {
                let problem =
                    "ids are read before any schema is looked up, so the field's message has to be known here";
                let remedy = "`message`, of the built-in protos or of `descriptor_set`; or ids from a header";
                report.fault_with(&at.key("event_id").key("field"), Some(path.clone()), problem, remedy);
            }
        }
        None if pipeline.framing == Framing::Confluent => {
            report.fault_with(&message, None, "missing, and there is no registry to ask", remedy);
        }
        None => report.fault_with(&message, None, "missing", remedy),
        Some(_) => {}
    }
    if let Some(file) = &pipeline.descriptor_set
        && !file.is_file()
    {
        let remedy =
            "a file made by `protoc --include_imports --descriptor_set_out=FILE`, seen from the working directory";
        report.fault(&at.key("descriptor_set"), "there is no such file", remedy);
    }
    if let Some(webhook) = &pipeline.dlq.webhook {
        let at = at.key("dlq").key(if webhook.file.is_some() { "webhook_file" } else { "webhook" });
        check_http_url(webhook, &at, "https://chat.example/hooks/1", report);
    }
    let event_id = at.key("event_id");
    match &pipeline.event_id {
        EventId::Header(names) if names.is_empty() => {
            report.fault(&event_id.key("header"), "empty", "at least one header name, or leave event_id out");
        }
        EventId::Header(names) if names.iter().any(|n| n == "ce_source") => {
            let remedy = "ce_id, which is taken together with ce_source";
            report.fault(&event_id.key("header"), "ce_source alone names no event", remedy);
        }
        EventId::Field(path) if !path.split('.').all(is_ident) => {
            report.fault(&event_id.key("field"), "not the name of a field", "a field, like `unique_id` or `meta.id`");
        }
        _ => {}
    }
}

fn check_handler(pipeline: &Pipeline, at: &At, report: &mut Report<'_>) {
    match &pipeline.handler {
        Handler::Http(http) => check_http(http, pipeline, &at.key("http"), report),
        Handler::Postgres(postgres) => super::postgres::check(postgres, pipeline, &at.key("postgres"), report),
        Handler::Simulate(simulate) => {
            let at = at.key("simulate");
            let sum = simulate.dead_ratio.0 + simulate.permanent_ratio.0;
            if report.clean(&at) && sum > 1.0 {
                let problem =
                    format!("dead_ratio and permanent_ratio are shares of the failing events and add up to {sum}");
                report.fault(&at.key("dead_ratio"), problem, "together at most 1");
            }
        }
        Handler::Log(_) => {}
    }
}

fn check_http(http: &HttpHandler, pipeline: &Pipeline, at: &At, report: &mut Report<'_>) {
    let url = at.key(if http.url.file.is_some() { "url_file" } else { "url" });
    check_http_url(&http.url, &url, "http://localhost:8080/orders", report);
    check_ca(http.ca.as_deref(), at, report);
    let timeout = at.key("timeout");
    if report.clean(&timeout) && http.timeout > pipeline.handler_timeout {
        report.fault_with(
            &timeout,
            Some(show_duration(http.timeout)),
            "longer than handler_timeout, which would cancel it before",
            format!("at most {}, or a longer handler_timeout", show_duration(pipeline.handler_timeout)),
        );
    }
    for (name, value) in http.headers.reveal() {
        let file = http.headers.0.get(name).is_some_and(|p| p.file.is_some());
        let here = at.key("headers").key(&if file { format!("{name}_file") } else { name.to_owned() });
        if reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
            report.fault(&here, "not a header name", "letters, digits and hyphens");
        } else if reqwest::header::HeaderValue::from_str(value).is_err() {
            report.fault(&here, "holds a character that a header cannot carry", "one line of printable text");
        }
    }
}

/// What no two pipelines may share.
fn check_shared(pipelines: &[Pipeline], report: &mut Report<'_>) {
    let mut ladders: HashMap<(&str, &str), &str> = HashMap::new();
    let mut topics: HashMap<&str, (&str, String)> = HashMap::new();
    for pipeline in pipelines {
        let at = At::of(&["pipelines", &pipeline.name]);
        if !report.clean(&at.key("topic")) {
            continue;
        }
        let key = (pipeline.topic.as_str(), pipeline.group.as_str());
        if let Some(other) = ladders.insert(key, &pipeline.name) {
            report.fault_with(
                &at.key("group"),
                Some(pipeline.group.clone()),
                format!("pipeline {other} has the same topic, {}, and the same group", pipeline.topic),
                "a group of its own for each pipeline on a topic",
            );
            continue; // every topic made from them is the same, too
        }
        for (i, (stage, topic)) in pipeline.stages().into_iter().enumerate().skip(1) {
            let here = match stage.as_str() {
                "dlq" => at.key("dlq").key("name"),
                _ => at.key("retries").index(i - 1).key("name"),
            };
            if let Some((other, its)) = topics.get(topic).filter(|(other, _)| *other != pipeline.name) {
                report.fault_with(
                    &here,
                    Some(topic.to_owned()),
                    format!(
                        "{stage} has the topic of {its} in pipeline {other}: each would execute the other's events"
                    ),
                    "a topic of its own for each stage of each pipeline",
                );
            }
            topics.insert(topic, (&pipeline.name, stage));
        }
    }
    for main in pipelines {
        let at = At::of(&["pipelines", &main.name, "topic"]);
        if let Some((other, stage)) = topics.get(main.topic.as_str())
            && *other != main.name
            && stage != "dlq"
        {
            let problem = format!("the main topic is {stage} in pipeline {other}, whose events wait there");
            report.fault(&at, problem, "a main topic that is no retry topic");
        }
    }
}
