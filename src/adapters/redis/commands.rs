//! The commands and what their replies mean. Pure: bytes in, bytes out.
//!
//! Claims and settlements are plain commands (a script costs Redis three times as much); renewals and releases compare
//! before they write, so they are scripts.

use std::io::Write;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, Value};

use crate::stage::ports::{Claim, ClaimReply, CopyKey, Mark, SettleReply, StoreError};

/// 1: the lease was extended; 0: the record is not ours any more.
const RENEW: &str = include_str!("renew.lua");
/// 1: the claim was deleted; 0: the record is not ours any more.
const RELEASE: &str = include_str!("release.lua");
/// `P`, `1`, `F` or `?`: what the record is, deleted if that is among the kinds given; nil: there is none.
const FORGET: &str = include_str!("forget.lua");

/// `SET k <claim> NX GET PX <lease>`.
pub(super) fn claim(lease: Duration) -> impl Fn(&(CopyKey, Claim)) -> Cmd {
    let lease = millis(lease);
    move |(key, claim)| {
        let mut cmd = command(7, 16 + key.len() + CLAIM_BYTES + MILLIS_BYTES);
        cmd.arg("SET").arg(&**key).arg(ClaimText::of(claim).as_bytes()).arg("NX").arg("GET").arg("PX").arg(lease);
        cmd
    }
}

/// The script that extends a lease.
pub(super) fn renew(lease: Duration) -> impl Fn(&(CopyKey, Claim)) -> Cmd {
    let lease = millis(lease);
    move |(key, claim)| {
        let mut cmd = command(6, 8 + RENEW.len() + key.len() + CLAIM_BYTES + MILLIS_BYTES);
        cmd.arg("EVAL").arg(RENEW).arg("1").arg(&**key).arg(ClaimText::of(claim).as_bytes()).arg(lease);
        cmd
    }
}

/// The script that deletes a claim.
pub(super) fn release((key, claim): &(CopyKey, Claim)) -> Cmd {
    let mut cmd = command(5, 8 + RELEASE.len() + key.len() + CLAIM_BYTES);
    cmd.arg("EVAL").arg(RELEASE).arg("1").arg(&**key).arg(ClaimText::of(claim).as_bytes());
    cmd
}

/// `SET k 1|F PX <ttl> GET`.
pub(super) fn settle((key, _, mark, ttl): &(CopyKey, Claim, Mark, Duration)) -> Cmd {
    let mut cmd = command(6, 16 + key.len() + MILLIS_BYTES);
    cmd.arg("SET").arg(&**key).arg(text(*mark)).arg("PX").arg(millis(*ttl)).arg("GET");
    cmd
}

/// `SET k 1|F PX <ttl>`: the settlement of a key that is no string.
pub(super) fn overwrite((key, _, mark, ttl): &(CopyKey, Claim, Mark, Duration)) -> Cmd {
    let mut cmd = command(5, 16 + key.len() + MILLIS_BYTES);
    cmd.arg("SET").arg(&**key).arg(text(*mark)).arg("PX").arg(millis(*ttl));
    cmd
}

/// Every command on records, as it changes nothing where the key is not there.
pub(super) fn harmless(key: &str) -> [Cmd; 5] {
    [
        of(&["SET", key, "", "XX", "GET", "PX", "1"]),
        of(&["GET", key]),
        of(&["PEXPIRE", key, "1"]),
        of(&["DEL", key]),
        of(&["EVAL", RENEW, "1", key, "", "1"]),
    ]
}

/// What a node of a cluster is asked besides; the last announces a command to a node that takes a slot over.
pub(super) fn of_a_cluster() -> [Cmd; 3] {
    [of(&["CLUSTER", "SLOTS"]), of(&["CLUSTER", "INFO"]), of(&["ASKING"])]
}

fn of(words: &[&str]) -> Cmd {
    let mut cmd = Cmd::new();
    for word in words {
        cmd.arg(*word);
    }
    cmd
}

/// A page of the keys that begin with `prefix`.
pub(super) fn scan(cursor: &str, prefix: &str, count: u32) -> Cmd {
    let mut cmd = Cmd::new();
    cmd.arg("SCAN").arg(cursor).arg("MATCH").arg(pattern(prefix)).arg("COUNT").arg(count);
    cmd
}

/// What matches every key that begins with `prefix`, and no other. Keys are percent-encoded, so none of ours has a
/// character to be escaped; one that had would otherwise take its neighbours with it.
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "*"
}

/// The script that says what a record is, and deletes it if it is one of `kinds`.
pub(super) fn forget(kinds: &'static str) -> impl Fn(&CopyKey) -> Cmd {
    move |key| {
        let mut cmd = command(5, 8 + FORGET.len() + key.len());
        cmd.arg("EVAL").arg(FORGET).arg("1").arg(&**key).arg(kinds);
        cmd
    }
}

/// One result per entry, in order.
pub(super) fn results<E, R>(
    replies: Vec<Result<Value, StoreError>>,
    entries: impl Iterator<Item = E>,
    read: impl Fn(Value, E) -> Result<R, StoreError>,
) -> Vec<Result<R, StoreError>> {
    replies.into_iter().zip(entries).map(|(reply, entry)| read(reply?, entry)).collect()
}

/// The table of the protocol.
pub(super) fn claim_reply(reply: Value, ours: &Claim) -> Result<ClaimReply, StoreError> {
    match reply {
        Value::Nil => Ok(ClaimReply::Claimed),
        Value::BulkString(value) => Ok(ClaimReply::to_existing(&value, ours)),
        reply if is_wrong_type(&reply) => Ok(ClaimReply::corrupt(b"WRONGTYPE: the key holds no string")),
        reply => Err(refusal(&reply)),
    }
}

/// Whether the value that a settlement replaced was our claim.
pub(super) fn settle_reply(reply: Value, ours: &Claim) -> Result<SettleReply, StoreError> {
    match reply {
        Value::BulkString(value) if Claim::parse(&value).is_some_and(|claim| claim == *ours) => Ok(SettleReply::Ours),
        // `OK` answers a settlement without GET, over a key of another type.
        Value::BulkString(_) | Value::Nil | Value::Okay => Ok(SettleReply::LeaseLost),
        reply => Err(refusal(&reply)),
    }
}

/// Whether a script found our claim.
pub(super) fn held(reply: Value) -> Result<bool, StoreError> {
    match reply {
        Value::Int(n) => Ok(n == 1),
        reply if is_wrong_type(&reply) => Ok(false),
        reply => Err(refusal(&reply)),
    }
}

/// Whether the key holds something else than a string.
pub(super) fn is_wrong_type(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "WRONGTYPE")
}

pub(super) fn refusal(reply: &Value) -> StoreError {
    match reply {
        Value::ServerError(error) => {
            StoreError(format!("redis refused the command: {} {}", error.code(), error.details().unwrap_or_default()))
        }
        other => StoreError(format!("redis answered {other:?}, which is no reply to this command")),
    }
}

/// The commands as one pipeline.
pub(super) fn pipeline(commands: impl ExactSizeIterator<Item = Cmd>) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(command);
    }
    pipeline
}

fn command(args: usize, bytes: usize) -> Cmd {
    Cmd::with_capacity(args, bytes)
}

fn text(mark: Mark) -> &'static str {
    match mark {
        Mark::Done => "1",
        Mark::MovedOn => "F",
    }
}

const MILLIS_BYTES: usize = 16;

/// Whole milliseconds as Redis takes them: rounded up, so that the lease there never ends before the one here; at
/// least 1 (0 is refused), and short of the overflow of Redis' clock.
pub(super) fn millis(ttl: Duration) -> u64 {
    let ms = ttl.as_nanos().div_ceil(1_000_000).clamp(1, 1_000_000_000_000_000);
    u64::try_from(ms).unwrap_or(u64::MAX)
}

/// `P.` 16 digits `-` at most 16 digits `.` at most 20 digits.
const CLAIM_BYTES: usize = 2 + 16 + 1 + 16 + 1 + 20;

/// A claim's value without an allocation.
struct ClaimText {
    bytes: [u8; CLAIM_BYTES],
    len: usize,
}

impl ClaimText {
    fn of(claim: &Claim) -> Self {
        let mut bytes = [0; CLAIM_BYTES];
        let mut rest = &mut bytes[..];
        // Cannot fail: the array holds the longest claim.
        let written = write!(rest, "{claim}");
        debug_assert!(written.is_ok(), "{claim}");
        let len = CLAIM_BYTES - rest.len();
        Self { bytes, len }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Claim = Claim { process: 0xab, sequence: 0x1f, fence: 1_700_000_000_000 };

    #[test]
    fn the_longest_claim_fits_and_reads_back() {
        for claim in [OURS, Claim { process: u64::MAX, sequence: u64::MAX, fence: u64::MAX }] {
            let text = ClaimText::of(&claim);
            assert_eq!(text.as_bytes(), claim.to_string().as_bytes());
            assert_eq!(Claim::parse(text.as_bytes()), Some(claim));
        }
    }

    #[test]
    fn an_existing_value_answers_a_claim_by_the_table() {
        fn check(value: &[u8], reply: ClaimReply) {
            let got = claim_reply(Value::BulkString(value.to_vec()), &OURS).unwrap();
            assert_eq!(got, reply, "{:?}", String::from_utf8_lossy(value));
        }
        let corrupt = |text: &str| ClaimReply::Corrupt(text.to_owned());
        check(b"1", ClaimReply::Done);
        check(b"F", ClaimReply::MovedOn);
        check(OURS.to_string().as_bytes(), ClaimReply::AlreadyOurs);
        check(b"P.00000000000000ab-1f.1700000000001", ClaimReply::Busy);
        check(b"P.00000000000000ab-20.1700000000000", ClaimReply::Busy);
        check(b"P.ffffffffffffffff-0.18446744073709551615", ClaimReply::Busy);
        check(b"", corrupt(""));
        check(b"2", corrupt("2"));
        check(b"1 ", corrupt("1 "));
        check(b"P.ab-1f.1", corrupt("P.ab-1f.1"));
        check(b"P.00000000000000AB-1f.1", corrupt("P.00000000000000AB-1f.1"));
        check(b"P.+0000000000000ab-1f.1", corrupt("P.+0000000000000ab-1f.1"));
        check(b"P.00000000000000ab-1f.+1", corrupt("P.00000000000000ab-1f.+1"));
        check(b"P.00000000000000ab-1f.18446744073709551616", corrupt("P.00000000000000ab-1f.18446744073709551616"));
        check(b"P.00000000000000ab-.1", corrupt("P.00000000000000ab-.1"));
        check(&[0xff, b'x'], corrupt("\u{fffd}x"));
        check("é".repeat(2_000).as_bytes(), corrupt(&"é".repeat(64)));
    }

    #[test]
    fn a_pattern_takes_what_its_prefix_says_literally() {
        assert_eq!(pattern("idem:billing:shop.orders:"), "idem:billing:shop.orders:*");
        assert_eq!(pattern(r"*?[x]\a%2A^-"), r"\*\?\[x\]\\a%2A^-*");
    }

    #[test]
    fn a_ttl_is_rounded_up_and_kept_in_redis_range() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_micros(1_001)), 2);
        assert_eq!(millis(Duration::from_secs(15)), 15_000);
        assert_eq!(millis(Duration::MAX), 1_000_000_000_000_000);
    }

    #[test]
    fn a_reply_of_the_wrong_kind_is_an_error_not_a_verdict() {
        assert!(claim_reply(Value::Int(1), &OURS).is_err());
        assert!(settle_reply(Value::Int(1), &OURS).is_err());
        assert!(held(Value::Nil).is_err());
    }
}
