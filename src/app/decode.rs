//! Joins the message decoder to the stage's port.

use bytes::Bytes;

use crate::messages::{Decoder, FieldPath, Frame};
use crate::stage::context::Decode;

/// Reads values of one pipeline.
pub enum PayloadDecoder {
    /// By the pipeline's own declaration; ids come from the field, where the configuration says so.
    Own(Decoder, Option<FieldPath>),
    /// Takes the frame off and leaves the rest to [`RegisteredHandler`](crate::handlers::registered::RegisteredHandler),
    /// which can wait for the writer's schema; ids come from the field of the pipeline's own declaration.
    Framed(Option<(Decoder, FieldPath)>),
}

impl Decode for PayloadDecoder {
    fn payload(&self, value: &Bytes) -> Result<Bytes, String> {
        match self {
            Self::Own(decoder, _) => {
                let range = decoder.check(value).map_err(|error| error.to_string())?;
                Ok(value.slice(range))
            }
            Self::Framed(_) => {
                let frame = Frame::read(value).map_err(|what| format!("confluent framing: {what}"))?;
                Ok(value.slice(frame.length..))
            }
        }
    }

    fn event_id(&self, payload: &[u8]) -> Option<String> {
        match self {
            Self::Own(decoder, Some(field)) | Self::Framed(Some((decoder, field))) => decoder.text(payload, field),
            Self::Own(_, None) | Self::Framed(None) => None,
        }
    }
}
