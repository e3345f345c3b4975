//! The marks of a worker ([`retry_ladder::prove::journal`]) as the tests ask for them.

use std::collections::HashMap;
use std::path::Path;

use retry_ladder::prove::journal::each_line;
use retry_ladder::prove::ledger::{Cause, Held, InHand, Interruption};

pub(crate) use retry_ladder::prove::journal::{Line, Step};

/// All lines of a process; none when it has not begun.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    if path.exists() {
        each_line(path, |line| lines.push(line)).expect("marks");
    }
    lines
}

/// What Redis knew from this process since `from_us` and forgot at `at_us`: everything claimed or settled between.
pub(crate) fn forgotten(lines: &[Line], from_us: u64, at_us: u64) -> Interruption {
    let mut open: HashMap<(&str, u64), Held> = HashMap::new();
    let mut in_hand = Vec::new();
    for line in lines.iter().take_while(|line| line.at_us <= at_us) {
        let copy = (line.id.as_str(), line.hop);
        match line.step {
            Step::Claimed { fence, leased_until_us } => {
                let held = Held { id: line.id.clone(), hop: line.hop, how: InHand::Claimed, fence, leased_until_us };
                in_hand.extend(open.insert(copy, held).filter(|_| line.at_us >= from_us));
            }
            Step::Published | Step::Acknowledged => {
                if let Some(held) = open.get_mut(&copy) {
                    let published = line.step == Step::Published;
                    held.how = if published { InHand::Published } else { InHand::Acknowledged };
                }
            }
            Step::Settled => in_hand.extend(open.remove(&copy).filter(|_| line.at_us >= from_us)),
            Step::Released => drop(open.remove(&copy)),
            _ => {}
        }
    }
    in_hand.extend(open.into_values());
    Interruption { cause: Cause::Forgotten, in_hand, ..Interruption::default() }
}
