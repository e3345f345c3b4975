//! What Redis and the network can do to a running store.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use retry_ladder::adapters::redis::{Options, Store, connect};
use retry_ladder::stage::ports::{ClaimReply, CopyKey, IdempotencyStore, Mark, SettleReply, StoreError};
use tokio::time::timeout;
use tracing_subscriber::fmt::MakeWriter;

use crate::redis_server::RedisServer;
use crate::stores::side;
use crate::{claim_of, key};
use retry_ladder::prove::proxy::{Cut, Proxy};

const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3_600);
/// Far above what anything here takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(20);

async fn open(url: &str) -> Store {
    connect(url, Options::default()).await.expect("a fresh redis is fit")
}

async fn claim(store: &Store, names: &[&str]) -> Vec<Result<ClaimReply, StoreError>> {
    let batch = names.iter().map(|name| (key(name), claim_of(1))).collect();
    timeout(LONG, store.claim(batch, LEASE)).await.expect("a batch never hangs")
}

async fn run(side: &mut MultiplexedConnection, command: &[&str]) {
    let mut cmd = redis::Cmd::new();
    for word in command {
        cmd.arg(*word);
    }
    let _: redis::Value = cmd.query_async(side).await.unwrap_or_else(|e| panic!("{command:?}: {e}"));
}

async fn until_available(store: &Store, available: bool) {
    let mut seen = store.available();
    timeout(LONG, seen.wait_for(|now| *now == available)).await.expect("in time").expect("the store lives");
}

#[tokio::test]
async fn a_refused_command_does_not_fail_its_neighbours() {
    let server = RedisServer::start();
    let mut side = side(&server).await;
    let acl = ["ACL", "SETUSER", "worker", "on", ">pw", "~idem:rights:*", "~idem:orders:shop.orders:ok*", "+@all"];
    run(&mut side, &acl).await;
    let store = open(&format!("redis://worker:pw@127.0.0.1:{}", server.port())).await;

    let replies = claim(&store, &["ok1", "forbidden", "ok2"]).await;
    assert_eq!(replies[0].as_ref().unwrap(), &ClaimReply::Claimed);
    assert!(replies[1].as_ref().unwrap_err().0.contains("NOPERM"), "{:?}", replies[1]);
    assert_eq!(replies[2].as_ref().unwrap(), &ClaimReply::Claimed);

    let batch = ["ok1", "forbidden", "ok2"].map(|name| (key(name), claim_of(1)));
    let renewed = store.renew(batch.to_vec(), LEASE).await;
    assert!(matches!(renewed[..], [Ok(true), Err(_), Ok(true)]), "{renewed:?}");
    let settled = store.settle(batch.map(|(key, claim)| (key, claim, Mark::Done, TTL)).to_vec()).await;
    assert!(matches!(settled[..], [Ok(SettleReply::Ours), Err(_), Ok(SettleReply::Ours)]), "{settled:?}");
    assert!(*store.available().borrow(), "a refusal is no outage");
}

#[tokio::test]
async fn a_full_server_refuses_claims_and_still_renews_and_releases() {
    let server = RedisServer::start();
    let mut side = side(&server).await;
    let store = open(&server.url()).await;
    assert!(claim(&store, &["held", "unstarted"]).await.iter().all(Result::is_ok));

    run(&mut side, &["CONFIG", "SET", "maxmemory", "1"]).await;
    for reply in claim(&store, &["a", "b"]).await {
        let error = reply.unwrap_err();
        assert!(error.0.contains("OOM"), "{error}");
    }
    let settled = store.settle(vec![(key("held"), claim_of(1), Mark::Done, TTL)]).await;
    assert!(settled[0].as_ref().unwrap_err().0.contains("OOM"), "{settled:?}");
    assert!(*store.renew(vec![(key("held"), claim_of(1))], LEASE).await[0].as_ref().unwrap());
    assert!(*store.release(vec![(key("unstarted"), claim_of(1))]).await[0].as_ref().unwrap());

    run(&mut side, &["CONFIG", "SET", "maxmemory", "0"]).await;
    let settled = store.settle(vec![(key("held"), claim_of(1), Mark::Done, TTL)]).await;
    assert_eq!(settled[0].as_ref().unwrap(), &SettleReply::Ours);
}

#[tokio::test]
async fn a_key_of_another_type_is_corrupt_and_can_be_settled() {
    let server = RedisServer::start();
    let mut side = side(&server).await;
    let store = open(&server.url()).await;
    run(&mut side, &["HSET", &key("hash"), "field", "value"]).await;

    let replies = claim(&store, &["before", "hash", "after"]).await;
    assert_eq!(replies[0].as_ref().unwrap(), &ClaimReply::Claimed);
    assert!(matches!(replies[1].as_ref().unwrap(), ClaimReply::Corrupt(text) if text.contains("WRONGTYPE")));
    assert_eq!(replies[2].as_ref().unwrap(), &ClaimReply::Claimed);

    let batch: Vec<_> = ["before", "hash", "after"].map(|name| (key(name), claim_of(1))).to_vec();
    let renewed: Vec<_> = store.renew(batch.clone(), LEASE).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(renewed, [true, false, true]);
    let settled: Vec<_> = batch.into_iter().map(|(key, claim)| (key, claim, Mark::MovedOn, TTL)).collect();
    let settled: Vec<_> = store.settle(settled).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(settled, [SettleReply::Ours, SettleReply::LeaseLost, SettleReply::Ours]);
    assert_eq!(claim(&store, &["hash"]).await[0].as_ref().unwrap(), &ClaimReply::MovedOn);
    let left: i64 = redis::cmd("PTTL").arg(&*key("hash")).query_async(&mut side).await.unwrap();
    assert!(left > 0, "the overwriting settlement has its ttl: {left}");
}

#[tokio::test]
async fn a_killed_server_fails_batches_at_once_and_is_found_again() {
    let mut server = RedisServer::start();
    let store = open(&server.url()).await;
    assert!(claim(&store, &["a"]).await[0].is_ok());

    server.kill();
    for _ in 0..3 {
        let begin = Instant::now();
        let replies = claim(&store, &["a", "b", "c"]).await;
        assert_eq!(replies.len(), 3);
        assert!(replies.iter().all(Result::is_err));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
    assert!(!*store.available().borrow());
    let error = store.ping().await.unwrap_err();
    assert!(error.0.contains(&server.url()), "{error}");

    server.restart();
    let begin = Instant::now();
    until_available(&store, true).await;
    assert!(begin.elapsed() < Duration::from_secs(3), "back after {:?}", begin.elapsed());
    assert_eq!(claim(&store, &["a"]).await[0].as_ref().unwrap(), &ClaimReply::Claimed, "it lost its records");
}

#[tokio::test]
async fn an_outage_is_noticed_without_any_batch() {
    let mut server = RedisServer::start();
    let store = open(&server.url()).await;
    server.kill();
    until_available(&store, false).await;
}

#[tokio::test]
async fn a_black_hole_fails_batches_in_time_and_heals() {
    let server = RedisServer::start();
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port())).await.unwrap();
    let store = open(&proxy.url()).await;
    assert!(claim(&store, &["a"]).await[0].is_ok());

    proxy.set(Some(Cut::BlackHole));
    for _ in 0..2 {
        let begin = Instant::now();
        assert!(claim(&store, &["a", "b"]).await.iter().all(Result::is_err));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
    proxy.set(None);
    let begin = Instant::now();
    until_available(&store, true).await;
    assert!(begin.elapsed() < Duration::from_secs(4), "back after {:?}", begin.elapsed());
    assert_eq!(claim(&store, &["a"]).await[0].as_ref().unwrap(), &ClaimReply::AlreadyOurs);
}

#[tokio::test]
async fn lost_replies_fail_the_whole_batch_and_the_claims_are_found_to_be_ours() {
    let server = RedisServer::start();
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port())).await.unwrap();
    let store = open(&proxy.url()).await;

    proxy.set(Some(Cut::AtReply));
    let names: Vec<String> = (0..200).map(|i| i.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let replies = claim(&store, &names).await;
    assert_eq!(replies.len(), 200);
    assert!(replies.iter().all(Result::is_err), "unknown, each of them");

    proxy.set(None);
    until_available(&store, true).await;
    for reply in claim(&store, &names).await {
        assert_eq!(reply.unwrap(), ClaimReply::AlreadyOurs);
    }
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_left_until_it_is_a_primary_again() {
    let server = RedisServer::start();
    let mut side = side(&server).await;
    let store = open(&server.url()).await;

    run(&mut side, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = claim(&store, &["a"]).await.remove(0).unwrap_err();
    assert!(error.0.to_lowercase().contains("readonly"), "{error}");
    assert!(!*store.available().borrow());

    run(&mut side, &["REPLICAOF", "NO", "ONE"]).await;
    until_available(&store, true).await;
    assert_eq!(claim(&store, &["a"]).await[0].as_ref().unwrap(), &ClaimReply::Claimed);
}

#[tokio::test]
async fn a_dropped_store_closes_its_connection() {
    let server = RedisServer::start();
    let mut side = side(&server).await;
    let store = open(&server.url()).await;
    drop(store);
    let alone = async {
        loop {
            let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut side).await.unwrap();
            if clients.lines().count() == 1 {
                return;
            }
        }
    };
    timeout(LONG, alone).await.expect("only the test's own connection is left");
}

#[tokio::test]
async fn an_outage_is_logged_once_and_its_end_once() {
    let log = Log::default();
    // For the whole process: an event that another test's thread meets first is else switched off for all.
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_max_level(tracing::Level::INFO)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("no other test of this crate logs");
    let mut server = RedisServer::start();
    let url = format!("redis://default:secret@127.0.0.1:{}", server.port());
    let mut side = side(&server).await;
    run(&mut side, &["CONFIG", "SET", "requirepass", "secret"]).await;
    let store = open(&url).await;

    server.kill();
    // Several attempts are made while batches fail.
    for _ in 0..5 {
        assert!(claim(&store, &["a"]).await[0].is_err());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    server.restart();
    until_available(&store, true).await;

    let place = format!("redis://default:***@127.0.0.1:{}", server.port());
    let lines = log.lines_about(&place);
    let of = |level: &str| lines.iter().filter(|line| line.trim_start().starts_with(level)).count();
    assert_eq!((of("WARN"), of("INFO")), (1, 1), "{lines:#?}");
    assert!(lines[0].contains("redis is gone") && lines[1].contains("redis is back"), "{lines:#?}");
    assert!(log.lines_about("secret").is_empty());
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// This crate's own lines that have this text.
    fn lines_about(&self, text: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let log = String::from_utf8_lossy(&bytes);
        log.lines().filter(|l| l.contains("retry_ladder") && l.contains(text)).map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_many_tasks_share_the_connection_and_get_their_own_replies() {
    let server = RedisServer::start();
    let store = Arc::new(open(&server.url()).await);
    let tasks = (0..64_u64).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..20 {
                let keys: Vec<CopyKey> = (0..10).map(|i| key(&format!("{task}-{round}-{i}"))).collect();
                let claims: Vec<_> = keys.iter().map(|key| (key.clone(), claim_of(task))).collect();
                for reply in store.claim(claims, LEASE).await {
                    assert_eq!(reply.unwrap(), ClaimReply::Claimed);
                }
                let marks = keys.into_iter().map(|key| (key, claim_of(task), Mark::Done, TTL)).collect();
                for reply in store.settle(marks).await {
                    assert_eq!(reply.unwrap(), SettleReply::Ours);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}
