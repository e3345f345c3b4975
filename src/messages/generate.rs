//! Sample events: valid payloads of any message, the same for the same seed, of about a wanted size.
//!
//! The built-in messages get contents that read like real ones; a user's own message is filled from its declaration.
//! Invariants:
//! - Every payload passes [`Decoder::check`]; the id given is in the message's id field.
//! - Same seed, ids and instants: same bytes.

use std::collections::{BTreeMap, HashMap};

use fastrand::Rng;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::ml::v1::{PipelineStep, StepStatus};
use super::shop::v1::{Channel, ItemSold, Money, OrderPlaced};
use super::{Decoder, Error, wire};
use crate::ladder::event::Timestamp;

/// Fields that are taken for the event's id when none is named.
const ID_FIELDS: [&str; 3] = ["unique_id", "event_id", "id"];
/// Fields that are taken for padding before all others.
const TEXT_FIELDS: [&str; 8] = ["note", "detail", "description", "comment", "text", "body", "payload", "padding"];
/// What padding is made of: five random bits a letter, so that compression gains little.
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Letters made of one random number.
const LETTERS_PER_DRAW: usize = 12;
/// Messages in messages are filled down to this depth; a message inside itself never.
const DEPTH: usize = 3;

/// What sample events look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Same seed, same contents.
    pub seed: u64,
    /// Wanted size of a payload in bytes: smaller ones are padded in a text field, larger ones stay as they are.
    pub size: usize,
    /// The field that holds the event's id, dots between levels; by default `unique_id`, `event_id` or `id`.
    pub id_field: Option<String>,
}

/// Makes sample events of one message.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    size: usize,
    sequence: u64,
    id_field: Vec<FieldDescriptor>,
    padding: Option<FieldDescriptor>,
    descriptor: MessageDescriptor,
}

impl Generator {
    /// A generator of the decoder's message.
    ///
    /// # Errors
    /// When `id_field` names no field that can hold an id.
    pub fn new(decoder: &Decoder, options: &Options) -> Result<Self, Error> {
        let descriptor = decoder.descriptor().clone();
        let id_field = match &options.id_field {
            Some(path) => {
                decoder.path(path)?;
                fields_on(&descriptor, path)
            }
            None => {
                ID_FIELDS.iter().find(|f| decoder.has_field(f)).map_or_else(Vec::new, |f| fields_on(&descriptor, f))
            }
        };
        let padding = padding_field(&descriptor, id_field.first());
        Ok(Self { rng: Rng::with_seed(options.seed), size: options.size, sequence: 0, id_field, padding, descriptor })
    }

    /// The next payload: an event of the instant `now` named `id`. An id field of integers gets the running number.
    pub fn next(&mut self, id: &str, now: Timestamp) -> Vec<u8> {
        self.sequence += 1;
        match (self.descriptor.full_name(), self.has_usual_id()) {
            ("shop.v1.OrderPlaced", true) => self.order_placed(id, now),
            ("shop.v1.ItemSold", true) => self.item_sold(id, now),
            ("ml.v1.PipelineStep", true) => self.pipeline_step(id, now),
            _ => self.any(id, now),
        }
    }

    fn has_usual_id(&self) -> bool {
        self.id_field.len() == 1 && self.id_field[0].name() == ID_FIELDS[0]
    }

    fn order_placed(&mut self, id: &str, now: Timestamp) -> Vec<u8> {
        let quantity = self.rng.u32(1..=5);
        let mut event = OrderPlaced {
            unique_id: id.to_owned(),
            order_id: format!("ord-{:07}", self.rng.u32(0..10_000_000)),
            customer_id: format!("cus-{:04}", self.rng.u32(0..1_000)),
            item_id: self.item_id(),
            quantity,
            amount: Some(self.money(quantity)),
            ordered_at: Some(timestamp(now)),
            channel: self.pick(&[Channel::Web, Channel::App]).into(),
            note: String::new(),
        };
        event.note = self.padding_for(event.encoded_len());
        event.encode_to_vec()
    }

    fn item_sold(&mut self, id: &str, now: Timestamp) -> Vec<u8> {
        let quantity = self.rng.u32(1..=5);
        let mut event = ItemSold {
            unique_id: id.to_owned(),
            item_id: self.item_id(),
            store_id: format!("sto-{:03}", self.rng.u32(1..=200)),
            quantity,
            amount: Some(self.money(quantity)),
            sold_at: Some(timestamp(now)),
            channel: Channel::Store.into(),
            note: String::new(),
        };
        event.note = self.padding_for(event.encoded_len());
        event.encode_to_vec()
    }

    fn pipeline_step(&mut self, id: &str, now: Timestamp) -> Vec<u8> {
        let step = self.pick(&["ingest", "validate", "featurize", "train", "evaluate", "register", "deploy"]);
        let status =
            self.pick(&[StepStatus::Running, StepStatus::Succeeded, StepStatus::Succeeded, StepStatus::Failed]);
        let rounded = |n: f64| (n * 10_000.0).round() / 10_000.0;
        let metrics = match step {
            "train" | "evaluate" => BTreeMap::from([
                ("accuracy".to_owned(), rounded(0.5 + self.rng.f64() / 2.0)),
                ("loss".to_owned(), rounded(self.rng.f64() * 2.0)),
            ]),
            _ => BTreeMap::from([("rows".to_owned(), f64::from(self.rng.u32(1_000..5_000_000)))]),
        };
        let run_id = format!("run-{:05}", self.rng.u32(0..2_000));
        let mut event = PipelineStep {
            unique_id: id.to_owned(),
            artifact_uris: vec![format!("s3://models/{run_id}/{step}")],
            run_id,
            step: step.to_owned(),
            status: status.into(),
            metrics,
            created_at: Some(timestamp(now)),
            elapsed: Some(prost_types::Duration { seconds: self.rng.i64(1..7_200), nanos: 0 }),
            attempt: self.rng.u32(1..=3),
            model: format!("{}-v{}", self.pick(&["churn", "ranking", "fraud", "forecast"]), self.rng.u32(1..40)),
            labels: BTreeMap::from([("team".to_owned(), self.pick(&["growth", "search", "risk"]).to_owned())]),
            detail: String::new(),
        };
        event.detail = self.padding_for(event.encoded_len());
        event.encode_to_vec()
    }

    fn any(&mut self, id: &str, now: Timestamp) -> Vec<u8> {
        let descriptor = self.descriptor.clone();
        let mut message = self.filled(&descriptor, now, &mut Vec::new());
        set_id(&mut message, &self.id_field, id, self.sequence);
        if let Some(field) = self.padding.clone() {
            message.clear_field(&field);
            let text = self.padding_for(message.encoded_len());
            message.set_field(&field, Value::String(text));
        }
        message.encode_to_vec()
    }

    fn filled(&mut self, descriptor: &MessageDescriptor, now: Timestamp, around: &mut Vec<String>) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        match descriptor.full_name() {
            "google.protobuf.Timestamp" => {
                let at = timestamp(now);
                message.set_field_by_number(1, Value::I64(at.seconds));
                message.set_field_by_number(2, Value::I32(at.nanos));
                return message;
            }
            "google.protobuf.Duration" => {
                message.set_field_by_number(1, Value::I64(self.rng.i64(0..3_600)));
                return message;
            }
            // Their contents have rules of their own; empty is valid.
            "google.protobuf.FieldMask" | "google.protobuf.Struct" | "google.protobuf.ListValue" => return message,
            _ => {}
        }
        around.push(descriptor.full_name().to_owned());
        for field in descriptor.fields() {
            let first_of_oneof = field
                .containing_oneof()
                .is_none_or(|oneof| oneof.fields().next().is_some_and(|first| first.number() == field.number()));
            if !first_of_oneof {
                continue;
            }
            let value = match field.kind() {
                // One entry: a map's entries are encoded in no fixed order.
                Kind::Message(entry) if field.is_map() => self
                    .value(&entry.map_entry_value_field(), now, around)
                    .zip(self.value(&entry.map_entry_key_field(), now, around).and_then(Value::into_map_key))
                    .map(|(value, key): (Value, MapKey)| Value::Map(HashMap::from([(key, value)]))),
                _ if field.is_list() => self.value(&field, now, around).map(|value| Value::List(vec![value])),
                _ => self.value(&field, now, around),
            };
            if let Some(value) = value {
                message.set_field(&field, value);
            }
        }
        around.pop();
        message
    }

    fn value(&mut self, field: &FieldDescriptor, now: Timestamp, around: &mut Vec<String>) -> Option<Value> {
        Some(match field.kind() {
            Kind::Bool => Value::Bool(self.rng.bool()),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.rng.i32(1..100)),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.rng.u32(1..100)),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.rng.i64(1..1_000_000)),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.rng.u64(1..1_000_000)),
            Kind::Float => Value::F32(self.rng.u32(0..1_000) as f32 / 8.0),
            Kind::Double => Value::F64(f64::from(self.rng.u32(0..100_000)) / 16.0),
            Kind::Bytes => Value::Bytes(self.rng.u64(..).to_be_bytes().to_vec().into()),
            Kind::String if field.name().ends_with("currency_code") => Value::String("EUR".to_owned()),
            Kind::String => Value::String(format!("{}-{:04}", field.name(), self.rng.u32(0..10_000))),
            Kind::Enum(e) => {
                let set: Vec<i32> = e.values().map(|v| v.number()).filter(|n| *n != 0).collect();
                Value::EnumNumber(if set.is_empty() { 0 } else { self.pick(&set) })
            }
            Kind::Message(m) => match m.full_name() {
                "google.protobuf.Any" | "google.protobuf.Value" => return None,
                name if around.len() > DEPTH || around.iter().any(|outer| outer == name) => return None,
                _ => Value::Message(self.filled(&m, now, around)),
            },
        })
    }

    fn item_id(&mut self) -> String {
        let letters: String = (0..3).map(|_| self.rng.char('A'..='Z')).collect();
        format!("sku-{letters}-{:04}", self.rng.u32(0..5_000))
    }

    fn money(&mut self, quantity: u32) -> Money {
        // A price ends in .99, .95 or .50: in cents, so that the multiplication is exact.
        let cents = (self.rng.i64(3..250) * 100 + self.pick(&[99, 95, 50])) * i64::from(quantity);
        let nanos = i32::try_from(cents % 100 * 10_000_000).unwrap_or_default();
        Money { currency_code: "EUR".to_owned(), units: cents / 100, nanos }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(..from.len())]
    }

    /// Text that brings a payload of `len` bytes to the wanted size, its own tag and length included.
    fn padding_for(&mut self, len: usize) -> String {
        let Some(missing) = self.size.checked_sub(len) else {
            return String::new();
        };
        let overhead = 1 + prost::encoding::encoded_len_varint(missing as u64);
        let len = missing.saturating_sub(overhead);
        let mut text = String::with_capacity(len + LETTERS_PER_DRAW);
        while text.len() < len {
            let bits = self.rng.u64(..);
            text.extend((0..LETTERS_PER_DRAW).map(|i| char::from(LETTERS[(bits >> (5 * i)) as usize & 31])));
        }
        text.truncate(len);
        text
    }
}

/// Bytes that are no message whatever the declaration and the framing: a key that never ends.
pub fn garbage(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0xff; 12];
    bytes.extend((0..rng.usize(0..64)).map(|_| rng.u8(..)));
    bytes
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let (seconds, micros) = (at.as_micros() / 1_000_000, at.as_micros() % 1_000_000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or_default(),
        nanos: i32::try_from(micros * 1_000).unwrap_or_default(),
    }
}

/// The declarations along a path that resolves.
fn fields_on(root: &MessageDescriptor, path: &str) -> Vec<FieldDescriptor> {
    let mut message = Some(root.clone());
    path.split('.')
        .map_while(|name| {
            let field = wire::find_field(message.as_ref()?, name)?;
            message = field.kind().as_message().cloned();
            Some(field)
        })
        .collect()
}

fn set_id(message: &mut DynamicMessage, path: &[FieldDescriptor], id: &str, sequence: u64) {
    let Some((field, deeper)) = path.split_first() else {
        return;
    };
    if !deeper.is_empty() {
        if let Some(inner) = message.get_field_mut(field).as_message_mut() {
            set_id(inner, deeper, id, sequence);
        }
        return;
    }
    let value = match field.kind() {
        Kind::String => Value::String(id.to_owned()),
        Kind::Bytes => Value::Bytes(id.as_bytes().to_vec().into()),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(sequence as i32),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(sequence as u32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(sequence as i64),
        _ => Value::U64(sequence),
    };
    message.set_field(field, value);
}

/// A text field of the message itself for padding: one with a telling name, else the last.
fn padding_field(message: &MessageDescriptor, id: Option<&FieldDescriptor>) -> Option<FieldDescriptor> {
    let free: Vec<FieldDescriptor> = message
        .fields()
        .filter(|f| f.kind() == Kind::String && !f.is_list() && f.containing_oneof().is_none())
        .filter(|f| id.is_none_or(|id| id.number() != f.number()))
        .collect();
    free.iter()
        .find(|f| TEXT_FIELDS.contains(&f.name()))
        .or_else(|| free.iter().rev().find(|f| !f.name().ends_with("id") && !f.name().ends_with("code")))
        .cloned()
}
