//! What `forward: transactional` asks of the other keys.

use std::time::Duration;

use crate::config::keys::Kafka;
use crate::config::model::{Forward, Pipeline};
use crate::config::report::{At, Report};
use crate::config::text::show_duration;

/// Transactions run between two polls, and their time-outs add up to less.
const MIN_POLL: Duration = Duration::from_secs(3 * 60);

pub(super) fn check(kafka: &Kafka, pipelines: &[Pipeline], report: &mut Report<'_>) {
    let at = At::of(&["kafka", "max_poll_interval"]);
    let transactional = pipelines.iter().find(|pipeline| pipeline.forward == Forward::Transactional);
    if let Some(pipeline) = transactional.filter(|_| report.clean(&at) && kafka.max_poll_interval < MIN_POLL) {
        report.fault_with(
            &at,
            Some(show_duration(kafka.max_poll_interval)),
            format!("a transaction of pipeline {} that hangs would cost the membership", pipeline.name),
            format!("at least {} with `forward: transactional`", show_duration(MIN_POLL)),
        );
    }
}
