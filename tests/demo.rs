//! `pipeline demo` as a newcomer runs it, and the library example: without a server, in an empty directory. What must
//! come of the events is computed here from the published rule, not taken from the program.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use retry_ladder::handlers::simulate::{SimulateOptions, Verdict};
use serde_json::Value;

#[path = "../examples/library.rs"]
mod library;

fn demo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.arg("demo").args(args).env_remove("RUST_LOG");
    command
}

fn run(args: &[&str]) -> Output {
    let empty = tempfile::tempdir().unwrap();
    demo(args).current_dir(empty.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// By stage main, retry-1, retry-2, retry-3: executions, done, forwarded, dead-lettered.
fn expected(events: u64, options: &SimulateOptions) -> [[u64; 4]; 4] {
    let mut stages = [[0; 4]; 4];
    for id in (1..=events).map(|n| format!("order-{n:06}")) {
        for (stage, attempt) in (0..4).zip(1..) {
            stages[stage][0] += 1;
            let column = match options.verdict(&id, attempt) {
                Verdict::Done => 1,
                Verdict::Transient if stage < 3 => 2,
                Verdict::Transient | Verdict::Permanent => 3,
            };
            stages[stage][column] += 1;
            if column != 2 {
                break;
            }
        }
    }
    stages
}

#[test]
fn the_numbers_are_those_of_the_rule() {
    let output = run(&["--events", "200", "--json", "--seed", "7", "--fail-ratio", "0.5"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout).lines().count(), 1, "one line on stdout: {output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();

    let options = SimulateOptions { seed: 7, fail_ratio: 0.5, ..SimulateOptions::default() };
    let stages = expected(200, &options);
    let sum = |column: usize| stages.iter().map(|stage| stage[column]).sum::<u64>();
    assert!(sum(3) > 0 && stages[3][0] > 0, "the seed shows the whole ladder: {stages:?}");
    let number = |key: &str| json[key].as_u64().unwrap_or_else(|| panic!("{key} in {json}"));
    assert_eq!(number("produced"), 200);
    assert_eq!(number("done"), sum(1));
    assert_eq!(number("dead_lettered"), sum(3));
    assert_eq!(number("executions"), sum(0));
    for zero in ["lost", "repeated_unexplained", "early"] {
        assert_eq!(number(zero), 0, "{zero}");
    }
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let contract = [
        "produced",
        "done",
        "dead_lettered",
        "lost",
        "executions",
        "repeated_unexplained",
        "early",
        "lateness_ms",
        "stages",
    ];
    assert_eq!(keys, contract);
    let told: Vec<_> = json["stages"].as_array().unwrap().iter().collect();
    assert_eq!(told.len(), stages.len());
    for (n, (told, numbers)) in told.iter().zip(stages).enumerate() {
        let name = if n == 0 { "main".to_owned() } else { format!("retry-{n}") };
        assert_eq!(told["stage"], *name);
        for (key, number) in ["executions", "done", "forwarded", "dead_lettered"].into_iter().zip(numbers) {
            assert_eq!(told[key], number, "{key} of {name}");
        }
    }
    let late = |key: &str| json["lateness_ms"][key].as_f64().unwrap();
    assert!(late("p50") > 0.0 && late("p50") <= late("p99") && late("p99") <= late("max"), "{json}");

    let told = text(&output.stderr);
    assert!(told.contains("listens on 127.0.0.1:") && told.contains("Nothing here is durable"), "{told}");
    assert!(told.contains("It adds up: 200 produced"), "{told}");
    assert!(!told.contains('\x1b'), "no escape codes without a terminal: {told:?}");
    assert!(told.lines().all(|line| !line.contains("WARN") && !line.contains("ERROR")), "{told}");
}

#[test]
fn what_it_cannot_do_is_refused_at_once() {
    let check = |args: &[&str], reason: &str| {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(reason), "{args:?}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    };
    check(&["--events", "1000000"], "more than the embedded broker holds: at most ");
    check(&["--events", "0"], "--events");
    check(&["--fail-ratio", "1.5"], "'1.5' for '--fail-ratio <R>': not a share from 0 to 1");
    check(&["--seed", "x"], "--seed");
}

#[test]
fn a_signal_ends_it_cleanly_and_what_is_on_the_ladder_is_not_lost() {
    let empty = tempfile::tempdir().unwrap();
    let mut child = demo(&["--events", "100", "--fail-ratio", "1", "--json"])
        .current_dir(empty.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its second line of progress comes after two seconds, when the ladder is full.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let full = |line: &str| line.contains("produced ") && !line.contains("produced 0 of");
    assert!(lines.by_ref().any(|line| full(&line.unwrap())), "no progress");
    let signalled = Instant::now();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?} {told:#?}");
    assert!(signalled.elapsed() < Duration::from_secs(10), "{:?}", signalled.elapsed());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| json[key].as_u64().unwrap_or_else(|| panic!("{key} in {json}"));
    assert_eq!(number("lost"), 0);
    assert!(number("unfinished") > 0, "{json}");
    assert_eq!(number("produced"), number("done") + number("dead_lettered") + number("unfinished"));
    assert!(told.iter().any(|line| line.contains("It adds up so far")), "{told:#?}");
}

#[test]
fn the_library_example_runs_to_its_end() {
    library::main().unwrap();
}
