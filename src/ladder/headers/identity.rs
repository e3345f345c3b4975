//! Who an event is: its id, the key of one copy of it, the hop of a copy that does not say, the next fence
//! (rules 5, 6 and 7 of the deduplication protocol).
//!
//! Invariants: one id is one event; a repaired hop is above every real one and the same at redelivery, so it never
//! meets the key of an older copy.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::PREFIX;
use super::envelope::{Coordinates, Envelope, IdSource};
use crate::ladder::event::Timestamp;
use crate::ladder::rungs::Ladder;

/// Hops are below this: 2^53, up to which every JSON reader counts exactly.
pub const HOP_LIMIT: u64 = 1 << 53;

/// Hops that no header may claim, so that no forged value leaves an event without a next hop (its partition would have to
/// halt). Repaired hops end far below.
const ROOM: u64 = 1 << 49;

/// No fence of ours comes near: it is a Unix time in ms that rises by one an execution. A forged one at the end of the
/// range could not rise any more.
const FENCE_LIMIT: u64 = 1 << 53;

/// A longer id is hashed in the key.
const MAX_KEY_ID: usize = 200;

/// A longer id is hashed already when it is read: it has to fit into our headers.
const MAX_ID: usize = 2048;

/// `:` separates the parts and `{}` would choose the slot on Redis Cluster, so only what is unreserved in URLs stays.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What keeps `<ce_source>/<ce_id>` unambiguous: the last `/` is the separator.
const CE_ID: &AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b'/');

/// Makes the keys of one ladder's copies: `<prefix>:<group>:<topic>:<event_id>:<hop>`, the parts percent-encoded.
#[derive(Clone, Debug)]
pub struct CopyKeys {
    base: String,
    queues: String,
}

impl CopyKeys {
    /// Keys of this ladder under this prefix.
    pub fn new(prefix: &str, ladder: &Ladder) -> Self {
        let join = |parts: &[&str]| {
            let mut joined = String::new();
            for part in parts {
                joined.extend(utf8_percent_encode(part, PART));
                joined.push(':');
            }
            joined
        };
        let (group, topic) = (ladder.group(), ladder.topic());
        Self { base: join(&[prefix, group, topic]), queues: join(&[prefix, "order", group, topic]) }
    }

    /// The key of one copy. An id of more than 200 bytes stands as `sha256=<hex>`, which no encoded id can be.
    pub fn key(&self, event_id: &str, hop: u64) -> Arc<str> {
        let mut key = String::with_capacity(self.base.len() + event_id.len().min(MAX_KEY_ID) + 24);
        key.push_str(&self.base);
        if event_id.len() > MAX_KEY_ID {
            push_hash(&mut key, event_id.as_bytes());
        } else {
            key.extend(utf8_percent_encode(event_id, PART));
        }
        write!(key, ":{hop}").ok();
        key.into()
    }

    /// The queue of one record key of one main partition: `<prefix>:order:<group>:<topic>:<partition>:<key>`, a key of
    /// more than 200 bytes hashed. One part more than the key of a copy has, so that no two are the same.
    pub fn queue(&self, partition: i32, record_key: &[u8]) -> Arc<str> {
        let mut queue = String::with_capacity(self.queues.len() + record_key.len().min(MAX_KEY_ID) + 12);
        queue.push_str(&self.queues);
        write!(queue, "{partition}:").ok();
        if record_key.len() > MAX_KEY_ID {
            push_hash(&mut queue, record_key);
        } else {
            queue.extend(percent_encode(record_key, PART));
        }
        queue.into()
    }

    /// What the keys of all copies of one event begin with, or those of all events: to find and forget them.
    pub fn prefix(&self, event_id: Option<&str>) -> String {
        let Some(event_id) = event_id else {
            return self.base.clone();
        };
        let key = self.key(&bounded(event_id), 0);
        key[..key.len() - 1].to_owned()
    }
}

/// The key of the copy that `envelope` was read from. [`CopyKeys`] does the same without encoding the ladder again.
pub fn copy_key(prefix: &str, ladder: &Ladder, envelope: &Envelope) -> Arc<str> {
    CopyKeys::new(prefix, ladder).key(&envelope.event_id, envelope.hop)
}

/// The fence of the next execution: grows with every one, and with time across copies that know nothing of each
/// other. At the end of what a header can hold (only a hostile one gets there) it stays rather than falls.
pub fn next_fence(claim_instant: Timestamp, last: u64) -> u64 {
    claim_instant.floor_millis().max(last.saturating_add(1).min(FENCE_LIMIT - 1))
}

/// A usable id. Empty, blank and `0` are what unset fields look like.
pub(super) fn usable(id: &[u8]) -> Option<&str> {
    let id = text(id)?;
    (id.trim() != "0").then_some(id)
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| !text.trim().is_empty())
}

/// The id of the configured source; `ours: false` passes over our own headers.
pub(super) fn configured<'a>(
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    source: &IdSource,
    field_id: Option<&'a str>,
    ours: bool,
) -> Option<Cow<'a, str>> {
    let last = |name: &str| headers.clone().filter(|(n, _)| *n == name.as_bytes()).last().and_then(|(_, value)| value);
    match source {
        IdSource::Field => field_id.and_then(|id| usable(id.as_bytes())).map(Cow::Borrowed),
        IdSource::Headers(names) => names.iter().filter(|name| ours || !name.starts_with(PREFIX)).find_map(|name| {
            let id = usable(last(name)?)?;
            if name != "ce_id" {
                return Some(Cow::Borrowed(id));
            }
            let source = text(last("ce_source")?)?;
            Some(Cow::Owned(format!("{source}/{}", utf8_percent_encode(id, CE_ID))))
        }),
    }
}

/// An id as it travels: as it is, or hashed when it could not travel.
pub(super) fn bounded(id: &str) -> Arc<str> {
    if id.len() <= MAX_ID {
        return id.into();
    }
    let mut hashed = String::new();
    push_hash(&mut hashed, id.as_bytes());
    hashed.into()
}

fn push_hash(to: &mut String, id: &[u8]) {
    to.push_str("sha256=");
    for byte in Sha256::digest(id) {
        write!(to, "{byte:02x}").ok();
    }
}

/// The hop of a copy that does not say a valid one: its timestamp in ms, far above every real count.
///
/// Without a plausible timestamp the offset and the stage stand in, above every timestamp; half of the range stays
/// free for the moves to come.
pub(super) fn repaired_hop(at: Coordinates, stage: usize) -> u64 {
    const PLAUSIBLE: std::ops::Range<u64> = 1 << 32..1 << 52;
    match u64::try_from(at.timestamp_ms) {
        Ok(ms) if PLAUSIBLE.contains(&ms) => ms,
        _ => {
            let offset = u64::try_from(at.offset).unwrap_or_default() % (1 << 46);
            (1 << 52) + offset * 32 + stage as u64 % 32
        }
    }
}

/// Whether a header can hold this fence.
pub(super) fn valid_fence(fence: u64) -> bool {
    fence < FENCE_LIMIT
}

/// Whether a header that our group wrote can hold this hop on this rung: a copy that moved has one of at least 1, and
/// 0 would meet the key of the record on main.
pub(super) fn valid_hop(hop: u64) -> bool {
    (1..HOP_LIMIT - ROOM).contains(&hop)
}
