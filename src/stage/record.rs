//! The bytes of one record, owned: key, value and headers in one allocation, nothing interpreted.

use bytes::Bytes;

/// A record as the broker delivered it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Partition number.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// The record's timestamp, Unix milliseconds; −1 when the broker had none.
    pub timestamp_ms: i64,
    /// The key, `None` when null.
    pub key: Option<Bytes>,
    /// The value, `None` when null (a tombstone).
    pub value: Option<Bytes>,
    /// Header names and values in their order. Names are bytes: Kafka does not hold producers to UTF-8.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

impl Record {
    /// The headers as the codec in [`crate::ladder::headers`] takes them.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
        self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref()))
    }

    /// The first header of this name that has a value.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(n, _)| *n == name.as_bytes()).and_then(|(_, v)| v)
    }

    /// Bytes held in memory, about.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Bytes::len) + 64).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers + 128
    }
}
