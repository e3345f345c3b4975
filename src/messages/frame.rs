//! The schema registry's frame: a zero byte, four bytes of schema id, the message's indexes in its file.
//!
//! Only its form is judged here. Whether the id is known is [`super::registered`]'s to find out.

use super::wire;

/// Messages are nested no deeper than this: more indexes are no frame.
const MAX_DEPTH: u64 = 100;

/// What stands before the Protobuf bytes of a framed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The registry's id of the writer's schema.
    pub schema_id: u32,
    /// Which message of the schema's file, from the outermost to the innermost; none means its first.
    pub indexes: Vec<u32>,
    /// Bytes of the frame: where the payload begins.
    pub length: usize,
}

impl Frame {
    /// The frame at the start of a record's value. No allocation for the file's first message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(value: &[u8]) -> Result<Self, &'static str> {
        let Some((&[magic, a, b, c, d], mut rest)) = value.split_first_chunk() else {
            return Err("fewer than the 5 bytes of magic and schema id");
        };
        if magic != 0 {
            return Err("the first byte is not 0; for values without a schema registry set `framing: plain`");
        }
        let count = index(&mut rest)?;
        if u64::from(count) > MAX_DEPTH {
            return Err("more message indexes than messages can be nested");
        }
        let indexes = (0..count).map(|_| index(&mut rest)).collect::<Result<_, _>>()?;
        Ok(Self { schema_id: u32::from_be_bytes([a, b, c, d]), indexes, length: value.len() - rest.len() })
    }

    /// The frame's bytes for these indexes.
    pub(super) fn write(schema_id: u32, indexes: &[u32], value: &mut Vec<u8>) {
        value.push(0);
        value.extend(schema_id.to_be_bytes());
        if indexes == [0] {
            return value.push(0);
        }
        let count = indexes.len() as u64;
        for n in std::iter::once(count).chain(indexes.iter().map(|n| u64::from(*n))) {
            prost::encoding::encode_varint(n << 1, value);
        }
    }
}

/// One number, zigzag: an odd one is negative.
fn index(rest: &mut &[u8]) -> Result<u32, &'static str> {
    match wire::varint(rest)? {
        n if n & 1 == 0 && n >> 1 <= i32::MAX as u64 => Ok((n >> 1) as u32),
        _ => Err("a message index below 0 or above 2^31 - 1"),
    }
}
