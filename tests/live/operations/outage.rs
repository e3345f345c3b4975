//! A handler's target that is down for some seconds, a real process and real HTTP: no event ends in the DLQ.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::harness::{Ladder, Load, until};

/// Answers 200, or while it is down closes each connection without an answer.
#[derive(Default)]
struct Target {
    down: AtomicBool,
    refused: AtomicUsize,
    done: Mutex<BTreeMap<String, usize>>,
}

impl Target {
    /// The target and its url; its threads end with the test's process.
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/orders", listener.local_addr().expect("its address"));
        let target = Arc::new(Self::default());
        std::thread::spawn({
            let target = Arc::clone(&target);
            move || {
                for stream in listener.incoming().flatten() {
                    let target = Arc::clone(&target);
                    std::thread::spawn(move || target.serve(stream));
                }
            }
        });
        (target, url)
    }

    fn serve(&self, stream: TcpStream) {
        let Ok(mut answers) = stream.try_clone() else { return };
        let mut requests = BufReader::new(stream);
        while let Some((id, body)) = head(&mut requests) {
            if requests.read_exact(&mut vec![0; body]).is_err() {
                return;
            }
            if self.down.load(Ordering::Relaxed) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return;
            }
            *self.done.lock().expect("not poisoned").entry(id).or_default() += 1;
            if answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    }

    fn done(&self) -> usize {
        self.done.lock().expect("not poisoned").len()
    }
}

/// Event id and length of the body; `None` at the end of the connection.
fn head(requests: &mut impl std::io::BufRead) -> Option<(String, usize)> {
    let (mut id, mut body) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if requests.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            if line.trim_end().is_empty() {
                return Some((id, body));
            }
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "ce-id" => id = value.to_owned(),
            "content-length" => body = value.parse().ok()?,
            _ => {}
        }
    }
}

#[test]
fn a_target_that_is_down_for_seconds_sends_no_event_to_the_dlq() {
    let (target, url) = Target::start();
    let mut ladder = Ladder::created(2);
    ladder.pipeline()["retries"] = json!([{ "delay": "5s" }, { "delay": "10s" }]);
    ladder.pipeline()["concurrency"] = 16.into();
    ladder.pipeline()["handler"] = json!({ "http": { "url": url } });
    let ladder = Arc::new(ladder);
    let worker = ladder.start("worker", &[]);
    let load = Load::start(&ladder, "main", 200);
    until("it works", || target.done() > 200, || worker.log());

    target.down.store(true, Ordering::Relaxed);
    let sent = load.sent().len();
    until("it notices", || worker.log().contains("the handler's target seems down"), || worker.log());
    until("six seconds of events come", || load.sent().len() > sent + 1_200, || format!("{}", load.sent().len()));
    let refused = target.refused.load(Ordering::Relaxed);
    target.down.store(false, Ordering::Relaxed);
    until("it notices again", || worker.log().contains("the handler's target answers again"), || worker.log());
    let sent = load.finish();
    until("all succeed", || target.done() == sent.len(), || format!("{} of {}", target.done(), sent.len()));

    // A second's events, what ran, a few probes; without the breaker it would be all of them.
    assert!((50..600).contains(&refused), "{refused} used an attempt");
    let twice: Vec<_> = target.done.lock().expect("not poisoned").clone().into_iter().filter(|(_, n)| *n > 1).collect();
    assert_eq!(twice, [], "succeeded twice");
    assert_eq!(ladder.dead_letters(), [""; 0]);
    for what in ["seems down", "answers again"] {
        assert_eq!(worker.log().matches(what).count(), 1, "{}", worker.log());
    }
}

#[test]
fn a_handler_that_refuses_everything_is_stopped_by_the_brake_until_somebody_resumes() {
    let mut ladder = Ladder::created(2);
    ladder.simulate("fail_ratio", 1);
    ladder.simulate("permanent_ratio", 1);
    ladder.simulate("dead_ratio", 0);
    let worker = ladder.start("worker", &["--stage", "main", "--stage", "retry-1"]);
    ladder.produce_all("main", 500);
    until("it stops", || worker.log().contains("too many events become dead letters"), || worker.log());
    until("what ran has ended", || worker.ends().len() == worker.starts().len(), || worker.log());
    let dead = worker.ends().len();
    assert!((100..500).contains(&dead), "{dead}: the least that is judged, and what ran then");
    let output = ladder.call(&["resume", "--stage", "main"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until(
        "it goes on and stops again",
        || worker.log().matches("too many events become").count() == 2,
        || worker.log(),
    );
    assert!(worker.log().contains("the brake is released") && worker.ends().len() > dead);
}
