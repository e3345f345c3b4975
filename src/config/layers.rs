//! The layers of a configuration and their merge: file < profile file < environment < flags (built-in defaults come
//! from [`super::keys`], key by key, when nothing here says otherwise).
//!
//! Invariants: maps merge deep and lists replace; of alternatives (two kinds of handler, `url` and `url_file`) the last
//! layer that names one wins; every value remembers where it came from. The environment is an argument, never read
//! here behind the caller's back.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Empty, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::fault::{Fault, Faults};
use super::yaml;

/// The file that is read when no other is named.
pub const DEFAULT_FILE: &str = "topics.yaml";
const PREFIX: &str = "PIPELINE_";
const PROFILE: &str = "PIPELINE_PROFILE";
/// Set by Azure Pipelines on every agent; not meant for us.
const FOREIGN: [&str; 1] = ["PIPELINE_WORKSPACE"];
/// Maps of which exactly one key is chosen: naming one in a later layer replaces the one of an earlier layer.
const CHOICES: [(&str, &[&str]); 2] =
    [("handler", &["http", "postgres", "log", "simulate"]), ("event_id", &["header", "field"])];
/// librdkafka properties with an underscore in their name; in all others a variable's `_` stands for a dot.
const UNDERSCORED: [&str; 5] = ["ssl_key", "ssl_certificate", "ssl_ca", "ssl_engine_id", "ssl_engine_location"];

/// Where a configuration comes from.
#[derive(Clone, Default)]
pub struct Sources {
    file: Option<PathBuf>,
    text: Option<(String, String)>,
    env: Vec<(String, String)>,
    flags: Vec<(String, String, String)>,
}

impl fmt::Debug for Sources {
    /// Names without values, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("flags", &self.flags.iter().map(|(flag, ..)| flag).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// The file `file` (`--config F`), which must exist; without one `./topics.yaml` where there is one. No environment.
    pub fn new(file: Option<PathBuf>) -> Self {
        Self { file, ..Self::default() }
    }

    /// YAML text in place of files: for programs and tests that have none. No profile either.
    pub fn inline(name: &str, yaml: &str) -> Self {
        Self { text: Some((name.to_owned(), yaml.to_owned())), ..Self::default() }
    }

    /// With this environment; only `PIPELINE_…` is looked at. The process's own is `std::env::vars_os()`.
    pub fn env<K: Into<OsString>, V: Into<OsString>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        let text = |s: OsString| s.to_string_lossy().into_owned();
        let mut vars: Vec<_> = vars
            .into_iter()
            .map(|(k, v)| (text(k.into()), text(v.into())))
            .filter(|(k, v)| k.starts_with(PREFIX) && !v.is_empty() && !FOREIGN.contains(&k.as_str()))
            .collect();
        vars.sort();
        self.env = vars;
        self
    }

    /// A flag that overrides `path` (`kafka.brokers`) in every other layer; `flag` (`--brokers`) is named in faults.
    pub fn flag(mut self, flag: &str, path: &str, value: impl Into<String>) -> Self {
        self.flags.push((flag.to_owned(), path.to_owned(), value.into()));
        self
    }

    /// Reads and merges the layers.
    pub(super) fn merge(&self) -> Result<Merged, Faults> {
        let mut faults = Vec::new();
        let mut figment = Figment::new();
        let mut files = Vec::new();
        if let Some((name, text)) = &self.text {
            figment = add_yaml(figment, name, text, &mut faults);
        }
        for file in self.files(&mut faults) {
            match std::fs::read_to_string(&file) {
                Ok(text) => figment = add_yaml(figment, &file.display().to_string(), &text, &mut faults),
                Err(e) => faults.push(Fault {
                    path: file.display().to_string(),
                    value: None,
                    problem: format!("cannot be read: {e}"),
                    remedy: "a file that this user may read".to_owned(),
                    source: None,
                }),
            }
            files.push(file);
        }
        for (name, value) in self.env.iter().filter(|(k, _)| k != PROFILE) {
            let Some(path) = env_path(name, &figment) else {
                faults.push(Fault {
                    path: name.clone(),
                    value: None,
                    problem: "a level of the key path is empty".to_owned(),
                    remedy: "two underscores between levels, like PIPELINE_KAFKA__BROKERS".to_owned(),
                    source: None,
                });
                continue;
            };
            figment = figment.merge(Layer::of_text(Metadata::named(name.clone()).source(ENVIRONMENT), path, value));
        }
        for (flag, path, value) in &self.flags {
            let path = path.split('.').map(str::to_owned).collect();
            figment = figment.merge(Layer::of_text(Metadata::named(flag.clone()).source(FLAG), path, value));
        }
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        let root = root(&figment);
        Ok(Merged { figment, root, files })
    }

    /// The files to read, in order; those that must exist and do not are faults.
    fn files(&self, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if self.text.is_some() {
            return files;
        }
        let base = self.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        if base.is_file() {
            files.push(base.clone());
        } else if self.file.is_some() {
            faults.push(Fault {
                path: "--config".to_owned(),
                value: Some(base.display().to_string()),
                problem: "there is no such file".to_owned(),
                remedy: "the path of a configuration file; the shipped one is topics.yaml".to_owned(),
                source: None,
            });
        }
        let Some((_, profile)) = self.env.iter().find(|(k, _)| k == PROFILE) else {
            return files;
        };
        let profile_fault = |problem: String, remedy: &str| Fault {
            path: PROFILE.to_owned(),
            value: Some(profile.clone()),
            problem,
            remedy: remedy.to_owned(),
            source: None,
        };
        if !profile.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            faults.push(profile_fault("is not a name".to_owned(), "letters, digits, `-`, `_`, like `dev` or `prod`"));
            return files;
        }
        let candidates = profile_files(&base, profile);
        match candidates.iter().find(|f| f.is_file()) {
            Some(file) => files.push(file.clone()),
            None => {
                let names: Vec<_> = candidates.iter().map(|c| c.display().to_string()).collect();
                faults.push(profile_fault(
                    format!("there is no file {}", names.join(" or ")),
                    "the name of a profile whose file stands beside the configuration, or no PIPELINE_PROFILE at all",
                ));
            }
        }
        files
    }
}

/// `topics.<profile>.yaml` beside the file; beside a file of another name its own `<name>.<profile>.yaml` comes first.
fn profile_files(base: &Path, profile: &str) -> Vec<PathBuf> {
    let beside = |name: String| base.with_file_name(name);
    let stem = base.file_stem().map_or_else(|| "topics".to_owned(), |s| s.to_string_lossy().into_owned());
    let mut files = vec![beside(format!("{stem}.{profile}.yaml"))];
    if stem != "topics" {
        files.push(beside(format!("topics.{profile}.yaml")));
    }
    files
}

/// The merged layers, every value tagged with where it came from.
pub(super) struct Merged {
    figment: Figment,
    pub(super) root: Value,
    /// Files that were read, in order.
    pub(super) files: Vec<PathBuf>,
}

const ENVIRONMENT: &str = "environment";
const FLAG: &str = "flag";

impl Merged {
    /// The file, variable or flag that set a value.
    pub(super) fn origin(&self, tag: Tag) -> Option<String> {
        self.figment.get_metadata(tag).map(|m| m.name.to_string())
    }

    /// Whether a value came as text that may stand for a number, a list and so on: from a variable or a flag.
    pub(super) fn is_text_layer(&self, tag: Tag) -> bool {
        self.figment.get_metadata(tag).and_then(|m| m.source.as_ref()).and_then(|s| s.custom()).is_some()
    }
}

fn root(figment: &Figment) -> Value {
    figment.find_value("").unwrap_or_else(|_| Value::from(Dict::new()))
}

/// Adds a YAML text as a layer.
fn add_yaml(figment: Figment, name: &str, text: &str, faults: &mut Vec<Fault>) -> Figment {
    let mut fault = |path: String, problem: String, remedy: &str| {
        let source = Some(name.to_owned()).filter(|n| *n != path);
        faults.push(Fault { path, value: None, problem, remedy: remedy.to_owned(), source });
    };
    let node = match yaml::parse(text) {
        Ok(node) => node,
        Err(e) => {
            fault(name.to_owned(), format!("not valid YAML: {e}"), "YAML as in the shipped topics.yaml");
            return figment;
        }
    };
    let mut duplicates = Vec::new();
    let value = node.into_value(Tag::Default, &mut Vec::new(), &mut |path| duplicates.push(path.join(".")));
    for path in duplicates {
        fault(path, "stands twice in one map".to_owned(), "each key once; the first one would be lost");
    }
    match value {
        Value::Dict(_, dict) => figment.merge(Layer::new(Metadata::named(name.to_owned()), dict)),
        Value::Empty(..) => figment,
        _ => {
            fault(name.to_owned(), "not a map of settings".to_owned(), "keys such as kafka:, redis:, pipelines:");
            figment
        }
    }
}

/// One layer: its values and the name that faults call it by.
struct Layer {
    metadata: Metadata,
    dict: Dict,
}

impl Layer {
    fn new(metadata: Metadata, mut dict: Dict) -> Self {
        for (key, value) in &mut dict {
            clear_alternatives(key, value);
        }
        Self { metadata, dict }
    }

    /// A single value at a path.
    fn of_text(metadata: Metadata, path: Vec<String>, text: &str) -> Self {
        let mut value = Value::from(text);
        let mut keys = path.into_iter().rev().peekable();
        let mut dict = Dict::new();
        while let Some(key) = keys.next() {
            dict = Dict::from([(key, value.clone())]);
            if keys.peek().is_some() {
                value = Value::from(dict.clone());
            }
        }
        Self::new(metadata, dict)
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// What a layer leaves where it chose another alternative; unlike a `null` that a person wrote it is never a value.
pub(super) fn cleared() -> Value {
    Value::Empty(Tag::Default, Empty::None)
}

/// Whether this is [`cleared`].
pub(super) fn is_cleared(value: &Value) -> bool {
    matches!(value, Value::Empty(_, Empty::None))
}

/// Marks the alternatives that this layer did not choose, so that the merge removes what earlier layers chose.
fn clear_alternatives(key: &str, value: &mut Value) {
    let Value::Dict(_, dict) = value else { return };
    let mut marks: Vec<String> = Vec::new();
    if let Some((_, kinds)) = CHOICES.iter().find(|(name, _)| *name == key)
        && kinds.iter().any(|k| dict.contains_key(*k))
    {
        marks.extend(kinds.iter().map(|k| (*k).to_owned()));
    }
    for (k, v) in dict.iter_mut() {
        if matches!(v, Value::Dict(..)) {
            clear_alternatives(k, v);
        } else if !matches!(v, Value::Array(..)) {
            marks.push(k.strip_suffix("_file").map_or_else(|| format!("{k}_file"), str::to_owned));
        }
    }
    for mark in marks {
        dict.entry(mark).or_insert_with(cleared);
    }
}

/// The key path that a variable means. Names that are free (pipelines, properties, headers) take the spelling that an
/// earlier layer gave them, so that `PIPELINE_PIPELINES__ORDERS_EU__…` finds `orders-eu`.
fn env_path(name: &str, figment: &Figment) -> Option<Vec<String>> {
    let root = root(figment);
    let mut here = Some(&root);
    let mut path: Vec<String> = Vec::new();
    for segment in name.strip_prefix(PREFIX)?.split("__") {
        if segment.is_empty() {
            return None;
        }
        let lower = segment.to_ascii_lowercase();
        let existing = here.and_then(Value::as_dict);
        let fold = |s: &str| s.to_ascii_lowercase().replace(['-', '.'], "_");
        let spelled = || existing?.iter().find(|(k, v)| fold(k) == lower && !is_cleared(v)).map(|(k, _)| k.clone());
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        let key = match parts.as_slice() {
            ["pipelines"] => spelled().unwrap_or(lower),
            ["kafka", "properties" | "consumer_properties" | "producer_properties"] => {
                spelled().unwrap_or_else(|| property_name(&lower))
            }
            [.., "http", "headers"] => spelled().unwrap_or_else(|| header_name(&lower)),
            _ => lower,
        };
        here = existing.and_then(|d| d.get(&key));
        path.push(key);
    }
    Some(path)
}

fn property_name(lower: &str) -> String {
    let (stem, file) = lower.strip_suffix("_file").map_or((lower, ""), |s| (s, "_file"));
    let stem = if UNDERSCORED.contains(&stem) { stem.to_owned() } else { stem.replace('_', ".") };
    stem + file
}

fn header_name(lower: &str) -> String {
    let (stem, file) = lower.strip_suffix("_file").map_or((lower, ""), |s| (s, "_file"));
    stem.replace('_', "-") + file
}
