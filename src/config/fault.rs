//! What is wrong with a configuration: every fault at once, each with its key path, the value, and what would be right.
//!
//! Owns the wording's shape and the "did you mean" distance. Values arrive here already masked.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Key path, like `pipelines.orders.retries[1].delay`; a file name, flag or variable where no key is at fault.
    pub path: String,
    /// The value that was found, secrets masked; none when the key is missing.
    pub value: Option<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
    /// The file, environment variable or flag that set the value; none for a built-in default or a missing key.
    pub source: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(source) = &self.source {
            write!(f, " ({source})")?;
        }
        write!(f, ": {}\n    right would be: {}", self.problem, self.remedy)
    }
}

/// Every fault of a configuration; never empty when returned as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "1 fault in the configuration")?,
            n => writeln!(f, "{n} faults in the configuration")?,
        }
        for (i, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// The one of `known` that `word` was most likely meant to be, when one is near enough to be worth saying.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |s: &str| s.to_ascii_lowercase().replace(['-', '.'], "_");
    let word = fold(word);
    known
        .into_iter()
        .map(|k| (distance(&word, &fold(k)), k))
        .filter(|(d, k)| *d <= (word.len().max(k.len()) / 3).max(1))
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Edit distance with swaps of neighbours counted as one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_and_keeps_silent_about_strangers() {
        let known = ["retries", "retention", "concurrency", "dlq", "done_ttl"];
        #[track_caller]
        fn check(known: &[&str], word: &str, expected: Option<&str>) {
            assert_eq!(nearest(word, known.iter().copied()), expected, "{word}");
        }
        check(&known, "retires", Some("retries"));
        check(&known, "concurency", Some("concurrency"));
        check(&known, "done-ttl", Some("done_ttl"));
        check(&known, "DLQ", Some("dlq"));
        check(&known, "colour", None);
        check(&known, "", None);
    }
}
