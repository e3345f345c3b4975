//! YAML in and out: a tree that remembers duplicate keys (faults, not a silent last-one-wins), and a writer of scalars.

use std::fmt;

use figment::providers::{Format, Yaml};
use figment::value::{Dict, Empty, Tag, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Parses one YAML document; the error has line and column.
pub(super) fn parse(text: &str) -> Result<Node, String> {
    Yaml::from_str::<Node>(text).map_err(|e| e.to_string())
}

impl Node {
    /// The same tree for the layers. `duplicate` is told the path of every key that stands twice in one map.
    pub(super) fn into_value(self, tag: Tag, path: &mut Vec<String>, duplicate: &mut impl FnMut(&[String])) -> Value {
        match self {
            Node::Null => Value::Empty(tag, Empty::Unit),
            Node::Bool(b) => Value::Bool(tag, b),
            Node::Int(n) => Value::Num(tag, n.into()),
            Node::Uint(n) => Value::Num(tag, n.into()),
            Node::Float(n) => Value::Num(tag, n.into()),
            Node::Text(s) => Value::String(tag, s),
            Node::List(items) => {
                Value::Array(tag, items.into_iter().map(|n| n.into_value(tag, path, duplicate)).collect())
            }
            Node::Map(entries) => {
                let mut dict = Dict::new();
                for (key, node) in entries {
                    path.push(key.clone());
                    if dict.contains_key(&key) {
                        duplicate(path);
                    }
                    let value = node.into_value(tag, path, duplicate);
                    path.pop();
                    dict.insert(key, value);
                }
                Value::Dict(tag, dict)
            }
        }
    }

    /// As [`Node::into_value`] where duplicates cannot be or do not matter.
    pub(super) fn plain(self, tag: Tag) -> Value {
        self.into_value(tag, &mut Vec::new(), &mut |_| ())
    }

    /// A scalar as YAML text on one line; nested values in flow style.
    pub(super) fn write(&self) -> String {
        match self {
            Node::Null => "null".to_owned(),
            Node::Bool(b) => b.to_string(),
            Node::Int(n) => n.to_string(),
            Node::Uint(n) => n.to_string(),
            Node::Float(n) => format!("{n:?}"),
            Node::Text(s) => quote(s),
            Node::List(items) => format!("[{}]", items.iter().map(Node::write).collect::<Vec<_>>().join(", ")),
            Node::Map(entries) if entries.is_empty() => "{}".to_owned(),
            Node::Map(entries) => {
                let inner: Vec<_> = entries.iter().map(|(k, v)| format!("{}: {}", quote(k), v.write())).collect();
                format!("{{ {} }}", inner.join(", "))
            }
        }
    }
}

/// A value of the layers as it was written: without the marks of cleared alternatives.
impl From<&Value> for Node {
    fn from(value: &Value) -> Node {
        match value {
            Value::String(_, s) => Node::Text(s.clone()),
            Value::Char(_, c) => Node::Text(c.to_string()),
            Value::Bool(_, b) => Node::Bool(*b),
            Value::Num(_, n) => match (n.to_i128(), n.to_u128(), n.to_f64()) {
                (Some(i), ..) => i64::try_from(i).map_or(Node::Float(i as f64), Node::Int),
                (_, Some(u), _) => u64::try_from(u).map_or(Node::Float(u as f64), Node::Uint),
                (.., f) => Node::Float(f.unwrap_or_default()),
            },
            Value::Empty(..) => Node::Null,
            Value::Array(_, items) => Node::List(items.iter().map(Node::from).collect()),
            Value::Dict(_, dict) => {
                let written = dict.iter().filter(|(_, v)| !super::layers::is_cleared(v));
                Node::Map(written.map(|(k, v)| (k.clone(), Node::from(v))).collect())
            }
        }
    }
}

/// Text as a YAML scalar: plain where nothing can be mistaken, else in double quotes.
pub(super) fn quote(text: &str) -> String {
    let plain_char = |c: char| c.is_ascii_alphanumeric() || "_-./:@+ ".contains(c);
    let safe = text.chars().all(plain_char)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && parse(text) == Ok(Node::Text(text.to_owned()))
        && !matches!(text.to_ascii_lowercase().as_str(), "yes" | "no" | "on" | "off" | "y" | "n");
    if safe { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tree;
        impl<'de> Visitor<'de> for Tree {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("plain YAML without tags")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
                Ok(Node::Bool(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
                Ok(Node::Int(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
                Ok(i64::try_from(v).map_or(Node::Uint(v), Node::Int))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
                Ok(Node::Float(v))
            }
            fn visit_str<E>(self, v: &str) -> Result<Node, E> {
                Ok(Node::Text(v.to_owned()))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
                Node::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Node, Node>()? {
                    let key = match key {
                        Node::Text(s) => s,
                        other => other.write(),
                    };
                    entries.push((key, value));
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_told() {
        let node = parse("a: {b: 1, b: 2}\nc: 3\n").unwrap();
        let mut seen = Vec::new();
        node.into_value(Tag::Default, &mut Vec::new(), &mut |p| seen.push(p.join(".")));
        assert_eq!(seen, ["a.b"]);
    }

    #[test]
    fn numbers_as_keys_are_text() {
        assert_eq!(parse("{404: x}").unwrap(), Node::Map(vec![("404".into(), Node::Text("x".into()))]));
    }

    proptest::proptest! {
        #[test]
        fn text_written_reads_the_same(text: String, plain in "[a-z0-9:/ .#'\"-]{0,12}") {
            for t in [text, plain] {
                let line = format!("k: {}\n", quote(&t));
                proptest::prop_assert_eq!(parse(&line), Ok(Node::Map(vec![("k".into(), Node::Text(t))])));
            }
        }
    }
}
