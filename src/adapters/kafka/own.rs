//! Records of our own: librdkafka's messages live in its buffers, which go with the next look at them.

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::raw;
use crate::stage::record::Record;

/// Copies a record out of the client's buffers, key, value and headers in one allocation.
pub(super) fn own(message: &BorrowedMessage<'_>) -> Record {
    let (key, value) = (message.key(), message.payload());
    let mut size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
    let mut count = 0;
    raw::for_each_header(message, |name, value| {
        size += name.len() + value.map_or(0, <[u8]>::len);
        count += 1;
    });
    let mut buffer = BytesMut::with_capacity(size);
    let mut headers = Vec::with_capacity(count);
    let take = |buffer: &mut BytesMut, bytes: &[u8]| -> Bytes {
        buffer.extend_from_slice(bytes);
        buffer.split().freeze()
    };
    let key = key.map(|k| take(&mut buffer, k));
    let value = value.map(|v| take(&mut buffer, v));
    raw::for_each_header(message, |name, value| {
        let name = take(&mut buffer, name);
        headers.push((name, value.map(|v| take(&mut buffer, v))));
    });
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key,
        value,
        headers,
    }
}
