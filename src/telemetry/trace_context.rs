//! W3C trace contexts: read from and written into `traceparent`, made new, and who is sampled.
//!
//! A [`TraceContext`] is `Copy` and reading one allocates nothing, so that events nobody traces cost next to nothing.
//! The sampling of a new trace is a function of its id alone, the same one that the OpenTelemetry SDKs use, so that
//! every process decides alike. Leaves to others: which spans there are (`stage`), how they leave (`traces`).

use std::fmt;
use std::num::NonZeroU64;

/// Length of a `traceparent` of version 00.
const LENGTH: usize = 55;
const SAMPLED: u8 = 0x01;

/// Identifies one span: what `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// In two halves, because a `u128` would align everything that holds one to 16 bytes.
    trace_id: [u64; 2],
    span_id: NonZeroU64,
    flags: u8,
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Share of the traces begun here, 0 to 1. A trace begun elsewhere says for itself.
    pub ratio: f64,
    /// Whether a trace that is not recorded becomes so from an event's first failure on.
    pub on_failure: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { ratio: 1.0, on_failure: true }
    }
}

impl TraceContext {
    fn new(trace_id: u128, span_id: NonZeroU64, flags: u8) -> Self {
        Self { trace_id: [(trace_id >> 64) as u64, trace_id as u64], span_id, flags }
    }

    /// The first span of a new trace, sampled with the chance `ratio`.
    pub fn root(ratio: f64) -> Self {
        let trace_id = fastrand::u128(1..);
        Self::new(trace_id, new_span_id(), if is_in(trace_id, ratio) { SAMPLED } else { 0 })
    }

    /// Reads a `traceparent`; `None` when it is not valid and therefore to be ignored (W3C Trace Context, 3.2.2 and
    /// 4.3). Of a later version the parts of version 00 count.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let head = value.get(..LENGTH)?;
        let later = match &value[LENGTH..] {
            [] => false,
            [b'-', ..] => true,
            _ => return None,
        };
        if [2, 35, 52].iter().any(|at| head[*at] != b'-') {
            return None;
        }
        let version = hex(&head[..2])?;
        if version == 0xff || (later && version == 0) {
            return None;
        }
        let (trace_id, span_id) = (hex(&head[3..35])?, u64::try_from(hex(&head[36..52])?).ok()?);
        let flags = u8::try_from(hex(&head[53..55])?).ok()?;
        let span_id = NonZeroU64::new(span_id).filter(|_| trace_id != 0)?;
        Some(Self::new(trace_id, span_id, flags))
    }

    /// A new span of the same trace.
    pub fn child(self) -> Self {
        Self { span_id: new_span_id(), ..self }
    }

    /// The same span, recorded.
    pub const fn sampled(self) -> Self {
        Self { flags: self.flags | SAMPLED, ..self }
    }

    /// Whether the trace is recorded.
    pub const fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace: in logs and tools 32 lower-case hex digits.
    pub const fn trace_id(self) -> u128 {
        (self.trace_id[0] as u128) << 64 | self.trace_id[1] as u128
    }

    /// The span: 16 hex digits.
    pub const fn span_id(self) -> u64 {
        self.span_id.get()
    }
}

/// As `traceparent` of version 00, whose only flag is "sampled".
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id(), self.span_id, self.flags & SAMPLED)
    }
}

fn new_span_id() -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(fastrand::u64(..u64::MAX))
}

/// The SDKs' `TraceIdRatioBased`: the lower 8 bytes, one bit less, against the ratio's share of that range.
fn is_in(trace_id: u128, ratio: f64) -> bool {
    ratio >= 1.0 || ((trace_id as u64) >> 1) < (ratio.max(0.0) * (1_u64 << 63) as f64) as u64
}

/// Lower-case hex digits only, as the standard wants them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_the_standard_calls_valid_is_read() {
        #[track_caller]
        fn check(value: &str, expect: Option<&str>) {
            let read = TraceContext::parse(value.as_bytes()).map(|context| context.to_string());
            assert_eq!(read.as_deref(), expect, "{value}");
        }
        check(VALID, Some(VALID));
        check(&VALID.replace("-01", "-00"), Some(&VALID.replace("-01", "-00")));
        // Flags that version 00 does not know are not passed on.
        check(&VALID.replace("-01", "-ff"), Some(VALID));
        check(&format!("01{}-more", &VALID[2..]), Some(VALID));
        check(&format!("{VALID}-more"), None);
        check(&format!("01{}more", &VALID[2..]), None);
        check(&VALID.replace("00-", "ff-"), None);
        check(&VALID.to_uppercase(), None);
        check("00-00000000000000000000000000000000-b7ad6b7169203331-01", None);
        check("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None);
        check(&VALID[..54], None);
        check("", None);
    }

    #[test]
    fn the_share_of_sampled_traces_is_the_ratio() {
        let share = |ratio| (0..20_000).filter(|_| TraceContext::root(ratio).is_sampled()).count();
        assert_eq!((share(0.0), share(1.0)), (0, 20_000));
        assert!((4_500..5_500).contains(&share(0.25)), "a quarter");
    }

    proptest! {
        #[test]
        fn a_child_stays_in_its_trace_and_survives_the_header(ratio in 0.0..1.0) {
            let root = TraceContext::root(ratio);
            let child = root.child();
            prop_assert_eq!((child.trace_id(), child.is_sampled()), (root.trace_id(), root.is_sampled()));
            prop_assert_ne!(child.span_id(), root.span_id());
            prop_assert_eq!(TraceContext::parse(child.to_string().as_bytes()), Some(child));
        }
    }
}
