//! Public names in the documents against the code: metrics, headers, keys and their defaults, variables.

use std::collections::BTreeSet;
use std::fs;

use retry_ladder::config::{KeyDoc, keys};
use retry_ladder::ladder::headers::REPAIRABLE;
use retry_ladder::telemetry::metrics;

use crate::pages::{pages, read, root};

/// Every word of all documents that begins so.
fn words(prefix: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for page in pages() {
        for word in page.text.split(|c: char| !(c.is_alphanumeric() || "_-".contains(c))) {
            if word.starts_with(prefix) && word.len() > prefix.len() {
                found.insert((page.name.clone(), word.to_owned()));
            }
        }
    }
    found
}

#[test]
fn metrics_exist() {
    let found = words("ladder_");
    assert!(found.len() > 10, "{found:?}");
    // A test is called so.
    for (page, name) in found.into_iter().filter(|(_, name)| name != "ladder_changes") {
        let is_of = |metric: &str| ["", "_bucket", "_count", "_sum"].iter().any(|end| name == format!("{metric}{end}"));
        assert!(metrics::ALL.iter().any(|metric| is_of(metric.name)), "{page}: no process tells `{name}`");
    }
}

#[test]
fn the_table_of_headers_is_complete_and_every_header_exists() {
    let known: BTreeSet<_> = REPAIRABLE.iter().filter(|name| name.starts_with("x-ladder-")).copied().collect();
    let readme = read("README.md");
    let table = readme.split("\n## Headers\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let listed: BTreeSet<_> =
        cells.flat_map(|cell| cell.split(['`', ',', ' '])).filter(|w| w.starts_with("x-")).collect();
    assert_eq!(listed, known);
    for (page, name) in words("x-ladder-") {
        assert!(known.contains(&*name), "{page}: there is no header `{name}`");
    }
}

/// `pipelines.<name>.retries[].delay` as the documents write it: `pipelines.P.retries.delay`.
fn plain(path: &str) -> String {
    path.replace("<name>", "P").replace("[]", "")
}

#[test]
fn the_table_of_keys_names_keys_with_their_defaults() {
    let all: Vec<KeyDoc> = keys().collect();
    let readme = read("README.md");
    let table = readme.split("\n| key | default | meaning |\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut listed = 0;
    for row in table.lines().skip(1) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let (mut above, mut first) = (String::new(), true);
        for path in cells[0].split(", ").map(|path| path.trim_matches('`')) {
            let path = match path.strip_prefix('.') {
                Some(last) => format!("{above}.{last}"),
                None => path.to_owned(),
            };
            above = path.rsplit_once('.').map_or(String::new(), |(above, _)| above.to_owned());
            let key =
                all.iter().find(|key| plain(&key.path) == path).unwrap_or_else(|| panic!("README.md: no key {path}"));
            let told = cells[1].split('`').nth(1).filter(|_| first && cells[1].starts_with('`'));
            if let Some(told) = told {
                let default = key.default.unwrap_or_default();
                // What follows from something else is null by itself.
                assert!(default == told || default == "null", "README.md: {path} is {default} by default, not {told}");
            }
            (first, listed) = (false, listed + 1);
        }
    }
    assert!(listed > 15, "{listed}");
}

#[test]
fn keys_exist() {
    let all: Vec<String> = keys().map(|key| plain(&key.path)).collect();
    let firsts: BTreeSet<_> = all.iter().flat_map(|path| path.split('.')).collect();
    let mut seen = 0;
    for page in pages() {
        for span in page.spans() {
            let path = span.split([':', ' ']).next().unwrap();
            let parts: Vec<_> = path.split('.').collect();
            let is_path = parts.len() > 1 && path.chars().all(|c| c.is_ascii_lowercase() || "._P".contains(c));
            // A Kafka property, a file or a topic may begin with the name of a key, too.
            if !is_path || !firsts.contains(parts[0]) || ["orders", "topics", "topic"].contains(&parts[0]) {
                continue;
            }
            seen += 1;
            let path = path.trim_end_matches("_file");
            let is_key = all.iter().any(|key| key == path || key.ends_with(&format!(".{path}")));
            assert!(is_key, "{}: no key `{path}`", page.name);
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn variables_exist() {
    let all: BTreeSet<_> = keys().map(|key| key.path.replace('.', "__").to_uppercase()).collect();
    for (page, name) in words("PIPELINE_") {
        let path = name.trim_start_matches("PIPELINE_");
        // Below it stand names of librdkafka.
        let path = path.find("PROPERTIES").map_or(path, |at| &path[..at + "PROPERTIES".len()]);
        assert!(path == "PROFILE" || all.contains(path), "{page}: {name} sets no key");
    }
    let mut read_by = read("build.rs") + &read(".ci/run") + &read("Dockerfile");
    for folder in
        ["scripts", "tests", "benches", "tests/simulation", "tests/live", "tests/live/faults", "tests/messages"]
    {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            read_by += &if path.is_file() { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
        }
    }
    for (page, name) in words("LADDER_") {
        assert!(read_by.contains(&name), "{page}: nothing reads {name}");
    }
}
