//! The HTTP server of a process: `/livez`, `/readyz`, `/metrics`, `/status`.
//!
//! It starts before the stages and ends after them, so that whoever watches sees the start and the drain, too. Read
//! only; without configuration it is bound to loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::expose;
use super::health::{self, Trouble};
use super::monitor::Monitor;
use super::retention;
use crate::telemetry::metrics::CONTENT_TYPE;

/// Port of a process that runs main, or all stages; a process that runs one other stage adds that stage's index.
pub const DEFAULT_PORT: u16 = 9464;

/// The configured address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "admin.listen: cannot listen on {address}: {source}; end whoever holds it, or give this process another address (PIPELINE_ADMIN__LISTEN)"
)]
pub struct Error {
    /// As configured.
    pub address: String,
    /// What the system says.
    pub source: io::Error,
}

/// Where the server listens.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// The default port that was taken.
    taken: Option<u16>,
}

impl Listener {
    /// Binds the configured address, or without one the default port for `stage` on loopback, or a free one.
    ///
    /// # Errors
    /// When the configured address cannot be bound, or loopback has no free port.
    pub async fn bind(configured: Option<&str>, stage: usize) -> Result<Self, Error> {
        let error = |address: String| move |source| Error { address, source };
        if let Some(address) = configured {
            let socket = TcpListener::bind(address).await.map_err(error(address.to_owned()))?;
            return Self::of(socket, None).map_err(error(address.to_owned()));
        }
        let port = DEFAULT_PORT + u16::try_from(stage).unwrap_or_default();
        let (socket, taken) = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(socket) => (socket, None),
            Err(source) => {
                tracing::debug!(port, %source, "default port of the admin server not free");
                let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                (free.map_err(error("127.0.0.1:0".into()))?, Some(port))
            }
        };
        Self::of(socket, taken).map_err(error(format!("127.0.0.1:{port}")))
    }

    fn of(socket: TcpListener, taken: Option<u16>) -> io::Result<Self> {
        let address = socket.local_addr()?;
        Ok(Self { socket, address, taken })
    }

    /// The address that it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What the process is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Draining,
}

struct Shared {
    monitor: OnceLock<Monitor>,
    phase: watch::Sender<Phase>,
    max_poll: Duration,
    address: SocketAddr,
    taken: Option<u16>,
    instance: Option<String>,
}

/// A running server; ends when it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    /// End when they are dropped.
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves on the current tokio runtime. A poll thread that was silent for `max_poll` is dead.
    pub fn start(listener: Listener, max_poll: Duration, instance: Option<String>) -> Self {
        let Listener { socket, address, taken } = listener;
        match taken {
            Some(taken) => {
                tracing::info!(%address, taken, "health, metrics and status: default port taken, moved to a free one")
            }
            None => tracing::info!(%address, "health, metrics and status"),
        }
        let phase = watch::Sender::new(Phase::Starting);
        let shared = Arc::new(Shared { monitor: OnceLock::new(), phase, max_poll, address, taken, instance });
        let app = router(Arc::clone(&shared));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = axum::serve(socket, app).await {
                tracing::error!(%error, "the admin server ended: health, metrics and status are gone until a restart");
            }
        });
        Self { shared, tasks }
    }

    /// From now on it tells of these stages.
    pub fn watch(&mut self, monitor: Monitor) {
        if self.shared.monitor.set(monitor).is_err() {
            return; // a second set of stages: the first stays
        }
        self.shared.phase.send_replace(Phase::Running);
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            if let Some(monitor) = shared.monitor.get() {
                retention::watch(monitor).await;
            }
        });
    }

    /// From now on the process is not ready: it finishes what runs.
    pub fn draining(&self) {
        self.shared.phase.send_replace(Phase::Draining);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(shared)
}

async fn index() -> &'static str {
    "retry ladder: /livez /readyz /metrics /status\n"
}

fn verdict(good: &str, bad: &str, troubles: &[Trouble]) -> Response {
    if troubles.is_empty() {
        return Json(json!({ "status": good })).into_response();
    }
    // The first reason is the answer, the rest goes with it.
    let body =
        json!({ "status": bad, "reason": troubles[0].reason, "detail": troubles[0].detail, "troubles": troubles });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    let dead: Vec<_> = match shared.monitor.get() {
        Some(monitor) => monitor.stages().filter_map(|view| health::liveness(view, shared.max_poll)).collect(),
        None => Vec::new(),
    };
    verdict("alive", "dead", &dead)
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let phase = *shared.phase.borrow();
    let troubles = match (phase, shared.monitor.get()) {
        (Phase::Draining, _) => vec![Trouble::of_process("draining", "the process ends: what runs is finished first")],
        (Phase::Running, Some(monitor)) => {
            let seen = monitor.look().await;
            seen.iter().flat_map(|(view, figures)| health::readiness(view, figures, shared.max_poll)).collect()
        }
        _ => vec![Trouble::of_process("starting", "the stages have not started yet")],
    };
    verdict("ready", "not ready", &troubles)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = match shared.monitor.get() {
        Some(monitor) => monitor.metrics().await.render(),
        None => expose::metrics(&[]).render(),
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let stages: Vec<Value> = match shared.monitor.get() {
        Some(monitor) => monitor.look().await.iter().map(|(view, figures)| expose::status(view, figures)).collect(),
        None => Vec::new(),
    };
    let phase = match *shared.phase.borrow() {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Draining => "draining",
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": shared.instance,
        "phase": phase,
        "listen": shared.address.to_string(),
        "default_port_taken": shared.taken,
        "stages": stages,
    }))
}
