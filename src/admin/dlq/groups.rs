//! Groups of like errors and how many letters of each there are. Pure but for [`groups`], which scans.

use std::collections::HashMap;
use std::ops::ControlFlow;

use serde::Serialize;

use super::book::{Book, Fate};
use super::fingerprint::Fingerprint;
use super::letter::Glance;
use super::select::Selection;
use super::sift::sift;
use crate::adapters::kafka::scan::{self, Progress, Scan, Seen};

/// More groups than a person reads; what comes then is counted together, so that memory stays bounded.
pub const MAX_GROUPS: usize = 10_000;

/// Letters with like errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Names the group.
    pub fingerprint: String,
    /// Their class.
    pub class: String,
    /// Their error, folded.
    pub error: String,
    /// How many.
    pub count: u64,
    /// When the first came, Unix ms.
    pub first_ms: i64,
    /// When the last came, Unix ms.
    pub last_ms: i64,
    /// How many nobody dealt with.
    pub open: u64,
    /// How many were sent back.
    pub redriven: u64,
    /// How many were put aside.
    pub discarded: u64,
    /// One of them.
    pub sample: Sample,
}

/// One letter of a group: the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Its event's id.
    pub event_id: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its error as it is.
    pub error: String,
}

/// Counts letters.
#[derive(Debug, Default)]
pub struct Groups {
    groups: Vec<Group>,
    /// Where in `groups` each is, by class and folded error.
    places: HashMap<String, usize>,
    /// Class and folded error of the letter at hand.
    key: String,
}

impl Groups {
    /// Counts one letter and returns its group's number; groups are numbered as they come.
    pub fn add(&mut self, glance: &Glance) -> usize {
        self.key.clear();
        self.key.push_str(glance.class());
        self.key.push('\0');
        self.key.push_str(glance.folded());
        let place = self.place(glance.at_ms);
        let group = &mut self.groups[place];
        group.count += 1;
        match glance.fate {
            Some(Fate::Redriven) => group.redriven += 1,
            Some(Fate::Discarded) => group.discarded += 1,
            Some(Fate::Open) | None => group.open += 1,
        }
        group.first_ms = group.first_ms.min(glance.at_ms);
        if glance.at_ms >= group.last_ms {
            group.last_ms = glance.at_ms;
            let sample = &mut group.sample;
            (sample.partition, sample.offset) = (glance.partition, glance.offset);
            glance.event_id.clone_into(&mut sample.event_id);
            glance.text().clone_into(&mut sample.error);
        }
        place
    }

    /// The number of the group at hand, or of all others where there are too many.
    fn place(&mut self, at_ms: i64) -> usize {
        let mut place = self.places.get(&self.key).copied();
        if place.is_none() && self.groups.len() >= MAX_GROUPS {
            self.key.clear(); // the group of all others
            place = self.places.get(&self.key).copied();
        }
        place.unwrap_or_else(|| {
            self.places.insert(self.key.clone(), self.groups.len());
            self.groups.push(Group::new(&self.key, at_ms));
            self.groups.len() - 1
        })
    }

    /// By number.
    pub fn as_slice(&self) -> &[Group] {
        &self.groups
    }

    /// The groups, those with the most open letters first.
    pub fn sorted(self) -> Vec<Group> {
        let mut groups = self.groups;
        sort(&mut groups);
        groups
    }
}

/// Those with the most open letters first.
pub(super) fn sort(groups: &mut [Group]) {
    groups.sort_by(|a, b| (b.open, b.count, &a.fingerprint).cmp(&(a.open, a.count, &b.fingerprint)));
}

impl Group {
    fn new(key: &str, at_ms: i64) -> Self {
        let (class, error, fingerprint) = match key.split_once('\0') {
            Some((class, error)) => (class, error.to_owned(), Fingerprint::of(class, error).to_string()),
            None => ("other", format!("beyond the first {MAX_GROUPS} groups"), String::new()),
        };
        Self {
            fingerprint,
            class: class.to_owned(),
            error,
            count: 0,
            first_ms: at_ms,
            last_ms: at_ms,
            open: 0,
            redriven: 0,
            discarded: 0,
            sample: Sample::default(),
        }
    }
}

/// The groups of the selected letters; `None` when `progress` broke off.
///
/// # Errors
/// When Kafka stops answering.
pub fn groups(
    mut scan: Scan,
    book: &Book,
    selection: &Selection,
    progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Option<Vec<Group>>, scan::Error> {
    selection.narrow(&mut scan)?;
    let mut groups = Groups::default();
    let add = |glance: &Glance, _: &Seen<'_>| {
        groups.add(glance);
        ControlFlow::Continue(())
    };
    let ended = sift(&mut scan, book, |glance, seen| selection.matches(glance, seen), add, progress)?;
    Ok(ended.then(|| groups.sorted()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_so_many_groups_letters_are_counted_together() {
        let mut groups = Groups::default();
        let word = |n: usize| n.to_string().bytes().map(|b| char::from(b'a' + b - b'0')).collect::<String>();
        for n in 0..MAX_GROUPS + 3 {
            groups.add(&Glance::of(&format!("permanent: {}", word(n))));
        }
        groups.add(&Glance::of(&format!("permanent: {}", word(0))));
        let groups = groups.sorted();
        assert_eq!(groups.len(), MAX_GROUPS + 1);
        assert_eq!((&*groups[0].class, groups[0].count), ("other", 3));
        assert_eq!((&*groups[1].error, groups[1].count), ("a", 2));
    }
}
