//! The words that some keys choose from.

use super::settings::choice;

choice! {
    /// How payloads are framed.
    pub enum Framing {
        /// The value is the Protobuf message.
        Plain = "plain",
        /// Behind a schema registry's magic byte, schema id and message index.
        Confluent = "confluent",
    }
}

choice! {
    /// In which order handlers of one key run.
    pub enum Order {
        /// In any.
        None = "none",
        /// Within a stage and partition one at a time in offset order.
        Stage = "stage",
        /// Through the whole ladder: while an event is in it, later ones of its key wait behind it.
        Ladder = "ladder",
    }
}

choice! {
    /// How events are sent on to their next topic.
    pub enum Forward {
        /// By an idempotent producer; the offset follows the acknowledgement.
        Idempotent = "idempotent",
        /// Hops and offsets in one transaction.
        Transactional = "transactional",
    }
}

choice! {
    /// What becomes of null values.
    pub enum Tombstones {
        /// To the DLQ as poison.
        DeadLetter = "dead_letter",
        /// To the handler with an empty payload.
        Deliver = "deliver",
        /// Done without a handler.
        Skip = "skip",
    }
}

choice! {
    /// Where deduplication records are kept.
    pub enum Store {
        /// In Redis.
        Redis = "redis",
        /// In this process: lost at its end, unknown to others.
        Memory = "memory",
        /// Nowhere.
        Off = "off",
    }
}

choice! {
    /// What happens while the store cannot be reached.
    pub enum OnUnavailable {
        /// Stages pause, polling goes on.
        Pause = "pause",
        /// Events are executed without deduplication.
        Process = "process",
    }
}

choice! {
    /// Headers that other tools read on DLQ records.
    pub enum CompatHeaders {
        /// `__dlq.errors.*`.
        Kafka = "kafka",
        /// `kafka_dlt-*`.
        Spring = "spring",
    }
}

choice! {
    /// What the handler sends.
    pub enum HttpBody {
        /// The bytes untouched.
        Protobuf = "protobuf",
        /// The proto3 JSON mapping.
        Json = "json",
    }
}

choice! {
    /// What a status means.
    pub enum StatusClass {
        /// The effect happened.
        Done = "done",
        /// May succeed later.
        Transient = "transient",
        /// Will never succeed.
        Permanent = "permanent",
    }
}

choice! {
    /// How logs are written.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }
}
