//! Which spans an event leaves, and when: `wait` at its dispatch, `process` after each execution, `send` once its next
//! copy is acknowledged. None is open while an event waits or runs, so a crash leaves no half of one.
//!
//! Parents follow the event: the record's `traceparent` (the span that sent it) is the parent of `wait` and `process`,
//! `process` that of `send`, and `send` goes into the next record. An event that nobody traces and that succeeds costs
//! the reading of its `traceparent` and one number; it becomes a traced one with its first failure where
//! [`Sampling::on_failure`](super::ports::Sampling) says so: its spans are then written after the fact.
//!
//! Leaves to others: what spans are called and made of (`adapters::otel`), how they leave (`telemetry::traces`).

use std::time::Duration;

use super::context::StageContext;
use super::held::Held;
use super::ports::{Span, SpanKind, SpanStage, TraceContext, Tracer};
use crate::ladder::event::Timestamp;
use crate::ladder::lane::Verdict;
use crate::ladder::route;

/// A record appended up to this much after it was due to wait was written at that time: what lies between is its way
/// to the broker. Further apart, the due time has another origin (a redrive, a wait that the target asked for).
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// The spans of one held event.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventTrace {
    /// The span that wrote the record.
    parent: Option<TraceContext>,
    /// The execution.
    process: TraceContext,
    /// What the next record's `traceparent` says.
    next: Option<TraceContext>,
    /// When it was decided to publish; taken when that is told.
    sending: Option<Timestamp>,
    /// The wait was told.
    waited: bool,
}

impl EventTrace {
    /// The span of the execution.
    pub(super) fn process(&self) -> TraceContext {
        self.process
    }

    /// What the next record's `traceparent` says; `None`: what this record's says.
    pub(super) fn next(&self) -> Option<TraceContext> {
        self.next
    }
}

impl Held {
    /// For log lines: the trace, 32 hex digits.
    pub(super) fn trace_id(&self) -> Option<String> {
        let trace = self.trace.map(|trace| trace.process).or_else(|| self.record.trace())?;
        Some(format!("{:032x}", trace.trace_id()))
    }
}

/// An execution starts at `held.started`.
pub(super) fn begin(ctx: &StageContext, held: &mut Held) {
    let Some(tracer) = &ctx.tracer else { return };
    let trace = match held.trace {
        // Again, because its fence was refused or its lease lost.
        Some(before) => EventTrace { process: before.process.child(), ..before },
        None => {
            let parent = held.record.trace();
            let process = parent.map_or_else(|| TraceContext::root(tracer.sampling().ratio), TraceContext::child);
            EventTrace { parent, process, next: None, sending: None, waited: false }
        }
    };
    held.trace = Some(trace);
    if trace.process.is_sampled() {
        wait(ctx, &**tracer, held);
    }
}

/// An execution ended at `now` with `verdict`.
pub(super) fn executed(ctx: &StageContext, held: &mut Held, verdict: Verdict, now: Timestamp) {
    let (Some(tracer), Some(mut trace)) = (&ctx.tracer, held.trace) else { return };
    let failed = matches!(verdict, Verdict::Publish | Verdict::Halt);
    if failed && tracer.sampling().on_failure {
        trace.process = trace.process.sampled();
    }
    let sampled = trace.process.is_sampled();
    if verdict == Verdict::Publish {
        trace.next = match (sampled, trace.parent) {
            (true, _) => Some(trace.process.child()),
            (false, Some(_)) => None,
            // That the trace is not recorded is decided once, here.
            (false, None) => Some(trace.process),
        };
        trace.sending = sampled.then_some(now);
    }
    held.trace = Some(trace);
    if !sampled {
        return;
    }
    wait(ctx, &**tracer, held);
    let failure = held.failed.as_ref().filter(|_| failed);
    let error = match (verdict, failure) {
        (Verdict::Fenced, _) => Some(("fenced", "the sink has seen a higher fence; claimed again")),
        (_, Some((failure, _))) => Some((failure.class.as_str(), failure.message.as_str())),
        (_, None) => None,
    };
    process(ctx, &**tracer, held, now, |span| Span { error, action: failure.map(|(_, action)| action), ..span });
}

/// A running handler was cancelled at `now`: its lease is lost, or its partition gone.
pub(super) fn cancelled(ctx: &StageContext, held: &Held, now: Timestamp) {
    let (Some(tracer), Some(trace)) = (&ctx.tracer, &held.trace) else { return };
    if trace.process.is_sampled() {
        let error = Some(("cancelled", "the lease or the partition was lost; the event runs again"));
        process(ctx, &**tracer, held, now, |span| Span { error, ..span });
    }
}

/// The next copy was acknowledged at `now`.
pub(super) fn sent(ctx: &StageContext, held: &mut Held, now: Timestamp) {
    let (Some(tracer), Some(trace)) = (&ctx.tracer, held.trace) else { return };
    let (Some(start), Some(context)) = (trace.sending, trace.next) else { return };
    held.trace = Some(EventTrace { sending: None, ..trace });
    let Some((_, action)) = &held.failed else { return };
    let Some(target) = route::target(&ctx.ladder, &held.envelope, action) else { return };
    let span = span(ctx, held, SpanKind::Send, context, Some(trace.process), start, now);
    tracer.write(&Span {
        topic: &target.topic,
        partition: ctx.partitions.keep(ctx.stage, target.index, held.record.partition),
        offset: None,
        due: None,
        action: Some(action),
        ..span
    });
}

/// Told once per copy.
fn wait(ctx: &StageContext, tracer: &dyn Tracer, held: &mut Held) {
    let (Some(trace), Some(due)) = (&mut held.trace, held.envelope.due) else { return };
    if std::mem::replace(&mut trace.waited, true) {
        return;
    }
    let (context, parent) = (trace.process.child(), trace.parent);
    // A redriven copy was due when it was written.
    let redriven = held.envelope.redrives > 0 && held.envelope.attempt == 0;
    let delay = ctx.rung().delay.filter(|_| !redriven).unwrap_or_default();
    let start = written(due, delay, held.record.timestamp_ms).min(held.started);
    tracer.write(&span(ctx, held, SpanKind::Wait, context, parent, start, held.started));
}

fn process<'a>(
    ctx: &'a StageContext,
    tracer: &dyn Tracer,
    held: &'a Held,
    now: Timestamp,
    with: impl FnOnce(Span<'a>) -> Span<'a>,
) {
    if let Some(trace) = &held.trace {
        let span = span(ctx, held, SpanKind::Process, trace.process, trace.parent, held.started, now);
        tracer.write(&with(span));
    }
}

fn span<'a>(
    ctx: &'a StageContext,
    held: &'a Held,
    kind: SpanKind,
    context: TraceContext,
    parent: Option<TraceContext>,
    start: Timestamp,
    end: Timestamp,
) -> Span<'a> {
    let rung = ctx.rung();
    Span {
        kind,
        context,
        parent,
        start,
        end,
        topic: &rung.topic,
        partition: Some(held.record.partition),
        offset: Some(held.record.offset),
        key: held.record.key.as_ref(),
        event_id: &held.envelope.event_id,
        stage: Some(SpanStage {
            pipeline: ctx.ladder.pipeline(),
            name: &rung.name,
            group_id: &rung.group_id,
            attempt: held.envelope.attempt.saturating_add(1),
        }),
        due: held.envelope.due,
        error: None,
        action: None,
    }
}

/// When the stage before decided to hand the event on: the due time less the delay, as long as the time of the record
/// bears it out, else the time of the record.
fn written(due: Timestamp, delay: Duration, record_ms: i64) -> Timestamp {
    let delay = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
    let decided = Timestamp::from_micros(due.as_micros().saturating_sub(delay));
    match u64::try_from(record_ms).map(Timestamp::from_millis) {
        Ok(record) if decided > record || record.since(decided) > ON_ITS_WAY => record,
        _ => decided,
    }
}

#[cfg(test)]
mod tests;
