//! The value of `traceparent`.
#![no_main]

#[allow(dead_code, reason = "each target calls one of them")]
#[path = "../../tests/properties/subjects.rs"]
mod subjects;

libfuzzer_sys::fuzz_target!(|data: &[u8]| subjects::traceparent_survives(data));
