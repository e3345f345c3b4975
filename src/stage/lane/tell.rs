//! What a lane tells of itself: counters, its view and its numbers, the one line when it is halted, and one line a second
//! while publishes are not acknowledged.

use std::mem;
use std::time::Duration;

use super::Task;
use crate::ladder::event::{Action, Mark, Timestamp};
use crate::ladder::lane::{Effects, Finish, Standing};
use crate::stage::held::Held;
use crate::stage::lanes::LaneView;

/// Between two lines about publishes that are not acknowledged: in an outage that is every event's.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// Publishes that were not acknowledged, since the last line about them.
#[derive(Default)]
pub(super) struct Unacknowledged {
    count: u64,
    partition: i32,
    /// Of the last one.
    why: String,
    told: Option<Duration>,
}

impl Unacknowledged {
    pub(super) fn add(&mut self, partition: i32, why: String) {
        *self = Self { count: self.count + 1, partition, why, told: self.told };
    }
}

impl Task<'_> {
    pub(super) fn count(&mut self, fx: &mut Effects<Box<Held>>) {
        let stats = &self.ctx.stats;
        if fx.permits > 0 {
            self.ctx.permits.add_permits(fx.permits);
            self.ctx.gate.returned(fx.latest_permits, self.lane.latest_grant());
        }
        stats.busy.add(fx.busy as u64);
        stats.leases_lost.add(fx.leases_lost as u64);
        stats.corrupt.add(fx.corrupt.len() as u64);
        if let Some(slot) = fx.corrupt.first()
            && !mem::replace(&mut self.told_corrupt, true)
        {
            let held = self.lane.get(*slot);
            tracing::error!(
                trace_id = held.trace_id(), event_id = &*held.envelope.event_id,
                correlation_id = held.record.correlation_id(), stage = &*self.ctx.rung().name,
                attempt = held.envelope.attempt + 1, key = %held.key,
                "a deduplication record holds a value that is none of ours; its event waits until the record is gone"
            );
        }
        for (held, finish) in fx.finished.drain(..) {
            match (finish, held.failed.as_ref().map(|(_, action)| action)) {
                (Finish::Duplicate, _) => stats.duplicates.add(1),
                (Finish::Settled(Mark::Done), _) => stats.done.add(1),
                (Finish::Settled(Mark::MovedOn), Some(Action::DeadLetter { reason })) => {
                    stats.dead_lettered(*reason).add(1);
                }
                (Finish::Settled(Mark::MovedOn), Some(Action::Defer { .. })) => stats.deferred.add(1),
                (Finish::Settled(Mark::MovedOn), Some(Action::Wait { .. })) => stats.behind.add(1),
                (Finish::Settled(Mark::MovedOn), _) => stats.forwarded.add(1),
            }
        }
    }

    pub(super) fn view(&self) -> LaneView {
        let (now, lane) = (self.ctx.clock.now().wall, &self.lane);
        let mut view = LaneView {
            position: lane.position(),
            delivered_to: lane.delivered_to(),
            halted: lane.halted(),
            store_down: lane.store_down(),
            ..LaneView::default()
        };
        let earlier = |oldest: Option<Timestamp>, at| Some(oldest.map_or(at, |oldest| oldest.min(at)));
        for (held, standing) in lane.standings(now) {
            // A record without a time counts as written now: nobody is to be alarmed by what is not known.
            let written = u64::try_from(held.record.timestamp_ms).map_or(now, Timestamp::from_millis);
            view.oldest_record = earlier(view.oldest_record, written);
            match standing {
                Standing::Waiting => view.waiting += 1,
                Standing::Started => view.in_flight += 1,
                Standing::Overdue => {
                    view.overdue += 1;
                    view.oldest_overdue = earlier(view.oldest_overdue, held.envelope.due.unwrap_or(written));
                }
            }
        }
        view
    }

    fn tell_unacknowledged(&mut self) {
        let Unacknowledged { count: 1.., told, .. } = self.unacknowledged else { return };
        let now = self.ctx.clock.now().boot;
        if told.is_none_or(|told| now >= told + BETWEEN_LINES) {
            let Unacknowledged { count, partition, why, .. } = mem::take(&mut self.unacknowledged);
            let rung = self.ctx.rung();
            tracing::warn!(stage = &*rung.name, topic = %rung.topic, partition, count, why, "publish not acknowledged");
            self.unacknowledged.told = Some(now);
        }
    }

    pub(super) fn tell(&mut self) {
        self.tell_unacknowledged();
        let lane = &self.lane;
        if self.is_transactional() {
            self.ends.state.tell_hops(lane.publishing());
        }
        self.ends.state.tell_due(lane.next_tick().0);
        self.ends.state.tell(lane.position(), lane.paused(), lane.waiting(), lane.in_flight(), lane.halted());
        if lane.halted() && !mem::replace(&mut self.told_halt, true) {
            let halted = self.lane.iter().find_map(|held| Some((held.halted?, held)));
            let (reason, held) = halted.map_or(("unknown", None), |(reason, held)| (reason.as_str(), Some(held)));
            let rung = self.ctx.rung();
            tracing::error!(
                trace_id = held.and_then(|held| held.trace_id()),
                event_id = held.map(|held| &*held.envelope.event_id),
                correlation_id = held.and_then(|held| held.record.correlation_id()),
                stage = &*rung.name,
                attempt = held.map(|held| held.envelope.attempt + 1),
                topic = %rung.topic,
                partition = held.map(|held| held.record.partition),
                offset = held.map(|held| held.record.offset),
                reason,
                "a partition is halted: going on would lose this event; see the runbook, then restart the stage"
            );
        }
    }
}
