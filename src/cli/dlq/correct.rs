//! Corrected letters: the JSON lines of `export`, their values changed by somebody.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::Value;

use super::Error;
use crate::admin::dlq::redrive::{Desk, Order};

/// The order with the values of the file; an order with corrections means just the letters in it. The framing of their
/// values stays as it is.
pub(super) fn read(path: &Path, mut order: Order, desk: &Desk) -> Result<Order, Error> {
    let wrong = |line: usize, why: &str| Error::Usage(format!("{} line {line}: {why}", path.display()));
    let file = File::open(path).map_err(|e| Error::Usage(format!("--from {}: {e}", path.display())))?;
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let (line, n) = (line?, n + 1);
        if line.trim().is_empty() {
            continue;
        }
        let letter: Value = serde_json::from_str(&line).map_err(|e| wrong(n, &format!("no JSON: {e}")))?;
        let number = |name: &str| letter.get(name).and_then(Value::as_i64);
        let place = number("partition").and_then(|p| i32::try_from(p).ok()).zip(number("offset"));
        let place =
            place.ok_or_else(|| wrong(n, "`partition` and `offset` name the letter; `dlq export` writes them"))?;
        if !(0..desk.partitions.last().copied().unwrap_or_default()).contains(&place.0) {
            return Err(wrong(n, &format!("the DLQ has no partition {}", place.0)));
        }
        let json = letter.get("value").and_then(|value| value.get("json"));
        let json = json.ok_or_else(|| wrong(n, "`value.json` holds the corrected message; this line has none"))?;
        let json = json.to_string();
        if let Some(Err(error)) = desk.reader.own().map(|decoder| decoder.from_json(&json)) {
            return Err(wrong(n, &error.to_string()));
        }
        if order.corrected.insert(place, json).is_some() {
            return Err(wrong(n, &format!("letter {}:{} stands in the file already", place.0, place.1)));
        }
    }
    if order.corrected.is_empty() {
        return Err(Error::Usage(format!("--from {}: no letter in it", path.display())));
    }
    Ok(order)
}
