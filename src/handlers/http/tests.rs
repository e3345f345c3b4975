//! The handler against real servers on loopback: axum where HTTP is spoken properly, bare sockets where it is not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use axum::{Router, body};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::handlers::testing::{EventBuilder, FixedClock};
use crate::ladder::event::FailureClass;
use crate::messages::{Decoder, Framing, Reader};

/// A request as the server saw it.
struct Seen {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A server that gives every request the same answer.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start<R: IntoResponse>(answer: impl Fn() -> R + Clone + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let serve = move |State(seen): State<Arc<Mutex<Vec<Seen>>>>, uri: Uri, headers: HeaderMap, body: Bytes| {
            seen.lock().unwrap().push(Seen { path: uri.to_string(), headers, body });
            std::future::ready(answer().into_response())
        };
        let app = Router::new().fallback(axum::routing::post(serve)).with_state(seen.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/orders", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let listener = listener.tap_io(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, seen, connections, task }
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn handler(options: HttpOptions) -> HttpHandler {
    HttpHandler::new(options, Arc::new(FixedClock)).unwrap()
}

async fn call(options: HttpOptions) -> Outcome {
    handler(options).handle(EventBuilder::new().build()).await
}

#[track_caller]
fn failed(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?} is no failure"),
    }
}

/// The outcome's word: done, fenced, or the class of the failure.
fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Fenced => "fenced",
        Outcome::Failed(f) => match f.class {
            FailureClass::Transient => "transient",
            FailureClass::Permanent => "permanent",
            FailureClass::Poison => "poison",
        },
    }
}

async fn check_status(status: u16, overrides: &[(u16, Class)], expect: &str) {
    let server = Server::start(move || StatusCode::from_u16(status).unwrap()).await;
    let classify = overrides.iter().copied().collect();
    let outcome = call(HttpOptions { classify, ..HttpOptions::new(&server.url) }).await;
    assert_eq!(word(&outcome), expect, "{status} with {overrides:?}");
    assert_eq!(server.requests(), 1, "{status}: one execution is one request");
    if let Outcome::Failed(failure) = outcome {
        assert!(failure.message.contains(&format!("status {status}")), "{}", failure.message);
        assert_eq!(failure.retry_after, None);
    }
}

#[tokio::test]
async fn each_status_has_the_meaning_of_the_contract() {
    for status in [200, 201, 202, 204, 206, 226] {
        check_status(status, &[], "done").await;
    }
    for status in [401, 403, 408, 425, 429, 500, 501, 502, 503, 504, 511, 599] {
        check_status(status, &[], "transient").await;
    }
    for status in
        [300, 301, 302, 303, 304, 307, 308, 400, 402, 404, 405, 406, 407, 409, 410, 411, 413, 415, 422, 431, 499]
    {
        check_status(status, &[], "permanent").await;
    }
    check_status(412, &[], "fenced").await;
    for status in [600, 999] {
        check_status(status, &[], "transient").await;
    }
}

#[tokio::test]
async fn overrides_win_over_the_table() {
    check_status(404, &[(404, Class::Transient)], "transient").await;
    check_status(409, &[(404, Class::Transient), (409, Class::Done)], "done").await;
    check_status(503, &[(503, Class::Permanent)], "permanent").await;
    check_status(412, &[(412, Class::Permanent)], "permanent").await;
    check_status(412, &[(412, Class::Done)], "done").await;
    check_status(204, &[(204, Class::Transient)], "transient").await;
    check_status(500, &[(404, Class::Done)], "transient").await;
}

#[tokio::test]
async fn retry_after_counts_on_429_and_503_in_both_forms() {
    async fn check(status: u16, value: &'static str, classify: &[(u16, Class)], expect: Option<u64>) {
        let server =
            Server::start(move || (StatusCode::from_u16(status).unwrap(), [(RETRY_AFTER.as_str(), value)])).await;
        let classify = classify.iter().copied().collect();
        let failure = failed(call(HttpOptions { classify, ..HttpOptions::new(&server.url) }).await);
        assert_eq!(failure.retry_after, expect.map(Duration::from_secs), "{status} {value:?}");
    }
    check(429, "120", &[], Some(120)).await;
    check(503, "Sun, 06 Nov 1994 08:50:37 GMT", &[], Some(60)).await;
    check(503, "Sun, 06 Nov 1994 08:00:00 GMT", &[], Some(0)).await;
    check(429, "soon", &[], None).await;
    check(500, "120", &[], None).await;
    check(301, "120", &[], None).await;
    check(429, "120", &[(429, Class::Permanent)], None).await;
    check(503, "5", &[(503, Class::Transient)], Some(5)).await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Server::start(|| StatusCode::OK).await;
    let location = target.url.clone();
    let server = Server::start(move || (StatusCode::TEMPORARY_REDIRECT, [("location", location.clone())])).await;
    assert_eq!(word(&call(HttpOptions::new(&server.url)).await), "permanent");
    assert_eq!((server.requests(), target.requests()), (1, 0));
}

#[tokio::test]
async fn the_request_carries_payload_and_headers() {
    let server = Server::start(|| StatusCode::OK).await;
    let mut options = HttpOptions::new(format!("{}/a?token=t", server.url));
    options.headers.insert("X-Api-Key".into(), "s3cret".into());
    options.headers.insert("User-Agent".into(), "shop".into());
    let payload: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let event = EventBuilder::new().payload(&payload).id("o 1\n").key(None).attempt(4).stage(3, "retry-3");
    assert_eq!(handler(options).handle(event.build()).await, Outcome::Done);

    let seen = server.seen.lock().unwrap();
    assert_eq!(seen[0].path, "/orders/a?token=t");
    assert_eq!(seen[0].body, payload, "byte for byte");
    let header = |name: &str| seen[0].headers.get(name).map(|v| v.to_str().unwrap());
    for (name, expect) in [
        ("content-type", Some("application/x-protobuf")),
        ("content-length", Some("100000")),
        ("ce-specversion", Some("1.0")),
        ("ce-id", Some("o%201%0A")),
        ("ce-type", Some("shop.v1.OrderPlaced")),
        ("ce-source", Some("/orders/3")),
        ("ce-time", Some("2025-11-21T12:00:00.123Z")),
        ("idempotency-key", Some("o%201%0A")),
        ("x-ladder-attempt", Some("4")),
        ("x-ladder-stage", Some("retry-3")),
        ("x-ladder-fence", Some("7")),
        ("x-ladder-key", None),
        ("x-api-key", Some("s3cret")),
        ("user-agent", Some("shop")),
        ("accept-encoding", None),
    ] {
        assert_eq!(header(name), expect, "{name}");
    }
    for name in seen[0].headers.keys() {
        assert_eq!(seen[0].headers.get_all(name).iter().count(), 1, "{name} once");
    }
}

#[tokio::test]
async fn hostile_events_arrive_whole() {
    let server = Server::start(|| StatusCode::OK).await;
    let handler = handler(HttpOptions::new(&server.url));
    let id = "é\r\nce-id: forged\r\n\r\nPOST /\0".repeat(20);
    let event = EventBuilder::new()
        .id(&id)
        .key(Some(&[0xff; 10_240]))
        .header("traceparent", b"\r\nX-Forged: 1")
        .header("correlation-id", b"\r\nX-Forged: 1");
    assert_eq!(handler.handle(event.build()).await, Outcome::Done);
    let seen = server.seen.lock().unwrap();
    let headers = &seen[0].headers;
    assert_eq!(percent_encoding::percent_decode(headers["ce-id"].as_bytes()).decode_utf8().unwrap(), id);
    assert_eq!(headers["x-ladder-omitted"], "X-Ladder-Key");
    assert_eq!(headers["x-correlation-id"], "%0D%0AX-Forged:%201");
    assert!(!headers.contains_key("x-ladder-key"));
    assert!(!headers.contains_key("traceparent"));
    assert!(!headers.contains_key("x-forged"));
}

#[tokio::test]
async fn json_is_made_of_the_message_and_what_has_none_is_poison() {
    let server = Server::start(|| StatusCode::OK).await;
    let decoder = Decoder::new("shop.v1.OrderPlaced", None, Framing::Plain).unwrap();
    let body = Body::Json(Reader::Own(decoder));
    let handler = handler(HttpOptions { body, ..HttpOptions::new(&server.url) });
    assert_eq!(handler.handle(EventBuilder::new().payload(b"\x0a\x05hello").build()).await, Outcome::Done);
    // A time that no JSON can say: year 300,000.
    let late = b"\x3a\x08\x08\x80\xfc\xd0\x95\xdc\x91\x02";
    let Outcome::Failed(failure) = handler.handle(EventBuilder::new().payload(late).build()).await else { panic!() };
    assert_eq!(failure.class, FailureClass::Poison);
    assert!(failure.message.starts_with("shop.v1.OrderPlaced without a JSON form"), "{}", failure.message);
    assert_eq!(handler.handle(EventBuilder::new().tombstone().build()).await, Outcome::Done);

    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.len(), 2, "what cannot be mapped is not sent");
    assert_eq!(seen[0].headers["content-type"], "application/json");
    assert_eq!(seen[0].body, "{\"uniqueId\":\"hello\"}");
    assert_eq!(seen[1].headers["x-ladder-tombstone"], "true");
    assert_eq!(seen[1].headers["content-length"], "0");
    assert!(seen[1].body.is_empty());
}

#[tokio::test]
async fn a_failing_answer_is_told_with_the_beginning_of_its_body() {
    async fn check(body: impl Into<Vec<u8>>, expect: &str) {
        let body = body.into();
        let server = Server::start(move || (StatusCode::SERVICE_UNAVAILABLE, body.clone())).await;
        let message = failed(call(HttpOptions::new(&server.url)).await).message;
        let host = server.url.strip_prefix("http://").unwrap().strip_suffix("/orders").unwrap();
        assert_eq!(message, format!("{host}: status 503{expect}"));
    }
    check("", "").await;
    check("down for\r\nmaintenance\0\n", ": down for  maintenance").await;
    check("x".repeat(1_000), &format!(": {}", "x".repeat(200))).await;
    // Cut within the é, which then is left out.
    check("x".repeat(199) + "é", &format!(": {}", "x".repeat(199))).await;
    check(b"a\xffb", ": a\u{fffd}b").await;
}

#[tokio::test]
async fn a_refused_connection_is_transient_and_names_the_target() {
    // Bound and dropped: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failure = failed(call(HttpOptions::new(format!("http://{address}/secret-path?secret-query"))).await);
    assert_eq!(failure.class, FailureClass::Transient);
    let expect = format!("{address}: cannot connect: Connection refused");
    assert!(failure.message.starts_with(&expect), "{}", failure.message);
    assert!(!failure.message.contains("secret"), "{}", failure.message);
}

#[tokio::test]
async fn an_unknown_host_is_transient() {
    let failure = failed(call(HttpOptions::new("http://no-such-host.invalid/")).await);
    assert_eq!(failure.class, FailureClass::Transient);
    assert!(failure.message.starts_with("no-such-host.invalid:80: cannot connect: "), "{}", failure.message);
}

/// A server that treats each connection with `serve` once a request's head has come.
async fn bare<F, Fut>(serve: F) -> (String, tokio::task::JoinHandle<()>)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The whole request: the example's payload ends with these bytes.
            let mut request = Vec::new();
            while !request.ends_with(b"\x00\xff") && stream.read_buf(&mut request).await.unwrap() > 0 {}
            tokio::spawn(serve(stream));
        }
    });
    (url, task)
}

#[tokio::test]
async fn a_server_that_hangs_is_a_transient_time_out() {
    let (url, server) = bare(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let started = std::time::Instant::now();
    let failure = failed(call(HttpOptions { timeout: Duration::from_millis(150), ..HttpOptions::new(&url) }).await);
    assert!((Duration::from_millis(150)..Duration::from_secs(5)).contains(&started.elapsed()));
    assert_eq!(failure.class, FailureClass::Transient);
    assert!(failure.message.ends_with(": timed out after 150ms"), "{}", failure.message);
    server.abort();
}

#[tokio::test]
async fn broken_connections_and_broken_answers_are_transient() {
    for answer in
        ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-", "garbage\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n"]
    {
        let (url, server) = bare(move |mut stream| async move {
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let failure = failed(call(HttpOptions::new(&url)).await);
        assert_eq!(failure.class, FailureClass::Transient, "{answer:?}");
        assert!(failure.message.starts_with(&url[7..url.len() - 1]), "{answer:?}: {}", failure.message);
        server.abort();
    }
}

#[tokio::test]
async fn the_status_decides_although_the_body_breaks_off_or_never_ends() {
    for (answer, expect) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "done"),
        ("HTTP/1.1 422 No\r\nContent-Length: 100\r\n\r\nshort", "permanent"),
    ] {
        let (url, server) = bare(move |mut stream| async move {
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        assert_eq!(word(&call(HttpOptions::new(&url)).await), expect, "breaks off: {answer:?}");
        server.abort();

        let (url, server) = bare(move |mut stream| async move {
            stream.write_all(answer.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let options = HttpOptions { timeout: Duration::from_millis(200), ..HttpOptions::new(&url) };
        let outcome = call(options).await;
        assert_eq!(word(&outcome), expect, "never ends: {answer:?}");
        if let Outcome::Failed(failure) = outcome {
            assert!(failure.message.ends_with(": status 422: short"), "{}", failure.message);
        }
        server.abort();
    }
}

#[tokio::test]
async fn an_endless_body_costs_a_connection_and_no_time() {
    let server = Server::start(|| {
        let chunks = futures::stream::repeat(Bytes::from_static(&[b'x'; 1024]));
        Response::new(body::Body::from_stream(chunks.map(Ok::<_, std::convert::Infallible>)))
    })
    .await;
    let handler = handler(HttpOptions::new(&server.url));
    for _ in 0..3 {
        assert_eq!(handler.handle(EventBuilder::new().build()).await, Outcome::Done);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_connection_is_used_again_whatever_the_answer() {
    for (status, length) in [(200, 0), (200, 10_000), (503, 60_000), (404, 10)] {
        let body = "x".repeat(length);
        let server = Server::start(move || (StatusCode::from_u16(status).unwrap(), body.clone())).await;
        let handler = handler(HttpOptions::new(&server.url));
        for _ in 0..100 {
            handler.handle(EventBuilder::new().build()).await;
        }
        assert_eq!(server.requests(), 100);
        assert_eq!(server.connections.load(Ordering::SeqCst), 1, "status {status}, {length} bytes");
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_while_idle_is_replaced() {
    let (closed, mut closings) = tokio::sync::mpsc::unbounded_channel();
    let (url, server) = bare(move |mut stream| {
        let closed = closed.clone();
        async move {
            // Kept alive by its answer, then closed all the same.
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut end = Vec::new();
            stream.read_to_end(&mut end).await.ok();
            closed.send(()).ok();
        }
    })
    .await;
    let handler = handler(HttpOptions::new(&url));
    for _ in 0..3 {
        assert_eq!(handler.handle(EventBuilder::new().build()).await, Outcome::Done);
        // The client has seen it and closed its own end.
        closings.recv().await.unwrap();
    }
    server.abort();
}

#[tokio::test]
async fn credentials_in_the_url_become_basic_authorization() {
    let server = Server::start(|| StatusCode::OK).await;
    let url = server.url.replace("http://", "http://user:pass@");
    assert_eq!(call(HttpOptions::new(url)).await, Outcome::Done);
    assert_eq!(server.seen.lock().unwrap()[0].headers["authorization"], "Basic dXNlcjpwYXNz");
}
