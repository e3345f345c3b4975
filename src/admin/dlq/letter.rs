//! What a dead letter says: at a glance while a scan runs ([`Glance`]), and in full ([`Letter`]).

use std::ffi::CStr;

use serde::Serialize;

use super::book::{Book, Fate};
use super::fingerprint::{Fingerprint, fold};
use crate::adapters::kafka::scan::Seen;
use crate::ladder::headers::{self, Coordinates, Envelope, HistoryEntry, IdSource};
use crate::ladder::rungs::Ladder;
use crate::stage::record::Record;

/// The class of a record that says none.
pub const UNKNOWN: &str = "unknown";

/// The headers that a glance reads; of a letter's two dozen no other is looked at.
const ERROR: &CStr = c"x-ladder-error";
const EVENT_ID: &CStr = c"x-ladder-event-id";

/// What a selection needs to know, in buffers that are used again for the next letter.
#[derive(Debug, Default)]
pub struct Glance {
    /// Partition on the DLQ.
    pub partition: i32,
    /// Offset in that partition.
    pub offset: i64,
    /// When it came to the DLQ, Unix ms; −1 when the broker had no time.
    pub at_ms: i64,
    /// What became of it.
    pub fate: Option<Fate>,
    /// The event's id.
    pub event_id: String,
    error: String,
    class_length: usize,
    folded: String,
}

impl Glance {
    /// Looks at a letter; what is not text counts as missing.
    pub fn look(&mut self, seen: &Seen<'_>, book: &Book) {
        (self.partition, self.offset, self.at_ms) = (seen.partition(), seen.offset(), seen.timestamp_ms());
        self.fate = Some(book.fate(self.partition, self.offset));
        for (name, to) in [(ERROR, &mut self.error), (EVENT_ID, &mut self.event_id)] {
            to.clear();
            to.push_str(seen.header(name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default());
        }
        if headers::parse_error(self.error.as_bytes()).is_none() {
            self.error.insert_str(0, "unknown: ");
        }
        self.read_error();
    }

    fn read_error(&mut self) {
        self.class_length = self.error.find(':').unwrap_or_default();
        let mut folded = std::mem::take(&mut self.folded);
        folded.clear();
        fold(self.text(), &mut folded);
        self.folded = folded;
    }

    #[cfg(test)]
    pub(super) fn of(error: &str) -> Self {
        let mut glance = Self { error: error.to_owned(), ..Self::default() };
        glance.read_error();
        glance
    }

    /// The class in `x-ladder-error`.
    pub fn class(&self) -> &str {
        &self.error[..self.class_length]
    }

    /// The text in `x-ladder-error`.
    pub fn text(&self) -> &str {
        let text = self.error.get(self.class_length + 1..).unwrap_or_default();
        text.strip_prefix(' ').unwrap_or(text)
    }

    /// The text with all that differs from event to event folded.
    pub fn folded(&self) -> &str {
        &self.folded
    }

    /// The group of like errors that it belongs to.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.class(), &self.folded)
    }
}

/// One line about a dead letter, as `pipeline dlq list` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The event's id.
    pub event_id: String,
    /// Partition on the DLQ.
    pub partition: i32,
    /// Offset in that partition.
    pub offset: i64,
    /// The class in `x-ladder-error`.
    pub class: String,
    /// The text in `x-ladder-error`.
    pub error: String,
    /// Executions charged.
    pub attempts: u32,
    /// `topic:partition:offset:timestamp_ms` of the record on main.
    pub origin: String,
    /// When it came to the DLQ, Unix ms.
    pub dead_lettered_at_ms: i64,
    /// How often it was redriven before.
    pub redrives: u32,
    /// What became of it since.
    pub state: Fate,
    /// The group of like errors that it belongs to.
    pub fingerprint: String,
}

/// A dead letter in full.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The record.
    pub record: Record,
    /// What its headers say.
    pub envelope: Envelope,
    /// The class in `x-ladder-error`.
    pub class: String,
    /// The text in `x-ladder-error`.
    pub error: String,
    /// What became of it.
    pub fate: Fate,
}

impl Letter {
    /// Reads a record of this ladder's DLQ.
    pub fn new(record: Record, fate: Fate, ladder: &Ladder, id_source: &IdSource) -> Self {
        let at = Coordinates { partition: record.partition, offset: record.offset, timestamp_ms: record.timestamp_ms };
        let envelope = headers::read(ladder, ladder.dlq().index, at, record.headers(), id_source, None);
        let error = record.headers().filter(|(name, _)| *name == headers::ERROR.as_bytes()).last();
        let (class, error) = error.and_then(|(_, value)| headers::parse_error(value?)).unwrap_or((UNKNOWN, ""));
        let (class, error) = (class.to_owned(), error.to_owned());
        Self { envelope, class, error, fate, record }
    }

    /// Its failures, oldest first.
    pub fn history(&self) -> Vec<HistoryEntry<'_>> {
        headers::history(self.record.headers())
    }

    /// The group of like errors that it belongs to.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut folded = String::new();
        fold(&self.error, &mut folded);
        Fingerprint::of(&self.class, &folded)
    }

    /// In one line.
    pub fn summary(&self) -> Summary {
        Summary {
            event_id: self.envelope.event_id.to_string(),
            partition: self.record.partition,
            offset: self.record.offset,
            class: self.class.clone(),
            error: self.error.clone(),
            attempts: self.envelope.attempt,
            origin: self.envelope.origin.to_string(),
            dead_lettered_at_ms: self.record.timestamp_ms,
            redrives: self.envelope.redrives,
            state: self.fate,
            fingerprint: self.fingerprint().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glance_reads_the_headers_that_the_ladder_writes() {
        assert_eq!((ERROR.to_str(), EVENT_ID.to_str()), (Ok(headers::ERROR), Ok(headers::EVENT_ID)));
    }
}
