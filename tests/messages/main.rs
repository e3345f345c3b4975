//! Every message that a user can meet, in full, so that a change of one is read before it is made:
//!
//! | file | holds |
//! |---|---|
//! | `config.txt` | faulty configurations, each with what is said of it |
//! | `commands.txt` | calls that are refused or cannot go on, each with its output and exit code |
//! | `source.txt` | the texts of errors, failures, warnings and alarms as they stand in the code |
//!
//! Each is compared in full. A line behind a prompt (`orders>`, `$`) is the question, what follows is the answer: to add a
//! case, add its line. `LADDER_BLESS=1 cargo test --test messages` writes the answers anew; then read the difference
//! aloud: what is wrong, where, and what would be right?
#![allow(clippy::unwrap_used, reason = "a test")]

mod source;
#[allow(dead_code, reason = "tests/tidy uses the rest")]
#[path = "../tidy/rust.rs"]
mod rust;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use retry_ladder::config::{Sources, load};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/messages")
}

/// Compares a file with what is so now, or writes it.
fn golden(name: &str, now: &str) {
    let path = folder().join(name);
    if std::env::var_os("LADDER_BLESS").is_some() {
        fs::write(&path, now).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap();
    let mut lines = held.lines().zip(now.lines()).enumerate().filter(|(_, (held, now))| held != now);
    if let Some((at, (held, now))) = lines.next() {
        panic!(
            "{name}:{}:\n  held {held}\n  now  {now}\nread it aloud, then LADDER_BLESS=1 cargo test --test messages",
            at + 1
        );
    }
    assert_eq!(held.lines().count(), now.lines().count(), "{name}: LADDER_BLESS=1 cargo test --test messages");
}

/// The file with the answer to each question written anew; all but questions, answers and empty lines stays.
fn answered(name: &str, prompts: &[&str], answer: impl Fn(&str, &str) -> String + Sync) -> String {
    let held = fs::read_to_string(folder().join(name)).unwrap();
    let questions: Vec<_> =
        held.lines().filter(|line| line.starts_with('#') || prompt_of(line, prompts).is_some()).collect();
    // Some wait for a server that is not there.
    let answers = std::thread::scope(|scope| {
        let share = questions.len().div_ceil(8);
        let answer = &answer;
        let parts: Vec<_> = questions
            .chunks(share)
            .map(|part| {
                scope.spawn(move || {
                    let told = |line: &&str| prompt_of(line, prompts).map(|(prompt, asked)| answer(prompt, asked));
                    part.iter().map(told).collect::<Vec<_>>()
                })
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect::<Vec<_>>()
    });
    let mut out = String::new();
    for (line, answer) in questions.iter().zip(answers) {
        let gap = if line.starts_with("# ") { "" } else { "\n" };
        out += &format!("{gap}{line}\n{}", answer.unwrap_or_default());
    }
    out
}

fn prompt_of<'l>(line: &'l str, prompts: &[&'l str]) -> Option<(&'l str, &'l str)> {
    prompts.iter().find_map(|prompt| Some((*prompt, line.strip_prefix(prompt)?)))
}

#[test]
fn faults_of_the_configuration() {
    let now = answered("config.txt", &["orders> ", "handler> ", "beside> ", "file> "], |prompt, asked| {
        let pipeline = |handler: &str, keys: &str| {
            format!(
                "pipelines: {{orders: {{topic: orders, message: shop.v1.OrderPlaced, handler: {handler}, {keys}}}}}\n"
            )
        };
        let file = match prompt {
            "orders> " => pipeline("{log: {}}", asked),
            "handler> " => pipeline(asked, ""),
            "beside> " => pipeline("{log: {}}", "") + asked,
            _ => asked.to_owned(),
        };
        match load(&Sources::inline("topics.yaml", &file)) {
            Ok(_) => format!("no fault in {file}"),
            Err(faults) => faults.0.iter().map(|fault| format!("{fault}\n")).collect(),
        }
    });
    golden("config.txt", &now);
}

/// Neither server is there: port 1 refuses.
const TOPICS: &str = "
kafka: { brokers: '127.0.0.1:1', startup_timeout: 1s }
redis: { url: 'redis://127.0.0.1:1' }
telemetry: { jaeger_url: 'http://127.0.0.1:1' }
pipelines:
  orders: { topic: orders, group: billing, message: shop.v1.OrderPlaced, handler: { log: {} } }
  steps: { topic: steps, group: train, message: ml.v1.PipelineStep, handler: { log: {} }, retries: [] }
";

#[test]
fn refusals_of_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("topics.yaml"), TOPICS).unwrap();
    let now = answered("commands.txt", &["$ pipeline "], |_, asked| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIPELINE_")) {
            command.env_remove(name);
        }
        let words = asked.split_whitespace();
        let output = command.args(words).current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{asked}: a refusal goes to standard error");
        let told = String::from_utf8(output.stderr).unwrap();
        // Neither log lines nor what clap says below each of its errors; librdkafka's times vary.
        let told =
            told.lines().filter(|l| !l.is_empty() && !l.starts_with("20") && !l.starts_with("For more information"));
        let told: String = told.map(|line| without_times(line) + "\n").collect();
        format!("{told}exit {}\n", output.status.code().unwrap_or(-1))
    });
    golden("commands.txt", &now);
}

/// Without librdkafka's ` (after 3ms in state CONNECT, 1 identical error(s) suppressed)`.
fn without_times(line: &str) -> String {
    let Some((before, rest)) = line.split_once(" (after ") else { return line.to_owned() };
    let mut depth = 1;
    let end = rest.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    before.to_owned() + &rest[end.map_or(rest.len(), |end| end + 1)..]
}

#[test]
fn texts_in_the_code() {
    golden("source.txt", &source::texts(Path::new(env!("CARGO_MANIFEST_DIR"))));
}
