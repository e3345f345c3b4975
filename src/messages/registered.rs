//! What reads a pipeline's values: one declaration for all of them, or the one that the schema registry has for each.
//!
//! The registry itself is behind [`Schemas`]. What becomes of a value that cannot be read now, or ever, is told apart
//! here; what follows from that is not decided here.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;
use prost::Message as _;
use prost_reflect::DynamicMessage;

use super::{DecodeError, Decoder, Frame, Schema, unknown};

/// The schemas of a registry, by id.
pub trait Schemas: Debug + Send + Sync + 'static {
    /// The schema, when it is known here already.
    fn known(&self, id: u32) -> Option<Result<Arc<Schema>, SchemaError>>;

    /// The schema, asked for where it is not known.
    fn fetch(&self, id: u32) -> BoxFuture<'_, Result<Arc<Schema>, SchemaError>>;
}

/// Why there is no schema of an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The registry did not answer, or refused to: it may later.
    #[error("schema {id}: {why}")]
    Unavailable {
        /// The id asked for.
        id: u32,
        /// What it said, or that it said nothing.
        why: String,
    },
    /// The registry does not know the id: it may later, a replica of it can lag behind the one that the writer asked.
    #[error("schema {id} is unknown to the registry")]
    Unknown {
        /// The id asked for.
        id: u32,
    },
    /// The schema is of no use, and will never be: what an id means does not change.
    #[error("schema {id}: {why}")]
    Unusable {
        /// The id asked for.
        id: u32,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not with the declaration that it has.
    #[error(transparent)]
    Value(#[from] DecodeError),
    /// What is to be put in its place is not such a message.
    #[error("{0}")]
    Json(String),
    /// It has fields that its declaration does not have, and the corrected message has no place for them.
    #[error(
        "the declaration of {message} does not have its fields {}, which cannot be carried over; a newer one (descriptor_set) \
         can, or have them dropped: --drop-unknown", fields.join(", ")
    )]
    Unknown {
        /// Full name of the message.
        message: String,
        /// Their paths.
        fields: Vec<String>,
    },
    /// Its declaration is not to be had.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// It is another message.
    #[error("schema {id} makes it a {found}, the pipeline's message is {expected}")]
    OtherMessage {
        /// The id in its frame.
        id: u32,
        /// What the registry says that it is.
        found: String,
        /// What the configuration says.
        expected: String,
    },
}

impl ReadError {
    /// Whether the same value may be readable later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Schema(SchemaError::Unavailable { .. } | SchemaError::Unknown { .. }))
    }
}

/// A value with another message in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrected {
    /// The value.
    pub value: Vec<u8>,
    /// Paths of the fields of the old message that its declaration does not have: kept or dropped, as asked for.
    pub unknown: BTreeSet<String>,
}

/// What reads a pipeline's values. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Reader {
    /// One declaration for all, known from the start.
    Own(Decoder),
    /// The one that the registry has for the schema id of each.
    Registered {
        /// The registry.
        schemas: Arc<dyn Schemas>,
        /// The message that they all have to be, where there is one.
        message: Option<Arc<str>>,
    },
}

impl Reader {
    /// The value's decoder, and its payload's place in the value; the payload decodes.
    ///
    /// # Errors
    /// When the value cannot be read, now or ever: [`ReadError::is_transient`].
    pub async fn read(&self, value: &[u8]) -> Result<(Decoder, Range<usize>), ReadError> {
        let decoder = self.decoder(value).await?;
        let payload = decoder.check(value)?;
        Ok((decoder, payload))
    }

    /// The value with another message in the place of its own, given in the proto3 JSON mapping; its frame stays as it is,
    /// and so do fields that the declaration does not have, unless they are to be dropped.
    ///
    /// # Errors
    /// When the frame cannot be read, the text is not such a message, or a field has no place in it.
    pub async fn with_json(&self, value: &[u8], json: &str, drop_unknown: bool) -> Result<Corrected, ReadError> {
        let decoder = self.decoder(value).await?;
        let payload = decoder.payload(value)?;
        let frame = &value[..payload.start];
        let mut message = decoder.message_from_json(json).map_err(|error| ReadError::Json(error.to_string()))?;
        let mut unknown = BTreeSet::new();
        // Nothing is known of what cannot be decoded.
        if let Ok(original) = DynamicMessage::decode(decoder.descriptor().clone(), &value[payload.start..]) {
            unknown = unknown::paths(&original);
            if !drop_unknown {
                unknown::carry(original, &mut message).map_err(|fields| ReadError::Unknown {
                    message: decoder.message().to_owned(),
                    fields: fields.into_iter().collect(),
                })?;
            }
        }
        Ok(Corrected { value: [frame, &message.encode_to_vec()].concat(), unknown })
    }

    /// Paths of the value's fields that its declaration does not have, so that JSON does not show them; none of a value
    /// that cannot be decoded.
    pub async fn unknown_fields(&self, value: &[u8]) -> BTreeSet<String> {
        let Ok((decoder, payload)) = self.read(value).await else { return BTreeSet::new() };
        let message = DynamicMessage::decode(decoder.descriptor().clone(), &value[payload]);
        message.map(|message| unknown::paths(&message)).unwrap_or_default()
    }

    async fn decoder(&self, value: &[u8]) -> Result<Decoder, ReadError> {
        Ok(match self {
            Self::Own(decoder) => decoder.clone(),
            Self::Registered { schemas, message } => {
                let frame = Frame::read(value).map_err(|what| DecodeError::Framing { what })?;
                let id = frame.schema_id;
                let schema = match schemas.known(id) {
                    Some(known) => known?,
                    None => schemas.fetch(id).await?,
                };
                let decoder = schema.decoder(&frame.indexes).map_err(|why| SchemaError::Unusable { id, why })?;
                if let Some(expected) = message.as_deref().filter(|expected| *expected != decoder.message()) {
                    let (found, expected) = (decoder.message().to_owned(), expected.to_owned());
                    return Err(ReadError::OtherMessage { id, found, expected });
                }
                decoder
            }
        })
    }

    /// The value in the proto3 JSON mapping.
    ///
    /// # Errors
    /// As [`Reader::read`], and when it has no JSON form.
    pub async fn to_json(&self, value: &[u8]) -> Result<String, ReadError> {
        let (decoder, payload) = self.read(value).await?;
        Ok(decoder.to_json(&value[payload])?)
    }

    /// The one declaration for all values, where there is one.
    pub fn own(&self) -> Option<&Decoder> {
        match self {
            Self::Own(decoder) => Some(decoder),
            Self::Registered { .. } => None,
        }
    }

    /// The message that values have to be; `None`: any.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Own(decoder) => Some(decoder.message()),
            Self::Registered { message, .. } => message.as_deref(),
        }
    }
}
