//! What a run leaves behind, as a ledger takes it: records, executions, the last words of killed processes; and the two
//! files of these read back.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Name and value.
pub(crate) type Header = (String, Option<Vec<u8>>);

/// What must come of an event, as its handler decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Fails this many times, then succeeds.
    Fails(u32),
    /// Fails for good at the first attempt.
    Permanent,
    /// Cannot be decoded: no handler sees it.
    Poison,
    /// The very first execution fails (for good: `permanent`), every later one succeeds, even one of the same attempt.
    Heals { permanent: bool },
}

/// One event whose producer got an acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Produced {
    pub(crate) id: String,
    pub(crate) fate: Fate,
    pub(crate) record: Copy,
}

/// One record of any topic.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<Header>,
}

/// One stage: main first, the DLQ last.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) topic: String,
    /// 0 on main and on the DLQ.
    pub(crate) delay_ms: u64,
    /// The topic's records.
    pub(crate) copies: Vec<Copy>,
    /// By partition: what the group committed, and the end of the log.
    pub(crate) offsets: Vec<(i32, i64, i64)>,
}

/// One execution, from the handler's file.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) started_us: u64,
    /// When it ended and how; `None`: killed or cancelled.
    pub(crate) ended: Option<(u64, String)>,
    pub(crate) stage: String,
    pub(crate) attempt: u32,
    pub(crate) fence: u64,
    pub(crate) id: String,
    /// Partition and offset of the record that it was given, where the file says so.
    pub(crate) read: Option<(i32, i64)>,
}

/// How far a copy was when its process was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InHand {
    /// Redis had granted the claim.
    Claimed,
    /// Its next copy was with the producer, the answer not seen.
    Published,
    /// Its next copy was acknowledged, and Redis did not know yet.
    Acknowledged,
}

/// A copy that a process had claimed and not settled when it was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) hop: u64,
    pub(crate) how: InHand,
    /// The fence of the claim.
    pub(crate) fence: u64,
    /// The lease does not end before, Unix microseconds.
    pub(crate) leased_until_us: u64,
}

/// What a killed process left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kill {
    /// What it had in hand.
    pub(crate) in_hand: Vec<Held>,
    /// Settled by this process: event id, hop.
    pub(crate) settled: Vec<(String, u64)>,
}

/// Reads the handler's file: `start|end <unix_us> <stage> <attempt> <fence> <event_id> <outcome>`, and behind the
/// outcome, where the writer is a test, `<partition>:<offset>`.
///
/// # Errors
/// The first line that is none.
pub(crate) fn read_executions(file: &str) -> Result<Vec<Execution>, String> {
    let mut executions: Vec<Execution> = Vec::new();
    let mut open: HashMap<(String, u32, u64), usize> = HashMap::new();
    for line in file.lines() {
        let bad = || format!("no line of an executions file: {line:?}");
        let fields: Vec<&str> = line.split(' ').collect();
        let [what, at, stage, attempt, fence, id, outcome, read @ ..] = &fields[..] else { return Err(bad()) };
        let at: u64 = at.parse().map_err(|_| bad())?;
        let (attempt, fence): (u32, u64) = (attempt.parse().map_err(|_| bad())?, fence.parse().map_err(|_| bad())?);
        let key = ((*id).to_owned(), attempt, fence);
        match *what {
            "start" => {
                let read = match read {
                    [] => None,
                    [place] => {
                        let (partition, offset) = place.split_once(':').ok_or_else(bad)?;
                        Some((partition.parse().map_err(|_| bad())?, offset.parse().map_err(|_| bad())?))
                    }
                    _ => return Err(bad()),
                };
                open.insert(key, executions.len());
                let (stage, id) = ((*stage).to_owned(), (*id).to_owned());
                executions.push(Execution { started_us: at, ended: None, stage, attempt, fence, id, read });
            }
            "end" => {
                let index = open.remove(&key).ok_or_else(|| format!("an end without a start: {line:?}"))?;
                executions[index].ended = Some((at, (*outcome).to_owned()));
            }
            _ => return Err(bad()),
        }
    }
    Ok(executions)
}

impl Kill {
    /// One line a copy: `claimed|published|acknowledged <hop> <event_id> <fence> <leased_until_us>` or
    /// `settled <hop> <event_id>`.
    pub(crate) fn write(&self) -> String {
        let mut file = String::new();
        for Held { id, hop, how, fence, leased_until_us } in &self.in_hand {
            let how = match how {
                InHand::Claimed => "claimed",
                InHand::Published => "published",
                InHand::Acknowledged => "acknowledged",
            };
            writeln!(file, "{how} {hop} {id} {fence} {leased_until_us}").ok();
        }
        for (id, hop) in &self.settled {
            writeln!(file, "settled {hop} {id}").ok();
        }
        file
    }

    /// The same read back.
    ///
    /// # Errors
    /// The first line that is none.
    pub(crate) fn read(file: &str) -> Result<Self, String> {
        let mut kill = Self::default();
        for line in file.lines() {
            let bad = || format!("no line of a killed process: {line:?}");
            let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["settled", hop, id] => kill.settled.push((id.to_owned(), number(hop)?)),
                [how, hop, id, fence, until] => {
                    let how = match how {
                        "claimed" => InHand::Claimed,
                        "published" => InHand::Published,
                        "acknowledged" => InHand::Acknowledged,
                        _ => return Err(bad()),
                    };
                    let (hop, fence, leased_until_us) = (number(hop)?, number(fence)?, number(until)?);
                    kill.in_hand.push(Held { id: id.to_owned(), hop, how, fence, leased_until_us });
                }
                _ => return Err(bad()),
            }
        }
        Ok(kill)
    }
}
