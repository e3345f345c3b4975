//! `pipeline prove`, small: it proves, tells what it did, and leaves nothing behind, however it ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;

use crate::redis_server::RedisServer;
use crate::support::{brokers, client_config};

/// For a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(240);

fn prove(folder: &Path, redis: &RedisServer, arguments: &[&str]) -> Child {
    let output = |name: &str| File::create(folder.join(name)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .current_dir(folder)
        .args(["prove", "--brokers", &brokers(), "--redis", &redis.url()])
        .args(arguments)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(output("out"))
        .stderr(output("err"))
        .spawn()
        .unwrap()
}

fn text(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap_or_default()
}

fn wait(mut process: Child, folder: &Path) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            process.kill().and_then(|()| process.wait()).map(drop).ok();
            panic!("no end within {PATIENCE:?}: {}", text(folder, "err"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The main topic of the run, as it says.
fn topic(folder: &Path) -> Option<String> {
    let err = text(folder, "err");
    let line = err.lines().find_map(|line| line.strip_prefix("topic "))?;
    Some(line.split(',').next()?.to_owned())
}

fn assert_nothing_is_left(folder: &Path, redis: &RedisServer) {
    let topic = topic(folder).expect("the run names its topic");
    let consumer: BaseConsumer = client_config().create().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let known = consumer.fetch_metadata(None, Duration::from_secs(30)).unwrap();
        let left: Vec<_> = known.topics().iter().map(|t| t.name()).filter(|name| name.starts_with(&topic)).collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "topics are left: {left:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(crate::outside::keys(&redis.url(), &topic), [], "keys are left");
    assert!(!folder.join(&topic).exists(), "the workers' files are left");
    let left: Vec<_> = workers_of(&topic);
    assert!(left.is_empty(), "workers are left: {left:?}");
}

/// Process ids of the workers of a run, by their command lines.
fn workers_of(topic: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let is_worker = |pid: &String| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("prove-worker") && line.contains(topic)
    };
    processes.map(|p| p.file_name().to_string_lossy().into_owned()).filter(is_worker).collect()
}

#[test]
fn a_small_proof_under_kills_a_freeze_and_an_outage_holds_and_tells_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let redis = RedisServer::start();
    let report = folder.path().join("report.json");
    let load = ["--events", "3000", "--rate", "200", "--kills", "3", "--freezes", "1", "--redis-outages", "1"];
    let told = ["--seed", "11", "--json", "--report", report.to_str().unwrap()];
    let process = prove(folder.path(), &redis, &[&load[..], &told].concat());
    let status = wait(process, folder.path());
    let (out, err) = (text(folder.path(), "out"), text(folder.path(), "err"));
    assert_eq!(status.code(), Some(0), "{out}\n{err}");
    let report: Value = serde_json::from_str(&text(folder.path(), "report.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&out).expect("JSON alone"), report);
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    for (name, expect) in [("produced", 3000), ("lost", 0), ("repeated_unexplained", 0), ("early", 0)] {
        assert_eq!(number(name), expect, "{name}: {out}");
    }
    let ended = number("done") + number("dead_lettered");
    assert!((3000..=3000 + number("ended_twice")).contains(&ended), "{out}");
    assert!(number("executions") > 3000 && report["lateness_ms"]["p99"].as_f64() > Some(0.0), "{report}");
    let list = |name: &str| report[name].as_array().unwrap().len();
    assert_eq!((list("stages"), list("faults"), list("invariants")), (4, 5, 10), "{report}");
    let done: u64 = report["stages"].as_array().unwrap().iter().map(|s| s["done"].as_u64().unwrap()).sum();
    assert!(done >= number("done"), "{report}");
    // The plan was told before it was carried out, and the faults are the plan's.
    for what in report["faults"].as_array().unwrap().iter().map(|f| f["what"].as_str().unwrap()) {
        assert!(err.contains(what), "{what} was not told: {err}");
    }
    let held = |f: &Value| f["in_hand"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
    let held: u64 = report["faults"].as_array().unwrap().iter().map(held).sum();
    // A machine that stood still has its part.
    let stalls = report["stalls"].as_array().unwrap().iter().map(|s| s["leases_lost"].as_u64().unwrap()).sum::<u64>();
    let unanswered = report["unanswered"]["leases_lost"].as_u64().unwrap();
    assert!(held + stalls + unanswered >= number("repeated"), "{report}");
    assert!(report["invariants"].as_array().unwrap().iter().all(|i| i["holds"] == true), "{report}");
    assert_nothing_is_left(folder.path(), &redis);
}

#[test]
fn interrupted_it_ends_its_workers_and_removes_what_it_made() {
    let folder = tempfile::tempdir().unwrap();
    let redis = RedisServer::start();
    // A frozen worker, too, must not be left.
    let load = ["--events", "100000", "--rate", "100", "--kills", "0", "--freezes", "2", "--redis-outages", "0"];
    let process = prove(folder.path(), &redis, &[&load[..], &["--lease", "10m"]].concat());
    let deadline = Instant::now() + PATIENCE;
    while !text(folder.path(), "err").contains("events produced") {
        assert!(Instant::now() < deadline, "{}", text(folder.path(), "err"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let workers = workers_of(&topic(folder.path()).unwrap());
    assert_eq!(workers.iter().collect::<BTreeSet<_>>().len(), 4, "{workers:?}");
    let pid = rustix::process::Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = wait(process, folder.path());
    assert_eq!(status.code(), Some(1), "{}", text(folder.path(), "err"));
    for told in ["interrupted: this round does not count", "interrupted; nothing was proved"] {
        assert!(text(folder.path(), "err").contains(told), "{}", text(folder.path(), "err"));
    }
    assert_nothing_is_left(folder.path(), &redis);
}

#[test]
fn what_cannot_be_proved_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&["--workers", "1"][..], "--workers: at least 2"),
        (&["--rate", "0"], "'--rate <R>': not a number above 0"),
        (&["--lease", "1h"], "--lease: out of range; right would be 3s to 10m"),
        (&["--redis", "rediss://localhost:6380"], "proxy in front of a plain redis://"),
    ] {
        let mut process = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        let output =
            process.current_dir(folder.path()).args(["prove", "--brokers", &brokers()]).args(arguments).output();
        let output = output.unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{err}");
        assert!(err.contains(words), "{err}");
    }
}
