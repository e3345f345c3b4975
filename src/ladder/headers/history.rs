//! What went wrong, as it travels: the history's JSON, the error's text, and how both are kept short and harmless.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{HISTORY, MAX_OWN_BYTES};

/// The most entries that a history has.
pub const MAX_HISTORY: usize = 8;

/// The most bytes of an entry's message.
pub(super) const MAX_MESSAGE: usize = 128;

/// The most bytes of the text in `x-ladder-error`.
pub(super) const MAX_ERROR: usize = 512;

/// One failed execution: `{"s":stage,"t":start_ms,"ms":duration,"e":class,"m":text}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry<'a> {
    /// Index of the stage.
    #[serde(rename = "s")]
    pub stage: u64,
    /// Start, Unix ms.
    #[serde(rename = "t")]
    pub start_ms: u64,
    /// Duration in ms.
    #[serde(rename = "ms")]
    pub duration_ms: u64,
    /// The class, as in `x-ladder-error`.
    #[serde(rename = "e", borrow)]
    pub class: Cow<'a, str>,
    /// What went wrong, at most 128 bytes.
    #[serde(rename = "m", borrow)]
    pub message: Cow<'a, str>,
}

/// The history of a record, oldest first; empty when there is none or it cannot be read. Never more than
/// [`MAX_HISTORY`] entries, each within its limits, whoever wrote it. Worth believing when
/// [`super::Envelope::own`] says that our group did.
pub fn history<'a>(headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<HistoryEntry<'a>> {
    let value = headers.filter(|(name, _)| *name == HISTORY.as_bytes()).last().and_then(|(_, value)| value);
    let Some(value) = value.filter(|value| value.len() <= MAX_OWN_BYTES) else {
        return Vec::new();
    };
    let mut entries: Vec<HistoryEntry<'a>> = serde_json::from_slice(value).unwrap_or_default();
    entries.drain(..entries.len().saturating_sub(MAX_HISTORY));
    for entry in &mut entries {
        entry.class = harmless(std::mem::take(&mut entry.class), 16);
        entry.message = harmless(std::mem::take(&mut entry.message), MAX_MESSAGE);
    }
    entries
}

/// Class and text of an `x-ladder-error`.
pub fn parse_error(value: &[u8]) -> Option<(&str, &str)> {
    let (class, text) = std::str::from_utf8(value).ok()?.split_once(':')?;
    Some((class, text.strip_prefix(' ').unwrap_or(text)))
}

/// At most `max` bytes, cut at a character boundary, in one line and without characters that steer a terminal or
/// turn the direction of writing.
pub(super) fn harmless(text: Cow<'_, str>, max: usize) -> Cow<'_, str> {
    let text = match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..boundary(text, max)]),
        Cow::Owned(mut text) => {
            text.truncate(boundary(&text, max));
            Cow::Owned(text)
        }
    };
    // Most texts are plain ASCII, which is told without decoding them.
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return text;
    }
    if text.chars().any(steers) { Cow::Owned(text.replace(steers, " ")) } else { text }
}

/// The last character boundary at or before `max`.
fn boundary(text: &str, max: usize) -> usize {
    let mut at = max.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{feff}')
}
