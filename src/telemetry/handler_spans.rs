//! Spans that a handler opens with `tracing`, in the trace of the event that it handles: children of its `process`
//! span, exported with the ladder's own.
//!
//! Invariants: an execution that is not traced costs nothing here, and spans opened outside of one are not exported.
//! What an execution opened before its first failure made it a traced one is not there. Leaves to others: how spans
//! leave (`traces`), when a handler runs (`stage`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, ContextGuard};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::trace_context::TraceContext;
use super::traces::SpanQueue;

/// Puts `tracing` spans of a program's own handlers into their events' traces.
///
/// Its layer goes into the program's subscriber, itself into the [`Builder`](crate::app::Builder::handler_spans).
/// Events that are logged within such spans go with them. A filter keeps out what libraries open for themselves.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use retry_ladder::app::Builder;
/// use retry_ladder::config::{Sources, load};
/// use retry_ladder::handlers::handler_fn;
/// use retry_ladder::ladder::event::Failure;
/// use retry_ladder::stage::ports::Event;
/// use retry_ladder::telemetry::handler_spans::HandlerSpans;
/// use tracing_subscriber::filter::LevelFilter;
/// use tracing_subscriber::prelude::*;
///
/// #[tracing::instrument(skip_all, fields(customer))]
/// async fn charge(event: Event) -> Result<(), Failure> {
///     Ok(()) // a span `charge` below `process orders`
/// }
///
/// let spans = HandlerSpans::default();
/// tracing_subscriber::registry()
///     .with(tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO))
///     .with(spans.layer().with_filter(LevelFilter::INFO))
///     .init();
/// let config = load(&Sources::new(None))?.config;
/// let app = Builder::new(config).handler("orders", handler_fn(charge)).handler_spans(&spans).start().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct HandlerSpans {
    queue: Arc<OnceLock<SpanQueue>>,
}

impl HandlerSpans {
    /// For the program's subscriber.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        // Outside of a traced execution there is no parent that is sampled.
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        let provider =
            SdkTracerProvider::builder().with_sampler(sampler).with_span_processor(Processor(self.clone())).build();
        tracing_opentelemetry::layer().with_tracer(provider.tracer("handler"))
    }

    /// From now on they are exported; the first export stays.
    pub(crate) fn export(&self, queue: SpanQueue) {
        drop(self.queue.set(queue));
    }
}

#[derive(Debug)]
struct Processor(HandlerSpans);

impl SpanProcessor for Processor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if let Some(queue) = self.0.queue.get() {
            queue.offer(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn span_context(trace: TraceContext) -> SpanContext {
    let (trace_id, span_id) = (TraceId::from(trace.trace_id()), SpanId::from(trace.span_id()));
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE)
}

/// One span for what several executions do together: a child of the first that is traced, with links to the others.
/// Nothing where none is.
pub(crate) fn shared_span(executions: impl Iterator<Item = TraceContext>, count: usize) -> tracing::Span {
    let mut sampled = executions.filter(|trace| trace.is_sampled());
    let Some(first) = sampled.next() else { return tracing::Span::none() };
    let scope = Scope::new(Some(first));
    let entered = scope.enter();
    let span = tracing::info_span!("batch", events = count);
    drop(entered);
    sampled.for_each(|other| span.add_link(span_context(other)));
    span
}

/// What spans that an execution opens are children of.
#[derive(Debug)]
pub(crate) struct Scope(Option<Context>);

impl Scope {
    /// The execution whose span this is; nothing where it is not traced.
    pub(crate) fn new(trace: Option<TraceContext>) -> Self {
        let trace = trace.filter(|trace| trace.is_sampled());
        Self(trace.map(|trace| Context::new().with_remote_span_context(span_context(trace))))
    }

    /// Until the guard is dropped, spans of this thread are its children.
    pub(crate) fn enter(&self) -> Option<ContextGuard> {
        self.0.as_ref().map(|context| context.clone().attach())
    }
}
