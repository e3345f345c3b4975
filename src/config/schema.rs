//! How a key is declared, read and shown: the trait of every type of value, and the macro that declares a section.
//!
//! A section is declared once; its struct, its reader, its defaults, the text of `config print --all` and the table of
//! keys all come from that declaration. Reading goes on after a fault, so that all of them are found.

use figment::value::{Dict, Tag, Value};

use super::fault::nearest;
use super::layers::is_cleared;
use super::report::{At, Report};
use super::secret;
use super::yaml::{self, Node};

/// One key of the configuration, for tables and `--all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDoc {
    /// Path, like `pipelines.<name>.retries[].delay`.
    pub path: String,
    /// The default as YAML; none when the key is required, or is a section of further keys.
    pub default: Option<&'static str>,
    /// What it means.
    pub doc: &'static str,
    /// What a valid value is.
    pub expects: String,
}

/// What is shown of a value: the tree behind `config print`.
#[derive(Clone, Debug)]
pub(super) enum Out {
    Scalar(Node),
    List(Vec<Out>),
    Map(Vec<Entry>),
}

/// One key of an [`Out::Map`].
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Out,
    /// Shown above the key: what it means; empty for none.
    pub(super) doc: String,
    /// Shown behind the value.
    pub(super) note: String,
    /// An alternative that was not chosen: shown as a comment.
    pub(super) off: bool,
}

impl Entry {
    pub(super) fn new(key: impl Into<String>, value: Out) -> Self {
        Self { key: key.into(), value, doc: String::new(), note: String::new(), off: false }
    }
}

/// A type of value in the configuration.
pub(super) trait Setting: Sized {
    /// Whether `<key>_file` may name a file that holds the value.
    const FROM_FILE: bool = false;
    /// What a valid value is, to follow "right would be".
    fn expects() -> String;
    /// The value, or none after a fault was reported.
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self>;
    /// What reading goes on with after a fault was reported for a key without a default; never part of a configuration.
    fn stand_in() -> Option<Self> {
        None
    }
    /// The value that stood in a file (`<key>_file`); only called where [`Setting::FROM_FILE`] says so.
    fn read_file(_name: String, _text: String, _at: &At, _report: &mut Report<'_>) -> Option<Self> {
        None
    }
    /// The value as it is printed, secrets masked.
    fn show(&self) -> Out;
    /// Whether it lies between two values written as text; true for types without an order.
    fn in_range(&self, _min: &str, _max: &str) -> bool {
        true
    }
    /// Keys below this one.
    fn keys(_path: &str, _out: &mut Vec<KeyDoc>) {}
    /// The file that the value was read from.
    fn file(&self) -> Option<&str> {
        None
    }
}

/// How one key of a section is declared.
pub(super) struct Declared {
    pub(super) key: &'static str,
    pub(super) default: Option<&'static str>,
    pub(super) range: Option<(&'static str, &'static str)>,
}

const SECRET_WORDS: [&str; 6] = ["password", "passphrase", "secret", "token", "credentials", "api_key"];

/// The map at `at`, after every key in it that is not one of `known` was reported.
pub(super) fn open(value: &Value, at: &At, known: &[(&str, bool)], report: &mut Report<'_>) -> Option<Dict> {
    let dict = match report.untext(value) {
        Value::Dict(_, dict) => dict,
        Value::Empty(..) => Dict::new(),
        _ => {
            let names: Vec<_> = known.iter().map(|(k, _)| *k).collect();
            report.fault(at, "not a map", format!("a map with the keys {}", names.join(", ")));
            return None;
        }
    };
    let dict: Dict = dict.into_iter().filter(|(_, v)| !is_cleared(v)).collect();
    for key in dict.keys() {
        let stem = key.strip_suffix("_file");
        let is_known = known.iter().any(|(k, file)| k == key || (*file && stem == Some(*k)));
        if !is_known {
            let problem = match nearest(key, known.iter().map(|(k, _)| *k)) {
                Some(near) => format!("unknown key; did you mean `{near}`?"),
                None => "unknown key".to_owned(),
            };
            let remedy = format!("one of {}", known.iter().map(|(k, _)| *k).collect::<Vec<_>>().join(", "));
            let here = at.key(key);
            match nearest(key, SECRET_WORDS) {
                // Misspelled, so that the mask by name would miss it.
                Some(_) => report.fault_with(&here, Some(secret::MASK.to_owned()), problem, remedy),
                None => report.fault(&here, problem, remedy),
            }
        }
    }
    Some(dict)
}

/// Reads one declared key of an opened map: its value, that of its `_file`, or its default.
pub(super) fn field<T: Setting>(dict: &Dict, declared: &Declared, at: &At, report: &mut Report<'_>) -> Option<T> {
    let file_key = format!("{}_file", declared.key);
    let named_file = if T::FROM_FILE { dict.get(&file_key) } else { None };
    let here = if named_file.is_some() { at.key(&file_key) } else { at.key(declared.key) };
    let told = report.count();
    let read = match (dict.get(declared.key), named_file) {
        (Some(_), Some(_)) => {
            report.fault(&here, format!("stands beside `{}`", declared.key), "one of the two");
            return fallback(declared, at, report);
        }
        (_, Some(path)) => {
            file_text(path, &here, report).and_then(|(name, text)| T::read_file(name, text, &here, report))
        }
        (Some(value), None) => T::read(value, &here, report),
        (None, None) => match declared.default {
            Some(text) => return T::read(&default_value(text), &here, report),
            None => {
                report.fault_with(&here, None, "missing", T::expects());
                return T::stand_in();
            }
        },
    };
    match read {
        Some(read) => {
            if let Some((min, max)) = declared.range
                && !read.in_range(min, max)
            {
                report.fault(&here, "out of range", format!("{}, from {min} to {max}", T::expects()));
                return fallback(declared, at, report);
            }
            Some(read)
        }
        None => {
            if let Some((min, max)) = declared.range {
                report.narrow(told, &T::expects(), &format!(", from {min} to {max}"));
            }
            fallback(declared, at, report)
        }
    }
}

/// The default in place of a faulty value, so that reading goes on.
fn fallback<T: Setting>(declared: &Declared, at: &At, report: &mut Report<'_>) -> Option<T> {
    match declared.default {
        Some(text) => T::read(&default_value(text), &at.key(declared.key), report),
        None => T::stand_in(),
    }
}

/// A default, which is written as YAML.
pub(super) fn default_value(text: &str) -> Value {
    yaml::parse(text).map_or_else(|_| Value::from(text), |node| node.plain(Tag::Default))
}

/// Name and content of a file that a value names.
pub(super) fn file_text(path: &Value, at: &At, report: &mut Report<'_>) -> Option<(String, String)> {
    let Some(name) = path.as_str().filter(|p| !p.is_empty()) else {
        report.fault(at, "not a path", "the path of a file that holds the secret");
        return None;
    };
    match std::fs::read_to_string(name) {
        Ok(text) if !text.trim().is_empty() => Some((name.to_owned(), text.trim_end_matches(['\r', '\n']).to_owned())),
        Ok(_) => {
            report.fault(at, "the file is empty", "a file that holds the secret");
            None
        }
        Err(e) => {
            report.fault(
                at,
                format!("cannot be read: {e}"),
                "a file that holds the secret and that this user may read",
            );
            None
        }
    }
}

/// What stands in place of a default where the key is required although it has a range.
pub(super) const REQUIRED: &str = "required";

/// The default that a section declares.
pub(super) fn default_of(text: &'static str) -> Option<&'static str> {
    Some(text).filter(|t| *t != REQUIRED)
}

/// Declares a section: `/// doc`, `key: Type = "default as YAML" in "min" ..= "max";`. Without a default, or with
/// [`REQUIRED`] in its place, the key is required.
macro_rules! section {
    ($(#[doc = $doc:literal])* $vis:vis struct $name:ident { $(
        $(#[doc = $about:literal])* $field:ident: $type:ty $(= $default:literal $(in $min:literal ..= $max:literal)?)?;
    )* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $name { $( $(#[doc = $about])* pub $field: $type, )* }

        impl $crate::config::schema::Setting for $name {
            fn expects() -> String {
                let keys: &[&str] = &[$(stringify!($field)),*];
                if keys.is_empty() { "an empty map, `{}`".to_owned() } else { format!("a map with the keys {}", keys.join(", ")) }
            }
            #[allow(unused_variables, reason = "a section may be empty")]
            fn read(
                value: &figment::value::Value,
                at: &$crate::config::report::At,
                report: &mut $crate::config::report::Report<'_>,
            ) -> Option<Self> {
                let known: &[(&str, bool)] =
                    &[$((stringify!($field), <$type as $crate::config::schema::Setting>::FROM_FILE)),*];
                let dict = $crate::config::schema::open(value, at, known, report)?;
                $( let $field = $crate::config::schema::field::<$type>(&dict, &$crate::config::schema::Declared {
                    key: stringify!($field),
                    default: None::<&'static str>$(.or($crate::config::schema::default_of($default)))?,
                    range: None::<(&'static str, &'static str)>$($(.or(Some(($min, $max))))?)?,
                }, at, report); )*
                Some(Self { $($field: $field?,)* })
            }
            fn show(&self) -> $crate::config::schema::Out {
                $crate::config::schema::Out::Map(vec![$( $crate::config::schema::declared_entry(
                    stringify!($field),
                    &self.$field,
                    concat!($($about, "\n"),*),
                    None::<&'static str>$(.or($crate::config::schema::default_of($default)))?,
                ), )*])
            }
            #[allow(unused_variables, reason = "a section may be empty")]
            fn keys(path: &str, out: &mut Vec<$crate::config::schema::KeyDoc>) {
                $( $crate::config::schema::declared_keys::<$type>(
                    path,
                    stringify!($field),
                    concat!($($about, "\n"),*),
                    None::<&'static str>$(.or($crate::config::schema::default_of($default)))?,
                    out,
                ); )*
            }
        }
    };
}
pub(super) use section;

/// How a declared key is printed.
pub(super) fn declared_entry<T: Setting>(key: &str, value: &T, doc: &str, default: Option<&str>) -> Entry {
    let mut doc: String = doc.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let mut entry = match value.file() {
        Some(file) => Entry::new(format!("{key}_file"), Out::Scalar(Node::Text(file.to_owned()))),
        None => Entry::new(key, value.show()),
    };
    if let Some(default) = default.filter(|d| *d != "{}") {
        doc.push_str(&format!(" Default: {}.", if default == "null" { "none" } else { default }));
    }
    entry.doc = doc;
    entry
}

/// The key itself and those below it.
pub(super) fn declared_keys<T: Setting>(
    path: &str,
    key: &str,
    doc: &'static str,
    default: Option<&'static str>,
    out: &mut Vec<KeyDoc>,
) {
    let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    out.push(KeyDoc { path: path.clone(), default, doc: doc.trim(), expects: T::expects() });
    T::keys(&path, out);
}
