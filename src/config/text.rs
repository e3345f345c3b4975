//! Durations, sizes and ratios as people write them. Pure text in both directions; `parse(show(x)) == x`.

use std::time::Duration;

/// Reads a duration such as `250ms`, `5s`, `10m` or `1h 30m`; the error says what would be right.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(format!("a number without a unit; `{text}s` are seconds, `{text}ms` milliseconds"));
    }
    humantime::parse_duration(text).map_err(|e| e.to_string().to_lowercase())
}

/// Writes a duration so that [`parse_duration`] reads the same again.
pub(super) use crate::telemetry::duration::show as show_duration;

const SIZES: [(&str, u64); 8] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads a size in bytes such as `64KiB`, `4MiB` or `1MB`; the error says what would be right.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = (&text[..split], text[split..].trim());
    let number: u64 = digits.parse().map_err(|_| "not a whole number with a unit".to_owned())?;
    if unit.is_empty() {
        return Err(format!("a number without a unit; `{number}B` are bytes, `{number}KiB` 1,024 times as many"));
    }
    let (_, factor) = SIZES
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .ok_or_else(|| format!("an unknown unit `{unit}`; units are B, KB, MB, GB, KiB, MiB, GiB, TiB"))?;
    number.checked_mul(*factor).ok_or_else(|| "more than 2^64 bytes".to_owned())
}

/// Writes a size so that [`parse_size`] reads the same again.
pub(super) fn show_size(bytes: u64) -> String {
    let unit = SIZES.iter().filter(|(_, f)| bytes > 0 && bytes.is_multiple_of(*f)).max_by_key(|(_, f)| *f);
    match unit {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => "0B".to_owned(),
    }
}

/// Reads a share such as `10 %` or `0.1`.
pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent.trim(), 100.0),
        None => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(n) if n.is_finite() => Ok(n / scale),
        _ => Err("neither a share like `0.1` nor a percentage like `10 %`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_text_with_units() {
        #[track_caller]
        fn check(text: &str, expected: Option<Duration>) {
            assert_eq!(parse_duration(text).ok(), expected, "{text}");
        }
        check("250ms", Some(Duration::from_millis(250)));
        check("5s", Some(Duration::from_secs(5)));
        check("10m", Some(Duration::from_secs(600)));
        check("1h 30m", Some(Duration::from_secs(5_400)));
        check("1h30m", Some(Duration::from_secs(5_400)));
        check("7d", Some(Duration::from_secs(7 * 86_400)));
        check("0s", Some(Duration::ZERO));
        check("5", None);
        check("1.5", None);
        check("", None);
        check("-5s", None);
        check("five seconds", None);
        assert!(parse_duration("5").unwrap_err().contains("`5s`"));
    }

    #[test]
    fn sizes_are_text_with_units() {
        #[track_caller]
        fn check(text: &str, expected: Option<u64>) {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
        check("4MiB", Some(4 << 20));
        check("64 KiB", Some(64 << 10));
        check("1MB", Some(1_000_000));
        check("12B", Some(12));
        check("12", None);
        check("MiB", None);
        check("-1MiB", None);
        check("4 apples", None);
        check("99999999999TiB", None);
    }

    #[test]
    fn ratios_are_shares_or_percentages() {
        #[track_caller]
        fn check(text: &str, expected: Option<f64>) {
            assert_eq!(parse_ratio(text).ok(), expected, "{text}");
        }
        check("0.1", Some(0.1));
        check("10 %", Some(0.1));
        check("10%", Some(0.1));
        check("1", Some(1.0));
        check("NaN", None);
        check("some", None);
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_reads_the_same(nanos in 0..u64::MAX / 4, bytes: u64) {
            let d = Duration::from_nanos(nanos);
            proptest::prop_assert_eq!(parse_duration(&show_duration(d)), Ok(d));
            proptest::prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_refused_or_means_what_it_is_shown_as(text in ".*|[0-9. -]{1,24} ?(ns|us|ms|s|m|h|d|y|B|KiB|MB|GiB|EiB|%)?") {
            if let Ok(d) = parse_duration(&text) {
                proptest::prop_assert_eq!(parse_duration(&show_duration(d)), Ok(d));
            }
            if let Ok(bytes) = parse_size(&text) {
                proptest::prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
            }
            if let Ok(ratio) = parse_ratio(&text) {
                proptest::prop_assert!(ratio.is_finite(), "{}", ratio);
            }
        }
    }
}
