//! Letters a page at a time, partition by partition, and single ones. A page that takes too long ends early and says
//! where to go on. Blocks.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::book::{Book, Fate};
use super::letter::{Glance, Letter, Summary};
use super::redrive::{Desk, Error};
use super::select::Selection;
use crate::adapters::kafka::scan::Bounds;

/// Letters further apart than this are fetched one by one.
const SKIP: i64 = 5_000;

/// Where a letter is: `3:1742`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Partition on the DLQ.
    pub partition: i32,
    /// Offset in that partition.
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.split_once(':').and_then(|(partition, offset)| {
            Some(Self { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        });
        place
            .filter(|place| place.partition >= 0 && place.offset >= 0)
            .ok_or_else(|| format!("`{}` is no letter: PARTITION:OFFSET, like 3:1742", text.escape_debug()))
    }
}

impl Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Some letters.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Page {
    /// They.
    pub letters: Vec<Summary>,
    /// Where to go on; `None`: there are no more.
    pub next: Option<Place>,
    /// Offsets before that place, of those that the selection has to look through.
    pub passed: u64,
    /// All of them.
    pub total: u64,
}

/// The next `size` selected letters from a place on; fewer when `budget` is used up.
///
/// # Errors
/// When Kafka does not answer.
pub fn page(
    desk: &Desk,
    book: &Book,
    selection: &Selection,
    from: Option<Place>,
    size: usize,
    budget: Duration,
) -> Result<Page, Error> {
    let until = Instant::now() + budget;
    let mut scan = desk.scan()?;
    selection.narrow(&mut scan)?;
    let all = scan.bounds().clone();
    let mut page = Page { total: all.values().map(|b| span(b.low, b.high)).sum(), ..Page::default() };
    let mut glance = Glance::default();
    for (&partition, &bounds) in &all {
        let low = match from {
            Some(from) if partition < from.partition => bounds.high,
            Some(from) if partition == from.partition => bounds.low.max(from.offset),
            _ => bounds.low,
        };
        page.passed += span(bounds.low, low.min(bounds.high));
        if low >= bounds.high {
            continue;
        }
        let mut at = low;
        scan.within(BTreeMap::from([(partition, Bounds { low, high: bounds.high })]));
        let ended = scan.run(
            |seen| {
                glance.look(seen, book);
                if selection.matches(&glance, seen) {
                    if page.letters.len() >= size {
                        at = glance.offset;
                        return ControlFlow::Break(());
                    }
                    let fate = glance.fate.unwrap_or(Fate::Open);
                    let letter = Letter::new(seen.to_record(), fate, &desk.ladder, &desk.id_source);
                    page.letters.push(letter.summary());
                }
                at = glance.offset + 1;
                ControlFlow::Continue(())
            },
            |_| if Instant::now() < until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) },
        )?;
        if !ended && at < bounds.high {
            page.next = Some(Place { partition, offset: at });
            page.passed += span(low, at);
            return Ok(page);
        }
        page.passed += span(low, bounds.high);
    }
    Ok(page)
}

/// The letters at these places, which are in order; those that are no longer there are left out. Reads what lies
/// between two that are near each other, and skips what lies between two that are not.
///
/// # Errors
/// When Kafka does not answer.
pub fn at(desk: &Desk, book: &Book, places: &[Place]) -> Result<Vec<Summary>, Error> {
    let mut scan = desk.scan()?;
    let all = scan.bounds().clone();
    let mut letters = Vec::with_capacity(places.len());
    let near = |a: &Place, b: &Place| a.partition == b.partition && b.offset - a.offset <= SKIP;
    for run in places.chunk_by(near) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let Some(bounds) = all.get(&first.partition) else { continue };
        let (low, high) = (first.offset.max(bounds.low), (last.offset + 1).min(bounds.high));
        let mut wanted = run.iter().peekable();
        scan.within(BTreeMap::from([(first.partition, Bounds { low, high })]));
        scan.run(
            |seen| {
                while wanted.next_if(|place| place.offset < seen.offset()).is_some() {}
                if wanted.next_if(|place| place.offset == seen.offset()).is_some() {
                    let fate = book.fate(seen.partition(), seen.offset());
                    letters.push(Letter::new(seen.to_record(), fate, &desk.ladder, &desk.id_source).summary());
                }
                ControlFlow::Continue(())
            },
            |_| ControlFlow::Continue(()),
        )?;
    }
    Ok(letters)
}

/// The letter at a place; `None` when there is none.
///
/// # Errors
/// When Kafka does not answer.
pub fn find(desk: &Desk, book: &Book, place: Place) -> Result<Option<Letter>, Error> {
    let mut scan = desk.scan()?;
    scan.narrow(place.partition, Some(place.offset..=place.offset));
    let mut found = None;
    scan.run(
        |seen| {
            let fate = book.fate(seen.partition(), seen.offset());
            found = Some(Letter::new(seen.to_record(), fate, &desk.ladder, &desk.id_source));
            ControlFlow::Break(())
        },
        |_| ControlFlow::Continue(()),
    )?;
    Ok(found)
}

fn span(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or_default()
}
