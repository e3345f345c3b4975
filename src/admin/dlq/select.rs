//! Which dead letters are meant: the same for the command line and the console.

use std::fmt;
use std::ops::RangeInclusive;

use super::book::Fate;
use super::fingerprint::Fingerprint;
use super::letter::Glance;
use crate::adapters::kafka::scan::{Scan, Seen};

/// All of these together; what is not said means any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Of this group of like errors.
    pub fingerprint: Option<Fingerprint>,
    /// Of this class.
    pub class: Option<String>,
    /// Dead-lettered at or after this instant, Unix ms.
    pub since_ms: Option<i64>,
    /// Dead-lettered before this instant, Unix ms.
    pub until_ms: Option<i64>,
    /// With this key.
    pub key: Option<String>,
    /// Of this event.
    pub event_id: Option<String>,
    /// With each of these headers.
    pub headers: Vec<(String, String)>,
    /// On this partition of the DLQ.
    pub partition: Option<i32>,
    /// At these offsets of that partition.
    pub offsets: Option<RangeInclusive<i64>>,
    /// With this fate.
    pub state: Option<Fate>,
    /// At most so many.
    pub limit: Option<u64>,
}

impl Selection {
    /// Has a scan read no more than it must.
    pub fn narrow(&self, scan: &mut Scan) -> Result<(), crate::adapters::kafka::scan::Error> {
        if let Some(partition) = self.partition {
            scan.narrow(partition, self.offsets.clone());
        }
        match self.since_ms {
            Some(since) => scan.since(since),
            None => Ok(()),
        }
    }

    /// Whether this letter is meant, the limit aside. What is cheap to tell is asked first.
    pub fn matches(&self, glance: &Glance, seen: &Seen<'_>) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        self.state.is_none_or(|state| glance.fate == Some(state))
            && self.partition.is_none_or(|partition| glance.partition == partition)
            && self.offsets.as_ref().is_none_or(|offsets| offsets.contains(&glance.offset))
            && self.since_ms.is_none_or(|since| glance.at_ms >= since)
            && self.until_ms.is_none_or(|until| glance.at_ms < until)
            && is(&self.class, glance.class())
            && is(&self.event_id, &glance.event_id)
            && self.key.as_ref().is_none_or(|key| seen.key() == Some(key.as_bytes()))
            && self.headers.iter().all(|(name, value)| has_header(seen, name, value))
            && self.fingerprint.is_none_or(|fingerprint| glance.fingerprint() == fingerprint)
    }
}

fn has_header(seen: &Seen<'_>, name: &str, value: &str) -> bool {
    let mut has = false;
    seen.for_each_header(|n, v| has |= n == name.as_bytes() && v == Some(value.as_bytes()));
    has
}

/// As flags, to be read by people and in the book.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: Option<String>| flags.extend(value.map(|value| format!("--{name} {value}")));
        flag("fingerprint", self.fingerprint.map(|v| v.to_string()));
        flag("class", self.class.clone());
        flag("since", self.since_ms.map(rfc3339));
        flag("until", self.until_ms.map(rfc3339));
        flag("key", self.key.as_ref().map(|v| format!("{v:?}")));
        flag("event-id", self.event_id.as_ref().map(|v| format!("{v:?}")));
        for (name, value) in &self.headers {
            flag("header", Some(format!("{:?}", format!("{name}={value}"))));
        }
        flag("partition", self.partition.map(|v| v.to_string()));
        flag("offsets", self.offsets.as_ref().map(|v| format!("{}..{}", v.start(), v.end())));
        flag("state", self.state.map(|v| v.as_str().to_owned()));
        flag("limit", self.limit.map(|v| v.to_string()));
        if flags.is_empty() { f.write_str("everything") } else { f.write_str(&flags.join(" ")) }
    }
}

/// An instant as people and flags write it.
pub fn rfc3339(ms: i64) -> String {
    let ms = u64::try_from(ms).unwrap_or_default();
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(at).to_string()
}

/// An instant that a person gives: RFC 3339, Unix milliseconds, or how long ago (`90s`, `2h`, `7d`).
///
/// # Errors
/// What would be right.
pub fn instant(text: &str, now_ms: i64) -> Result<i64, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.len() >= 12 {
        return text.parse().map_err(|_| format!("`{text}` is beyond the end of time"));
    }
    if let Ok(at) = humantime::parse_rfc3339_weak(text) {
        let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    }
    match humantime::parse_duration(text) {
        Ok(ago) => Ok(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)).max(0)),
        Err(_) => Err(format!(
            "`{text}` is no instant: an RFC 3339 time in UTC (`2026-11-21T14:00:00Z`), Unix milliseconds, or how long \
             ago (`90s`, `2h`, `7d`)"
        )),
    }
}

/// `A..B`, both included; either may be left out.
///
/// # Errors
/// What would be right.
pub fn offsets(text: &str) -> Result<RangeInclusive<i64>, String> {
    let wrong = || format!("`{text}` is no range of offsets: `10..20`, both included, `10..` or `..20`");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str, default| match text {
        "" => Ok(default),
        digits => digits.parse::<u32>().map(i64::from).or_else(|_| digits.parse::<i64>()).map_err(|_| wrong()),
    };
    let range = number(from, 0)?..=number(to.trim_start_matches('='), i64::MAX)?;
    if range.is_empty() || *range.start() < 0 { Err(wrong()) } else { Ok(range) }
}

/// `NAME=VALUE`.
///
/// # Errors
/// What would be right.
pub fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no header: `NAME=VALUE`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_in_three_ways() {
        let now = 1_800_000_000_000;
        let check = |text: &str, expected: i64| assert_eq!(instant(text, now), Ok(expected), "{text}");
        check("2026-11-21T14:00:00Z", 1_795_269_600_000);
        check("2026-11-21 14:00:00", 1_795_269_600_000);
        check("1795269600000", 1_795_269_600_000);
        check("90s", now - 90_000);
        check("2h", now - 7_200_000);
        for wrong in ["", "yesterday", "12", "-5s"] {
            assert!(instant(wrong, now).unwrap_err().contains("RFC 3339"), "{wrong}");
        }
    }

    #[test]
    fn ranges_of_offsets_include_both_ends() {
        assert_eq!(offsets("10..20"), Ok(10..=20));
        assert_eq!(offsets("10..=20"), Ok(10..=20));
        assert_eq!(offsets("..5"), Ok(0..=5));
        assert_eq!(offsets("7.."), Ok(7..=i64::MAX));
        for wrong in ["", "5", "9..3", "-2..4", "a..b"] {
            assert!(offsets(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_selection_says_itself_as_flags() {
        let selection = Selection {
            class: Some("permanent".into()),
            since_ms: Some(1_795_269_600_000),
            key: Some("a b".into()),
            headers: vec![("source".into(), "till 4".into())],
            partition: Some(2),
            offsets: Some(1..=9),
            limit: Some(10),
            ..Selection::default()
        };
        assert_eq!(
            selection.to_string(),
            "--class permanent --since 2026-11-21T14:00:00.000Z --key \"a b\" --header \"source=till 4\" --partition 2 \
             --offsets 1..9 --limit 10"
        );
        assert_eq!(Selection::default().to_string(), "everything");
    }
}
