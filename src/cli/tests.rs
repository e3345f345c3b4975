//! What the command line takes; and that the documents show only calls that it takes.

use std::collections::BTreeSet;

use super::*;

#[allow(dead_code, reason = "tests/docs uses the rest")]
#[path = "../../tests/support/pages.rs"]
mod pages;

#[test]
fn remedies_repeat_the_flags_that_were_given() {
    let text = "missing; remedy: scripts/create-topics.sh creates it; `pipeline --stage main` runs it";
    assert_eq!(
        with_flags(text, " --config a.yaml"),
        "missing; remedy: scripts/create-topics.sh --config a.yaml creates it; `pipeline --config a.yaml --stage \
         main` runs it"
    );
    assert_eq!(with_flags(text, ""), text);
}

#[test]
fn the_help_of_the_demo_offers_no_flag_that_it_ignores() {
    let mut command = Cli::command();
    command.build();
    let help = |command: &mut clap::Command, name: &str| {
        command.find_subcommand_mut(name).expect("a command").render_long_help().to_string()
    };
    let demo = help(&mut command, "demo");
    assert!(!demo.contains("--config") && !demo.contains("--brokers"), "{demo}");
    assert!(help(&mut command, "status").contains("--config"));
    let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.config);
    assert_eq!(parse("pipeline status --config x").unwrap(), Some("x".into()));
    // Still taken, to be told that they are not used.
    assert!(parse("pipeline demo --config x --brokers b:1").is_ok());
}

#[test]
fn a_negative_value_is_refused_as_a_value_and_not_as_an_unknown_flag() {
    for (line, expected) in [
        ("pipeline produce --rate -5", "not a number above 0"),
        ("pipeline produce --rate nan", "not a number above 0"),
        ("pipeline produce --count -5", "invalid digit"),
        ("pipeline produce --garbage-ratio -0.1", "not a share from 0 to 1"),
        ("pipeline demo --fail-ratio -1", "not a share from 0 to 1"),
        ("pipeline demo --events -1", "invalid value '-1'"),
    ] {
        let error = Cli::try_parse_from(line.split(' ')).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("invalid value"), "{line}: {error}");
    }
}

/// What stands in documents for something of the reader's.
const STANDS_FOR: [(&str, &str); 7] = [
    ("F", "1f0c39a2b4d6"),
    ("S", "main"),
    ("N", "1"),
    ("SHELL", "bash"),
    ("[--watch]", "--watch"),
    ("LETTER", "3:1742"),
    ("HOST:PORT", "localhost:9092"),
];

/// The calls in a line of shell or a span of code, each as its words, `pipeline` first.
fn calls(line: &str) -> Vec<Vec<String>> {
    let line = line.replace("cargo run --bin pipeline --", "pipeline").replace("\\|", "¦");
    let line = line.split(" #").next().unwrap_or_default();
    let parts = line.split([';', '&', '|', '>']).map(str::trim);
    let mut calls = Vec::new();
    for part in parts.filter(|part| part.starts_with("pipeline ") && !part.contains('…')) {
        let quoted = part.split('\'').enumerate();
        let words = quoted.flat_map(|(i, text)| match i % 2 {
            0 => text.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![text.to_owned()],
        });
        let words = words.map(|word| {
            let meant = STANDS_FOR.iter().find(|(name, _)| *name == word);
            meant.map_or(word.clone(), |(_, meant)| (*meant).to_owned())
        });
        let words: Vec<_> = words.collect();
        // `check¦print` are two calls.
        let most = words.iter().map(|word| word.split('¦').count()).max().unwrap_or(1);
        calls.extend((0..most).map(|nth| {
            let one = |word: &String| word.split('¦').nth(nth.min(word.split('¦').count() - 1)).map(str::to_owned);
            words.iter().filter_map(one).collect()
        }));
    }
    calls
}

#[test]
fn the_calls_in_a_line_are_found() {
    assert_eq!(calls("echo x | cargo run --bin pipeline -- trace a-1   # one"), [["pipeline", "trace", "a-1"]]);
    assert_eq!(calls("pipeline topics create\\|list").len(), 2);
    assert_eq!(calls("pipeline pause --reason 'a b' &"), [["pipeline", "pause", "--reason", "a b"]]);
    assert!(calls("pipeline --stage …").is_empty() && calls("kubectl").is_empty());
}

#[test]
fn every_call_in_the_documents_and_in_remedies_is_one_that_is_taken() {
    let mut texts = pages::pages();
    for name in
        ["tests/messages/source.txt", "tests/messages/commands.txt", "deploy/prometheus/alerts.yml", "topics.yaml"]
    {
        texts.push(pages::Page { name: name.to_owned(), text: pages::read(name) });
    }
    let mut seen = 0;
    for page in texts {
        for line in page.commands().iter().chain(&page.spans()) {
            // In a sentence the name may be left out: `topics check`.
            let is_short = Cli::command().get_subcommands().any(|c| line.starts_with(&format!("{} ", c.get_name())));
            let line = if is_short { format!("pipeline {line}") } else { line.clone() };
            for call in calls(&line) {
                seen += 1;
                let taken = Cli::try_parse_from(&call).map_err(|error| (error.kind(), error.to_string()));
                // In a sentence a call may be shortened.
                let shortened = [
                    clap::error::ErrorKind::MissingRequiredArgument,
                    clap::error::ErrorKind::MissingSubcommand,
                    clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ];
                if let Err((kind, error)) = taken {
                    assert!(shortened.contains(&kind), "{}: {call:?}: {error}", page.name);
                }
            }
        }
    }
    assert!(seen > 80, "{seen}");
}

#[test]
fn the_readme_lists_every_command_and_the_exit_codes_as_the_help_does() {
    let readme = pages::read("README.md");
    let table =
        readme.split("\n## Commands\n").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let listed: BTreeSet<_> =
        table.split('`').skip(1).step_by(2).flat_map(calls).filter_map(|call| call.get(1).cloned()).collect();
    let command = Cli::command();
    let known = command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned());
    // `pause\|resume` are words of one place.
    assert_eq!(listed, known.chain(["--stage".to_owned()]).collect());

    let codes = |text: &str| {
        let text =
            text.split("Exit codes: ").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default().to_owned();
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        numbers.map(str::to_owned).collect::<Vec<_>>()
    };
    let help = Cli::command().get_after_help().map(ToString::to_string).unwrap_or_default();
    assert_eq!(
        (codes(&readme), codes(&help)),
        (vec!["0", "64", "69", "70", "1"].into_iter().map(str::to_owned).collect(), codes(&readme))
    );
}
