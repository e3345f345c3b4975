//! Against a server that answers as Jaeger 2 does, and against others.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, Uri};

use super::*;

/// Serves this body; the requests' paths and authorizations come back.
async fn serve(status: u16, body: &'static str) -> (Url, Arc<Mutex<Vec<String>>>) {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let asked = Arc::clone(&seen);
    let answer = move |headers: HeaderMap, uri: Uri| async move {
        let authorization = headers.get("authorization").map_or("", |value| value.to_str().unwrap());
        asked.lock().unwrap().push(format!("{uri} {authorization}"));
        (StatusCode::from_u16(status).unwrap(), body)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (url.parse().unwrap(), seen)
}

const ONE: &str = r#"{"data":[{"traceID":"ab","spans":[
    {"traceID":"ab","spanID":"1","operationName":"send x","references":[],"startTime":7,"duration":2,"processID":"p1",
     "tags":[{"key":"ladder.event_id","type":"string","value":"e"},{"key":"ladder.attempt","type":"int64","value":2}]},
    {"spanID":"2","references":[{"refType":"FOLLOWS_FROM","traceID":"ab","spanID":"9"},
                                {"refType":"CHILD_OF","traceID":"cd","spanID":"8"},
                                {"refType":"CHILD_OF","traceID":"ab","spanID":"1"}],"tags":[{"key":3}, 4]},
    {"operationName":"no id"}, 5],
    "processes":{"p1":{"serviceName":"retry-ladder"}}}],"errors":null}"#;

#[tokio::test]
async fn spans_are_read_with_parents_and_tags_and_what_is_no_span_is_left_out() {
    let (url, seen) = serve(200, ONE).await;
    let trace = Jaeger::new(url).unwrap().trace("ab").await.unwrap().unwrap();
    assert_eq!(trace.spans.len(), 2);
    let [first, second] = [&trace.spans[0], &trace.spans[1]];
    assert_eq!((&*first.service, &*first.name, &first.parent), ("retry-ladder", "send x", &None));
    assert_eq!((first.start_us, first.duration_us, &*first.tags["ladder.attempt"]), (7, 2, "2"));
    assert_eq!((&second.parent, second.start_us), (&Some("1".to_owned()), 0));
    assert_eq!(*seen.lock().unwrap(), ["/api/traces/ab "]);
}

#[tokio::test]
async fn an_event_is_looked_for_in_every_service_behind_a_path_and_with_a_password() {
    let (mut url, seen) = serve(200, ONE).await;
    url.set_path("/jaeger/");
    url.set_username("u").unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let jaeger = Jaeger::new(url).unwrap();
    assert!(!jaeger.to_string().contains("hunter2"));
    let traces =
        jaeger.traces_of_event("e\"1", Duration::from_secs(60), Timestamp::from_millis(1_000_000)).await.unwrap();
    assert_eq!(traces.len(), 1, "found twice, shown once");
    let seen = seen.lock().unwrap().clone();
    let services = ["retry-ladder", "retry-ladder-produce", "retry-ladder-dlq", "retry-ladder-console"];
    assert_eq!(seen.len(), services.len());
    for (asked, service) in seen.iter().zip(services) {
        let (path, authorization) = asked.split_once(' ').unwrap();
        let url = Url::parse("http://x").unwrap().join(path).unwrap();
        let query: BTreeMap<_, _> = url.query_pairs().collect();
        assert_eq!((url.path(), authorization), ("/jaeger/api/traces", "Basic dTpodW50ZXIy"));
        assert_eq!((&*query["service"], &*query["tags"]), (service, r#"{"ladder.event_id":"e\"1"}"#));
        let [start, end] = ["start", "end"].map(|name| query[name].parse::<u64>().unwrap());
        assert_eq!((start, end), (940_000_000, 1_300_000_000));
    }
}

#[tokio::test]
async fn what_is_not_found_is_none_and_what_is_no_jaeger_is_told() {
    let missing = r#"{"data":null,"errors":[{"code":404,"msg":"trace not found"}]}"#;
    let (url, _) = serve(404, missing).await;
    assert_eq!(Jaeger::new(url).unwrap().trace("ab").await.unwrap(), None);

    #[track_caller]
    fn check(error: &Error, words: &[&str]) {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)) && !text.contains("hunter2"), "{text}");
    }
    let (url, _) = serve(500, r#"{"data":null,"errors":[{"code":500,"msg":"storage is down"}]}"#).await;
    check(&Jaeger::new(url).unwrap().trace("ab").await.unwrap_err(), &["500", "storage is down"]);
    let (url, _) = serve(404, "<html>not here</html>").await;
    check(&Jaeger::new(url).unwrap().trace("ab").await.unwrap_err(), &["no Jaeger's query API", "16686"]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://u:hunter2@{free}/").parse().unwrap();
    let error = Jaeger::new(url).unwrap().trace("ab").await.unwrap_err();
    check(&error, &["no Jaeger answers", &free.to_string(), "refused", "scripts/services up jaeger", "--jaeger"]);
}
