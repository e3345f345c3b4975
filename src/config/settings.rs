//! The types of single values: how each is read from the layers, what it expects, how it is shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use reqwest::Url;

use super::report::{At, Report};
use super::schema::{Entry, KeyDoc, Out, Setting, file_text, open};
use super::secret::{self, Endpoint, Endpoints, Properties, Property, Secret};
use super::text::{parse_duration, parse_ratio, parse_size, show_duration, show_size};
use super::yaml::Node;

/// A share from 0 to 1, written `0.1` or `10 %`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

/// A number of bytes, written `4MiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

fn text(s: impl Into<String>) -> Out {
    Out::Scalar(Node::Text(s.into()))
}

impl Setting for String {
    fn expects() -> String {
        "a text that is not empty".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        match value {
            Value::String(_, s) if s.trim().is_empty() => report.fault(at, "empty", Self::expects()),
            Value::String(_, s) if s.contains(char::is_control) => {
                report.fault(at, "has a control character", "one line of text");
            }
            Value::String(_, s) => return Some(s.clone()),
            _ => report.fault(at, "not a text", "a text; put it in quotes where it looks like a number"),
        }
        None
    }
    fn stand_in() -> Option<Self> {
        Some("unknown".to_owned())
    }
    fn show(&self) -> Out {
        text(self)
    }
}

impl Setting for PathBuf {
    fn expects() -> String {
        "the path of a file".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        String::read(value, at, report).map(PathBuf::from)
    }
    fn show(&self) -> Out {
        text(self.display().to_string())
    }
}

impl Setting for bool {
    fn expects() -> String {
        "`true` or `false`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let read = report.untext(value).to_bool();
        if read.is_none() {
            report.fault(at, "not a truth value", Self::expects());
        }
        read
    }
    fn show(&self) -> Out {
        Out::Scalar(Node::Bool(*self))
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => { $(
        impl Setting for $type {
            fn expects() -> String {
                "a whole number".to_owned()
            }
            fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
                let number = match report.untext(value) {
                    Value::Num(_, n) => n.to_u128().or_else(|| n.to_i128().and_then(|i| u128::try_from(i).ok())),
                    _ => None,
                };
                let read = number.and_then(|n| <$type>::try_from(n).ok());
                if read.is_none() {
                    let is_text = value.as_str().is_some();
                    let problem = if is_text { "a text, not a whole number" } else { "not a whole number from 0 on" };
                    report.fault(at, problem, Self::expects());
                }
                read
            }
            fn show(&self) -> Out {
                Out::Scalar(u64::try_from(*self).map_or(Node::Null, Node::Uint))
            }
            fn in_range(&self, min: &str, max: &str) -> bool {
                between(self, min.parse().ok(), max.parse().ok())
            }
        }
    )* };
}
whole_number!(u16, u32, u64, usize);

/// Whether `value` lies between two bounds that parsed.
fn between<T: PartialOrd>(value: &T, min: Option<T>, max: Option<T>) -> bool {
    min.is_some_and(|min| *value >= min) && max.is_some_and(|max| *value <= max)
}

impl Setting for Duration {
    fn expects() -> String {
        "a duration as text, like `250ms`, `5s`, `10m` or `1h 30m`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        match value {
            Value::String(_, s) => match parse_duration(s) {
                Ok(d) => return Some(d),
                Err(e) => report.fault(at, format!("not a duration: {e}"), Self::expects()),
            },
            Value::Num(..) => {
                let n = Node::from(value).write();
                let remedy = format!("{}; `{n}s` are seconds, `{n}ms` milliseconds", Self::expects());
                report.fault(at, "a number without a unit", remedy);
            }
            _ => report.fault(at, "not a duration", Self::expects()),
        }
        None
    }
    fn stand_in() -> Option<Self> {
        Some(Self::from_secs(1))
    }
    fn show(&self) -> Out {
        text(show_duration(*self))
    }
    fn in_range(&self, min: &str, max: &str) -> bool {
        between(self, parse_duration(min).ok(), parse_duration(max).ok())
    }
}

impl Setting for ByteSize {
    fn expects() -> String {
        "a size as text, like `64KiB`, `4MiB` or `1MB`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        match value {
            Value::String(_, s) => match parse_size(s) {
                Ok(n) => return Some(Self(n)),
                Err(e) => report.fault(at, format!("not a size: {e}"), Self::expects()),
            },
            Value::Num(..) => report.fault(at, "a number without a unit", Self::expects()),
            _ => report.fault(at, "not a size", Self::expects()),
        }
        None
    }
    fn show(&self) -> Out {
        text(show_size(self.0))
    }
    fn in_range(&self, min: &str, max: &str) -> bool {
        between(&self.0, parse_size(min).ok(), parse_size(max).ok())
    }
}

impl Setting for Ratio {
    fn expects() -> String {
        "a share like `0.1` or `10 %`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let read = match value {
            Value::String(_, s) => parse_ratio(s).ok(),
            Value::Num(..) => parse_ratio(&Node::from(value).write()).ok(),
            _ => None,
        };
        if read.is_none() {
            report.fault(at, "not a share", Self::expects());
        }
        read.map(Self)
    }
    fn show(&self) -> Out {
        Out::Scalar(Node::Float(self.0))
    }
    fn in_range(&self, min: &str, max: &str) -> bool {
        between(&self.0, parse_ratio(min).ok(), parse_ratio(max).ok())
    }
}

impl<T: Setting> Setting for Option<T> {
    const FROM_FILE: bool = T::FROM_FILE;
    fn expects() -> String {
        format!("{}, or null", T::expects())
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        match report.untext(value) {
            Value::Empty(..) => Some(None),
            _ => T::read(value, at, report).map(Some),
        }
    }
    fn read_file(name: String, text: String, at: &At, report: &mut Report<'_>) -> Option<Self> {
        T::read_file(name, text, at, report).map(Some)
    }
    fn show(&self) -> Out {
        self.as_ref().map_or(Out::Scalar(Node::Null), T::show)
    }
    fn in_range(&self, min: &str, max: &str) -> bool {
        self.as_ref().is_none_or(|v| v.in_range(min, max))
    }
    fn keys(path: &str, out: &mut Vec<KeyDoc>) {
        T::keys(path, out);
    }
    fn file(&self) -> Option<&str> {
        self.as_ref().and_then(T::file)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn expects() -> String {
        format!("a list; each element {}", T::expects())
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let items = match report.untext(value) {
            Value::Array(_, items) => items,
            Value::Empty(..) => Vec::new(),
            _ => {
                report.fault(at, "not a list", format!("{}, in brackets: `[…]`", Self::expects()));
                return None;
            }
        };
        let read: Vec<_> = items.iter().enumerate().map(|(i, v)| T::read(v, &at.index(i), report)).collect();
        read.into_iter().collect()
    }
    fn show(&self) -> Out {
        Out::List(self.iter().map(T::show).collect())
    }
    fn keys(path: &str, out: &mut Vec<KeyDoc>) {
        T::keys(&format!("{path}[]"), out);
    }
}

impl Endpoint {
    fn parse(written: &str, file: Option<String>, at: &At, report: &mut Report<'_>) -> Option<Self> {
        match Url::parse(written) {
            Ok(url) => Some(Self { url, text: written.to_owned(), file }),
            Err(e) => {
                report.fault(at, format!("not a url: {e}"), Self::expects());
                None
            }
        }
    }
}

impl Setting for Endpoint {
    const FROM_FILE: bool = true;
    fn expects() -> String {
        "a url like `scheme://host:port/path`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let written = String::read(value, at, report)?;
        Self::parse(&written, None, at, report)
    }
    fn read_file(name: String, text: String, at: &At, report: &mut Report<'_>) -> Option<Self> {
        Self::parse(text.trim(), Some(name), at, report)
    }
    fn stand_in() -> Option<Self> {
        let text = "http://unknown.invalid".to_owned();
        Url::parse(&text).ok().map(|url| Self { url, text, file: None })
    }
    fn show(&self) -> Out {
        text(self.to_string())
    }
    fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl Setting for Endpoints {
    const FROM_FILE: bool = true;
    fn expects() -> String {
        format!("{}; a list of such for a cluster", Endpoint::expects())
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        match report.untext(value) {
            Value::Array(_, urls) if urls.is_empty() => {
                report.fault(at, "an empty list", "the url of a server, or those of some nodes of a cluster");
                None
            }
            list @ Value::Array(..) => Some(Self { urls: Vec::read(&list, at, report)?, is_list: true }),
            _ => Some(Self { urls: vec![Endpoint::read(value, at, report)?], is_list: false }),
        }
    }
    /// Several lines are a list.
    fn read_file(name: String, text: String, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let lines: Vec<&str> = text.split_whitespace().collect();
        let read = |line: &str| Endpoint::read_file(name.clone(), line.to_owned(), at, report);
        let is_list = lines.len() > 1;
        let lines = if lines.is_empty() { vec![""] } else { lines };
        Some(Self { urls: lines.into_iter().map(read).collect::<Option<_>>()?, is_list })
    }
    fn stand_in() -> Option<Self> {
        Endpoint::stand_in().map(|url| Self { urls: vec![url], is_list: false })
    }
    fn show(&self) -> Out {
        self.one().map_or_else(|| self.urls.show(), Endpoint::show)
    }
    fn file(&self) -> Option<&str> {
        self.urls.first().and_then(Endpoint::file)
    }
}

impl Setting for Secret {
    const FROM_FILE: bool = true;
    fn expects() -> String {
        "a secret text, from the environment or from a file".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        String::read(value, at, report).map(Self::from)
    }
    fn read_file(name: String, text: String, _at: &At, _report: &mut Report<'_>) -> Option<Self> {
        Some(Self { text: text.trim().to_owned(), file: Some(name) })
    }
    fn show(&self) -> Out {
        text(secret::MASK)
    }
    fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl Setting for Properties {
    fn expects() -> String {
        "a map of names to texts; `<name>_file` names a file that holds the value".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let Some(dict) = map(value, report) else {
            report.fault(at, "not a map", Self::expects());
            return None;
        };
        let mut read = BTreeMap::new();
        for (name, value) in dict {
            let here = at.key(&name);
            let (name, property) = match (name.strip_suffix("_file"), &value) {
                (_, Value::Empty(..)) => continue,
                (Some(stem), path) => match file_text(path, &here, report) {
                    Some((file, value)) => (stem.to_owned(), Property { value, file: Some(file) }),
                    None => continue,
                },
                (None, Value::Array(..) | Value::Dict(..)) => {
                    report.fault(&here, "not a text", "one text; a name with dots is one key, like `sasl.username`");
                    continue;
                }
                (None, Value::String(_, s)) => (name, Property { value: s.clone(), file: None }),
                (None, scalar) => (name, Property { value: Node::from(scalar).write(), file: None }),
            };
            if read.insert(name, property).is_some() {
                report.fault(&here, "given both as text and as a file", "one of the two");
            }
        }
        Some(Self(read))
    }
    fn show(&self) -> Out {
        let entry = |(name, p): (&String, &Property)| match &p.file {
            Some(file) => Entry::new(format!("{name}_file"), text(file)),
            None => Entry::new(name, text(secret::masked(name, &p.value))),
        };
        Out::Map(self.0.iter().map(entry).collect())
    }
}

/// The entries of a map, without those that a later layer cleared.
pub(super) fn map(value: &Value, report: &mut Report<'_>) -> Option<BTreeMap<String, Value>> {
    match report.untext(value) {
        Value::Dict(_, dict) => Some(dict.into_iter().filter(|(_, v)| !super::layers::is_cleared(v)).collect()),
        Value::Empty(..) => Some(BTreeMap::new()),
        _ => None,
    }
}

/// Declares a choice of words: `Variant = "word"`; `"word" => "why not"` for words that another version knows.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $vis:vis enum $name:ident {
        $( $(#[doc = $about:literal])* $variant:ident = $word:literal, )*
    } $(not yet { $($later:literal => $why:literal),* })?) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name { $( $(#[doc = $about])* $variant, )* }

        impl $name {
            /// The word used in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl $crate::config::schema::Setting for $name {
            fn expects() -> String {
                format!("one of {}", [$($word),*].join(", "))
            }
            fn read(
                value: &figment::value::Value,
                at: &$crate::config::report::At,
                report: &mut $crate::config::report::Report<'_>,
            ) -> Option<Self> {
                match value.as_str() {
                    $( Some($word) => return Some(Self::$variant), )*
                    $($( Some($later) => report.fault(at, $why, Self::expects()), )*)?
                    Some(word) => match $crate::config::fault::nearest(word, [$($word),*]) {
                        Some(near) => report.fault(at, format!("not known; did you mean `{near}`?"), Self::expects()),
                        None => report.fault(at, "not known", Self::expects()),
                    },
                    None => report.fault(at, "not a word", Self::expects()),
                }
                None
            }
            fn show(&self) -> $crate::config::schema::Out {
                $crate::config::schema::Out::Scalar($crate::config::yaml::Node::Text(self.as_str().to_owned()))
            }
        }
    };
}
pub(super) use choice;

/// The one key chosen of a map of alternatives, with its value. Kinds written as maps win over bare `null`s, so that
/// `log:` alone chooses `log` and `http: null` beside `log: {}` does not choose `http`.
pub(super) fn chosen(
    value: &Value,
    kinds: &[&str],
    what: &str,
    at: &At,
    report: &mut Report<'_>,
) -> Option<(String, Value)> {
    let known: Vec<_> = kinds.iter().map(|k| (*k, false)).collect();
    let before = report.clean(at);
    let dict = open(value, at, &known, report)?;
    let (empty, full): (Vec<_>, Vec<_>) =
        dict.into_iter().filter(|(k, _)| kinds.contains(&k.as_str())).partition(|(_, v)| matches!(v, Value::Empty(..)));
    let mut named = if full.is_empty() { empty } else { full };
    if named.len() == 1 {
        return named.pop();
    }
    if named.is_empty() && before && !report.clean(at) {
        return None; // the unknown key that was meant to be one is told already
    }
    let names: Vec<_> = named.iter().map(|(k, _)| k.as_str()).collect();
    let problem =
        if names.is_empty() { "none is chosen".to_owned() } else { format!("{} at once", names.join(" and ")) };
    report.fault(at, problem, format!("exactly one {what}: {}", kinds.join(", ")));
    None
}
