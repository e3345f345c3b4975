//! `pipeline config`: exit codes, and what goes to which stream.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output};

/// Runs the command in a directory with this `topics.yaml`, without any `PIPELINE_` variable but those given.
fn pipeline(topics: &str, env: &[(&str, &str)], args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("topics.yaml"), topics).unwrap();
    run(dir.path(), env, args)
}

fn run(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PIPELINE_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir).envs(env.iter().copied()).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const GOOD: &str = "pipelines: {orders: {topic: orders, group: g, message: shop.v1.OrderPlaced, handler: {log: {}}}}\n";
const BAD: &str =
    "kafak: {}\npipelines: {orders: {topic: orders, message: m.M, handler: {log: {}}, retries: [{delay: 5}]}}\n";

#[test]
fn check_says_what_each_pipeline_resolves_to() {
    let output = pipeline(GOOD, &[], &["config", "check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let out = text(&output.stdout);
    for part in ["ok: topics.yaml", "pipeline orders", "orders.g.retry-3", "after 5m", "handler log", "group g.dlq"] {
        assert!(out.contains(part), "no `{part}` in {out}");
    }
    let output = pipeline(GOOD, &[], &["config", "check", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["pipelines"][0]["stages"][1]["delay_ms"], 5_000);
}

#[test]
fn check_warns_of_a_group_that_two_pipelines_share_on_different_topics() {
    let two = |a: &str, b: &str| {
        let least = "message: shop.v1.OrderPlaced, handler: {log: {}}";
        format!("pipelines: {{a: {{topic: x, group: {a}, {least}}}, b: {{topic: y, group: {b}, {least}}}}}\n")
    };
    let output = pipeline(&two("g", "g"), &[], &["config", "check"]);
    assert_eq!(output.status.code(), Some(0), "it works: {}", text(&output.stderr));
    let warning = "warning: pipelines a and b share the group g on different topics, x and y: a rebalance of one";
    assert!(text(&output.stderr).starts_with(warning), "{}", text(&output.stderr));
    let output = pipeline(&two("g", "g"), &[], &["config", "check", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
    let output = pipeline(&two("g", "h"), &[], &["config", "check"]);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn faults_go_to_standard_error_and_exit_with_64() {
    let output = pipeline(BAD, &[("PIPELINE_REDIS__URL", "http://x")], &["config", "check"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), ""));
    let err = text(&output.stderr);
    for part in
        ["3 faults", "kafak", "did you mean `kafka`?", "retries[0].delay = 5 (topics.yaml)", "(PIPELINE_REDIS__URL)"]
    {
        assert!(err.contains(part), "no `{part}` in {err}");
    }
    assert_eq!(pipeline(BAD, &[], &["config", "print"]).status.code(), Some(64));
}

#[test]
fn faults_as_json_go_to_standard_output_alone() {
    let output = pipeline(BAD, &[], &["config", "check", "--json"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(64), ""));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["ok"].as_bool(), json["faults"].as_array().unwrap().len()), (Some(false), 2));
    let delay = &json["faults"][1];
    assert_eq!((&delay["path"], &delay["value"]), (&"pipelines.orders.retries[0].delay".into(), &"5".into()));
    assert_eq!(delay["source"], "topics.yaml");
}

#[test]
fn what_is_printed_is_a_valid_file() {
    for args in [&["config", "print"][..], &["config", "print", "--all"]] {
        let env = [("PIPELINE_REDIS__URL", "redis://:hunter2@localhost:6379/0")];
        let output = pipeline(GOOD, &env, args);
        assert_eq!(output.status.code(), Some(0));
        let printed = text(&output.stdout);
        assert!(printed.contains("redis://:***@localhost:6379/0") && !printed.contains("hunter2"), "{printed}");
        let again = pipeline(printed, &[], &["config", "check"]);
        assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    }
}

/// A pipeline that writes machine-learning events, with more keys of the pipeline and of its handler.
#[cfg(feature = "postgres")]
fn postgres(keys: &str, handler: &str) -> String {
    format!(
        "pipelines: {{steps: {{topic: steps, message: ml.v1.PipelineStep, {keys}
         handler: {{postgres: {{url: 'postgres://app:hunter2@localhost/app', {handler}}}}}}}}}\n"
    )
}

#[cfg(feature = "postgres")]
#[test]
fn tables_are_shown_as_sql_and_columns_checked_against_the_message() {
    let good = postgres("concurrency: 400,", "table: ml.steps");
    let output = pipeline(&good, &[], &["config", "sql"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let sql = "-- pipeline steps\ncreate table if not exists \"ml\".\"steps\" (\n  \"event_id\" text primary key,\n";
    assert!(text(&output.stdout).starts_with(sql), "{}", text(&output.stdout));
    assert_eq!(text(&pipeline(&good, &[], &["config", "check"]).stderr), "");
    let printed = pipeline(&good, &[], &["config", "print", "--all"]);
    assert!(text(&printed.stdout).contains("postgres://app:***@localhost/app"), "{}", text(&printed.stdout));
    let again = pipeline(text(&printed.stdout), &[], &["config", "check"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));

    let bad = postgres("", "columns: { run: run_di, metrics: metrics }");
    for command in ["check", "sql"] {
        let output = pipeline(&bad, &[], &["config", command]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(64), ""));
        let part = "pipelines.steps.handler.postgres.columns.run = run_di";
        assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
    let output = pipeline(&postgres("", ""), &[], &["config", "check"]);
    assert_eq!(output.status.code(), Some(0), "it works, and is slow");
    let warning = "pipelines.steps.concurrency is 64, so that no batch has more rows than that";
    assert!(text(&output.stderr).contains(warning), "{}", text(&output.stderr));
}

#[test]
fn bad_flags_and_missing_files_exit_with_64() {
    for args in [
        &["config", "check", "--colour"][..],
        &["config", "chek"],
        &["--config", "no.yaml", "config", "check"],
        &["config", "check", "--config", "no.yaml"],
    ] {
        let output = pipeline(GOOD, &[], args);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(pipeline(GOOD, &[("PIPELINE_PROFILE", "none")], &["config", "check"]).status.code(), Some(64));
    assert_eq!(pipeline(GOOD, &[], &["config", "check", "--help"]).status.code(), Some(0));
}

#[test]
fn the_shipped_files_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (env, file) in [
        (&[][..], "topics.yaml"),
        (&[("PIPELINE_PROFILE", "dev")], "topics.yaml"),
        (&[], "examples/two-groups.yaml"),
        (&[], "examples/postgres.yaml"),
    ] {
        let output = run(root, env, &["config", "check", "--config", file]);
        assert_eq!(output.status.code(), Some(0), "{file} {env:?}: {}", text(&output.stderr));
    }
}

#[test]
#[cfg(feature = "postgres")]
fn sql_makes_the_tables_of_the_postgres_handlers_and_of_no_other() {
    let steps = "steps: {topic: steps, message: ml.v1.PipelineStep, handler: {postgres: {url: 'postgres://u@h/d'}}}";
    let both = GOOD.replacen("{orders", &format!("{{{steps}, orders"), 1);
    let output = pipeline(&both, &[], &["config", "sql"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let sql = text(&output.stdout).strip_prefix("-- pipeline steps\n").expect("whose table it is");
    assert!(sql.starts_with("create table if not exists") && !sql.contains("orders"), "{sql}");
    let output = pipeline(&both, &[], &["config", "sql", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "tables": [{ "pipeline": "steps", "sql": sql }] }));
}
