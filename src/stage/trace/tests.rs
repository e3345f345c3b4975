//! When a wait begins; the spans themselves are tested in `adapters::otel`, through the whole stage.

use super::*;

#[test]
fn a_wait_begins_when_the_event_was_handed_on() {
    #[track_caller]
    fn check(due_ms: u64, record_ms: i64, expect_ms: u64) {
        let written = written(Timestamp::from_millis(due_ms), Duration::from_secs(30), record_ms);
        assert_eq!(written, Timestamp::from_millis(expect_ms));
    }
    // On its way to the broker for 20 ms.
    check(1_030_000, 1_000_020, 1_000_000);
    // A record without a time, and one due before any time.
    check(1_030_000, -1, 1_000_000);
    check(5, -1, 0);
    // Redriven to be due at once; asked to wait longer than the delay.
    check(1_000_000, 1_000_010, 1_000_010);
    check(1_090_000, 1_000_020, 1_000_020);
}
