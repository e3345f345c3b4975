//! The texts that the code can say, collected from it: of errors, failures, refusals, warnings and alarms; and what each
//! of them has to look like.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::rust::{Inner, Token, tokens};

/// What makes a text a message: the words before the bracket that holds it, and what it is listed as.
const SAYS: &[(&[&str], &str)] = &[
    (&["#", "[", "error"], "error"),
    (&["warn", "!"], "WARN"),
    (&["error", "!"], "ERROR"),
    (&["fail"], "error"),
    (&["note"], "note"),
    (&["Usage"], "error"),
    (&["Options"], "error"),
    (&["Err"], "error"),
    (&["Failure", "::", "transient"], "failure"),
    (&["Failure", "::", "permanent"], "failure"),
    (&["Failure", "::", "poison"], "failure"),
];

/// Words that begin with a capital wherever they stand.
const NAMES: [&str; 4] = ["Jaeger", "Redis", "PostgreSQL", "Kafka"];

/// All texts by part of the tree, sorted.
pub(crate) fn texts(root: &Path) -> String {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    read(root, &root.join("src"), &mut found);
    let mut out = String::new();
    for (part, texts) in found {
        out += &format!("{}{part}\n", if out.is_empty() { "" } else { "\n" });
        texts.iter().for_each(|text| out += &format!("    {text}\n"));
    }
    out
}

fn read(root: &Path, folder: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        if name.contains("tests") {
            continue;
        }
        if path.is_dir() {
            read(root, &path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            // A part is a folder two below src at most: what moves within it changes nothing here.
            let part: Vec<_> = name.trim_end_matches(".rs").trim_end_matches("/mod").split('/').take(3).collect();
            let said = said(&fs::read_to_string(&path).unwrap());
            for (kind, text) in said.into_iter().filter(|(_, text)| text.contains(' ') && !is_passed_on(text)) {
                look(&name, &text);
                found.entry(part.join("/")).or_default().insert(format!("{kind:<8}{text}"));
            }
        }
    }
}

/// Nothing but what others said: `{0}`, `{} {}`.
fn is_passed_on(text: &str) -> bool {
    text.split(['{', '}']).step_by(2).all(|own| !own.contains(char::is_alphabetic))
}

/// Error texts begin in lower case and end without a full stop, wherever they are put together.
fn look(file: &str, text: &str) {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
    let is_lower =
        !word.starts_with(char::is_uppercase) || NAMES.contains(&word.as_str()) || word.chars().all(char::is_uppercase);
    assert!(is_lower, "{file}: begin in lower case: {text}");
    assert!(!text.ends_with(['.', '!']) || text.ends_with("…"), "{file}: without a full stop: {text}");
}

fn said(code: &str) -> Vec<(&'static str, String)> {
    let tokens = tokens(code);
    let inner = Inner::of(&tokens);
    let mut out = Vec::new();
    for open in (0..tokens.len()).filter(|&i| tokens[i].text == "(" && !inner.in_test(i)) {
        let ends_with = |words: &[&str]| {
            let from = open.checked_sub(words.len());
            from.is_some_and(|from| tokens[from..open].iter().zip(words).all(|(token, word)| token.text == *word))
        };
        if let Some((_, kind)) = SAYS.iter().find(|(words, _)| ends_with(words)) {
            out.extend(first_text(&tokens, open).map(|text| (*kind, text)));
        }
    }
    out
}

/// The first text of a call, be it in a `format!`; behind a tracing field's `=` stands none.
fn first_text(tokens: &[Token], open: usize) -> Option<String> {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            text if text.starts_with('"') && tokens[i - 1].text != "=" => return Some(plain(text)),
            // Not what is computed somewhere below.
            "|" | "match" | "if" => return None,
            _ => {}
        }
        if depth == 0 {
            return None;
        }
    }
    None
}

/// As it is said: without quotation marks, line continuations and escapes.
fn plain(literal: &str) -> String {
    let mut out = String::new();
    let mut chars = literal.trim_matches('"').chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('\n')) => while chars.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', Some('"' | '\\')) => out.extend(chars.next()),
            _ => out.push(c),
        }
    }
    out.replace('\n', "\\n")
}
