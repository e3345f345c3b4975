//! Messages that are declared in a schema registry: `produce` registers and frames, every hop keeps each byte, handlers
//! and people see JSON, and a registry that is gone or does not know an id holds up nothing else.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};

use reqwest::Url;
use serde_json::{Value, json};

use retry_ladder::adapters::registry::{Options, Registry, Source};
use retry_ladder::messages::{Frame, SchemaError, Schemas as _};

use super::harness::{Ladder, records, until};
use crate::support::registry_url;
use retry_ladder::prove::proxy::{Cut, Proxy};

/// A ladder for framed messages; its main topic has a name of its own, and so has its subject.
fn ladder(registry: &str) -> Ladder {
    let mut ladder = Ladder::new(1);
    ladder.config["registry"] = json!({ "urls": [registry], "timeout": "20s", "retries": 1, "unknown_for": "100ms" });
    ladder.pipeline()["framing"] = "confluent".into();
    ladder.pipeline()["breaker"] = json!({ "enabled": false });
    succeeded(&ladder.call(&["topics", "create"]));
    ladder
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("utf-8")
}

/// Publishes one message with `produce`.
fn produce(ladder: &Ladder, id: &str, flags: &[&str]) -> Output {
    let lines = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(lines.path(), json!({ "uniqueId": id }).to_string()).expect("write");
    let file = lines.path().display().to_string();
    ladder.call(&[&["produce", "--json", &file, "--id-field", "unique_id"], flags].concat())
}

/// A server that takes JSON: says which it took, and with which type.
#[derive(Default)]
struct Sink(Mutex<BTreeMap<String, String>>);

impl Sink {
    fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("its address"));
        let sink = Arc::new(Self::default());
        std::thread::spawn({
            let sink = Arc::clone(&sink);
            move || {
                for stream in listener.incoming().flatten() {
                    sink.serve(stream);
                }
            }
        });
        (sink, url)
    }

    /// One request; the body decides: `dead-…` never succeeds, `late-…` at the third attempt.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut requests = BufReader::new(stream.try_clone().ok()?);
        let (mut length, mut attempt, mut kind) = (0, 0, String::new());
        loop {
            let mut line = String::new();
            requests.read_line(&mut line).ok()?;
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().ok()?,
                Some(("x-ladder-attempt", value)) => attempt = value.parse().ok()?,
                Some(("ce-type", value)) => kind = value.to_owned(),
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body).ok()?;
        let body: Value = serde_json::from_slice(&body).ok()?;
        let id = body["uniqueId"].as_str()?.to_owned();
        let takes = !id.starts_with("dead") && (attempt == 3 || !id.starts_with("late"));
        if takes {
            self.0.lock().expect("not poisoned").insert(id, kind);
        }
        let status = if takes { "200 OK" } else { "503 Unavailable" };
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok()
    }

    fn took(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").keys().cloned().collect()
    }
}

#[test]
fn framed_messages_go_up_the_ladder_with_every_byte_kept_and_are_read_by_their_schema() {
    let (sink, url) = Sink::start();
    let mut ladder = ladder(&registry_url());
    let refused = produce(&ladder, "none", &[]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--register registers the message"), "{refused:?}");

    succeeded(&produce(&ladder, "now-1", &["--register"]));
    for id in ["late-1", "dead-1", "now-2"] {
        // With what is registered now.
        succeeded(&produce(&ladder, id, &[]));
    }
    // The pipeline names no message: the registry says what each is.
    ladder.pipeline().as_object_mut().expect("a map").remove("message");
    ladder.pipeline()["handler"] = json!({ "http": { "url": url, "body": "json" } });
    let worker = ladder.start("worker", &[]);
    until("all end", || sink.took().len() == 3 && ladder.dead_letters() == ["dead-1"], || worker.log());
    assert_eq!(sink.took(), ["late-1", "now-1", "now-2"]);
    assert!(sink.0.lock().expect("not poisoned").values().all(|kind| kind == "shop.v1.orderplaced"));

    let main: BTreeMap<String, Vec<u8>> =
        records(&ladder.topic("main")).into_iter().map(|r| (r.id().to_owned(), r.value)).collect();
    for value in main.values() {
        let frame = Frame::read(value).expect("a frame");
        assert!(frame.schema_id > 0 && frame.length == 6, "{frame:?}");
    }
    for (stage, expected) in [("retry-1", 2), ("retry-2", 2), ("dlq", 1)] {
        let copies = records(&ladder.topic(stage));
        assert_eq!(copies.len(), expected, "{stage}");
        for copy in copies {
            assert_eq!(copy.value, main[copy.id()], "{} on {stage}", copy.id());
        }
    }
    let shown: Value = serde_json::from_str(&succeeded(&ladder.call(&["dlq", "show", "dead-1", "--json"]))).unwrap();
    assert_eq!(shown["value"]["json"], json!({ "uniqueId": "dead-1" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_gone_delays_what_is_new_to_it_and_nothing_else() {
    let direct = Url::parse(&registry_url()).expect("a url");
    let proxy =
        Proxy::start(format!("127.0.0.1:{}", direct.port_or_known_default().expect("a port"))).await.expect("a proxy");
    let mut through = direct.clone();
    through.set_port(Some(proxy.port())).expect("a port");
    let mut ladder = ladder(through.as_str());
    ladder.pipeline()["retries"] = json!([{ "delay": "500ms" }, { "delay": "5s" }, { "delay": "20s" }]);
    ladder.simulate("fail_ratio", 0);
    succeeded(&ladder.call(&["topics", "create"]));
    let registry = Registry::new(Options::new(vec![direct])).expect("a registry");

    succeeded(&produce(&ladder, "known-1", &["--register"]));
    let worker = ladder.start("worker", &[]);
    let done = |id: &str| worker.ends().iter().any(|end| end.event_id == id && end.outcome.as_deref() == Some("done"));
    until("the first is done", || done("known-1"), || worker.log());

    // Of an order, but no other file: an id of its own.
    let text = "syntax = \"proto3\"; package shop.v1; message OrderPlaced { string unique_id = 1; }";
    let source = Source { name: "other".into(), text: text.into(), imports: Vec::new() };
    let new = registry.register(&format!("{}-other", ladder.topic("main")), &[source]).await.expect("registered");
    let known = Frame::read(&records(&ladder.topic("main"))[0].value).expect("a frame").schema_id;
    proxy.set(Some(Cut::AtReply));
    succeeded(&produce(&ladder, "new-1", &["--schema-id", &new.to_string()]));
    succeeded(&produce(&ladder, "known-2", &["--schema-id", &known.to_string()]));
    until("the known goes on", || done("known-2"), || worker.log());
    until("the new one waits", || !records(&ladder.topic("retry-1")).is_empty(), || worker.log());
    let error = records(&ladder.topic("retry-1"))[0].header("x-ladder-error").to_owned();
    assert!(error.starts_with(&format!("transient: schema {new}: no schema registry answers at")), "{error}");
    assert!(!done("new-1"));

    proxy.set(None);
    until("the new one is done", || done("new-1"), || worker.log());
    assert!(ladder.dead_letters().is_empty());
}

#[test]
fn an_unknown_id_is_tried_on_every_rung_and_another_message_is_poison_at_once() {
    let mut ladder = ladder(&registry_url());
    ladder.simulate("fail_ratio", 0);
    succeeded(&produce(&ladder, "order", &["--register"]));
    succeeded(&produce(&ladder, "unknown", &["--schema-id", "2000000000"]));
    ladder.pipeline()["message"] = "shop.v1.ItemSold".into();
    succeeded(&produce(&ladder, "sale", &[]));
    ladder.pipeline()["message"] = "shop.v1.OrderPlaced".into();

    let worker = ladder.start("worker", &[]);
    until("both end in the DLQ", || ladder.dead_letters() == ["sale", "unknown"], || worker.log());
    let letters = records(&ladder.topic("dlq"));
    let letter = |id: &str| letters.iter().find(|letter| letter.id() == id).expect("a letter");
    assert_eq!(letter("unknown").header("x-ladder-error"), "exhausted: schema 2000000000 is unknown to the registry");
    assert_eq!(letter("unknown").header("x-ladder-attempt"), "3");
    let (error, attempt) = (letter("sale").header("x-ladder-error"), letter("sale").header("x-ladder-attempt"));
    assert!(error.starts_with("poison: schema ") && attempt == "0", "{error} after {attempt}");
    assert!(error.ends_with("makes it a shop.v1.ItemSold, the pipeline's message is shop.v1.OrderPlaced"), "{error}");
    // No handler saw either.
    until("the order is done", || worker.ends().len() == 1, || worker.log());
    assert_eq!(worker.ends()[0].event_id, "order");
}

#[tokio::test]
async fn what_a_schema_imports_is_found_through_its_references() {
    let registry = Registry::new(Options::new(vec![Url::parse(&registry_url()).expect("a url")])).expect("a registry");
    let folder = crate::support::unique("imports");
    let source = |name: &str, imports: &[&str], message: &str| {
        let own = |name: &str| format!("{folder}/{name}.proto");
        let text: String = imports.iter().map(|name| format!("import \"{}\"; ", own(name))).collect();
        let text = format!("syntax = \"proto3\"; package acme; {text} message {message}");
        Source { name: own(name), text, imports: imports.iter().map(|name| own(name)).collect() }
    };
    let sources = [
        source("money", &[], "Money { int64 units = 1; }"),
        source("line", &["money"], "Line { Money price = 1; }"),
        source("order", &["line", "money"], "Order { repeated Line lines = 1; Money total = 2; }"),
    ];
    let subject = format!("{folder}-value");
    let id = registry.register(&subject, &sources).await.expect("registered");
    assert_eq!(registry.register(&subject, &sources).await.expect("registered"), id, "once is enough");
    let (latest, schema) = registry.latest(&subject).await.expect("the newest");
    assert_eq!(latest, id);
    let json =
        schema.decoder(&[]).expect("a message").to_json(b"\x0a\x04\x0a\x02\x08\x05\x12\x02\x08\x05").expect("json");
    assert_eq!(json, r#"{"lines":[{"price":{"units":"5"}}],"total":{"units":"5"}}"#);
    assert_eq!(registry.fetch(2_000_000_000).await.unwrap_err(), SchemaError::Unknown { id: 2_000_000_000 });
}
