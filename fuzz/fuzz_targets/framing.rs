//! The framing of values written with a schema registry.
#![no_main]

#[allow(dead_code, reason = "each target calls one of them")]
#[path = "../../tests/properties/subjects.rs"]
mod subjects;

libfuzzer_sys::fuzz_target!(|data: &[u8]| subjects::framing_finds_the_payload(data));
