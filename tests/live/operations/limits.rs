//! Limits that people hit: events that are too old to be tried again, and topics that delete what nobody has handled.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::harness::{LIMIT, Ladder, now, until};
use crate::support::{client_config, create_topic, unique};

/// Writes an event to main that is as old as it says.
fn produce(topic: &str, id: &str, age: Duration) {
    let producer: BaseProducer = client_config().create().expect("a producer");
    let written = now().floor_millis() - u64::try_from(age.as_millis()).expect("a short time");
    let headers = OwnedHeaders::new().insert(Header { key: "x-ladder-event-id", value: Some(id) });
    let record = BaseRecord::<(), _>::to(topic).partition(0).payload(&[][..]).headers(headers);
    producer.send(record.timestamp(i64::try_from(written).expect("before 292 million years"))).expect("sent");
    producer.flush(LIMIT).expect("acknowledged");
}

/// What the DLQ holds: event id to (error's class, attempts).
fn dead_letters(topic: &str) -> BTreeMap<String, (String, String)> {
    let consumer: BaseConsumer = client_config().set("group.id", unique("reader")).create().expect("a consumer");
    let (low, high) = consumer.fetch_watermarks(topic, 0, LIMIT).expect("watermarks");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("assign");
    let mut letters = BTreeMap::new();
    for _ in low..high {
        let message = consumer.poll(LIMIT).expect("a dead letter").expect("readable");
        let header = |key: &str| {
            let value = message.headers().and_then(|all| all.iter().find(|h| h.key == key)?.value);
            String::from_utf8(value.expect(key).to_vec()).expect("text")
        };
        let class = header("x-ladder-error").split(':').next().expect("a class").to_owned();
        letters.insert(header("x-ladder-event-id"), (class, header("x-ladder-attempt")));
    }
    letters
}

#[test]
fn an_event_that_is_too_old_when_it_fails_goes_to_the_dlq_as_expired() {
    let mut ladder = Ladder::created(1);
    ladder.pipeline()["max_event_age"] = "10m".into();
    ladder.pipeline()["handler"]["simulate"] = json!({ "fail_ratio": 1, "dead_ratio": 1, "permanent_ratio": 0 });
    produce(&ladder.topic("main"), "old", Duration::from_secs(3_600));
    produce(&ladder.topic("main"), "fresh", Duration::ZERO);
    let worker = ladder.start("worker", &[]);
    until("both are dead", || dead_letters(&ladder.topic("dlq")).len() == 2, || worker.log());
    let letter = |class: &str, attempts: &str| (class.to_owned(), attempts.to_owned());
    let expected =
        BTreeMap::from([("old".to_owned(), letter("expired", "1")), ("fresh".to_owned(), letter("exhausted", "3"))]);
    assert_eq!(dead_letters(&ladder.topic("dlq")), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unprocessed_event_that_nears_its_topics_retention_raises_an_alarm_everywhere() {
    let mut ladder = Ladder::new(1);
    create_topic(&ladder.topic("main"), 1, &[("retention.ms", "7200000")]).await;
    assert!(ladder.call(&["topics", "create"]).status.success());
    // Held by a handler that does not return: in memory, and not done.
    ladder.simulate("latency", "1h");
    ladder.pipeline()["handler_timeout"] = "2h".into();
    ladder.config["kafka"]["drain_timeout"] = "1s".into();
    ladder.config["admin"] = json!({ "listen": "127.0.0.1:0" });
    let seen = |ladder: &Ladder, arguments: &[&str]| {
        String::from_utf8(ladder.call(&[&["status"], arguments].concat()).stdout).expect("text")
    };
    let main = |ladder: &Ladder| {
        let json: Value = serde_json::from_str(&seen(ladder, &["--json"])).expect("json");
        json["pipelines"][0]["stages"][0].clone()
    };

    let quiet = main(&ladder);
    assert_eq!((&quiet["oldest_unprocessed_ms"], &quiet["retention_alarm"]), (&json!(0), &Value::Null), "{quiet}");
    assert_eq!(quiet["retention_ms"], 7_200_000);

    // Past half, with nobody running.
    produce(&ladder.topic("main"), "first", Duration::from_secs(70 * 60));
    let half = main(&ladder);
    assert_eq!(half["retention_alarm"], "warning", "{half}");
    let age = half["oldest_unprocessed_ms"].as_u64().expect("a number");
    assert!((4_200_000..4_800_000).contains(&age), "{half}");

    // Past 80 %, held by a process.
    produce(&ladder.topic("main"), "second", Duration::from_secs(110 * 60));
    let worker = ladder.start("worker", &["--stage", "main"]);
    until("it is held", || worker.starts().len() == 2, || worker.log());
    let told = || worker.log().lines().filter(|line| line.contains("is about to be deleted")).count();
    until("the log says so", || told() > 0, || worker.log());
    assert_eq!(told(), 1, "once: {}", worker.log());
    let log = worker.log();
    let line = log.lines().find(|line| line.contains("is about to be deleted")).expect("a line");
    assert!(line.contains("ERROR") && line.contains("of 2h") && line.contains("lag=2"), "{line}");

    let address = log.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://{address}{path}")).await.expect("an answer");
        answer.text().await.expect("a body")
    };
    let status: Value = serde_json::from_str(&get("/status").await).expect("json");
    let stage = &status["stages"][0];
    assert_eq!((&stage["retention_alarm"], &stage["retention_ms"]), (&json!("critical"), &json!(7_200_000)), "{stage}");
    let metrics = get("/metrics").await;
    let gauge = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{"))).expect(name);
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    };
    assert_eq!(gauge("ladder_retention_seconds"), 7_200.0);
    let age = gauge("ladder_oldest_unprocessed_seconds");
    assert!((6_600.0..7_200.0).contains(&age), "the older one, though it came later: {age}");
    let table = seen(&ladder, &[]);
    assert!(table.contains("! main: the oldest event that is not done has used 1h"), "{table}");
}
