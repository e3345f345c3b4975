//! What a run leaves behind, as a ledger takes it: records, executions (read from the handler's file), what interrupted
//! processes had in hand.

use std::collections::HashMap;

/// Name and value.
pub type Header = (String, Option<Vec<u8>>);

/// What must come of an event, as its handler decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
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
pub struct Produced {
    /// Its id.
    pub id: String,
    /// What must come of it.
    pub fate: Fate,
    /// As the producer wrote it, at the place that the acknowledgement told.
    pub record: Copy,
}

/// One record of any topic.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Where.
    pub partition: i32,
    /// Where.
    pub offset: i64,
    /// As the broker tells it.
    pub timestamp_ms: i64,
    /// Raw.
    pub key: Option<Vec<u8>>,
    /// Raw.
    pub value: Option<Vec<u8>>,
    /// All, in order.
    pub headers: Vec<Header>,
}

/// One stage: main first, the DLQ last.
#[derive(Clone, Debug)]
pub struct Stage {
    /// `main`, `retry-1` …, `dlq`.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// 0 on main and on the DLQ.
    pub delay_ms: u64,
    /// The topic's records.
    pub copies: Vec<Copy>,
    /// By partition: what the group committed, and the end of the log.
    pub offsets: Vec<(i32, i64, i64)>,
}

/// One execution, from the handler's file.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Unix microseconds.
    pub started_us: u64,
    /// When it ended and how; `None`: killed or cancelled.
    pub ended: Option<(u64, String)>,
    /// Name of the stage.
    pub stage: String,
    /// From 1.
    pub attempt: u32,
    /// As given to the handler.
    pub fence: u64,
    /// The event.
    pub id: String,
    /// Partition and offset of the record that it was given, where the file says so.
    pub read: Option<(i32, i64)>,
}

/// How far a copy was when its process was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InHand {
    /// Redis had granted the claim.
    Claimed,
    /// Its next copy was with the producer, the answer not seen.
    Published,
    /// Its next copy was acknowledged, and Redis did not know yet.
    Acknowledged,
}

/// A copy that a process had claimed and not settled when it was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The event.
    pub id: String,
    /// Its moves so far.
    pub hop: u64,
    /// How far it was.
    pub how: InHand,
    /// The fence of the claim.
    pub fence: u64,
    /// The lease does not end before, Unix microseconds.
    pub leased_until_us: u64,
}

/// What came between a process and its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cause {
    /// SIGKILL: it is gone, its leases run out.
    #[default]
    Killed,
    /// Stopped for longer than a lease, then woken: its leases run out, and it may finish what it had begun.
    Frozen,
    /// Cut off from Redis until its leases ran out.
    CutOff,
    /// Redis, which nobody had cut off, did not answer in time, or the broker did not say what became of a record.
    Unanswered,
    /// The machine did not let it run until its leases ran out: a freeze that nobody ordered.
    Stalled,
    /// Redis lost the keys: whatever was claimed may be claimed again at once.
    Forgotten,
}

/// One blow to one process: what it had in hand then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interruption {
    /// What befell it.
    pub cause: Cause,
    /// What it had in hand.
    pub in_hand: Vec<Held>,
    /// What it handed on or settled anew when it was woken after the lease: event id, hop.
    pub zombie: Vec<(String, u64)>,
    /// Moves that its producer could not tell to be written or not, as often as it could not: event id, hop. They
    /// explain further records of the move, no further execution.
    pub unacknowledged: Vec<(String, u64)>,
    /// Its threads: each may end the step that it was in when it was frozen.
    pub threads: usize,
}

/// Reads the handler's file: `start|end <unix_us> <stage> <attempt> <fence> <event_id> <outcome>`, and behind the
/// outcome, where the writer is a test, `<partition>:<offset>`.
///
/// # Errors
/// The first line that is none.
pub fn read_executions(file: &str) -> Result<Vec<Execution>, String> {
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
