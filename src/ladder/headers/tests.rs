//! The codec seen from outside: support for both directions; the cases are below.

use std::time::Duration;

use super::*;
use crate::ladder::event::Timestamp;
use crate::ladder::rungs::{Ladder, LadderSpec};

mod read;
mod redrive;
mod round_trip;
mod trust;
mod write;

pub(super) type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// When the record under test was written.
pub(super) const WRITTEN: i64 = 1_700_000_000_000;

pub(super) const AT: Coordinates = Coordinates { partition: 3, offset: 42, timestamp_ms: WRITTEN };

/// 5 s, 30 s, 5 min over topic `shop` for group `billing`.
pub(super) fn ladder() -> Ladder {
    let retry = |spec: LadderSpec, secs| spec.retry(Duration::from_secs(secs));
    Ladder::new([5, 30, 300].into_iter().fold(LadderSpec::new("orders", "billing", "shop"), retry)).unwrap()
}

pub(super) fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| (name.as_bytes().to_vec(), Some(value.as_bytes().to_vec()))).collect()
}

pub(super) fn iter(headers: &Headers) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
    headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()))
}

/// Reads with the default id source.
pub(super) fn read_at(stage: usize, at: Coordinates, headers: &Headers) -> Envelope {
    read(&ladder(), stage, at, iter(headers), &IdSource::default(), None)
}

/// A healthy record on `retry-2`, second move, with some of its headers replaced; an empty value takes one away.
pub(super) fn on_retry_2(changes: &[(&str, &str)]) -> Headers {
    let due = (WRITTEN + 30_000).to_string();
    let mut pairs = vec![
        (EVENT_ID, "id-1"),
        (STAGE, "2"),
        (ATTEMPT, "2"),
        (HOP, "2"),
        (FENCE, "1699999999000"),
        (DUE, due.as_str()),
        (ORIGIN, "shop:3:7:1699999990000"),
        (GROUP, "billing"),
    ];
    for (name, value) in changes {
        pairs.retain(|(n, _)| n != name);
        if !value.is_empty() {
            pairs.push((name, value));
        }
    }
    headers(&pairs)
}

pub(super) fn ms(ms: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(ms).unwrap())
}

#[test]
fn every_name_is_found_where_it_stands() {
    for (i, name) in NAMES.iter().enumerate() {
        assert_eq!(Name::of(name.as_bytes()).unwrap() as usize, i, "{name}");
    }
    for other in ["x-ladder-", "x-ladder-dues", "x-ladder-Due", "X-Ladder-Due", "due", ""] {
        assert_eq!(Name::of(other.as_bytes()), None, "{other}");
    }
}
