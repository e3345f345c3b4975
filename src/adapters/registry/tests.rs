//! The cache, and the questions, against a server of the test's own.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

const ORDER: &str = r#"syntax = "proto3"; package acme; import "acme/money.proto"; message Order { Money price = 1; }"#;
const MONEY: &str = r#"syntax = "proto3"; package acme; message Money { int64 units = 1; }"#;

/// What the server does, and how often it was asked.
#[derive(Default)]
struct Server {
    asked: AtomicUsize,
    refusals: AtomicUsize,
    delay_ms: AtomicUsize,
    authorization: Mutex<Option<String>>,
}

async fn by_id(State(server): State<Arc<Server>>, Path(id): Path<u32>, headers: HeaderMap) -> axum::response::Response {
    server.asked.fetch_add(1, SeqCst);
    *server.authorization.lock().unwrap() =
        headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    tokio::time::sleep(Duration::from_millis(server.delay_ms.load(SeqCst) as u64)).await;
    if server.refusals.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let money = json!([{ "name": "acme/money.proto", "subject": "acme/money.proto", "version": 1 }]);
    match id {
        404 => (StatusCode::NOT_FOUND, json!({ "message": "no such schema" }).to_string()).into_response(),
        66 => json!({ "schema": "{}" }).to_string().into_response(),
        67 => json!({ "schema": "message {", "schemaType": "PROTOBUF" }).to_string().into_response(),
        68 => "hello".into_response(),
        _ => json!({ "schema": ORDER, "schemaType": "PROTOBUF", "references": money }).to_string().into_response(),
    }
}

async fn version(Path((subject, version)): Path<(String, u32)>) -> String {
    assert_eq!((&*subject, version), ("acme/money.proto", 1));
    json!({ "schema": MONEY, "subject": subject, "version": 1, "id": 1 }).to_string()
}

async fn serve() -> (Arc<Server>, Url) {
    let server = Arc::new(Server::default());
    let routes = Router::new()
        .route("/api/schemas/ids/{id}", get(by_id))
        .route("/api/subjects/{subject}/versions/{version}", get(version))
        .with_state(Arc::clone(&server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/api", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (server, url)
}

fn registry(options: Options) -> Registry {
    Registry::new(options).unwrap()
}

async fn message(registry: &Registry, id: u32) -> Result<String, SchemaError> {
    Ok(registry.fetch(id).await?.decoder(&[]).unwrap().message().to_owned())
}

#[tokio::test]
async fn a_schema_is_asked_for_once_however_many_wait_for_it() {
    let (server, url) = serve().await;
    server.delay_ms.store(100, SeqCst);
    let registry = registry(Options::new(vec![url]));
    assert!(registry.known(7).is_none());
    let all = futures::future::join_all((0..50).map(|_| message(&registry, 7))).await;
    assert!(all.iter().all(|name| name.as_deref() == Ok("acme.Order")), "{all:?}");
    assert_eq!(message(&registry, 7).await.unwrap(), "acme.Order");
    assert!(registry.known(7).is_some());
    assert_eq!(server.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn a_question_outlives_whoever_asked_it() {
    let (server, url) = serve().await;
    server.delay_ms.store(100, SeqCst);
    let registry = registry(Options::new(vec![url]));
    assert!(tokio::time::timeout(Duration::from_millis(10), registry.fetch(7)).await.is_err());
    message(&registry, 7).await.unwrap();
    assert_eq!(server.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn what_is_wrong_for_good_is_kept_and_what_may_pass_is_asked_again() {
    let (server, url) = serve().await;
    let unknown_for = Duration::from_millis(50);
    let registry = registry(Options { unknown_for, retries: 0, ..Options::new(vec![url]) });
    let asked = async |id: u32, expected: &str| {
        let before = server.asked.load(SeqCst);
        let error = message(&registry, id).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(message(&registry, id).await.unwrap_err(), error, "kept for a moment at least");
        tokio::time::sleep(SILENCE.max(unknown_for) + Duration::from_millis(10)).await;
        message(&registry, id).await.unwrap_err();
        server.asked.load(SeqCst) - before
    };
    assert_eq!(asked(66, "is AVRO, not PROTOBUF").await, 1);
    assert_eq!(asked(67, "schema 67: ").await, 1);
    assert_eq!(asked(404, "schema 404 is unknown to the registry").await, 2);
    assert_eq!(asked(68, "no schema registry of Confluent's API").await, 2);
}

#[tokio::test]
async fn a_server_that_fails_is_tried_again_and_then_given_up() {
    let (server, url) = serve().await;
    let mut nobody = url.clone();
    nobody.set_port(Some(1)).unwrap();
    // The first of the two is not there; the second refuses once.
    server.refusals.store(1, SeqCst);
    let options = Options { retries: 3, ..Options::new(vec![nobody.clone(), url]) };
    assert_eq!(message(&registry(options), 7).await.unwrap(), "acme.Order");
    assert_eq!(server.asked.load(SeqCst), 2);
    let alone = registry(Options { retries: 1, ..Options::new(vec![nobody]) });
    assert!(matches!(message(&alone, 7).await, Err(SchemaError::Unavailable { id: 7, .. })));
}

#[tokio::test]
async fn the_schema_that_was_not_used_for_longest_goes_first() {
    let (server, url) = serve().await;
    let registry = registry(Options { cache: 2, ..Options::new(vec![url]) });
    for id in [1, 2, 1, 3] {
        message(&registry, id).await.unwrap();
    }
    assert!(registry.known(1).is_some() && registry.known(2).is_none() && registry.known(3).is_some());
    assert_eq!(server.asked.load(SeqCst), 3);
}

#[tokio::test]
async fn credentials_are_sent_and_never_shown() {
    let (server, url) = serve().await;
    let mut with_user = url.clone();
    with_user.set_username("app").unwrap();
    with_user.set_password(Some("hunter2")).unwrap();
    let basic = Some(("app".to_owned(), "hunter2".to_owned()));
    let token = Some("hunter2".to_owned());
    for (options, expected) in [
        (Options { basic, ..Options::new(vec![url.clone()]) }, "Basic YXBwOmh1bnRlcjI="),
        (Options::new(vec![with_user]), "Basic YXBwOmh1bnRlcjI="),
        (Options { token, ..Options::new(vec![url]) }, "Bearer hunter2"),
    ] {
        let registry = registry(options);
        message(&registry, 7).await.unwrap();
        assert_eq!(server.authorization.lock().unwrap().as_deref(), Some(expected));
        let error = message(&registry, 68).await.unwrap_err();
        assert!(!format!("{registry:?} {error:?} {error}").contains("hunter2"), "{registry:?} {error:?}");
    }
}
