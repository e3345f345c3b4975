//! Fields of a message that its declaration does not have, on their way into a corrected version of it.
//!
//! A declaration can be older than the writer's. JSON cannot say such fields, so a message that went through it has lost
//! them: they are taken from the original, byte for byte, and nothing but them. In a list or map there is no telling which
//! element of the corrected message an element of the original has become.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};

/// Where they are: `12`, `amount.7`, `items[].3`.
pub(super) fn paths(message: &DynamicMessage) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    find(message, "", &mut found);
    found
}

fn find(message: &DynamicMessage, path: &str, found: &mut BTreeSet<String>) {
    found.extend(message.unknown_fields().map(|field| format!("{path}{}", field.number())));
    for (field, value) in message.fields() {
        find_in(value, &format!("{path}{}", field.name()), found);
    }
    for (field, value) in message.extensions() {
        find_in(value, &format!("{path}[{}]", field.full_name()), found);
    }
}

fn find_in(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Message(message) => find(message, &format!("{path}."), found),
        Value::List(values) => values.iter().for_each(|value| find_in(value, &format!("{path}[]"), found)),
        Value::Map(values) => values.values().for_each(|value| find_in(value, &format!("{path}[]"), found)),
        _ => {}
    }
}

/// Gives the corrected message the unknown fields of the original.
///
/// # Errors
/// Those that have no place in it.
pub(super) fn carry(mut original: DynamicMessage, corrected: &mut DynamicMessage) -> Result<(), BTreeSet<String>> {
    let mut lost = paths(&original);
    leave(&mut original, corrected);
    for kept in paths(&original) {
        lost.remove(&kept);
    }
    // Of one message in two parts the fields are joined.
    match corrected.merge(original.encode_to_vec().as_slice()) {
        Ok(()) if lost.is_empty() => Ok(()),
        _ => Err(lost),
    }
}

/// Leaves the original nothing but unknown fields that have a place in the corrected message.
fn leave(original: &mut DynamicMessage, corrected: &DynamicMessage) {
    let extensions: Vec<_> = original.extensions().map(|(field, _)| field).collect();
    extensions.iter().for_each(|field| original.clear_extension(field));
    let known: Vec<_> = original.fields().map(|(field, _)| field).collect();
    for field in known {
        let mut is_left = false;
        if corrected.has_field(&field)
            && let (Value::Message(inner), Value::Message(place)) =
                (original.get_field_mut(&field), &*corrected.get_field(&field))
        {
            leave(inner, place);
            is_left = inner.encoded_len() > 0;
        }
        if !is_left {
            original.clear_field(&field);
        }
    }
}
