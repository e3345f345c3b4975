//! The groups of a whole DLQ for somebody who keeps looking: read once, then only what is new.
//!
//! Two bytes a letter say which group it belongs to, so a letter's change of fate and the end of its retention are
//! counted without reading it again. Beyond [`MAX_LETTERS`] only the newest are known.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use super::book::{Book, Fate};
use super::fingerprint::Fingerprint;
use super::groups::{self, Group, Groups};
use super::letter::Glance;
use super::page::Place;
use super::sift::sift;
use crate::adapters::kafka::scan::{self, Bounds, Progress, Scan, Seen};

/// Letters that are known: 32 MiB of group numbers.
pub const MAX_LETTERS: u64 = 1 << 24;
/// No letter at this offset: a transaction's marker.
const NONE: u16 = u16::MAX;

/// Groups, and each letter's.
#[derive(Debug, Default)]
pub struct Catalog {
    groups: Groups,
    rows: BTreeMap<i32, Row>,
    /// Id of the topic that they are on.
    topic_id: Option<String>,
    /// What the broker deleted or what is too much to know.
    left_out: u64,
    /// Letters came or went since it was asked.
    has_changed: bool,
}

/// The letters of one partition.
#[derive(Debug, Default)]
struct Row {
    /// Offset of the first.
    low: i64,
    /// Number of the group of each offset.
    groups: VecDeque<u16>,
}

impl Row {
    fn next(&self) -> i64 {
        self.low + i64::try_from(self.groups.len()).unwrap_or_default()
    }

    fn put(&mut self, offset: i64, group: u16) {
        if self.groups.is_empty() {
            self.low = offset;
        }
        while self.next() < offset {
            self.groups.push_back(NONE);
        }
        self.groups.push_back(group);
    }

    /// Forgets what lies before; whether there was any.
    fn begin_at(&mut self, low: i64) -> bool {
        let before = self.low;
        while self.low < low && self.groups.pop_front().is_some() {
            self.low += 1;
        }
        self.low != before
    }
}

impl Catalog {
    /// Takes in what came since the last call, until `progress` breaks off; the next call goes on from there. Whether
    /// it came to the end. Blocks.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn refresh(
        &mut self,
        scan: &mut Scan,
        book: &Book,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, scan::Error> {
        scan.renew()?;
        if self.topic_id.as_deref() != book.topic_id() {
            let topic_id = book.topic_id().map(str::to_owned);
            *self = Self { topic_id, has_changed: true, ..Self::default() };
        }
        self.forget(scan.bounds());
        let starts = self.starts(scan.bounds());
        scan.from(&starts);
        let put = |glance: &Glance, _: &Seen<'_>| {
            let group = u16::try_from(self.groups.add(glance)).unwrap_or(NONE);
            self.rows.entry(glance.partition).or_default().put(glance.offset, group);
            self.has_changed = true;
            ControlFlow::Continue(())
        };
        sift(scan, book, |_, _| true, put, progress)
    }

    /// Forgets what the topic no longer holds; everything when it is another topic of the same name.
    fn forget(&mut self, bounds: &BTreeMap<i32, Bounds>) {
        let is_other = |(partition, row): (&i32, &Row)| bounds.get(partition).is_none_or(|b| b.high < row.next());
        if self.rows.iter().any(is_other) {
            *self = Self { topic_id: self.topic_id.take(), has_changed: true, ..Self::default() };
        }
        for (partition, row) in &mut self.rows {
            self.has_changed |= row.begin_at(bounds[partition].low);
        }
    }

    /// Where to go on in each partition.
    fn starts(&mut self, bounds: &BTreeMap<i32, Bounds>) -> BTreeMap<i32, i64> {
        let depth = |b: &Bounds| u64::try_from(b.high - b.low).unwrap_or_default();
        let total: u64 = bounds.values().map(depth).sum();
        self.left_out = 0;
        let start = |(partition, b): (&i32, &Bounds)| {
            let known = (u128::from(depth(b)) * u128::from(MAX_LETTERS) / u128::from(total.max(MAX_LETTERS))) as i64;
            let low = b.high - known;
            self.left_out += u64::try_from(low - b.low).unwrap_or_default();
            let row = self.rows.entry(*partition).or_default();
            self.has_changed |= row.begin_at(low);
            (*partition, if row.groups.is_empty() { low } else { row.next() })
        };
        bounds.iter().map(start).collect()
    }

    /// The groups as they stand, those with the most open letters first; those without a letter are left out.
    pub fn groups(&self, book: &Book) -> Vec<Group> {
        let mut groups: Vec<Group> = self.groups.as_slice().to_vec();
        for group in &mut groups {
            (group.count, group.open, group.redriven, group.discarded) = (0, 0, 0, 0);
        }
        for (partition, row) in &self.rows {
            for (offset, group) in (row.low..).zip(&row.groups) {
                let Some(group) = groups.get_mut(usize::from(*group)) else { continue };
                group.count += 1;
                match book.fate(*partition, offset) {
                    Fate::Open => group.open += 1,
                    Fate::Redriven => group.redriven += 1,
                    Fate::Discarded => group.discarded += 1,
                }
            }
        }
        groups.retain(|group| group.count > 0);
        groups::sort(&mut groups);
        groups
    }

    /// The next `count` letters of a group from a place on; with a fate, those of that fate. What came since the last
    /// call of [`Catalog::refresh`] is not known.
    pub fn places(
        &self,
        fingerprint: Fingerprint,
        state: Option<Fate>,
        book: &Book,
        from: Option<Place>,
        count: usize,
    ) -> Vec<Place> {
        let name = fingerprint.to_string();
        let Some(wanted) = self.groups.as_slice().iter().position(|group| group.fingerprint == name) else {
            return Vec::new();
        };
        let mut places = Vec::new();
        for (&partition, row) in &self.rows {
            let low = match from {
                Some(from) if partition < from.partition => continue,
                Some(from) if partition == from.partition => from.offset.max(row.low),
                _ => row.low,
            };
            let skipped = usize::try_from(low - row.low).unwrap_or(usize::MAX);
            let letters = (low..).zip(row.groups.iter().skip(skipped));
            let matching = letters.filter(|(offset, group)| {
                usize::from(**group) == wanted && state.is_none_or(|state| book.fate(partition, *offset) == state)
            });
            places.extend(matching.map(|(offset, _)| Place { partition, offset }).take(count - places.len()));
            if places.len() == count {
                break;
            }
        }
        places
    }

    /// Whether letters came or went since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// Older letters that are not counted, because there are too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(row: &Row) -> Vec<(i64, u16)> {
        (row.low..).zip(row.groups.iter().copied()).collect()
    }

    #[test]
    fn a_row_knows_each_offset_and_forgets_from_the_front() {
        let mut row = Row::default();
        row.put(5, 1);
        row.put(6, 2);
        row.put(8, 1);
        assert_eq!(offsets(&row), [(5, 1), (6, 2), (7, NONE), (8, 1)]);
        row.begin_at(7);
        assert_eq!((offsets(&row), row.next()), (vec![(7, NONE), (8, 1)], 9));
        row.begin_at(20);
        row.put(30, 4);
        assert_eq!(offsets(&row), [(30, 4)]);
    }

    #[test]
    fn a_topic_that_was_made_again_is_read_from_its_start() {
        let mut catalog = Catalog::default();
        let bounds = |high| BTreeMap::from([(0, Bounds { low: 0, high })]);
        assert_eq!(catalog.starts(&bounds(10)), BTreeMap::from([(0, 0)]));
        (0..10).for_each(|offset| catalog.rows.get_mut(&0).unwrap().put(offset, 0));
        assert_eq!(catalog.starts(&bounds(12)), BTreeMap::from([(0, 10)]), "only what is new");
        catalog.forget(&bounds(3));
        assert_eq!(catalog.starts(&bounds(3)), BTreeMap::from([(0, 0)]));
    }

    #[test]
    fn the_letters_of_a_group_are_found_from_any_place_on() {
        let mut catalog = Catalog::default();
        let book = Book::default();
        let glance = |error: &str| Glance::of(error);
        for (partition, errors) in [(0, ["a: x", "b: y", "a: x"]), (2, ["a: x", "a: x", "b: y"])] {
            for (offset, error) in (10..).zip(errors) {
                let group = u16::try_from(catalog.groups.add(&glance(error))).unwrap();
                catalog.rows.entry(partition).or_default().put(offset, group);
            }
        }
        let find = |error: &str, from: Option<&str>, count| {
            let from = from.map(|from| from.parse().unwrap());
            let places = catalog.places(glance(error).fingerprint(), Some(Fate::Open), &book, from, count);
            places.iter().map(Place::to_string).collect::<Vec<_>>()
        };
        assert_eq!(find("a: x", None, 9), ["0:10", "0:12", "2:10", "2:11"]);
        assert_eq!(find("a: x", None, 3), ["0:10", "0:12", "2:10"]);
        assert_eq!(find("a: x", Some("0:11"), 2), ["0:12", "2:10"]);
        assert_eq!(find("a: x", Some("2:11"), 9), ["2:11"]);
        assert_eq!(find("b: y", Some("0:12"), 9), ["2:12"]);
        assert_eq!(find("c: z", None, 9), [""; 0]);
        let redriven = catalog.places(glance("a: x").fingerprint(), Some(Fate::Redriven), &book, None, 9);
        assert_eq!(redriven, []);
    }

    #[test]
    fn of_too_many_letters_the_newest_are_known() {
        let mut catalog = Catalog::default();
        let high = i64::try_from(MAX_LETTERS).unwrap();
        let bounds = BTreeMap::from([(0, Bounds { low: 0, high }), (1, Bounds { low: 0, high })]);
        assert_eq!(catalog.starts(&bounds), BTreeMap::from([(0, high / 2), (1, high / 2)]));
        assert_eq!(catalog.left_out(), MAX_LETTERS);
    }
}
