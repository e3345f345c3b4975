//! Where the events to be published come from: samples or JSON lines, each with its id.
//!
//! Invariants: a bad line is refused by its number and what would be right, and the lines after it still come; no line
//! is held in memory beyond a limit.

use std::io::{BufRead, Read as _};

use super::publish::{Error, Failure};
use crate::messages::generate::{self, Generator};
use crate::messages::{Decoder, FieldPath};
use crate::stage::clock::{Clock as _, SystemClock};

/// Longer JSON lines are refused unread.
const MAX_LINE: u64 = 16 << 20;
/// Some editors begin a file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where the events come from.
pub enum Source {
    /// Samples from the seed.
    Generated {
        /// How many.
        count: u64,
        /// What they look like.
        options: generate::Options,
        /// Share of events, 0 to 1, whose value is replaced by bytes that are no message.
        garbage_ratio: f64,
    },
    /// One message a line in the proto3 JSON mapping; empty lines are passed over.
    Json {
        /// The lines.
        lines: Box<dyn BufRead + Send>,
        /// At most so many events.
        limit: Option<u64>,
    },
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Generated { count, .. } => write!(f, "Generated({count})"),
            Source::Json { limit, .. } => write!(f, "Json({limit:?})"),
        }
    }
}

/// An event ready to go out.
pub(super) struct Ready {
    pub(super) id: String,
    /// Line of the JSON input.
    pub(super) line: Option<u64>,
    pub(super) payload: Vec<u8>,
    /// Goes out instead of the payload.
    pub(super) garbage: Option<Vec<u8>>,
}

/// Why an event of the source is not ready.
pub(super) enum Refused {
    /// This one alone.
    Line(Failure),
    /// And no other will follow.
    Input(Error),
}

/// The events of a source with their ids.
pub(super) struct Events<'a> {
    decoder: &'a Decoder,
    run: String,
    id: Option<FieldPath>,
    kind: Kind,
}

enum Kind {
    Generated { left: u64, n: u64, generator: Box<Generator>, garbage_ratio: f64, chance: fastrand::Rng },
    Json { lines: Box<dyn BufRead + Send>, left: u64, line: u64, buffer: Vec<u8> },
}

impl<'a> Events<'a> {
    pub(super) fn new(
        source: Source,
        decoder: &'a Decoder,
        id: Option<FieldPath>,
        id_field: Option<String>,
        run: String,
    ) -> Result<Self, Error> {
        let kind = match source {
            Source::Generated { count, mut options, garbage_ratio } => {
                if !(0.0..=1.0).contains(&garbage_ratio) {
                    return Err(Error::Config("--garbage-ratio must be between 0 and 1".to_owned()));
                }
                options.id_field = id_field.or(options.id_field);
                let chance = fastrand::Rng::with_seed(options.seed ^ 0x5eed);
                let generator = Box::new(Generator::new(decoder, &options)?);
                Kind::Generated { left: count, n: 0, generator, garbage_ratio, chance }
            }
            Source::Json { lines, limit } => {
                Kind::Json { lines, left: limit.unwrap_or(u64::MAX), line: 0, buffer: Vec::new() }
            }
        };
        Ok(Self { decoder, run, id, kind })
    }

    /// The next event; `None` at the end.
    pub(super) fn next(&mut self) -> Option<Result<Ready, Refused>> {
        match &mut self.kind {
            Kind::Generated { left, n, generator, garbage_ratio, chance } => {
                *left = left.checked_sub(1)?;
                *n += 1;
                let made = format!("{}-{n:09}", self.run);
                let payload = generator.next(&made, SystemClock.now().wall);
                let garbage = (chance.f64() < *garbage_ratio).then(|| generate::garbage(chance));
                let own = self.id.as_ref().filter(|_| garbage.is_none());
                let id = own.and_then(|path| self.decoder.text(&payload, path)).unwrap_or(made);
                Some(Ok(Ready { id, line: None, payload, garbage }))
            }
            Kind::Json { lines, left, line, buffer } => {
                if *left == 0 {
                    return None;
                }
                let json = match next_line(lines, line, buffer) {
                    Ok(Some(json)) => json,
                    Ok(None) => return None,
                    Err(refused) => return Some(Err(refused)),
                };
                let line = *line;
                let fail = |error| Some(Err(Refused::Line(Failure { line: Some(line), event_id: None, error })));
                let payload = match self.decoder.from_json(json) {
                    Ok(payload) => payload,
                    Err(error) => return fail(error.to_string()),
                };
                let id = match &self.id {
                    None => format!("{}-{line:09}", self.run),
                    Some(path) => match self.decoder.text(&payload, path) {
                        Some(id) => id,
                        None => return fail("its id field is empty: set it, or leave --id-field out".to_owned()),
                    },
                };
                *left -= 1;
                Some(Ok(Ready { id, line: Some(line), payload, garbage: None }))
            }
        }
    }
}

/// The next line that is not empty.
fn next_line<'b>(
    lines: &mut Box<dyn BufRead + Send>,
    line: &mut u64,
    buffer: &'b mut Vec<u8>,
) -> Result<Option<&'b str>, Refused> {
    let refuse = |line, error| Err(Refused::Line(Failure { line: Some(line), event_id: None, error }));
    loop {
        buffer.clear();
        let input = |source| Refused::Input(Error::Input { line: *line, source });
        let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', buffer).map_err(input)?;
        if read == 0 {
            return Ok(None);
        }
        let cut_off = read as u64 == MAX_LINE && buffer.last() != Some(&b'\n');
        if cut_off {
            lines.skip_until(b'\n').map_err(input)?;
        }
        *line += 1;
        if cut_off {
            return refuse(*line, format!("longer than {} MiB", MAX_LINE >> 20));
        }
        if *line == 1 && buffer.starts_with(BYTE_ORDER_MARK) {
            buffer.drain(..BYTE_ORDER_MARK.len());
        }
        if !buffer.trim_ascii().is_empty() {
            break;
        }
    }
    match std::str::from_utf8(buffer) {
        Ok(text) => Ok(Some(text.trim())),
        Err(e) => refuse(*line, format!("not UTF-8 at byte {}: write the file as UTF-8", e.valid_up_to() + 1)),
    }
}
