//! Links, files, items, tests and log texts that the documents name.

use std::fs;
use std::path::Path;

use crate::pages::{Page, pages, read, root};

#[test]
fn links_lead_somewhere() {
    let slug = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    let mut seen = 0;
    for Page { name, text } in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|l| !l.contains("://")) {
            seen += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file =
                if file.is_empty() { root().join(&name) } else { root().join(&name).parent().unwrap().join(file) };
            assert!(file.exists(), "{name}: {link} does not exist");
            let is_there =
                || fs::read_to_string(&file).unwrap().lines().any(|l| l.starts_with('#') && slug(l) == anchor);
            assert!(anchor.is_empty() || is_there(), "{name}: {link}: no such section");
        }
    }
    assert!(seen > 50, "{seen}");
}

/// Folders of the tree, as the documents write them.
const FOLDERS: [&str; 9] = ["src/", "tests/", "docs/", "scripts/", "deploy/", "examples/", "benches/", "fuzz/", ".ci/"];

#[test]
fn files_and_items_exist() {
    let mut faults = Vec::new();
    let mut items = 0;
    for page in pages() {
        for span in page.spans().iter().chain(&page.commands()) {
            let word = span.split(' ').next().unwrap();
            // `…` and NAME stand for something.
            if word.contains(['…', '*', '<']) || word.contains("NAME") {
                continue;
            }
            let (file, item) = word.split_once('#').unwrap_or((word, ""));
            let is_in_src = !file.contains('.') || file.ends_with(".rs");
            let place = match FOLDERS.iter().any(|folder| file.starts_with(folder)) {
                true => file.to_owned(),
                false if is_in_src && is_module(file.split('/').next().unwrap()) && file.contains('/') => {
                    format!("src/{file}")
                }
                false => continue,
            };
            let found = [place.clone(), format!("{place}.rs")].into_iter().find(|place| root().join(place).exists());
            match found {
                None => faults.push(format!("{}: {word} does not exist", page.name)),
                Some(file) if !item.is_empty() => {
                    items += 1;
                    if !declares(&read(&file), item) {
                        faults.push(format!("{}: {file} has no `{item}`", page.name));
                    }
                }
                Some(_) => {}
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    assert!(items > 40, "{items}: docs/rules.md names each rule's place and test");
}

/// A folder or file right below src.
fn is_module(name: &str) -> bool {
    !name.is_empty() && (root().join("src").join(name).is_dir() || root().join(format!("src/{name}.rs")).exists())
}

/// Whether it is declared here, be it by a macro that is given a list of names.
fn declares(code: &str, item: &str) -> bool {
    ["fn", "struct", "enum", "const"].iter().any(|kind| says(code, &format!("{kind} {item}")))
        || code.lines().any(|line| line.trim().trim_end_matches(',') == item)
}

/// Whether an item, or a test, has this name; with `…` at its end: one that begins so.
fn says(code: &str, item: &str) -> bool {
    let (item, is_whole) = item.strip_suffix('…').map_or((item, true), |start| (start, false));
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(item).any(|(at, _)| {
        let (before, after) = (code[..at].chars().next_back(), code[at + item.len()..].chars().next());
        !(before.is_some_and(is_word) || is_whole && after.is_some_and(is_word))
    })
}

#[test]
fn paths_of_modules_and_tests_exist() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let is_path =
            |span: &&String| span.contains("::") && span.starts_with(char::is_lowercase) && !span.contains([' ', '<']);
        for span in page.spans().iter().filter(is_path) {
            let span = span.split('(').next().unwrap();
            let parts: Vec<_> = span.split("::").collect();
            let base = if is_module(parts[0]) { "src" } else { "tests/live" };
            seen += 1;
            if parts[1] != "…" && !path_exists(&root().join(base), &parts) {
                faults.push(format!("{}: {span} does not exist", page.name));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    assert!(seen > 20, "{seen}");
}

/// Folders and files as far as they go; the last of them, or what lies below it, has the items that are left.
fn path_exists(base: &Path, parts: &[&str]) -> bool {
    let (mut place, mut rest, mut code) = (base.to_owned(), parts, String::new());
    while let Some((first, after)) = rest.split_first().filter(|(first, _)| place.join(first).is_dir()) {
        (place, rest) = (place.join(first), after);
    }
    let file = rest.first().map(|first| place.join(format!("{first}.rs"))).filter(|file| file.exists());
    match file {
        Some(file) => (code, rest) = (fs::read_to_string(file).unwrap(), &rest[1..]),
        None if place == base => return false,
        None => collect(&place, &mut code),
    }
    rest.iter().all(|item| says(&code, item))
}

#[test]
fn tests_and_benches_that_are_to_be_called_exist() {
    let sources = |folder: &str| {
        let mut all = String::new();
        collect(&root().join(folder), &mut all);
        all
    };
    let mut seen = 0;
    for page in pages() {
        for line in page.spans().iter().chain(&page.commands()).filter(|line| line.starts_with("cargo ")) {
            let words: Vec<_> = line.split(' ').filter(|word| *word != "--").collect();
            let (folder, filters) = match words[1..] {
                ["test", "--lib", ref filters @ ..] => ("src".to_owned(), filters),
                ["test", "--test", name, ref filters @ ..] => (target("tests", name), filters),
                ["bench", "--bench", name, ..] => (target("benches", name), &[][..]),
                _ => continue,
            };
            seen += 1;
            assert!(root().join(&folder).exists(), "{}: {line}: no {folder}", page.name);
            let code = if folder.ends_with(".rs") { read(&folder) } else { sources(&folder) };
            for filter in filters.iter().filter(|filter| **filter != "FILTER") {
                let last = filter.rsplit("::").next().unwrap();
                assert!(code.contains(last), "{}: {line}: no test is called so", page.name);
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

fn target(folder: &str, name: &str) -> String {
    let file = format!("{folder}/{name}.rs");
    if root().join(&file).exists() { file } else { format!("{folder}/{name}") }
}

/// All code below a folder, and the names of its files.
fn collect(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            *all += &format!("{}\n", path.file_name().unwrap().to_string_lossy());
            collect(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            *all += &format!("{}\n{}", path.file_stem().unwrap().to_string_lossy(), fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn lines_that_are_to_be_looked_for_in_logs_can_be_written() {
    let mut code = String::new();
    collect(&root().join("src"), &mut code);
    // A text may go over lines.
    let code = code.split("\\\n").map(str::trim_start).collect::<String>();
    let mut seen = 0;
    for page in pages() {
        for line in page.spans().iter().filter(|span| span.starts_with("grep ") && span.ends_with(" LOG")) {
            let pattern = line.split('\'').nth(1).unwrap();
            for text in alternatives(pattern) {
                seen += 1;
                assert!(code.contains(&text), "{}: {line}: nothing says «{text}»", page.name);
            }
        }
    }
    assert!(seen > 10, "{seen}");
}

/// `a (b|c)|d`: `a b`, `a c`, `d`.
fn alternatives(pattern: &str) -> Vec<String> {
    if let (Some(open), Some(close)) = (pattern.find('('), pattern.find(')')) {
        let (before, after) = (&pattern[..open], &pattern[close + 1..]);
        let inner = pattern[open + 1..close].split('|');
        return inner.flat_map(|one| alternatives(&format!("{before}{one}{after}"))).collect();
    }
    pattern.split('|').map(str::to_owned).collect()
}

/// Who runs the commands of the documents' blocks: how a line begins, where it is run, and a word that stands there.
const RUN_BY: &[(&str, &str, &str)] = &[
    ("cargo run --bin pipeline -- demo", "tests/demo.rs", "demo"),
    ("cargo run --bin pipeline -- console", "tests/live/console/serve.rs", "console"),
    ("scripts/test --live every_panel_has_data", "tests/live/operations/prometheus.rs", "every_panel_has_data…"),
    ("scripts/test", ".ci/run", "test"),
    ("promtool test rules", "scripts/verify", "promtool"),
    ("pipeline prove", "tests/live/prove.rs", "prove"),
    ("pipeline dlq groups", "tests/live/dlq.rs", "groups"),
    ("pipeline dlq show", "tests/live/dlq.rs", "show"),
    ("pipeline dlq redrive", "tests/live/dlq.rs", "redrive"),
    ("pipeline pause", "tests/live/operations/pauses.rs", "pause"),
    ("pipeline resume", "tests/live/operations/pauses.rs", "resume"),
    ("pipeline status", "tests/live/operations/pauses.rs", "status"),
    ("pipeline forget", "tests/live/operations/forget.rs", "forget"),
    ("pipeline produce", "tests/live/operations/registry.rs", "produce"),
    ("pipeline --stage", "scripts/readme", "stage"),
    // Kafka's own tools: tried by hand; the rights that the second gives are what the test gives by Kafka's protocol.
    ("kafka-consumer-groups.sh", "tests/live/operations/forget.rs", "forget"),
    ("kafka-acls.sh", "tests/live/operations/secured.rs", "acls"),
];

#[test]
fn every_command_in_a_block_is_run_somewhere() {
    let mut faults = Vec::new();
    for page in pages() {
        // The walk runs its blocks to the letter.
        let walked = page.text.split("<!-- scripts/readme runs this").skip(1);
        let walked: String = walked.filter_map(|block| block.split("\n```").nth(1)).collect();
        for line in page.commands().iter().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if walked.contains(line.as_str()) {
                continue;
            }
            match RUN_BY.iter().find(|(start, ..)| line.starts_with(start)) {
                Some((_, file, word)) if root().join(file).exists() && says(&read(file), word) => {}
                Some((_, file, word)) => faults.push(format!("{}: {line}: no `{word}` in {file}", page.name)),
                None => faults.push(format!("{}: {line}: nobody runs it", page.name)),
            }
        }
    }
    assert_eq!(faults, [""; 0]);
}
