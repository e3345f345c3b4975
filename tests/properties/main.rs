//! The properties of [`subjects`] on random input: bytes, and text that looks like what each subject reads.
#![allow(clippy::unwrap_used, clippy::nonminimal_bool, reason = "a test crate: what fails here fails the test")]

mod subjects;

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers(data in vec(any::<u8>(), 0..600)) {
        subjects::headers_read_and_round_trip(&data);
    }

    #[test]
    fn config(text in prop_oneof![
        "[a-z{}:\\[\\], \n0-9'&*!%-]{0,80}",
        "(kafka|redis|defaults|pipelines|instance|admin|telemetry): ?(\\{[a-z_]{1,12}: [a-z0-9:/.]{0,12}\\}|[a-z0-9]{0,9})\n",
        "pipelines:\n  p:\n    topic: t\n    message: shop.v1.OrderPlaced\n    (retries: \\[\\{delay: [0-9]{0,20}(ms|s|m|h|d|)\\}\\]\n|concurrency: -?[0-9]{0,22}\n|retention: .{0,9}\n)",
    ]) {
        subjects::config_loads_or_has_faults(text.as_bytes());
    }

    #[test]
    fn framing(head in prop_oneof![Just(vec![0, 0, 0, 0, 1]), vec(any::<u8>(), 0..7)], tail in vec(any::<u8>(), 0..60)) {
        subjects::framing_finds_the_payload(&[head, tail].concat());
    }

    #[test]
    fn retry_after(now: [u8; 8], value in prop_oneof![
        vec(any::<u8>(), 0..40),
        "[ \t]?[0-9]{1,30}[ \t]?".prop_map(String::into_bytes),
        "[A-Z][a-z]{2,5}, [0-9]{2}[ -][A-Z][a-z]{2}[ -][0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT".prop_map(String::into_bytes),
    ]) {
        subjects::retry_after_is_bounded(&[now.to_vec(), value].concat());
    }

    #[test]
    fn traceparent(data in prop_oneof![
        vec(any::<u8>(), 0..70),
        "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,9})?".prop_map(String::into_bytes),
        "(00|01|ff)-[0-9a-fA-F]{32}-[0-9a-f]{16}-(00|01|ff)".prop_map(String::into_bytes),
    ]) {
        subjects::traceparent_survives(&data);
    }
}

/// `scripts/verify` compiles the targets in `fuzz/`; that each subject has one is held here.
#[test]
fn every_subject_has_a_fuzz_target_that_calls_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for (target, function, subject) in subjects::SUBJECTS {
        subject(target.as_bytes());
        let text = std::fs::read_to_string(folder.join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(text.contains(r##"#[path = "../../tests/properties/subjects.rs"]"##), "{target}");
        let call = format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| subjects::{function}(data));");
        assert!(text.ends_with(&format!("{call}\n")), "{target} calls {function}");
        let path = format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"");
        assert!(manifest.contains(&path), "fuzz/Cargo.toml has {target}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), subjects::SUBJECTS.len());
}
