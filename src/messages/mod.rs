//! Protobuf messages: the built-in ones, and a user's own by a descriptor set.
//!
//! [`Decoder`] owns everything that depends on the message's declaration: taking the framing off, the check that a
//! payload decodes, fields as text (for event ids and keys) and the JSON mapping. [`generate`] makes sample events.
//! Invariants:
//! - No input panics; a payload that [`Decoder::check`] accepts is decoded by prost, too.
//! - Names of messages and fields are resolved when a decoder or path is made, so a misspelt configuration fails at
//!   start and not at the first event.
//!
//! What becomes of an undecodable event is not decided here: see [`crate::ladder`].

mod frame;
pub mod generate;
mod registered;
mod schema;
mod unknown;
mod wire;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};

pub use frame::Frame;
pub use registered::{Corrected, ReadError, Reader, SchemaError, Schemas};
pub use schema::Schema;

/// A shop: orders and sales.
pub mod shop {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in proto/shop/v1")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/shop.v1.rs"));
    }
}

/// Machine-learning runs.
pub mod ml {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in proto/ml/v1")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/ml.v1.rs"));
    }
}

/// The descriptor set of the built-in messages, imports included.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The `.proto` files of the built-in messages: name and text.
const TEXTS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/texts.rs"));

/// The built-in messages; an empty pool if the embedded bytes were broken, which a test rules out.
static BUILT_IN: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR_SET).unwrap_or_default());

/// What stands before the Protobuf bytes in a record's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// Nothing.
    #[default]
    Plain,
    /// The schema registry's frame: a zero byte, four bytes of schema id, the message's indexes in its file.
    Confluent,
}

/// Why a message, a field or a JSON text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The message is in no descriptor at hand.
    #[error("unknown message `{name}` in {place}; known, nearest first: {}", known.join(", "))]
    UnknownMessage {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        place: String,
        /// The names that exist, nearest first.
        known: Vec<String>,
    },
    /// The descriptor set's file cannot be read.
    #[error("cannot read the descriptor set {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no complete descriptor set.
    #[error(
        "{} is not a complete descriptor set ({detail}); make it with \
         `protoc --include_imports --descriptor_set_out=FILE …` or `buf build -o FILE`", path.display()
    )]
    DescriptorSet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The field cannot be used as an event's id or key.
    #[error("field `{path}` of {message}: {detail}")]
    Field {
        /// Full name of the message.
        message: String,
        /// The path asked for.
        path: String,
        /// What is wrong, and what would be right.
        detail: String,
    },
    /// A JSON text is not the message in the proto3 JSON mapping.
    #[error("not a {message} in JSON: {detail}; {remedy}")]
    Json {
        /// Full name of the message.
        message: String,
        /// What is wrong, with its line and column.
        detail: String,
        /// What would be right.
        remedy: String,
    },
}

/// Why a value is not the message: makes the event poison.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame is broken.
    #[error("confluent framing: {what}")]
    Framing {
        /// What is wrong, and what would be right.
        what: &'static str,
    },
    /// The bytes are not the message.
    #[error("not a {message}: {what} in {field} at byte {at} of {size}")]
    Payload {
        /// Full name of the message.
        message: String,
        /// What is wrong.
        what: &'static str,
        /// The field it was found in.
        field: String,
        /// Where in the payload, in bytes from its start.
        at: usize,
        /// Size of the payload in bytes.
        size: usize,
    },
    /// The message decodes but has no JSON form: a timestamp out of range, an `Any` of an unknown type.
    #[error("{message} without a JSON form: {detail}")]
    Json {
        /// Full name of the message.
        message: String,
        /// What is wrong.
        detail: String,
    },
}

/// A field that was found in the declaration and can be written as text. Made by [`Decoder::path`].
#[derive(Clone, Debug)]
pub struct FieldPath(Arc<wire::Path>);

/// Everything that depends on one message's declaration and its framing. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Decoder {
    descriptor: MessageDescriptor,
    plan: Arc<wire::Plan>,
    framing: Framing,
}

impl Decoder {
    /// The decoder of `message` (full name), from the file `descriptor_set` or, without one, the built-in messages.
    ///
    /// # Errors
    /// When the file cannot be used or has no such message.
    pub fn new(message: &str, descriptor_set: Option<&Path>, framing: Framing) -> Result<Self, Error> {
        let (pool, place) = match descriptor_set {
            None => (BUILT_IN.clone(), "the built-in messages".to_owned()),
            Some(path) => {
                let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
                let pool = DescriptorPool::decode(bytes.as_slice())
                    .map_err(|e| Error::DescriptorSet { path: path.to_owned(), detail: e.to_string() })?;
                (pool, path.display().to_string())
            }
        };
        let Some(descriptor) = pool.get_message_by_name(message) else {
            return Err(Error::UnknownMessage { name: message.to_owned(), place, known: nearest(&pool, message) });
        };
        Ok(Self::of(descriptor, framing))
    }

    /// The decoder of a message of any pool.
    fn of(descriptor: MessageDescriptor, framing: Framing) -> Self {
        Self { plan: Arc::new(wire::Plan::new(&descriptor)), descriptor, framing }
    }

    /// The full names of the built-in messages that a pipeline can carry.
    pub fn built_in() -> Vec<String> {
        nearest(&BUILT_IN, "")
    }

    /// The text of the built-in `.proto` file of this name.
    pub fn built_in_text(file: &str) -> Option<&'static str> {
        TEXTS.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
    }

    /// Full name of the message.
    pub fn message(&self) -> &str {
        self.descriptor.full_name()
    }

    /// The framing that values have.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The message's declaration.
    pub fn descriptor(&self) -> &MessageDescriptor {
        &self.descriptor
    }

    /// Takes the framing off a record's value and checks that the rest decodes as the message: the payload's place in
    /// the value. No allocation when all is well.
    ///
    /// # Errors
    /// When the frame or the payload is broken.
    pub fn check(&self, value: &[u8]) -> Result<Range<usize>, DecodeError> {
        let range = self.payload(value)?;
        let payload = &value[range.clone()];
        self.plan.check(payload).map_err(|fault| DecodeError::Payload {
            message: self.message().to_owned(),
            what: fault.what,
            field: fault.field.map_or_else(|| "a field's key".to_owned(), |field| self.plan.describe(field)),
            at: payload.len().saturating_sub(fault.left),
            size: payload.len(),
        })?;
        Ok(range)
    }

    /// The payload's place in a record's value, its contents unchecked.
    ///
    /// The schema id is not looked up and the message indexes are only skipped: the pipeline's message decides how the
    /// payload is read, since the writer's schema may list its messages in another order than ours.
    ///
    /// # Errors
    /// When the frame is broken.
    pub fn payload(&self, value: &[u8]) -> Result<Range<usize>, DecodeError> {
        let start = match self.framing {
            Framing::Plain => 0,
            Framing::Confluent => Frame::read(value).map_err(|what| DecodeError::Framing { what })?.length,
        };
        Ok(start..value.len())
    }

    /// A record's value made of a payload: for [`Framing::Plain`] the payload itself, else framed with `schema_id`.
    pub fn frame(&self, payload: Vec<u8>, schema_id: u32) -> Vec<u8> {
        match self.framing {
            Framing::Plain => payload,
            Framing::Confluent => {
                let mut value = Vec::with_capacity(payload.len() + 8);
                Frame::write(schema_id, &self.message_indexes(), &mut value);
                value.extend(payload);
                value
            }
        }
    }

    /// The message's index in its file, preceded by those of the messages around it.
    fn message_indexes(&self) -> Vec<u32> {
        let mut indexes = Vec::new();
        let mut message = self.descriptor.clone();
        loop {
            let position = |mut siblings: Box<dyn Iterator<Item = MessageDescriptor> + '_>| {
                siblings.position(|m| m == message).unwrap_or_default() as u32
            };
            match message.parent_message() {
                Some(parent) => {
                    // Map entries are messages of their own in the declaration and count.
                    indexes.push(position(Box::new(parent.child_messages())));
                    message = parent;
                }
                None => {
                    indexes.push(position(Box::new(message.parent_file().messages())));
                    indexes.reverse();
                    return indexes;
                }
            }
        }
    }

    /// Resolves a field for [`Decoder::text`]: a string, bytes or integer field, dots between levels (`order.id`), by
    /// Protobuf or JSON names.
    ///
    /// # Errors
    /// When there is no such field or it cannot be written as text.
    pub fn path(&self, path: &str) -> Result<FieldPath, Error> {
        wire::Path::resolve(&self.descriptor, path).map(|p| FieldPath(Arc::new(p))).map_err(|detail| Error::Field {
            message: self.message().to_owned(),
            path: path.to_owned(),
            detail,
        })
    }

    /// Whether [`Decoder::field`] can read `path` at all.
    pub fn has_field(&self, path: &str) -> bool {
        self.path(path).is_ok()
    }

    /// A field of a payload as text: strings as they are, bytes in hexadecimal, integers in decimal. `None` when it is
    /// not set, empty or zero, or when the payload is broken.
    pub fn text(&self, payload: &[u8], path: &FieldPath) -> Option<String> {
        path.0.text(payload)
    }

    /// [`Decoder::text`] by name, for one-off use; `None` also when there is no such field.
    pub fn field(&self, payload: &[u8], path: &str) -> Option<String> {
        self.text(payload, &self.path(path).ok()?)
    }

    /// A payload in the proto3 JSON mapping, on one line; the same text for the same payload.
    ///
    /// # Errors
    /// When the payload does not decode, or holds a value that JSON cannot say.
    pub fn to_json(&self, payload: &[u8]) -> Result<String, DecodeError> {
        let failed = |detail: String| DecodeError::Json { message: self.message().to_owned(), detail };
        let message = DynamicMessage::decode(self.descriptor.clone(), payload).map_err(|e| failed(e.to_string()))?;
        if !self.plan.has_maps() {
            return serde_json::to_string(&message).map_err(|e| failed(e.to_string()));
        }
        let mut json = serde_json::to_value(&message).map_err(|e| failed(e.to_string()))?;
        sort_maps(&mut json, &self.descriptor);
        Ok(json.to_string())
    }

    /// A payload in the proto3 JSON mapping, for picking fields: under their Protobuf names, defaults included; a field
    /// that has no default and is not set is not there.
    ///
    /// # Errors
    /// When the payload does not decode, or holds a value that JSON cannot say.
    pub fn to_fields(&self, payload: &[u8]) -> Result<serde_json::Value, DecodeError> {
        let failed = |detail: String| DecodeError::Json { message: self.message().to_owned(), detail };
        let message = DynamicMessage::decode(self.descriptor.clone(), payload).map_err(|e| failed(e.to_string()))?;
        let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
        message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| failed(e.to_string()))
    }

    /// The payload for a message in the proto3 JSON mapping. Unknown fields are errors.
    ///
    /// # Errors
    /// When the text is not such a message: what is wrong, where, and which fields there are.
    pub fn from_json(&self, json: &str) -> Result<Vec<u8>, Error> {
        Ok(self.message_from_json(json)?.encode_to_vec())
    }

    fn message_from_json(&self, json: &str) -> Result<DynamicMessage, Error> {
        let failed = |detail: String| Error::Json {
            message: self.message().to_owned(),
            detail,
            remedy: format!("its fields: {}", self.field_list()),
        };
        let mut text = serde_json::Deserializer::from_str(json);
        DynamicMessage::deserialize(self.descriptor.clone(), &mut text)
            .and_then(|message| text.end().map(|()| message))
            .map_err(|e| {
                let text = e.to_string();
                // The line is always 1 in a file of JSON lines, and would be read as the file's.
                match text.strip_suffix(&format!(" at line 1 column {}", e.column())) {
                    Some(what) if !json.contains('\n') => failed(format!("{what} at column {}", e.column())),
                    _ => failed(text),
                }
            })
    }

    /// `uniqueId: string, quantity: uint32, …`
    fn field_list(&self) -> String {
        let one = |field: prost_reflect::FieldDescriptor| {
            let kind = |kind: Kind| match kind {
                Kind::Message(m) => m.full_name().to_owned(),
                Kind::Enum(e) => e.full_name().to_owned(),
                scalar => format!("{scalar:?}").to_lowercase(),
            };
            let declared = match field.kind() {
                Kind::Message(entry) if field.is_map() => {
                    format!("map of {}", kind(entry.map_entry_value_field().kind()))
                }
                other if field.is_list() => format!("list of {}", kind(other)),
                other => kind(other),
            };
            format!("{}: {declared}", field.json_name())
        };
        self.descriptor.fields().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Sorts the entries of every map field: reflection holds them in no order.
fn sort_maps(json: &mut serde_json::Value, message: &MessageDescriptor) {
    if message.package_name() == "google.protobuf" {
        return json.sort_all_objects();
    }
    for field in message.fields() {
        let Some(value) = json.get_mut(field.json_name()) else {
            continue;
        };
        match (field.kind(), value) {
            (Kind::Message(entry), serde_json::Value::Object(map)) if field.is_map() => {
                map.sort_keys();
                if let Kind::Message(inner) = entry.map_entry_value_field().kind() {
                    map.values_mut().for_each(|v| sort_maps(v, &inner));
                }
            }
            (Kind::Message(inner), serde_json::Value::Array(list)) if field.is_list() => {
                list.iter_mut().for_each(|v| sort_maps(v, &inner));
            }
            (Kind::Message(inner), value) => sort_maps(value, &inner),
            _ => {}
        }
    }
}

/// The messages of a pool that a pipeline can carry, those whose name is nearest to `wanted` first.
fn nearest(pool: &DescriptorPool, wanted: &str) -> Vec<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_lowercase();
    let mut names: Vec<(usize, String)> = pool
        .all_messages()
        .filter(|m| !m.is_map_entry() && m.package_name() != "google.protobuf")
        .map(|m| {
            let far = distance(&last(m.full_name()), &last(wanted)) * 2 + distance(m.full_name(), wanted);
            (if wanted.is_empty() { 0 } else { far }, m.full_name().to_owned())
        })
        .collect();
    names.sort();
    names.into_iter().map(|(_, name)| name).collect()
}

/// Edit distance: insertions, deletions and replacements of characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
