//! The value of `Retry-After`.
#![no_main]

#[allow(dead_code, reason = "each target calls one of them")]
#[path = "../../tests/properties/subjects.rs"]
mod subjects;

libfuzzer_sys::fuzz_target!(|data: &[u8]| subjects::retry_after_is_bounded(data));
