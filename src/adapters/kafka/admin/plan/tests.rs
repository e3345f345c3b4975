//! Plan, alignment and comparison, by tables.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn pipeline(replication: i32) -> PipelineTopics {
    let retry = |n: usize, secs: u64| RetryTopic {
        name: format!("retry-{n}"),
        topic: format!("orders.billing.retry-{n}"),
        delay: Duration::from_secs(secs),
    };
    PipelineTopics {
        pipeline: "orders".into(),
        topic: "orders".into(),
        group: "billing".into(),
        partitions: 6,
        replication,
        retries: vec![retry(1, 5), retry(2, 30), retry(3, 300)],
        retention: 7 * DAY,
        dlq_topic: "orders.billing.dlq".into(),
        dlq_retention: 30 * DAY,
    }
}

fn spec(stage: &str, replication: i32) -> TopicSpec {
    plan(&pipeline(replication)).into_iter().find(|spec| spec.stage == stage).unwrap()
}

/// The topic exactly as the plan would create it, with some settings changed.
fn actual(spec: &TopicSpec, changed: &[(&str, &str)]) -> ActualTopic {
    let mut configs = spec.configs.clone();
    configs.extend(changed.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    ActualTopic { partitions: spec.partitions, replication: spec.replication, configs: Ok(configs) }
}

fn texts(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(|d| format!("{}: {d}", d.severity.as_str())).collect()
}

#[test]
fn plan_names_every_stage_in_order_with_its_settings() {
    let specs = plan(&pipeline(1));
    let names: Vec<_> = specs.iter().map(|s| (s.stage.as_str(), s.topic.as_str())).collect();
    assert_eq!(
        names,
        [
            ("main", "orders"),
            ("retry-1", "orders.billing.retry-1"),
            ("retry-2", "orders.billing.retry-2"),
            ("retry-3", "orders.billing.retry-3"),
            ("dlq", "orders.billing.dlq"),
            ("control", "orders.billing.control"),
            ("redrive", "orders.billing.redrive"),
        ]
    );
    let show = |stage: &str, replication| {
        let settings: Vec<_> = spec(stage, replication).configs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        settings.join(" ")
    };
    assert_eq!(
        show("retry-1", 1),
        "cleanup.policy=delete message.timestamp.type=LogAppendTime retention.bytes=-1 retention.ms=604800000"
    );
    assert_eq!(
        show("retry-1", 3),
        "cleanup.policy=delete message.timestamp.type=LogAppendTime min.insync.replicas=2 retention.bytes=-1 \
         retention.ms=604800000"
    );
    assert_eq!(show("main", 1), "cleanup.policy=delete retention.ms=604800000");
    assert_eq!(show("dlq", 1), "cleanup.policy=delete retention.bytes=-1 retention.ms=2592000000");
    assert_eq!(show("control", 1), "cleanup.policy=compact");
    assert_eq!(show("control", 3), "cleanup.policy=compact min.insync.replicas=2");
    assert_eq!(spec("control", 1).partitions, 1);
    assert_eq!(specs[1].ladder_length, Duration::from_secs(335));
}

#[test]
fn a_ladder_without_retries_has_main_and_dlq_only() {
    let mut pipeline = pipeline(1);
    pipeline.retries.clear();
    let stages: Vec<_> = plan(&pipeline).into_iter().map(|spec| spec.stage).collect();
    assert_eq!(stages, ["main", "dlq", "control", "redrive"]);
}

#[test]
fn a_topic_as_planned_does_not_differ() {
    for replication in [1, 3] {
        for spec in plan(&pipeline(replication)) {
            assert_eq!(compare(&spec, &actual(&spec, &[])), [], "{}", spec.topic);
        }
    }
}

#[test]
fn each_changed_setting_is_told_with_its_severity() {
    let check = |stage: &str, replication: i32, changed: &[(&str, &str)], expected: &[&str]| {
        let spec = spec(stage, replication);
        assert_eq!(texts(&compare(&spec, &actual(&spec, changed))), expected, "{stage} {changed:?}");
    };
    check("retry-1", 1, &[("cleanup.policy", "compact")], &["unsafe: cleanup.policy is compact, should be delete"]);
    check(
        "retry-1",
        1,
        &[("cleanup.policy", "compact,delete")],
        &["unsafe: cleanup.policy is compact,delete, should be delete"],
    );
    check("dlq", 1, &[("cleanup.policy", "compact")], &["unsafe: cleanup.policy is compact, should be delete"]);
    check("main", 1, &[("cleanup.policy", "compact"), ("retention.ms", "1")], &[]);
    check("control", 1, &[("cleanup.policy", "delete")], &["differs: cleanup.policy is delete, should be compact"]);
    check("control", 1, &[("retention.ms", "1"), ("max.message.bytes", "10")], &[]);
    check(
        "retry-1",
        1,
        &[("retention.ms", "335000")],
        &["unsafe: retention.ms is 335000 (5m 35s), should be 604800000 (7d)"],
    );
    check(
        "retry-1",
        1,
        &[("retention.ms", "335001")],
        &["differs: retention.ms is 335001 (5m 35s 1ms), should be 604800000 (7d)"],
    );
    check(
        "retry-1",
        1,
        &[("retention.ms", "-1")],
        &["differs: retention.ms is -1 (for ever), should be 604800000 (7d)"],
    );
    check("dlq", 1, &[("retention.ms", "1000")], &["differs: retention.ms is 1000 (1s), should be 2592000000 (30d)"]);
    check("retry-2", 1, &[("retention.bytes", "1024")], &["unsafe: retention.bytes is 1024, should be -1"]);
    check("dlq", 1, &[("retention.bytes", "1024")], &["differs: retention.bytes is 1024, should be -1"]);
    check(
        "retry-1",
        1,
        &[("message.timestamp.type", "CreateTime")],
        &["differs: message.timestamp.type is CreateTime, should be LogAppendTime"],
    );
    check("dlq", 1, &[("message.timestamp.type", "CreateTime")], &[]);
    check("retry-1", 3, &[("min.insync.replicas", "1")], &["unsafe: min.insync.replicas is 1, should be 2"]);
    check("retry-1", 1, &[("min.insync.replicas", "1")], &[]);
    check(
        "retry-1",
        3,
        &[("message.timestamp.type", "CreateTime"), ("min.insync.replicas", "1"), ("cleanup.policy", "compact")],
        &[
            "unsafe: cleanup.policy is compact, should be delete",
            "unsafe: min.insync.replicas is 1, should be 2",
            "differs: message.timestamp.type is CreateTime, should be LogAppendTime",
        ],
    );
}

#[test]
fn counts_are_compared_and_the_remedy_names_a_command() {
    let check = |stage: &str, partitions: i32, replication: i32, expected: &[(&str, &str)]| {
        let spec = spec(stage, 3);
        let mut actual = actual(&spec, &[]);
        actual.partitions = partitions;
        actual.replication = replication;
        let found: Vec<_> =
            compare(&spec, &actual).iter().map(|d| (d.to_string(), d.remedy.command(&spec.topic, "b:9092"))).collect();
        let found: Vec<_> = found.iter().map(|(d, r)| (d.as_str(), r.as_str())).collect();
        assert_eq!(found, expected, "{stage}");
    };
    check("retry-1", 3, 3, &[("partitions is 3, should be 6", "scripts/create-topics.sh --add-partitions")]);
    check("retry-1", 9, 3, &[]);
    check(
        "dlq",
        3,
        3,
        &[(
            "partitions is 3, should be 6",
            "kafka-topics.sh --bootstrap-server b:9092 --alter --topic orders.billing.dlq --partitions 6",
        )],
    );
    check(
        "main",
        12,
        3,
        &[("partitions is 12, should be 6", "set pipelines.orders.partitions to 12: partitions cannot be taken away")],
    );
    check(
        "retry-1",
        6,
        1,
        &[(
            "replication is 1, should be 3",
            "add replicas with kafka-reassign-partitions.sh, or set pipelines.orders.replication to 1",
        )],
    );
}

#[test]
fn a_setting_that_was_not_told_is_not_judged() {
    let spec = spec("retry-1", 3);
    for configs in [Err("not authorized".to_owned()), Ok(BTreeMap::new())] {
        let actual = ActualTopic { partitions: 6, replication: 3, configs };
        assert_eq!(compare(&spec, &actual), []);
    }
}

#[test]
fn the_remedy_of_a_setting_can_be_pasted() {
    let spec = spec("retry-1", 1);
    let found = compare(&spec, &actual(&spec, &[("cleanup.policy", "compact")]));
    assert_eq!(
        found[0].remedy.command(&spec.topic, "k1:9092,k2:9092"),
        "kafka-configs.sh --bootstrap-server k1:9092,k2:9092 --alter --entity-type topics --entity-name \
         orders.billing.retry-1 --add-config cleanup.policy=delete"
    );
}

#[test]
fn the_ladder_follows_its_main_topic() {
    let mut specs = plan(&pipeline(1));
    let main = ActualTopic {
        partitions: 12,
        replication: 1,
        configs: Ok(BTreeMap::from([("max.message.bytes".to_owned(), "4000000".to_owned())])),
    };
    align(&mut specs, &BTreeMap::from([("orders".to_owned(), TopicState::Exists(main))]));
    assert_eq!(specs[0].partitions, 6, "main keeps what was configured, so that a difference is told");
    let (ladder, notes) = specs[1..].split_at(specs.len() - 3);
    for spec in notes {
        assert_eq!((spec.partitions, spec.configs.len()), (1, 1), "{} holds no events", spec.topic);
    }
    for spec in ladder {
        assert_eq!(spec.partitions, 12, "{}", spec.topic);
        assert_eq!(spec.configs["max.message.bytes"], "4016384", "{}", spec.topic);
    }
    let check = |limit: &str, expected: &[&str]| {
        let found = compare(&specs[1], &actual(&specs[1], &[("max.message.bytes", limit)]));
        assert_eq!(texts(&found), expected);
    };
    check("3999999", &["differs: max.message.bytes is 3999999, should be at least 4000000"]);
    check("4000000", &[]);
}

#[test]
fn alignment_leaves_a_plan_alone_whose_main_is_missing() {
    let mut specs = plan(&pipeline(1));
    align(&mut specs, &BTreeMap::from([("orders".to_owned(), TopicState::Missing)]));
    assert_eq!(specs, plan(&pipeline(1)));
}

#[test]
fn only_former_rungs_of_this_group_are_orphans() {
    let pipelines = [pipeline(1)];
    let known = known_topics(&pipelines);
    let check = |topic: &str, expected: Option<&str>| {
        assert_eq!(orphan_stage(&pipelines[0], &known, topic), expected, "{topic}");
    };
    check("orders.billing.retry-4", Some("retry-4"));
    check("orders.billing.slow", Some("slow"));
    check("orders.billing.retry-1", None);
    check("orders.billing.dlq", None);
    check("orders.billing.redrive", None);
    check("orders.billing.control", None);
    check("orders", None);
    check("orders.billing", None);
    check("orders.billing.", None);
    check("orders.billing.eu.retry-1", None);
    check("orders.billings.retry-1", None);
    check("orders2.billing.retry-1", None);
}

#[test]
fn a_configured_retention_below_the_ladder_is_unsafe_though_the_topic_has_just_that() {
    let mut pipeline = pipeline(1);
    pipeline.retention = Duration::from_secs(300);
    let spec = plan(&pipeline).swap_remove(1);
    assert_eq!(
        texts(&compare(&spec, &actual(&spec, &[]))),
        ["unsafe: retention.ms is 300000 (5m), should be 335001 (5m 35s 1ms)"]
    );
}

#[test]
fn endless_retention_does_not_overflow() {
    let mut pipeline = pipeline(1);
    pipeline.retention = Duration::MAX;
    pipeline.retries[0].delay = Duration::MAX;
    let specs = plan(&pipeline);
    assert_eq!(specs[1].configs["retention.ms"], i64::MAX.to_string());
    assert_eq!(specs[1].ladder_length, Duration::MAX);
}
