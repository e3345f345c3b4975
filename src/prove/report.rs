//! The verdict of a run: figures, faults and what they explain, invariants; as text for people and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::ledger::{Cause, InHand, Interruption, Invariant, Ledger, StageFigures, Summary};
use super::plan::Fault;

/// Breaches of one invariant that are shown.
const EXAMPLES: usize = 10;

/// A fault as it struck.
#[derive(Clone, Debug)]
pub struct Struck {
    /// Whom it hit in the end.
    pub fault: Fault,
    /// When, from the first event on.
    pub at: Duration,
    /// Copies claimed, with the producer, acknowledged and not recorded: in hand of those that it hit.
    pub in_hand: [usize; 3],
    /// Copies that a woken process handed on or settled anew after their lease.
    pub zombie: usize,
}

/// A time when the machine did not let a worker run.
#[derive(Clone, Debug)]
pub struct Stall {
    /// Which.
    pub worker: String,
    /// For how long.
    pub lasted: Duration,
    /// Copies that lost their lease by it.
    pub held: usize,
}

/// What explains repeats, and no fault of the plan did it.
#[derive(Clone, Copy, Debug, Default)]
struct Unanswered {
    /// Leases that ran out because Redis did not answer their renewal in time.
    leases: usize,
    /// Times that the producer did not learn whether a record is written.
    records: usize,
}

impl Struck {
    /// A fault whose effect is not known yet.
    pub fn new(fault: Fault, at: Duration) -> Self {
        Self { fault, at, in_hand: [0; 3], zombie: 0 }
    }

    /// Counts what one process had in hand.
    pub fn held(&mut self, interruption: &Interruption) {
        self.zombie += interruption.zombie.len();
        for held in &interruption.in_hand {
            self.in_hand[match held.how {
                InHand::Claimed => 0,
                InHand::Published => 1,
                InHand::Acknowledged => 2,
            }] += 1;
        }
    }
}

/// One invariant's outcome.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Which.
    pub invariant: Invariant,
    /// How often it was broken.
    pub breaches: usize,
    /// The first of them.
    pub examples: Vec<String>,
}

/// The verdict of one round, or of several added up.
#[derive(Clone, Debug)]
pub struct Report {
    seeds: Vec<u64>,
    summary: Summary,
    stages: Vec<StageFigures>,
    lateness_us: Vec<u64>,
    faults: Vec<Struck>,
    stalls: Vec<Stall>,
    unanswered: Unanswered,
    /// One for each invariant, in order.
    pub verdicts: Vec<Verdict>,
    /// What went wrong beyond the ledger.
    pub problems: Vec<String>,
    wall: Duration,
}

impl Report {
    /// Judges.
    pub fn new(
        seed: u64,
        ledger: &Ledger,
        faults: Vec<Struck>,
        stalls: Vec<Stall>,
        problems: Vec<String>,
        wall: Duration,
    ) -> Self {
        let mut verdicts: Vec<Verdict> = Invariant::ALL
            .iter()
            .map(|invariant| Verdict { invariant: *invariant, breaches: 0, examples: Vec::new() })
            .collect();
        for finding in ledger.findings() {
            if let Some(verdict) = verdicts.iter_mut().find(|v| v.invariant == finding.invariant) {
                verdict.breaches += 1;
                if verdict.examples.len() < EXAMPLES {
                    verdict.examples.push(finding.text);
                }
            }
        }
        let (summary, stages) = (ledger.summary(), ledger.stage_figures());
        let lateness_us = ledger.lateness_us();
        let mut unanswered = Unanswered::default();
        for interruption in ledger.interruptions.iter().filter(|i| i.cause == Cause::Unanswered) {
            unanswered.leases += interruption.in_hand.len();
            unanswered.records += interruption.unacknowledged.len();
        }
        Self { seeds: vec![seed], summary, stages, lateness_us, faults, stalls, unanswered, verdicts, problems, wall }
    }

    /// Adds a later round.
    pub fn add(&mut self, other: Report) {
        self.seeds.extend(other.seeds);
        let (a, b) = (&mut self.summary, other.summary);
        a.produced += b.produced;
        a.done += b.done;
        a.dead_lettered += b.dead_lettered;
        a.executions += b.executions;
        a.repeated += b.repeated;
        a.copied_again += b.copied_again;
        a.ended_twice += b.ended_twice;
        for (a, b) in self.stages.iter_mut().zip(other.stages) {
            a.executions += b.executions;
            a.done += b.done;
            a.forwarded += b.forwarded;
            a.dead_lettered += b.dead_lettered;
        }
        self.lateness_us.extend(other.lateness_us);
        self.lateness_us.sort_unstable();
        let before = self.wall;
        self.faults.extend(other.faults.into_iter().map(|f| Struck { at: f.at + before, ..f }));
        self.stalls.extend(other.stalls);
        self.unanswered.leases += other.unanswered.leases;
        self.unanswered.records += other.unanswered.records;
        for (a, b) in self.verdicts.iter_mut().zip(other.verdicts) {
            a.breaches += b.breaches;
            a.examples.extend(b.examples);
            a.examples.truncate(EXAMPLES);
        }
        self.problems.extend(other.problems);
        self.wall += other.wall;
    }

    /// Whether all held.
    pub fn is_proved(&self) -> bool {
        self.problems.is_empty() && self.verdicts.iter().all(|v| v.breaches == 0)
    }

    fn breaches(&self, invariant: Invariant) -> usize {
        self.verdicts.iter().filter(|v| v.invariant == invariant).map(|v| v.breaches).sum()
    }

    /// In milliseconds.
    fn lateness(&self, share: f64) -> f64 {
        let all = &self.lateness_us;
        let at = ((all.len() as f64 * share).ceil() as usize).clamp(1, all.len().max(1)) - 1;
        all.get(at).map_or(0.0, |us| *us as f64 / 1_000.0)
    }

    /// The figures in one line.
    pub fn line(&self) -> String {
        let unexplained = self.breaches(Invariant::RepeatsExplained);
        format!("{}, {unexplained} unexplained, {} faults", self.summary, self.faults.len())
    }

    /// For machines: the contract's fields first, then what is behind them.
    pub fn json(&self) -> Value {
        let Summary { produced, done, dead_lettered, executions, repeated, copied_again, ended_twice } = self.summary;
        let stage = |s: &StageFigures| {
            json!({ "stage": s.stage, "executions": s.executions, "done": s.done, "forwarded": s.forwarded,
                "dead_lettered": s.dead_lettered })
        };
        let fault = |s: &Struck| {
            let [claimed, published, acknowledged] = s.in_hand;
            json!({ "at_s": s.at.as_secs_f64(), "what": s.fault.to_string(), "in_hand": {
                "claimed": claimed, "published": published, "acknowledged": acknowledged },
                "zombie": s.zombie })
        };
        let stall = |s: &Stall| json!({ "worker": s.worker, "seconds": s.lasted.as_secs_f64(), "leases_lost": s.held });
        let verdict = |v: &Verdict| {
            json!({ "name": v.invariant.name(), "says": v.invariant.says(), "holds": v.breaches == 0,
                "breaches": v.breaches, "examples": v.examples })
        };
        json!({
            "produced": produced, "done": done, "dead_lettered": dead_lettered,
            "lost": self.breaches(Invariant::NothingLost), "executions": executions,
            "repeated_unexplained": self.breaches(Invariant::RepeatsExplained),
            "early": self.breaches(Invariant::NeverEarly),
            "lateness_ms": { "p50": self.lateness(0.5), "p99": self.lateness(0.99), "max": self.lateness(1.0) },
            "stages": self.stages.iter().map(stage).collect::<Vec<_>>(),
            "proved": self.is_proved(), "repeated": repeated, "copied_again": copied_again,
            "ended_twice": ended_twice, "seeds": self.seeds, "seconds": self.wall.as_secs_f64(),
            "faults": self.faults.iter().map(fault).collect::<Vec<_>>(),
            "stalls": self.stalls.iter().map(stall).collect::<Vec<_>>(),
            "unanswered": { "leases_lost": self.unanswered.leases, "records": self.unanswered.records },
            "invariants": self.verdicts.iter().map(verdict).collect::<Vec<_>>(),
            "problems": self.problems,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).ok(); // a `String` takes everything
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Summary { produced, done, dead_lettered, executions, repeated, copied_again, ended_twice } = self.summary;
        // Of hours, nobody reads every fault: they were told as they struck, and the JSON has them.
        let one_round = self.seeds.len() == 1;
        if one_round {
            writeln!(
                out,
                "\n  at        fault                                         in hand: claimed  with the producer  acked"
            )?;
        }
        for Struck { fault, at, in_hand: [claimed, published, acked], zombie } in
            self.faults.iter().filter(|_| one_round)
        {
            write!(out, "{:6.1} s    {:<54}{claimed:8}{published:19}{acked:7}", at.as_secs_f64(), fault.to_string())?;
            if *zombie > 0 {
                write!(out, "  {zombie} done anew after waking")?;
            }
            writeln!(out)?;
        }
        for Stall { worker, lasted, held } in &self.stalls {
            let lasted = lasted.as_secs_f64();
            writeln!(out, "  the machine let {worker} stand still for {lasted:.1} s: {held} leases ran out by it")?;
        }
        let Unanswered { leases, records } = self.unanswered;
        if leases + records > 0 {
            writeln!(
                out,
                "  beyond the plan: {leases} leases that Redis did not renew in time, {records} records without an answer"
            )?;
        }
        writeln!(out, "\n  stage      executions      done  forwarded  dead-lettered")?;
        for s in &self.stages {
            writeln!(
                out,
                "  {:<10} {:10} {:9} {:10} {:14}",
                s.stage, s.executions, s.done, s.forwarded, s.dead_lettered
            )?;
        }
        let unexplained = self.breaches(Invariant::RepeatsExplained);
        writeln!(out)?;
        writeln!(out, "  produced                {produced:10}")?;
        writeln!(out, "  done                    {done:10}")?;
        writeln!(
            out,
            "  dead-lettered           {dead_lettered:10}   ({ended_twice} ended twice, each explained unless told below)"
        )?;
        writeln!(out, "  lost                    {:10}", self.breaches(Invariant::NothingLost))?;
        writeln!(out, "  executions              {executions:10}")?;
        writeln!(out, "  executed more than once {repeated:10}   ({unexplained} not explained by a fault)")?;
        writeln!(out, "  records of one move twice {copied_again:8}")?;
        writeln!(out, "  started early           {:10}", self.breaches(Invariant::NeverEarly))?;
        let (p50, p99, max) = (self.lateness(0.5), self.lateness(0.99), self.lateness(1.0));
        writeln!(
            out,
            "  lateness                p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms (faults included)\n"
        )?;
        for v in &self.verdicts {
            let mark = if v.breaches == 0 { "holds" } else { "BROKEN" };
            writeln!(out, "  {mark:<7} {:<18} {}", v.invariant.name(), v.invariant.says())?;
            for example in &v.examples {
                writeln!(out, "            {example}")?;
            }
            if v.breaches > v.examples.len() {
                writeln!(out, "            … {} in all", v.breaches)?;
            }
        }
        for problem in &self.problems {
            writeln!(out, "  PROBLEM {problem}")?;
        }
        let verdict = match (self.is_proved(), self.verdicts.iter().all(|v| v.breaches == 0)) {
            (true, _) => "the promise held",
            (false, true) => "NOT PROVED",
            (false, false) => "THE PROMISE WAS BROKEN",
        };
        let (faults, wall) = (self.faults.len(), self.wall.as_secs_f64());
        write!(out, "\n  {verdict}: {faults} faults in {wall:.0} s, ")?;
        match self.seeds.as_slice() {
            [seed] => writeln!(out, "seed {seed}")?,
            seeds => {
                let (first, last) = (seeds.first().unwrap_or(&0), seeds.last().unwrap_or(&0));
                writeln!(out, "{} rounds, seeds {first} to {last}", seeds.len())?;
            }
        }
        if let (false, Some(seed)) = (self.is_proved(), self.seeds.last()) {
            writeln!(out, "  the last round's plan again, topics and the workers' files kept: --seed {seed} --keep")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::ledger::Held;

    fn report(interruptions: Vec<Interruption>) -> Report {
        let (stages, produced, executions, keys) = Default::default();
        let ledger = Ledger { group: "g".into(), stages, produced, executions, interruptions, keys };
        Report::new(1, &ledger, vec![], vec![], vec![], Duration::ZERO)
    }

    #[test]
    fn what_explains_repeats_and_was_no_fault_of_the_plan_is_told() {
        let held = Held { id: "a".into(), hop: 0, how: InHand::Claimed, fence: 1, leased_until_us: 1 };
        let (in_hand, unacknowledged) = (vec![held; 2], vec![("a".to_owned(), 0); 3]);
        let planned = Interruption { cause: Cause::CutOff, in_hand: in_hand.clone(), ..Interruption::default() };
        let unanswered = Interruption { cause: Cause::Unanswered, in_hand, unacknowledged, ..Interruption::default() };
        assert!(!report(vec![planned.clone()]).text().contains("beyond the plan"));
        let mut both = report(vec![planned, unanswered.clone()]);
        assert_eq!(both.json()["unanswered"], json!({ "leases_lost": 2, "records": 3 }));
        both.add(report(vec![unanswered]));
        assert_eq!(both.json()["unanswered"], json!({ "leases_lost": 4, "records": 6 }));
        assert!(both.text().contains("beyond the plan: 4 leases that Redis did not renew in time, 6 records"));
    }
}
