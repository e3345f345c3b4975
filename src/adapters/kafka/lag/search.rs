//! Where in a partition the events that are due end: a search over single records, as a pure state machine.
//!
//! It starts at a guess (from the log's time index, which knows when each record was appended, and so about when it is
//! due) and looks at the records on both sides of it. In the usual case both are as guessed and that is all; else it
//! gallops away from the guess, and then halves what is left.

use crate::ladder::event::Timestamp;

/// A record that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its offset: the first at or after the one that was asked for.
    pub offset: i64,
    /// When it is due.
    pub due: Timestamp,
}

/// Looks for the first offset in `from..high` that is not due.
#[derive(Clone, Debug)]
pub struct Search {
    now: Timestamp,
    guess: i64,
    /// Everything before is due, as far as is known; everything from `hi` on is not.
    lo: i64,
    hi: i64,
    phase: Phase,
    oldest: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first record: since when is it due?
    Head,
    Below,
    Above,
    Down(i64),
    Up(i64),
    Bisect,
}

impl Search {
    /// A search in `from..high`, with a guess at the boundary.
    pub fn new(from: i64, high: i64, guess: i64, now: Timestamp) -> Self {
        let high = high.max(from);
        Self { now, guess: guess.clamp(from, high), lo: from, hi: high, phase: Phase::Head, oldest: None }
    }

    /// The offset to look at next; `None` when the boundary is found.
    pub fn next(&self) -> Option<i64> {
        let at = match self.phase {
            Phase::Head => self.lo,
            Phase::Below => self.guess - 1,
            Phase::Above => self.guess,
            Phase::Down(step) => self.hi - step,
            Phase::Up(step) => self.lo + step - 1,
            Phase::Bisect => self.lo + (self.hi - self.lo) / 2,
        };
        (self.lo < self.hi).then(|| at.clamp(self.lo, self.hi - 1))
    }

    /// What there is at the offset that was asked for; `None`: no record there or after it.
    pub fn found(&mut self, found: Option<Found>) {
        let Some(at) = self.next() else { return };
        let found = found.filter(|f| f.offset < self.hi && f.due <= self.now);
        let is_due = found.is_some();
        if let Some(Found { offset, due }) = found {
            self.oldest = Some(self.oldest.map_or(due, |oldest| oldest.min(due)));
            self.lo = self.lo.max(offset + 1);
        } else if self.phase != Phase::Head || self.guess <= at {
            // A head that waits longer than what follows it (the target asked for that) is no boundary.
            self.hi = at;
        }
        self.phase = match (self.phase, is_due) {
            (Phase::Head, _) => Phase::Below,
            (Phase::Below, true) => Phase::Above,
            (Phase::Below, false) => Phase::Down(1),
            (Phase::Above, true) => Phase::Up(1),
            (Phase::Down(step), false) => Phase::Down(step.saturating_mul(2)),
            (Phase::Up(step), true) => Phase::Up(step.saturating_mul(2)),
            (Phase::Above, false) | (Phase::Down(_), true) | (Phase::Up(_), false) | (Phase::Bisect, _) => {
                Phase::Bisect
            }
        };
    }

    /// The boundary: found, or the best that is known when the search is broken off.
    pub fn boundary(&self) -> i64 {
        self.guess.clamp(self.lo, self.hi)
    }

    /// The earliest due of the records seen that are due.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.oldest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    /// Searches a log of (offset, due ms) with this guess; the boundary, the oldest due in ms and the number of looks.
    fn search(log: &[(i64, u64)], from: i64, high: i64, guess: i64) -> (i64, Option<u64>, usize) {
        let mut search = Search::new(from, high, guess, NOW);
        let mut looks = 0;
        while let Some(at) = search.next() {
            assert!((from..high).contains(&at), "{at} is outside {from}..{high}");
            let found = log.iter().find(|(offset, _)| *offset >= at);
            search.found(found.map(|&(offset, ms)| Found { offset, due: Timestamp::from_millis(ms) }));
            looks += 1;
            assert!(looks < 200, "does not end");
        }
        (search.boundary(), search.oldest().map(Timestamp::floor_millis), looks)
    }

    /// Offsets 0.., one each 10 ms, so that `due` of them are due.
    fn rising(count: i64, due: i64) -> Vec<(i64, u64)> {
        (0..count).map(|i| (i, (1_000_000 + 10 * (i - due + 1)) as u64)).collect()
    }

    #[test]
    fn a_right_guess_costs_three_looks() {
        assert_eq!(search(&rising(1_000, 400), 0, 1_000, 400), (400, Some(996_010), 3));
    }

    #[test]
    fn nothing_and_everything_due() {
        assert_eq!(search(&[], 5, 5, 9), (5, None, 0));
        assert_eq!(search(&rising(100, 0), 0, 100, 0), (0, None, 1));
        assert_eq!(search(&rising(100, 100), 0, 100, 100), (100, Some(999_010), 2));
        assert_eq!(search(&rising(1, 1), 0, 1, 0), (1, Some(1_000_000), 1));
    }

    #[test]
    fn a_wrong_guess_is_corrected_in_either_direction() {
        for guess in [0, 1, 399, 401, 405, 700, 1_000, i64::MAX, i64::MIN] {
            let (boundary, oldest, looks) = search(&rising(1_000, 400), 0, 1_000, guess);
            assert_eq!((boundary, oldest), (400, Some(996_010)), "guess {guess}");
            assert!(looks <= 25, "guess {guess}: {looks} looks");
        }
    }

    #[test]
    fn a_head_that_waits_longer_than_the_rest_hides_no_backlog() {
        let mut log = rising(1_000, 400);
        log[0].1 = 1_900_000;
        assert_eq!(search(&log, 0, 1_000, 400).0, 400);
    }

    #[test]
    fn gaps_and_an_end_without_records_are_stepped_over() {
        let log: Vec<_> = rising(1_000, 400).into_iter().filter(|(offset, _)| offset % 7 == 0).collect();
        let (boundary, ..) = search(&log, 0, 1_000, 500);
        assert!((400..=406).contains(&boundary), "{boundary}: between the last due record and the next");
        assert_eq!(search(&rising(10, 10), 0, 20, 20).0, 10);
    }

    proptest! {
        #[test]
        fn where_dues_rise_the_boundary_is_found_from_any_guess(count in 0..3_000_i64, due in 0..3_000_i64, from in 0..3_000_i64, guess in -10..4_000_i64) {
            let (due, from) = (due.min(count), from.min(count));
            let (boundary, _, looks) = search(&rising(count, due), from, count, guess);
            prop_assert_eq!(boundary, due.max(from));
            prop_assert!(looks <= 28, "{} looks", looks);
        }

        #[test]
        fn whatever_the_dues_are_the_search_ends_within_the_log(dues in proptest::collection::vec(999_000..1_001_000_u64, 0..300), from in 0..300_i64, guess in any::<i64>()) {
            let high = dues.len() as i64;
            let log: Vec<_> = dues.into_iter().enumerate().map(|(i, ms)| (i as i64, ms)).collect();
            let from = from.min(high);
            let (boundary, ..) = search(&log, from, high, guess);
            prop_assert!((from..=high).contains(&boundary));
        }
    }
}
