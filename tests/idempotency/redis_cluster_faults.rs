//! A Redis Cluster under a running store: nodes that die, slots that move, what is refused at the start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use retry_ladder::adapters::redis::{Error, Options, Store, connect, connect_cluster};
use retry_ladder::stage::ports::{ClaimReply, CopyKey, IdempotencyStore, Mark, SettleReply, StoreError};
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::timeout;

use crate::redis_cluster::RedisCluster;
use crate::redis_server::RedisServer;
use crate::{claim_of, key};

const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3_600);
const LONG: Duration = Duration::from_secs(60);

async fn start(primaries: usize, with_replicas: bool, arguments: &'static [&'static str]) -> RedisCluster {
    spawn_blocking(move || RedisCluster::start_with(primaries, with_replicas, arguments)).await.unwrap()
}

async fn open(cluster: &RedisCluster) -> Result<Store, Error> {
    open_with(&cluster.urls(), Options::default()).await
}

async fn open_with(urls: &[String], options: Options) -> Result<Store, Error> {
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    connect_cluster(&urls, options).await
}

fn keys(count: usize) -> Vec<CopyKey> {
    (0..count).map(|i| key(&i.to_string())).collect()
}

async fn claim(store: &Store, keys: &[CopyKey], process: u64) -> Vec<Result<ClaimReply, StoreError>> {
    let batch = keys.iter().map(|key| (key.clone(), claim_of(process))).collect();
    timeout(LONG, store.claim(batch, LEASE)).await.expect("a batch never hangs")
}

async fn settle(store: &Store, keys: &[CopyKey], process: u64) -> Vec<Result<SettleReply, StoreError>> {
    store.settle(keys.iter().map(|key| (key.clone(), claim_of(process), Mark::Done, TTL)).collect()).await
}

async fn until_available(store: &Store, available: bool) {
    let mut seen = store.available();
    timeout(LONG, seen.wait_for(|now| *now == available)).await.expect("in time").expect("the store lives");
}

/// The node that each key is on.
fn places(cluster: &RedisCluster, keys: &[CopyKey]) -> Vec<usize> {
    let slot = |key: &CopyKey| -> usize {
        let reply = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", key]);
        reply.trim().trim_start_matches(':').parse().unwrap()
    };
    keys.iter().map(|key| (0..3).find(|&i| cluster.slots_of(i).contains(&slot(key))).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_fails_its_own_commands_alone_and_is_found_again() {
    let mut cluster = start(3, false, &["--cluster-require-full-coverage", "no"]).await;
    let store = open(&cluster).await.unwrap();
    let keys = keys(300);
    let places = places(&cluster, &keys);
    // At the start each node was asked whether this user may do what will be asked of it, about a key of any node.
    cluster.nodes.iter().for_each(|node| drop(node.command(&["CONFIG", "RESETSTAT"])));
    assert!(claim(&store, &keys, 1).await.into_iter().all(|reply| reply.unwrap() == ClaimReply::Claimed));
    for node in &cluster.nodes {
        assert!(!node.command(&["INFO", "errorstats"]).contains("MOVED"), "each command goes to its own node at once");
    }

    cluster.nodes[1].kill();
    for _ in 0..3 {
        let replies = claim(&store, &keys, 1).await;
        for (place, reply) in places.iter().zip(replies) {
            match place {
                1 => assert!(reply.is_err(), "{reply:?}"),
                _ => assert_eq!(reply.unwrap(), ClaimReply::AlreadyOurs),
            }
        }
    }
    until_available(&store, false).await;

    block_in_place(|| cluster.nodes[1].restart());
    until_available(&store, true).await;
    for (place, reply) in places.iter().zip(claim(&store, &keys, 2).await) {
        let expected = if *place == 1 { ClaimReply::Claimed } else { ClaimReply::Busy };
        assert_eq!(reply.unwrap(), expected, "the restarted node has lost its records, the others none");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_counts_itself_as_down_is_unavailable_until_it_is_up_again() {
    let mut cluster = start(3, false, &[]).await;
    let store = open(&cluster).await.unwrap();
    let keys = keys(50);
    cluster.nodes[2].kill();
    let refused = async {
        loop {
            let replies = claim(&store, &keys, 1).await;
            if replies.iter().all(|reply| reply.is_err()) {
                break replies;
            }
        }
    };
    let replies = timeout(LONG, refused).await.expect("the living nodes refuse, too");
    assert!(replies.iter().any(|reply| reply.as_ref().unwrap_err().0.contains("CLUSTERDOWN")), "{replies:?}");
    until_available(&store, false).await;
    block_in_place(|| cluster.nodes[2].restart());
    until_available(&store, true).await;
    assert!(claim(&store, &keys, 1).await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_is_found_and_has_the_records() {
    let mut cluster = start(3, true, &[]).await;
    let store = open(&cluster).await.unwrap();
    let keys = keys(200);
    assert!(claim(&store, &keys, 1).await.iter().all(Result::is_ok));
    assert!(settle(&store, &keys, 1).await.into_iter().all(|reply| reply.unwrap() == SettleReply::Ours));
    for primary in &cluster.nodes[..3] {
        assert!(primary.command(&["WAIT", "1", "20000"]).starts_with(":1"), "the replica has all of it");
    }

    cluster.nodes[0].kill();
    until_available(&store, false).await;
    until_available(&store, true).await;
    for reply in claim(&store, &keys, 2).await {
        assert_eq!(reply.unwrap(), ClaimReply::Done, "nothing that was recorded is forgotten");
    }
    // The old primary comes back as a replica and is not trusted with anything.
    block_in_place(|| cluster.nodes[0].restart());
    block_in_place(|| cluster.until_up());
    assert!(claim(&store, &keys, 2).await.into_iter().all(|reply| reply.unwrap() == ClaimReply::Done));
}

/// Slots move to a node that had none, while four processes race for each copy: none of them gets an error, and exactly
/// one gets the copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_fail_nothing_and_no_copy_is_granted_twice() {
    // No node dies here, and none is to be thought dead on a busy machine: the mover would be refused.
    let mut cluster = start(3, false, &["--cluster-node-timeout", "60000"]).await;
    block_in_place(|| cluster.add_primary());
    let cluster = Arc::new(cluster);
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(open(&cluster).await.unwrap());
    }
    // Whatever ends the moving lets the others end, too.
    struct Moving(Arc<AtomicBool>);
    impl Drop for Moving {
        fn drop(&mut self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }
    let moving = Arc::new(AtomicBool::new(true));
    let progress = Arc::new(AtomicU64::new(0));
    let mover = {
        let (cluster, moving, progress) = (Arc::clone(&cluster), Arc::clone(&moving), Arc::clone(&progress));
        spawn_blocking(move || {
            let _moving = Moving(moving);
            for slot in cluster.slots_of(1).take(60) {
                // Batches run while the slot is in both places.
                let seen = progress.load(Ordering::Relaxed);
                cluster.move_slot(slot, 1, 3, || {
                    if slot % 8 == 0 {
                        while progress.load(Ordering::Relaxed) < seen + 4 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        })
    };
    // Keys of the slots that move only, else hardly any batch would meet one.
    let first = *cluster.slots_of(1).start();
    let names: Vec<CopyKey> = (0..2_000_000)
        .map(|i| key(&i.to_string()))
        .filter(|key| (first..first + 60).contains(&slot_by_crate(key)))
        .take(3_000)
        .collect();
    let workers = stores.into_iter().enumerate().map(|(process, store)| {
        let (names, moving, progress) = (names.clone(), Arc::clone(&moving), Arc::clone(&progress));
        let process = process as u64 + 1;
        tokio::spawn(async move {
            let mut got: BTreeMap<CopyKey, ClaimReply> = BTreeMap::new();
            let mut unanswered = 0;
            for batch in names.chunks(40).cycle() {
                if !moving.load(Ordering::Relaxed) && got.len() == names.len() {
                    break;
                }
                for (name, reply) in batch.iter().zip(claim(&store, batch, process).await) {
                    match reply {
                        Ok(reply) => drop(got.entry(name.clone()).or_insert(reply)),
                        Err(_) => unanswered += 1,
                    }
                }
                for reply in settle(&store, batch, process).await {
                    unanswered += u64::from(reply.is_err());
                }
                progress.fetch_add(1, Ordering::Relaxed);
            }
            (got, unanswered)
        })
    });
    let mut granted: BTreeMap<CopyKey, u32> = BTreeMap::new();
    let mut unanswered = 0;
    for worker in workers.collect::<Vec<_>>() {
        let (got, errors) = timeout(3 * LONG, worker).await.expect("each copy gets an answer").unwrap();
        unanswered += errors;
        for (name, reply) in got {
            *granted.entry(name).or_default() += u32::from(reply == ClaimReply::Claimed);
        }
    }
    mover.await.unwrap();
    assert_eq!(granted.len(), names.len());
    let twice: Vec<_> = granted.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "granted to more than one: {twice:?}");
    // The first redirection to the new node finds no link to it yet; from then on each is followed.
    assert!(unanswered < 4 * 800, "{unanswered} commands had no answer");
    let moved: String = cluster.nodes.iter().map(|node| node.command(&["INFO", "errorstats"])).collect();
    assert!(moved.contains("errorstat_ASK") && moved.contains("errorstat_MOVED"), "the test has met both: {moved}");
}

/// By another implementation than the store's.
fn slot_by_crate(key: &str) -> usize {
    let slot = redis::cluster_routing::Slot::for_key(key);
    let text = format!("{slot:?}");
    text.trim_start_matches("Slot(").trim_end_matches(')').parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_fit_cluster_is_refused_at_the_start() {
    let one_attempt = || Options { startup_timeout: Duration::ZERO, ..Options::default() };
    let alone = block_in_place(RedisServer::start);
    let error = open_with(&[alone.url()], one_attempt()).await.unwrap_err();
    assert!(matches!(error, Error::NoCluster { .. }), "{error}");

    let mut cluster = start(3, false, &[]).await;
    cluster.nodes[2].command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let error = open_with(&cluster.urls()[..1], one_attempt()).await.unwrap_err();
    let place = format!(":{} has maxmemory-policy allkeys-lru", cluster.nodes[2].port());
    assert!(matches!(error, Error::EvictionPolicy { .. }) && error.to_string().contains(&place), "{error}");
    cluster.nodes[2].command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);

    for node in &cluster.nodes {
        node.command(&["CONFIG", "SET", "requirepass", "right"]);
    }
    let urls = |password: &str| -> Vec<String> {
        cluster.nodes.iter().map(|node| format!("redis://:{password}@127.0.0.1:{}", node.port())).collect()
    };
    let error = open_with(&urls("wrong"), one_attempt()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && !error.to_string().contains("wrong"), "{error}");
    let error = connect(&urls("right")[0], one_attempt()).await.unwrap_err();
    assert!(matches!(error, Error::Cluster { .. }) && error.to_string().contains("list of urls"), "{error}");
    // One url is enough: the others are found, and are given the same password.
    let store = open_with(&urls("right")[..1], one_attempt()).await.unwrap();
    assert!(claim(&store, &keys(100), 1).await.iter().all(Result::is_ok));
    assert_eq!(store.url(), format!("redis://:***@127.0.0.1:{}", cluster.nodes[0].port()));

    let urls = urls("right");
    cluster.nodes[2].kill();
    let error = open_with(&urls[..1], one_attempt()).await.unwrap_err();
    assert!(error.is_unreachable() && error.exit_code() == 69, "{error}");
}
