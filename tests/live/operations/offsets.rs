//! What is committed is the watermark itself: the first event that is not done, and not one more.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::json;

use super::harness::{LIMIT, Ladder, until};

/// The sink: an HTTP server that never answers for the events that hang.
#[derive(Clone, Default)]
struct Sink {
    hanging: Arc<Mutex<BTreeSet<usize>>>,
    called: Arc<Mutex<Vec<usize>>>,
}

impl Sink {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let app = Router::new().fallback(call).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/orders")
    }

    /// The events it was called for since the last look, in order of their offsets.
    fn take(&self) -> Vec<usize> {
        let mut called = std::mem::take(&mut *self.called.lock().expect("not poisoned"));
        called.sort_unstable();
        called
    }

    fn count(&self) -> usize {
        self.called.lock().expect("not poisoned").len()
    }
}

async fn call(State(sink): State<Sink>, headers: HeaderMap) {
    let id = headers["idempotency-key"].to_str().expect("text");
    let offset = id.strip_prefix("p0-").and_then(|n| n.parse().ok()).expect("an id of ours");
    sink.called.lock().expect("not poisoned").push(offset);
    if sink.hanging.lock().expect("not poisoned").contains(&offset) {
        std::future::pending::<()>().await;
    }
}

/// Kills the process with these events of one partition running and all others of ten done; with deduplication the
/// others are known, without it everything from the first on runs again.
async fn check(store: &'static str, hanging: &[usize], again: &[usize]) {
    let sink = Sink::default();
    *sink.hanging.lock().expect("not poisoned") = hanging.iter().copied().collect();
    let mut ladder = Ladder::created(1);
    ladder.config["kafka"]["session_timeout"] = "6s".into();
    ladder.pipeline()["idempotency"]["store"] = store.into();
    ladder.pipeline()["handler_timeout"] = "10m".into();
    ladder.pipeline()["handler"] = json!({ "http": { "url": sink.start().await, "timeout": "5m" } });
    let test = tokio::task::spawn_blocking({
        let (sink, hanging, again) = (sink.clone(), hanging.to_vec(), again.to_vec());
        move || {
            ladder.produce_all("main", 10);
            let mut first = ladder.start("first", &["--stage", "main"]);
            until("all were called", || sink.count() >= 10, || first.log());
            assert_eq!(sink.take(), (0..10).collect::<Vec<_>>());
            let watermark = hanging[0] as i64;
            let committed = || ladder.committed(0);
            until("the watermark is committed", || committed() == Some(watermark), || format!("{:?}", committed()));
            // Two more rounds of auto-commit do not move it.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(2_500) {
                assert_eq!(committed(), Some(watermark));
            }
            first.kill();

            sink.hanging.lock().expect("not poisoned").clear();
            let mut second = ladder.start("second", &["--stage", "main"]);
            until("all are done", || committed() == Some(10), || format!("{:?} {}", committed(), second.log()));
            assert_eq!(sink.take(), again, "store: {store}");
            second.signal(rustix::process::Signal::TERM);
            assert_eq!(second.exit_code(LIMIT), 0);
            assert_eq!(committed(), Some(10));
        }
    });
    test.await.expect("the test's own assertions");
}

#[tokio::test]
async fn after_a_kill_exactly_the_open_events_run_again() {
    check("redis", &[3, 7], &[3, 7]).await;
}

#[tokio::test]
async fn without_deduplication_everything_from_the_first_open_event_on_runs_again() {
    check("off", &[3, 7], &[3, 4, 5, 6, 7, 8, 9]).await;
}
