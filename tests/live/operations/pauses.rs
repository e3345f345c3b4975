//! `pipeline pause` and `resume`: two processes follow, a restart does too, and it is shown wherever people look.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{Ladder, Load, now, started, until, until_done};

/// An address that nobody listens at.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").to_string()
}

/// Body of a page; empty while nobody listens.
fn page(address: &str, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_default()
}

#[test]
fn a_pause_by_command_stops_every_process_outlives_a_restart_and_is_shown_everywhere() {
    let ladder = Arc::new(Ladder::created(2));
    let addresses = [free_address(), free_address(), free_address()];
    let start = |name: &str, n: usize| {
        ladder.start_with(name, &["--stage", "main"], &[("PIPELINE_ADMIN__LISTEN", addresses[n].as_str())])
    };
    let (mut first, second) = (start("first", 0), start("second", 1));
    let load = Load::start(&ladder, "main", 100);
    let starts = || [first.starts().len(), second.starts().len()];
    until("both run", || starts().iter().all(|n| *n >= 20), || format!("{:?}", starts()));

    let output = ladder.call(&["pause", "--stage", "main", "--reason", "billing moves", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON alone on standard output");
    assert_eq!((&told["stages"][0]["stage"], &told["stages"][0]["members"]), (&"main".into(), &2.into()), "{told}");
    let is_paused = |n: usize| page(&addresses[n], "/readyz").contains("\"command\"");
    until("both say so", || is_paused(0) && is_paused(1), || first.log() + &second.log());
    let stopped = now() + Duration::from_secs(2); // what a busy machine held up between its look at the gate and its start
    for n in [0, 1] {
        let metrics = page(&addresses[n], "/metrics");
        let paused = metrics.lines().find(|l| l.starts_with("ladder_paused") && l.contains("reason=\"command\""));
        assert!(paused.is_some_and(|l| l.contains("stage=\"main\"") && l.ends_with(" 1")), "{paused:?}");
        assert!(page(&addresses[n], "/status").contains("\"command\""));
    }
    for (worker, name) in [(&first, "first"), (&second, "second")] {
        assert_eq!(worker.log().matches("paused by command").count(), 1, "{name}");
        assert!(worker.log().contains("billing moves"), "{}", worker.log());
    }
    let output = ladder.call(&["status"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("main is paused by command since ") && table.contains(": billing moves"), "{table}");
    let output = ladder.call(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let stages = &status["pipelines"][0]["stages"];
    assert_eq!((&stages[0]["paused"]["reason"], &stages[1]["paused"]), (&"billing moves".into(), &Value::Null));

    // A process that starts while it is paused starts nothing, though events wait.
    first.kill();
    let third = start("third", 2);
    until("it follows", || is_paused(2), || third.log());
    let sent = load.sent().len();
    until("it has its partition", || !page(&addresses[2], "/readyz").contains("\"assignment\""), || third.log());
    until("events come meanwhile", || load.sent().len() > sent + 500, || format!("{}", load.sent().len()));
    assert_eq!(third.starts(), []);
    for worker in [&first, &second] {
        let late = worker.starts().into_iter().find(|e| e.at > stopped);
        assert!(late.is_none(), "started after both were paused: {late:?}");
    }

    let output = ladder.call(&["resume", "--stage", "all"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("orders main: resumed; 2 instances follow"), "{text}");
    let sent = load.finish();
    until_done(&sent, &[&first, &second, &third]);
    assert!(third.log().contains("resumed by command") && !is_paused(2));
    assert!(started(&[&first, &second, &third]).values().all(|n| *n == 1));
    let status = ladder.call(&["status"]);
    assert!(!String::from_utf8_lossy(&status.stdout).contains("paused"));
}

#[test]
fn the_drain_of_a_former_rung_is_paused_by_its_topic() {
    let mut ladder = Ladder::new(2);
    let retries = ladder.pipeline()["retries"].clone();
    ladder.pipeline()["retries"].as_array_mut().expect("a list").push(json!({ "delay": "800ms" }));
    let call = |ladder: &Ladder, arguments: &[&str]| {
        let output = ladder.call(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    call(&ladder, &["topics", "create"]);
    ladder.pipeline()["retries"] = retries;
    let ids = ladder.produce_all("retry-3", 5);
    let stage = format!("orphan:{}", ladder.topic("retry-3"));
    let told = call(&ladder, &["pause", "--stage", &stage]);
    assert!(told.contains(&format!("orders {stage}: paused; no instance runs it now")), "{told}");

    let address = free_address();
    let worker = ladder.start_with("worker", &["--stage", &stage], &[("PIPELINE_ADMIN__LISTEN", &address)]);
    let overdue = || -> f64 {
        let metrics = page(&address, "/metrics");
        let gauges = metrics.lines().filter(|line| line.starts_with("ladder_overdue_events{"));
        gauges.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    until("it holds all of them", || overdue() == 10.0, || worker.log());
    assert!(page(&address, "/readyz").contains("\"command\"") && worker.starts().is_empty());
    let told = call(&ladder, &["resume", "--stage", &stage]);
    assert!(told.contains("resumed; 1 instance follows"), "{told}");
    until_done(&ids, &[&worker]);
}

#[test]
fn a_pause_that_cannot_be_kept_or_names_nothing_is_refused() {
    fn check(ladder: &Ladder, arguments: &[&str], code: i32, told: &str) {
        let output = ladder.call(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
    }
    let mut ladder = Ladder::new(1);
    check(
        &ladder,
        &["pause", "--stage", "retry-9"],
        64,
        "it is one of main, retry-1, retry-2, dlq, or all; or orphan:TOPIC",
    );
    check(&ladder, &["pause", "--stage", "main", "--pipeline", "x"], 64, "configured: orders");
    check(&ladder, &["resume"], 64, "--stage");
    check(&ladder, &["pause", "--stage", "main"], 69, "control is missing; remedy: scripts/create-topics.sh");
    ladder.config["kafka"]["brokers"] = free_address().into();
    ladder.config["kafka"]["startup_timeout"] = "1s".into();
    check(&ladder, &["pause", "--stage", "main"], 69, "not reachable");
}
