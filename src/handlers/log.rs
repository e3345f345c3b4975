//! The `log` handler: prints every event and succeeds.
//!
//! The rule "nothing per event above DEBUG" is for what the engine says by itself; who configures this handler asks to
//! see events, so they come at INFO, under a target of their own that can be filtered.

use futures::future::BoxFuture;

use crate::ladder::event::Outcome;
use crate::stage::ports::{Event, Handler};

/// The target of its log lines.
pub const TARGET: &str = "handler.log";

/// Bytes of a key that are shown.
const KEY_SHOWN: usize = 200;

/// Logs id, stage, attempt, key and size of each event at INFO; always done.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogHandler;

impl Handler for LogHandler {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        let key = event.record.key.as_deref().map(|key| &key[..key.len().min(KEY_SHOWN)]);
        // Values of others are recorded as strings, not through Display: the formatters escape those, so that no value
        // can forge a line.
        tracing::info!(
            target: TARGET,
            pipeline = &*event.pipeline,
            trace_id = event.trace_id(),
            event_id = &*event.id,
            correlation_id = event.correlation_id(),
            stage = &*event.stage_name,
            attempt = event.attempt,
            key = key.map(|key| String::from_utf8_lossy(key)).as_deref(),
            size = event.payload.len(),
            "event"
        );
        Box::pin(std::future::ready(Outcome::Done))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::handlers::testing::{Captured, EventBuilder};

    /// The lines that the handler writes for one event.
    fn lines(json: bool, event: Event) -> Vec<String> {
        Captured::lines(json, || assert_eq!(LogHandler.handle(event).now_or_never(), Some(Outcome::Done)))
    }

    #[test]
    fn one_line_with_the_facts_of_the_event() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let event = EventBuilder::new().attempt(2).stage(1, "retry-1").header("correlation-id", b"c-7");
        let event = event.header("traceparent", parent.as_bytes()).build();
        let lines = lines(true, event);
        assert_eq!(lines.len(), 1);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["target"], TARGET);
        assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(line["event_id"], "order-1");
        assert_eq!(line["correlation_id"], "c-7");
        assert_eq!(line["stage"], "retry-1");
        assert_eq!(line["attempt"], 2);
        assert_eq!(line["key"], "customer-9");
        assert_eq!(line["size"], 10);
    }

    #[test]
    fn hostile_values_cannot_forge_a_line() {
        let hostile = "x\n2025-01-01 ERROR forged\u{1b}[2J";
        let event = || EventBuilder::new().id(hostile).key(Some(hostile.as_bytes())).build();
        for json in [true, false] {
            let lines = lines(json, event());
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains('\u{1b}'), "{lines:?}");
        }
    }

    #[test]
    fn a_null_key_is_not_shown() {
        let lines = lines(true, EventBuilder::new().key(None).build());
        assert!(!lines[0].contains("key"), "{lines:?}");
    }
}
