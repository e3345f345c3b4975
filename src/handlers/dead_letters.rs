//! The handler of the `dlq` stage: counts dead letters by class and says so, a summary at most every ten seconds, and to a
//! webhook where one is set.
//! It never republishes anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use super::webhook::{Letter, Webhook};
use crate::ladder::event::Outcome;
use crate::ladder::headers;
use crate::stage::clock::Clock;
use crate::stage::ports::{Event, Handler};

/// The classes that a dead letter can have (`x-ladder-error`).
const CLASSES: [&str; 5] = ["transient", "permanent", "poison", "exhausted", "expired"];

/// Between two summaries.
const EVERY: Duration = Duration::from_secs(10);

/// Counts and logs dead letters; always done.
pub struct DeadLetterLog {
    clock: Arc<dyn Clock>,
    webhook: Option<Webhook>,
    state: Mutex<State>,
}

impl Drop for DeadLetterLog {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.new > 0 {
            tracing::info!(new = state.new, by_class = ?state.by_class, "dead letters");
        }
    }
}

#[derive(Default)]
struct State {
    by_class: BTreeMap<&'static str, u64>,
    new: u64,
    last_summary: Duration,
}

impl DeadLetterLog {
    /// Tells the time of its summaries by `clock`, and of each letter to the webhook.
    pub fn new(clock: Arc<dyn Clock>, webhook: Option<Webhook>) -> Self {
        Self { clock, webhook, state: Mutex::default() }
    }

    /// Dead letters seen so far, by class.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).by_class.clone()
    }
}

impl Handler for DeadLetterLog {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        let error = event.header(headers::ERROR).and_then(headers::parse_error);
        let (class, text) = error.unwrap_or(("unknown", ""));
        // A foreign record can say anything; what is counted stays a handful of words.
        let counted = CLASSES.into_iter().find(|known| *known == class).unwrap_or("other");
        tracing::debug!(
            pipeline = &*event.pipeline, trace_id = event.trace_id(), event_id = &*event.id,
            correlation_id = event.correlation_id(), stage = &*event.stage_name, attempt = event.attempt,
            class, error = text, origin = %event.origin, partition = event.record.partition, offset = event.record.offset, "dead letter"
        );
        if let Some(webhook) = &self.webhook {
            webhook.note(counted, || Letter {
                event_id: event.id.to_string(),
                class: class.to_owned(),
                error: text.to_owned(),
                partition: event.record.partition,
                offset: event.record.offset,
            });
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state.by_class.entry(counted).or_default() += 1;
        state.new += 1;
        let now = self.clock.now().boot;
        if now.saturating_sub(state.last_summary) >= EVERY {
            let (new, by_class) = (std::mem::take(&mut state.new), &state.by_class);
            tracing::info!(pipeline = &*event.pipeline, new, ?by_class, "dead letters");
            state.last_summary = now;
        }
        Box::pin(std::future::ready(Outcome::Done))
    }
}
