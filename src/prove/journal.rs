//! What a worker saw of the outside, written as it happens, and what it had in hand when something befell it.
//!
//! Owns the marks file: one line for each answer, written (one `write`, to the page cache, which survives the process)
//! before the engine sees the answer:
//! ```text
//! c <us> <hop> <event_id> <fence> <leased_until_us>   Redis granted the claim
//! n <us> <hop> <event_id> - <leased_until_us>         … renewed it
//! p <us> <hop> <event_id>                             its next copy goes to the producer
//! a <us> <hop> <event_id>                             … is acknowledged
//! s <us> <hop> <event_id>                             Redis recorded its end; r: the claim was given back
//! h <us>                                              a thread of its own is alive
//! ```
//! Instants are Unix microseconds of the writing. Reading is one pass that keeps only what is open.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;

use super::ledger::{Cause, Held, InHand, Interruption};

/// A worker's marks file, for writing.
#[derive(Debug)]
pub struct Marks(File);

impl Marks {
    /// Creates the file.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    /// Writes whole lines.
    ///
    /// # Errors
    /// When the disk does not take them: the worker must end then, its evidence would be false.
    pub fn write(&self, lines: &str) -> io::Result<()> {
        (&self.0).write_all(lines.as_bytes())
    }
}

/// A span of time in which something befell a worker, Unix microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blow {
    /// What.
    pub cause: Cause,
    /// From here.
    pub from_us: u64,
    /// To here.
    pub to_us: u64,
}

/// Two heartbeats further apart than this: the machine did not let the process run.
const STALL_US: u64 = 2_000_000;

/// What the marks say of each blow, in the order of `blows`, and then of times when the machine itself stood still.
#[derive(Debug, Default)]
pub struct Told {
    /// What was in hand at each blow.
    pub interruptions: Vec<Interruption>,
    /// What was in hand when no heartbeat came: a freeze that nobody ordered.
    pub stalls: Vec<Interruption>,
    /// Copies handed to the producer by a process that was woken after their lease.
    pub zombie_sends: usize,
}

/// Reads the marks of one process. A kill is the end of its file; a freeze is what was open when it began; being cut off
/// explains those whose lease ran out because of it.
///
/// # Errors
/// When the file cannot be read, or holds a line that is none.
pub fn read(path: &Path, blows: &[Blow]) -> io::Result<Told> {
    let interruptions = blows.iter().map(|b| Interruption { cause: b.cause, ..Interruption::default() }).collect();
    let mut told = Told { interruptions, ..Told::default() };
    let mut open: HashMap<(String, u64), Held> = HashMap::new();
    let mut frozen: Vec<usize> = Vec::new(); // freezes that have been dealt with
    let mut heartbeat = None;
    let file = BufReader::new(File::open(path)?);
    for line in file.lines() {
        let line = line?;
        let bad = || io::Error::other(format!("{}: no mark: {line:?}", path.display()));
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).ok_or_else(bad);
        let at = number(1)?;
        for (n, blow) in blows.iter().enumerate() {
            if blow.cause == Cause::Frozen && at >= blow.from_us && !frozen.contains(&n) {
                frozen.push(n);
                told.interruptions[n].in_hand = open.values().cloned().collect();
            }
        }
        if fields[0] == "h" {
            let planned = |from| blows.iter().any(|b| b.cause == Cause::Frozen && from <= b.to_us && at >= b.from_us);
            if let Some(from) = heartbeat.replace(at)
                && at.saturating_sub(from) > STALL_US
                && !planned(from)
            {
                let in_hand = open.values().cloned().collect();
                told.stalls.push(Interruption { cause: Cause::Frozen, in_hand, ..Interruption::default() });
            }
            continue;
        }
        let copy = (fields.get(3).ok_or_else(bad)?.to_string(), number(2)?);
        match fields[0] {
            "c" => {
                let held = Held {
                    id: copy.0.clone(),
                    hop: copy.1,
                    how: InHand::Claimed,
                    fence: number(4)?,
                    leased_until_us: number(5)?,
                };
                if let Some(before) = open.insert(copy, held) {
                    lapsed(&mut told, blows, &before, at);
                }
            }
            "n" => {
                if let Some(held) = open.get_mut(&copy) {
                    held.leased_until_us = number(5)?;
                }
            }
            "p" => {
                if let Some(held) = open.get_mut(&copy) {
                    let woken = |b: &&Blow| b.cause == Cause::Frozen && held.leased_until_us < b.to_us;
                    told.zombie_sends += usize::from(blows.iter().filter(woken).any(|b| at >= b.to_us));
                    held.how = InHand::Published;
                }
            }
            "a" => {
                if let Some(held) = open.get_mut(&copy) {
                    held.how = InHand::Acknowledged;
                }
            }
            "s" | "r" => {
                if let Some(held) = open.remove(&copy) {
                    lapsed(&mut told, blows, &held, at);
                }
            }
            _ => return Err(bad()),
        }
    }
    // What is open at the end never got a last word: a kill has it, and a lease that ran out before.
    let ended = blows.iter().filter(|b| b.cause == Cause::Killed).map(|b| b.from_us).min().unwrap_or(u64::MAX);
    for held in open.values() {
        lapsed(&mut told, blows, held, ended);
    }
    for (n, blow) in blows.iter().enumerate() {
        let never_seen = blow.cause == Cause::Frozen && !frozen.contains(&n);
        if blow.cause == Cause::Killed || never_seen {
            told.interruptions[n].in_hand = open.values().cloned().collect();
        }
    }
    Ok(told)
}

/// A lease that ran out before `ended`, for want of a renewal: being cut off explains it, if that was the time.
fn lapsed(told: &mut Told, blows: &[Blow], held: &Held, ended: u64) {
    let until = held.leased_until_us;
    // A frozen process renews nothing, whatever Redis does: the freeze has it already.
    let frozen =
        |b: &Blow| b.cause == Cause::Frozen && b.from_us <= until && until <= b.to_us.saturating_add(5_000_000);
    if until >= ended || blows.iter().any(frozen) {
        return;
    }
    for (blow, told) in blows.iter().zip(&mut told.interruptions) {
        // The renewals that failed lie within the lease's last two thirds; an answer may take another second.
        if blow.cause == Cause::CutOff && until >= blow.from_us && until <= blow.to_us + 5_000_000 {
            told.in_hand.push(held.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &str, blows: &[Blow]) -> Told {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        read(file.path(), blows).unwrap()
    }

    fn ids(interruption: &Interruption) -> Vec<(&str, InHand)> {
        let mut ids: Vec<_> = interruption.in_hand.iter().map(|h| (h.id.as_str(), h.how)).collect();
        ids.sort_by_key(|(id, _)| *id);
        ids
    }

    const LINES: &str = "c 100 0 a 7 5000\nc 100 0 b 7 5000\nc 110 1 c 8 5000\np 200 0 b\nn 250 0 a - 6000\ns 300 1 c\n\
                         a 400 0 b\ns 9000 0 b\n";

    #[test]
    fn a_kill_holds_what_is_open_at_the_end() {
        let blow = Blow { cause: Cause::Killed, from_us: 9_500, to_us: 9_500 };
        let told = told(LINES, &[blow]);
        assert_eq!(ids(&told.interruptions[0]), [("a", InHand::Claimed)]);
        assert_eq!(told.interruptions[0].in_hand[0].leased_until_us, 6_000);
    }

    #[test]
    fn a_freeze_holds_what_was_open_when_it_began() {
        let blow = Blow { cause: Cause::Frozen, from_us: 250, to_us: 8_000 };
        let told = told(LINES, &[blow]);
        assert_eq!(
            ids(&told.interruptions[0]),
            [("a", InHand::Claimed), ("b", InHand::Published), ("c", InHand::Claimed)]
        );
        assert_eq!(told.zombie_sends, 0);
    }

    #[test]
    fn a_cut_holds_only_those_whose_lease_ran_out_by_it() {
        let cut = |from_us, to_us| Blow { cause: Cause::CutOff, from_us, to_us };
        assert_eq!(
            ids(&told(LINES, &[cut(4_000, 7_000)]).interruptions[0]),
            [("a", InHand::Claimed), ("b", InHand::Acknowledged)]
        );
        assert_eq!(ids(&told(LINES, &[cut(5_500, 7_000)]).interruptions[0]), [("a", InHand::Claimed)]);
        assert_eq!(ids(&told(LINES, &[cut(6_500, 7_000)]).interruptions[0]), []);
        // … and not because the process was frozen.
        let freeze = Blow { cause: Cause::Frozen, from_us: 4_500, to_us: 8_000 };
        assert_eq!(ids(&told(LINES, &[cut(4_000, 7_000), freeze]).interruptions[0]), []);
    }

    #[test]
    fn a_send_by_a_process_woken_after_the_lease_is_counted() {
        let blow = Blow { cause: Cause::Frozen, from_us: 150, to_us: 8_000 };
        assert_eq!(told("c 100 0 a 7 5000\np 8001 0 a\n", &[blow]).zombie_sends, 1);
        assert_eq!(told("c 100 0 a 7 9000\np 8001 0 a\n", &[blow]).zombie_sends, 0);
    }

    #[test]
    fn a_machine_that_stands_still_is_noticed() {
        let lines = "h 1\nc 100 0 a 7 5000\nh 500000\nh 4000000\ns 4000001 0 a\n";
        assert_eq!(ids(&told(lines, &[]).stalls[0]), [("a", InHand::Claimed)]);
        let ordered = Blow { cause: Cause::Frozen, from_us: 600_000, to_us: 3_900_000 };
        assert!(told(lines, &[ordered]).stalls.is_empty());
    }

    #[test]
    fn a_line_that_is_no_mark_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for line in ["x 1 0 a", "c 1 0 a", "s one 0 a", ""] {
            std::fs::write(file.path(), format!("{line}\n")).unwrap();
            assert!(read(file.path(), &[]).is_err(), "{line:?}");
        }
    }
}
