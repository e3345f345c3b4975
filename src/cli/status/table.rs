//! The status for a person: a table for each pipeline, and below it in words what somebody should look at.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::admin::dlq::standing::Depth;
use crate::admin::instances::Pause;
use crate::admin::outside::{Letters, PipelineStatus, StageLook, StageStatus, Status};
use crate::admin::retention;
use crate::cli::plain::one_line;
use crate::telemetry::duration;

const HEADS: [&str; 7] = ["STAGE", "TOPIC", "WAITING", "OVERDUE", "OLDEST OVERDUE", "LAG", "MEMBERS"];

/// The whole status.
pub fn table(status: &Status) -> String {
    let tables: Vec<_> = status.pipelines.iter().map(pipeline).collect();
    let mut out = tables.join("\n");
    let estimated = |stage: &StageLook| matches!(stage, StageLook::Seen(s) if s.estimated);
    if status.pipelines.iter().flat_map(|p| &p.stages).any(estimated) {
        out.push_str(
            "\n~ estimated from the log: exact while dues rise with offsets and every offset holds an event\n",
        );
    }
    out
}

fn pipeline(pipeline: &PipelineStatus) -> String {
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(pipeline.stages.iter().map(row));
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..HEADS.len()).map(width).collect();
    let mut out = format!("{}\n", pipeline.pipeline);
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, width))| {
            // Names to the left, figures to the right.
            if i < 2 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") }
        });
        // Writing to a string does not fail.
        writeln!(out, "{}", cells.collect::<String>().trim_end()).ok();
    }
    for note in notes(pipeline) {
        writeln!(out, "  {}", one_line(&note)).ok();
    }
    out
}

fn row(look: &StageLook) -> [String; 7] {
    let stage = match look {
        StageLook::Unseen(unseen) => {
            let what = if unseen.missing { "missing" } else { "?" };
            let [unknown, others @ ..] = [what, "?", "?", "?", "?"].map(str::to_owned);
            let [overdue, oldest, lag, members] = others;
            return [unseen.stage.clone(), unseen.topic.clone(), unknown, overdue, oldest, lag, members];
        }
        StageLook::Seen(stage) => stage,
    };
    let mark = |n: u64| if stage.estimated && n > 0 { format!("~{n}") } else { n.to_string() };
    let (waiting, overdue) = match stage.depth {
        Some(_) => ("-".to_owned(), "-".to_owned()),
        None => (mark(stage.waiting), mark(stage.overdue)),
    };
    let oldest = match stage.oldest_overdue_ms {
        0 => "-".to_owned(),
        ms => duration::coarse(Duration::from_millis(ms)),
    };
    let (lag, members) = (stage.lag.to_string(), stage.members.to_string());
    [stage.stage.clone(), stage.topic.clone(), waiting, overdue, oldest, lag, members]
}

fn notes(pipeline: &PipelineStatus) -> Vec<String> {
    let mut notes = Vec::new();
    // Where Kafka does not answer, it does not answer for all stages: once, with those that it is about.
    let mut missing = Vec::new();
    let mut errors: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for look in &pipeline.stages {
        match look {
            StageLook::Unseen(unseen) if unseen.missing => missing.push(&*unseen.stage),
            StageLook::Unseen(unseen) => errors.entry(&unseen.error).or_default().push(&unseen.stage),
            StageLook::Seen(stage) => notes.extend(notes_of(stage)),
        }
    }
    if !missing.is_empty() {
        notes.push(format!("! {}: no such topic; remedy: scripts/create-topics.sh creates it", missing.join(", ")));
    }
    notes.extend(errors.into_iter().map(|(error, stages)| format!("! {}: {error}", stages.join(", "))));
    let members = |silent: fn(&StageStatus) -> usize| -> usize {
        let seen = pipeline
            .stages
            .iter()
            .filter_map(|look| if let StageLook::Seen(s) = look { Some(silent(s)) } else { None });
        seen.sum()
    };
    let (all, silent) = (members(|s| s.members), members(|s| s.members.saturating_sub(s.asked)));
    if silent > 0 {
        notes.push(format!(
            "pauses by breaker, brake and Redis are unknown of {silent} of {all} members; admin.instances says where to ask"
        ));
    }
    notes
}

fn notes_of(stage: &StageStatus) -> Vec<String> {
    let mut notes = Vec::new();
    let name = &stage.stage;
    if let Some(depth) = stage.depth {
        notes.push(match &stage.letters {
            Some(Letters::Counted(Depth { open, redriven, discarded })) => {
                format!("letters in the DLQ: {open} open, {redriven} redriven, {discarded} discarded")
            }
            Some(Letters::Unknown { error }) => format!("! records in the DLQ: {depth}; what became of them: {error}"),
            None => format!("records in the DLQ: {depth}"),
        });
    } else if stage.lag > 0 && stage.members == 0 {
        notes.push(format!("! {name}: nobody runs it; `pipeline --stage {name}` does"));
    }
    if let Some(order) = &stage.paused {
        notes.push(format!("! {name} is paused by command {order}"));
    }
    for Pause { instance, reason } in &stage.pauses {
        notes.push(format!("! {name} is paused at {instance}: {reason}"));
    }
    if let (Some(_), Some(limit)) = (stage.retention_alarm, stage.retention_ms) {
        let (oldest, limit) = (Duration::from_millis(stage.oldest_unprocessed_ms), Duration::from_millis(limit));
        notes.push(format!(
            "! {name}: the oldest event that is not done has used {} of the topic's retention; Kafka deletes it then",
            retention::used(oldest, limit)
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::kafka::control::Order;
    use crate::admin::outside::Unseen;

    fn stage(name: &str, waiting: u64, overdue: u64, oldest_overdue_ms: u64) -> StageStatus {
        StageStatus {
            stage: name.into(),
            topic: format!("orders.{name}"),
            waiting,
            overdue,
            oldest_overdue_ms,
            lag: waiting + overdue,
            members: 2,
            estimated: waiting + overdue > 0,
            ..StageStatus::default()
        }
    }

    fn sample() -> Status {
        let letters = Some(Letters::Counted(Depth { open: 1, redriven: 2, discarded: 0 }));
        let dlq = StageStatus { depth: Some(3), letters, estimated: false, ..stage("dlq", 3, 0, 0) };
        let stages = [stage("main", 0, 0, 0), stage("retry-1", 120, 7, 65_432), dlq].map(StageLook::Seen).into();
        Status { pipelines: vec![PipelineStatus { pipeline: "orders".into(), stages }] }
    }

    #[test]
    fn the_table_marks_estimates_and_tells_the_depth_of_the_dlq() {
        assert_eq!(
            table(&sample()),
            "orders\n\
             \x20 STAGE    TOPIC           WAITING  OVERDUE  OLDEST OVERDUE  LAG  MEMBERS\n\
             \x20 main     orders.main           0        0               -    0        2\n\
             \x20 retry-1  orders.retry-1     ~120       ~7           1m 5s  127        2\n\
             \x20 dlq      orders.dlq            -        -               -    3        2\n\
             \x20 letters in the DLQ: 1 open, 2 redriven, 0 discarded\n\
             \x20 pauses by breaker, brake and Redis are unknown of 6 of 6 members; admin.instances says where to ask\n\
             \n\
             ~ estimated from the log: exact while dues rise with offsets and every offset holds an event\n"
        );
    }

    #[test]
    fn what_somebody_should_look_at_is_said_in_words() {
        let unseen = |stage: &str, error: &str, missing| {
            StageLook::Unseen(Unseen { stage: stage.into(), topic: "t".into(), error: error.into(), missing })
        };
        let alone = StageStatus { members: 0, ..stage("main", 0, 5, 1_000) };
        let old = StageStatus {
            oldest_unprocessed_ms: 4 * 86_400_000,
            retention_ms: Some(7 * 86_400_000),
            retention_alarm: Some("warning"),
            asked: 2,
            pauses: vec![Pause { instance: "worker-1:9464".into(), reason: "breaker\n  main  t".into() }],
            ..stage("retry-1", 0, 5, 1_000)
        };
        let stages = vec![
            StageLook::Seen(alone),
            StageLook::Seen(old),
            unseen("retry-2", "no answer", false),
            unseen("retry-3", "no answer", false),
            unseen("dlq", "topic t is missing", true),
        ];
        let pipeline = PipelineStatus { pipeline: "orders".into(), stages };
        assert_eq!(
            notes(&pipeline),
            [
                "! main: nobody runs it; `pipeline --stage main` does",
                "! retry-1 is paused at worker-1:9464: breaker\n  main  t",
                "! retry-1: the oldest event that is not done has used 4d of 7d of the topic's retention; Kafka deletes \
                 it then",
                "! dlq: no such topic; remedy: scripts/create-topics.sh creates it",
                "! retry-2, retry-3: no answer",
            ]
        );
        let status = Status { pipelines: vec![pipeline] };
        let text = table(&status);
        assert!(text.contains(r"! retry-1 is paused at worker-1:9464: breaker\n  main"), "no forged row: {text}");
        let row = text.lines().find(|line| line.starts_with("  dlq")).expect("a row");
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["dlq", "t", "missing", "?", "?", "?", "?"]);
        assert_eq!(status.exit_code(), 69);
        let json = serde_json::to_value(&status).unwrap();
        let unseen = serde_json::json!({ "stage": "retry-2", "topic": "t", "error": "no answer" });
        assert_eq!(json["pipelines"][0]["stages"][2], unseen, "no figure where there is none");
    }

    #[test]
    fn a_pause_by_command_is_told_with_who_when_and_why() {
        let order = Order { paused: true, by: "ann@host".into(), at_ms: 0, reason: Some("deploy".into()) };
        let paused = StageStatus { paused: Some(order), ..stage("retry-1", 0, 0, 0) };
        assert_eq!(
            notes_of(&paused),
            ["! retry-1 is paused by command since 1970-01-01T00:00:00Z by ann@host: deploy"]
        );
        assert_eq!(serde_json::to_value(&paused).unwrap()["paused"]["by"], "ann@host");
    }

    #[test]
    fn the_json_begins_with_the_promised_keys() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert!(json.starts_with(r#"{"pipelines":[{"pipeline":"orders","stages":[{"stage":"main","topic":"orders.main","waiting":0,"overdue":0,"oldest_overdue_ms":0,"lag":0,"members":2,"estimated":false,"oldest_unprocessed_ms":0,"retention_ms":null,"retention_alarm":null,"asked":0},{"stage":"retry-1","#), "{json}");
    }
}
