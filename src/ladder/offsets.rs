//! What may be committed: the watermark of one partition in one assignment.
//!
//! Owns: which delivered offsets are done. Invariant: the position never passes an offset that was delivered and is
//! not done. Offsets have gaps (compaction, transactions), so nothing is computed from one offset to the next; the
//! only `+ 1` is in [`Watermark::position`].
//! Leaves to others: storing and committing the position, and starting over at each assignment ([`Watermark::reset`]).

use std::collections::VecDeque;

/// Delivered offsets in the order of their delivery, from the first that is not done.
///
/// [`deliver`](Self::deliver) and [`done`](Self::done) are O(1) amortised, [`position`](Self::position) is O(1) too
/// as long as offsets rise; after a step back it is linear until everything delivered before is done.
#[derive(Clone, Debug, Default)]
pub struct Watermark {
    entries: VecDeque<Entry>,
    /// Ticket of the first entry.
    base: u64,
    last_delivered: Option<i64>,
    /// Entries with tickets below this one may be out of order.
    unsorted_below: u64,
    open: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: i64,
    done: bool,
}

impl Watermark {
    /// Nothing delivered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a delivered offset; the ticket says later that it is done. An offset that was delivered before gets a
    /// ticket of its own, and both must be done.
    pub fn deliver(&mut self, offset: i64) -> u64 {
        let ticket = self.base + self.entries.len() as u64;
        if self.last_delivered.is_some_and(|last| offset < last) {
            self.unsorted_below = ticket;
        }
        self.last_delivered = Some(offset);
        self.entries.push_back(Entry { offset, done: false });
        self.open += 1;
        ticket
    }

    /// Marks a delivery as done. `false` when the ticket is not open: done already, or of an earlier assignment.
    pub fn done(&mut self, ticket: u64) -> bool {
        let index = ticket.checked_sub(self.base).and_then(|i| usize::try_from(i).ok());
        let Some(entry) = index.and_then(|i| self.entries.get_mut(i)).filter(|entry| !entry.done) else {
            return false;
        };
        entry.done = true;
        self.open -= 1;
        while self.entries.front().is_some_and(|entry| entry.done) {
            self.entries.pop_front();
            self.base += 1;
        }
        true
    }

    /// The offset to start from after a crash: the first delivered one that is not done, else the last delivered
    /// one + 1; `None` when nothing was delivered.
    ///
    /// After a step back (the log was truncated, or a seek) what follows it is delivered again, so then the position
    /// is not beyond the last delivered one + 1 either.
    pub fn position(&self) -> Option<i64> {
        let next = self.last_delivered?.saturating_add(1);
        let open = if self.base < self.unsorted_below {
            self.entries.iter().filter(|entry| !entry.done).map(|entry| entry.offset).min()
        } else {
            self.entries.front().map(|entry| entry.offset)
        };
        Some(open.map_or(next, |open| open.min(next)))
    }

    /// What the position would be if these deliveries were done too. Linear.
    pub fn position_with(&self, done: impl Fn(u64) -> bool) -> Option<i64> {
        let next = self.last_delivered?.saturating_add(1);
        let open = (self.base..).zip(&self.entries).filter(|(ticket, entry)| !entry.done && !done(*ticket));
        Some(open.map(|(_, entry)| entry.offset).min().map_or(next, |open| open.min(next)))
    }

    /// The offset of a delivery; `None` when everything up to it is done, or it is of an earlier assignment.
    pub fn offset(&self, ticket: u64) -> Option<i64> {
        let index = usize::try_from(ticket.checked_sub(self.base)?).ok()?;
        self.entries.get(index).map(|entry| entry.offset)
    }

    /// One past the last delivered offset; `None` before anything was delivered.
    pub fn delivered_to(&self) -> Option<i64> {
        self.last_delivered.map(|last| last.saturating_add(1))
    }

    /// How many deliveries are not done.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Forgets everything at the end of an assignment. Tickets go on growing, so that one from before means nothing.
    pub fn reset(&mut self) {
        self.base += self.entries.len() as u64;
        self.entries.clear();
        self.last_delivered = None;
        self.open = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Delivers the offsets, marks those positions of the list as done, in that order, and tells the position.
    fn check(offsets: &[i64], done: &[usize], position: Option<i64>) {
        let mut watermark = Watermark::new();
        let tickets: Vec<u64> = offsets.iter().map(|&offset| watermark.deliver(offset)).collect();
        for &i in done {
            assert!(watermark.done(tickets[i]));
        }
        assert_eq!(watermark.position(), position, "{offsets:?} done {done:?}");
        assert_eq!(watermark.open(), offsets.len() - done.len());
        assert_eq!(watermark.delivered_to(), offsets.last().map(|last| last + 1));
    }

    #[test]
    fn the_position_is_the_first_open_offset_or_the_last_delivered_plus_one() {
        check(&[], &[], None);
        check(&[7], &[], Some(7));
        check(&[7], &[0], Some(8));
        check(&[7, 8, 9], &[1, 2], Some(7));
        check(&[7, 8, 9], &[1, 0], Some(9));
        check(&[7, 8, 9], &[2, 0, 1], Some(10));
    }

    #[test]
    fn gaps_are_never_counted_over() {
        check(&[10, 20, 35], &[0], Some(20));
        check(&[10, 20, 35], &[0, 1, 2], Some(36));
    }

    #[test]
    fn a_redelivered_offset_is_open_again() {
        check(&[5, 6, 7, 6], &[0, 1, 2], Some(6));
        check(&[5, 6, 7, 6], &[3], Some(5));
        check(&[5, 6, 7, 6, 7], &[0, 1, 2, 3, 4], Some(8));
        check(&[5, 5], &[0], Some(5));
    }

    #[test]
    fn a_step_back_holds_the_position_back() {
        check(&[10, 5], &[], Some(5));
        check(&[10, 5], &[0], Some(5));
        // 6 to 9 were never delivered: 10 may not be stored although it is the first open one.
        check(&[10, 5], &[1], Some(6));
        check(&[10, 5, 6, 12], &[0, 1, 2], Some(12));
    }

    #[test]
    fn a_ticket_counts_once_and_only_in_its_assignment() {
        let mut watermark = Watermark::new();
        let old = watermark.deliver(1);
        let older = watermark.deliver(2);
        assert!(watermark.done(old) && !watermark.done(old));
        assert!(!watermark.done(99));
        watermark.reset();
        assert_eq!((watermark.position(), watermark.open()), (None, 0));
        let (new, newer) = (watermark.deliver(1), watermark.deliver(2));
        assert!(!watermark.done(old) && !watermark.done(older));
        assert_eq!(watermark.position(), Some(1));
        assert!(watermark.done(new) && watermark.done(newer));
        assert_eq!(watermark.position(), Some(3));
    }

    proptest! {
        #[test]
        fn the_position_never_passes_a_hole(steps in proptest::collection::vec((any::<bool>(), -3..40_i64, any::<prop::sample::Index>()), 0..200)) {
            let mut watermark = Watermark::new();
            let mut open: Vec<(u64, i64)> = Vec::new();
            let mut last = None::<i64>;
            for (deliver, step, pick) in steps {
                if deliver || open.is_empty() {
                    // Mostly forwards with gaps, sometimes again or back.
                    let offset = last.map_or(100, |last| last + step);
                    last = Some(offset);
                    open.push((watermark.deliver(offset), offset));
                } else {
                    let (ticket, _) = open.swap_remove(pick.index(open.len()));
                    prop_assert!(watermark.done(ticket));
                }
                let position = watermark.position().unwrap();
                let next = last.unwrap() + 1;
                let expected = open.iter().map(|(_, offset)| *offset).min().map_or(next, |min| min.min(next));
                prop_assert_eq!(position, expected);
                prop_assert_eq!(watermark.open(), open.len());
                // As if every second one were done, and then it is.
                let with = watermark.position_with(|ticket| ticket % 2 == 0);
                let mut later = watermark.clone();
                for (ticket, offset) in &open {
                    prop_assert_eq!(watermark.offset(*ticket), Some(*offset));
                    prop_assert!(ticket % 2 != 0 || later.done(*ticket));
                }
                prop_assert_eq!(with, later.position());
            }
        }

        #[test]
        fn the_position_never_falls_while_offsets_rise(gaps in proptest::collection::vec(1..5_i64, 1..100), order in any::<u64>()) {
            let mut watermark = Watermark::new();
            let mut offset = 0;
            let mut tickets: Vec<u64> = gaps.iter().map(|gap| { offset += gap; watermark.deliver(offset) }).collect();
            let mut seed = order;
            let mut before = watermark.position();
            while !tickets.is_empty() {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let i = (seed >> 33) as usize % tickets.len();
                watermark.done(tickets.swap_remove(i));
                prop_assert!(watermark.position() >= before);
                before = watermark.position();
            }
            prop_assert_eq!(watermark.position(), Some(offset + 1));
        }
    }
}
