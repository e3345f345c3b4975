//! The books of one run, by outside evidence alone, and everything that is wrong with them.
//!
//! Evidence: what the producer got acknowledged, the records of every topic read back as raw bytes, the handler's own
//! file of executions, what each interrupted process had in hand, the groups' offsets, the keys in Redis. Nothing here
//! uses the rest of the crate: header names are compared as text and numbers are read digit by digit, so that a fault of
//! its codec cannot hide itself. [`Ledger::findings`] holds the delivery promise of the README to them.
//!
//! Assumes that ids are unique and no event is deferred (`Retry-After`) or redriven: attempt `a` runs on stage `a − 1`.
//! Time and memory grow with the number of events and records, no faster.

mod evidence;
mod index;
mod records;
mod runs;

use std::collections::BTreeSet;
use std::fmt;

pub use evidence::{
    Cause, Copy, Execution, Fate, Header, Held, InHand, Interruption, Produced, Stage, read_executions,
};
use index::Index;

/// Everything that is known of one run.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Consumer group of the pipeline.
    pub group: String,
    /// Main first, the DLQ last.
    pub stages: Vec<Stage>,
    /// Every event that the broker acknowledged.
    pub produced: Vec<Produced>,
    /// In the order of each handler's file.
    pub executions: Vec<Execution>,
    /// Kills, freezes and what else explains a second execution.
    pub interruptions: Vec<Interruption>,
    /// Keys in Redis and their values.
    pub keys: Vec<(String, Vec<u8>)>,
}

/// What must hold of every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// Every acknowledged event is on the main topic.
    Kept,
    /// Every event is done or in the DLQ.
    NothingLost,
    /// … in one of them and once, unless an interruption explains it.
    EndsOnce,
    /// It was executed as often as its fate says, and ended as its fate says.
    Attempts,
    /// A second execution of one copy is explained by an interruption that held it.
    RepeatsExplained,
    /// A second record of one move is, too.
    CopiesExplained,
    /// No execution starts before its due.
    NeverEarly,
    /// Fences grow, a lease keeps others away, one copy never runs twice at the same time, and whoever wakes after its
    /// leases does nothing anew.
    OneAtATime,
    /// Key, value and foreign headers pass unchanged; our own are as the contract says.
    Faithful,
    /// At the end every group has committed the end of its log, and no claim is left in Redis.
    Settled,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Invariant; 10] = [
        Invariant::Kept,
        Invariant::NothingLost,
        Invariant::EndsOnce,
        Invariant::Attempts,
        Invariant::RepeatsExplained,
        Invariant::CopiesExplained,
        Invariant::NeverEarly,
        Invariant::OneAtATime,
        Invariant::Faithful,
        Invariant::Settled,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Invariant::Kept => "kept",
            Invariant::NothingLost => "nothing_lost",
            Invariant::EndsOnce => "ends_once",
            Invariant::Attempts => "attempts",
            Invariant::RepeatsExplained => "repeats_explained",
            Invariant::CopiesExplained => "copies_explained",
            Invariant::NeverEarly => "never_early",
            Invariant::OneAtATime => "one_at_a_time",
            Invariant::Faithful => "faithful",
            Invariant::Settled => "settled",
        }
    }

    /// What it says.
    pub fn says(self) -> &'static str {
        match self {
            Invariant::Kept => "every acknowledged event is on the main topic",
            Invariant::NothingLost => "every event is done or in the DLQ",
            Invariant::EndsOnce => "and ends once, unless cut between an acknowledgement and its record",
            Invariant::Attempts => "executed as often as its fate says, and ended as its fate says",
            Invariant::RepeatsExplained => "every second execution is explained by a fault that held the copy",
            Invariant::CopiesExplained => "every second record of one move is, too",
            Invariant::NeverEarly => "no execution starts before its due",
            Invariant::OneAtATime => {
                "fences grow, leases keep others away, no copy runs twice at a time, no zombie acts"
            }
            Invariant::Faithful => "key, value and foreign headers pass unchanged, ours are right",
            Invariant::Settled => "every group has committed its log's end, no claim is left in Redis",
        }
    }
}

/// One breach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of what.
    pub invariant: Invariant,
    /// The event or place, and what is wrong.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Collects breaches.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn say(&mut self, invariant: Invariant, text: String) {
        self.0.push(Finding { invariant, text });
    }
}

/// The figures of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events acknowledged.
    pub produced: usize,
    /// Events that a handler finished.
    pub done: usize,
    /// Events in the DLQ.
    pub dead_lettered: usize,
    /// Starts of the handler.
    pub executions: usize,
    /// Executions of one copy beyond its first.
    pub repeated: usize,
    /// Records beyond the first of one move.
    pub copied_again: usize,
    /// Events with a second terminal state.
    pub ended_twice: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} produced, {} done, {} dead-lettered, {} executions ({} repeated), {} copied again, {} ended twice",
            self.produced,
            self.done,
            self.dead_lettered,
            self.executions,
            self.repeated,
            self.copied_again,
            self.ended_twice
        )
    }
}

/// The figures of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageFigures {
    /// Its name.
    pub stage: String,
    /// Starts of the handler there.
    pub executions: usize,
    /// Events done there.
    pub done: usize,
    /// Events that moved from there to the next stage.
    pub forwarded: usize,
    /// Events that moved from there to the DLQ.
    pub dead_lettered: usize,
}

/// The first header of this name, as text.
pub fn text<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    let (_, value) = headers.iter().find(|(n, _)| n == name)?;
    std::str::from_utf8(value.as_deref()?).ok()
}

/// A header that must be digits and nothing else.
fn number(headers: &[Header], name: &str) -> Result<u64, String> {
    let value = text(headers, name).ok_or_else(|| format!("no {name}"))?;
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{name} is {value:?}, no number"));
    }
    value.parse().map_err(|_| format!("{name} is {value:?}, too large"))
}

impl Ledger {
    /// Everything that breaks the promise; empty when all is well.
    pub fn findings(&self) -> Vec<Finding> {
        let index = Index::new(self);
        let mut findings = Findings::default();
        records::check(self, &index, &mut findings);
        runs::check(self, &index, &mut findings);
        for stage in &self.stages {
            for (partition, committed, end) in stage.offsets.iter().filter(|(_, committed, end)| committed != end) {
                let name = &stage.name;
                let text = format!("{name} partition {partition}: committed {committed}, the log ends at {end}");
                findings.say(Invariant::Settled, text);
            }
        }
        for (key, value) in &self.keys {
            if value != b"1" && value != b"F" {
                let value = String::from_utf8_lossy(value);
                let text = format!("redis: {key} holds {value}, should be 1 or F: a claim was left behind");
                findings.say(Invariant::Settled, text);
            }
        }
        findings.0
    }

    /// The same, one line each.
    pub fn faults(&self) -> Vec<String> {
        self.findings().into_iter().map(|finding| finding.text).collect()
    }

    /// The figures.
    pub fn summary(&self) -> Summary {
        let index = Index::new(self);
        let mut summary =
            Summary { produced: self.produced.len(), executions: self.executions.len(), ..Summary::default() };
        for event in &self.produced {
            let (done, dead) = index.ends(&event.id);
            summary.done += usize::from(!done.is_empty());
            summary.dead_lettered += usize::from(dead > 0);
            summary.ended_twice += usize::from(done.len() + dead > 1);
        }
        for executions in index.executions.values() {
            let attempts: BTreeSet<u32> = executions.iter().map(|e| e.attempt).collect();
            summary.repeated += executions.len() - attempts.len();
        }
        summary.copied_again =
            index.copies.iter().skip(1).flat_map(|stage| stage.values()).map(|copies| copies.len() - 1).sum();
        summary
    }

    /// The figures of each stage that executes.
    pub fn stage_figures(&self) -> Vec<StageFigures> {
        let index = Index::new(self);
        let executing = self.stages.len().saturating_sub(1);
        let mut figures: Vec<StageFigures> = self.stages[..executing]
            .iter()
            .map(|stage| StageFigures { stage: stage.name.clone(), ..StageFigures::default() })
            .collect();
        for executions in index.executions.values() {
            for (at, stage) in (1_u32..).zip(&mut figures) {
                let of_stage = || executions.iter().filter(|e| e.attempt == at);
                stage.executions += of_stage().count();
                stage.done += usize::from(of_stage().any(|e| e.is_done()));
            }
        }
        for (at, stage) in figures.iter_mut().enumerate() {
            stage.forwarded = if at + 1 < executing { index.copies[at + 1].len() } else { 0 };
        }
        for copies in index.copies.last().into_iter().flat_map(|dlq| dlq.values()) {
            let from: BTreeSet<u64> = copies.iter().filter_map(|c| number(&c.headers, "x-ladder-stage").ok()).collect();
            for from in from {
                if let Some(stage) = usize::try_from(from).ok().and_then(|from| figures.get_mut(from)) {
                    stage.dead_lettered += 1;
                }
            }
        }
        figures
    }

    /// How late each execution of a retry stage started, in microseconds, ascending. Early starts are not in it.
    pub fn lateness_us(&self) -> Vec<u64> {
        let index = Index::new(self);
        let late = |e: &Execution| {
            let due = index.due_of(e)?.ok()?;
            e.started_us.checked_sub(due.saturating_mul(1_000))
        };
        let mut all: Vec<u64> = self.executions.iter().filter(|e| e.attempt > 1).filter_map(late).collect();
        all.sort_unstable();
        all
    }
}
