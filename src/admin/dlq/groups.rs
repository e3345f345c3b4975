//! Groups of like errors and how many letters of each there are. Pure but for [`groups`], which scans.

use std::collections::HashMap;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::book::{Book, Fate};
use super::fingerprint::Fingerprint;
use super::letter::Glance;
use super::select::Selection;
use crate::adapters::kafka::scan::{self, Bounds, Progress, Scan};

/// More groups than a person reads; what comes then is counted together, so that memory stays bounded.
pub const MAX_GROUPS: usize = 10_000;
/// Threads that read, each with a client that buffers up to 32 MiB.
const MAX_READERS: usize = 4;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

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
    max: Option<usize>,
}

impl Groups {
    /// Counts one letter and returns its group's number; groups are numbered as they come.
    pub fn add(&mut self, glance: &mut Glance) -> usize {
        glance.folded();
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
        if place.is_none() && self.groups.len() >= self.max.unwrap_or(MAX_GROUPS) {
            self.key.clear(); // the group of all others
            place = self.places.get(&self.key).copied();
        }
        place.unwrap_or_else(|| {
            self.places.insert(self.key.clone(), self.groups.len());
            self.groups.push(Group::new(&self.key, at_ms));
            self.groups.len() - 1
        })
    }

    /// Counts what was counted elsewhere.
    fn merge(&mut self, other: Self) {
        for other in other.groups {
            self.key.clear();
            if !other.fingerprint.is_empty() {
                self.key.extend([&*other.class, "\0", &*other.error]);
            }
            let place = self.place(other.first_ms);
            let group = &mut self.groups[place];
            group.count += other.count;
            group.open += other.open;
            group.redriven += other.redriven;
            group.discarded += other.discarded;
            group.first_ms = group.first_ms.min(other.first_ms);
            if other.last_ms >= group.last_ms {
                (group.last_ms, group.sample) = (other.last_ms, other.sample);
            }
        }
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

/// The groups of the selected letters; `None` when `progress` broke off. Several threads read, each some partitions with
/// a client of its own: most of the time goes into librdkafka's parsing of headers.
///
/// # Errors
/// When Kafka stops answering.
pub fn groups(
    mut scan: Scan,
    book: &Book,
    selection: &Selection,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Option<Vec<Group>>, scan::Error> {
    selection.narrow(&mut scan)?;
    let total = scan.bounds().values().map(Bounds::len).sum();
    let readers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_READERS);
    let scans = scan.split(readers)?;
    let read: Vec<_> = scans.iter().map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let (mut groups, mut ended) = (Groups::default(), true);
    let (done, parts) = mpsc::channel();
    thread::scope(|scope| {
        for (scan, read) in scans.into_iter().zip(&read) {
            let (done, stop) = (done.clone(), &stop);
            scope.spawn(move || {
                let tell = |progress: Progress| {
                    read.store(progress.read, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                done.send(count(scan, book, selection, tell)).ok()
            });
        }
        drop(done);
        loop {
            match parts.recv_timeout(TELL_EVERY) {
                Ok(Ok((part, whole))) => {
                    groups.merge(part);
                    ended &= whole;
                }
                Ok(Err(error)) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let read = read.iter().map(|read| read.load(Ordering::Relaxed)).sum();
            if progress(Progress { read, total }).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    })?;
    Ok(ended.then(|| groups.sorted()))
}

/// One reader's part, and whether it came to its end.
fn count(
    mut scan: Scan,
    book: &Book,
    selection: &Selection,
    progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(Groups, bool), scan::Error> {
    let (mut groups, mut glance) = (Groups::default(), Glance::default());
    let ended = scan.run(
        |seen| {
            glance.look(seen, book);
            if selection.matches(&mut glance, seen) {
                groups.add(&mut glance);
            }
            ControlFlow::Continue(())
        },
        progress,
    )?;
    Ok((groups, ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(errors: &[(&str, i64, i64)], max: Option<usize>) -> Groups {
        let mut groups = Groups { max, ..Groups::default() };
        for (error, at_ms, offset) in errors {
            let mut glance = Glance::of(error);
            (glance.at_ms, glance.offset) = (*at_ms, *offset);
            groups.add(&mut glance);
        }
        groups
    }

    #[test]
    fn what_two_readers_counted_is_what_one_would_have() {
        let letters = [("a: x 1", 5, 0), ("b: y", 1, 1), ("a: x 2", 9, 2), ("c: z", 3, 3), ("a: x 3", 2, 4)];
        for max in [None, Some(2)] {
            let one = counted(&letters, max).sorted();
            for at in 0..letters.len() {
                let (left, right) = letters.split_at(at);
                let mut both = counted(left, max);
                both.merge(counted(right, max));
                assert_eq!(both.sorted(), one, "split at {at}, at most {max:?} groups");
            }
        }
    }
}
