//! What the command says about itself: version, completions, manual pages.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

fn pipeline(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `--help` lists below these words.
fn commands(words: &[&str]) -> Vec<String> {
    let help = pipeline(&[words, &["--help"]].concat());
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
    let names = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_version_names_the_commit_and_librdkafka() {
    let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let head = head.map(|git| String::from_utf8(git.stdout).unwrap()).unwrap_or_default();
    let is_checkout = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.git")).exists() && head.len() > 12;
    let commit = match option_env!("LADDER_COMMIT") {
        Some(commit) => commit,
        None if is_checkout => &head[..12],
        None => "unknown",
    };
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("pipeline {version} (commit {commit}, librdkafka {librdkafka})\n");
    assert_eq!(pipeline(&["--version"]), expected);
}

#[test]
fn the_commit_is_the_newest_entry_of_the_reflog() {
    let (old, new) = ("1".repeat(40), "0123456789abcdef".repeat(4));
    for (reflog, expected) in [
        (String::new(), "unknown"),
        (format!("{old} 23456789abcdef00 a <a@b> 1 +0000\tcommit: x y\n"), "23456789abcd"),
        (format!("{old} {old} a <a@b> 1 +0000\tcommit\n{old} {new} a <a@b> 2 +0000\tcheckout\n"), "0123456789ab"),
        (format!("{old} 2345\n"), "unknown"),
    ] {
        assert_eq!(retry_ladder::cli::head(reflog.as_bytes()), expected, "{reflog}");
    }
}

#[test]
fn the_manual_lists_every_command() {
    let page = pipeline(&["man"]);
    let found = commands(&[]);
    assert!(found.len() > 12, "{found:?}");
    for name in &found {
        assert!(page.contains(&format!("pipeline\\-{}(1)", name.replace('-', "\\-"))), "no `{name}` in {page}");
    }
    assert!(!page.contains("worker") && !page.contains("pipeline\\-help"), "hidden: {page}");

    let folder = tempfile::tempdir().unwrap();
    assert_eq!(pipeline(&["man", "--out", folder.path().to_str().unwrap()]), "");
    let page = |name: &str| std::fs::read_to_string(folder.path().join(format!("pipeline{name}.1"))).unwrap();
    assert!(page("").contains("Exit codes"));
    for name in found {
        assert!(page(&format!("-{name}")).starts_with(".ie"), "{name}");
        for below in commands(&[&name]) {
            page(&format!("-{name}-{below}"));
        }
    }
}

/// Every command that does something, as its words.
fn leaves(words: &[String]) -> Vec<Vec<String>> {
    let below = commands(&words.iter().map(String::as_str).collect::<Vec<_>>());
    if below.is_empty() {
        return vec![words.to_vec()];
    }
    below.into_iter().flat_map(|name| leaves(&[words, &[name]].concat())).collect()
}

#[test]
fn every_command_has_an_example_and_says_what_it_prints_as_json_too() {
    let leaves = leaves(&[]);
    assert!(leaves.len() > 20, "{leaves:?}");
    for words in leaves {
        let line = words.join(" ");
        let help = pipeline(&[words.iter().map(String::as_str).collect(), vec!["--help"]].concat());
        assert!(help.contains(&format!("pipeline {line}")) && help.contains("Example"), "{line}: {help}");
        // A script, a page of roff, and letters that are JSON in any case.
        let is_text = ["completions", "man", "dlq export"].contains(&line.as_str());
        assert_eq!(help.contains("--json"), !is_text, "{line}: {help}");
        // What the demo brings with it, nobody chooses.
        assert_eq!(help.contains("--config"), line != "demo", "{line}: {help}");
    }
    let exit_codes = pipeline(&["--help"]);
    assert!(exit_codes.contains("69 Kafka, Redis or a handler's database not reachable"), "{exit_codes}");
}

#[test]
fn the_console_says_where_it_is_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let topics = "kafka: { brokers: 127.0.0.1:1 }\npipelines: { p: { topic: t, message: shop.v1.OrderPlaced, handler: { log: {} } } }";
    std::fs::write(folder.path().join("topics.yaml"), topics).unwrap();
    let mut console = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    console.args(["console", "--json", "--listen", "127.0.0.1:0"]).current_dir(folder.path());
    let mut console = console.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(console.stdout.take().unwrap()).read_line(&mut line).unwrap();
    console.kill().unwrap();
    console.wait().unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let address = told["url"].as_str().unwrap().strip_prefix("http://127.0.0.1:").unwrap();
    assert_ne!(address.trim_end_matches('/').parse::<u16>().unwrap(), 0);
}

#[test]
fn shells_take_their_completions() {
    for (shell, check) in [("bash", "bash"), ("zsh", "zsh"), ("fish", "fish")] {
        let script = pipeline(&["completions", shell]);
        for name in commands(&[]) {
            assert!(script.contains(&name), "{shell}: no `{name}`");
        }
        assert!(!script.contains("prove-worker"), "{shell} offers a hidden command");
        let mut command = Command::new(check);
        match command.arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn() {
            Ok(mut reader) => {
                reader.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                let read = reader.wait_with_output().unwrap();
                assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr));
            }
            Err(error) => assert_ne!(shell, "bash", "{error}"), // the others are not on every machine
        }
    }
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = pipeline(&["completions", "bash"]);
    for (line, expected) in
        [("pipeline dlq re", "redrive"), ("pipeline topics ch", "check"), ("pipeline --sta", "--stage")]
    {
        let words = line.split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>();
        let (last, before) = (&words[words.len() - 1], &words[words.len() - 2]);
        let ask = format!(
            "{script}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_pipeline pipeline {last} {before}\necho \"${{COMPREPLY[@]}}\"\n",
            words.join(" "),
            words.len() - 1
        );
        let output = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{line}");
    }
}
