//! The run in figures, and the checks that are about numbers: lost, early, repeated, twice in the DLQ.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::evidence::{Evidence, Faults};
use super::plan::End;
use super::workers::stage_name;

/// What is measured.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) produced: usize,
    pub(crate) done: usize,
    pub(crate) dead: BTreeMap<String, usize>,
    pub(crate) lost: usize,
    pub(crate) off_plan: usize,
    pub(crate) executions: usize,
    pub(crate) planned: usize,
    /// Records on retry topics and the DLQ when nothing goes wrong.
    pub(crate) moves: usize,
    /// Repeats of an execution whose process was killed.
    pub(crate) explained: usize,
    pub(crate) unexplained: usize,
    pub(crate) duplicate_copies: usize,
    pub(crate) duplicate_dead_letters: usize,
    pub(crate) overlaps: usize,
    pub(crate) early: usize,
    /// Server's arrival − due in microseconds, sorted, by retry stage: of all, and of those due away from a kill.
    pub(crate) lateness: [[Vec<u64>; 2]; 4],
    /// Requests by process.
    pub(crate) by_process: BTreeMap<String, usize>,
    pub(crate) kills: usize,
    pub(crate) wall: Duration,
}

impl Figures {
    /// Counts and judges. `recovery`: how long after a kill its stage may be behind. `in_hand`: events that a process may
    /// have in hand.
    pub(crate) fn of(evidence: &Evidence<'_>, recovery: Duration, in_hand: usize, faults: &mut Faults) -> Self {
        let plan = evidence.plan;
        let (done, dead) = (evidence.done(), evidence.dead());
        let off_plan = evidence.off_plan();
        let mut figures = Figures {
            produced: plan.events.len(),
            done: done.len(),
            off_plan: off_plan.len(),
            executions: evidence.requests.len(),
            planned: (0..4).map(|stage| plan.executions(stage)).sum(),
            moves: (1..4).map(|stage| plan.executions(stage)).sum::<usize>() + plan.dead(),
            kills: evidence.kills.len(),
            ..Figures::default()
        };
        for event in &plan.events {
            let id = event.id.as_str();
            let ends = (done.contains(id), dead.contains(id));
            if ends == (false, false) {
                figures.lost += 1;
                faults.0.push(format!("{id} is lost: neither done nor in the DLQ"));
            } else if !off_plan.contains(id) {
                let expect = (event.kind.end() == End::Done, event.kind.end() != End::Done);
                faults.unless(ends == expect, || format!("{id}: (done, dead) is {ends:?}, not {expect:?}"));
            }
        }
        figures.count_repeats(evidence, faults);
        figures.count_copies(evidence);
        figures.overlaps = evidence.check_turns(faults);
        figures.early = evidence.check_dues(faults);
        figures.measure_lateness(evidence, recovery);

        let bound = figures.kills * in_hand;
        let repeats = figures.explained + figures.unexplained;
        faults.unless(repeats <= bound, || format!("{repeats} executions repeated, at most {bound} were in hand"));
        let twice = figures.duplicate_dead_letters;
        faults.unless(twice <= bound, || format!("{twice} dead letters twice, at most {bound} were in hand"));
        let gave_up = figures.off_plan;
        faults.unless(gave_up * 100 <= figures.produced, || format!("workers gave up on {gave_up} answers"));
        figures
    }

    fn count_repeats(&mut self, evidence: &Evidence<'_>, faults: &mut Faults) {
        let off_plan = evidence.off_plan();
        for ((id, stage, attempt), all) in evidence.executions() {
            for repeated in &all[..all.len() - 1] {
                let explained = evidence.explains_a_repeat(repeated);
                *(if explained { &mut self.explained } else { &mut self.unexplained }) += 1;
                faults.unless(explained, || {
                    let times: Vec<_> =
                        all.iter().map(|s| (&s.instance, s.arrived, s.ended, s.answer, s.fence)).collect();
                    format!("{id} attempt {attempt} on {} ran again without a kill: {times:?}", stage_name(stage))
                });
            }
            if !off_plan.contains(id) {
                let path = evidence.plan.get(id).map(|event| event.kind.path()).unwrap_or_default();
                let planned = path.iter().position(|s| *s == stage).is_some_and(|n| n + 1 == attempt as usize);
                faults.unless(planned, || format!("{id} was executed on {} as attempt {attempt}", stage_name(stage)));
            }
        }
        for seen in &evidence.requests {
            *self.by_process.entry(seen.instance.clone()).or_default() += 1;
        }
    }

    fn count_copies(&mut self, evidence: &Evidence<'_>) {
        let mut known = HashSet::new();
        for (stage, record) in evidence.moved() {
            let event = evidence.event(record);
            match (known.insert((&event.id, stage)), stage) {
                (true, None) => {
                    let class = record.text("x-ladder-error").split(':').next().unwrap_or_default();
                    *self.dead.entry(class.to_owned()).or_default() += 1;
                }
                (true, Some(_)) => {}
                (false, None) => self.duplicate_dead_letters += 1,
                (false, Some(_)) => self.duplicate_copies += 1,
            }
        }
    }

    fn measure_lateness(&mut self, evidence: &Evidence<'_>, recovery: Duration) {
        let dues = evidence.dues();
        for ((id, stage, _), all) in evidence.executions() {
            let Some(due) = dues.get(&(id, stage)) else { continue };
            let late = all[0].arrived.saturating_sub(*due);
            let recovery = recovery.as_micros() as u64;
            let near = |kill: &super::workers::Kill| {
                kill.stage == stage && (kill.at.saturating_sub(1_000_000)..kill.gone + recovery).contains(due)
            };
            self.lateness[stage][0].push(late);
            if !evidence.kills.iter().any(near) {
                self.lateness[stage][1].push(late);
            }
        }
        self.lateness.iter_mut().flatten().for_each(|all| all.sort_unstable());
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<34}{value:>9}");
        row("produced", &self.produced)?;
        row("done", &self.done)?;
        for (class, count) in &self.dead {
            row(&format!("dead-lettered, {class}"), count)?;
        }
        row("lost", &self.lost)?;
        row("executions", &self.executions)?;
        row("  planned", &self.planned)?;
        row("  repeated after a kill", &self.explained)?;
        row("  repeated without a kill", &self.unexplained)?;
        row("  at the same time", &self.overlaps)?;
        row("  before their due", &self.early)?;
        row("answers that a worker gave up on", &self.off_plan)?;
        row("copies twice on a retry topic", &self.duplicate_copies)?;
        row("dead letters twice", &self.duplicate_dead_letters)?;
        row("processes killed and restarted", &self.kills)?;
        row("wall time in s", &format!("{:.1}", self.wall.as_secs_f64()))?;
        writeln!(f, "lateness (arrival - due) in ms      count       p50       p99       max")?;
        for (stage, sets) in self.lateness.iter().enumerate().skip(1) {
            for (what, all) in ["", ", away from its kill"].into_iter().zip(sets).filter(|(_, all)| !all.is_empty()) {
                let at = |q: f64| all[((all.len() - 1) as f64 * q).round() as usize] as f64 / 1_000.0;
                let name = format!("  {}{what}", stage_name(stage));
                writeln!(f, "{name:<32}{:>9}{:>10.1}{:>10.1}{:>10.1}", all.len(), at(0.5), at(0.99), at(1.0))?;
            }
        }
        writeln!(f, "requests by process")?;
        for (process, requests) in &self.by_process {
            writeln!(f, "  {process:<32}{requests:>9}")?;
        }
        Ok(())
    }
}
