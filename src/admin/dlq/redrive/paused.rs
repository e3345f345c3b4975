//! Whether somebody has paused the stage that the copies go to.

use std::time::{Duration, Instant};

use super::{Desk, Order};
use crate::adapters::kafka::control::{self, ControlReader};

/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Follows the pauses by command of one stage.
pub(super) struct Paused {
    reader: Option<ControlReader>,
    topic: String,
    stage: String,
    looked: Option<Instant>,
    paused: Option<String>,
}

impl Paused {
    /// Of the rung that the order sends letters to. Where pauses cannot be read there are none.
    pub(super) fn follow(desk: &Desk, order: &Order) -> Self {
        let topic = control::topic(desk.ladder.topic(), desk.ladder.group());
        let rung = order.target.and_then(|target| desk.ladder.rung(target));
        let reader = rung.and_then(|rung| {
            let reader = ControlReader::new(&desk.properties, &rung.group_id, [topic.clone()]);
            reader.inspect_err(|error| tracing::warn!(%error, "pauses of the target stage are not followed")).ok()
        });
        let stage = rung.map(|rung| rung.name.to_string()).unwrap_or_default();
        Self { reader, topic, stage, looked: None, paused: None }
    }

    /// Since when, by whom and why; looks again once a second.
    pub(super) fn since(&mut self) -> Option<String> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= EVERY)
            && let Some(reader) = &mut self.reader
        {
            self.looked = Some(Instant::now());
            match reader.catch_up(TIMEOUT) {
                Ok(orders) => {
                    for (topic, stage, order) in orders {
                        if topic == self.topic && stage == self.stage {
                            self.paused = order.paused.then(|| format!("{stage} is paused {order}"));
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "pauses of the target stage were not read"),
            }
        }
        self.paused.clone()
    }
}
