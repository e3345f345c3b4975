//! Where the services are, and names that nobody else uses.

pub(crate) mod acls;
pub(crate) mod kafka_server;
pub(crate) mod network;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use retry_ladder::adapters::kafka::admin::Connection;

/// The brokers of the real Kafka.
///
/// # Panics
/// When `KAFKA_BROKERS` is not set.
pub(crate) fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").unwrap_or_else(|_| {
        panic!(
            "KAFKA_BROKERS is not set: this test needs a real Kafka; start one with `scripts/services up`, \
             then set KAFKA_BROKERS=localhost:9092"
        )
    })
}

/// The url of the real Redis.
///
/// # Panics
/// When `REDIS_URL` is not set.
pub(crate) fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| {
        panic!(
            "REDIS_URL is not set: this test needs a real Redis; start one with `scripts/services up`, \
             then set REDIS_URL=redis://localhost:6379/0"
        )
    })
}

/// The url of the real schema registry, up to what comes before `/schemas`.
///
/// # Panics
/// When `SCHEMA_REGISTRY_URL` is not set.
pub(crate) fn registry_url() -> String {
    std::env::var("SCHEMA_REGISTRY_URL").unwrap_or_else(|_| {
        panic!(
            "SCHEMA_REGISTRY_URL is not set: this test needs a real schema registry; start one with \
             `scripts/services up registry`, then set SCHEMA_REGISTRY_URL=http://localhost:8081/apis/ccompat/v7"
        )
    })
}

/// How to reach the real Kafka.
pub(crate) fn connection() -> Connection {
    Connection { brokers: brokers(), properties: BTreeMap::new() }
}

/// A time that is promised of a machine with nothing else to do, and measured where `LADDER_QUIET` is set. Elsewhere a
/// busy machine's own slowness would be measured: there only that it comes to pass at all, within 90 s.
pub(crate) fn promised(time: Duration) -> Duration {
    if std::env::var_os("LADDER_QUIET").is_some() { time } else { time.max(Duration::from_secs(90)) }
}

/// A name that is new in every call and run.
pub(crate) fn unique(stem: &str) -> String {
    format!("live-{stem}-{:012x}", fastrand::u64(..1 << 48))
}

/// librdkafka's settings for a client made by a test, none of ours involved.
pub(crate) fn client_config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers());
    config
}

/// Creates a topic behind the library's back.
pub(crate) async fn create_topic(name: &str, partitions: i32, configs: &[(&str, &str)]) {
    let client: AdminClient<DefaultClientContext> = client_config().create().expect("admin client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = configs.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let results = client.create_topics([&topic], &options).await.expect("create topics");
    assert_eq!(results, [Ok(name.to_owned())]);
}

/// Deletes a topic, and waits until the cluster has none of this name.
pub(crate) async fn delete_topic(name: &str) {
    let client: AdminClient<DefaultClientContext> = client_config().create().expect("admin client");
    let options = AdminOptions::new().operation_timeout(Some(std::time::Duration::from_secs(10)));
    let results = client.delete_topics(&[name], &options).await.expect("delete topics");
    assert_eq!(results, [Ok(name.to_owned())]);
    let limit = std::time::Duration::from_secs(60);
    let begun = std::time::Instant::now();
    let exists = || {
        let all = client.inner().fetch_metadata(None, limit).expect("metadata");
        all.topics().iter().any(|topic| topic.name() == name)
    };
    while exists() {
        assert!(begun.elapsed() < limit, "{name} is there still");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
