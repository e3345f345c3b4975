//! What a worker saw of the outside, written as it happens, and what it had in hand when something befell it.
//!
//! Owns the marks file: one line for each answer, written (one `write`, to the page cache, which survives the process)
//! before the engine sees the answer. Instants are Unix microseconds of the writing. Reading is one pass that keeps only
//! what is open, after one that looks for times when the machine itself stood still.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;

use super::ledger::{Cause, Held, InHand, Interruption};

/// What a line says of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Redis granted the claim, with this fence; the lease does not end before, Unix microseconds.
    Claimed {
        /// Of the claim.
        fence: u64,
        /// At least.
        leased_until_us: u64,
    },
    /// … renewed it.
    Renewed {
        /// At least.
        leased_until_us: u64,
    },
    /// … did not answer when it was asked to.
    NotRenewed,
    /// … said that somebody else has it.
    Busy,
    /// … said that it was finished or moved on already.
    Known,
    /// Its handler is through.
    Handled,
    /// Its next copy goes to the producer.
    Published,
    /// … is acknowledged.
    Acknowledged,
    /// … may be written or not: the producer does not know.
    Unacknowledged,
    /// Its end goes to Redis.
    Settling,
    /// … is recorded there.
    Settled,
    /// The claim was given back.
    Released,
    /// Of no copy: a thread of its own is alive.
    Alive,
}

impl Step {
    fn letter(self) -> char {
        match self {
            Step::Claimed { .. } => 'c',
            Step::Renewed { .. } => 'n',
            Step::NotRenewed => 'm',
            Step::Busy => 'b',
            Step::Known => 'k',
            Step::Handled => 'e',
            Step::Published => 'p',
            Step::Acknowledged => 'a',
            Step::Unacknowledged => 'u',
            Step::Settling => 't',
            Step::Settled => 's',
            Step::Released => 'r',
            Step::Alive => 'h',
        }
    }
}

/// One line: `<letter> <us> <hop> <event_id>`, behind it the fence and the lease of a claim, the lease of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was written.
    pub at_us: u64,
    /// What happened.
    pub step: Step,
    /// Moves of the copy so far.
    pub hop: u64,
    /// The event.
    pub id: String,
}

impl Line {
    fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let step = match fields[0] {
            "c" => Step::Claimed { fence: number(4)?, leased_until_us: number(5)? },
            "n" => Step::Renewed { leased_until_us: number(4)? },
            letter => {
                let others = [
                    Step::NotRenewed,
                    Step::Busy,
                    Step::Known,
                    Step::Handled,
                    Step::Published,
                    Step::Acknowledged,
                    Step::Unacknowledged,
                    Step::Settling,
                    Step::Settled,
                    Step::Released,
                    Step::Alive,
                ];
                others.into_iter().find(|step| letter.chars().eq([step.letter()]))?
            }
        };
        Some(Self { at_us: number(1)?, step, hop: number(2)?, id: (*fields.get(3)?).to_owned() })
    }

    fn write(&self, out: &mut String) {
        let Self { at_us, step, hop, id } = self;
        // A `String` takes everything.
        write!(out, "{} {at_us} {hop} {id}", step.letter()).ok();
        match step {
            Step::Claimed { fence, leased_until_us } => write!(out, " {fence} {leased_until_us}").ok(),
            Step::Renewed { leased_until_us } => write!(out, " {leased_until_us}").ok(),
            _ => None,
        };
        out.push('\n');
    }
}

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

    /// Writes these lines.
    ///
    /// # Errors
    /// When the disk does not take them: the worker must end then, its evidence would be false.
    pub fn write(&self, lines: &[Line]) -> io::Result<()> {
        let mut text = String::with_capacity(lines.len() * 48);
        lines.iter().for_each(|line| line.write(&mut text));
        (&self.0).write_all(text.as_bytes())
    }
}

/// Calls `each` with every whole line of a marks file. One that a kill cut off was never seen by anybody.
///
/// # Errors
/// When the file cannot be read, or holds a line that is none.
pub fn each_line(path: &Path, mut each: impl FnMut(Line)) -> io::Result<()> {
    let (mut file, mut text) = (BufReader::new(File::open(path)?), String::new());
    while file.read_line(&mut text)? > 0 && text.ends_with('\n') {
        let bad = || io::Error::other(format!("{}: no mark: {text:?}", path.display()));
        each(Line::read(text.trim_end_matches('\n')).ok_or_else(bad)?);
        text.clear();
    }
    Ok(())
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

impl Blow {
    /// The end of a process.
    pub fn kill() -> Self {
        Self { cause: Cause::Killed, from_us: u64::MAX, to_us: u64::MAX }
    }
}

/// Two heartbeats further apart than this: the machine did not let the process run.
const STALL_US: u64 = 2_000_000;
/// The last answer of a Redis that was cut off may be so late.
const LATE_US: u64 = 5_000_000;

/// What the marks say of each blow, in the order of `blows`, and then of times when the machine itself stood still.
#[derive(Debug, Default)]
pub struct Told {
    /// What was in hand at each blow.
    pub interruptions: Vec<Interruption>,
    /// Times when no heartbeat came, and what lost its lease by it: freezes that nobody ordered.
    pub stalls: Vec<(Blow, Interruption)>,
    /// Leases that ran out because Redis, which nobody had cut off, did not answer their renewal, or not in time; records
    /// of which the producer does not know whether they are written.
    pub unanswered: Interruption,
}

/// Reads the marks of one process that has so many threads. A kill is the end of its file; a freeze is what was open when
/// it began; being cut off, or standing still with the machine, explains those whose lease ran out because of it.
///
/// # Errors
/// When the file cannot be read, or holds a line that is none.
pub fn read(path: &Path, blows: &[Blow], threads: usize) -> io::Result<Told> {
    let mut all = blows.to_vec();
    let mut beat = None;
    each_line(path, |line| {
        if line.step == Step::Alive
            && let Some(from_us) = beat.replace(line.at_us)
        {
            let to_us = line.at_us;
            let ordered = |b: &Blow| b.cause == Cause::Frozen && from_us <= b.to_us && to_us >= b.from_us;
            if to_us.saturating_sub(from_us) > STALL_US && !blows.iter().any(ordered) {
                all.push(Blow { cause: Cause::Stalled, from_us, to_us });
            }
        }
    })?;
    let told = all.iter().map(|b| Interruption { cause: b.cause, threads, ..Interruption::default() }).collect();
    let mut reader = Reader {
        blows: &all,
        told,
        unanswered: Interruption { cause: Cause::Unanswered, threads, ..Interruption::default() },
        open: HashMap::new(),
        froze: vec![false; all.len()],
        zombies: HashMap::new(),
    };
    each_line(path, |line| reader.take(line))?;
    reader.end();
    let Reader { mut told, unanswered, .. } = reader;
    let stalls = told.split_off(blows.len());
    Ok(Told { interruptions: told, stalls: all.iter().copied().skip(blows.len()).zip(stalls).collect(), unanswered })
}

type CopyOf = (String, u64);

/// Claimed and not settled.
struct Open {
    held: Held,
    /// Its handler is through.
    handled: bool,
    /// Its last renewal was not answered, or not before the lease was over.
    missed: bool,
}

struct Reader<'a> {
    blows: &'a [Blow],
    told: Vec<Interruption>,
    unanswered: Interruption,
    open: HashMap<CopyOf, Open>,
    /// By blow: a freeze that has begun.
    froze: Vec<bool>,
    /// Claimed, and nothing more, when the process was frozen by this blow; whether its handler was through.
    zombies: HashMap<CopyOf, (usize, bool)>,
}

impl Reader<'_> {
    fn take(&mut self, line: Line) {
        let Line { at_us: at, step, hop, id } = line;
        for (n, blow) in self.blows.iter().enumerate() {
            if blow.cause == Cause::Frozen && at >= blow.from_us && !self.froze[n] {
                self.froze[n] = true;
                self.told[n].in_hand = self.open.values().map(|open| open.held.clone()).collect();
                let claimed = self.open.iter().filter(|(_, open)| open.held.how == InHand::Claimed);
                self.zombies = claimed.map(|(copy, open)| (copy.clone(), (n, open.handled))).collect();
            }
        }
        let copy = (id, hop);
        match step {
            Step::Claimed { fence, leased_until_us } => {
                let held = Held { id: copy.0.clone(), hop, how: InHand::Claimed, fence, leased_until_us };
                self.zombies.remove(&copy);
                if let Some(before) = self.open.insert(copy, Open { held, handled: false, missed: false }) {
                    self.lapsed(&before, at);
                }
            }
            Step::Renewed { leased_until_us } => {
                self.zombies.remove(&copy);
                if let Some(mut open) = self.open.remove(&copy) {
                    // The lease was over when the answer came: the worker may have given it up by then.
                    open.missed = true;
                    self.lapsed(&open, at);
                    open.missed = false;
                    open.held.leased_until_us = leased_until_us;
                    self.open.insert(copy, open);
                }
            }
            Step::NotRenewed => {
                if let Some(open) = self.open.get_mut(&copy) {
                    open.missed = true;
                }
            }
            Step::Handled => {
                if let Some(open) = self.open.get_mut(&copy) {
                    open.handled = true;
                }
            }
            Step::Published | Step::Settling => self.act(copy, step),
            Step::Acknowledged => {
                if let Some(open) = self.open.get_mut(&copy) {
                    open.held.how = InHand::Acknowledged;
                }
            }
            Step::Unacknowledged => self.unanswered.unacknowledged.push(copy),
            // Known: the claim before, if there was one, was lost on the way.
            Step::Settled | Step::Released | Step::Known => {
                self.zombies.remove(&copy);
                if let Some(open) = self.open.remove(&copy) {
                    self.lapsed(&open, at);
                }
            }
            Step::Busy | Step::Alive => {}
        }
    }

    /// It hands a copy on or settles it. A process that was woken after its lease must not, but for what it had decided
    /// before: then its handler was through, and the end is the truth.
    fn act(&mut self, copy: CopyOf, step: Step) {
        let Some(Open { held, .. }) = self.open.get_mut(&copy) else { return };
        if step == Step::Published {
            held.how = InHand::Published;
        }
        let Some((n, handled)) = self.zombies.remove(&copy) else { return };
        let Interruption { in_hand, zombie, .. } = &mut self.told[n];
        if held.leased_until_us >= self.blows[n].to_us || (handled && step == Step::Settling) {
            return;
        }
        if step == Step::Published {
            // Its threads were in the middle of that when they were frozen, or the ledger will say how many were not.
            in_hand.iter_mut().filter(|h| (&h.id, h.hop) == (&copy.0, copy.1)).for_each(|h| h.how = InHand::Published);
        }
        zombie.push(copy);
    }

    fn end(&mut self) {
        // What is open at the end never got a last word: a kill has it, and a lease that ran out before.
        let ended = self.blows.iter().filter(|b| b.cause == Cause::Killed).map(|b| b.from_us).min().unwrap_or(u64::MAX);
        let open: Vec<Open> = std::mem::take(&mut self.open).into_values().collect();
        for open in &open {
            self.lapsed(open, ended);
        }
        let open: Vec<Held> = open.into_iter().map(|open| open.held).collect();
        for (n, blow) in self.blows.iter().enumerate() {
            let never_seen = blow.cause == Cause::Frozen && !self.froze[n];
            if blow.cause == Cause::Killed || never_seen {
                self.told[n].in_hand.clone_from(&open);
            }
        }
    }

    /// A lease that ran out before `ended`, for want of a renewal: what kept the renewal away explains it, if that was
    /// the time.
    fn lapsed(&mut self, Open { held, missed, .. }: &Open, ended: u64) {
        let until = held.leased_until_us;
        // A frozen process renews nothing, whatever Redis does: the freeze has it already.
        let frozen = |(blow, told): (&Blow, &Interruption)| {
            let held = |h: &Held| (h.fence, &h.id, h.hop) == (held.fence, &held.id, held.hop);
            blow.cause == Cause::Frozen && until < blow.to_us && told.in_hand.iter().any(held)
        };
        if until >= ended || self.blows.iter().zip(&self.told).any(frozen) {
            return;
        }
        let mut explained = false;
        for (blow, told) in self.blows.iter().zip(&mut self.told) {
            // The renewals that failed lie within the lease's last two thirds; an answer may take some time more.
            let late = match blow.cause {
                Cause::CutOff => LATE_US,
                Cause::Stalled => STALL_US,
                Cause::Killed | Cause::Frozen | Cause::Unanswered | Cause::Forgotten => continue,
            };
            if until >= blow.from_us && until <= blow.to_us.saturating_add(late) {
                told.in_hand.push(held.clone());
                explained = true;
            }
        }
        if *missed && !explained {
            self.unanswered.in_hand.push(held.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &str, blows: &[Blow]) -> Told {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        read(file.path(), blows, 2).unwrap()
    }

    fn ids(interruption: &Interruption) -> Vec<(&str, InHand)> {
        let mut ids: Vec<_> = interruption.in_hand.iter().map(|h| (h.id.as_str(), h.how)).collect();
        ids.sort_by_key(|(id, _)| *id);
        ids
    }

    const LINES: &str = "c 100 0 a 7 5000\nc 100 0 b 7 5000\nc 110 1 c 8 5000\np 200 0 b\nn 250 0 a 6000\ns 300 1 c\n\
                         a 400 0 b\ns 9000 0 b\n";

    #[test]
    fn a_kill_holds_what_is_open_at_the_end() {
        let told = told(LINES, &[Blow { from_us: 9_500, ..Blow::kill() }]);
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
        assert!(told.interruptions[0].zombie.is_empty());
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
        // What it claimed when it was awake again is the cut's.
        let lines = "c 8100 0 d 9 13000\ns 14000 0 d\n";
        assert_eq!(ids(&told(lines, &[cut(8_200, 13_500), freeze]).interruptions[0]), [("d", InHand::Claimed)]);
    }

    #[test]
    fn what_a_process_woken_after_the_lease_does_anew_is_told() {
        fn check(lines: &str, zombie: &[&str]) {
            let blow = Blow { cause: Cause::Frozen, from_us: 150, to_us: 8_000 };
            let told = told(lines, &[blow]);
            let deeds: Vec<_> = told.interruptions[0].zombie.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(deeds, zombie, "{lines}");
        }
        check("c 100 0 a 7 5000\np 8001 0 a\nt 8002 0 a\n", &["a"]);
        check("c 100 0 a 7 5000\ne 8001 0 a\nt 8002 0 a\n", &["a"]);
        // Its lease goes on, or it has it again.
        check("c 100 0 a 7 9000\np 8001 0 a\n", &[]);
        check("c 100 0 a 7 5000\nn 8001 0 a 9999\np 8002 0 a\n", &[]);
        check("c 100 0 a 7 5000\nc 8001 0 a 8 9999\np 8002 0 a\n", &[]);
        // Its handler was through, so its end is the truth; a failure must not go on all the same.
        check("c 100 0 a 7 5000\ne 120 0 a\nt 8001 0 a\n", &[]);
        check("c 100 0 a 7 5000\ne 120 0 a\np 8001 0 a\n", &["a"]);
        // It was with the producer already.
        check("c 100 0 a 7 5000\np 120 0 a\na 8001 0 a\nt 8002 0 a\n", &[]);
        // In the middle of handing it on: that explains a second copy.
        let blow = Blow { cause: Cause::Frozen, from_us: 150, to_us: 8_000 };
        assert_eq!(ids(&told("c 100 0 a 7 5000\np 8001 0 a\n", &[blow]).interruptions[0]), [("a", InHand::Published)]);
    }

    #[test]
    fn a_machine_that_stands_still_explains_only_leases_that_ran_out_by_it() {
        // `a` loses its lease, `b` is renewed in time, `c` was done before, `d` comes after.
        let lines = "h 1 0 -\nc 100 0 a 7 3000000\nc 100 0 b 7 4500000\nc 100 0 c 7 3000000\ns 200 0 c\nh 500000 0 -\n\
                     h 4000000 0 -\nc 4000000 0 d 8 9000000\nn 4000001 0 b 9000000\ns 4000002 0 a\ns 8000000 0 b\n";
        let told_ = told(lines, &[]);
        let [(blow, stall)] = told_.stalls.as_slice() else { panic!("{told_:?}") };
        assert_eq!(*blow, Blow { cause: Cause::Stalled, from_us: 500_000, to_us: 4_000_000 });
        assert_eq!(ids(stall), [("a", InHand::Claimed)]);
        let ordered = Blow { cause: Cause::Frozen, from_us: 600_000, to_us: 3_900_000 };
        assert!(told(lines, &[ordered]).stalls.is_empty());
    }

    #[test]
    fn a_lease_that_redis_did_not_renew_in_time_is_explained_and_one_that_nobody_renewed_is_not() {
        // `a` is not answered, `b` only after its lease, `c` in time, `d` never asked for; all are claimed again.
        let lines = "c 100 0 a 7 5000\nc 100 0 b 7 5000\nc 100 0 c 7 5000\nc 100 0 d 7 5000\nm 4000 0 a\nm 4000 0 c\n\
                     n 4500 0 c 9000\nn 6000 0 b 9000\nc 9500 0 a 8 15000\nc 9500 0 b 8 15000\nc 9500 0 c 8 15000\n\
                     c 9500 0 d 8 15000\ns 9600 0 a\ns 9600 0 b\ns 9600 0 c\ns 9600 0 d\n";
        let told_ = told(lines, &[]);
        assert_eq!(ids(&told_.unanswered), [("a", InHand::Claimed), ("b", InHand::Claimed)]);
        let cut = Blow { cause: Cause::CutOff, from_us: 3_000, to_us: 5_000 };
        assert_eq!(ids(&told(lines, &[cut]).unanswered), [], "the blow has them");
    }

    #[test]
    fn moves_that_may_be_written_or_not_are_told_as_often_as_that_was_so() {
        let lines = "c 100 1 a 7 5000\np 200 1 a\nu 300 1 a\np 400 1 a\nu 500 1 a\np 600 1 a\na 700 1 a\ns 800 1 a\n";
        let unanswered = told(lines, &[]).unanswered;
        assert_eq!(unanswered.unacknowledged, [("a".to_owned(), 1), ("a".to_owned(), 1)]);
        assert_eq!(ids(&unanswered), []);
    }

    #[test]
    fn lines_read_back_and_one_that_is_none_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |step| Line { at_us: 1, step, hop: 2, id: "a".into() };
        let claimed = Step::Claimed { fence: 3, leased_until_us: 4 };
        let lines: Vec<_> =
            [claimed, Step::Renewed { leased_until_us: 5 }, Step::Busy, Step::Known, Step::Handled, Step::Published]
                .into_iter()
                .chain([Step::Acknowledged, Step::Settling, Step::Settled, Step::Released, Step::Alive])
                .chain([Step::NotRenewed, Step::Unacknowledged])
                .map(line)
                .collect();
        Marks::create(file.path()).unwrap().write(&lines).unwrap();
        let mut read_back = Vec::new();
        each_line(file.path(), |line| read_back.push(line)).unwrap();
        assert_eq!(read_back, lines);

        for line in ["x 1 0 a", "c 1 0 a", "s one 0 a", "", "n 1 0 a"] {
            std::fs::write(file.path(), format!("{line}\n")).unwrap();
            assert!(read(file.path(), &[], 2).is_err(), "{line:?}");
        }
        std::fs::write(file.path(), "s 1 0 a\nc 1 0 a 7").unwrap();
        assert!(read(file.path(), &[], 2).is_ok(), "cut off in the middle of a line");
    }
}
