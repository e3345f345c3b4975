//! What one schedule is drawn from: a seed, the kinds of fault that may happen, the number of events. Everything else
//! (workers, partitions, rungs, plans, instants) follows from the seed.
//!
//! A case is written as `SEED`, or as `SEED:EVENTS:FAULT+FAULT` once it was shrunk; both are read back.

use std::fmt;
use std::str::FromStr;

macro_rules! faults {
    ($($name:ident = $text:literal: $what:literal,)*) => {
        /// One kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Fault { $(#[doc = $what] $name,)* }

        /// All kinds, by their names in a case.
        pub(crate) const FAULTS: &[(Fault, &str)] = &[$((Fault::$name, $text),)*];
    };
}

faults! {
    Kill = "kill": "A worker is killed between two of its effects, and started again later.",
    Freeze = "freeze": "A worker stands still between two of its effects, often past its leases, and goes on.",
    Rebalance = "rebalance": "A partition moves to another worker.",
    Shutdown = "shutdown": "A worker drains, leaves, and is started again.",
    Cut = "cut": "A worker reaches Redis but not the broker.",
    StoreLost = "store-lost": "A request to Redis, or its reply, is lost, or it is applied after it was given up.",
    StoreOutage = "store-outage": "Redis answers nobody, or not this worker, for a while.",
    StoreRefused = "store-refused": "Redis refuses single commands of a batch (OOM).",
    KeyLoss = "key-loss": "Redis forgets single keys.",
    Flush = "flush": "Redis forgets everything.",
    Failover = "failover": "Redis forgets its last writes.",
    AckLate = "ack-late": "Acknowledgements take longer than a lease.",
    AckLost = "ack-lost": "A record is appended, perhaps late, and reported as failed.",
    ProduceError = "produce-error": "A record is not appended.",
    TooLarge = "too-large": "The broker refuses a record until it is made smaller.",
    Twice = "twice": "A record, on main or of a hop, is appended twice.",
    Skew = "skew": "The wall clocks of the workers differ.",
    ClockStep = "clock-step": "A wall clock is set forth or back.",
    OffsetReset = "offset-reset": "A committed offset is lost; the group starts at the earliest record.",
    StepBack = "step-back": "A consumer is set back in the middle of an assignment.",
    Fenced = "fenced": "The sink refuses a fence.",
    Flaky = "flaky": "Outcomes differ from one execution of a copy to the next.",
    Slow = "slow": "Handlers run for longer than a lease, or than their deadline.",
    Pause = "pause": "A stage is paused by command, and resumed; every worker hears of it in its own time.",
    TargetDown = "target-down": "Whatever the handlers call fails for a while.",
}

/// A set of kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faults(pub u32);

impl Faults {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self((1 << FAULTS.len()) - 1);

    pub(crate) fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u8) != 0
    }

    pub(crate) fn without(self, fault: Fault) -> Self {
        Self(self.0 & !(1 << fault as u8))
    }

    /// None, all, or each with a chance that is drawn first: faults show most when they are few.
    fn draw(rng: &mut fastrand::Rng) -> Self {
        let chance = match rng.u8(..16) {
            0 => return Self::NONE,
            1 => return Self::ALL,
            2..8 => 0.1,
            8..13 => 0.25,
            _ => 0.5,
        };
        Self((0..FAULTS.len()).filter(|_| rng.f64() < chance).fold(0, |set, bit| set | 1 << bit))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = FAULTS.iter().filter(|(fault, _)| self.has(*fault)).map(|(_, name)| *name).collect();
        f.write_str(&if names.is_empty() { "none".to_owned() } else { names.join("+") })
    }
}

/// One schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    pub(crate) events: usize,
    pub(crate) faults: Faults,
}

impl Case {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5EED);
        Self { seed, events: rng.usize(4..=12), faults: Faults::draw(&mut rng) }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.seed, self.events, self.faults)
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let number = |text: &str| text.trim().parse::<u64>().map_err(|why| format!("`{text}`: {why}"));
        let mut case = Case::new(number(parts.next().unwrap_or_default())?);
        if let Some(events) = parts.next() {
            case.events = usize::try_from(number(events)?).map_err(|why| why.to_string())?;
        }
        if let Some(names) = parts.next() {
            case.faults = Faults::NONE;
            for name in names.trim().split('+').filter(|name| *name != "none") {
                let (fault, _) = FAULTS.iter().find(|(_, n)| *n == name).ok_or(format!("no fault `{name}`"))?;
                case.faults.0 |= 1 << *fault as u8;
            }
        }
        Ok(case)
    }
}
