//! The command's arguments and output, without a cluster.

use clap::Parser;

use super::*;
use crate::adapters::kafka::admin::plan::{ActualTopic, RetryTopic, compare, plan};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    topics: TopicsArgs,
}

fn pipeline() -> PipelineTopics {
    PipelineTopics {
        pipeline: "orders".into(),
        topic: "orders".into(),
        group: "billing".into(),
        partitions: 6,
        replication: 1,
        retries: vec![RetryTopic {
            name: "retry-1".into(),
            topic: "orders.billing.retry-1".into(),
            delay: Duration::from_secs(5),
        }],
        retention: Duration::from_secs(86_400),
        dlq_topic: "orders.billing.dlq".into(),
        dlq_retention: Duration::from_secs(2 * 86_400),
    }
}

fn report() -> Report {
    let specs = plan(&pipeline());
    let mut configs = specs[1].configs.clone();
    configs.insert("cleanup.policy".into(), "compact".into());
    let compacted = compare(&specs[1], &ActualTopic { partitions: 3, replication: 1, configs: Ok(configs) });
    let topic =
        |i: usize, state| TopicReport { spec: plan(&pipeline()).swap_remove(i), state, raised: None, unread: None };
    let orphan = Orphan {
        pipeline: "orders".into(),
        topic: "orders.billing.retry-9".into(),
        stage: "retry-9".into(),
        group: "billing.retry-9".into(),
        backlog: Some(12),
    };
    let topics = vec![topic(0, State::Ok), topic(1, State::Differs(compacted)), topic(2, State::Created)];
    Report { topics, orphans: vec![orphan] }
}

fn printed(report: &Report, as_json: bool) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = print_report(report, "b:9092", as_json, &mut out, &mut err).unwrap();
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn one_line_per_topic_and_remedies_aside() {
    let (code, out, err) = printed(&report(), false);
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "orders                  ok\n\
         orders.billing.retry-1  differs: cleanup.policy is compact, should be delete; partitions is 3, should be 6\n\
         orders.billing.dlq      created\n\
         orders.billing.retry-9  orphan: 12 messages that group billing.retry-9 has not consumed, no rung of pipeline \
         orders now; drain with --stage orphan:orders.billing.retry-9\n"
    );
    assert_eq!(
        err,
        "orders.billing.retry-1: cleanup.policy (unsafe): compaction removes every event of a key but the last\n  \
         remedy: kafka-configs.sh --bootstrap-server b:9092 --alter --entity-type topics --entity-name \
         orders.billing.retry-1 --add-config cleanup.policy=delete\n\
         orders.billing.retry-1: partitions (differs): events cannot keep their partition number and go by key \
         instead\n  remedy: scripts/create-topics.sh --add-partitions\n"
    );
}

#[test]
fn json_is_one_value_with_the_same_facts() {
    let (code, out, _) = printed(&report(), true);
    assert_eq!(code, 1);
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["topics"][1]["state"], "differs");
    assert_eq!(value["topics"][1]["differences"][0]["what"], "cleanup.policy");
    assert_eq!(value["topics"][1]["differences"][0]["severity"], "unsafe");
    assert_eq!(value["topics"][2]["state"], "created");
    assert_eq!(value["orphans"][0]["backlog"], 12);
}

#[test]
fn orphans_alone_do_not_fail_the_command() {
    let mut report = report();
    report.topics.remove(1);
    assert_eq!(printed(&report, false).0, 0);
}

#[test]
fn the_table_shows_missing_topics_and_unread_settings_as_such() {
    let rows: Vec<Row> = plan(&pipeline())
        .into_iter()
        .enumerate()
        .map(|(i, spec)| {
            let configs = Ok(spec.configs.clone());
            match i {
                0 => Row { actual: None, messages: None, spec },
                1 => Row {
                    actual: Some(ActualTopic { partitions: 6, replication: 1, configs }),
                    messages: Some(1_234),
                    spec,
                },
                _ => Row {
                    actual: Some(ActualTopic {
                        partitions: spec.partitions,
                        replication: 1,
                        configs: Err("no".into()),
                    }),
                    messages: None,
                    spec,
                },
            }
        })
        .collect();
    let mut out = Vec::new();
    list_table(&rows, &[], &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "PIPELINE  STAGE    TOPIC                   PARTITIONS  REPLICATION  RETENTION  DELAY  MESSAGES\n\
         orders    main     orders                     missing            -          -      -         -\n\
         orders    retry-1  orders.billing.retry-1           6            1        24h     5s      1234\n\
         orders    dlq      orders.billing.dlq               6            1          ?      -         ?\n\
         orders    control  orders.billing.control           1            1          ?      -         ?\n\
         orders    redrive  orders.billing.redrive           1            1          ?      -         ?\n"
    );
}

#[test]
fn arguments_are_as_documented() {
    let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.topics.command);
    assert!(matches!(
        parse("pipeline create --add-partitions --json").unwrap(),
        TopicsCommand::Create { add_partitions: true, common } if common.json
    ));
    assert!(matches!(
        parse("pipeline check --pipeline a --pipeline b").unwrap(),
        TopicsCommand::Check { common } if common.pipelines == ["a", "b"]
    ));
    assert!(matches!(parse("pipeline list").unwrap(), TopicsCommand::List { .. }));
    assert!(parse("pipeline check --add-partitions").is_err());
    assert!(parse("pipeline delete").is_err());
}

#[test]
fn an_unknown_pipeline_names_those_that_there_are() {
    let error = choose(&[pipeline()], &["payments".to_owned()]).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert_eq!(error.to_string(), "--pipeline payments: no such pipeline; configured: orders");
}
