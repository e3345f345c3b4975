//! The web console: the ladder as it runs, and its dead letters, in a browser.
//!
//! `access` says who may, `live` looks at the stages for all who watch, `shelf` keeps what is known of one pipeline's
//! DLQ, `letters` shows it, `work` plans and does what is asked for, `pause` stops stages, `ask` reads what a browser
//! sends, `answer` what it is told when something cannot be, `assets` are the pages.
//!
//! Invariants
//! - Nothing is decided here about a letter: the book in Kafka does that, so a double click, a second console, the
//!   command line or a kill of this process cannot send one twice.
//! - Whoever changes something has the token, or without one is a page of this console on this host.
//! - Memory does not grow with the DLQ: pages are read when they are looked at, groups are counted (see
//!   [`super::dlq::catalog`]), plans are bounded.
//! - Values leave as JSON and are shown as text.

mod access;
mod answer;
mod ask;
mod assets;
mod letters;
mod live;
mod pause;
mod shelf;
#[cfg(test)]
mod tests;
mod work;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::access::Access;
use self::answer::Refused;
use self::live::Live;
use self::shelf::Shelf;
use super::outside::{self, Outside};
use crate::adapters::otel::OtelTracer;
use crate::app::wire;
use crate::config::Config;
use crate::stage::ports::Tracer;
use crate::telemetry::traces::{self, Traces};

/// Largest body of a request.
const MAX_BODY: usize = 64 * 1024;
/// Largest body of a request with a corrected value.
const MAX_CORRECTED: usize = 8 * 1024 * 1024;
/// Requests at the same time, streams aside.
const MAX_REQUESTS: usize = 64;
/// Longest time for an answer, streams aside.
const TIMEOUT: Duration = Duration::from_secs(60);
/// This process's `service.name` and name in traces.
const SERVICE: &str = "retry-ladder-console";

/// The console cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Anybody on the network could redrive.
    #[error(
        "console.listen: {address} is not on loopback and console.token is not set: anybody who reaches it could redrive; \
         set PIPELINE_CONSOLE__TOKEN (or console.token_file) to 16 characters or more, like those of `openssl rand -hex \
         24`, or listen on 127.0.0.1:9490 and use `ssh -L 9490:127.0.0.1:9490`"
    )]
    Exposed {
        /// As configured.
        address: String,
    },
    /// The address cannot be bound.
    #[error(
        "console.listen: cannot listen on {address}: {source}; end whoever holds it, or give another with --listen"
    )]
    Bind {
        /// As configured.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// A pipeline that cannot be built.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The stages cannot be looked at.
    #[error(transparent)]
    Outside(#[from] outside::Error),
    /// The collector's settings.
    #[error(transparent)]
    Traces(#[from] traces::Error),
}

impl Error {
    /// The process's exit code for this error: 64 flags or configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Exposed { .. } | Error::Wire(_) | Error::Traces(_) => 64,
            Error::Outside(e) => e.exit_code(),
            Error::Bind { .. } => 1,
        }
    }
}

/// A console that listens and serves once [`Console::serve`] is called.
pub struct Console {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    traces: Option<Traces>,
}

/// What every request needs.
struct Shared {
    access: Access,
    shelves: Vec<Arc<Shelf>>,
    live: Live,
    /// What the page has to know first.
    about: Value,
    show_values: bool,
    requests: Semaphore,
}

impl Shared {
    fn shelf(&self, pipeline: &str) -> Result<Arc<Shelf>, Refused> {
        let shelf = self.shelves.iter().find(|shelf| shelf.name == pipeline);
        shelf.cloned().ok_or_else(|| Refused::not_found(format!("no pipeline is called `{}`", pipeline.escape_debug())))
    }
}

impl Console {
    /// Binds the configured address. Kafka is asked when somebody looks.
    ///
    /// # Errors
    /// When the address is not on loopback and no token is set, or cannot be bound; when a pipeline cannot be built.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let (address, token) = (config.console.listen.clone(), config.console.token.as_ref());
        let failed = |source| Error::Bind { address: address.clone(), source };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        if token.is_none() && !bound.ip().is_loopback() {
            return Err(Error::Exposed { address });
        }
        let traces = wire::traces(config, SERVICE)?;
        let tracer = traces.as_ref().map(|traces| {
            Arc::new(OtelTracer::new(traces.queue(), wire::sampling(config), SERVICE)) as Arc<dyn Tracer>
        });
        let shelves =
            config.pipelines.iter().map(|pipeline| Shelf::new(config, pipeline, tracer.clone()).map(Arc::new));
        let shelves: Vec<_> = shelves.collect::<Result<_, wire::Error>>()?;
        let mut jaeger = config.telemetry.jaeger_url.url().clone();
        // A link is for everybody who sees the page.
        jaeger.set_username("").and_then(|()| jaeger.set_password(None)).ok();
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "show_values": config.console.show_values,
            "jaeger": jaeger.as_str().trim_end_matches('/'),
            "pipelines": shelves.iter().map(|shelf| shelf.about()).collect::<Vec<_>>(),
        });
        let shared = Arc::new(Shared {
            access: Access::new(token.map(|token| token.reveal())),
            live: Live::start(Outside::new(config, &[])?),
            shelves,
            about,
            show_values: config.console.show_values,
            requests: Semaphore::new(MAX_REQUESTS),
        });
        Ok(Self { listener, address: bound, shared, traces })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; jobs that are at work then end their transaction and stop.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let serve = axum::serve(self.listener, router(Arc::clone(&self.shared))).into_future();
        let ended = tokio::select! {
            ended = serve => ended,
            () = shutdown => Ok(()),
        };
        for shelf in &self.shared.shelves {
            shelf.works.stop_all().await;
        }
        if let Some(traces) = self.traces {
            let lost = traces.shutdown().await;
            if lost > 0 {
                tracing::warn!(lost, "the collector at telemetry.otlp_endpoint did not take all spans");
            }
        }
        ended
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let plain = Router::new()
        .route("/api/about", get(about))
        .route("/api/pipelines/{pipeline}/groups", get(letters::groups))
        .route("/api/pipelines/{pipeline}/letters", get(letters::page))
        .route("/api/pipelines/{pipeline}/letters/{place}", get(letters::one))
        .route("/api/pipelines/{pipeline}/jobs", get(work::jobs))
        .route("/api/pipelines/{pipeline}/stages/{stage}", post(pause::set))
        .route("/api/pipelines/{pipeline}/plans", post(work::plan))
        .route("/api/pipelines/{pipeline}/plans/{id}", get(work::look))
        .route("/api/pipelines/{pipeline}/plans/{id}/run", post(work::run))
        .route("/api/pipelines/{pipeline}/plans/{id}/stop", post(work::stop))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .route(
            "/api/pipelines/{pipeline}/letters/{place}/plans",
            post(work::plan_corrected).layer(DefaultBodyLimit::max(MAX_CORRECTED)),
        )
        .route("/api/{*rest}", get(nothing).post(nothing))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), limited));
    plain
        .route("/api/live", get(live::stream))
        .merge(assets::router())
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guarded))
        .with_state(shared)
}

async fn about(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(shared.about.clone())
}

async fn nothing() -> Refused {
    Refused::not_found("there is no such thing")
}

/// So many at a time, and none for ever.
async fn limited(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Result<Response, Refused> {
    let busy = |what: &str| Refused::new(StatusCode::SERVICE_UNAVAILABLE, format!("{what}; try again in a moment"));
    let Ok(_slot) = shared.requests.try_acquire() else { return Err(busy("too many requests at the same time")) };
    tokio::time::timeout(TIMEOUT, next.run(request)).await.map_err(|_| busy("no answer within a minute"))
}

/// Nobody gets past without being allowed to, and every answer says how a browser is to treat it.
async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let is_data = request.uri().path().starts_with("/api/");
    let judged = shared.access.judge(request.method(), is_data, request.headers());
    let mut response = match judged {
        Ok(()) => next.run(request).await,
        Err(refusal) => Refused::from(refusal).into(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, assets::POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::CACHE_CONTROL, if is_data { "no-store" } else { "no-cache" }),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
