//! The HTTP server that the handlers call, and the witness of the run: it notes every request by its own clock, and
//! answers by the rule in the event id and the attempt, so that a repeated execution gets the same answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::plan::Kind;

/// How long every request takes: long enough that some are open when a process is killed.
const LATENCY: Duration = Duration::from_millis(10);

/// One request, as the server saw it. Times are Unix microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) instance: String,
    pub(crate) id: String,
    pub(crate) stage: usize,
    pub(crate) attempt: u32,
    pub(crate) fence: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) arrived: u64,
    /// When the answer was ready, or the client had gone; 0 while neither is so.
    pub(crate) ended: u64,
    /// `None`: the client went before there was one.
    pub(crate) answer: Option<u16>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Unix microseconds.
#[allow(clippy::disallowed_methods, reason = "a witness goes by its own clock")]
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// The running server; it ends when this is dropped.
pub(crate) struct Observer {
    log: Log,
    address: SocketAddr,
    _runtime: Runtime,
}

impl Observer {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime for the server");
        let log = Log::default();
        let app = Router::new().route("/{instance}", post(serve)).with_state(Arc::clone(&log));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { log, address, _runtime: runtime }
    }

    /// Where the handlers of this process have to call: its name is in the path.
    pub(crate) fn url(&self, instance: &str) -> String {
        format!("http://{}/{instance}", self.address)
    }

    /// `host:port`, as failures name it.
    pub(crate) fn target(&self) -> String {
        self.address.to_string()
    }

    /// Looks at all requests so far.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&[Seen]) -> T) -> T {
        at(&self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Notes the end of a request when it is dropped, which a client that goes away causes, too.
struct Open {
    log: Log,
    index: usize,
}

impl Open {
    fn note(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner)[self.index]);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.note(|seen| seen.ended = now());
    }
}

async fn serve(State(log): State<Log>, Path(instance): Path<String>, request: Request) -> Response {
    let arrived = now();
    let (head, body) = request.into_parts();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let id = text("idempotency-key").to_owned();
    let stage = match text("x-ladder-stage") {
        "main" => 0,
        name => name.strip_prefix("retry-").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX),
    };
    let attempt = text("x-ladder-attempt").parse().unwrap_or_default();
    let fence = text("x-ladder-fence").parse().unwrap_or_default();
    let seen = Seen {
        instance,
        stage,
        attempt,
        fence,
        headers: head.headers,
        body: Bytes::new(),
        arrived,
        ended: 0,
        answer: None,
        id: id.clone(),
    };
    let open = {
        let mut all = log.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(seen);
        Open { index: all.len() - 1, log: Arc::clone(&log) }
    };
    let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
    open.note(|seen| seen.body = body);
    tokio::time::sleep(LATENCY).await;

    let (status, retry_after) = match Kind::of(&id) {
        Some(Kind::Succeeds) => (200, None),
        Some(Kind::Fails(times)) if attempt <= times => (503, None),
        Some(Kind::FailsAlways) => (500, None),
        Some(Kind::Refused) => (422, None),
        Some(Kind::RetryAfter(seconds)) if attempt == 1 => (429, Some(seconds)),
        Some(Kind::Hangs) if attempt == 1 => std::future::pending().await,
        Some(Kind::Fails(_) | Kind::RetryAfter(_) | Kind::Hangs) => (200, None),
        // None of these may ever come here: seen as a fault by the checks.
        Some(Kind::Garbage | Kind::Tombstone) | None => (418, None),
    };
    open.note(|seen| seen.answer = Some(status));
    let mut response = Response::new(Body::from(format!("rule of {id}")));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}
