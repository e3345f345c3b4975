//! Values of flags with a unit or within limits: read, or refused with what would be right.

use std::time::Duration;

/// A time with its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a duration, like `90s` or `1h 30m`".to_owned())
}

/// Something per second: above 0.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("not a number above 0, like `300` or `0.5`".to_owned()),
    }
}

/// A share: from 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("not a share from 0 to 1, like `0.2`".to_owned()),
    }
}
