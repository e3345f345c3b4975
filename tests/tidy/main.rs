//! Reads the source tree and holds its rules: arrows between modules point one way, files are small and say what they
//! own, nothing is skipped or left unfinished, only the command line prints, the ladder reads no clock.
//!
//! The rules stand in [`ARROWS`] and in [`faults`]. Code is read as tokens, so comments and strings never count. Each
//! rule is shown to catch its fault on a snippet, in [`bites`].

mod bites;
mod rust;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rust::{Inner, Token, is_cfg_test, paths, resolve, tokens};

/// What each part of `src/` may use of the crate, itself aside. A part that is not listed may use all but `cli`.
const ARROWS: &[(&str, &[&str])] = &[
    ("ladder", &[]),
    ("messages", &["ladder"]),
    ("telemetry", &["ladder"]),
    ("stage", &["ladder", "telemetry", "messages"]),
    ("adapters", &["ladder", "stage::ports", "stage::lanes", "stage::record", "stage::clock", "telemetry", "messages"]),
    ("handlers", &["ladder", "stage::ports", "stage::lanes", "stage::record", "stage::clock", "telemetry", "messages"]),
];

/// The packages that the ladder may use: none that does I/O, reads a clock or draws random numbers.
const LADDER_PACKAGES: &[&str] = &["serde", "serde_json", "thiserror", "percent_encoding", "sha2"];

/// The checker of the proof shares nothing with what it checks.
const JUDGE: [&str; 2] = ["prove", "ledger"];

const MAX_LINES: usize = 600;
const AIM_LINES: usize = 500;

#[test]
fn the_tree_is_tidy() {
    let files = read_tree(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(files.iter().any(|f| f.path == "src/lib.rs"), "the tree was not found");
    for file in files.iter().filter(|f| f.text.lines().count() > AIM_LINES) {
        eprintln!("{}: {} lines, aim for {AIM_LINES}", file.path, file.text.lines().count());
    }
    let packages = packages(&fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap());
    let faults = faults(&files, &packages);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_compose_file_pins_images_and_stays_on_loopback() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker-compose.yml")).unwrap();
    let faults = compose_faults(&text);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // What is mounted from here is here: a missing file would be mounted as an empty folder.
    let mounts: Vec<_> = text.lines().filter_map(|l| l.trim().strip_prefix("- ./")?.split(':').next()).collect();
    assert!(mounts.len() > 5, "{mounts:?}");
    for mount in mounts {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(mount).exists(), "docker-compose.yml mounts {mount}");
    }
}

// ---------------------------------------------------------------------------------------------- the rules

struct Source {
    /// From the package's root, with `/`.
    path: String,
    text: String,
}

/// Every broken rule as `file:line: what, and what would be right`.
fn faults(files: &[Source], packages: &BTreeSet<String>) -> Vec<String> {
    let mut out = Vec::new();
    let test_files = test_only_files(files);
    for file in files {
        let tokens = tokens(&file.text);
        let mut say = |line: usize, what: String| out.push(format!("{}:{line}: {what}", file.path));
        let in_src = file.path.starts_with("src/");
        if in_src && !file.text.starts_with("//!") {
            say(1, "open the file with `//!`: what it owns, its invariants, what it leaves to others".into());
        }
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            say(lines, format!("{lines} lines, at most {MAX_LINES} (aim for {AIM_LINES}): split it by subject"));
        }
        unfinished(&tokens, &mut say);
        if in_src {
            let module = module_of(&file.path);
            let code = Code { tokens: &tokens, module: &module, in_test: test_files.contains(&file.path) };
            code.prints(&mut say);
            code.clocks(&mut say);
            code.arrows(packages, &mut say);
        }
    }
    out
}

fn unfinished(tokens: &[Token], say: &mut impl FnMut(usize, String)) {
    for w in tokens.windows(3) {
        match (w[0].text.as_str(), w[1].text.as_str(), w[2].text.as_str()) {
            ("todo" | "unimplemented" | "dbg", "!", "(" | "[" | "{") => {
                say(w[0].line, format!("`{}!` is left over: finish or delete it", w[0].text));
            }
            ("#", "[", "ignore") => say(w[0].line, "`#[ignore]`: a test runs or does not exist".into()),
            _ => {}
        }
    }
}

/// One file under `src/`.
struct Code<'a> {
    tokens: &'a [Token],
    /// `["adapters", "kafka", "admin"]` for `src/adapters/kafka/admin.rs`; empty for `lib.rs` and `main.rs`.
    module: &'a [String],
    in_test: bool,
}

impl Code<'_> {
    fn part(&self) -> &str {
        self.module.first().map_or("", String::as_str)
    }

    fn prints(&self, say: &mut impl FnMut(usize, String)) {
        if self.part() == "cli" || self.module.is_empty() || self.in_test {
            return;
        }
        let inner = Inner::of(self.tokens);
        for (i, w) in self.tokens.windows(2).enumerate() {
            if ["print", "println", "eprint", "eprintln"].contains(&w[0].text.as_str())
                && w[1].text == "!"
                && !inner.in_test(i)
            {
                say(w[0].line, format!("`{}!` outside src/cli: log it, or return it to the command line", w[0].text));
            }
        }
    }

    fn clocks(&self, say: &mut impl FnMut(usize, String)) {
        if self.part() != "ladder" {
            return;
        }
        for w in self.tokens.windows(3) {
            if ["SystemTime", "Instant"].contains(&w[0].text.as_str()) && w[1].text == "::" && w[2].text == "now" {
                say(w[0].line, format!("`{}::now` in the ladder: take `now` as an argument", w[0].text));
            }
        }
    }

    /// Test code is free: a contract suite may name every store.
    fn arrows(&self, packages: &BTreeSet<String>, say: &mut impl FnMut(usize, String)) {
        if self.in_test || self.module.is_empty() {
            return;
        }
        let inner = Inner::of(self.tokens);
        for path in paths(self.tokens) {
            if inner.in_test(path.at) {
                continue;
            }
            let line = self.tokens[path.at].line;
            let Some(target) = resolve(&path.segments, self.module, inner.depth(path.at)) else {
                let package = &path.segments[0];
                if self.part() == "ladder" && packages.contains(package) && !LADDER_PACKAGES.contains(&package.as_str())
                {
                    say(line, format!("ladder uses `{package}`: it is pure, std and {LADDER_PACKAGES:?} only"));
                }
                continue;
            };
            if let Some(fault) = arrow_fault(self.module, &target) {
                say(line, fault);
            }
        }
    }
}

/// Why a module may not use `target`, both from the crate's root.
fn arrow_fault(module: &[String], target: &[String]) -> Option<String> {
    let (part, used) = (module.first()?.as_str(), target.first()?.as_str());
    if module.starts_with(&JUDGE.map(str::to_owned)) && !target.starts_with(&JUDGE.map(str::to_owned)) {
        let target = target.join("::");
        return Some(format!("{} uses `{target}`: it judges the rest and may use only itself", JUDGE.join("::")));
    }
    if used == part {
        let (Some(own), Some(other)) = (module.get(1), target.get(1)) else { return None };
        let is_adapter = part == "adapters" && other.chars().next().is_some_and(char::is_lowercase);
        return (is_adapter && own != other)
            .then(|| format!("adapter `{own}` uses adapter `{other}`: adapters never import each other"));
    }
    if used == "cli" {
        return Some(format!("{part} uses `cli`: the command line is the outermost part, nothing uses it"));
    }
    let allowed = ARROWS.iter().find(|(p, _)| *p == part)?.1;
    let target = target.join("::");
    let covered = |a: &str| target.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    (!allowed.iter().any(|a| covered(a))).then(|| {
        let own =
            if allowed.is_empty() { "only itself".to_owned() } else { format!("itself and {}", allowed.join(", ")) };
        format!("{part} uses `{target}`: it may use {own}")
    })
}

fn compose_faults(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut in_ports = false;
    let mut open: Option<usize> = None; // a service on the host's network that has not said yet that it stays on loopback
    for (n, line) in text.lines().chain(["  end:"]).enumerate() {
        let is_service = line.strip_prefix("  ").is_some_and(|l| !l.starts_with([' ', '#']) && l.ends_with(':'));
        let (n, line) = (n + 1, line.trim());
        if line == "network_mode: host" {
            open = Some(n);
        } else if line.contains("--web.listen-address=127.0.0.1:") || line == "GF_SERVER_HTTP_ADDR: 127.0.0.1" {
            open = None;
        } else if is_service && let Some(n) = open.take() {
            out.push(format!("docker-compose.yml:{n}: a service on the host's network does not listen on 127.0.0.1"));
        }
        if let Some(image) = line.strip_prefix("image:") {
            let tag = image.trim().rsplit_once(':').map_or("", |(_, tag)| tag);
            if !tag.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()) || tag.matches('.').count() < 2 {
                out.push(format!("docker-compose.yml:{n}: image{image} is not pinned to an exact version"));
            }
        }
        if in_ports && line.starts_with('-') && !line.starts_with("- \"127.0.0.1:") {
            out.push(format!("docker-compose.yml:{n}: port {line} is not bound to 127.0.0.1"));
        }
        if !line.starts_with('-') {
            in_ports = line == "ports:";
        }
    }
    out
}

// ---------------------------------------------------------------------------------------------- reading the tree

fn read_tree(root: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    for dir in ["src", "tests", "benches", "examples"] {
        read_dir(root, &root.join(dir), &mut files);
    }
    files
}

fn read_dir(root: &Path, dir: &Path, files: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.map(|e| e.expect("a readable folder").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_dir(root, &path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).expect("a path below the root").to_string_lossy().replace('\\', "/");
            files.push(Source { path: name, text: fs::read_to_string(&path).expect("a readable file") });
        }
    }
}

/// The names in `[dependencies]`, as code writes them.
fn packages(manifest: &str) -> BTreeSet<String> {
    let table = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    let names = table.lines().take_while(|l| !l.starts_with('[')).filter_map(|l| l.split_once('='));
    names.map(|(name, _)| name.trim().replace('-', "_")).collect()
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are both `a::b`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&module.last().map_or("", String::as_str)) {
        module.pop();
    }
    module
}

/// Files that a `#[cfg(test)] mod name;` brings in, and what lies below them.
fn test_only_files(files: &[Source]) -> BTreeSet<String> {
    let mut roots = Vec::new();
    for file in files.iter().filter(|f| f.path.starts_with("src/")) {
        let tokens = tokens(&file.text);
        for (i, w) in tokens.windows(3).enumerate() {
            if w[0].text == "mod" && w[2].text == ";" && is_cfg_test(&tokens, i) {
                let mut module = module_of(&file.path);
                module.push(w[1].text.clone());
                roots.push(module);
            }
        }
    }
    let below = |module: &[String]| roots.iter().any(|root| module.starts_with(root));
    files.iter().filter(|f| f.path.starts_with("src/") && below(&module_of(&f.path))).map(|f| f.path.clone()).collect()
}
