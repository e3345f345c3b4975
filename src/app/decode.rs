//! Joins the message decoder to the stage's port.

use bytes::Bytes;

use crate::messages::{Decoder, FieldPath};
use crate::stage::context::Decode;

/// Reads values of one pipeline.
pub struct PayloadDecoder {
    decoder: Decoder,
    id_field: Option<FieldPath>,
}

impl PayloadDecoder {
    /// Reads what `decoder` reads; ids come from `id_field` where the configuration says so.
    pub fn new(decoder: Decoder, id_field: Option<FieldPath>) -> Self {
        Self { decoder, id_field }
    }
}

impl Decode for PayloadDecoder {
    fn payload(&self, value: &Bytes) -> Result<Bytes, String> {
        let range = self.decoder.check(value).map_err(|error| error.to_string())?;
        Ok(value.slice(range))
    }

    fn event_id(&self, payload: &[u8]) -> Option<String> {
        self.decoder.text(payload, self.id_field.as_ref()?)
    }
}
