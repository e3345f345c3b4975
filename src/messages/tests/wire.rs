//! The checker and the reader of fields against prost's and reflection's own decoders.

use proptest::prelude::*;

use super::*;
use crate::messages::generate::{Generator, Options};
use crate::messages::ml::v1::PipelineStep;
use crate::messages::shop::v1::ItemSold;

fn wire_like() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![9 => 1..25_u32, 1 => Just(1_000_u32), 1 => any::<u32>()];
    let leaf = prop_oneof![
        3 => "[a-z]{0,5}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ];
    let fields = leaf.prop_recursive(3, 24, 4, move |inner| {
        proptest::collection::vec((number.clone(), 0..7_u8, any::<u64>(), inner, 0..40_u8), 0..4).prop_map(|fields| {
            let mut out = Vec::new();
            for (number, wire, n, inner, damage) in fields {
                prost::encoding::encode_varint(u64::from(number) << 3 | u64::from(wire), &mut out);
                match wire {
                    0 => prost::encoding::encode_varint(n, &mut out),
                    1 => out.extend(n.to_le_bytes()),
                    2 => {
                        prost::encoding::encode_varint(inner.len() as u64 + u64::from(damage == 0), &mut out);
                        out.extend(inner);
                    }
                    3 => {
                        out.extend(inner);
                        prost::encoding::encode_varint(u64::from(number) << 3 | 4, &mut out);
                    }
                    5 => out.extend((n as u32).to_le_bytes()),
                    _ => {}
                }
            }
            out
        })
    });
    prop_oneof![9 => fields, 1 => proptest::collection::vec(any::<u8>(), 0..64)]
}

fn damaged(mut payload: Vec<u8>, damage: &[(prop::sample::Index, u8)], cut: prop::sample::Index) -> Vec<u8> {
    for (at, byte) in damage {
        let at = at.index(payload.len());
        payload[at] = *byte;
    }
    if damage.len() > 2 {
        payload.truncate(cut.index(payload.len()));
    }
    payload
}

fn agrees_with_prost(bytes: &[u8]) -> Result<(), TestCaseError> {
    let typed =
        [OrderPlaced::decode(bytes).is_ok(), ItemSold::decode(bytes).is_ok(), PipelineStep::decode(bytes).is_ok()];
    for (message, expected) in BUILT_IN_MESSAGES.iter().zip(typed) {
        let got = decoder(message).check(bytes);
        prop_assert_eq!(got.is_ok(), expected, "{}: {:?}", message, got);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn check_agrees_with_prost_on_anything(bytes in wire_like()) {
        agrees_with_prost(&bytes)?;
    }

    #[test]
    fn check_agrees_with_prost_on_damaged_events(
        seed in any::<u64>(),
        which in 0..3_usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let options = Options { seed, ..Options::default() };
        let payload = Generator::new(&decoder(BUILT_IN_MESSAGES[which]), &options).unwrap().next("e-1", NOW);
        agrees_with_prost(&damaged(payload, &damage, cut))?;
    }

    #[test]
    fn framed_values_never_panic_and_survive(bytes in proptest::collection::vec(any::<u8>(), 0..40), id in any::<u32>()) {
        let framed = Decoder { framing: Framing::Confluent, ..decoder("shop.v1.ItemSold") };
        if let Ok(range) = framed.payload(&bytes) {
            prop_assert!(range.start >= 6 && range.end == bytes.len());
        }
        let value = framed.frame(bytes.clone(), id);
        let range = framed.payload(&value).unwrap();
        prop_assert_eq!(&value[range], bytes.as_slice());
    }
}

#[test]
fn check_and_fields_agree_with_reflection_on_a_declaration_of_every_form() {
    let (_file, acme) = acme();
    let leaves =
        [("string", "string"), ("self.sint64", "sint64"), ("left", "left"), ("right", "right"), ("far", "far")];
    let paths = leaves.map(|(path, _)| (path, acme.path(path).unwrap()));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let accepted = std::cell::Cell::new(0);
    runner
        .run(&wire_like(), |bytes| {
            let expected = DynamicMessage::decode(acme.descriptor().clone(), bytes.as_slice());
            let got = acme.check(&bytes);
            prop_assert_eq!(got.is_ok(), expected.is_ok(), "{:?} {:?}", got, expected);
            let Ok(message) = expected else { return Ok(()) };
            accepted.set(accepted.get() + 1);
            for (path, resolved) in &paths {
                let mut value = prost_reflect::Value::Message(message.clone());
                for name in path.split('.') {
                    value = value.as_message().unwrap().get_field_by_name(name).unwrap().into_owned();
                }
                let expected = match value {
                    prost_reflect::Value::String(s) => Some(s).filter(|s| !s.is_empty()),
                    prost_reflect::Value::I64(n) => Some(n).filter(|n| *n != 0).map(|n| n.to_string()),
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(acme.text(&bytes, resolved), expected, "{}", path);
            }
            // JSON may refuse (a number of no enum value is fine, a float may be NaN), but never panics.
            drop(acme.to_json(&bytes));
            Ok(())
        })
        .unwrap();
    assert!(accepted.get() > 400, "only {} inputs were valid: the property was hardly tried", accepted.get());
}

#[test]
fn nesting_is_limited_as_prost_limits_it() {
    let (_file, acme) = acme();
    for depth in [99, 100, 101, 102, 5_000] {
        let payload = (0..depth).fold(Vec::new(), |inner: Vec<u8>, _| {
            let mut outer = vec![0x82, 0x01];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.extend(inner);
            outer
        });
        let expected = DynamicMessage::decode(acme.descriptor().clone(), payload.as_slice()).is_ok();
        assert_eq!(acme.check(&payload).is_ok(), expected, "{depth}");
    }
    let groups = vec![0xab_u8; 100_000];
    assert!(acme.check(&groups).is_err());
}
