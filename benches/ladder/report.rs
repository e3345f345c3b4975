//! Results as JSON, one object a line, beside the tables that people read.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Where results go.
pub struct Report(pub Option<PathBuf>);

impl Report {
    pub fn add(&self, result: Value) {
        if let Some(path) = &self.0 {
            let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
            writeln!(file, "{result}").unwrap();
        }
    }
}

/// Median, least and most.
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Self { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] }
    }

    pub fn json(&self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}
