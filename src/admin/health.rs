//! Whether the process works, and whether it can do its job: judgements over what [`super::monitor`] saw.
//!
//! Alive: its poll threads poll; nothing outside the process can make it less alive, because a restart would not help.
//! Ready: each stage has its place in its group, Kafka and the deduplication store answer, nothing is paused or halted.

use std::time::Duration;

use serde::Serialize;

use super::monitor::Figures;
use crate::app::engine::StageView;
use crate::ladder::lane::Dedup;
use crate::stage::stats::{Label, PauseReason};

/// Why it is not alive, or not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// Pipeline, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// Stage, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// One word: starting, draining, poll, assignment, kafka, store, halted, command, breaker, brake.
    pub reason: &'static str,
    /// For a person.
    pub detail: String,
}

impl Trouble {
    /// Of the process.
    pub fn of_process(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { pipeline: None, stage: None, reason, detail: detail.into() }
    }

    fn of_stage(view: &StageView, reason: &'static str, detail: impl Into<String>) -> Self {
        let context = view.context();
        Self {
            pipeline: Some(context.ladder.pipeline().to_string()),
            stage: Some(context.rung().name.to_string()),
            reason,
            detail: detail.into(),
        }
    }
}

/// Why this stage is not alive, if it is not.
pub fn liveness(view: &StageView, max_poll: Duration) -> Option<Trouble> {
    let silent = view.since_last_poll();
    (silent >= max_poll).then(|| {
        let detail =
            format!("its poll thread has not polled for {} s, the limit is {} s", silent.as_secs(), max_poll.as_secs());
        Trouble::of_stage(view, "poll", detail)
    })
}

/// Why this stage starts nothing, or a partition of it does not: all reasons.
pub fn pauses(view: &StageView, figures: &Figures) -> Vec<PauseReason> {
    let context = view.context();
    let store_down = context.settings.dedup == Dedup::Required && (figures.store_down || !context.store.is_available());
    let holds = |reason: &PauseReason| match reason {
        PauseReason::Store => store_down || context.stats.pauses.get(*reason),
        PauseReason::Halted => !figures.halted.is_empty() || context.stats.pauses.get(*reason),
        _ => context.stats.pauses.get(*reason),
    };
    PauseReason::ALL.iter().copied().filter(holds).collect()
}

/// Why this stage cannot do its job, as far as it cannot.
pub fn readiness(view: &StageView, figures: &Figures, max_poll: Duration) -> Vec<Trouble> {
    let mut troubles: Vec<_> = liveness(view, max_poll).into_iter().collect();
    if let Some(error) = &figures.kafka {
        troubles.push(Trouble::of_stage(view, "kafka", error));
    }
    if !view.is_member() {
        let group = &view.context().rung().group_id;
        troubles.push(Trouble::of_stage(
            view,
            "assignment",
            format!("group {group} has not given it its partitions yet"),
        ));
    }
    for reason in pauses(view, figures) {
        let detail = match reason {
            PauseReason::Store => "the deduplication store does not answer; nothing starts until it does".to_owned(),
            PauseReason::Halted => format!("partitions {:?} are halted: going on would lose an event", figures.halted),
            PauseReason::Command => "paused by command; `pipeline resume` ends it".to_owned(),
            PauseReason::Breaker => "the handler's target is down; single events probe it".to_owned(),
            PauseReason::Brake => {
                "too many events became dead letters; single events are tried, `pipeline resume` ends it".to_owned()
            }
        };
        troubles.push(Trouble::of_stage(view, reason.as_str(), detail));
    }
    troubles
}
