//! Where a fault is and what stands there: paths, the report that collects faults, and how values are shown in it.
//!
//! Invariants: no value gets into a fault unmasked; a fault that every pipeline inherits from `defaults` is told once,
//! there.

use figment::value::Value;

use super::fault::Fault;
use super::layers::{Merged, is_cleared};
use super::secret;
use super::yaml::{self, Node};

/// Where in the tree: keys, and `[1]` for list elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct At(Vec<String>);

impl At {
    pub(super) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|k| (*k).to_owned()).collect())
    }

    pub(super) fn key(&self, key: &str) -> Self {
        let mut path = self.0.clone();
        path.push(key.to_owned());
        Self(path)
    }

    pub(super) fn index(&self, i: usize) -> Self {
        self.key(&format!("[{i}]"))
    }

    fn last_key(&self) -> &str {
        self.0.iter().rev().find(|k| !k.starts_with('[')).map_or("", String::as_str)
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            let dot = if i == 0 || part.starts_with('[') { "" } else { "." };
            write!(f, "{dot}{part}")?;
        }
        Ok(())
    }
}

/// Collects faults; knows the merged tree, so that a fault needs only say where it is.
pub(super) struct Report<'a> {
    merged: &'a Merged,
    faults: Vec<Fault>,
}

impl<'a> Report<'a> {
    pub(super) fn new(merged: &'a Merged) -> Self {
        Self { merged, faults: Vec::new() }
    }

    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }

    /// Whether nothing was found at or below `at`, so that a check across keys makes sense.
    pub(super) fn clean(&self, at: &At) -> bool {
        let (here, inherited) = (at.to_string(), at.inherited().map(|d| d.to_string()));
        let below = |fault: &str, path: &str| {
            fault.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        !self.faults.iter().any(|f| below(&f.path, &here) || inherited.as_ref().is_some_and(|d| below(&f.path, d)))
    }

    /// How many faults there are by now.
    pub(super) fn count(&self) -> usize {
        self.faults.len()
    }

    /// Of the faults after the first `from`: what would be right has a range, too.
    pub(super) fn narrow(&mut self, from: usize, remedy: &str, range: &str) {
        for mut fault in self.faults.split_off(from) {
            if fault.remedy == remedy {
                fault.remedy += range;
            }
            if !self.faults.contains(&fault) {
                self.faults.push(fault); // one that was inherited may have been told already
            }
        }
    }

    /// Something is wrong with the value at `at`. A value that a pipeline has from `defaults` is told there, once.
    pub(super) fn fault(&mut self, at: &At, problem: impl Into<String>, remedy: impl Into<String>) {
        let found = self.find(at);
        let shown = found.and_then(|(_, v)| v).map(|v| show_value(at.last_key(), v));
        self.fault_with(at, shown, problem, remedy);
    }

    /// As [`Report::fault`] with a value that does not stand in any layer (a default, something derived).
    pub(super) fn fault_with(
        &mut self,
        at: &At,
        shown: Option<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let found = self.find(at);
        let path = found.as_ref().map_or_else(|| at.to_string(), |(path, _)| path.to_string());
        let source = found.and_then(|(_, v)| v).and_then(|v| self.merged.origin(v.tag()));
        let fault = Fault { path, value: shown, problem: problem.into(), remedy: remedy.into(), source };
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// The value at `at`, or at the same place in `defaults` when the pipeline has none of its own.
    fn find(&self, at: &At) -> Option<(At, Option<&Value>)> {
        let own = lookup(&self.merged.root, &at.0);
        if own.is_some() {
            return Some((at.clone(), own));
        }
        let inherited = at.inherited()?;
        lookup(&self.merged.root, &inherited.0).map(|v| (inherited.clone(), Some(v)))
    }

    /// A pipeline's own keys over those of `defaults`.
    pub(super) fn with_defaults(&self, own: Value) -> Value {
        match (lookup(&self.merged.root, &["defaults".to_owned()]), own) {
            (Some(defaults), own @ Value::Dict(..)) => overlay(self.untext(defaults), own),
            (Some(defaults), Value::Empty(..)) => self.untext(defaults),
            (_, own) => own,
        }
    }

    /// A value as the type that its key wants: text from a variable or a flag is read as YAML first.
    pub(super) fn untext(&self, value: &Value) -> Value {
        match value {
            Value::String(tag, text) if self.merged.is_text_layer(*tag) => {
                yaml::parse(text).map_or_else(|_| value.clone(), |node| node.plain(*tag))
            }
            other => other.clone(),
        }
    }
}

impl At {
    /// The same key in `defaults`, for a key of a pipeline.
    fn inherited(&self) -> Option<At> {
        match self.0.as_slice() {
            [first, _, rest @ ..] if first == "pipelines" && !rest.is_empty() => {
                Some(At([vec!["defaults".to_owned()], rest.to_vec()].concat()))
            }
            _ => None,
        }
    }
}

fn lookup<'v>(root: &'v Value, path: &[String]) -> Option<&'v Value> {
    let mut here = root;
    for part in path {
        here = match (here, part.strip_prefix('[').and_then(|p| p.strip_suffix(']'))) {
            (Value::Array(_, items), Some(i)) => items.get(i.parse::<usize>().ok()?)?,
            (Value::Dict(_, dict), _) => dict.get(part).filter(|v| !is_cleared(v))?,
            // A whole list or map in one variable: the variable is what a person must look at.
            (Value::String(..), _) => return Some(here),
            _ => return None,
        };
    }
    Some(here)
}

/// `upper` over `lower`: maps merge deep, everything else is replaced.
fn overlay(lower: Value, upper: Value) -> Value {
    match (lower, upper) {
        (Value::Dict(_, mut lower), Value::Dict(tag, upper)) => {
            for (key, value) in upper {
                let merged = match lower.remove(&key) {
                    Some(below) => overlay(below, value),
                    None => value,
                };
                lower.insert(key, merged);
            }
            Value::Dict(tag, lower)
        }
        (_, upper) => upper,
    }
}

/// A value as it is shown in a fault: on one line, short, secrets masked.
fn show_value(key: &str, value: &Value) -> String {
    let text = match value {
        Value::String(_, s) if s.is_empty() => "\"\"".to_owned(),
        Value::String(_, s) => secret::masked(key, s),
        Value::Array(..) | Value::Dict(..) => mask_node(key, Node::from(value)).write(),
        other if secret::is_secret_key(key) && !matches!(other, Value::Empty(..)) => secret::MASK.to_owned(),
        other => Node::from(other).write(),
    };
    match text.char_indices().nth(120) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

/// A tree with its secrets masked by the names of their keys.
pub(super) fn mask_node(key: &str, node: Node) -> Node {
    match node {
        Node::Map(entries) => {
            let name = |k: &str| {
                if secret::is_secret_key(key) { key.to_owned() } else { k.to_owned() }
            };
            Node::Map(entries.into_iter().map(|(k, v)| (k.clone(), mask_node(&name(&k), v))).collect())
        }
        Node::List(items) => Node::List(items.into_iter().map(|n| mask_node(key, n)).collect()),
        Node::Text(s) => Node::Text(secret::masked(key, &s)),
        Node::Null => Node::Null,
        _ if secret::is_secret_key(key) => Node::Text(secret::MASK.to_owned()),
        other => other,
    }
}
