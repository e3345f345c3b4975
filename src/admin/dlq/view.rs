//! A dead letter for people and programs: key, value and headers decoded where they can be, in hexadecimal where not.

use std::collections::BTreeSet;
use std::pin::pin;

use futures::FutureExt as _;
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Handle;

use super::letter::{Letter, Summary};
use crate::ladder::rungs::Ladder;
use crate::messages::Reader;

/// Bytes that may be text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bytes {
    /// UTF-8 without control characters but line breaks and tabs.
    Text(String),
    /// Anything else, in hexadecimal.
    Hex(String),
}

impl Bytes {
    /// As text where it is some.
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')) => {
                Self::Text(text.to_owned())
            }
            _ => Self::Hex(hex(bytes)),
        }
    }

    /// What stands for it on a screen.
    pub fn as_str(&self) -> &str {
        match self {
            Bytes::Text(text) | Bytes::Hex(text) => text,
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// One failed execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Name of the stage.
    pub stage: String,
    /// Its start, Unix ms.
    pub start_ms: u64,
    /// Its duration in ms.
    pub duration_ms: u64,
    /// Class of the failure.
    pub class: String,
    /// What went wrong, at most 128 bytes.
    pub message: String,
}

/// A value as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Content {
    /// Bytes of the value; `None`: a tombstone.
    pub size: Option<usize>,
    /// The message in the proto3 JSON mapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// Fields that the declaration does not have, which JSON does not show: `12`, `amount.7`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown_fields: BTreeSet<String>,
    /// The value in hexadecimal, where it cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
    /// Why it cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Everything about a dead letter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// In one line.
    #[serde(flatten)]
    pub summary: Summary,
    /// Stage that failed last.
    pub failed_stage: Option<String>,
    /// The trace of its whole life, 32 hex digits.
    pub trace_id: Option<String>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Content,
    /// All headers in their order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Its failures, oldest first.
    pub history: Vec<Attempt>,
}

/// Waits for what is asked of a schema registry; what is known already needs no runtime.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    match future.as_mut().now_or_never() {
        Some(known) => known,
        None => Handle::current().block_on(future),
    }
}

impl Content {
    /// Reads a value. Blocks while a schema is asked for.
    pub fn of(value: Option<&[u8]>, reader: &Reader) -> Self {
        let Some(value) = value else { return Self::default() };
        let (json, problem) = match block_on(reader.to_json(value)) {
            Ok(text) => (serde_json::from_str(&text).ok(), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let unknown_fields = block_on(reader.unknown_fields(value));
        Self { size: Some(value.len()), hex: json.is_none().then(|| hex(value)), json, unknown_fields, problem }
    }

    /// Everything but its size left out.
    pub fn hidden(&self) -> Self {
        Self { size: self.size, problem: self.problem.as_ref().map(|_| "hidden".to_owned()), ..Self::default() }
    }
}

impl View {
    /// Reads a letter. Blocks as [`Content::of`].
    pub fn of(letter: &Letter, ladder: &Ladder, reader: &Reader) -> Self {
        let name = |index: u64| {
            let rung = usize::try_from(index).ok().and_then(|index| ladder.rung(index));
            rung.map_or_else(|| format!("stage {index}"), |rung| rung.name.to_string())
        };
        let history = letter.history().into_iter().map(|entry| Attempt {
            stage: name(entry.stage),
            start_ms: entry.start_ms,
            duration_ms: entry.duration_ms,
            class: entry.class.into_owned(),
            message: entry.message.into_owned(),
        });
        let headers = letter.record.headers();
        Self {
            summary: letter.summary(),
            failed_stage: letter.envelope.failed_stage.map(|index| name(index as u64)),
            trace_id: letter.record.trace().map(|trace| format!("{:032x}", trace.trace_id())),
            key: letter.record.key.as_deref().map(Bytes::of),
            value: Content::of(letter.record.value.as_deref(), reader),
            headers: headers.map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.map(Bytes::of))).collect(),
            history: history.collect(),
        }
    }
}
