//! Which servers are refused at the start, and in what words.

use std::time::{Duration, Instant};

use retry_ladder::adapters::redis::{Error, Options, Store, connect};
use retry_ladder::stage::ports::{ClaimReply, IdempotencyStore};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::redis_server::{RedisServer, free_port};
use crate::stores::side;
use crate::{claim_of, key};

fn one_attempt() -> Options {
    Options { startup_timeout: Duration::ZERO, ..Options::default() }
}

async fn refused(url: &str) -> Error {
    match connect(url, one_attempt()).await {
        Ok(_) => panic!("{url} is accepted"),
        Err(error) => error,
    }
}

async fn works(store: &Store) {
    let replies = store.claim(vec![(key("a"), claim_of(1))], Duration::from_secs(9)).await;
    assert_eq!(replies[0].as_ref().unwrap(), &ClaimReply::Claimed);
}

/// Answers `INFO` with a description of our choice and everything else with `OK`.
async fn server_described_as(info: &'static str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(describe(stream, info));
        }
    });
    url
}

async fn describe(stream: TcpStream, info: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let words = length(&mut stream).await?;
        let mut command = Vec::new();
        for _ in 0..words {
            let mut word = vec![0; length(&mut stream).await? + 2];
            stream.read_exact(&mut word).await?;
            command.push(String::from_utf8_lossy(&word).trim().to_ascii_uppercase());
        }
        let reply = match command.first().map(String::as_str) {
            Some("INFO") => format!("${}\r\n{info}\r\n", info.len()),
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).await?;
    }
}

/// The number after the `*` of an array or the `$` of a string.
async fn length(stream: &mut BufReader<TcpStream>) -> std::io::Result<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    line.trim().get(1..).and_then(|n| n.parse().ok()).ok_or_else(|| std::io::Error::other("the client is gone"))
}

#[tokio::test]
async fn an_old_version_is_refused_with_the_one_that_is_needed() {
    let url = server_described_as("redis_version:6.2.14\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n").await;
    let error = refused(&url).await;
    assert!(matches!(&error, Error::TooOld { found, .. } if found == "6.2.14"), "{error}");
    assert_eq!(error.exit_code(), 64);
    let text = error.to_string();
    assert!(text.contains(&url) && text.contains("7.0 or newer"), "{text}");
}

#[tokio::test]
async fn a_valkey_is_accepted() {
    let url = server_described_as("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n").await;
    connect(&url, one_attempt()).await.expect("accepted");
}

#[tokio::test]
async fn an_evicting_server_is_refused_with_the_remedy() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let error = refused(&server.url()).await;
    assert!(matches!(&error, Error::EvictionPolicy { found, .. } if found == "allkeys-lru"), "{error}");
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("maxmemory-policy noeviction"), "{error}");
}

#[tokio::test]
async fn a_replica_is_refused() {
    let server = RedisServer::start_with(&["--replicaof", "127.0.0.1 1"]);
    let error = refused(&server.url()).await;
    assert!(matches!(error, Error::Replica { .. }), "{error}");
}

#[tokio::test]
async fn a_cluster_node_is_refused() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()]);
    let error = refused(&server.url()).await;
    assert!(matches!(error, Error::Cluster { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_shown() {
    let server = RedisServer::start_with(&["--requirepass", "right"]);
    for user in ["", ":wrong@", "nobody:wrong@"] {
        let error = refused(&format!("redis://{user}127.0.0.1:{}", server.port())).await;
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(error.exit_code(), 64);
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let store = connect(&format!("redis://:right@127.0.0.1:{}", server.port()), one_attempt()).await.unwrap();
    works(&store).await;
    assert!(store.ping().await.unwrap() < Duration::from_secs(1));
    assert_eq!(store.url(), format!("redis://:***@127.0.0.1:{}", server.port()));
}

#[tokio::test]
async fn a_server_that_hides_its_description_is_trusted() {
    let server = RedisServer::start();
    let mut side = side(&server).await;
    let acl = ["SETUSER", "managed", "on", ">pw", "~*", "+@all", "-info", "-config"];
    redis::cmd("ACL").arg(&acl).exec_async(&mut side).await.unwrap();
    let store = connect(&format!("redis://managed:pw@127.0.0.1:{}", server.port()), one_attempt()).await.unwrap();
    works(&store).await;
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    let url = format!("redis://:secret@127.0.0.1:{}", free_port());
    let error = refused(&url).await;
    assert!(error.is_unreachable(), "{error}");
    assert_eq!(error.exit_code(), 69);
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_unreachable_within_the_connect_timeout() {
    // Taken by the kernel, never by anybody.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let begin = Instant::now();
    let error = refused(&format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port())).await;
    assert!(error.is_unreachable(), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_server_that_comes_up_within_the_start_up_time_is_waited_for() {
    let mut server = RedisServer::start();
    server.kill();
    let url = server.url();
    let waiting = tokio::spawn(async move {
        let options = Options { startup_timeout: Duration::from_secs(20), ..Options::default() };
        connect(&url, options).await
    });
    // Long enough for the first attempt to fail.
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.restart();
    works(&waiting.await.unwrap().unwrap()).await;
}
