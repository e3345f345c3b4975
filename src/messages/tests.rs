//! Names, framing, fields, errors and JSON; what the parts below share.

mod generate;
mod wire;

use std::io::Write as _;

use futures::FutureExt as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, FieldOptions,
    FileDescriptorProto, FileDescriptorSet, MessageOptions, OneofDescriptorProto,
};

use super::shop::v1::{Money, OrderPlaced};
use super::*;
use crate::ladder::event::Timestamp;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_123);
const BUILT_IN_MESSAGES: [&str; 3] = ["shop.v1.OrderPlaced", "shop.v1.ItemSold", "ml.v1.PipelineStep"];

fn decoder(message: &str) -> Decoder {
    Decoder::new(message, None, Framing::Plain).unwrap()
}

fn order() -> OrderPlaced {
    OrderPlaced {
        unique_id: "u-1".into(),
        customer_id: "cus-7".into(),
        quantity: 2,
        amount: Some(Money { currency_code: "EUR".into(), units: -12, nanos: -500_000_000 }),
        ..OrderPlaced::default()
    }
}

/// A user's own declaration with every form that the wire knows: proto2, so that it can hold a group.
fn acme() -> (tempfile::NamedTempFile, Decoder) {
    let field = |name: &str, number, kind: Type, label: Label, type_name: Option<&str>| FieldDescriptorProto {
        name: Some(name.into()),
        number: Some(number),
        label: Some(label as i32),
        r#type: Some(kind as i32),
        type_name: type_name.map(str::to_owned),
        ..FieldDescriptorProto::default()
    };
    let scalars = [
        Type::Double,
        Type::Float,
        Type::Int64,
        Type::Uint64,
        Type::Int32,
        Type::Fixed64,
        Type::Fixed32,
        Type::Bool,
        Type::String,
        Type::Bytes,
        Type::Uint32,
        Type::Sfixed32,
        Type::Sfixed64,
        Type::Sint32,
        Type::Sint64,
    ];
    let mut fields: Vec<_> = scalars
        .iter()
        .zip(1..)
        .map(|(kind, n)| field(&format!("{kind:?}").to_lowercase(), n, *kind, Label::Optional, None))
        .collect();
    fields.push(field("self", 16, Type::Message, Label::Optional, Some(".acme.Everything")));
    fields.push(field("numbers", 17, Type::Int32, Label::Repeated, None));
    fields.push(FieldDescriptorProto {
        options: Some(FieldOptions { packed: Some(true), ..FieldOptions::default() }),
        ..field("packed", 18, Type::Fixed32, Label::Repeated, None)
    });
    fields.push(field("names", 19, Type::String, Label::Repeated, None));
    fields.push(field("children", 20, Type::Message, Label::Repeated, Some(".acme.Everything.ChildrenEntry")));
    fields.push(field("grouped", 21, Type::Group, Label::Optional, Some(".acme.Everything.Grouped")));
    fields.push(field("colour", 22, Type::Enum, Label::Optional, Some(".acme.Colour")));
    for (name, number, kind) in [("left", 23, Type::String), ("right", 24, Type::Int64)] {
        fields.push(FieldDescriptorProto { oneof_index: Some(0), ..field(name, number, kind, Label::Optional, None) });
    }
    fields.push(field("far", 1_000, Type::String, Label::Optional, None));
    let entry = DescriptorProto {
        name: Some("ChildrenEntry".into()),
        field: vec![
            field("key", 1, Type::String, Label::Optional, None),
            field("value", 2, Type::Message, Label::Optional, Some(".acme.Everything")),
        ],
        options: Some(MessageOptions { map_entry: Some(true), ..MessageOptions::default() }),
        ..DescriptorProto::default()
    };
    let group = DescriptorProto {
        name: Some("Grouped".into()),
        field: vec![
            field("text", 1, Type::String, Label::Optional, None),
            field("deeper", 2, Type::Message, Label::Optional, Some(".acme.Everything")),
        ],
        ..DescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("acme.proto".into()),
        package: Some("acme".into()),
        message_type: vec![
            DescriptorProto { name: Some("Empty".into()), ..DescriptorProto::default() },
            DescriptorProto {
                name: Some("Everything".into()),
                field: fields,
                nested_type: vec![entry, group],
                oneof_decl: vec![OneofDescriptorProto { name: Some("side".into()), options: None }],
                ..DescriptorProto::default()
            },
        ],
        enum_type: vec![EnumDescriptorProto {
            name: Some("Colour".into()),
            value: vec![
                EnumValueDescriptorProto { name: Some("NONE".into()), number: Some(0), options: None },
                EnumValueDescriptorProto { name: Some("RED".into()), number: Some(5), options: None },
            ],
            ..EnumDescriptorProto::default()
        }],
        ..FileDescriptorProto::default()
    };
    let mut set = tempfile::NamedTempFile::new().unwrap();
    set.write_all(&FileDescriptorSet { file: vec![file] }.encode_to_vec()).unwrap();
    let decoder = Decoder::new("acme.Everything", Some(set.path()), Framing::Plain).unwrap();
    (set, decoder)
}

/// Bytes that look like Protobuf often enough to get past the first key.
#[test]
fn the_embedded_descriptors_hold_the_built_in_messages() {
    let mut names = Decoder::built_in();
    names.sort();
    assert_eq!(names, ["ml.v1.PipelineStep", "shop.v1.ItemSold", "shop.v1.Money", "shop.v1.OrderPlaced"]);
}

#[test]
fn an_unknown_message_is_answered_with_the_nearest_names_first() {
    let check = |asked: &str, first: &str| match Decoder::new(asked, None, Framing::Plain) {
        Err(Error::UnknownMessage { known, .. }) => assert_eq!(known[0], first, "{asked}: {known:?}"),
        other => panic!("{other:?}"),
    };
    check("shop.v1.OrderPlacd", "shop.v1.OrderPlaced");
    check("OrderPlaced", "shop.v1.OrderPlaced");
    check("shop.v2.ItemSold", "shop.v1.ItemSold");
    check("pipelinestep", "ml.v1.PipelineStep");
}

#[test]
fn a_descriptor_set_that_cannot_be_used_says_how_to_make_one() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"syntax = \"proto3\";").unwrap();
    let error = Decoder::new("a.B", Some(file.path()), Framing::Plain).unwrap_err().to_string();
    assert!(error.contains("--include_imports"), "{error}");
    let error = Decoder::new("a.B", Some(Path::new("nowhere.bin")), Framing::Plain).unwrap_err().to_string();
    assert!(error.contains("nowhere.bin"), "{error}");
}

#[test]
fn a_broken_payload_is_told_by_field_and_place() {
    let check = |payload: &[u8], expected: &str| {
        let error = decoder("shop.v1.OrderPlaced").check(payload).unwrap_err().to_string();
        assert_eq!(error, format!("not a shop.v1.OrderPlaced: {expected} of {}", payload.len()));
    };
    check(b"\x0a\x05ab", "the bytes end too early in field shop.v1.OrderPlaced.unique_id at byte 1");
    check(b"\x28\x01\x0a\x02\xff\xfe", "text that is not UTF-8 in field shop.v1.OrderPlaced.unique_id at byte 3");
    check(
        b"\x08\x01",
        "a wire type that its declaration does not have in field shop.v1.OrderPlaced.unique_id at byte 1",
    );
    check(
        b"\x32\x02\x08\x01",
        "a wire type that its declaration does not have in field shop.v1.Money.currency_code at byte 3",
    );
    check(b"hello", "the end of a group that was not begun in unknown field 13 of shop.v1.OrderPlaced at byte 3");
    check(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "a number of more than 64 bits in a field's key at byte 0");
}

#[test]
fn confluent_frames_are_taken_off_and_broken_ones_are_errors() {
    let framed = Decoder { framing: Framing::Confluent, ..decoder("shop.v1.OrderPlaced") };
    let check = |head: &[u8], expected: Result<usize, &str>| {
        let value = [head, &order().encode_to_vec()].concat();
        match (framed.check(&value), expected) {
            (Ok(range), Ok(start)) => assert_eq!(range, start..value.len()),
            (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{e}"),
            (got, expected) => panic!("{head:?}: {got:?}, expected {expected:?}"),
        }
    };
    check(b"\0\0\0\0\x07\0", Ok(6));
    check(b"\0\0\0\0\x07\x02\x02", Ok(7));
    check(b"\0\0\0\0\x07\x04\x02\x80\x01", Ok(9));
    check(b"\x0a\0\0\0\x07\0", Err("framing: plain"));
    check(b"\0\0\0\0\x07\x01", Err("below 0"));
    check(b"\0\0\0\0\x07\xfe\xff\xff\xff\x0f\0", Err("confluent framing"));
    let error = framed.check(b"\0\0\0").unwrap_err();
    assert!(error.to_string().contains("fewer than the 5 bytes"), "{error}");
    assert_eq!(framed.check(b"\0\0\0\0\x07\0").unwrap(), 6..6);
}

#[test]
fn frames_carry_the_schema_id_and_the_messages_index() {
    let frame =
        |message: &str| Decoder { framing: Framing::Confluent, ..decoder(message) }.frame(b"x".to_vec(), 0x0102);
    assert_eq!(frame("shop.v1.OrderPlaced"), b"\0\0\0\x01\x02\0x");
    assert_eq!(frame("shop.v1.ItemSold"), b"\0\0\0\x01\x02\x02\x02x");
    assert_eq!(decoder("shop.v1.ItemSold").frame(b"x".to_vec(), 7), b"x");
}

#[test]
fn fields_read_as_text_and_empty_ones_count_as_missing() {
    let decoder = decoder("shop.v1.OrderPlaced");
    let check = |event: OrderPlaced, path: &str, expected: Option<&str>| {
        assert_eq!(decoder.field(&event.encode_to_vec(), path).as_deref(), expected, "{path}");
    };
    check(order(), "unique_id", Some("u-1"));
    check(order(), "uniqueId", Some("u-1"));
    check(order(), "quantity", Some("2"));
    check(order(), "amount.units", Some("-12"));
    check(order(), "amount.nanos", Some("-500000000"));
    check(order(), "order_id", None);
    check(OrderPlaced::default(), "quantity", None);
    check(OrderPlaced::default(), "amount.units", None);
    assert_eq!(decoder.field(b"\x0a\x05ab", "unique_id"), None);
}

#[test]
fn fields_that_cannot_be_ids_are_refused_with_the_reason() {
    let check = |message: &str, path: &str, part: &str| {
        let decoder = decoder(message);
        let error = decoder.path(path).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert!(!decoder.has_field(path));
    };
    check("shop.v1.OrderPlaced", "unique", "its fields are: unique_id, order_id");
    check("shop.v1.OrderPlaced", "amount", "name a field in it: `amount.…`");
    check("shop.v1.OrderPlaced", "amount.euros", "shop.v1.Money has no field `euros`");
    check("shop.v1.OrderPlaced", "unique_id.x", "is no message");
    check("shop.v1.OrderPlaced", "channel", "a string, bytes or integer field is needed");
    check("shop.v1.OrderPlaced", "", "has no field ``");
    check("ml.v1.PipelineStep", "metrics", "a list or map");
    check("ml.v1.PipelineStep", "artifact_uris", "a list or map");
}

#[test]
fn json_goes_both_ways() {
    let decoder = decoder("shop.v1.OrderPlaced");
    let json = decoder.to_json(&order().encode_to_vec()).unwrap();
    assert_eq!(
        json,
        r#"{"uniqueId":"u-1","customerId":"cus-7","quantity":2,"amount":{"currencyCode":"EUR","units":"-12","nanos":-500000000}}"#
    );
    assert_eq!(OrderPlaced::decode(decoder.from_json(&json).unwrap().as_slice()).unwrap(), order());
    let json = r#"{"unique_id":"u-1","orderedAt":"2026-09-21T13:33:20.5Z","channel":"CHANNEL_APP"}"#;
    let event = OrderPlaced::decode(decoder.from_json(json).unwrap().as_slice()).unwrap();
    assert_eq!(event.ordered_at, Some(prost_types::Timestamp { seconds: 1_789_997_600, nanos: 500_000_000 }));
    assert_eq!(event.channel(), shop::v1::Channel::App);
}

#[test]
fn json_that_is_not_the_message_is_told_with_what_would_be_right() {
    let check = |json: &str, part: &str| {
        let error = decoder("shop.v1.OrderPlaced").from_json(json).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("amount: shop.v1.Money"), "{error}");
    };
    check(r#"{"uniqueId":"a","quantty":1}"#, "quantty");
    check(r#"{"quantity":"two"}"#, "in string at column 17");
    check("{\n\"quantity\":\"two\"}", "at line 2 column 16");
    check(r#"{"uniqueId":"a"} {}"#, "trailing characters");
    check("[1]", "column");
    check("", "EOF");
    check(&"[".repeat(100_000), "column");
}

#[test]
fn a_timestamp_out_of_range_has_no_json_but_does_not_panic() {
    for seconds in [i64::MAX, i64::MIN] {
        let event = OrderPlaced { ordered_at: Some(prost_types::Timestamp { seconds, nanos: i32::MIN }), ..order() }
            .encode_to_vec();
        decoder("shop.v1.OrderPlaced").check(&event).unwrap();
        assert!(matches!(decoder("shop.v1.OrderPlaced").to_json(&event), Err(DecodeError::Json { .. })));
    }
}

/// Encoded with a field of this number besides.
fn and_field(mut bytes: Vec<u8>, number: u32) -> Vec<u8> {
    prost::encoding::uint64::encode(number, &7, &mut bytes);
    bytes
}

/// Encoded with this message in a field besides.
fn and_message(mut bytes: Vec<u8>, number: u32, message: Vec<u8>) -> Vec<u8> {
    prost::encoding::bytes::encode(number, &message, &mut bytes);
    bytes
}

#[test]
fn a_correction_keeps_fields_that_the_declaration_does_not_have_or_is_refused() {
    let (_file, decoder) = acme();
    let reader = Reader::Own(decoder.clone());
    let encoded = |json: &str| decoder.from_json(json).unwrap();
    let inner = and_field(encoded(r#"{"int32":1}"#), 901);
    let old = and_message(and_field(encoded(r#"{"string":"old","bool":true}"#), 900), 16, inner.clone());
    let new = r#"{"string":"new","self":{"int32":2}}"#;
    let correct = |value: &[u8], json: &str, drop| reader.with_json(value, json, drop).now_or_never().unwrap();
    let unknown = |value: &[u8]| reader.unknown_fields(value).now_or_never().unwrap().into_iter().collect::<Vec<_>>();

    let kept = correct(&old, new, false).unwrap();
    assert_eq!(decoder.to_json(&kept.value).unwrap(), new, "nothing else of the old value");
    assert_eq!(unknown(&kept.value), ["900", "self.901"]);
    assert_eq!(kept.unknown.into_iter().collect::<Vec<_>>(), ["900", "self.901"]);
    let dropped = correct(&old, new, true).unwrap();
    assert_eq!((dropped.value, dropped.unknown.len()), (encoded(new), 2));

    let check = |value: &[u8], json: &str, fields: &str| {
        let error = correct(value, json, false).unwrap_err().to_string();
        assert!(error.contains(&format!("its fields {fields}, which cannot")), "{error}");
        assert_eq!(correct(value, json, true).unwrap().value, encoded(json));
    };
    check(&old, r#"{"string":"new"}"#, "self.901");
    let entry = and_message(and_message(Vec::new(), 1, b"a".to_vec()), 2, inner);
    let listed = and_message(encoded("{}"), 20, entry);
    assert_eq!(unknown(&listed), ["children[].901"]);
    check(&listed, r#"{"children":{"a":{"int32":2}}}"#, "children[].901");
    // Nothing can be kept of what does not decode.
    assert_eq!(correct(b"\xff", new, false).unwrap().value, encoded(new));
}
