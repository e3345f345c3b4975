//! A configuration for people: merged layers as YAML, every key with its meaning, and the same as JSON.

use std::collections::HashMap;

use figment::value::Value;

use super::keys::Keys;
use super::layers::{Merged, is_cleared};
use super::report::mask_node;
use super::schema::{Entry, Out, Setting};
use super::yaml::{self, Node, quote};

/// The merged layers as a tree, in the order of the declarations; values that are not from the first file say where
/// they are from.
pub(super) fn merged(merged: &Merged) -> Out {
    let mut declared = Vec::new();
    Keys::keys("", &mut declared);
    let layers = Layers {
        merged,
        first: merged.files.first().map(|f| f.display().to_string()),
        order: declared.into_iter().enumerate().map(|(i, k)| (k.path, i)).collect(),
    };
    layers.tree("", "", &merged.root)
}

struct Layers<'a> {
    merged: &'a Merged,
    /// The file that most values are from.
    first: Option<String>,
    /// Declared path -> position.
    order: HashMap<String, usize>,
}

impl Layers<'_> {
    fn tree(&self, path: &str, key: &str, value: &Value) -> Out {
        match value {
            Value::Dict(_, dict) => {
                let mut entries: Vec<_> =
                    dict.iter().filter(|(_, v)| !is_cleared(v)).map(|(k, v)| self.entry(path, k, v)).collect();
                entries.sort_by_key(|(position, _)| *position);
                Out::Map(entries.into_iter().map(|(_, entry)| entry).collect())
            }
            Value::Array(_, items) => {
                Out::List(items.iter().map(|v| self.tree(&format!("{path}[]"), key, v)).collect())
            }
            // A map or list that was given as text, in a variable: shown, and masked, as what it is.
            Value::String(tag, text) if self.merged.is_text_layer(*tag) => {
                match yaml::parse(text).map(|node| node.plain(*tag)) {
                    Ok(inner @ (Value::Dict(..) | Value::Array(..))) => self.tree(path, key, &inner),
                    _ => Out::Scalar(mask_node(key, Node::from(value))),
                }
            }
            scalar => Out::Scalar(mask_node(key, Node::from(scalar))),
        }
    }

    /// An entry and its position; names that are free keep their alphabetical order.
    fn entry(&self, path: &str, key: &str, value: &Value) -> (usize, Entry) {
        let path = match (path, key) {
            ("", "defaults") => "pipelines.<name>".to_owned(),
            ("", key) => key.to_owned(),
            ("pipelines", _) => "pipelines.<name>".to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        let declared = if key == "defaults" { key } else { path.strip_suffix("_file").unwrap_or(&path) };
        let position = self.order.get(declared).copied().unwrap_or(usize::MAX);
        let from = if matches!(value, Value::Dict(..)) { None } else { self.merged.origin(value.tag()) };
        let note = from.filter(|from| Some(from) != self.first.as_ref()).unwrap_or_default();
        (position, Entry { note, ..Entry::new(key, self.tree(&path, key, value)) })
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
                write_item(item, indent + 2, comments && i == 0, text);
            }
        }
        value => push(indent, &format!("{key}: {}{note}", node(value).write()), text),
    }
}

/// One element of a list of maps: the dash stands before its first key, comments above it stay above the dash.
fn write_item(item: &Out, indent: usize, comments: bool, text: &mut String) {
    let mut block = String::new();
    match item {
        // At an indent, because what stands at the left margin is a section of its own.
        Out::Map(entries) if !entries.is_empty() => write_map(entries, indent + 2, comments, &mut block),
        other => push(indent + 2, &node(other).write(), &mut block),
    }
    let mut dash = Some("- ");
    for line in block.lines() {
        match dash.take_if(|_| !line.trim_start().starts_with('#')) {
            Some(dash) => push(indent, &format!("{dash}{}", line.trim_start()), text),
            None => push(0, line, text),
        }
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
