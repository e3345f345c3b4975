//! What `pipeline dlq` prints.
#![allow(clippy::print_stderr, reason = "plans and outcomes go to the person, not into the data")]

use std::io::{self, Write};

use super::Error;
use crate::admin::dlq::book::{Fate, Job, JobState};
use crate::admin::dlq::groups::Group;
use crate::admin::dlq::letter::Summary;
use crate::admin::dlq::redrive::{Desk, Order, Plan};
use crate::admin::dlq::select::rfc3339;
use crate::admin::dlq::view::View;
use crate::cli::plain::{Plain, one_line};

/// Longest error in a table.
const ERROR_WIDTH: usize = 80;
/// Longest id in a table; `show` has it whole.
const ID_WIDTH: usize = 64;

pub(super) fn groups(pipeline: &str, groups: &[Group], json: bool) -> io::Result<()> {
    let mut out = Plain(io::stdout().lock());
    if json {
        serde_json::to_writer_pretty(&mut out.0, groups)?;
        return writeln!(out);
    }
    if groups.is_empty() {
        return writeln!(out, "{pipeline}: no dead letters");
    }
    writeln!(
        out,
        "{:<12}  {:<10} {:>9} {:>9} {:>9}  {:<19}  {:<19}  ERROR",
        "FINGERPRINT", "CLASS", "OPEN", "REDRIVEN", "DISCARDED", "FIRST", "LAST"
    )?;
    for g in groups {
        writeln!(
            out,
            "{:<12}  {:<10} {:>9} {:>9} {:>9}  {:<19}  {:<19}  {}",
            g.fingerprint,
            one_line(&g.class),
            g.open,
            g.redriven,
            g.discarded,
            short(g.first_ms),
            short(g.last_ms),
            cut(&g.error, ERROR_WIDTH)
        )?;
    }
    let sum = |of: fn(&Group) -> u64| groups.iter().map(of).sum::<u64>();
    let (open, redriven, discarded) = (sum(|g| g.open), sum(|g| g.redriven), sum(|g| g.discarded));
    writeln!(out, "{:<12}  {:<10} {open:>9} {redriven:>9} {discarded:>9}", "", "in all")
}

pub(super) fn list(out: &mut impl Write, letters: &[Summary]) -> io::Result<()> {
    if letters.is_empty() {
        return writeln!(out, "no such dead letter");
    }
    let rows = letters.iter().map(|l| {
        [
            format!("{}:{}", l.partition, l.offset),
            cut(&l.event_id, ID_WIDTH),
            one_line(&l.class).into_owned(),
            l.state.as_str().to_owned(),
            l.attempts.to_string(),
            short(l.dead_lettered_at_ms),
            cut(&l.error, ERROR_WIDTH),
        ]
    });
    let heads = ["LETTER", "EVENT ID", "CLASS", "STATE", "ATTEMPTS", "DEAD-LETTERED", "ERROR"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(heads).chain(rows).collect();
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default();
    let (place, id) = (width(0), width(1));
    for [at, event_id, class, state, attempts, time, error] in &rows {
        writeln!(out, "{at:<place$}  {event_id:<id$}  {class:<10} {state:<9} {attempts:>8}  {time:<19}  {error}")?;
    }
    Ok(())
}

pub(super) fn letter(view: &View, json: bool) -> io::Result<()> {
    let mut out = Plain(io::stdout().lock());
    if json {
        serde_json::to_writer_pretty(&mut out.0, view)?;
        return writeln!(out);
    }
    let s = &view.summary;
    writeln!(out, "event {}", one_line(&s.event_id))?;
    let mut line = |name: &str, value: &str| writeln!(out, "  {name:<14} {}", one_line(value));
    line("letter", &format!("{}:{}, {}", s.partition, s.offset, s.state.as_str()))?;
    line("error", &format!("{}: {}", s.class, s.error))?;
    line("fingerprint", &s.fingerprint)?;
    line("dead-lettered", &rfc3339(s.dead_lettered_at_ms))?;
    line("failed on", view.failed_stage.as_deref().unwrap_or("unknown"))?;
    line("attempts", &s.attempts.to_string())?;
    line("redrives", &s.redrives.to_string())?;
    line("origin", &s.origin)?;
    line("trace", view.trace_id.as_deref().unwrap_or("none"))?;
    line("key", view.key.as_ref().map_or("null", |key| key.as_str()))?;
    if !view.history.is_empty() {
        writeln!(out, "history")?;
        for a in &view.history {
            let (at, took) = (rfc3339(i64::try_from(a.start_ms).unwrap_or_default()), a.duration_ms);
            let (stage, error) = (one_line(&a.stage), format!("{}: {}", a.class, a.message));
            writeln!(out, "  {at}  {stage:<9} {took:>6} ms  {}", one_line(&error))?;
        }
    }
    match (&view.value.json, &view.value.hex) {
        (Some(json), _) => {
            writeln!(out, "value")?;
            for line in serde_json::to_string_pretty(json)?.lines() {
                writeln!(out, "  {line}")?;
            }
            for path in &view.value.unknown_fields {
                writeln!(out, "  field {path}: not in the message's declaration, so it is not shown")?;
            }
        }
        (None, Some(hex)) => {
            writeln!(out, "value ({} bytes): {}", hex.len() / 2, view.value.problem.as_deref().unwrap_or_default())?;
            hex_dump(&mut out, hex)?;
        }
        (None, None) => writeln!(out, "value: null")?,
    }
    writeln!(out, "headers")?;
    for (name, value) in &view.headers {
        // A stack trace keeps its lines, further in than a header begins.
        let value = value.as_ref().map_or("null", |value| value.as_str()).replace('\n', "\n      ");
        writeln!(out, "  {}: {value}", one_line(name))?;
    }
    Ok(())
}

/// Sixteen bytes a line, as text beside it.
fn hex_dump(out: &mut impl Write, hex: &str) -> io::Result<()> {
    for (n, line) in hex.as_bytes().chunks(32).enumerate() {
        let (mut digits, mut text) = (String::new(), String::new());
        for pair in line.chunks(2) {
            let pair = String::from_utf8_lossy(pair);
            digits.push_str(&pair);
            digits.push(' ');
            let byte = u8::from_str_radix(&pair, 16).unwrap_or_default();
            text.push(if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '.' });
        }
        writeln!(out, "  {:06x}  {digits:<48} {text}", n * 16)?;
    }
    Ok(())
}

pub(super) fn jobs<'j>(jobs: impl Iterator<Item = &'j Job>, json: bool) -> Result<(), Error> {
    let mut out = Plain(io::stdout().lock());
    let mut jobs: Vec<_> = jobs.collect();
    jobs.sort_by_key(|job| job.started_ms);
    if json {
        for job in jobs {
            serde_json::to_writer(&mut out.0, job).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        return Ok(());
    }
    writeln!(out, "{:<17}  {:<19}  {:<9} {:>15}  {:<24}  WHAT", "JOB", "STARTED", "DOES", "LETTERS", "WHO")?;
    for job in jobs {
        let what = match (&job.state, &job.reason) {
            (JobState::Stopped(why), _) => format!("{} (stopped: {why})", job.selection),
            (JobState::Running, _) => format!("{} (at work, or killed)", job.selection),
            (JobState::Done, Some(reason)) => format!("{} ({reason})", job.selection),
            (JobState::Done, None) => job.selection.clone(),
        };
        let started = short(i64::try_from(job.started_ms).unwrap_or_default());
        let does = if job.fate == Fate::Discarded { "discard" } else { "redrive" };
        let letters = format!("{} of {}", job.moved, job.planned);
        let (id, who, what) = (one_line(&job.id), one_line(&job.who), one_line(&what));
        writeln!(out, "{id:<17}  {started:<19}  {does:<9} {letters:>15}  {who:<24}  {what}")?;
    }
    Ok(())
}

/// The plan, to the person.
pub(super) fn plan(plan: &Plan, order: &Order, desk: &Desk) -> io::Result<()> {
    let job = &plan.job;
    let does = match order.target.and_then(|target| desk.ladder.rung(target)) {
        Some(rung) => format!("redrives {} letters of {} to {} ({})", job.planned, desk.topic(), rung.name, rung.topic),
        None => format!("discards {} letters of {}", job.planned, desk.topic()),
    };
    eprintln!("job {}: {does}", job.id);
    eprintln!("  selection: {}", job.selection);
    if !plan.unknown.is_empty() {
        let fields: Vec<_> = plan.unknown.iter().map(|(field, n)| format!("{field} (of {n})")).collect();
        let what = if order.drop_unknown { "CAUTION: drops" } else { "keeps" };
        eprintln!("  {what} fields that the message's declaration does not have: {}", fields.join(", "));
    }
    if plan.already > 0 {
        eprintln!("  {} more match and were dealt with before: they are left alone", plan.already);
    }
    if let Some(rate) = order.rate {
        let seconds = std::time::Duration::from_secs((job.planned as f64 / rate).ceil() as u64);
        eprintln!("  at {rate}/s this takes about {}", humantime::format_duration(seconds));
    }
    if order.target == Some(0) {
        eprintln!("  CAUTION: every group on {} reads these as new events", desk.ladder.topic());
    }
    if !plan.sample.is_empty() {
        eprintln!("  for example:");
    }
    for letter in &plan.sample {
        let error = cut(&format!("{}: {}", letter.class, letter.error), ERROR_WIDTH);
        eprintln!("    {}:{}  {}  {error}", letter.partition, letter.offset, cut(&letter.event_id, ID_WIDTH));
    }
    Ok(())
}

pub(super) fn job(job: &Job) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, job)?;
    writeln!(out)
}

/// How it ended, to the person.
pub(super) fn ended(job: &Job) {
    let did = if job.fate == Fate::Discarded { "discarded" } else { "redriven" };
    let back = if job.relapsed > 0 { format!(", {} came back so far", job.relapsed) } else { String::new() };
    match &job.state {
        JobState::Stopped(why) => eprintln!("stopped: {why}; {} of {} letters {did}{back}", job.moved, job.planned),
        JobState::Running | JobState::Done => eprintln!("{} letters {did}{back}", job.moved),
    }
}

/// To the second.
fn short(ms: i64) -> String {
    rfc3339(ms).chars().take(19).collect()
}

/// On one line, and no longer than this.
fn cut(text: &str, width: usize) -> String {
    let text = one_line(text);
    if text.chars().count() <= width {
        return text.into_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_cannot_forge_a_row() {
        let forged = "a\n0:7  innocent  permanent  open";
        let summary = Summary {
            event_id: forged.into(),
            partition: 0,
            offset: 3,
            class: "per\nmanent".into(),
            error: format!("{forged} {}", "x".repeat(100)),
            attempts: 1,
            origin: forged.into(),
            dead_lettered_at_ms: 0,
            redrives: 0,
            state: Fate::Open,
            fingerprint: "0123456789ab".into(),
        };
        let mut out = Vec::new();
        list(&mut out, &[summary.clone(), summary]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains(r"a\n0:7  innocent"), "{text}");
        assert!(text.contains('…'), "{text}");
    }
}
