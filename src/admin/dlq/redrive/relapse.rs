//! Copies that come back to the DLQ while their job is at work.

use super::{Desk, Error, Order};
use crate::adapters::kafka::scan::Tail;
use crate::admin::dlq::book::Job;
use crate::ladder::headers;

/// Fewer copies say nothing about the others.
const ENOUGH: u64 = 20;

/// Watches what comes to the DLQ.
pub(super) struct Relapses {
    tail: Option<Tail>,
    stop_at: f64,
    since_ms: u64,
    seen: u64,
}

impl Relapses {
    /// From the ends that the job was planned with.
    pub(super) fn watch(desk: &Desk, order: &Order, job: &Job) -> Result<Self, Error> {
        let stop_at = order.stop_at.filter(|_| order.target.is_some());
        let tail = match stop_at {
            Some(_) => Some(Tail::open(&desk.properties, desk.topic(), Desk::ends(job))?),
            None => None,
        };
        Ok(Self { tail, stop_at: stop_at.unwrap_or(1.0), since_ms: job.started_ms, seen: 0 })
    }

    /// How many came back so far.
    pub(super) fn count(&mut self) -> Result<u64, Error> {
        let (since_ms, mut seen) = (self.since_ms, self.seen);
        if let Some(tail) = &mut self.tail {
            tail.drain(|letter| {
                let mut redriven_at = None;
                letter.for_each_header(|name, value| {
                    if name == headers::REDRIVEN_AT.as_bytes() {
                        redriven_at = value.and_then(|v| std::str::from_utf8(v).ok()?.parse::<u64>().ok());
                    }
                });
                seen += u64::from(redriven_at >= Some(since_ms));
            })?;
        }
        self.seen = seen;
        Ok(seen)
    }

    /// Whether going on would only fill the DLQ again.
    pub(super) fn too_many(&self, job: &Job) -> bool {
        self.tail.is_some() && job.relapsed >= ENOUGH && job.relapsed as f64 > job.moved as f64 * self.stop_at
    }
}
