//! A strict reader of Prometheus' text format, written from its description and sharing nothing with the writer.

use std::collections::{BTreeMap, BTreeSet};

/// Every series with its value: `name{a="b",c="d"}`, labels sorted.
pub(crate) type Samples = BTreeMap<String, f64>;

/// Reads an exposition.
///
/// # Panics
/// When anything is not as the format demands, with the line.
pub(crate) fn parse(text: &str) -> Samples {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line does not end");
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let mut family: Option<(String, String)> = None;
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap_or_else(|| panic!("help without text: {line}"));
            assert!(!words.trim().is_empty(), "help without text: {line}");
            assert!(families.insert(name.to_owned()), "family comes twice: {line}");
            let escapes = words.replace(r"\\", "").replace(r"\n", "");
            assert!(!escapes.contains('\\'), "unknown escape: {line}");
            assert!(help.is_none(), "help without its type: {line}");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("type without kind: {line}"));
            assert!(["counter", "gauge", "histogram"].contains(&kind), "unknown kind: {line}");
            assert_eq!(help.take().as_deref(), Some(name), "type without its help: {line}");
            family = Some((name.to_owned(), kind.to_owned()));
        } else {
            let (name, labels, value) = sample(line);
            let (of, kind) = family.as_ref().unwrap_or_else(|| panic!("sample before any type: {line}"));
            let suffix = name.strip_prefix(of.as_str()).unwrap_or_else(|| panic!("sample of another family: {line}"));
            match kind.as_str() {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
            assert_eq!(labels.contains_key("le"), suffix == "_bucket", "{line}");
            // +Inf is a bound that there is none of; no count and no sum is.
            let limit = name == "ladder_retention_seconds";
            assert!((value.is_finite() || limit) && value >= 0.0, "negative or no number: {line}");
            let series = series(&name, &labels);
            assert!(samples.insert(series, value).is_none(), "series comes twice: {line}");
        }
    }
    check_histograms(&samples);
    samples
}

/// `name{label="value",…}`, sorted by label.
fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    assert!(!name.is_empty() && name.chars().all(legal) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("label without value: {line}"));
            assert!(!label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let close = loop {
                match chars.next().unwrap_or_else(|| panic!("label value without end: {line}")) {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().map(|(_, c)| c) {
                        Some('n') => value.push('\n'),
                        Some(c @ ('"' | '\\')) => value.push(c),
                        other => panic!("unknown escape {other:?}: {line}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "label twice: {line}");
            rest = &after[close + 1..];
            if let Some(after) = rest.strip_prefix(',') {
                rest = after;
            } else {
                rest = rest.strip_prefix('}').unwrap_or_else(|| panic!("labels without end: {line}"));
                break;
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no value: {line}"));
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// Buckets rise, the last is +Inf and equals the count, and there is a sum.
fn check_histograms(samples: &Samples) {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, value) in samples {
        let Some((name, labels)) = series.split_once("_bucket{") else { continue };
        let labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
        let (le, others): (Vec<_>, Vec<_>) = labels.into_iter().partition(|l| l.starts_with("le="));
        let bound = le[0].trim_start_matches("le=").trim_matches('"');
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") };
        buckets.entry(format!("{name}#{}", others.join(","))).or_default().push((bound, *value));
    }
    for (series, mut buckets) in buckets {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|w| w[0].1 <= w[1].1), "{series}: buckets fall: {buckets:?}");
        let (name, labels) = series.split_once('#').expect("made above");
        let last = buckets.last().expect("not empty");
        assert!(last.0.is_infinite(), "{series}: no +Inf");
        assert_eq!(samples.get(&format!("{name}_count{{{labels}}}")), Some(&last.1), "{series}: count");
        assert!(samples.contains_key(&format!("{name}_sum{{{labels}}}")), "{series}: no sum");
    }
}

/// The parser itself bites: each of these is refused.
#[test]
fn what_is_not_as_the_format_demands_is_refused() {
    let good = "# HELP a_seconds Words.\n# TYPE a_seconds histogram\na_seconds_bucket{s=\"x\",le=\"1\"} 2\n\
                a_seconds_bucket{s=\"x\",le=\"+Inf\"} 3\na_seconds_sum{s=\"x\"} 4\na_seconds_count{s=\"x\"} 3\n";
    assert_eq!(parse(good).len(), 4);
    for (what, with) in [
        ("# HELP a_seconds Words.\n", ""),
        ("Words.", r"W\ords."),
        ("# TYPE a_seconds histogram\n", ""),
        ("histogram", "gauge"),
        ("le=\"1\"} 2", "le=\"1\"} 4"),
        ("le=\"1\"} 2", "le=\"1\"} -2"),
        ("le=\"1\"} 2", "le=\"1\"} inf"),
        ("le=\"1\"", "le=\"+Inf\""),
        (r#"s="x""#, r#"s="\x""#),
        ("a_seconds_bucket{s=\"x\",le=\"+Inf\"} 3\n", ""),
        ("a_seconds_sum{s=\"x\"} 4\n", ""),
        ("count{s=\"x\"} 3", "count{s=\"x\"} 2"),
        ("a_seconds_sum", "b_seconds_sum"),
    ] {
        let bad = good.replacen(what, with, 1);
        assert_ne!(bad, good, "{what}");
        assert!(std::panic::catch_unwind(|| parse(&bad)).is_err(), "read all the same: {bad}");
    }
    assert!(std::panic::catch_unwind(|| parse(good.trim_end())).is_err(), "a last line that does not end");
}
