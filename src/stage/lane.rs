//! The lane's task: waits for whatever comes next, feeds it to [`crate::ladder::lane::Lane::step`], performs the
//! effects. One tokio task per assigned partition owns everything of it, so there are no locks.
//!
//! It decides nothing about an event: what a reply means is in the pure lane, where an event goes in `ladder::route`.

use std::future::{Future, poll_fn};
use std::mem;
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

use super::context::StageContext;
use super::held::{self, Held};
use super::lanes::{LaneCommand, LaneEnds, LaneHandle};
use super::ports::{AckSink, Claim, PublishError};
use super::process::{Execution, Prepared, prepare};
use super::settle;
use crate::ladder::event::{Action, ClaimReply, Mark, Now, Outcome};
use crate::ladder::lane::{ClaimId, Delivery, Effects, Finish, Input, Lane, Slot};

/// The wall clock is read again at least this often, so that a step of it (NTP, suspend) is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// How long a lane that was told to drain goes on when nobody waits for it any more.
const ABANDONED: Duration = Duration::from_secs(60);

/// Starts a lane's task on the current tokio runtime.
pub(super) fn open(ctx: Arc<StageContext>, runtime: &tokio::runtime::Handle) -> LaneHandle {
    let (handle, ends) = LaneHandle::new(ctx.settings.max_in_flight);
    runtime.spawn(async move { Task::new(&ctx, ends).run().await });
    handle
}

/// A reply of the store to one batch.
enum Reply {
    Claimed(Vec<(Slot, Option<ClaimReply>)>, Duration),
    Renewed(Vec<(Slot, ClaimId, Option<bool>)>, Duration),
    /// Recorded or not, and how many of the recorded were no longer ours.
    Settled(Vec<(Slot, bool)>, u64),
    Released(Vec<Slot>),
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
    ends: LaneEnds,
    lane: Lane<Box<Held>>,
    fx: Effects<Box<Held>>,
    acks: Arc<dyn AckSink>,
    acked: mpsc::UnboundedReceiver<(u64, Result<(), PublishError>)>,
    running: FuturesUnordered<Abortable<Execution<'a>>>,
    calls: FuturesUnordered<BoxFuture<'static, Reply>>,
    permit: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    rng: fastrand::Rng,
    told_halt: bool,
    told_corrupt: bool,
}

/// What woke the lane.
enum Wake {
    Commands,
    Acks,
    Returned(Result<(Slot, Outcome), Aborted>),
    Replied(Reply),
    Permit(Option<OwnedSemaphorePermit>),
    Time,
    Abandoned,
}

impl<'a> Task<'a> {
    fn new(ctx: &'a StageContext, ends: LaneEnds) -> Self {
        let (tx, acked) = mpsc::unbounded_channel();
        let config = ctx.lane_config();
        Self {
            ctx,
            ends,
            rng: fastrand::Rng::with_seed(config.seed),
            lane: Lane::new(config),
            fx: Effects::default(),
            acks: Arc::new(Acks(tx)),
            acked,
            running: FuturesUnordered::new(),
            calls: FuturesUnordered::new(),
            permit: None,
            told_halt: false,
            told_corrupt: false,
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
                    abandoned.get_or_insert_with(|| Instant::now() + ABANDONED);
                    self.step(Input::Drain);
                }
                Wake::Commands => {}
                Wake::Acks => {}
                Wake::Returned(result) => self.returned(result),
                Wake::Replied(reply) => self.replied(reply),
                Wake::Permit(permit) => {
                    self.permit = None;
                    if let Some(permit) = permit {
                        permit.forget();
                        self.step(Input::Permits(1));
                    }
                }
                Wake::Time => self.step(Input::Tick),
                Wake::Abandoned => break,
            }
            if self.obey(&mut commands) == Obeyed::Stop {
                break;
            }
            for (ticket, result) in acks.drain(..) {
                self.acknowledged(ticket, result);
            }
            self.take_what_is_there();
            self.take_permits();
            self.perform().await;
            self.tell();
            if self.lane.drained() {
                break;
            }
        }
        // Permits of handlers that are cut off here.
        let running = self.running.len();
        self.running.clear();
        self.ctx.stats.running.fetch_sub(running as u64, Ordering::Relaxed);
        self.ctx.permits.add_permits(self.lane.permits_held());
        self.tell();
        // Nobody listening is fine: the handle was dropped.
        self.ends.ended.send_replace(true);
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
        let permit = async {
            match &mut self.permit {
                Some(permit) => permit.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.ends.commands.recv_many(commands, 64), if abandoned.is_none() => Wake::Commands,
            n = self.acked.recv_many(acks, 1_024) => { debug_assert!(n > 0); Wake::Acks }
            Some(result) = self.running.next(), if !self.running.is_empty() => Wake::Returned(result),
            Some(reply) = self.calls.next(), if !self.calls.is_empty() => Wake::Replied(reply),
            permit = permit => Wake::Permit(permit),
            () = timer => {
                if abandoned.is_some_and(|end| Instant::now() >= end) { Wake::Abandoned } else { Wake::Time }
            }
        }
    }

    fn until_next_tick(&self) -> Duration {
        let now = self.ctx.clock.now();
        let (wall, boot) = self.lane.next_tick();
        let wall = wall.map_or(MAX_SLEEP, |at| at.since(now.wall));
        let boot = boot.map_or(MAX_SLEEP, |at| at.saturating_sub(now.boot));
        wall.min(boot).min(MAX_SLEEP)
    }

    /// Whatever else is there already joins this round, so that claims and settlements go out in few batches.
    fn take_what_is_there(&mut self) {
        while let Ok((ticket, result)) = self.acked.try_recv() {
            self.acknowledged(ticket, result);
        }
        while let Some(Some(result)) = self.running.next().now_or_never() {
            self.returned(result);
        }
        while let Some(Some(reply)) = self.calls.next().now_or_never() {
            self.replied(reply);
        }
    }

    fn step(&mut self, input: Input<Box<Held>>) {
        let now = self.ctx.clock.now();
        self.lane.step(now, input, &mut self.fx);
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
                LaneCommand::Hold(held) => self.step(Input::Hold(held)),
                LaneCommand::Stop => return Obeyed::Stop,
            }
        }
        Obeyed::GoOn
    }

    fn returned(&mut self, result: Result<(Slot, Outcome), Aborted>) {
        self.ctx.stats.running.fetch_sub(1, Ordering::Relaxed);
        if let Ok((slot, outcome)) = result {
            self.conclude(slot, outcome);
        }
    }

    fn conclude(&mut self, slot: Slot, outcome: Outcome) {
        let now = self.ctx.clock.now();
        let held = self.lane.get_mut(slot);
        held.abort = None;
        held.took = now.wall.since(held.started);
        let verdict = settle::conclude(self.ctx, held, outcome, now.wall, self.rng.f64());
        self.lane.step(now, Input::Returned(slot, verdict), &mut self.fx);
    }

    fn acknowledged(&mut self, ticket: u64, result: Result<(), PublishError>) {
        let slot = ticket as Slot;
        let delivery = match result {
            Ok(()) => Delivery::Acknowledged,
            Err(PublishError::TooLarge) => Delivery::TooLarge,
            Err(PublishError::Unacknowledged(why)) => {
                tracing::debug!(why, partition = self.lane.get(slot).record.partition, "publish not acknowledged");
                self.ctx.stats.republished.add(1);
                Delivery::Failed
            }
        };
        self.step(Input::Published(slot, delivery));
    }

    fn replied(&mut self, reply: Reply) {
        let input = match reply {
            Reply::Claimed(replies, sent) => Input::Claimed(replies, sent),
            Reply::Renewed(replies, sent) => Input::Renewed(replies, sent),
            Reply::Settled(replies, lost) => {
                self.ctx.stats.leases_lost.add(lost);
                Input::Settled(replies)
            }
            Reply::Released(slots) => Input::Released(slots),
        };
        self.step(input);
    }

    fn take_permits(&mut self) {
        let now = self.ctx.clock.now();
        let wanted = self.lane.wanted(now);
        if wanted == 0 {
            self.permit = None;
            return;
        }
        let permits = &self.ctx.permits;
        let free = permits.available_permits().min(wanted);
        let taken = match u32::try_from(free).ok().filter(|n| *n > 0).map(|n| permits.try_acquire_many(n)) {
            Some(Ok(taken)) => {
                taken.forget();
                free
            }
            _ => 0,
        };
        if taken > 0 {
            self.lane.step(now, Input::Permits(taken), &mut self.fx);
        }
        if taken < wanted && self.permit.is_none() {
            let permits = Arc::clone(permits);
            self.permit = Some(async move { permits.acquire_owned().await.ok() }.boxed());
        }
    }

    // ------------------------------------------------------------------------------------------------ effects

    async fn perform(&mut self) {
        // Handlers that answer at once produce new effects; go on until there are none.
        while !self.fx.is_empty() {
            let mut fx = mem::take(&mut self.fx);
            let now = self.ctx.clock.now();
            self.count(&mut fx);
            for slot in fx.cancel.drain(..) {
                if let Some(abort) = self.lane.get_mut(slot).abort.take() {
                    abort.abort();
                }
            }
            self.call_store(&mut fx, now);
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
            for slot in fx.start.drain(..) {
                // A start before it may have taken so long that this one's lease is lost.
                if self.lane.is_running(slot) {
                    self.start(slot).await;
                }
            }
            fx.clear();
            // Keep the larger buffers of the two.
            if self.fx.is_empty() {
                self.fx = fx;
            }
        }
    }

    fn count(&mut self, fx: &mut Effects<Box<Held>>) {
        let stats = &self.ctx.stats;
        if fx.permits > 0 {
            self.ctx.permits.add_permits(fx.permits);
        }
        stats.busy.add(fx.busy as u64);
        stats.leases_lost.add(fx.leases_lost as u64);
        stats.corrupt.add(fx.corrupt.len() as u64);
        if let Some(slot) = fx.corrupt.first()
            && !mem::replace(&mut self.told_corrupt, true)
        {
            tracing::error!(
                key = %self.lane.get(*slot).key,
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
                (Finish::Settled(Mark::MovedOn), _) => stats.forwarded.add(1),
            }
        }
    }

    fn claim_of(&self, claim: ClaimId) -> Claim {
        Claim { process: self.ctx.process, sequence: claim.sequence, fence: claim.fence }
    }

    /// One batch per step and kind.
    fn call_store(&mut self, fx: &mut Effects<Box<Held>>, now: Now) {
        let (store, settings, sent) = (&self.ctx.store, &self.ctx.settings, now.boot);
        if !fx.claim.is_empty() {
            let slots = mem::take(&mut fx.claim);
            let batch = slots
                .iter()
                .map(|&slot| (Arc::clone(&self.lane.get(slot).key), self.claim_of(self.lane.claim(slot))))
                .collect();
            let call = store.claim(batch, settings.lease);
            self.calls.push(
                async move { Reply::Claimed(slots.into_iter().zip(call.await.into_iter().map(Result::ok)).collect(), sent) }
                    .boxed(),
            );
        }
        if !fx.renew.is_empty() {
            let renewals = mem::take(&mut fx.renew);
            let batch = renewals
                .iter()
                .map(|&(slot, claim)| (Arc::clone(&self.lane.get(slot).key), self.claim_of(claim)))
                .collect();
            let call = store.renew(batch, settings.lease);
            self.calls.push(
                async move {
                    let replies = call.await.into_iter().map(Result::ok);
                    Reply::Renewed(renewals.into_iter().zip(replies).map(|((s, c), r)| (s, c, r)).collect(), sent)
                }
                .boxed(),
            );
        }
        if !fx.settle.is_empty() {
            let settlements = mem::take(&mut fx.settle);
            let batch = settlements
                .iter()
                .map(|&(slot, mark)| {
                    let held = self.lane.get(slot);
                    let ttl = settle::ttl(settings, &held.envelope, mark);
                    (Arc::clone(&held.key), self.claim_of(self.lane.claim(slot)), mark, ttl)
                })
                .collect();
            let call = store.settle(batch);
            self.calls.push(
                async move {
                    let mut lost = 0;
                    let replies = call.await;
                    let settled = settlements.into_iter().zip(replies).map(|((slot, _), reply)| {
                        lost += u64::from(matches!(reply, Ok(super::ports::SettleReply::LeaseLost)));
                        (slot, reply.is_ok())
                    });
                    let settled = settled.collect();
                    Reply::Settled(settled, lost)
                }
                .boxed(),
            );
        }
        if !fx.release.is_empty() {
            let releases = mem::take(&mut fx.release);
            self.ctx.stats.released.add(releases.len() as u64);
            let batch = releases
                .iter()
                .map(|&(slot, claim)| (Arc::clone(&self.lane.get(slot).key), self.claim_of(claim)))
                .collect();
            let call = store.release(batch);
            self.calls.push(
                async move {
                    // Released or not: what is not runs out by itself.
                    drop(call.await);
                    Reply::Released(releases.into_iter().map(|(slot, _)| slot).collect())
                }
                .boxed(),
            );
        }
    }

    fn publish(&mut self, slot: Slot) {
        let fence = self.lane.claim(slot).fence;
        match settle::next_copy(self.ctx, self.lane.get(slot), fence) {
            Some(record) => self.ctx.publisher.publish(record, u64::from(slot), &self.acks),
            None => self.step(Input::Published(slot, Delivery::Unpublishable)),
        }
    }

    async fn start(&mut self, slot: Slot) {
        let (now, fence) = (self.ctx.clock.now().wall, self.lane.claim(slot).fence);
        let due = self.lane.due(slot);
        let held = self.lane.get_mut(slot);
        held.started = now;
        let event = match prepare(self.ctx, held, fence, now) {
            Prepared::Run(event) => event,
            Prepared::Known(outcome) => return self.conclude(slot, outcome),
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
            Err(outcome) => return self.conclude(slot, outcome),
        };
        // A handler that answers at once costs neither a task nor a place in the set.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut execution).poll(cx))).await;
        match first {
            Poll::Ready((_, outcome)) => self.conclude(slot, outcome),
            Poll::Pending => {
                let (abort, registration) = AbortHandle::new_pair();
                self.lane.get_mut(slot).abort = Some(abort);
                self.running.push(Abortable::new(execution, registration));
                self.ctx.stats.running.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn tell(&mut self) {
        let lane = &self.lane;
        self.ends.state.tell(lane.position(), lane.paused(), lane.waiting(), lane.in_flight(), lane.halted());
        if lane.halted() && !mem::replace(&mut self.told_halt, true) {
            let reason = self.lane.iter().find_map(|held| Some((held.halted?, held)));
            let (reason, offset) =
                reason.map_or(("unknown", -1), |(reason, held)| (reason.as_str(), held.record.offset));
            let rung = self.ctx.rung();
            tracing::error!(
                topic = %rung.topic, offset, reason,
                "a partition is halted: going on would lose this event; see the runbook, then restart the stage"
            );
        }
    }
}

#[derive(PartialEq)]
enum Obeyed {
    GoOn,
    Stop,
}
