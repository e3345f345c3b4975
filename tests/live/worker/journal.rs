//! What a worker had in hand at any instant, from the lines that it wrote as things happened.
//!
//! A line is in the kernel's hands before the engine learns of what it says, so a killed or frozen process never knows
//! more than its journal. What it says of leases is less than the truth: renewals are not in it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use retry_ladder::prove::ledger::{Cause, Held, InHand, Interruption};

/// What a line says of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Claimed, with this fence; the lease does not end before, Unix microseconds.
    Claimed { fence: u64, leased_until_us: u64 },
    /// Somebody else had it.
    Busy,
    /// Redis said that it was finished or moved on already.
    Known,
    /// Its next copy is handed to the producer.
    Published,
    /// Its next copy is acknowledged.
    Acknowledged,
    /// Its settlement is sent to Redis.
    Settling,
    /// Redis has recorded it.
    Settled,
    /// The claim was given back.
    Released,
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at_us: u64,
    pub(crate) step: Step,
    pub(crate) hop: u64,
    pub(crate) id: String,
}

impl Line {
    pub(super) fn write(at_us: u64, step: Step, id: &str, hop: u64) -> String {
        let word = match step {
            Step::Claimed { fence, leased_until_us } => {
                return format!("{at_us} claimed {hop} {id} {fence} {leased_until_us}\n");
            }
            Step::Busy => "busy",
            Step::Known => "known",
            Step::Published => "published",
            Step::Acknowledged => "acknowledged",
            Step::Settling => "settling",
            Step::Settled => "settled",
            Step::Released => "released",
        };
        format!("{at_us} {word} {hop} {id}\n")
    }

    fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let step = match *fields.get(1)? {
            "claimed" => Step::Claimed { fence: number(4)?, leased_until_us: number(5)? },
            "busy" => Step::Busy,
            "known" => Step::Known,
            "published" => Step::Published,
            "acknowledged" => Step::Acknowledged,
            "settling" => Step::Settling,
            "settled" => Step::Settled,
            "released" => Step::Released,
            _ => return None,
        };
        Some(Self { at_us: number(0)?, step, hop: number(2)?, id: (*fields.get(3)?).to_owned() })
    }
}

/// All lines of a process; none when it has not begun.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.map(|line| Line::read(line).unwrap_or_else(|| panic!("no line of a journal: {line:?}"))).collect()
}

/// What the process had in hand at any time in `during`, Unix microseconds, each copy as far as it had come by the end
/// of it, and what it had settled by then. A claim that was given back in good order is not in it; one that was settled
/// is, where the cause is that Redis forgot.
pub(crate) fn interruption(cause: Cause, lines: &[Line], during: RangeInclusive<u64>) -> Interruption {
    let mut open: BTreeMap<(&str, u64), Held> = BTreeMap::new();
    let (mut in_hand, mut settled) = (Vec::new(), Vec::new());
    for line in lines.iter().take_while(|line| line.at_us <= *during.end()) {
        let copy = (line.id.as_str(), line.hop);
        let within = line.at_us >= *during.start();
        match line.step {
            Step::Claimed { fence, leased_until_us } => {
                let held = Held { id: line.id.clone(), hop: line.hop, how: InHand::Claimed, fence, leased_until_us };
                // The claim before was lost on the way.
                in_hand.extend(open.insert(copy, held).filter(|_| within));
            }
            Step::Published | Step::Acknowledged => {
                let held = open.get_mut(&copy).unwrap_or_else(|| panic!("a copy that moves was claimed: {line:?}"));
                held.how = if line.step == Step::Published { InHand::Published } else { InHand::Acknowledged };
            }
            Step::Settled => {
                let forgotten = within && cause == Cause::Forgotten;
                in_hand.extend(open.remove(&copy).filter(|_| forgotten));
                settled.push((line.id.clone(), line.hop));
            }
            // The claim before, if there was one, was lost on the way.
            Step::Known => in_hand.extend(open.remove(&copy).filter(|_| within)),
            Step::Released => drop(open.remove(&copy)),
            Step::Busy | Step::Settling => {}
        }
    }
    in_hand.extend(open.into_values());
    Interruption { cause, in_hand, settled }
}
