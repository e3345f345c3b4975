//! A set of offsets by partition, as ranges: what was dealt with comes in runs, so a million of them take little room.

use std::collections::BTreeMap;
use std::ops::Range;

/// Offsets by partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets(BTreeMap<i32, Ranges>);

/// First to one past the last of each run; runs neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(BTreeMap<i64, i64>);

impl Offsets {
    /// Whether it is in the set.
    pub(super) fn contains(&self, partition: i32, offset: i64) -> bool {
        self.0.get(&partition).and_then(|r| r.run_at(offset)).is_some()
    }

    /// Adds it.
    pub(super) fn insert(&mut self, partition: i32, offset: i64) {
        self.0.entry(partition).or_default().insert(offset);
    }

    /// Takes it out.
    pub(super) fn remove(&mut self, partition: i32, offset: i64) {
        if let Some(ranges) = self.0.get_mut(&partition) {
            ranges.remove(offset);
        }
    }

    /// How many of a partition lie within these bounds.
    pub(super) fn count(&self, partition: i32, within: Range<i64>) -> u64 {
        let Some(ranges) = self.0.get(&partition) else { return 0 };
        let overlap = |(start, end): (&i64, &i64)| {
            u64::try_from((*end).min(within.end).saturating_sub((*start).max(within.start))).unwrap_or_default()
        };
        ranges.0.iter().map(overlap).sum()
    }
}

impl Ranges {
    fn run_at(&self, offset: i64) -> Option<(i64, i64)> {
        let (start, end) = self.0.range(..=offset).next_back()?;
        (offset < *end).then_some((*start, *end))
    }

    fn insert(&mut self, offset: i64) {
        if self.run_at(offset).is_some() {
            return;
        }
        let (mut start, mut end) = (offset, offset + 1);
        if let Some((before, before_end)) = self.0.range(..offset).next_back().map(|(s, e)| (*s, *e))
            && before_end == offset
        {
            start = before;
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        self.0.insert(start, end);
    }

    fn remove(&mut self, offset: i64) {
        let Some((start, end)) = self.run_at(offset) else { return };
        self.0.remove(&start);
        if start < offset {
            self.0.insert(start, offset);
        }
        if offset + 1 < end {
            self.0.insert(offset + 1, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_grow_together() {
        let mut offsets = Offsets::default();
        for offset in [5, 7, 6, 1, 5] {
            offsets.insert(0, offset);
        }
        assert_eq!(offsets.0[&0].0, BTreeMap::from([(1, 2), (5, 8)]));
        assert_eq!((offsets.count(0, 0..6), offsets.count(0, 0..100), offsets.count(1, 0..100)), (2, 4, 0));
    }

    proptest::proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((proptest::bool::weighted(0.7), 0_i64..24), 0..80)) {
            let (mut offsets, mut truth) = (Offsets::default(), BTreeSet::new());
            for (insert, offset) in steps {
                if insert {
                    offsets.insert(3, offset);
                    truth.insert(offset);
                } else {
                    offsets.remove(3, offset);
                    truth.remove(&offset);
                }
                for offset in -1..25 {
                    proptest::prop_assert_eq!(offsets.contains(3, offset), truth.contains(&offset));
                }
                proptest::prop_assert_eq!(offsets.count(3, 4..20), truth.range(4..20).count() as u64);
            }
        }
    }
}
