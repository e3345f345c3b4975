//! What will happen in a run, as a pure function of its seed: the fate and bytes of every event, and when which fault
//! strikes whom. The same seed gives the same run; times of faults are shares of the events sent, not seconds, so that a
//! slow machine meets the same plan.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use prost::Message as _;

use super::ledger::{Copy, Fate, Produced};
use super::proxy::Cut;
use crate::messages::shop::v1::OrderPlaced;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and a new process after a while.
    Kill {
        /// Which worker.
        worker: usize,
        /// Until it is started again.
        down: Duration,
    },
    /// SIGSTOP, and SIGCONT when its leases are long over.
    Freeze {
        /// Which worker.
        worker: usize,
        /// Until it is woken.
        lasts: Duration,
    },
    /// Redis cannot be reached by anybody.
    Outage {
        /// In which way.
        cut: Cut,
        /// For how long.
        lasts: Duration,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill { worker, down } => write!(f, "kill w{worker}, back after {:.1} s", down.as_secs_f64()),
            Fault::Freeze { worker, lasts } => write!(f, "freeze w{worker} for {:.1} s", lasts.as_secs_f64()),
            Fault::Outage { cut, lasts } => {
                let how = match cut {
                    Cut::Refuse => "refuses connections",
                    Cut::BlackHole => "is a black hole",
                    Cut::AtReply => "loses its replies",
                };
                write!(f, "redis {how} for {:.1} s", lasts.as_secs_f64())
            }
        }
    }
}

/// A fault and its moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    /// When this share of the events was sent.
    pub at: f64,
    /// What happens then.
    pub fault: Fault,
}

/// How many of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Worker processes.
    pub workers: usize,
    /// Processes killed.
    pub kills: usize,
    /// Processes frozen.
    pub freezes: usize,
    /// Times that Redis is cut off.
    pub outages: usize,
    /// Lease of a claim: freezes last twice as long, every second outage longer.
    pub lease: Duration,
}

/// The faults of a run, in order.
pub fn faults(seed: u64, counts: Counts) -> Vec<Planned> {
    let mut rng = Rng::with_seed(seed);
    let Counts { workers, kills, freezes, outages, lease } = counts;
    let seconds = |rng: &mut Rng, from: f64, to: f64| Duration::from_secs_f64(from + rng.f64() * (to - from));
    let mut faults = Vec::new();
    // Every worker in turn, beginning anywhere, so that none is spared.
    let first = rng.usize(..workers.max(1));
    for n in 0..kills {
        faults.push(Fault::Kill { worker: (first + n) % workers, down: seconds(&mut rng, 0.2, 1.5) });
    }
    for n in 0..freezes {
        faults.push(Fault::Freeze { worker: (first + kills + n) % workers, lasts: lease * 2 });
    }
    for n in 0..outages {
        let cut = if rng.bool() { Cut::Refuse } else { Cut::BlackHole };
        let lasts = if n % 2 == 0 { seconds(&mut rng, 1.0, 3.0) } else { lease + seconds(&mut rng, 1.0, 2.0) };
        faults.push(Fault::Outage { cut, lasts });
    }
    rng.shuffle(&mut faults);
    let slot = 0.92 / faults.len().max(1) as f64;
    let at = |n: usize, rng: &mut Rng| 0.05 + slot * (n as f64 + rng.f64() * 0.8);
    faults.into_iter().enumerate().map(|(n, fault)| Planned { at: at(n, &mut rng), fault }).collect()
}

/// The fate that an event's id spells: `ok-…`, `f1-…` (fails once) … `f9-…` (always), `perm-…`, `junk-…`; `None`: no id
/// of ours.
pub fn fate(id: &str) -> Option<Fate> {
    match id.split_once('-')?.0 {
        "ok" => Some(Fate::Fails(0)),
        "perm" => Some(Fate::Permanent),
        "junk" => Some(Fate::Poison),
        kind => Some(Fate::Fails(kind.strip_prefix('f')?.parse().ok()?)),
    }
}

/// Event `n` of a run, as its producer writes it; keys repeat, some are null, some are no text.
pub fn event(seed: u64, n: u64, partitions: i32) -> Produced {
    let mut rng = Rng::with_seed(seed ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let (kind, fate) = match rng.u32(..100) {
        0..12 => ("f1", Fate::Fails(1)),
        12..18 => ("f2", Fate::Fails(2)),
        18..23 => ("f3", Fate::Fails(3)),
        23..31 => ("f9", Fate::Fails(9)),
        31..35 => ("perm", Fate::Permanent),
        35..37 => ("junk", Fate::Poison),
        _ => ("ok", Fate::Fails(0)),
    };
    let id = format!("{kind}-{n}");
    let order = OrderPlaced { unique_id: id.clone(), quantity: rng.u32(1..9), ..OrderPlaced::default() };
    let value = if fate == Fate::Poison { vec![0xff; rng.usize(9..16)] } else { order.encode_to_vec() };
    let key = match n % 8 {
        0 => None,
        1 => Some(vec![0xc3, 0x28, rng.u8(..)]),
        _ => Some(format!("customer-{}", rng.u32(..5_000)).into_bytes()),
    };
    let headers = vec![
        ("tenant".to_owned(), Some(vec![0, 0xff, rng.u8(..)])),
        ("x-ladder-event-id".to_owned(), Some(id.as_bytes().to_vec())),
        ("tenant".to_owned(), None),
    ];
    let partition = rng.i32(0..partitions);
    Produced { id, fate, record: Copy { partition, offset: -1, timestamp_ms: -1, key, value: Some(value), headers } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: Counts = Counts { workers: 4, kills: 5, freezes: 2, outages: 3, lease: Duration::from_secs(5) };

    #[test]
    fn the_same_seed_plans_the_same_run_and_another_seed_another() {
        assert_eq!(faults(7, COUNTS), faults(7, COUNTS));
        assert_ne!(faults(7, COUNTS), faults(8, COUNTS));
        let ids = |seed| (0..50).map(|n| event(seed, n, 8).id).collect::<Vec<_>>();
        assert_eq!(ids(7), ids(7));
        assert_ne!(ids(7), ids(8));
    }

    #[test]
    fn faults_come_in_order_and_hit_every_worker() {
        for seed in 0..50 {
            let plan = faults(seed, COUNTS);
            assert_eq!(plan.len(), 10);
            assert!(plan.windows(2).all(|pair| pair[0].at < pair[1].at) && plan[9].at < 0.98, "{plan:?}");
            let mut killed: Vec<_> = plan
                .iter()
                .filter_map(|p| if let Fault::Kill { worker, .. } = p.fault { Some(worker) } else { None })
                .collect();
            killed.sort_unstable();
            killed.dedup();
            assert_eq!(killed, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn every_id_spells_its_fate() {
        for n in 0..500 {
            let event = event(3, n, 8);
            assert_eq!(fate(&event.id), Some(event.fate));
            assert!((0..8).contains(&event.record.partition), "{event:?}");
        }
        assert_eq!(fate("order-1"), None);
    }
}
