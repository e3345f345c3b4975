//! What is known at the end of the run, from the outside: the server's notes, every record of every topic, the kills.
//! Indexes over it, and the first of the checks: what the requests say.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::observer::Seen;
use super::plan::{Kind, Plan, Planned};
use super::topics::Stored;
use super::workers::{Kill, stage_name};

/// Delays of the retry stages in microseconds, by stage.
pub(crate) const DELAYS: [u64; 4] = [0, 1_000_000, 2_000_000, 4_000_000];

/// How long before a kill an execution may have ended and its record of that still be under way; microseconds.
const IN_HAND: u64 = 2_000_000;

/// Everything that was seen.
#[derive(Clone)]
pub(crate) struct Evidence<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) group: String,
    /// `host:port` of the server.
    pub(crate) target: String,
    pub(crate) requests: Vec<Seen>,
    pub(crate) kills: Vec<Kill>,
    pub(crate) main: Vec<Stored>,
    /// By stage; the first is empty.
    pub(crate) retries: [Vec<Stored>; 4],
    pub(crate) dlq: Vec<Stored>,
}

/// What is wrong, in words.
#[derive(Default)]
pub(crate) struct Faults(pub(crate) Vec<String>);

impl Faults {
    pub(crate) fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }
}

impl Evidence<'_> {
    /// The event of a record, by a header of the producer's that the ladder does not know.
    pub(crate) fn event(&self, record: &Stored) -> &Planned {
        let tag = record.headers.iter().rev().find(|(name, _)| name == "tag").and_then(|(_, value)| value.as_deref());
        let index = tag.and_then(|tag| tag.try_into().ok()).map(u64::from_be_bytes);
        let event = index.and_then(|index| self.plan.events.get(index as usize));
        event.unwrap_or_else(|| panic!("{} is none of the produced events", record.at()))
    }

    /// Requests of each event, stage and attempt, in the order of their arrival.
    pub(crate) fn executions(&self) -> BTreeMap<(&str, usize, u32), Vec<&Seen>> {
        let mut executions: BTreeMap<_, Vec<&Seen>> = BTreeMap::new();
        for seen in &self.requests {
            executions.entry((seen.id.as_str(), seen.stage, seen.attempt)).or_default().push(seen);
        }
        for seen in executions.values_mut() {
            seen.sort_by_key(|seen| seen.arrived);
        }
        executions
    }

    /// Ids that were answered 2xx.
    pub(crate) fn done(&self) -> HashSet<&str> {
        self.requests.iter().filter(|seen| seen.answer == Some(200)).map(|seen| seen.id.as_str()).collect()
    }

    /// Ids in the DLQ.
    pub(crate) fn dead(&self) -> HashSet<&str> {
        self.dlq.iter().map(|record| self.event(record).id.as_str()).collect()
    }

    /// Events that a worker gave up waiting for although the server meant to answer them: on a machine that stood
    /// still they take another way up the ladder, which is right, so their way is not compared with the plan.
    pub(crate) fn off_plan(&self) -> HashSet<&str> {
        let client_side = ["timed out", "cannot connect", "no answer", "overran"];
        let mut ids = HashSet::new();
        for (stage, record) in self.moved() {
            let event = self.event(record);
            let error = record.text("x-ladder-error");
            let first_of_hanging = event.kind == Kind::Hangs && stage == Some(1);
            if !first_of_hanging && client_side.iter().any(|words| error.contains(words)) {
                ids.insert(event.id.as_str());
            }
        }
        ids
    }

    /// Records that the ladder wrote, with the retry stage that they wait for; `None` is the DLQ.
    pub(crate) fn moved(&self) -> impl Iterator<Item = (Option<usize>, &Stored)> {
        let retries =
            self.retries.iter().enumerate().flat_map(|(stage, all)| all.iter().map(move |r| (Some(stage), r)));
        retries.chain(self.dlq.iter().map(|record| (None, record)))
    }

    /// When the event may start on the stage, Unix microseconds; the earliest where there are copies.
    pub(crate) fn dues(&self) -> HashMap<(&str, usize), u64> {
        let mut dues = HashMap::new();
        for (stage, records) in self.retries.iter().enumerate() {
            for record in records {
                let due = record.number("x-ladder-due") * 1_000;
                let known = dues.entry((self.event(record).id.as_str(), stage)).or_insert(due);
                *known = due.min(*known);
            }
        }
        dues
    }

    fn killed(&self, instance: &str) -> Option<&Kill> {
        self.kills.iter().find(|kill| kill.instance == instance)
    }

    /// Whether its process was killed while it had this request in hand, so that the outcome may have been lost. (It may
    /// arrive after the kill: what was sent is in the kernel's hands.)
    pub(crate) fn explains_a_repeat(&self, seen: &Seen) -> bool {
        self.killed(&seen.instance).is_some_and(|kill| seen.ended + IN_HAND >= kill.at)
    }

    /// Until when the request certainly was executed by somebody.
    fn until(&self, seen: &Seen) -> u64 {
        match seen.answer {
            // When the client gave up is known to the client alone.
            None => seen.arrived,
            Some(_) => self.killed(&seen.instance).map_or(seen.ended, |kill| seen.ended.min(kill.at)),
        }
    }

    /// Requests of one event, and those of one key on one stage, never at the same time; on main in order.
    pub(crate) fn check_turns(&self, faults: &mut Faults) -> usize {
        let mut turns: BTreeMap<(String, String), Vec<&Seen>> = BTreeMap::new();
        for seen in &self.requests {
            turns.entry(("event".into(), seen.id.clone())).or_default().push(seen);
            let key = seen.header("x-ladder-key").unwrap_or_default();
            turns.entry((stage_name(seen.stage), key.to_owned())).or_default().push(seen);
        }
        let mut overlaps = 0;
        for ((what, name), mut all) in turns {
            all.sort_by_key(|seen| seen.arrived);
            for pair in all.windows(2) {
                let (before, after) = (self.until(pair[0]), pair[1].arrived);
                overlaps += usize::from(before > after);
                faults.unless(before <= after, || {
                    let [a, b] = [pair[0], pair[1]].map(|seen| format!("{} by {}", seen.id, seen.instance));
                    format!("{what} {name}: {b} began {} us before {a} had ended", before - after)
                });
            }
            if what == "main" {
                let mut known = HashSet::new();
                let first: Vec<_> = all.iter().filter(|seen| known.insert(&seen.id)).map(|seen| &seen.id).collect();
                let index = |id: &str| self.plan.get(id).map(|event| event.index);
                for pair in first.windows(2) {
                    let in_order = index(pair[0]) < index(pair[1]);
                    faults.unless(in_order, || format!("key {name}: {} was started before {}", pair[0], pair[1]));
                }
            }
        }
        overlaps
    }

    /// Each request carries what was produced, and each execution of an event a higher fence.
    pub(crate) fn check_requests(&self, faults: &mut Faults) {
        let mut fences: HashMap<&str, u64> = HashMap::new();
        let mut in_order: Vec<_> = self.requests.iter().collect();
        in_order.sort_by_key(|seen| seen.arrived);
        for seen in in_order {
            let Some(event) = self.plan.get(&seen.id) else {
                faults.0.push(format!("a request for {:?}, which is no produced event", seen.id));
                continue;
            };
            let at = || format!("{} at attempt {} by {}", seen.id, seen.attempt, seen.instance);
            faults.unless(event.value.as_deref() == Some(&*seen.body), || format!("{}: another body", at()));
            let correlation = format!("session-{}", &event.key[1..]);
            for (name, expect) in [
                ("ce-id", seen.id.as_str()),
                ("ce-type", "shop.v1.OrderPlaced"),
                ("ce-specversion", "1.0"),
                ("content-type", "application/x-protobuf"),
                ("x-ladder-key", &event.key),
                ("x-correlation-id", &correlation),
            ] {
                let is = seen.header(name);
                faults.unless(is == Some(expect), || format!("{}: {name} is {is:?}, not {expect:?}", at()));
            }
            let last = fences.insert(&seen.id, seen.fence).unwrap_or_default();
            faults.unless(seen.fence > last, || format!("{}: fence {} after {last}", at(), seen.fence));
        }
    }

    /// Nothing starts before the due of its record, nor before the delay is over since the attempt before was answered.
    pub(crate) fn check_dues(&self, faults: &mut Faults) -> usize {
        let dues = self.dues();
        let executions = self.executions();
        let mut early = 0;
        let mut answered: HashMap<(&str, u32), u64> = HashMap::new();
        for ((id, _, attempt), all) in &executions {
            let first = all.iter().map(|seen| if seen.answer.is_some() { seen.ended } else { seen.arrived }).min();
            let first = first.unwrap_or_default();
            let known = answered.entry((id, *attempt)).or_insert(first);
            *known = first.min(*known);
        }
        for ((id, stage, attempt), all) in executions.iter().filter(|((_, stage, _), _)| (1..=3).contains(stage)) {
            let start = all[0].arrived;
            let place = format!("{id} on {}", stage_name(*stage));
            match dues.get(&(*id, *stage)) {
                Some(due) => {
                    early += usize::from(start < *due);
                    faults.unless(start >= *due, || format!("{place} started {} us before its due", due - start));
                }
                None => faults.0.push(format!("{place} was executed, but the topic has no record of it")),
            }
            match answered.get(&(*id, attempt - 1)) {
                Some(before) => {
                    let due = before + DELAYS[*stage];
                    faults.unless(start >= due, || format!("{place} started {} us before its delay", due - start));
                }
                None => faults.0.push(format!("{place}: attempt {attempt} without an attempt before it")),
            }
        }
        early
    }
}
