//! Many events in one call: [`BatchHandler`], and [`Batched`], which makes a [`Handler`] of one.
//!
//! The engine goes on to hand over single events; those that are in hand at the same time are collected into a batch and
//! each is given its own answer.
//!
//! # Invariants
//! - Every event gets exactly one answer, its own. A handler that panics, or answers for fewer or more events than it was
//!   given, has failed for all of them (transient).
//! - An execution that is cancelled (deadline, lost lease, drain) leaves its batch: before the call its event is taken
//!   out; during the call its answer is dropped and the others' are not touched. When all of them are gone, so is the call.
//! - No event waits longer than [`BatchOptions::interval`] for its batch, and none at all behind a batch that is full.
//!
//! Where events are traced, each one's `process` span covers its wait, and the call is one span `batch` in the trace of the
//! first of them, linked to the others ([`HandlerSpans`](crate::telemetry::handler_spans::HandlerSpans)).
//!
//! With `order: stage` no two events of a key are ever in one batch, because the second starts when the first has returned.

use std::any::Any;
use std::fmt;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

use crate::ladder::event::{Failure, Outcome};
use crate::stage::ports::{Event, Handler};
use crate::telemetry::handler_spans::shared_span;

/// The application's code where it is better at many events than at one: a bulk insert, an API that takes lists.
///
/// What is said of [`Handler`] holds for each event of a batch: it may run more than once, so effects should be keyed on
/// [`Event::id`]. A batch may hold events of any stage and attempt; its size changes from call to call.
///
/// ```
/// use futures::future::BoxFuture;
/// use retry_ladder::handlers::batched::{BatchHandler, BatchOptions, Batched};
/// use retry_ladder::ladder::event::{Failure, Outcome};
/// use retry_ladder::stage::ports::Event;
///
/// struct Index;
///
/// impl BatchHandler for Index {
///     fn handle_batch(&self, events: Vec<Event>) -> BoxFuture<'_, Vec<Outcome>> {
///         Box::pin(async move {
///             // One request for all of them, then one answer for each.
///             let answer = |event: &Event| match event.payload.is_empty() {
///                 false => Outcome::Done,
///                 true => Outcome::Failed(Failure::permanent("nothing to index")),
///             };
///             events.iter().map(answer).collect()
///         })
///     }
/// }
///
/// let handler = Batched::new(Index, BatchOptions::default()); // for `Builder::handler`
/// # let _ = handler;
/// ```
pub trait BatchHandler: Send + Sync + 'static {
    /// Executes the events, at least one, and answers for each: as many outcomes, in their order.
    ///
    /// Cancelled (dropped at an `.await`) when no execution waits for an answer any more.
    fn handle_batch(&self, events: Vec<Event>) -> BoxFuture<'_, Vec<Outcome>>;
}

/// When a batch is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// At so many events. Only as many as the stages' concurrency can be in hand at a time: several times this is right, so
    /// that one batch is collected while others are executed.
    pub size: usize,
    /// So long after its first event; should be far shorter than the handler's deadline.
    pub interval: Duration,
    /// So long after its last event: what more could come waits for this batch to end (its key, a permit), or is not there.
    pub idle: Duration,
}

impl Default for BatchOptions {
    /// 100 events, 1 s, 10 ms.
    fn default() -> Self {
        Self { size: 100, interval: Duration::from_secs(1), idle: Duration::from_millis(10) }
    }
}

/// A [`Handler`] that executes by a [`BatchHandler`].
pub struct Batched<H> {
    shared: Arc<Shared<H>>,
}

struct Shared<H> {
    handler: H,
    options: BatchOptions,
    open: Mutex<Open>,
}

/// The batch that is being collected.
#[derive(Default)]
struct Open {
    /// Which one since the start: tells its timer that it is gone.
    number: u64,
    members: Vec<Member>,
    /// When the last of them joined.
    joined: Option<Instant>,
}

struct Member {
    event: Event,
    answer: oneshot::Sender<Outcome>,
}

impl Open {
    fn take(&mut self) -> Vec<Member> {
        self.number += 1;
        mem::take(&mut self.members)
    }
}

impl<H: BatchHandler> Batched<H> {
    /// Collects as `options` say.
    pub fn new(handler: H, options: BatchOptions) -> Self {
        Self { shared: Arc::new(Shared { handler, options, open: Mutex::default() }) }
    }
}

impl<H> fmt::Debug for Batched<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batched").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl<H: BatchHandler> Handler for Batched<H> {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let (answer, outcome) = oneshot::channel();
            self.shared.join(Member { event, answer });
            let gone = || Outcome::Failed(Failure::transient("the runtime ended before the batch did"));
            outcome.await.unwrap_or_else(|_| gone())
        })
    }
}

impl<H: BatchHandler> Shared<H> {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, member: Member) {
        let mut open = self.lock();
        open.members.push(member);
        open.joined = Some(Instant::now());
        if open.members.len() >= self.options.size {
            let batch = open.take();
            drop(open);
            // A task of its own: the call must not end with whichever execution happened to complete the batch.
            tokio::spawn(Arc::clone(self).execute(batch));
        } else if open.members.len() == 1 {
            tokio::spawn(Arc::clone(self).flush_in_time(open.number));
        }
    }

    /// Executes the open batch when its time has come, unless it was full before.
    async fn flush_in_time(self: Arc<Self>, number: u64) {
        let end = Instant::now() + self.options.interval;
        let batch = loop {
            let at = {
                let mut open = self.lock();
                if open.number != number {
                    return;
                }
                let at = open.joined.map_or(end, |joined| end.min(joined + self.options.idle));
                if at <= Instant::now() {
                    break open.take();
                }
                at
            };
            sleep_until(at).await;
        };
        self.execute(batch).await;
    }

    async fn execute(self: Arc<Self>, mut batch: Vec<Member>) {
        batch.retain(|member| !member.answer.is_closed());
        let (events, mut answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|m| (m.event, m.answer)).unzip();
        if events.is_empty() {
            return;
        }
        let count = events.len();
        // The call is inside the future, so that a panic of the function itself is caught, too.
        let span = shared_span(events.iter().filter_map(|event| event.trace), count);
        let call = AssertUnwindSafe(async { self.handler.handle_batch(events).await }.instrument(span)).catch_unwind();
        let called = tokio::select! {
            called = call => called,
            _ = join_all(answers.iter_mut().map(oneshot::Sender::closed)) => return,
        };
        let why = match called {
            Ok(outcomes) if outcomes.len() == count => {
                // Who is gone needs no answer.
                answers.into_iter().zip(outcomes).for_each(|(answer, outcome)| drop(answer.send(outcome)));
                return;
            }
            Ok(outcomes) => {
                format!("the batch handler gave {} answers for {count} events, not one for each", outcomes.len())
            }
            Err(panic) => format!("the batch handler panicked: {}", panic_text(&*panic)),
        };
        for answer in answers {
            drop(answer.send(Outcome::Failed(Failure::transient(&why))));
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::pending;
    use futures::stream::{FuturesUnordered, StreamExt};
    use opentelemetry::Context;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
    use tracing_subscriber::prelude::*;

    use super::*;
    use crate::handlers::testing::EventBuilder;

    const MS: Duration = Duration::from_millis(1);

    /// Records each batch's ids; answers as its name says.
    #[derive(Default)]
    struct Recorder {
        batches: Mutex<Vec<Vec<String>>>,
        answer: Answer,
        ended: AtomicUsize,
    }

    #[derive(Clone, Copy, Default)]
    enum Answer {
        /// Ids with an `x` fail permanently.
        #[default]
        Each,
        Fewer,
        Panic,
        Never,
        After(Duration),
    }

    struct Ended<'a>(&'a AtomicUsize);

    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl BatchHandler for Arc<Recorder> {
        fn handle_batch(&self, events: Vec<Event>) -> BoxFuture<'_, Vec<Outcome>> {
            let ids: Vec<_> = events.iter().map(|event| event.id.to_string()).collect();
            self.batches.lock().unwrap().push(ids.clone());
            let each = |id: &String| match id.contains('x') {
                true => Outcome::Failed(Failure::permanent(id.as_str())),
                false => Outcome::Done,
            };
            let mut outcomes: Vec<_> = ids.iter().map(each).collect();
            Box::pin(async move {
                let _ended = Ended(&self.ended);
                match self.answer {
                    Answer::Each => {}
                    Answer::Fewer => drop(outcomes.pop()),
                    Answer::Panic => panic!("out of paper"),
                    Answer::Never => pending().await,
                    Answer::After(time) => tokio::time::sleep(time).await,
                }
                outcomes
            })
        }
    }

    fn setup(answer: Answer, size: usize) -> (Arc<Recorder>, Batched<Arc<Recorder>>) {
        let recorder = Arc::new(Recorder { answer, ..Recorder::default() });
        let options = BatchOptions { size, interval: 100 * MS, idle: 10 * MS };
        (Arc::clone(&recorder), Batched::new(recorder, options))
    }

    fn event(id: &str) -> Event {
        EventBuilder::new().id(id).build()
    }

    impl Recorder {
        fn batches(&self) -> Vec<Vec<String>> {
            self.batches.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_executed_as_soon_as_it_is_full_and_each_event_gets_its_own_answer() {
        let (recorder, handler) = setup(Answer::Each, 3);
        let begun = Instant::now();
        let outcomes = join_all(["a", "x", "b"].map(|id| handler.handle(event(id)))).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(outcomes, [Outcome::Done, Outcome::Failed(Failure::permanent("x")), Outcome::Done]);
        assert_eq!(recorder.batches(), [["a", "x", "b"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_nothing_joins_any_more_does_not_wait_for_the_interval() {
        let (recorder, handler) = setup(Answer::Each, 100);
        let begun = Instant::now();
        join_all(["a", "b"].map(|id| handler.handle(event(id)))).await;
        assert_eq!(begun.elapsed(), 10 * MS);
        assert_eq!(recorder.batches(), [["a", "b"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_joined_all_the_time_is_executed_after_the_interval() {
        let (recorder, handler) = setup(Answer::Each, 1_000);
        let begun = Instant::now();
        let mut running = FuturesUnordered::new();
        for n in 0..40 {
            running.push(handler.handle(event(&format!("{n}"))));
            // Polls them without waiting for one.
            tokio::time::timeout(5 * MS, async { while running.next().await.is_some() {} }).await.ok();
        }
        while running.next().await.is_some() {}
        let first = recorder.batches()[0].len();
        assert!((20..=21).contains(&first), "{first} joined within 100 ms, one each 5 ms");
        assert!(begun.elapsed() < 300 * MS);
        assert_eq!(recorder.batches().iter().map(Vec::len).sum::<usize>(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn an_execution_that_is_cancelled_before_the_call_is_not_in_the_batch() {
        let (recorder, handler) = setup(Answer::Each, 100);
        let mut cancelled = handler.handle(event("cancelled"));
        assert!((&mut cancelled).now_or_never().is_none());
        drop(cancelled);
        assert_eq!(handler.handle(event("a")).await, Outcome::Done);
        assert_eq!(recorder.batches(), [["a"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_execution_that_is_cancelled_during_the_call_changes_nothing_for_the_others() {
        let (recorder, handler) = setup(Answer::After(50 * MS), 2);
        let (mut one, other) = (handler.handle(event("one")), handler.handle(event("other")));
        assert!((&mut one).now_or_never().is_none());
        let cancel = async {
            tokio::time::sleep(20 * MS).await;
            drop(one);
        };
        let ((), outcome) = tokio::join!(cancel, other);
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(recorder.batches(), [["one", "other"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_nobody_waits_for_any_more_is_cancelled() {
        let (recorder, handler) = setup(Answer::Never, 2);
        let both = join_all(["a", "b"].map(|id| handler.handle(event(id))));
        assert!(tokio::time::timeout(50 * MS, both).await.is_err());
        assert_eq!(recorder.batches(), [["a", "b"]]);
        tokio::time::sleep(MS).await;
        assert_eq!(recorder.ended.load(Ordering::SeqCst), 1);
    }

    /// Keeps spans that have ended.
    #[derive(Clone, Debug, Default)]
    struct Ending(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Ending {
        fn on_start(&self, _: &mut Span, _: &Context) {}
        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_call_is_one_span_in_the_trace_of_one_event_and_linked_to_the_others() {
        let ended = Ending::default();
        let provider = SdkTracerProvider::builder().with_span_processor(ended.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let (_, handler) = setup(Answer::Each, 4);
        let traced = [
            "",
            "00-11111111111111111111111111111111-2222222222222222-01",
            "00-33333333333333333333333333333333-4444444444444444-01",
            "00-55555555555555555555555555555555-6666666666666666-00",
        ];
        let events = traced.map(|parent| EventBuilder::new().trace(parent).build());
        join_all(events.map(|event| handler.handle(event))).await;
        let spans = ended.0.lock().unwrap().clone();
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((&*span.name, span.parent_span_id.to_string()), ("batch", "2222222222222222".to_owned()));
        assert_eq!(span.span_context.trace_id().to_string(), "1".repeat(32));
        let links: Vec<_> = span.links.iter().map(|link| link.span_context.span_id().to_string()).collect();
        assert_eq!(links, ["4444444444444444"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_panics_or_answers_for_too_few_has_failed_for_all() {
        for (answer, why) in [
            (Answer::Panic, "the batch handler panicked: out of paper"),
            (Answer::Fewer, "the batch handler gave 1 answers for 2 events, not one for each"),
        ] {
            let (_, handler) = setup(answer, 2);
            let outcomes = join_all(["a", "b"].map(|id| handler.handle(event(id)))).await;
            assert_eq!(outcomes, [Outcome::Failed(Failure::transient(why)), Outcome::Failed(Failure::transient(why))]);
            // And the next batch is a batch like any other.
            assert!(matches!(handler.handle(event("c")).await, Outcome::Failed(_)));
        }
    }
}
