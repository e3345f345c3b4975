//! The configuration: layers of text → [`Config`], valid by construction, or every fault at once.
//!
//! Owns key names, defaults, ranges, the checks between keys, and how secrets are shown. Leaves to others: whether the
//! message name exists (messages), whether topics are as they should be (adapters).
//!
//! Reading order: `keys` (every key, declared once), `layers` (where values come from), `schema` (how a declaration
//! becomes reader, printer and table), `check` (what keys must agree on), [`model`](self) (what the program is given),
//! `print` (what people are shown).

mod check;
mod choices;
mod fault;
mod kafka_properties;
mod keys;
mod layers;
mod model;
mod order;
mod postgres;
mod print;
mod report;
mod schema;
mod secret;
mod settings;
mod text;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use check::MAX_RETRIES;
pub use fault::{Fault, Faults};
pub use layers::{DEFAULT_FILE, Sources};
pub use model::*;
pub use schema::KeyDoc;
pub use secret::MASK;

use report::{At, Report};
use schema::Setting;

/// A configuration with where it came from.
pub struct Loaded {
    /// What the program works with.
    pub config: Config,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    keys: keys::Keys,
    merged: layers::Merged,
}

impl std::fmt::Debug for Loaded {
    /// Without the raw layers, which hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).field("files", &self.files).finish_non_exhaustive()
    }
}

impl Loaded {
    /// What the layers say, merged, as YAML; secrets masked, values from other layers than the first file marked.
    pub fn print(&self) -> String {
        print::yaml(&print::merged(&self.merged), false)
    }

    /// Every key with its meaning and its value, as YAML that loads to the same configuration (masked secrets apart).
    pub fn print_all(&self) -> String {
        print::yaml(&self.keys.show(), true)
    }

    /// As [`Loaded::print`] or, with `all`, [`Loaded::print_all`], as JSON.
    pub fn print_json(&self, all: bool) -> serde_json::Value {
        print::json(&if all { self.keys.show() } else { print::merged(&self.merged) })
    }
}

/// Reads, merges and checks.
///
/// # Errors
/// Every fault that was found.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let merged = sources.merge()?;
    let mut report = Report::new(&merged);
    let keys = keys::Keys::read(&merged.root, &At::default(), &mut report);
    let config = keys.as_ref().and_then(|keys| check::build(keys, &mut report));
    let faults = report.into_faults();
    match (keys, config) {
        (Some(keys), Some(config)) if faults.is_empty() => {
            Ok(Loaded { config, files: merged.files.clone(), keys, merged })
        }
        _ => Err(Faults(faults)),
    }
}

/// Every key with its default and its meaning, in the order of the file: for tables.
pub fn keys() -> impl Iterator<Item = KeyDoc> {
    let mut out = Vec::new();
    keys::Keys::keys("", &mut out);
    out.into_iter()
}
