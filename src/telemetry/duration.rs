//! Durations as people write them, and as the configuration reads them: `7d`, `1h 30m`, `250ms`.

use std::time::Duration;

const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Exactly; the configuration reads the same again.
pub fn show(d: Duration) -> String {
    parts(d, usize::MAX)
}

/// For a person: its two largest units, cut off below (`4d 2h`), and no parts of a second beside whole ones.
pub fn coarse(d: Duration) -> String {
    parts(d, 2)
}

fn parts(d: Duration, most: usize) -> String {
    let mut rest = d.as_nanos();
    let mut parts = Vec::new();
    let mut places = 0;
    for (unit, nanos) in UNITS {
        // `24h` is easier to compare with other hours than `1d`.
        if unit == "d" && rest < 2 * nanos {
            continue;
        }
        let n = rest / nanos;
        rest %= nanos;
        if n > 0 {
            parts.push(format!("{n}{unit}"));
        }
        places += usize::from(!parts.is_empty());
        if places >= most || (unit == "s" && most != usize::MAX && !parts.is_empty()) {
            break;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_the_configuration_has_them_and_coarsely_for_people() {
        let check = |ms: u64, exact: &str, rough: &str| {
            let d = Duration::from_millis(ms);
            assert_eq!((show(d).as_str(), coarse(d).as_str()), (exact, rough));
        };
        check(0, "0s", "0s");
        check(250, "250ms", "250ms");
        check(5_000, "5s", "5s");
        check(5_432, "5s 432ms", "5s");
        check(65_432, "1m 5s 432ms", "1m 5s");
        check(3_600_001, "1h 1ms", "1h");
        check(86_400_000, "24h", "24h");
        check(7 * 86_400_000, "7d", "7d");
        check(4 * 86_400_000 + 2 * 3_600_000 + 61_000, "4d 2h 1m 1s", "4d 2h");
    }
}
