//! Sample events are valid, reproducible, sized and named as asked.

use super::*;
use crate::messages::generate::{Generator, Options, garbage};

#[test]
fn generated_events_are_valid_reproducible_and_of_the_wanted_size() {
    let (_file, acme) = acme();
    for decoder in BUILT_IN_MESSAGES.map(decoder).into_iter().chain([acme]) {
        let options = Options { seed: 7, size: 1_000, id_field: None };
        let mut first = Generator::new(&decoder, &options).unwrap();
        let mut second = Generator::new(&decoder, &options).unwrap();
        let small = Generator::new(&decoder, &Options { seed: 7, ..Options::default() }).unwrap().next("id-0", NOW);
        assert!(small.len() < 900, "{}: {} bytes", decoder.message(), small.len());
        for n in 0..200 {
            let id = format!("id-{n}");
            let payload = first.next(&id, NOW);
            assert_eq!(payload, second.next(&id, NOW));
            decoder.check(&payload).unwrap();
            assert!((998..=1_002).contains(&payload.len()), "{}: {} bytes", decoder.message(), payload.len());
            if decoder.has_field("unique_id") {
                assert_eq!(decoder.field(&payload, "unique_id"), Some(id));
            }
            let json = decoder.to_json(&payload).unwrap();
            let again = decoder.from_json(&json).unwrap();
            assert_eq!(decoder.to_json(&again).unwrap(), json);
        }
    }
}

#[test]
fn the_id_goes_into_the_field_that_was_named() {
    let (_file, acme) = acme();
    let check = |decoder: &Decoder, path: &str, expected: &str| {
        let options = Options { id_field: Some(path.into()), ..Options::default() };
        let payload = Generator::new(decoder, &options).unwrap().next("run-1", NOW);
        decoder.check(&payload).unwrap();
        assert_eq!(decoder.field(&payload, path).as_deref(), Some(expected), "{path}");
    };
    check(&decoder("shop.v1.OrderPlaced"), "order_id", "run-1");
    check(&decoder("shop.v1.OrderPlaced"), "amount.units", "1");
    check(&acme, "self.string", "run-1");
    check(&acme, "self.sint32", "1");
    check(&acme, "bytes", "72756e2d31");
    check(&acme, "right", "1");
    let options = Options { id_field: Some("nothing".into()), ..Options::default() };
    assert!(Generator::new(&acme, &options).is_err());
}

#[test]
fn garbage_is_poison_to_every_message_and_framing() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..200 {
        let bytes = garbage(&mut rng);
        for message in BUILT_IN_MESSAGES {
            for framing in [Framing::Plain, Framing::Confluent] {
                assert!(Decoder::new(message, None, framing).unwrap().check(&bytes).is_err());
            }
        }
    }
}
