//! `pipeline topics` and the check at start-up against a real Kafka.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, util::Timeout};

use retry_ladder::adapters::kafka::admin::plan::{PipelineTopics, RetryTopic, known_topics};
use retry_ladder::adapters::kafka::admin::startup::{StartupOptions, StartupReport, startup_check};
use retry_ladder::adapters::kafka::admin::{Admin, Connection, Error, TopicState};
use retry_ladder::cli::topics::{CommonArgs, TopicsCommand, run};

use crate::support::{client_config, connection, create_topic, unique};

const TIMEOUT: Duration = Duration::from_secs(20);
const OPTIONS: StartupOptions = StartupOptions { timeout: TIMEOUT, allow_unsafe_topics: false };

/// Two retry stages over three partitions, names of its own.
fn pipeline() -> PipelineTopics {
    let topic = unique("topics");
    let retry = |n: u64| RetryTopic {
        name: format!("retry-{n}"),
        topic: format!("{topic}.billing.retry-{n}"),
        delay: Duration::from_secs(5 * n),
    };
    PipelineTopics {
        pipeline: "orders".into(),
        group: "billing".into(),
        partitions: 3,
        replication: 1,
        retries: vec![retry(1), retry(2)],
        retention: Duration::from_secs(86_400),
        dlq_topic: format!("{topic}.billing.dlq"),
        dlq_retention: Duration::from_secs(2 * 86_400),
        topic,
    }
}

fn create(add_partitions: bool) -> TopicsCommand {
    TopicsCommand::Create { common: CommonArgs::default(), add_partitions }
}

fn check() -> TopicsCommand {
    TopicsCommand::Check { common: CommonArgs::default() }
}

/// Exit code, standard output with the topic's unique name cut off, standard error.
async fn call(command: &TopicsCommand, pipeline: &PipelineTopics) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let pipelines = std::slice::from_ref(pipeline);
    let code = run(command, connection(), TIMEOUT, pipelines, &mut out, &mut err).await.expect("run");
    let out = String::from_utf8(out).expect("utf-8").replace(&pipeline.topic, "T");
    let lines: Vec<_> = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    (code, lines.join("\n"), String::from_utf8(err).expect("utf-8"))
}

async fn start(pipeline: &PipelineTopics, options: StartupOptions) -> Result<StartupReport, Error> {
    let admin = Admin::new(connection())?;
    let pipelines = std::slice::from_ref(pipeline);
    startup_check(&admin, pipelines, &known_topics(pipelines), options).await
}

async fn states(pipeline: &PipelineTopics) -> BTreeMap<String, TopicState> {
    let admin = Admin::connect(connection(), TIMEOUT).await.expect("connect");
    admin.describe(&known_topics(std::slice::from_ref(pipeline))).await.expect("describe")
}

/// Puts `count` records into partition 0.
fn produce(topic: &str, count: usize) {
    let producer: BaseProducer = client_config().create().expect("producer");
    for _ in 0..count {
        let record = BaseRecord::<(), _>::to(topic).partition(0).payload("x");
        producer.send(record).map_err(|(e, _)| e).expect("send");
    }
    producer.flush(Timeout::After(TIMEOUT)).expect("flush");
}

fn commit(topic: &str, group: &str, offset: i64) {
    let consumer: BaseConsumer = client_config().set("group.id", group).create().expect("consumer");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("offset");
    consumer.commit(&offsets, CommitMode::Sync).expect("commit");
}

#[tokio::test]
async fn topics_are_created_from_nothing_and_a_second_run_finds_them_ok() {
    let pipeline = pipeline();

    let (code, out, err) = call(&check(), &pipeline).await;
    assert_eq!(code, 1, "{err}");
    assert_eq!(
        out,
        "T missing\nT.billing.retry-1 missing\nT.billing.retry-2 missing\nT.billing.dlq missing\nT.billing.control missing\nT.billing.redrive missing"
    );
    assert!(err.contains("scripts/create-topics.sh"), "{err}");
    let error = start(&pipeline, OPTIONS).await.expect_err("topics are missing");
    assert_eq!(error.exit_code(), 69, "{error}");

    let (code, out, err) = call(&create(false), &pipeline).await;
    assert_eq!(
        out,
        "T created\nT.billing.retry-1 created\nT.billing.retry-2 created\nT.billing.dlq created\nT.billing.control created\nT.billing.redrive created"
    );
    assert_eq!((code, err.as_str()), (0, ""));

    for command in [create(false), create(true), check()] {
        let (code, out, err) = call(&command, &pipeline).await;
        assert_eq!(
            out,
            "T ok\nT.billing.retry-1 ok\nT.billing.retry-2 ok\nT.billing.dlq ok\nT.billing.control ok\nT.billing.redrive ok"
        );
        assert_eq!((code, err.as_str()), (0, ""));
    }

    let TopicState::Exists(retry) = &states(&pipeline).await[&pipeline.retries[0].topic] else { panic!("missing") };
    let configs = retry.configs.as_ref().expect("readable");
    assert_eq!(retry.partitions, 3);
    assert_eq!(configs["cleanup.policy"], "delete");
    assert_eq!(configs["message.timestamp.type"], "LogAppendTime");
    assert_eq!(configs["retention.ms"], "86400000");
    assert_eq!(configs["retention.bytes"], "-1");

    let report = start(&pipeline, OPTIONS).await.expect("all is well");
    assert_eq!(report.warnings, [""; 0]);
    assert_eq!(
        report.partitions.values().collect::<Vec<_>>(),
        [&3, &1, &3, &1, &3, &3],
        "control and redrive have one"
    );
}

#[tokio::test]
async fn a_compacted_retry_topic_differs_and_stops_the_start() {
    let pipeline = pipeline();
    create_topic(&pipeline.retries[0].topic, 3, &[("cleanup.policy", "compact")]).await;

    let (code, out, err) = call(&create(false), &pipeline).await;
    assert_eq!(code, 1);
    let retry = out.lines().nth(1).expect("a line for retry-1");
    assert!(
        retry.starts_with("T.billing.retry-1 differs: cleanup.policy is compact, should be delete; retention.ms is"),
        "{retry}"
    );
    assert!(retry.contains("message.timestamp.type is CreateTime, should be LogAppendTime"), "{retry}");
    assert!(err.contains("--add-config cleanup.policy=delete"), "{err}");

    let error = start(&pipeline, OPTIONS).await.expect_err("unsafe");
    assert_eq!(error.exit_code(), 64, "{error}");
    assert!(error.to_string().contains("cleanup.policy is compact, should be delete"), "{error}");

    let allowed = start(&pipeline, StartupOptions { allow_unsafe_topics: true, ..OPTIONS }).await.expect("allowed");
    assert!(allowed.warnings[0].starts_with("unsafe: "), "{:?}", allowed.warnings);
    let TopicState::Exists(actual) = &states(&pipeline).await[&pipeline.retries[0].topic] else { panic!("missing") };
    assert_eq!(actual.configs.as_ref().expect("readable")["cleanup.policy"], "compact", "nothing was altered");
}

#[tokio::test]
async fn retry_topics_follow_a_main_topic_that_exists_and_are_raised_on_request_only() {
    let pipeline = pipeline();
    create_topic(&pipeline.topic, 5, &[("max.message.bytes", "3000000")]).await;
    let settings = [("message.timestamp.type", "LogAppendTime"), ("retention.ms", "86400000")];
    create_topic(&pipeline.retries[0].topic, 2, &settings).await;

    let (code, out, _) = call(&create(false), &pipeline).await;
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "T differs: partitions is 5, should be 3\n\
         T.billing.retry-1 differs: partitions is 2, should be 5; max.message.bytes is 1048588, should be at least \
         3000000\n\
         T.billing.retry-2 created\n\
         T.billing.dlq created\n\
         T.billing.control created\nT.billing.redrive created"
    );

    let (code, out, _) = call(&create(true), &pipeline).await;
    assert_eq!(code, 1, "main and the size still differ");
    let retry = out.lines().nth(1).expect("a line for retry-1");
    assert_eq!(
        retry,
        "T.billing.retry-1 differs: max.message.bytes is 1048588, should be at least 3000000 (partitions raised from \
         2 to 5)"
    );
    let states = states(&pipeline).await;
    for (topic, partitions) in [
        (&pipeline.topic, 5),
        (&pipeline.retries[0].topic, 5),
        (&pipeline.retries[1].topic, 5),
        (&pipeline.dlq_topic, 5),
    ] {
        let TopicState::Exists(actual) = &states[topic] else { panic!("{topic} is missing") };
        assert_eq!(actual.partitions, partitions, "{topic}");
    }
}

#[tokio::test]
async fn an_orphan_is_listed_until_its_group_has_consumed_it() {
    let pipeline = pipeline();
    call(&create(false), &pipeline).await;
    let orphan = format!("{}.billing.retry-9", pipeline.topic);
    create_topic(&orphan, 1, &[]).await;
    // Another group's rung, though its name begins alike.
    let other = format!("{}.billing.eu.retry-1", pipeline.topic);
    create_topic(&other, 1, &[]).await;
    produce(&other, 1);
    let group = "billing.retry-9";

    assert!(!call(&check(), &pipeline).await.1.contains("orphan"), "an empty topic is none");

    produce(&orphan, 5);
    let (code, out, _) = call(&check(), &pipeline).await;
    assert_eq!(code, 0, "nothing differs");
    assert!(out.contains("T.billing.retry-9 orphan: 5 messages that group billing.retry-9 has not consumed"), "{out}");
    assert!(!out.contains("eu"), "{out}");

    commit(&orphan, group, 3);
    assert!(call(&check(), &pipeline).await.1.contains("orphan: 2 messages"));
    let warnings = start(&pipeline, OPTIONS).await.expect("starts").warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(&format!("--stage orphan:{orphan}")), "{warnings:?}");

    commit(&orphan, group, 5);
    assert!(!call(&check(), &pipeline).await.1.contains("orphan"));
}

#[tokio::test]
async fn the_list_counts_messages() {
    let pipeline = pipeline();
    call(&create(false), &pipeline).await;
    produce(&pipeline.retries[0].topic, 7);
    let common = CommonArgs { json: true, ..CommonArgs::default() };
    let (code, out, err) = call(&TopicsCommand::List { common }, &pipeline).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON alone on standard output");
    let row = &value["topics"][1];
    assert_eq!(row["topic"], "T.billing.retry-1");
    assert_eq!(row["partitions"], 3);
    assert_eq!(row["retention_ms"], 86_400_000);
    assert_eq!(row["delay_ms"], 5_000);
    assert_eq!(row["messages"], 7);
    assert_eq!(value["topics"][0]["messages"], 0);
}

#[tokio::test]
async fn creators_that_race_all_succeed_and_each_topic_is_created_once() {
    let pipeline = pipeline();
    let command = create(false);
    // Each has clients and connections of its own.
    let results = futures::future::join_all((0..6).map(|_| call(&command, &pipeline))).await;
    let mut created = 0;
    for (code, out, err) in results {
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert_eq!(out.lines().count(), 6, "{out}");
        created += out.matches("created").count();
    }
    assert_eq!(created, 6);
}

#[tokio::test]
async fn a_replication_that_the_cluster_cannot_give_is_refused_with_the_number_of_brokers() {
    let mut pipeline = pipeline();
    pipeline.replication = 99;
    let (code, out, _) = call(&create(false), &pipeline).await;
    assert_eq!(code, 1);
    for line in out.lines() {
        assert!(line.contains("refused: replication 99 needs as many brokers, the cluster has "), "{line}");
    }
}

#[tokio::test]
async fn looking_does_not_create() {
    let pipeline = pipeline();
    call(&check(), &pipeline).await;
    call(&TopicsCommand::List { common: CommonArgs::default() }, &pipeline).await;
    assert!(states(&pipeline).await.values().all(|state| *state == TopicState::Missing));
}

#[tokio::test]
async fn an_unreachable_broker_is_an_error_within_the_timeout_that_says_why() {
    let nobody = Connection { brokers: "127.0.0.1:1".into(), properties: BTreeMap::new() };
    let begun = Instant::now();
    let admin = Admin::new(nobody).expect("clients");
    let options = StartupOptions { timeout: Duration::from_secs(2), ..OPTIONS };
    let error = startup_check(&admin, &[pipeline()], &known_topics(&[]), options).await.expect_err("nobody answers");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(error.exit_code(), 69);
    let text = error.to_string();
    assert!(text.starts_with("kafka not reachable at 127.0.0.1:1 within 2s: "), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
}

#[tokio::test]
async fn a_refused_client_setting_names_the_key_and_hides_the_value() {
    let properties = BTreeMap::from([("sasl.pasword".to_owned(), "hunter2".to_owned())]);
    let error = Admin::new(Connection { properties, ..connection() }).expect_err("a typing error");
    assert_eq!(error.exit_code(), 64);
    let text = error.to_string();
    assert!(text.contains("sasl.pasword") && !text.contains("hunter2"), "{text}");
}
