//! When an event may run: the arithmetic of dues, both ways.
//!
//! Owns: what a due header means (and what it counts as when it is broken), and the due of the next move.
//! Invariants: an effective due is never further ahead than record timestamp + 2 × delay, so no header can park an
//! event for ever; a due that was computed here is never before `now` + delay.
//! Leaves to others: the clock, the random draw, and waiting.

use std::time::Duration;

use super::event::Timestamp;

/// What had to be repaired in a due header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueRepair {
    /// Missing or not a number: record timestamp + delay was taken.
    Missing,
    /// Too far ahead: record timestamp + 2 × delay was taken.
    Clamped,
}

/// The instant before which a record must not run: its header, repaired where it has to be. The past is fine: due.
///
/// A record without a timestamp (−1, or any negative one) counts as written at the epoch. It is due at once then,
/// which costs its delay; to believe its header could park it for ever, and retry topics are checked at start for
/// `LogAppendTime`, under which every record has a timestamp.
pub fn effective(header: Option<&[u8]>, record_timestamp_ms: i64, delay: Duration) -> (Timestamp, Option<DueRepair>) {
    let written = Timestamp::from_millis(u64::try_from(record_timestamp_ms).unwrap_or_default());
    let latest = written + delay.saturating_mul(2);
    match header.and_then(millis) {
        None => (written + delay, Some(DueRepair::Missing)),
        Some(ms) if Timestamp::from_millis(ms) > latest => (latest, Some(DueRepair::Clamped)),
        Some(ms) => (Timestamp::from_millis(ms), None),
    }
}

/// `now` + delay × (1 + jitter × draw). Never before `now` + delay, whatever `draw` is.
pub fn after(now: Timestamp, delay: Duration, jitter: f64, draw: f64) -> Timestamp {
    let extra = Duration::try_from_secs_f64(delay.as_secs_f64() * jitter * draw.clamp(0.0, 1.0)).unwrap_or_default();
    now + delay + extra
}

/// `now` + the wait that the target asked for, at most 2 × the stage's delay ahead.
///
/// The limit counts from the start of the current millisecond: record timestamps are whole milliseconds, and a due
/// beyond record timestamp + 2 × delay would count as broken when it is read.
pub fn asked(now: Timestamp, wish: Duration, delay: Duration) -> Timestamp {
    let latest = Timestamp::from_millis(now.floor_millis()) + delay.saturating_mul(2);
    (now + wish).min(latest)
}

/// Digits only; a number beyond u64 is still a number, and far ahead.
fn millis(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0_u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0'))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELAY: Duration = Duration::from_secs(5);

    fn check(header: Option<&str>, timestamp_ms: i64, due_ms: u64, repair: Option<DueRepair>) {
        let seen = effective(header.map(str::as_bytes), timestamp_ms, DELAY);
        assert_eq!(seen, (Timestamp::from_millis(due_ms), repair), "{header:?} at {timestamp_ms}");
    }

    #[test]
    fn a_due_is_taken_as_it_is_up_to_twice_the_delay_ahead() {
        check(Some("1005000"), 1_000_000, 1_005_000, None);
        check(Some("1010000"), 1_000_000, 1_010_000, None);
        check(Some("1010001"), 1_000_000, 1_010_000, Some(DueRepair::Clamped));
        check(Some("99999999999999999999999999"), 1_000_000, 1_010_000, Some(DueRepair::Clamped));
        check(Some("18446744073709551615"), 1_000_000, 1_010_000, Some(DueRepair::Clamped));
    }

    #[test]
    fn a_due_in_the_past_is_simply_due() {
        check(Some("0"), 1_000_000, 0, None);
        check(Some("999999"), 1_000_000, 999_999, None);
    }

    #[test]
    fn a_due_that_is_missing_or_no_number_is_the_delay_after_the_record() {
        for header in [None, Some(""), Some("soon"), Some("-5"), Some("+5"), Some(" 5"), Some("1e3"), Some("1.5")] {
            check(header, 1_000_000, 1_005_000, Some(DueRepair::Missing));
        }
    }

    #[test]
    fn a_record_without_a_timestamp_cannot_park() {
        check(None, -1, 5_000, Some(DueRepair::Missing));
        check(Some("1700000000000"), -1, 10_000, Some(DueRepair::Clamped));
        check(Some("7"), i64::MIN, 7, None);
    }

    #[test]
    fn a_wish_is_kept_up_to_twice_the_delay() {
        let now = Timestamp::from_micros(1_000_000_900);
        assert_eq!(asked(now, Duration::from_secs(3), DELAY), now + Duration::from_secs(3));
        assert_eq!(asked(now, Duration::from_secs(60), DELAY), Timestamp::from_millis(1_010_000));
        // What was capped when it was written is not clamped when it is read in the same millisecond.
        let due = asked(now, Duration::from_secs(60), DELAY).ceil_millis().to_string();
        assert_eq!(effective(Some(due.as_bytes()), 1_000_000, DELAY).1, None);
    }

    proptest! {
        #[test]
        fn a_jittered_due_lies_between_the_delay_and_a_tenth_more(
            now in 0..u64::MAX / 4, delay_ms in 1..10_000_000_u64, jitter in 0.0..=0.1_f64, draw in any::<f64>(),
        ) {
            let (now, delay) = (Timestamp::from_micros(now), Duration::from_millis(delay_ms));
            let due = after(now, delay, jitter, draw);
            prop_assert!(due >= now + delay);
            prop_assert!(due <= now + delay + delay / 10 + Duration::from_micros(1));
        }

        #[test]
        fn an_effective_due_is_never_beyond_twice_the_delay(
            header in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..30)), ts in any::<i64>(), delay in any::<u64>(),
        ) {
            let delay = Duration::from_micros(delay);
            let (due, _) = effective(header.as_deref(), ts, delay);
            let latest = Timestamp::from_millis(u64::try_from(ts).unwrap_or(0)) + delay.saturating_mul(2);
            prop_assert!(due <= latest);
        }
    }
}
