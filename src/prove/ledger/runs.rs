//! The executions and the ends of every event: as often as its fate says, never early, never twice at a time, a second
//! one only where an interruption held the very claim.

use std::collections::{BTreeMap, BTreeSet};

use super::index::Index;
use super::{Cause, Execution, Fate, Findings, Interruption, Invariant, Ledger, Produced};

/// Redis counts leases in whole milliseconds.
const LEASE_SLACK_US: u64 = 5_000;

impl Execution {
    /// Whether it succeeded.
    pub(super) fn is_done(&self) -> bool {
        matches!(&self.ended, Some((_, outcome)) if outcome == "done")
    }
}

pub(super) fn check(ledger: &Ledger, index: &Index<'_>, findings: &mut Findings) {
    let mut runs: BTreeMap<(&str, u32), Vec<&Execution>> = BTreeMap::new();
    for execution in &ledger.executions {
        runs.entry((&execution.id, execution.attempt)).or_default().push(execution);
        check_start(ledger, index, execution, findings);
        check_leases(index, execution, findings);
    }
    let mut late = Vec::new();
    for ((id, attempt), mut runs) in runs {
        if runs.len() > 1 {
            runs.sort_by_key(|e| e.started_us);
            check_repeats(index, id, attempt, &runs, &mut late, findings);
        }
    }
    for event in &ledger.produced {
        check_end(ledger, index, event, findings);
    }
    for interruption in &ledger.interruptions {
        let (threads, zombie) = (interruption.threads, interruption.zombie.iter().cloned());
        let started = late.iter().filter(|(by, _)| std::ptr::eq(*by, interruption)).map(|(_, copy)| copy.clone());
        let deeds: Vec<_> = zombie.chain(started).map(|(id, hop)| format!("{id} of hop {hop}")).collect();
        // No check of a lease can lie between the check and the deed.
        if deeds.len() > threads {
            let text = format!(
                "a process of {threads} threads was woken after its leases and started, handed on or settled {} copies \
                 anew: {}",
                deeds.len(),
                deeds.join(", ")
            );
            findings.say(Invariant::OneAtATime, text);
        }
    }
}

/// Every execution of one copy but that of the newest claim was interrupted, by something that held its very claim. The
/// newest is the last, too, but where a process was frozen between its check of the lease and the start, which follows when
/// it is woken: `late`.
fn check_repeats<'a>(
    index: &Index<'a>,
    id: &str,
    attempt: u32,
    runs: &[&Execution],
    late: &mut Vec<(&'a Interruption, (String, u64))>,
    findings: &mut Findings,
) {
    let hop = u64::from(attempt) - 1;
    let holding = |fence: u64| index.held(id).iter().filter(move |(_, h)| h.hop == hop && h.fence == fence);
    let mut by_claim = runs.to_vec();
    by_claim.sort_by_key(|e| e.fence);
    let (_, before) = by_claim.split_last().expect("more than one");
    let explained = before.iter().filter(|e| holding(e.fence).next().is_some()).count();
    if explained < before.len() {
        findings.say(
            Invariant::RepeatsExplained,
            format!(
                "{id}: attempt {attempt} was executed {} times, {explained} interruptions explain one more each: \
                 unexplained execution",
                runs.len()
            ),
        );
    }
    for pair in runs.windows(2) {
        let (a, b) = (pair[0].fence, pair[1].fence);
        let woken = holding(b).find(|(i, _)| b < a && matches!(i.cause, Cause::Frozen | Cause::Stalled));
        if let Some((interruption, _)) = woken {
            late.push((interruption, (id.to_owned(), hop)));
        } else if b <= a {
            let text = format!("{id}: attempt {attempt} again with fence {b}, the one before had {a}");
            findings.say(Invariant::OneAtATime, text);
        }
        let overlaps = pair[0].ended.as_ref().is_some_and(|(end, _)| *end > pair[1].started_us);
        let blind = |cause| matches!(cause, Cause::Frozen | Cause::Stalled | Cause::Forgotten);
        if overlaps && !holding(a.min(b)).any(|(i, _)| blind(i.cause)) {
            findings.say(Invariant::OneAtATime, format!("{id}: attempt {attempt} ran twice at the same time"));
        }
    }
}

/// Nobody may execute what an interrupted process had claimed before its lease ends.
fn check_leases(index: &Index<'_>, execution: &Execution, findings: &mut Findings) {
    let Execution { id, attempt, started_us, .. } = execution;
    for (interruption, held) in index.held(id) {
        // An older fence is the interrupted process's own.
        if held.hop + 1 == u64::from(*attempt)
            && interruption.cause != Cause::Forgotten
            && execution.fence > held.fence
            && *started_us + LEASE_SLACK_US < held.leased_until_us
        {
            let early = (held.leased_until_us - started_us) / 1_000;
            let text =
                format!("{id}: attempt {attempt} ran {early} ms before the lease of an interrupted process ended");
            findings.say(Invariant::OneAtATime, text);
        }
    }
}

fn check_start(ledger: &Ledger, index: &Index<'_>, execution: &Execution, findings: &mut Findings) {
    let Execution { id, attempt, started_us, .. } = execution;
    let at = (*attempt as usize).wrapping_sub(1);
    let executing = &ledger.stages[..ledger.stages.len() - 1];
    let Some(stage) = executing.get(at).filter(|stage| stage.name == execution.stage) else {
        findings.say(Invariant::Attempts, format!("{id}: attempt {attempt} ran on {}", execution.stage));
        return;
    };
    if at == 0 {
        return;
    }
    match index.due_of(execution) {
        Some(Ok(due)) if *started_us >= due.saturating_mul(1_000) => {}
        Some(Ok(due)) => {
            let early = due.saturating_mul(1_000) - started_us;
            let text = format!("{id}: attempt {attempt} started early, {early} us before its due");
            findings.say(Invariant::NeverEarly, text);
        }
        Some(Err(_)) => {} // told with the record's headers
        None => {
            let text = format!("{id}: attempt {attempt} was given a record that is not on {}", stage.name);
            findings.say(Invariant::Attempts, text);
        }
    }
}

fn check_end(ledger: &Ledger, index: &Index<'_>, event: &Produced, findings: &mut Findings) {
    let id = &event.id;
    let mut say = |invariant, fault: String| findings.say(invariant, format!("{id}: {fault}"));
    let stages = ledger.stages.len() as u32 - 1;
    let (done, dead) = index.ends(id);
    let executions = index.executions.get(id.as_str()).map_or(&[][..], Vec::as_slice);
    let attempts: BTreeSet<u32> = executions.iter().map(|e| e.attempt).collect();
    // Attempts that must be made, and whether the last of them succeeds.
    let (last, succeeds) = match event.fate {
        Fate::Fails(n) if n < stages => (n + 1, true),
        Fate::Fails(_) => (stages, false),
        Fate::Permanent | Fate::Heals { permanent: true } => (1, false),
        Fate::Poison => (0, false),
        Fate::Heals { permanent: false } => (2, true),
    };
    let ends = done.len() + dead;
    let as_it_should = if succeeds { done.contains(&last) } else { dead > 0 };
    // It succeeds at any second execution, so a repeated one may be its end.
    let healed = matches!(event.fate, Fate::Heals { .. }) && !done.is_empty();
    if ends == 0 {
        say(Invariant::NothingLost, format!("lost: neither done nor in the DLQ; attempts {attempts:?}"));
        return;
    }
    if !as_it_should && !healed {
        let right = if succeeds { format!("done at attempt {last}") } else { "in the DLQ".into() };
        let fault = format!("done at attempts {done:?}, {dead} in the DLQ; should be {right}");
        say(Invariant::Attempts, fault);
    }
    for (hop, more, moving) in index.unexplained_ends(id) {
        say(
            Invariant::EndsOnce,
            format!(
                "a second terminal state: done at attempts {done:?}, {dead} in the DLQ; {more} more than one at hop {hop}, \
                 and {moving} interruptions between the acknowledgement of that move and its record in redis"
            ),
        );
    }
    let missing: Vec<u32> = (1..=last).filter(|a| !attempts.contains(a)).collect();
    if !missing.is_empty() && !healed {
        say(Invariant::Attempts, format!("attempts {missing:?} were never made"));
    }
    if let Some(beyond) = attempts.iter().find(|a| **a > last) {
        say(Invariant::Attempts, format!("attempt {beyond} was made, the last should be {last}"));
    }
}
