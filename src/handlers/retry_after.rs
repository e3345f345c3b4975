//! The `Retry-After` header (RFC 9110, section 10.2.3): seconds or an HTTP date. Pure and total.

use std::time::{Duration, UNIX_EPOCH};

use crate::ladder::event::Timestamp;

/// Nobody waits longer: a larger wish, however absurd, counts as this one.
pub const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time to wait from `now` on: at most [`MAX`], zero for a date in the past, `None` when the value is neither digits
/// nor an HTTP date.
pub fn parse(value: &[u8], now: Timestamp) -> Option<Duration> {
    let value = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // Digits alone fail to parse only when they are too many.
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX));
    }
    let date = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let date = Timestamp::from_micros(u64::try_from(date.as_micros()).ok()?);
    Some(date.since(now).min(MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::handlers::testing::NOW;

    #[track_caller]
    fn check(value: &str, expect: Option<u64>) {
        assert_eq!(parse(value.as_bytes(), NOW), expect.map(Duration::from_secs), "{value:?}");
    }

    #[test]
    fn seconds() {
        check("0", Some(0));
        check("120", Some(120));
        check(" 120\t", Some(120));
        check("007", Some(7));
    }

    #[test]
    fn dates_in_all_three_forms() {
        check("Sun, 06 Nov 1994 08:51:37 GMT", Some(120));
        check("Sunday, 06-Nov-94 08:51:37 GMT", Some(120));
        check("Sun Nov  6 08:51:37 1994", Some(120));
    }

    #[test]
    fn a_date_in_the_past_is_now() {
        check("Sun, 06 Nov 1994 08:49:36 GMT", Some(0));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
    }

    #[test]
    fn absurd_wishes_are_capped() {
        check("31536001", Some(31_536_000));
        check("18446744073709551615", Some(31_536_000));
        check("99999999999999999999999999", Some(31_536_000));
        check("Fri, 31 Dec 9999 23:59:59 GMT", Some(31_536_000));
    }

    #[test]
    fn garbage_is_no_wish() {
        for garbage in ["", " ", "-1", "+1", "1.5", "1s", "1 2", "soon", "0x10", "Sun, 06 Nov 1994", "١٢"] {
            check(garbage, None);
        }
        assert_eq!(parse(b"\xff\xfe", NOW), None);
    }

    #[test]
    fn a_fraction_of_a_second_is_kept() {
        let now = NOW + Duration::from_millis(250);
        assert_eq!(parse(b"Sun, 06 Nov 1994 08:49:38 GMT", now), Some(Duration::from_millis(750)));
    }

    proptest! {
        #[test]
        fn every_date_comes_back_exactly(ahead in 0u64..31_536_000) {
            let date = UNIX_EPOCH + Duration::from_micros(NOW.as_micros()) + Duration::from_secs(ahead);
            let text = httpdate::fmt_http_date(date);
            prop_assert_eq!(parse(text.as_bytes(), NOW), Some(Duration::from_secs(ahead)));
        }
    }
}
