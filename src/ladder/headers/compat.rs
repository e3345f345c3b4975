//! Headers on the DLQ's record for readers that exist: Kafka's own `__dlq.errors.*` (text) and Spring's
//! `kafka_dlt-*` (its binary encoding: int32 and int64 big-endian, text as UTF-8).
//!
//! The coordinates are those of the origin, the record on main.

use super::envelope::Envelope;
use super::write::Buffer;

/// Which foreign conventions a dead letter follows as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompatHeaders {
    /// `__dlq.errors.*`.
    pub kafka: bool,
    /// `kafka_dlt-*`.
    pub spring: bool,
}

impl CompatHeaders {
    /// Both.
    pub const ALL: Self = Self { kafka: true, spring: true };
    /// Neither.
    pub const NONE: Self = Self { kafka: false, spring: false };
}

impl Default for CompatHeaders {
    fn default() -> Self {
        Self::ALL
    }
}

const KAFKA: [&str; 6] = [
    "__dlq.errors.topic",
    "__dlq.errors.partition",
    "__dlq.errors.offset",
    "__dlq.errors.group",
    "__dlq.errors.delivery.count",
    "__dlq.errors.message",
];

const SPRING: [&str; 8] = [
    "kafka_dlt-original-topic",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-timestamp",
    "kafka_dlt-original-timestamp-type",
    "kafka_dlt-original-consumer-group",
    "kafka_dlt-exception-fqcn",
    "kafka_dlt-exception-message",
];

/// What a dead letter tells besides its envelope.
pub(super) struct DeadLetter<'a> {
    pub(super) envelope: &'a Envelope,
    pub(super) group: &'a str,
    pub(super) attempt: u32,
    pub(super) class: &'a str,
    pub(super) text: &'a str,
}

impl CompatHeaders {
    /// Whether a header of this name would be replaced.
    pub(super) fn owns(self, name: &[u8]) -> bool {
        let among = |names: &[&str]| names.iter().any(|n| n.as_bytes() == name);
        (self.kafka && among(&KAFKA)) || (self.spring && among(&SPRING))
    }

    pub(super) fn write(self, letter: &DeadLetter<'_>, out: &mut Buffer) {
        let origin = &letter.envelope.origin;
        if self.kafka {
            let [topic, partition, offset, group, count, message] = KAFKA;
            out.text(topic, &origin.topic);
            out.signed(partition, i64::from(origin.partition));
            out.signed(offset, origin.offset);
            out.text(group, letter.group);
            out.number(count, u64::from(letter.attempt));
            out.text(message, letter.text);
        }
        if self.spring {
            let [topic, partition, offset, timestamp, timestamp_type, group, fqcn, message] = SPRING;
            out.text(topic, &origin.topic);
            out.bytes(partition, &origin.partition.to_be_bytes());
            out.bytes(offset, &origin.offset.to_be_bytes());
            out.bytes(timestamp, &origin.timestamp_ms.to_be_bytes());
            // The origin does not carry the type; CreateTime is Kafka's default for topics of applications.
            out.text(timestamp_type, if origin.timestamp_ms < 0 { "NoTimestampType" } else { "CreateTime" });
            out.text(group, letter.group);
            out.value(fqcn, |to| {
                to.extend_from_slice(b"retry_ladder.");
                to.extend_from_slice(letter.class.as_bytes());
            });
            out.text(message, letter.text);
        }
    }
}
