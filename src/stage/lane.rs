//! The lane's task: waits for whatever comes next, feeds it to [`crate::ladder::lane::Lane::step`], performs the
//! effects. One tokio task per assigned partition owns everything of it, so there are no locks.
//!
//! It decides nothing about an event: what a reply means is in the pure lane, where an event goes in `ladder::route`.

mod calls;
mod share;
mod tell;
mod turns;

use std::future::{Future, poll_fn};
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, Sleep};

use self::calls::Reply;
use self::tell::Unacknowledged;
use super::alarm::Alarm;
use super::context::StageContext;
use super::held::{self, Held};
use super::lanes::{LaneCommand, LaneEnds, LaneHandle};
use super::ports::{AckSink, PublishError};
use super::process::{Execution, Names, Prepared, message_of, prepare};
use super::stats::Attempt;
use super::{settle, trace};
use crate::ladder::event::{Mark, Now, Outcome};
use crate::ladder::gate::Grant;
use crate::ladder::lane::{Delivery, Effects, Input, Lane, Slot};

/// The wall clock is read again at least this often, so that a step of it (NTP, suspend) is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// How long a lane for which nobody waits any more goes on sending and settling, beyond what a handler may take.
const ABANDONED: Duration = Duration::from_secs(60);
/// What the producer still has by then is waited for, however long its message timeout is, and for the settlement: with
/// the lane the lease would end, the next owner would execute the event, and the record might arrive all the same.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(5);

/// Starts a lane's task on the runtime.
pub(super) fn open(ctx: Arc<StageContext>, partition: i32, runtime: &tokio::runtime::Handle) -> LaneHandle {
    let (handle, ends) = LaneHandle::new(ctx.settings.max_in_flight);
    let state = Arc::clone(handle.state());
    runtime.spawn(async move {
        let run = Task::new(&ctx, ends).run();
        if let Err(panic) = AssertUnwindSafe(run).catch_unwind().await {
            // What it held is not done, so nothing is lost. The poll thread sees that the lane has ended, and ends the stage.
            state.halt();
            tracing::error!(
                pipeline = &**ctx.ladder.pipeline(), stage = &*ctx.rung().name, topic = %ctx.rung().topic, partition,
                panic = message_of(&*panic),
                "the task of a partition panicked, which is a bug; its stage ends, start it again"
            );
        }
    });
    handle
}

struct Acks(mpsc::UnboundedSender<(u64, Result<(), PublishError>)>);

impl AckSink for Acks {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        // A lane that has ended needs no answer: its event is read again by the next owner.
        drop(self.0.send((ticket, result)));
    }
}

struct Task<'a> {
    ctx: &'a StageContext,
    names: Names,
    ends: LaneEnds,
    lane: Lane<Box<Held>>,
    fx: Effects<Box<Held>>,
    acks: Arc<dyn AckSink>,
    acked: mpsc::UnboundedReceiver<(u64, Result<(), PublishError>)>,
    running: FuturesUnordered<Abortable<Execution<'a>>>,
    calls: FuturesUnordered<BoxFuture<'static, Reply>>,
    /// A call with claims is under way.
    claiming: bool,
    /// A call with settlements is under way.
    settling: bool,
    /// Settlements for the next call.
    to_settle: Vec<(Slot, Mark)>,
    /// Records that the producer has not answered yet.
    with_producer: usize,
    /// It was abandoned long ago: nothing more is sent.
    mute: bool,
    permit: Option<BoxFuture<'static, Option<(OwnedSemaphorePermit, Grant)>>>,
    /// For due times; `None`: tokio's timer, which ticks in milliseconds.
    alarm: Option<Alarm>,
    /// Nobody will ask for hops any more.
    abandoned: bool,
    rng: fastrand::Rng,
    unacknowledged: Unacknowledged,
    told_halt: bool,
    told_corrupt: bool,
    told_full: bool,
}

/// What woke the lane.
enum Wake {
    Commands,
    Acks,
    Returned(Result<(Slot, Outcome), Aborted>),
    Replied(Reply),
    Permit(Option<(OwnedSemaphorePermit, Grant)>),
    Time,
    Abandoned,
}

impl<'a> Task<'a> {
    fn new(ctx: &'a StageContext, ends: LaneEnds) -> Self {
        let (tx, acked) = mpsc::unbounded_channel();
        let config = ctx.lane_config();
        Self {
            ctx,
            names: Names::new(ctx),
            ends,
            rng: fastrand::Rng::with_seed(config.seed),
            lane: Lane::new(config),
            fx: Effects::default(),
            acks: Arc::new(Acks(tx)),
            acked,
            running: FuturesUnordered::new(),
            calls: FuturesUnordered::new(),
            claiming: false,
            settling: false,
            to_settle: Vec::new(),
            with_producer: 0,
            mute: false,
            permit: None,
            alarm: ctx.clock.alarm(),
            abandoned: false,
            unacknowledged: Unacknowledged::default(),
            told_halt: false,
            told_corrupt: false,
            told_full: false,
        }
    }

    async fn run(mut self) {
        let mut commands = Vec::new();
        let mut acks = Vec::new();
        let mut abandoned: Option<Instant> = None;
        let mut timer = pin!(tokio::time::sleep(MAX_SLEEP));
        loop {
            let wake = self.next(&mut timer, &mut commands, &mut acks, abandoned).await;
            match wake {
                Wake::Commands if commands.is_empty() => {
                    // The handle is gone: nobody waits for the drain any more, but what runs is still settled.
                    abandoned.get_or_insert_with(|| Instant::now() + self.ctx.settings.handler_timeout + ABANDONED);
                    self.step(Input::Drain);
                    self.abandon_hops();
                }
                Wake::Commands => {}
                Wake::Acks => {}
                Wake::Returned(result) => self.returned(result),
                Wake::Replied(reply) => self.replied(reply),
                Wake::Permit(permit) => {
                    self.permit = None;
                    if let Some((permit, grant)) = permit {
                        permit.forget();
                        self.step(Input::Permits(1, grant));
                    }
                }
                Wake::Time => self.step(Input::Tick),
                Wake::Abandoned if self.with_producer == 0 => break,
                Wake::Abandoned => {
                    self.mute = true;
                    abandoned = Some(Instant::now() + LAST_SETTLEMENTS);
                }
            }
            if self.obey(&mut commands) == Obeyed::Stop {
                break;
            }
            let now = self.ctx.clock.now();
            for (ticket, result) in acks.drain(..) {
                self.acknowledged(now, ticket, result);
            }
            self.take_what_is_there(now);
            self.take_permits();
            self.perform().await;
            self.queue_for_permit();
            self.tell();
            if self.lane.drained() {
                break;
            }
        }
    }

    async fn next(
        &mut self,
        timer: &mut Pin<&mut Sleep>,
        commands: &mut Vec<LaneCommand>,
        acks: &mut Vec<(u64, Result<(), PublishError>)>,
        abandoned: Option<Instant>,
    ) -> Wake {
        let until = Instant::now() + self.until_next_tick();
        timer.as_mut().reset(abandoned.map_or(until, |end| until.min(end)));
        let alarm = async {
            match &mut self.alarm {
                Some(alarm) => alarm.rang().await,
                None => std::future::pending().await,
            }
        };
        let permit = async {
            match &mut self.permit {
                Some(permit) => permit.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // First of all: a process that was frozen for longer than a lease finds this due together with whatever its
            // handlers wait for, and must give them up before they go on.
            () = timer => {
                if abandoned.is_some_and(|end| Instant::now() >= end) { Wake::Abandoned } else { Wake::Time }
            }
            _ = self.ends.commands.recv_many(commands, 64), if abandoned.is_none() => Wake::Commands,
            n = self.acked.recv_many(acks, 1_024) => { debug_assert!(n > 0); Wake::Acks }
            Some(result) = self.running.next(), if !self.running.is_empty() => Wake::Returned(result),
            Some(reply) = self.calls.next(), if !self.calls.is_empty() => Wake::Replied(reply),
            permit = permit => Wake::Permit(permit),
            () = alarm => Wake::Time,
        }
    }

    /// Sets the alarm for the next due time; how long to sleep at most for anything else, and for the due time where
    /// there is no alarm.
    fn until_next_tick(&mut self) -> Duration {
        let now = self.ctx.clock.now();
        let (wall, boot) = self.lane.next_tick();
        let rings = self.alarm.as_mut().is_some_and(|alarm| alarm.set(wall));
        let wall = wall.filter(|_| !rings).map_or(MAX_SLEEP, |at| at.since(now.wall));
        let boot = boot.map_or(MAX_SLEEP, |at| at.saturating_sub(now.boot));
        wall.min(boot).min(MAX_SLEEP)
    }

    /// Whatever else is there already joins this round, so that claims and settlements go out in few batches.
    fn take_what_is_there(&mut self, now: Now) {
        while let Ok((ticket, result)) = self.acked.try_recv() {
            self.acknowledged(now, ticket, result);
        }
        while let Some(Some(result)) = self.running.next().now_or_never() {
            self.returned(result);
        }
        while let Some(Some(reply)) = self.calls.next().now_or_never() {
            self.replied(reply);
        }
    }

    fn step(&mut self, input: Input<Box<Held>>) {
        self.step_at(self.ctx.clock.now(), input);
    }

    fn step_at(&mut self, now: Now, input: Input<Box<Held>>) {
        self.lane.step(now, input, &mut self.fx);
        // At once: an outcome that is ready later in this round no longer counts, the lane has given the event up.
        for slot in self.fx.cancel.drain(..) {
            let held = self.lane.get_mut(slot);
            if let Some(abort) = held.abort.take() {
                abort.abort();
                trace::cancelled(self.ctx, held, now.wall);
            }
        }
    }

    // ------------------------------------------------------------------------------------------------ inputs

    fn obey(&mut self, commands: &mut Vec<LaneCommand>) -> Obeyed {
        for command in commands.drain(..) {
            match command {
                LaneCommand::Records(records) => {
                    self.ends.state.taken_in(records.len());
                    let batch = records.into_iter().map(|record| held::receive(self.ctx, record)).collect();
                    self.step(Input::Arrived(batch));
                }
                LaneCommand::Drain => self.step(Input::Drain),
                LaneCommand::Share(to) => self.share(&to),
                LaneCommand::Withhold => self.abandon_hops(),
                // Who asked may have lost patience.
                LaneCommand::Look(answer) => drop(answer.send(self.view())),
                LaneCommand::Stop => return Obeyed::Stop,
            }
        }
        Obeyed::GoOn
    }

    fn returned(&mut self, result: Result<(Slot, Outcome), Aborted>) {
        self.ctx.stats.running.fetch_sub(1, Ordering::Relaxed);
        match result {
            Ok((slot, outcome)) => drop(self.executed(slot, outcome)),
            Err(Aborted) => self.ctx.stats.attempts.of(Attempt::Cancelled).add(1),
        }
    }

    /// Takes the outcome of an execution; when that was.
    fn executed(&mut self, slot: Slot, outcome: Outcome) -> Now {
        self.ctx.stats.count_attempt(&outcome);
        let (now, took) = self.conclude(slot, outcome, true);
        self.ctx.stats.handler_seconds.record(took);
        now
    }

    /// Takes an outcome; when that was, and the time since the event was started.
    fn conclude(&mut self, slot: Slot, outcome: Outcome, executed: bool) -> (Now, Duration) {
        let now = self.ctx.clock.now();
        let grant = self.lane.grant(slot);
        let held = self.lane.get_mut(slot);
        held.abort = None;
        let took = now.wall.since(held.started);
        held.took = took;
        let answer = self.ctx.gate.heeds(&outcome);
        let verdict = settle::conclude(self.ctx, held, outcome, now.wall, self.rng.f64());
        if let Some(answer) = answer {
            let end = settle::end(self.ctx, held, verdict);
            self.ctx.gate.concluded(now, executed.then_some(grant), answer, end);
        }
        trace::executed(self.ctx, held, verdict, now.wall);
        self.step_at(now, Input::Returned(slot, verdict));
        (now, took)
    }

    fn acknowledged(&mut self, now: Now, ticket: u64, result: Result<(), PublishError>) {
        let slot = ticket as Slot;
        if self.is_transactional() {
            if !self.lane.is_publishing(slot) {
                return; // withheld since it was handed over
            }
        } else {
            self.with_producer -= 1;
        }
        self.ctx.stats.count_produced(&result);
        let delivery = match result {
            Ok(()) => {
                trace::sent(self.ctx, self.lane.get_mut(slot), now.wall);
                Delivery::Acknowledged
            }
            Err(PublishError::TooLarge) => Delivery::TooLarge,
            Err(PublishError::Aborted) => {
                self.ctx.stats.republished.add(1);
                Delivery::Failed
            }
            Err(PublishError::Unacknowledged(why)) => {
                let held = self.lane.get(slot);
                tracing::debug!(
                    trace_id = held.trace_id(),
                    event_id = &*held.envelope.event_id,
                    correlation_id = held.record.correlation_id(),
                    stage = &*self.ctx.rung().name,
                    attempt = held.envelope.attempt + 1,
                    partition = held.record.partition,
                    why,
                    "publish of this event not acknowledged"
                );
                self.ctx.stats.republished.add(1);
                self.unacknowledged.add(held.record.partition, why);
                Delivery::Failed
            }
        };
        self.step_at(now, Input::Published(slot, delivery));
    }

    fn replied(&mut self, reply: Reply) {
        let input = match reply {
            Reply::Claimed(replies, turns, sent) => {
                self.claiming = false;
                self.heed(turns);
                Input::Claimed(replies, sent)
            }
            Reply::Renewed(replies, sent) => Input::Renewed(replies, sent),
            Reply::Settled(replies, lost) => {
                self.settling = false;
                self.ctx.stats.leases_lost.add(lost);
                Input::Settled(replies)
            }
            Reply::Released(slots) => Input::Released(slots),
            Reply::Joined(replies) => return self.joined(replies),
        };
        self.step(input);
    }

    fn take_permits(&mut self) {
        if self.claiming {
            return;
        }
        let now = self.ctx.clock.now();
        let permits = &self.ctx.permits;
        let free = self.lane.wanted(now).min(permits.available_permits());
        if free == 0 {
            return;
        }
        let (free, grant) = self.ctx.gate.take(free);
        match u32::try_from(free).ok().and_then(|count| permits.try_acquire_many(count).ok()) {
            Some(taken) if free > 0 => {
                taken.forget();
                self.step_at(now, Input::Permits(free, grant));
            }
            _ => self.ctx.gate.returned(free, grant),
        }
    }

    /// Queues for a permit when events are ready: those for which there was none, and those that became ready while
    /// the effects were performed (the next of its key, behind a handler that answered at once).
    fn queue_for_permit(&mut self) {
        if self.claiming || self.lane.wanted(self.ctx.clock.now()) == 0 {
            self.permit = None;
        } else if self.permit.is_none() {
            let (permits, gate) = (Arc::clone(&self.ctx.permits), self.ctx.gate.clone());
            let permit = async move {
                let permit = permits.acquire_owned().await.ok()?;
                Some((permit, gate.pass().await))
            };
            self.permit = Some(permit.boxed());
        }
    }

    // ------------------------------------------------------------------------------------------------ effects

    async fn perform(&mut self) {
        // Handlers that answer at once produce new effects; go on until there are none.
        while !self.fx.is_empty() || self.owes_settlements() {
            let mut fx = mem::take(&mut self.fx);
            let now = self.ctx.clock.now();
            self.count(&mut fx);
            self.call_store(&mut fx, now);
            self.take_places(&mut fx, now);
            for slot in fx.publish.drain(..) {
                self.publish(slot);
            }
            for slot in fx.shrink.drain(..) {
                match self.lane.get(slot).shrink.smaller() {
                    Some(smaller) => {
                        self.lane.get_mut(slot).shrink = smaller;
                        self.publish(slot);
                    }
                    None => {
                        self.lane.get_mut(slot).halted = Some(crate::ladder::event::HaltReason::TooLarge);
                        self.step(Input::Published(slot, Delivery::Unpublishable));
                    }
                }
            }
            if !fx.start.is_empty() {
                // The end of one start is the beginning of the next: the clock is read once for each.
                let mut now = self.ctx.clock.now();
                for slot in fx.start.drain(..) {
                    now = self.start(slot, now).await;
                }
            }
            fx.clear();
            // Keep the larger buffers of the two.
            if self.fx.is_empty() {
                self.fx = fx;
            }
        }
    }

    /// The clock is read for each: a process may be frozen for longer than a lease between any two of a round.
    fn publish(&mut self, slot: Slot) {
        if self.is_transactional() {
            return self.hop_waits(slot);
        }
        let now = self.ctx.clock.now();
        if self.mute || self.lane.lease_gone(now, slot) {
            return self.step(Input::Published(slot, Delivery::Failed));
        }
        let fence = self.lane.claim(slot).fence;
        match settle::next_copy(self.ctx, self.lane.get(slot), fence) {
            Some(record) => {
                self.with_producer += 1;
                self.ctx.publisher.publish(record, u64::from(slot), &self.acks);
            }
            None => self.step(Input::Published(slot, Delivery::Unpublishable)),
        }
    }

    /// Starts the handler of an event; the time afterwards.
    async fn start(&mut self, slot: Slot, begin: Now) -> Now {
        // The handlers before it in this round may have taken long enough for its lease to end.
        if !self.lane.may_start(begin, slot) {
            return begin;
        }
        // Since it was let through and found due the gate may have been shut, and the wall clock set back.
        if self.lane.due(slot) > begin.wall || !self.ctx.gate.may_start(self.lane.grant(slot)) {
            self.step_at(begin, Input::NotStarted(slot));
            return begin;
        }
        if self.waits_its_turn(slot, begin) {
            return begin;
        }
        let (now, fence) = (begin.wall, self.lane.claim(slot).fence);
        let due = self.lane.due(slot);
        let held = self.lane.get_mut(slot);
        held.started = now;
        trace::begin(self.ctx, held);
        let event = match prepare(self.ctx, &self.names, held, fence, now) {
            Prepared::Run(event) => event,
            Prepared::Known(outcome) => return self.conclude(slot, outcome, false).0,
        };
        let stats = &self.ctx.stats;
        stats.executions.add(1);
        if held.envelope.due.is_some() {
            stats.lateness.record(now.since(due));
            stats.early.add(u64::from(now < due));
        }
        let timeout = self.ctx.settings.handler_timeout;
        let mut execution = match Execution::start(slot, &*self.ctx.handler, event, timeout) {
            Ok(execution) => execution,
            Err(outcome) => return self.executed(slot, outcome),
        };
        // A handler that answers at once costs neither a task nor a place in the set.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut execution).poll(cx))).await;
        match first {
            Poll::Ready((_, outcome)) => self.executed(slot, outcome),
            Poll::Pending => {
                let (abort, registration) = AbortHandle::new_pair();
                self.lane.get_mut(slot).abort = Some(abort);
                self.running.push(Abortable::new(execution, registration));
                self.ctx.stats.running.fetch_add(1, Ordering::Relaxed);
                self.ctx.clock.now()
            }
        }
    }
}

impl Drop for Task<'_> {
    /// The lane's end, whatever led to it: handlers that still run are cut off, their permits come back, and those that
    /// came free in a round that was cut off.
    fn drop(&mut self) {
        let running = self.running.len();
        self.running.clear();
        self.ctx.stats.running.fetch_sub(running as u64, Ordering::Relaxed);
        self.ctx.stats.attempts.of(Attempt::Cancelled).add(running as u64);
        let (held, latest) = self.lane.permits_held();
        self.ctx.permits.add_permits(held + self.fx.permits);
        self.ctx.gate.returned(latest + self.fx.latest_permits, self.lane.latest_grant());
        self.ends.commands.close();
        self.ends.state.tell_end(self.lane.position());
        // Nobody listening is fine: the handle was dropped.
        self.ends.ended.send_replace(true);
    }
}

#[derive(PartialEq)]
enum Obeyed {
    GoOn,
    Stop,
}
