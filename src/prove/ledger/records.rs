//! The records of every topic: that what was acknowledged is there, that moves keep every foreign byte and write our own
//! headers right, that a second record of one move is explained.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::index::Index;
use super::{Copy, Fate, Findings, Header, Invariant, Ledger, Produced, number, text};

/// Whether the ladder writes headers of this name itself.
fn is_own(name: &str) -> bool {
    ["x-ladder-", "__dlq.errors.", "kafka_dlt-"].iter().any(|prefix| name.starts_with(prefix))
}

pub(super) fn check(ledger: &Ledger, index: &Index<'_>, findings: &mut Findings) {
    let Some((main, others)) = ledger.stages.split_first() else { return };
    let on_main: HashMap<(i32, i64), &Copy> = main.copies.iter().map(|c| ((c.partition, c.offset), c)).collect();
    for event in &ledger.produced {
        match on_main.get(&(event.record.partition, event.record.offset)) {
            None => findings.say(Invariant::Kept, format!("{}: acknowledged, and not on the main topic", event.id)),
            Some(copy) => same_bytes(copy, event, &format!("{} on main", event.id), findings),
        }
    }
    for (at, stage) in others.iter().enumerate() {
        let mut moves: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        for copy in &stage.copies {
            let place = format!("{} {}:{}", stage.name, copy.partition, copy.offset);
            let id = text(&copy.headers, "x-ladder-event-id");
            let Some(event) = id.and_then(|id| index.events.get(id)) else {
                findings.say(Invariant::Faithful, format!("{place}: event id {id:?} was never produced"));
                continue;
            };
            let place = format!("{} at {place}", event.id);
            same_bytes(copy, event, &place, findings);
            if let Err(fault) = check_headers(ledger, index, at + 1, copy, event, &place, findings) {
                findings.say(Invariant::Faithful, format!("{place}: {fault}"));
            }
            let hop = number(&copy.headers, "x-ladder-hop").unwrap_or_default();
            *moves.entry((event.id.as_str(), hop)).or_default() += 1;
        }
        for ((id, hop), copies) in moves {
            let faults = index.moving(id, hop.wrapping_sub(1));
            if copies > 1 + faults {
                let name = &stage.name;
                findings.say(
                    Invariant::CopiesExplained,
                    format!(
                        "{id}: {copies} records of hop {hop} on {name}, {faults} interruptions explain one more each"
                    ),
                );
            }
        }
    }
}

/// Our own headers of the copy on stage `at`, which is not main.
fn check_headers(
    ledger: &Ledger,
    index: &Index<'_>,
    at: usize,
    copy: &Copy,
    event: &Produced,
    place: &str,
    findings: &mut Findings,
) -> Result<(), String> {
    let headers = &copy.headers;
    let mut say = |fault: String| findings.say(Invariant::Faithful, format!("{place}: {fault}"));
    let mut names = BTreeSet::new();
    for (name, _) in headers.iter().filter(|(name, _)| is_own(name)) {
        if !names.insert(name) {
            say(format!("{name} more than once"));
        }
    }
    let is_dlq = at + 1 == ledger.stages.len();
    // The stage that executed it last.
    let from = if is_dlq { number(headers, "x-ladder-stage")? } else { at as u64 - 1 };
    let charged = from + u64::from(event.fate != Fate::Poison);
    let main = event.record.partition;
    // As the record on main bears it: the acknowledgement of a batch that was sent twice has one timestamp for all of it.
    let stamped = index.stamps.get(&(main, event.record.offset)).copied().unwrap_or(event.record.timestamp_ms);
    let origin = format!("{}:{main}:{}:{stamped}", ledger.stages[0].topic, event.record.offset);
    let mut expect = vec![
        ("x-ladder-attempt", charged.to_string()),
        ("x-ladder-hop", (from + 1).to_string()),
        ("x-ladder-origin", origin),
        ("x-ladder-group", ledger.group.clone()),
    ];
    if !is_dlq {
        expect.push(("x-ladder-stage", at.to_string()));
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
        let last = ledger.stages.len() as u64 - 2;
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
    let delay = ledger.stages[at].delay_ms;
    let before = index.executions.get(event.id.as_str()).map_or(&[][..], Vec::as_slice);
    let before = before.iter().filter(|e| u64::from(e.attempt) == charged);
    let failed = before.filter_map(|e| e.ended.as_ref().map(|(at, _)| at / 1_000));
    // Of several failures each has its own record; this one is not older than the first.
    if let Some(failed) = failed.min()
        && due < failed + delay
    {
        let after = due.saturating_sub(failed);
        let text = format!("{place}: due {after} ms after the failure, the stage's delay is {delay} ms");
        findings.say(Invariant::NeverEarly, text);
    }
    Ok(())
}

/// Key, value and the headers of others, byte for byte and in their order.
fn same_bytes(copy: &Copy, event: &Produced, place: &str, findings: &mut Findings) {
    let mut say =
        |what: &str| findings.say(Invariant::Faithful, format!("{place}: {what} differs from what was produced"));
    if copy.key != event.record.key {
        say("key");
    }
    if copy.value != event.record.value {
        say("value");
    }
    fn foreign(headers: &[Header]) -> impl Iterator<Item = &Header> {
        headers.iter().filter(|(name, _)| !is_own(name))
    }
    if !foreign(&copy.headers).eq(foreign(&event.record.headers)) {
        say("a header of others");
    }
}
