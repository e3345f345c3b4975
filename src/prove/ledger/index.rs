//! What is looked up again and again, built once: executions, copies and interruptions by event.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Copy, Execution, Held, InHand, Interruption, Ledger, Produced, number, text};

pub(super) struct Index<'a> {
    pub(super) events: HashMap<&'a str, &'a Produced>,
    pub(super) executions: HashMap<&'a str, Vec<&'a Execution>>,
    /// By stage: the event's copies there; main's by the header, too, where there is one.
    pub(super) copies: Vec<HashMap<&'a str, Vec<&'a Copy>>>,
    /// The broker's timestamps of main's records, by partition and offset.
    pub(super) stamps: HashMap<(i32, i64), i64>,
    held: HashMap<&'a str, Vec<(&'a Interruption, &'a Held)>>,
    /// By event and hop: how often the producer did not know whether the record of its move is written.
    unacknowledged: HashMap<(&'a str, u64), usize>,
    delays_ms: Vec<u64>,
}

impl<'a> Index<'a> {
    pub(super) fn new(ledger: &'a Ledger) -> Self {
        let mut index = Self {
            events: ledger.produced.iter().map(|event| (event.id.as_str(), event)).collect(),
            executions: HashMap::with_capacity(ledger.produced.len()),
            copies: Vec::with_capacity(ledger.stages.len()),
            stamps: HashMap::new(),
            held: HashMap::new(),
            unacknowledged: HashMap::new(),
            delays_ms: ledger.stages.iter().map(|stage| stage.delay_ms).collect(),
        };
        for execution in &ledger.executions {
            index.executions.entry(&execution.id).or_default().push(execution);
        }
        for (at, stage) in ledger.stages.iter().enumerate() {
            let mut copies: HashMap<&str, Vec<&Copy>> = HashMap::new();
            // Nobody asks for main's by id.
            for copy in stage.copies.iter().filter(|_| at > 0) {
                if let Some(id) = text(&copy.headers, "x-ladder-event-id") {
                    copies.entry(id).or_default().push(copy);
                }
            }
            index.copies.push(copies);
        }
        let main = ledger.stages.first().into_iter().flat_map(|main| &main.copies);
        index.stamps = main.map(|copy| ((copy.partition, copy.offset), copy.timestamp_ms)).collect();
        for interruption in &ledger.interruptions {
            for held in &interruption.in_hand {
                index.held.entry(&held.id).or_default().push((interruption, held));
            }
            for (id, hop) in &interruption.unacknowledged {
                *index.unacknowledged.entry((id, *hop)).or_default() += 1;
            }
        }
        index
    }

    /// The attempts at which it was done, and its records in the DLQ.
    pub(super) fn ends(&self, id: &str) -> (BTreeSet<u32>, usize) {
        let executions = self.executions.get(id).map_or(&[][..], Vec::as_slice);
        let done = executions.iter().filter(|e| e.is_done()).map(|e| e.attempt).collect();
        let dead = self.copies.last().and_then(|dlq| dlq.get(id)).map_or(0, Vec::len);
        (done, dead)
    }

    /// What interrupted processes had in hand of this event.
    pub(super) fn held(&self, id: &str) -> &[(&'a Interruption, &'a Held)] {
        self.held.get(id).map_or(&[], Vec::as_slice)
    }

    /// Claims of this copy that were interrupted when it was with the producer or acknowledged, and not recorded: what
    /// Redis should have been told of its move may be lost. The broker's acknowledgement can be given before the process
    /// sees it, so a copy with the producer counts. However many things befell one claim, it moves the copy once.
    ///
    /// A record of which the producer does not know whether it is written is sent once more, which moves it once more.
    pub(super) fn moving(&self, id: &str, hop: u64) -> usize {
        let moving = self.held(id).iter().filter(|(_, held)| held.hop == hop && held.how != InHand::Claimed);
        let unacknowledged = self.unacknowledged.get(&(id, hop)).copied().unwrap_or_default();
        moving.map(|(_, held)| held.fence).collect::<BTreeSet<_>>().len() + unacknowledged
    }

    /// Ends of this event beyond the one that it must have, as far as no interruption of the very move explains them: by
    /// hop, how many there are, and how many are explained.
    ///
    /// A copy ends (done, or in the DLQ) and goes on to the next stage, or ends twice, only if what became of it first was
    /// not recorded.
    pub(super) fn unexplained_ends(&self, id: &str) -> Vec<(u64, usize, usize)> {
        let executions = self.executions.get(id).map_or(&[][..], Vec::as_slice);
        let done: BTreeSet<u64> = executions.iter().filter(|e| e.is_done()).map(|e| u64::from(e.attempt) - 1).collect();
        let mut ends: BTreeMap<u64, usize> = done.into_iter().map(|hop| (hop, 1)).collect();
        for dead in self.copies.last().and_then(|dlq| dlq.get(id)).into_iter().flatten() {
            let hop = number(&dead.headers, "x-ladder-hop").unwrap_or_default();
            *ends.entry(hop.saturating_sub(1)).or_default() += 1;
        }
        // The last one must be.
        if let Some(mut last) = ends.last_entry() {
            *last.get_mut() -= 1;
        }
        let explained = ends.into_iter().map(|(hop, count)| (hop, count, self.moving(id, hop)));
        explained.filter(|(_, count, explained)| count > explained).collect()
    }

    /// When the record that this execution was given fell due; `None`: no such record on the stage. By its header, but
    /// not later than the broker's timestamp and twice the delay: a due further ahead is the work of a wrong clock.
    pub(super) fn due_of(&self, execution: &Execution) -> Option<Result<u64, String>> {
        let at = (execution.attempt as usize).checked_sub(1)?;
        let copies = self.copies.get(at)?.get(execution.id.as_str())?;
        let given = |c: &&&Copy| execution.read.is_none_or(|place| (c.partition, c.offset) == place);
        let latest =
            |c: &Copy| u64::try_from(c.timestamp_ms).map_or(u64::MAX, |stamped| stamped + 2 * self.delays_ms[at]);
        let due = |c: &&Copy| number(&c.headers, "x-ladder-due").map(|due| due.min(latest(c)));
        copies.iter().filter(given).map(due).min_by_key(|due| due.clone().unwrap_or(u64::MAX))
    }
}
