//! A configuration for people: merged layers as YAML, every key with its meaning, and the same as JSON.

use figment::value::Value;

use super::layers::{Merged, is_cleared};
use super::schema::{Entry, Out, mask_node};
use super::yaml::{Node, quote};

/// The merged layers as a tree; values that are not from the first file say where they are from.
pub(super) fn merged(merged: &Merged) -> Out {
    let first = merged.files.first().map(|f| f.display().to_string());
    tree("", &merged.root, merged, first.as_deref())
}

fn tree(key: &str, value: &Value, layers: &Merged, first: Option<&str>) -> Out {
    match value {
        Value::Dict(_, dict) => Out::Map(
            dict.iter()
                .filter(|(_, v)| !is_cleared(v))
                .map(|(k, v)| {
                    let from = if matches!(v, Value::Dict(..)) { None } else { layers.origin(v.tag()) };
                    let note = from.filter(|f| Some(f.as_str()) != first).unwrap_or_default();
                    Entry { note, ..Entry::new(k, tree(k, v, layers, first)) }
                })
                .collect(),
        ),
        Value::Array(_, items) => Out::List(items.iter().map(|v| tree(key, v, layers, first)).collect()),
        scalar => Out::Scalar(mask_node(key, Node::from(scalar))),
    }
}

/// YAML. With `comments` every key has its meaning above it, and alternatives that were not chosen are shown.
pub(super) fn yaml(out: &Out, comments: bool) -> String {
    let mut text = String::new();
    if let Out::Map(entries) = out {
        write_map(entries, 0, comments, &mut text);
    }
    if text.is_empty() { "{}\n".to_owned() } else { text }
}

fn write_map(entries: &[Entry], indent: usize, comments: bool, text: &mut String) {
    for (i, entry) in entries.iter().enumerate() {
        if entry.off {
            if comments {
                let mut block = String::new();
                write_map(&[Entry { off: false, ..entry.clone() }], 0, comments, &mut block);
                block.lines().for_each(|line| push(indent, &format!("# {line}"), text));
            }
            continue;
        }
        if comments && !entry.doc.is_empty() {
            if i > 0 && indent == 0 {
                text.push('\n');
            }
            entry.doc.lines().for_each(|line| push(indent, &format!("# {line}"), text));
        }
        write_entry(entry, indent, comments, text);
    }
}

fn write_entry(entry: &Entry, indent: usize, comments: bool, text: &mut String) {
    let key = quote(&entry.key);
    let note = if entry.note.is_empty() { String::new() } else { format!("   # {}", entry.note) };
    match &entry.value {
        Out::Map(entries) if !entries.is_empty() => {
            push(indent, &format!("{key}:{note}"), text);
            write_map(entries, indent + 2, comments, text);
        }
        Out::List(items) if items.iter().any(|i| matches!(i, Out::Map(e) if !e.is_empty())) => {
            push(indent, &format!("{key}:{note}"), text);
            for (i, item) in items.iter().enumerate() {
                let mut block = String::new();
                match item {
                    // Said once is enough.
                    Out::Map(entries) => write_map(entries, 0, comments && i == 0, &mut block),
                    other => block = format!("{}\n", node(other).write()),
                }
                for (n, line) in block.lines().enumerate() {
                    push(indent, &format!("{} {line}", if n == 0 { " -" } else { "  " }), text);
                }
            }
        }
        value => push(indent, &format!("{key}: {}{note}", node(value).write()), text),
    }
}

fn push(indent: usize, line: &str, text: &mut String) {
    text.push_str(&format!("{:indent$}{line}", ""));
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

fn node(out: &Out) -> Node {
    match out {
        Out::Scalar(node) => node.clone(),
        Out::List(items) => Node::List(items.iter().map(node).collect()),
        Out::Map(entries) => {
            Node::Map(entries.iter().filter(|e| !e.off).map(|e| (e.key.clone(), node(&e.value))).collect())
        }
    }
}

/// JSON.
pub(super) fn json(out: &Out) -> serde_json::Value {
    fn of(node: Node) -> serde_json::Value {
        match node {
            Node::Null => serde_json::Value::Null,
            Node::Bool(b) => b.into(),
            Node::Int(n) => n.into(),
            Node::Uint(n) => n.into(),
            Node::Float(n) => n.into(),
            Node::Text(s) => s.into(),
            Node::List(items) => items.into_iter().map(of).collect(),
            Node::Map(entries) => serde_json::Value::Object(entries.into_iter().map(|(k, v)| (k, of(v))).collect()),
        }
    }
    of(node(out))
}
