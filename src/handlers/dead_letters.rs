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
    pipeline: Arc<str>,
    clock: Arc<dyn Clock>,
    webhook: Option<Webhook>,
    state: Mutex<State>,
}

impl Drop for DeadLetterLog {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !state.new_by_class.is_empty() {
            state.summarise(&self.pipeline);
        }
    }
}

#[derive(Default)]
struct State {
    /// Since the last summary.
    new_by_class: BTreeMap<&'static str, u64>,
    /// Since the start, those included.
    total_by_class: BTreeMap<&'static str, u64>,
    last_summary: Duration,
}

impl State {
    fn summarise(&mut self, pipeline: &str) {
        let new_by_class = std::mem::take(&mut self.new_by_class);
        let new = new_by_class.values().sum::<u64>();
        tracing::info!(pipeline, new, ?new_by_class, total_by_class = ?self.total_by_class, "dead letters");
    }
}

impl DeadLetterLog {
    /// Of this pipeline; tells the time of its summaries by `clock`, and of each letter to the webhook.
    pub fn new(pipeline: impl Into<Arc<str>>, clock: Arc<dyn Clock>, webhook: Option<Webhook>) -> Self {
        Self { pipeline: pipeline.into(), clock, webhook, state: Mutex::default() }
    }

    /// Dead letters seen so far, by class.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).total_by_class.clone()
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
        *state.new_by_class.entry(counted).or_default() += 1;
        *state.total_by_class.entry(counted).or_default() += 1;
        let now = self.clock.now().boot;
        if now.saturating_sub(state.last_summary) >= EVERY {
            state.summarise(&self.pipeline);
            state.last_summary = now;
        }
        Box::pin(std::future::ready(Outcome::Done))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::FutureExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::handlers::testing::{Captured, EventBuilder, NOW};
    use crate::stage::clock::Now;

    #[derive(Default)]
    struct Seconds(AtomicU64);

    impl Clock for Seconds {
        fn now(&self) -> Now {
            Now { wall: NOW, boot: Duration::from_secs(self.0.load(Ordering::Relaxed)) }
        }
    }

    #[test]
    fn a_summary_tells_what_is_new_and_what_there_was_in_all() {
        let clock = Arc::new(Seconds::default());
        let lines = Captured::lines(true, || {
            let log = DeadLetterLog::new("orders", Arc::clone(&clock) as _, None);
            for (at, error) in [(1, "permanent: no"), (10, "poison: what"), (11, "permanent: no"), (12, "joke: ha")] {
                clock.0.store(at, Ordering::Relaxed);
                let event = EventBuilder::new().header(headers::ERROR, error.as_bytes()).build();
                assert_eq!(log.handle(event).now_or_never(), Some(Outcome::Done));
            }
        });
        let summaries: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let check = |n: usize, new: u64, new_by_class: &str, total_by_class: &str| {
            let line = &summaries[n];
            let told = ["pipeline", "new", "new_by_class", "total_by_class"].map(|name| line[name].clone());
            assert_eq!(told, [json!("orders"), json!(new), json!(new_by_class), json!(total_by_class)], "{line}");
        };
        assert_eq!(summaries.len(), 2, "{lines:?}");
        check(0, 2, r#"{"permanent": 1, "poison": 1}"#, r#"{"permanent": 1, "poison": 1}"#);
        check(1, 2, r#"{"other": 1, "permanent": 1}"#, r#"{"other": 1, "permanent": 2, "poison": 1}"#);
    }
}
