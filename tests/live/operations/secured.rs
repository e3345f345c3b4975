//! A Kafka that is closed to strangers (TLS, passwords, rights), and a sink behind TLS that asks for a secret. The rights
//! are those of `docs/security.md`, read from there: with exactly these everything works, without each of them the
//! process says which is missing.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, Mutex};

use rdkafka::consumer::BaseConsumer;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{LIMIT, Ladder, records, until};
use crate::certificates::Certificates;
use crate::outside;
use crate::support::acls::{self, Right};
use crate::support::kafka_server::KafkaCluster;
use crate::support::registry_url;

const DLQ: &str = "orders.billing.dlq";
const SECRET: &str = "hunter2-hunter2";

/// What the documentation gives to a role: rows `| role | kind `name` | operations |`, one right per operation.
fn documented(role: &str) -> Vec<Vec<Right>> {
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let &[_, first, on, operations, _] = cells.as_slice() else { return None };
        let (kind, name) = on.split_once(' ').filter(|_| first == role)?;
        let name = name.trim_matches('`');
        let right = |operation: &str| Right { kind: kind.into(), name: name.into(), operation: operation.into() };
        Some(operations.split(", ").map(right).collect())
    };
    let rows: Vec<_> = include_str!("../../../docs/security.md").lines().filter_map(row).collect();
    assert!(!rows.is_empty(), "no rights of {role} in docs/security.md");
    rows
}

/// A guarded broker and what its users are configured with.
struct Guarded {
    kafka: KafkaCluster,
    ladder: Ladder,
    folder: tempfile::TempDir,
    certificates: Certificates,
}

impl Guarded {
    fn start(users: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let certificates = Certificates::make(folder.path());
        let logins: Vec<_> = users.iter().map(|user| (*user, SECRET)).collect();
        let kafka = KafkaCluster::guarded(&certificates, &logins);
        std::fs::write(folder.path().join("password"), SECRET).expect("the password's file");
        Self { kafka, ladder: Ladder::new(1), folder, certificates }
    }

    fn give(&self, user: &str, rights: &[Vec<Right>]) {
        acls::set(&self.kafka.brokers(), user, &rights.concat());
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The file of a configuration for this user, `change` applied.
    fn config(&self, user: &str, mechanism: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut config = json!({
            "kafka": {
                "brokers": self.kafka.guarded_brokers(),
                "session_timeout": "6s",
                "properties": {
                    "security.protocol": "SASL_SSL",
                    "sasl.mechanism": mechanism,
                    "sasl.username": user,
                    "sasl.password_file": self.path("password"),
                    "ssl.ca.location": self.certificates.ca,
                },
            },
            "pipelines": { "orders": {
                "topic": "orders",
                "group": "billing",
                "message": "shop.v1.OrderPlaced",
                "partitions": 1,
                "retries": [{ "delay": "200ms" }, { "delay": "400ms" }],
                "idempotency": { "store": "memory" },
                "breaker": { "enabled": false },
                "brake": { "enabled": false },
                "handler": { "simulate": { "fail_ratio": 1, "dead_ratio": 1, "permanent_ratio": 0 } },
            }},
        });
        change(&mut config);
        let file = self.path(&format!("{user}-{:08x}.json", fastrand::u32(..)));
        std::fs::write(&file, config.to_string()).expect("the configuration's file");
        file
    }

    /// The file of a configuration for a client with these certificate and key files.
    fn config_of_client(&self, [cert, key]: &[PathBuf; 2], change: impl FnOnce(&mut Value)) -> String {
        self.config("client", "", |config| {
            config["kafka"]["brokers"] = self.kafka.mutual_brokers().into();
            config["kafka"]["properties"] = json!({
                "security.protocol": "SSL",
                "ssl.ca.location": self.certificates.ca,
                "ssl.certificate.location": cert,
                "ssl.key.location": key,
                "ssl.key.password_file": self.path("password"),
            });
            change(config);
        })
    }

    fn call(&self, config: &str, arguments: &[&str]) -> Output {
        self.ladder.call(&[&["--config", config], arguments].concat())
    }

    /// Standard output.
    fn works(&self, config: &str, arguments: &[&str]) -> String {
        let output = self.call(config, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("utf-8")
    }

    /// Ends with this code and these words, and never with the secret.
    fn fails(&self, config: &str, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.call(config, arguments);
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        for word in words {
            assert!(told.contains(word), "{arguments:?}: no `{word}` in: {told}");
        }
        assert!(!told.contains(SECRET) && !told.contains("guessed-it"), "{told}");
    }

    fn wait_for_letters(&self, count: i64) {
        let looker: BaseConsumer = outside::config(&self.kafka.brokers()).create().expect("a client that looks");
        let letters = || outside::ends(&looker, DLQ, 1);
        until("the letters are there", || letters() == [count], || format!("{:?}", letters()));
    }
}

#[test]
fn with_the_documented_rights_everything_works_and_without_each_it_is_named() {
    let worker = documented("worker");
    let names: Vec<_> = (0..worker.len()).map(|n| format!("without-{n}")).collect();
    let users = ["creator", "producer", "worker", "operator", "writes-no-letters", "nobody"];
    let guarded = Guarded::start(&[&users[..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    for role in ["creator", "producer", "worker", "operator"] {
        guarded.give(role, &documented(role));
    }
    let as_user = |user: &str, mechanism: &str| guarded.config(user, mechanism, |_| ());
    let (creator, producer) = (as_user("creator", "PLAIN"), as_user("producer", "SCRAM-SHA-512"));
    let operator = as_user("operator", "PLAIN");

    guarded.works(&creator, &["topics", "create"]);
    guarded.works(&producer, &["produce", "--count", "5"]);
    let mut running = guarded.ladder.start("worker", &["--config", &as_user("worker", "SCRAM-SHA-512")]);
    guarded.wait_for_letters(5);
    let status: Value = serde_json::from_str(&guarded.works(&operator, &["status", "--json"])).expect("JSON");
    assert_eq!(status["pipelines"][0]["stages"][0]["members"], 1, "{status}");
    let groups = guarded.works(&operator, &["dlq", "groups"]);
    assert!(groups.contains("exhausted"), "{groups}");
    guarded.works(&operator, &["dlq", "redrive", "--yes"]);
    guarded.wait_for_letters(10);
    let log = running.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    guarded.works(&operator, &["pause", "--stage", "main"]);
    until("it follows", || running.log().contains("paused by command"), || running.log());
    guarded.works(&operator, &["resume", "--stage", "main"]);
    guarded.works(&operator, &["dlq", "discard", "--all", "--reason", "seen", "--yes"]);
    running.signal(Signal::TERM);
    assert_eq!(running.exit_code(LIMIT), 0, "{}", running.log());
    assert!(!running.log().contains(SECRET), "{}", running.log());

    // Who has no right at all.
    let nobody = as_user("nobody", "PLAIN");
    guarded.fails(&nobody, &["topics", "create"], 1, &["orders.billing.dlq", "refused", "authorization failed"]);
    guarded.fails(&nobody, &["produce", "--count", "1"], 69, &["orders", "lacks the right Write"]);
    guarded.fails(&nobody, &["dlq", "groups"], 69, &["orders", "TopicAuthorizationFailed"]);

    // Who may see the DLQ and not write to it: the event stays where it is.
    let reads = |right: &Right| right.name != DLQ || right.operation != "Write";
    let rights: Vec<Vec<_>> = worker.iter().map(|row| row.iter().filter(|r| reads(r)).cloned().collect()).collect();
    guarded.give("writes-no-letters", &rights);
    guarded.works(&producer, &["produce", "--count", "1"]);
    let mut stuck = guarded.ladder.start("stuck", &["--config", &as_user("writes-no-letters", "PLAIN")]);
    let lacks = format!("lacks the right Write on topic {DLQ}");
    until("it says so", || stuck.log().contains(&lacks), || stuck.log());
    stuck.kill();

    // Who lacks one row.
    let lacking = |n: usize| {
        let (user, mut rights) = (names[n].as_str(), worker.clone());
        let missing = rights.remove(n)[0].clone();
        guarded.give(user, &rights);
        (guarded.ladder.start(user, &["--config", &as_user(user, "PLAIN")]), missing)
    };
    let started: Vec<_> = (0..worker.len()).map(lacking).collect();
    for (mut process, Right { kind, name, .. }) in started {
        let stem = name.trim_end_matches('*');
        let says = if kind == "group" { format!("lacks the right Read on group {stem}") } else { stem.to_owned() };
        let told = || process.log().contains(&says) && (kind == "group" || process.log().contains("hidden"));
        until("it names what is missing", told, || format!("{says}: {}", process.log()));
        let is_needed = kind == "topic" && !["orders.billing.control", "orders.billing.redrive"].contains(&stem);
        if is_needed {
            assert_eq!(process.exit_code(LIMIT), 69, "{}", process.log());
        }
    }

    a_refused_connection_is_told_at_once(&guarded);
}

/// Wrong passwords and authorities that are not trusted: 64, with the property to correct.
fn a_refused_connection_is_told_at_once(guarded: &Guarded) {
    std::fs::write(guarded.path("guessed"), "guessed-it").expect("a file");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let stranger = Certificates::make(elsewhere.path()).ca.display().to_string();
    let patient = |config: &mut Value| config["kafka"]["startup_timeout"] = "90s".into();
    let wrong_password = |config: &mut Value| {
        patient(config);
        config["kafka"]["properties"]["sasl.password_file"] = guarded.path("guessed").into();
    };
    let wrong_ca = |config: &mut Value| {
        patient(config);
        config["kafka"]["properties"]["ssl.ca.location"] = stranger.clone().into();
    };
    for (config, property) in [
        (guarded.config("worker", "SCRAM-SHA-512", wrong_password), "sasl.password"),
        (guarded.config("worker", "PLAIN", wrong_password), "sasl.password"),
        (guarded.config("worker", "PLAIN", wrong_ca), "ssl.ca.location"),
    ] {
        for arguments in [&["--stage", "main"][..], &["status"], &["dlq", "groups"], &["produce", "--count", "1"]] {
            guarded.fails(&config, arguments, 64, &[property, "kafka.properties"]);
        }
    }
}

#[test]
fn a_client_with_a_certificate_has_the_rights_of_its_name_and_is_refused_without_one() {
    let guarded = Guarded::start(&[]);
    let roles = ["creator", "producer", "worker", "operator"];
    guarded.give("CN=ladder", &roles.map(documented).concat());
    let ladder = guarded.certificates.client("ladder", SECRET);
    let config = guarded.config_of_client(&ladder, |_| ());
    guarded.works(&config, &["topics", "create"]);
    guarded.works(&config, &["produce", "--count", "3"]);
    let mut running = guarded.ladder.start("worker", &["--config", &config]);
    guarded.wait_for_letters(3);
    guarded.works(&config, &["dlq", "redrive", "--yes"]);
    guarded.wait_for_letters(6);
    running.signal(Signal::TERM);
    assert_eq!(running.exit_code(LIMIT), 0, "{}", running.log());
    let log = running.log();
    assert!(!log.contains("WARN") && !log.contains(SECRET), "{log}");

    let nobody = guarded.config_of_client(&guarded.certificates.client("nobody", SECRET), |_| ());
    guarded.fails(&nobody, &["produce", "--count", "1"], 69, &["orders", "lacks the right Write"]);

    let elsewhere = tempfile::tempdir().expect("a folder");
    let stranger = Certificates::make(elsewhere.path()).client("ladder", SECRET);
    std::fs::write(guarded.path("guessed"), "guessed-it").expect("a file");
    let patient = |config: &mut Value| config["kafka"]["startup_timeout"] = "90s".into();
    let without_a_key = |config: &mut Value| {
        patient(config);
        let properties = config["kafka"]["properties"].as_object_mut().expect("a map");
        properties.retain(|name, _| !name.contains("key") && !name.contains("certificate"));
    };
    let wrong_password = |config: &mut Value| {
        config["kafka"]["properties"]["ssl.key.password_file"] = guarded.path("guessed").into();
    };
    for (config, property) in [
        (guarded.config_of_client(&ladder, without_a_key), "ssl.certificate.location"),
        (guarded.config_of_client(&stranger, patient), "ssl.certificate.location"),
        (guarded.config_of_client(&ladder, wrong_password), "ssl.key"),
    ] {
        for arguments in [&["--stage", "main"][..], &["status"], &["dlq", "groups"], &["produce", "--count", "1"]] {
            guarded.fails(&config, arguments, 64, &[property]);
        }
    }
}

/// What speaks TLS to `port` on behalf of a server that does not.
fn behind_tls(certificates: &Certificates, port: u16) -> u16 {
    let acceptor = acceptor(certificates);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("its address").port();
    listener.set_nonblocking(true).expect("a listener of tokio's");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let acceptor = tokio_native_tls::TlsAcceptor::from(acceptor);
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut client = acceptor.accept(stream).await.ok()?;
                    let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
                });
            }
        });
    });
    at
}

#[test]
fn a_registry_behind_tls_is_asked_by_who_trusts_its_authority() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(folder.path());
    let mut url = reqwest::Url::parse(&registry_url()).expect("a url");
    let port = behind_tls(&certificates, url.port_or_known_default().expect("a port"));
    url.set_scheme("https").and_then(|()| url.set_port(Some(port))).expect("a url");
    url.set_host(Some("localhost")).expect("a host");
    let password = folder.path().join("password");
    std::fs::write(&password, SECRET).expect("the secret's file");
    let mut ladder = Ladder::created(1);
    ladder.pipeline()["framing"] = "confluent".into();
    ladder.pipeline()["handler"] = json!({ "log": {} });
    let urls = [url.as_str()];
    ladder.config["registry"] =
        json!({ "urls": urls, "retries": 0, "user": "ladder", "password_file": password, "ca": certificates.ca });
    let trusting = ladder.call(&["produce", "--register", "--count", "3"]);
    assert!(trusting.status.success(), "{}", String::from_utf8_lossy(&trusting.stderr));
    let mut worker = ladder.start("worker", &[]);
    until("all are done", || ladder.committed(0) == Some(3), || worker.log());
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(LIMIT), 0, "{}", worker.log());
    assert!(ladder.dead_letters().is_empty(), "{}", worker.log());

    ladder.config["registry"]["ca"] = Value::Null;
    let stranger = ladder.call(&["produce", "--count", "1"]);
    let told = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(!stranger.status.success() && told.contains("certificate"), "{told}");
    for text in [told, worker.log()] {
        assert!(!text.contains(SECRET), "the secret is told: {text}");
    }
}

fn acceptor(certificates: &Certificates) -> native_tls::TlsAcceptor {
    let [cert, key] = [&certificates.cert, &certificates.key].map(|file| std::fs::read(file).expect("PEM"));
    let identity = native_tls::Identity::from_pkcs8(&cert, &key).expect("an identity");
    native_tls::TlsAcceptor::new(identity).expect("an acceptor")
}

/// Answers 503 to every request over TLS; keeps the headers that it was sent.
fn sink(certificates: &Certificates) -> (String, Arc<Mutex<Vec<String>>>) {
    let acceptor = acceptor(certificates);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://localhost:{}/orders", listener.local_addr().expect("its address").port());
    let seen = Arc::new(Mutex::new(Vec::new()));
    std::thread::spawn({
        let seen = Arc::clone(&seen);
        move || {
            for stream in listener.incoming().flatten() {
                let Ok(stream) = acceptor.accept(stream) else { continue };
                let mut stream = BufReader::new(stream);
                let (mut length, mut line) = (0, String::new());
                while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                    let header = std::mem::take(&mut line).trim_end().to_ascii_lowercase();
                    if let Some(value) = header.strip_prefix("content-length: ") {
                        length = value.parse().expect("a length");
                    }
                    seen.lock().expect("not poisoned").push(header);
                }
                let answer = b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                if stream.read_exact(&mut vec![0; length]).is_ok() {
                    // Whether it listens still is its own affair.
                    drop(stream.get_mut().write_all(answer));
                }
            }
        }
    });
    (url, seen)
}

#[test]
fn a_sink_behind_tls_gets_its_secret_header_and_nobody_else_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(folder.path());
    let (url, seen) = sink(&certificates);
    let key = folder.path().join("api-key");
    std::fs::write(&key, SECRET).expect("the secret's file");
    let mut ladder = Ladder::created(1);
    let trusted = certificates.ca.display().to_string();
    let handler = |ca: Value| {
        let key = key.display().to_string();
        json!({ "http": { "url": url, "ca": ca, "headers": { "X-Api-Key_file": key, "Authorization": "Bearer hunter2" } } })
    };
    ladder.pipeline()["handler"] = handler(trusted.into());
    let loud = [("RUST_LOG", "trace")];
    let worker = ladder.start_with("worker", &[], &loud);
    ladder.produce_one("main", 0, "wanted");
    until("it is dead", || ladder.dead_letters() == ["wanted"], || worker.log());
    let headers = seen.lock().expect("not poisoned").clone();
    for sent in [format!("x-api-key: {SECRET}"), "authorization: bearer hunter2".to_owned()] {
        assert!(headers.contains(&sent), "{headers:?}");
    }
    let printed = ladder.call(&["config", "print", "--all"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("X-Api-Key"), "{printed}");
    let letters = format!("{:?}", records(&ladder.topic("dlq")));
    assert!(letters.contains("status 503"), "{letters}");
    for text in [worker.log(), printed, letters] {
        assert!(!text.contains("hunter2"), "the secret is told: {text}");
    }
    drop(worker);

    // Without the authority nothing is sent, and the failure says why.
    let sent = seen.lock().expect("not poisoned").len();
    ladder.pipeline()["handler"] = handler(Value::Null);
    let worker = ladder.start("stranger", &[]);
    ladder.produce_one("main", 0, "unsent");
    until("it is dead", || ladder.dead_letters() == ["unsent", "wanted"], || worker.log());
    let letters = format!("{:?}", records(&ladder.topic("dlq")));
    assert!(letters.contains("certificate"), "{letters}");
    assert_eq!(seen.lock().expect("not poisoned").len(), sent);
}
