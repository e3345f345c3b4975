//! What really happened, written down by the simulated world itself, and the invariants that it is held against.
//!
//! Nothing here comes from the engine: executions are noted by the handler, copies by the broker, effects by the sink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::world::{LEASE, LaneId, ProcessId, SECOND, Time};

/// What a schedule must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// Every event ends done or in the DLQ.
    NothingLost,
    /// No offset is committed past a copy that is neither executed with success nor moved on by an acknowledged copy.
    NoHoleCommitted,
    /// When everything works again, every record is finished and its offset committed.
    ComesToAnEnd,
    /// Nothing is left in the lanes.
    LanesEmpty,
    /// No claim is left in Redis, and what is finished is marked there.
    StoreSettled,
    /// Nothing starts before its due time by the clock of its instance.
    NeverEarly,
    /// A copy is not executed by two live instances at once (a freeze past the lease and lost keys excepted).
    OneAtATime,
    /// A copy is executed again only after a fault that explains it.
    RepeatsExplained,
    /// An event ends twice only for as many repeats and failed publishes as there were.
    EndsExplained,
    /// Attempts and hops stay within the ladder's bounds and grow one by one.
    Bounded,
    /// Within a stage and a partition, events of one key start one at a time and in their order.
    KeyOrder,
    /// With `order: ladder`, effects of one key happen in the order of main.
    LadderOrder,
    /// With `order: ladder` and without a fault, nobody is left in the queue of a key.
    QueuesEmpty,
    /// A fence is above all earlier ones of its event.
    FencesGrow,
    /// Own headers occur once; the key, the value, the identity and others' headers pass untouched.
    HeadersKept,
    /// Nothing starts on a stage that its process has been told to pause, or while its breaker or brake is shut.
    StoppedStarts,
    /// After breaker or brake was shut, one event at a time is tried until that has succeeded.
    OneIsTried,
    /// A breaker closes again when the target is back.
    Reopens,
    /// No permit is lost, and none is made: at most so many handlers run.
    PermitsKept,
    /// No attempt is charged to an event that has not run.
    AttemptsPaid,
    /// Nothing panics, the lane's own assertions included.
    NoPanic,
}

/// One fault that was found.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) at: Time,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.3} s: {}", self.invariant, self.at as f64 / 1e6, self.what)
    }
}

/// One copy of an event: its number, and its hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CopyId {
    pub(crate) event: usize,
    pub(crate) hop: u64,
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}#{}", self.event, self.hop)
    }
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With an outcome.
    Returned,
    /// The sink refused its fence.
    Fenced,
    /// Its lane cancelled it.
    Cancelled,
    /// Its process ended.
    Died,
}

/// One run of the handler.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) copy: CopyId,
    pub(crate) process: ProcessId,
    pub(crate) lane: LaneId,
    pub(crate) rung: usize,
    pub(crate) key: Option<u64>,
    pub(crate) started: Time,
    pub(crate) fence: u64,
    /// The one in its record.
    pub(crate) carried_fence: u64,
    /// When its effect happens, if it is going to have one.
    pub(crate) effect_at: Option<Time>,
    pub(crate) ended: Option<(Time, Ending)>,
}

/// What is known of one copy.
#[derive(Default)]
struct Copy {
    executions: Vec<usize>,
    /// It had its effect, or its next copy was appended.
    resolved: bool,
    /// Last loss of its key in the store.
    forgotten: Option<Time>,
    /// Commands about it that got no answer, and whose they were.
    unanswered: Vec<(Time, ProcessId)>,
    /// When which process took it for settled.
    finished: Vec<(Time, ProcessId)>,
}

/// What is known of one event.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) effects: usize,
    pub(crate) dead_letters: usize,
    /// When it first had its effect, and when its first dead letter was appended.
    first_effect: Option<Time>,
    first_letter: Option<Time>,
    /// Executions of one copy beyond the first.
    pub(crate) repeats: usize,
    /// Appends to the DLQ that were told as failed, or doubled.
    pub(crate) doubled: usize,
}

/// What a process went through.
#[derive(Default)]
pub(crate) struct Fate {
    pub(crate) ended: Option<Time>,
    pub(crate) freezes: Vec<(Time, Time)>,
    /// Stages that it was told to pause.
    paused: BTreeSet<usize>,
    /// Until when breaker and brake said to be shut; until they say otherwise, one event at a time is tried from then on.
    shut_until: [Option<Time>; 2],
    /// Number of the first execution since one of them was shut last: the first that says how the target is now.
    tried_from: usize,
    /// Successes since then, without a failure between.
    pub(crate) successes: usize,
}

impl Fate {
    pub(crate) fn new(paused: BTreeSet<usize>) -> Self {
        Self { paused, ..Self::default() }
    }

    pub(crate) fn command(&mut self, rung: usize, paused: bool) {
        match paused {
            true => self.paused.insert(rung),
            false => self.paused.remove(&rung),
        };
    }

    /// A resume by command ends every cool-down.
    pub(crate) fn resumed(&mut self, at: Time) {
        self.shut_until.iter_mut().flatten().for_each(|until| *until = at.min(*until));
    }

    /// Breaker (0) or brake (1) is shut until then, or open; `executions` so far.
    pub(crate) fn shut(&mut self, which: usize, until: Option<Time>, executions: usize) {
        self.shut_until[which] = until;
        if until.is_some() {
            (self.tried_from, self.successes) = (executions, 0);
        }
    }

    pub(crate) fn answered(&mut self, execution: usize, up: bool) {
        if execution >= self.tried_from {
            self.successes = if up { self.successes + 1 } else { 0 };
        }
    }

    /// Its last act before it froze was to look at the lease, its first one after is to start the handler: nobody can tell.
    pub(crate) fn wakes_at(&self, at: Time) -> bool {
        self.freezes.iter().any(|(_, to)| *to == at)
    }

    /// Whether it stood still at some instant of this time.
    fn froze_within(&self, from: Time, to: Time) -> bool {
        self.freezes.iter().any(|(begin, end)| *begin <= to && *end >= from)
    }
}

/// What happens by design, so that schedules can be seen to reach it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) executions: u64,
    pub(crate) hops: u64,
    pub(crate) dead_letters: u64,
    pub(crate) kills: u64,
    pub(crate) freezes: u64,
    pub(crate) repeats: u64,
    pub(crate) steps: u64,
    /// Times that a breaker opened or stayed open, and the same of brakes.
    pub(crate) openings: u64,
    pub(crate) stops: u64,
    /// Moves of events whose turn it was not, and places that lapsed.
    pub(crate) behind: u64,
    pub(crate) lapsed: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.executions += other.executions;
        self.hops += other.hops;
        self.dead_letters += other.dead_letters;
        self.kills += other.kills;
        self.freezes += other.freezes;
        self.repeats += other.repeats;
        self.steps += other.steps;
        self.openings += other.openings;
        self.stops += other.stops;
        self.behind += other.behind;
        self.lapsed += other.lapsed;
    }
}

/// Everything.
pub(crate) struct Ledger {
    pub(crate) events: Vec<Event>,
    pub(crate) executions: Vec<Execution>,
    pub(crate) fates: Vec<Fate>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) counts: Counts,
    copies: BTreeMap<CopyId, Copy>,
    /// Without deduplication, or with a store that may be passed over, copies are executed more than once by design.
    pub(crate) strict: bool,
    /// Clocks agree, so fences grow.
    pub(crate) clocks_agree: bool,
    /// Handlers at once, by stage and process.
    concurrency: usize,
    /// Executions that have not ended.
    live: Vec<usize>,
}

impl Ledger {
    pub(crate) fn new(events: usize, strict: bool, clocks_agree: bool, concurrency: usize) -> Self {
        Self {
            events: (0..events).map(|_| Event::default()).collect(),
            executions: Vec::new(),
            fates: Vec::new(),
            violations: Vec::new(),
            counts: Counts::default(),
            copies: BTreeMap::new(),
            strict,
            clocks_agree,
            concurrency,
            live: Vec::new(),
        }
    }

    pub(crate) fn fail(&mut self, at: Time, invariant: Invariant, what: impl Into<String>) {
        if self.violations.len() < 20 {
            self.violations.push(Violation { invariant, at, what: what.into() });
        }
    }

    /// A handler starts; the number of the execution.
    pub(crate) fn start(&mut self, execution: Execution) -> usize {
        let (at, copy) = (execution.started, execution.copy);
        self.counts.executions += 1;
        if self.strict {
            self.check_repeat(&execution);
        }
        self.check_gate(&execution);
        let earlier = self.copies.get(&copy).filter(|known| known.forgotten.is_none());
        // After a refused fence the key is free at once, also for a claim of another worker that had no answer so far:
        // its fence is up to a lease old, is refused in turn, and the next one is not.
        let counts = |execution: &&Execution| !matches!(execution.ended, Some((_, Ending::Fenced)));
        let highest = earlier.and_then(|known| {
            known.executions.iter().map(|i| &self.executions[*i]).filter(counts).map(|execution| execution.fence).max()
        });
        // Equal ones are possible: a claim that was sent in the very millisecond in which the lease before it began.
        let highest = highest.map_or(execution.carried_fence + 1, |highest| highest.max(execution.carried_fence + 1));
        if self.clocks_agree && execution.fence < highest && !self.fates[execution.process].wakes_at(at) {
            self.fail(
                at,
                Invariant::FencesGrow,
                format!("{copy} starts with fence {} below {highest}", execution.fence),
            );
        }
        if let Some(key) = execution.key
            && let Some(other) = self
                .live
                .iter()
                .map(|i| &self.executions[*i])
                .find(|other| other.lane == execution.lane && other.key == Some(key))
        {
            let what = format!("{copy} starts while {} of the same key runs", other.copy);
            self.fail(at, Invariant::KeyOrder, what);
        }
        let number = self.executions.len();
        self.executions.push(execution);
        self.live.push(number);
        self.copies.entry(copy).or_default().executions.push(number);
        number
    }

    /// Whether its process may start anything now.
    fn check_gate(&mut self, new: &Execution) {
        let fate = &self.fates[new.process];
        let shut = fate.shut_until.into_iter().flatten().max();
        let live = || self.live.iter().filter(|i| self.executions[**i].process == new.process);
        let (at, copy, process) = (new.started, new.copy, new.process);
        let mut faults = Vec::new();
        if live().filter(|i| self.executions[**i].rung == new.rung).count() >= self.concurrency {
            faults.push((Invariant::PermitsKept, "without a permit"));
        }
        if !fate.wakes_at(at) {
            if fate.paused.contains(&new.rung) || shut.is_some_and(|until| at < until) {
                faults.push((Invariant::StoppedStarts, "while it is stopped"));
            } else if shut.is_some() && live().any(|i| *i >= fate.tried_from) {
                faults.push((Invariant::OneIsTried, "while another is tried"));
            }
        }
        for (invariant, what) in faults {
            self.fail(at, invariant, format!("{copy} starts in process {process} {what}"));
        }
    }

    fn check_repeat(&mut self, new: &Execution) {
        let (at, copy) = (new.started, new.copy);
        let Some(known) = self.copies.get(&copy) else { return };
        let Some(last) = known.executions.last().map(|i| &self.executions[*i]) else {
            // It had moved on without having run, because it was not its turn, and its record was lost or never written:
            // now both run.
            self.events[copy.event].repeats += usize::from(known.resolved);
            return;
        };
        let lease = LEASE.as_micros() as Time;
        // Its claim stood a little before it started; up to a lease, where a freeze came in between.
        let since = |fault: Option<Time>, last: &Execution| {
            let froze = self.fates[last.process].froze_within(last.started.saturating_sub(lease), last.started);
            fault.is_some_and(|fault| fault + if froze { lease } else { SECOND } >= last.started)
        };
        // What befell its process after it had let go of it explains nothing.
        let its = |(at, process): &&(Time, ProcessId)| *process == last.process && *at >= last.started;
        let let_go = match last.ended {
            Some((end, Ending::Cancelled | Ending::Fenced | Ending::Died)) => end,
            Some((_, Ending::Returned)) => known.finished.iter().find(its).map_or(at, |(end, _)| *end),
            None => at,
        };
        // A lease counts from before its claim was sent, which may have been before a freeze.
        let frozen = self.fates[last.process].froze_within(last.started.saturating_sub(lease), let_go);
        let unanswered = known
            .unanswered
            .iter()
            .any(|(lost, process)| *process == last.process && lost + SECOND >= last.started && *lost <= let_go);
        let forgotten = since(known.forgotten, last);
        let mut faults = Vec::new();
        for other in known.executions.iter().map(|i| &self.executions[*i]).filter(|e| e.ended.is_none()) {
            // Awake, it would have cancelled it at the latest a lease after the store had it for the last time.
            let excused = self.fates[other.process].froze_within(at, at)
                || self.fates[new.process].wakes_at(at)
                || (since(known.forgotten, other) && known.forgotten.is_some_and(|lost| at <= lost + lease));
            if !excused {
                let what = format!("{copy} starts in process {} while it runs in {}", new.process, other.process);
                faults.push((Invariant::OneAtATime, what));
            }
        }
        let explained = frozen
            || self.fates[new.process].wakes_at(at)
            || forgotten
            || self.fates[last.process].ended.is_some_and(|end| end >= last.started && end <= let_go)
            || unanswered
            || matches!(last.ended, Some((_, Ending::Fenced)));
        if !explained {
            let what =
                format!("{copy} is executed again, by process {}; {} had it, unharmed", new.process, last.process);
            faults.push((Invariant::RepeatsExplained, what));
        }
        self.counts.repeats += 1;
        self.events[copy.event].repeats += 1;
        for (invariant, what) in faults {
            self.fail(at, invariant, what);
        }
    }

    /// A handler ends.
    pub(crate) fn end(&mut self, number: usize, at: Time, ending: Ending) {
        let execution = &mut self.executions[number];
        if execution.ended.is_some() {
            return;
        }
        execution.ended = Some((at, ending));
        self.live.retain(|live| *live != number);
        // What returns has had its effect, however long the process was frozen in between.
        if execution.effect_at.is_some_and(|effect| effect <= at || ending == Ending::Returned) {
            let copy = execution.copy;
            let effect = execution.effect_at.unwrap_or(at).min(at);
            let event = &mut self.events[copy.event];
            event.effects += 1;
            event.first_effect = Some(event.first_effect.map_or(effect, |first| first.min(effect)));
            self.resolve(copy);
        }
    }

    /// A process stands still: what its handlers were going to do, they do later.
    pub(crate) fn freeze(&mut self, process: ProcessId, from: Time, to: Time) {
        self.fates[process].freezes.push((from, to));
        for execution in self.live_in(process) {
            if let Some(effect) = self.executions[execution].effect_at.as_mut().filter(|effect| **effect > from) {
                *effect += to - from;
            }
        }
    }

    /// When the copy before this one first came back from its handler.
    pub(crate) fn first_return(&self, copy: CopyId) -> Option<Time> {
        let before = self.copies.get(&CopyId { hop: copy.hop.checked_sub(1)?, ..copy })?;
        before.executions.iter().filter_map(|i| self.executions[*i].ended).map(|(at, _)| at).min()
    }

    /// Executions of a process that have not ended.
    pub(crate) fn live_in(&self, process: ProcessId) -> Vec<usize> {
        self.live.iter().copied().filter(|i| self.executions[*i].process == process).collect()
    }

    pub(crate) fn resolve(&mut self, copy: CopyId) {
        self.copies.entry(copy).or_default().resolved = true;
    }

    pub(crate) fn is_resolved(&self, copy: CopyId) -> bool {
        self.copies.get(&copy).is_some_and(|copy| copy.resolved)
    }

    pub(crate) fn was_executed(&self, copy: CopyId) -> bool {
        self.copies.get(&copy).is_some_and(|copy| !copy.executions.is_empty())
    }

    pub(crate) fn forgotten(&mut self, copy: CopyId, at: Time) {
        self.copies.entry(copy).or_default().forgotten = Some(at);
    }

    pub(crate) fn was_forgotten(&self, copy: CopyId) -> bool {
        self.copies.get(&copy).is_some_and(|copy| copy.forgotten.is_some())
    }

    pub(crate) fn unanswered(&mut self, copy: CopyId, process: ProcessId, at: Time) {
        self.copies.entry(copy).or_default().unanswered.push((at, process));
    }

    /// A process takes a copy for settled: it will do no more about it.
    pub(crate) fn finished(&mut self, copy: CopyId, process: ProcessId, at: Time) {
        self.copies.entry(copy).or_default().finished.push((at, process));
    }

    /// A dead letter is appended.
    pub(crate) fn dead_letter(&mut self, event: usize, at: Time) {
        let event = &mut self.events[event];
        event.dead_letters += 1;
        event.first_letter.get_or_insert(at);
    }

    pub(crate) fn lapsed(&mut self, lapsed: u64) {
        self.counts.lapsed += lapsed;
    }

    /// Events of one key in the order of main: each had ended, the first time, when the next had its effect.
    pub(crate) fn check_order(&mut self, at: Time, of_one_key: &[usize]) {
        let end = |event: &Event| [event.first_effect, event.first_letter].into_iter().flatten().min();
        for (i, &later) in of_one_key.iter().enumerate() {
            let Some(effect) = self.events[later].first_effect else { continue };
            for &earlier in &of_one_key[..i] {
                if end(&self.events[earlier]).is_none_or(|end| end > effect) {
                    let what =
                        format!("e{later} has its effect at {:.3} s, before e{earlier} ended", effect as f64 / 1e6);
                    self.fail(at, Invariant::LadderOrder, what);
                }
            }
        }
    }

    /// At the end: what became of every event. `moves_unrun`: a copy that was forgotten may go through the ladder once more
    /// without being executed itself.
    pub(crate) fn check_ends(&mut self, at: Time, moves_unrun: bool) {
        for number in 0..self.events.len() {
            let event = &self.events[number];
            let (done, dead) = (event.effects, event.dead_letters);
            if done + dead == 0 {
                self.fail(at, Invariant::NothingLost, format!("e{number} is neither done nor dead-lettered"));
            } else if self.strict
                && done + dead > 1 + event.repeats + event.doubled
                && !(moves_unrun && self.copies.iter().any(|(id, copy)| id.event == number && copy.forgotten.is_some()))
            {
                let what = format!(
                    "e{number} ended {done} times done and {dead} times dead, after {} repeats and {} doubled publishes",
                    event.repeats, event.doubled
                );
                self.fail(at, Invariant::EndsExplained, what);
            }
        }
    }
}
