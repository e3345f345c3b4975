//! The books of one run, by outside evidence alone, and everything that is wrong with them.
//!
//! Evidence: what the producer got acknowledged, the records of every topic read back as raw bytes, the handler's own
//! file of executions, what each killed process had in hand, the groups' offsets, the keys in Redis. Nothing here uses
//! the crate under test: header names are compared as text and numbers are read digit by digit, so that a fault of its
//! codec cannot hide itself. [`Ledger::faults`] holds the delivery promise of the README to them.
//!
//! Assumes that no event is deferred (`Retry-After`) or redriven: attempt `a` runs on stage `a − 1`.

mod evidence;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

pub(crate) use evidence::{Copy, Execution, Fate, Header, Held, InHand, Kill, Produced, Stage, read_executions};

/// Redis counts leases in whole milliseconds.
const LEASE_SLACK_US: u64 = 5_000;

/// Everything that is known of one run.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) group: String,
    pub(crate) stages: Vec<Stage>,
    pub(crate) produced: Vec<Produced>,
    pub(crate) executions: Vec<Execution>,
    pub(crate) kills: Vec<Kill>,
    /// Keys in Redis and their values.
    pub(crate) keys: Vec<(String, Vec<u8>)>,
}

/// The figures of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) produced: usize,
    pub(crate) done: usize,
    pub(crate) dead_lettered: usize,
    pub(crate) executions: usize,
    /// Executions of one copy beyond its first.
    pub(crate) repeated: usize,
    /// Records beyond the first of one move.
    pub(crate) copied_again: usize,
    /// Events with a second terminal state.
    pub(crate) ended_twice: usize,
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

/// The first header of this name, as text.
pub(crate) fn text<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
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

/// Whether the ladder writes headers of this name itself.
fn is_own(name: &str) -> bool {
    ["x-ladder-", "__dlq.errors.", "kafka_dlt-"].iter().any(|prefix| name.starts_with(prefix))
}

impl Ledger {
    /// Everything that breaks the promise, one line each; empty when all is well.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.check_copies(&mut faults);
        self.check_executions(&mut faults);
        for event in &self.produced {
            self.check_end(event, &mut faults);
        }
        for stage in &self.stages {
            for (partition, committed, end) in stage.offsets.iter().filter(|(_, committed, end)| committed != end) {
                faults.push(format!(
                    "{} partition {partition}: committed {committed}, the log ends at {end}",
                    stage.name
                ));
            }
        }
        for (key, value) in &self.keys {
            if value != b"1" && value != b"F" {
                let value = String::from_utf8_lossy(value);
                faults.push(format!("redis: {key} holds {value}, should be 1 or F: a claim was left behind"));
            }
        }
        faults
    }

    /// The figures.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary =
            Summary { produced: self.produced.len(), executions: self.executions.len(), ..Summary::default() };
        for event in &self.produced {
            let (done, dead) = self.ends(&event.id);
            summary.done += usize::from(!done.is_empty());
            summary.dead_lettered += usize::from(dead > 0);
            summary.ended_twice += usize::from(done.len() + dead > 1);
        }
        let runs: BTreeSet<_> = self.executions.iter().map(|e| (&e.id, e.attempt)).collect();
        summary.repeated = self.executions.len() - runs.len();
        for stage in self.stages.iter().skip(1) {
            let moved: BTreeSet<_> = stage.copies.iter().map(|c| text(&c.headers, "x-ladder-event-id")).collect();
            summary.copied_again += stage.copies.len() - moved.len();
        }
        summary
    }

    /// The attempts at which it was done, and its records in the DLQ.
    fn ends(&self, id: &str) -> (BTreeSet<u32>, usize) {
        let succeeded = |e: &&Execution| e.id == id && matches!(&e.ended, Some((_, outcome)) if outcome == "done");
        let done = self.executions.iter().filter(succeeded).map(|e| e.attempt).collect();
        let dead = self.stages.last().map_or(0, |dlq| dlq.copies.iter().filter(|c| is_of(c, id)).count());
        (done, dead)
    }

    /// Kills that had this copy in hand, in one of these ways.
    fn kills_with(&self, id: &str, hop: u64, ways: &[InHand]) -> usize {
        let held = |kill: &&Kill| kill.in_hand.iter().any(|h| h.id == id && h.hop == hop && ways.contains(&h.how));
        self.kills.iter().filter(held).count()
    }

    /// Kills that may have lost what Redis should have been told of a move of this event. The broker's acknowledgement
    /// can be given before the process sees it, so a copy with the producer counts.
    fn kills_while_moving(&self, id: &str) -> usize {
        let ways = [InHand::Published, InHand::Acknowledged];
        let held = |kill: &&Kill| kill.in_hand.iter().any(|h| h.id == id && ways.contains(&h.how));
        self.kills.iter().filter(held).count()
    }

    // -------------------------------------------------------------------------------------------- records

    fn check_copies(&self, faults: &mut Vec<String>) {
        let Some((main, others)) = self.stages.split_first() else { return };
        let events: HashMap<&str, &Produced> = self.produced.iter().map(|event| (event.id.as_str(), event)).collect();
        for event in &self.produced {
            let at = |c: &&Copy| (c.partition, c.offset) == (event.record.partition, event.record.offset);
            match main.copies.iter().find(at) {
                None => faults.push(format!("{}: acknowledged, and not on the main topic", event.id)),
                Some(copy) => same_bytes(copy, event, &format!("{} on main", event.id), faults),
            }
        }
        for (index, stage) in others.iter().enumerate() {
            let mut moves: BTreeMap<(&str, u64), usize> = BTreeMap::new();
            for copy in &stage.copies {
                let place = format!("{} {}:{}", stage.name, copy.partition, copy.offset);
                let id = text(&copy.headers, "x-ladder-event-id");
                let Some(event) = id.and_then(|id| events.get(id)) else {
                    faults.push(format!("{place}: event id {id:?} was never produced"));
                    continue;
                };
                let place = format!("{} at {place}", event.id);
                same_bytes(copy, event, &place, faults);
                if let Err(fault) = self.check_headers(index + 1, copy, event, &place, faults) {
                    faults.push(format!("{place}: {fault}"));
                }
                let hop = number(&copy.headers, "x-ladder-hop").unwrap_or_default();
                *moves.entry((event.id.as_str(), hop)).or_default() += 1;
            }
            for ((id, hop), copies) in moves {
                let kills = self.kills_with(id, hop.wrapping_sub(1), &[InHand::Published, InHand::Acknowledged]);
                if copies > 1 + kills {
                    faults.push(format!(
                        "{id}: {copies} records of hop {hop} on {}, {kills} kills explain one more each",
                        stage.name
                    ));
                }
            }
        }
    }

    /// Our own headers of the copy on stage `index`, which is not main.
    fn check_headers(
        &self,
        index: usize,
        copy: &Copy,
        event: &Produced,
        place: &str,
        faults: &mut Vec<String>,
    ) -> Result<(), String> {
        let headers = &copy.headers;
        let mut say = |fault: String| faults.push(format!("{place}: {fault}"));
        let mut names = BTreeSet::new();
        for (name, _) in headers.iter().filter(|(name, _)| is_own(name)) {
            if !names.insert(name) {
                say(format!("{name} more than once"));
            }
        }
        let is_dlq = index + 1 == self.stages.len();
        // The stage that executed it last.
        let from = if is_dlq { number(headers, "x-ladder-stage")? } else { index as u64 - 1 };
        let charged = from + u64::from(event.fate != Fate::Poison);
        let main = event.record.partition;
        let origin = format!("{}:{main}:{}:{}", self.stages[0].topic, event.record.offset, event.record.timestamp_ms);
        let mut expect = vec![
            ("x-ladder-attempt", charged.to_string()),
            ("x-ladder-hop", (from + 1).to_string()),
            ("x-ladder-origin", origin),
            ("x-ladder-group", self.group.clone()),
        ];
        if !is_dlq {
            expect.push(("x-ladder-stage", index.to_string()));
        }
        for (name, right) in expect {
            match text(headers, name) {
                Some(value) if value == right => {}
                value => say(format!("{name} is {value:?}, should be {right:?}")),
            }
        }
        if copy.partition != main {
            say(format!("on partition {}, came from {main}", copy.partition));
        }
        if is_dlq {
            let last = self.stages.len() as u64 - 2;
            let class = match event.fate {
                Fate::Poison => "poison",
                Fate::Permanent | Fate::Heals { permanent: true } => "permanent",
                Fate::Fails(_) | Fate::Heals { permanent: false } => "exhausted",
            };
            let at = if class == "exhausted" { last } else { 0 };
            if from != at {
                say(format!("x-ladder-stage is {from}, it failed last on {at}"));
            }
            let error = text(headers, "x-ladder-error").unwrap_or_default();
            if !error.starts_with(&format!("{class}: ")) {
                say(format!("x-ladder-error is {error:?}, its class should be {class}"));
            }
            if text(headers, "x-ladder-due").is_some() {
                say("x-ladder-due on a dead letter".into());
            }
            return Ok(());
        }
        let due = number(headers, "x-ladder-due")?;
        let delay = self.stages[index].delay_ms;
        let before = |e: &&Execution| e.id == event.id && u64::from(e.attempt) == charged;
        let failed = self.executions.iter().filter(before).filter_map(|e| e.ended.as_ref().map(|(at, _)| at / 1_000));
        // Of several failures each has its own record; this one is not older than the first.
        if let Some(failed) = failed.min()
            && due < failed + delay
        {
            say(format!("due {} ms after the failure, the stage's delay is {delay} ms", due.saturating_sub(failed)));
        }
        Ok(())
    }

    // -------------------------------------------------------------------------------------------- executions

    fn check_executions(&self, faults: &mut Vec<String>) {
        let mut runs: BTreeMap<(&str, u32), Vec<&Execution>> = BTreeMap::new();
        for execution in &self.executions {
            runs.entry((&execution.id, execution.attempt)).or_default().push(execution);
            self.check_start(execution, faults);
            self.check_leases(execution, faults);
        }
        for ((id, attempt), mut runs) in runs {
            runs.sort_by_key(|e| e.started_us);
            let kills = self.kills_with(
                id,
                u64::from(attempt) - 1,
                &[InHand::Claimed, InHand::Published, InHand::Acknowledged],
            );
            if runs.len() > 1 + kills {
                faults.push(format!(
                    "{id}: attempt {attempt} was executed {} times, {kills} kills explain one more each: unexplained \
                     execution",
                    runs.len()
                ));
            }
            for pair in runs.windows(2) {
                if pair[1].fence <= pair[0].fence {
                    let (a, b) = (pair[0].fence, pair[1].fence);
                    faults.push(format!("{id}: attempt {attempt} again with fence {b}, the one before had {a}"));
                }
                if pair[0].ended.as_ref().is_some_and(|(end, _)| *end > pair[1].started_us) {
                    faults.push(format!("{id}: attempt {attempt} ran twice at the same time"));
                }
            }
        }
    }

    /// Nobody may execute what a killed process had claimed before its lease ends.
    fn check_leases(&self, execution: &Execution, faults: &mut Vec<String>) {
        let Execution { id, attempt, started_us, .. } = execution;
        for kill in &self.kills {
            let own = |held: &&Held| held.id == *id && held.hop + 1 == u64::from(*attempt);
            // An older fence is the killed process's own.
            if let Some(held) = kill.in_hand.iter().find(own)
                && execution.fence > held.fence
                && *started_us + LEASE_SLACK_US < held.leased_until_us
            {
                let early = (held.leased_until_us - started_us) / 1_000;
                faults
                    .push(format!("{id}: attempt {attempt} ran {early} ms before the lease of a killed process ended"));
            }
        }
    }

    fn check_start(&self, execution: &Execution, faults: &mut Vec<String>) {
        let Execution { id, attempt, started_us, .. } = execution;
        let index = (*attempt as usize).wrapping_sub(1);
        let executing = &self.stages[..self.stages.len() - 1];
        let Some(stage) = executing.get(index).filter(|stage| stage.name == execution.stage) else {
            faults.push(format!("{id}: attempt {attempt} ran on {}", execution.stage));
            return;
        };
        let given = |c: &&Copy| match execution.read {
            Some(place) => (c.partition, c.offset) == place,
            None => is_of(c, id),
        };
        let dues = stage.copies.iter().filter(given).map(|c| number(&c.headers, "x-ladder-due"));
        match dues.filter_map(Result::ok).min() {
            _ if index == 0 => {}
            Some(due) if *started_us >= due * 1_000 => {}
            Some(due) => {
                let early = due * 1_000 - started_us;
                faults.push(format!("{id}: attempt {attempt} started early, {early} us before its due"));
            }
            None => faults.push(format!("{id}: attempt {attempt} was given a record that is not on {}", stage.name)),
        }
    }

    // -------------------------------------------------------------------------------------------- ends

    fn check_end(&self, event: &Produced, faults: &mut Vec<String>) {
        let id = &event.id;
        let mut say = |fault: String| faults.push(format!("{id}: {fault}"));
        let stages = self.stages.len() as u32 - 1;
        let (done, dead) = self.ends(id);
        let attempts: BTreeSet<u32> = self.executions.iter().filter(|e| e.id == *id).map(|e| e.attempt).collect();
        // Attempts that must be made, and whether the last of them succeeds.
        let (last, succeeds) = match event.fate {
            Fate::Fails(n) if n < stages => (n + 1, true),
            Fate::Fails(_) => (stages, false),
            Fate::Permanent | Fate::Heals { permanent: true } => (1, false),
            Fate::Poison => (0, false),
            Fate::Heals { permanent: false } => (2, true),
        };
        let ends = done.len() + dead;
        let kills = self.kills_while_moving(id);
        let as_it_should = if succeeds { done.contains(&last) } else { dead > 0 };
        // It succeeds at any second execution, so a repeated one may be its end.
        let healed = matches!(event.fate, Fate::Heals { .. }) && !done.is_empty();
        if ends == 0 {
            say(format!("lost: neither done nor in the DLQ; attempts {attempts:?}"));
            return;
        }
        if !as_it_should && !healed {
            let right = if succeeds { format!("done at attempt {last}") } else { "in the DLQ".into() };
            say(format!("done at attempts {done:?}, {dead} in the DLQ; should be {right}"));
        }
        if ends > 1 + kills {
            say(format!(
                "a second terminal state: done at attempts {done:?}, {dead} in the DLQ, and {kills} kills between an \
                 acknowledgement and its record in redis"
            ));
        }
        let missing: Vec<u32> = (1..=last).filter(|a| !attempts.contains(a)).collect();
        if !missing.is_empty() && !healed {
            say(format!("attempts {missing:?} were never made"));
        }
        if let Some(beyond) = attempts.iter().find(|a| **a > last) {
            say(format!("attempt {beyond} was made, the last should be {last}"));
        }
    }
}

fn is_of(copy: &Copy, id: &str) -> bool {
    text(&copy.headers, "x-ladder-event-id") == Some(id)
}

/// Key, value and the headers of others, byte for byte and in their order.
fn same_bytes(copy: &Copy, event: &Produced, place: &str, faults: &mut Vec<String>) {
    let mut say = |what: &str| faults.push(format!("{place}: {what} differs from what was produced"));
    if copy.key != event.record.key {
        say("key");
    }
    if copy.value != event.record.value {
        say("value");
    }
    let foreign = |headers: &[Header]| headers.iter().filter(|(name, _)| !is_own(name)).cloned().collect::<Vec<_>>();
    if foreign(&copy.headers) != foreign(&event.record.headers) {
        say("a header of others");
    }
}
