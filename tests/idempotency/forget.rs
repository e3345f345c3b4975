//! Records are found by pipeline or event, counted by what they say and removed; nobody else's, and none that is in use.

use std::time::Duration;

use retry_ladder::adapters::redis::{Options, Removal, Store, Tally, connect, connect_cluster};
use retry_ladder::ladder::headers::CopyKeys;
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::stage::ports::{ClaimReply, CopyKey, IdempotencyStore, Mark};
use tokio::task::spawn_blocking;

use crate::claim_of;
use crate::redis_cluster::RedisCluster;
use crate::redis_server::RedisServer;

const TTL: Duration = Duration::from_secs(3_600);
const NONE: Tally = Tally { in_progress: 0, done: 0, moved_on: 0, other: 0 };

/// Of a ladder whose keys begin with this name.
fn keys(name: &str) -> CopyKeys {
    CopyKeys::new(name, &Ladder::new(LadderSpec::new("p", "billing", "shop")).unwrap())
}

/// Whole pages, on a machine that may be busy.
fn patient() -> Options {
    Options { response_timeout: Duration::from_secs(60), ..Options::default() }
}

async fn settle(store: &Store, keys: impl IntoIterator<Item = CopyKey>, mark: Mark) {
    let batch = keys.into_iter().map(|key| (key, claim_of(1), mark, TTL)).collect();
    assert!(store.settle(batch).await.iter().all(Result::is_ok));
}

async fn forget(store: &Store, prefix: &str, removal: Removal) -> Tally {
    store.forget(prefix, removal, |_| ()).await.unwrap()
}

/// What is left, and that counting removes nothing.
async fn left(store: &Store, keys: &CopyKeys) -> Tally {
    let prefix = keys.prefix(None);
    let counted = forget(store, &prefix, Removal::Nothing).await;
    assert_eq!(forget(store, &prefix, Removal::Nothing).await, counted);
    counted
}

async fn on_a_server() -> (RedisServer, Store) {
    let server = spawn_blocking(RedisServer::start).await.unwrap();
    let store = connect(&server.url(), patient()).await.unwrap();
    (server, store)
}

#[tokio::test]
async fn names_that_contain_each_other_or_look_like_patterns_are_kept_apart() {
    let (_server, store) = on_a_server().await;
    let names = ["a", "a:b", "a:b:c", "*", "a*", "?", "[x]", "x", r"\*", "a%3Ab", "%", "^x", "a-z", "{a}", "é"];
    let refill = || async {
        for name in names {
            settle(&store, names.map(|id| keys(name).key(id, 0)), Mark::Done).await;
        }
    };
    let all = Tally { done: names.len() as u64, ..NONE };
    for name in names {
        refill().await;
        assert_eq!(forget(&store, &keys(name).prefix(None), Removal::Ended).await, all, "{name}");
        for other in names {
            let expected = if other == name { NONE } else { all };
            assert_eq!(left(&store, &keys(other)).await, expected, "{name} is forgotten, {other} remains");
        }
    }
    refill().await;
    let one = Tally { done: 1, ..NONE };
    for (i, id) in names.iter().enumerate() {
        assert_eq!(forget(&store, &keys("*").prefix(Some(id)), Removal::Ended).await, one, "{id}");
        assert_eq!(left(&store, &keys("*")).await.done, (names.len() - i - 1) as u64, "{id} alone is forgotten");
    }
}

#[tokio::test]
async fn every_hop_of_an_event_is_forgotten_and_claims_only_on_demand() {
    let (server, store) = on_a_server().await;
    let long = "x".repeat(1_000);
    for id in ["order-7", &long] {
        let keys = keys("idem");
        let prefix = keys.prefix(Some(id));
        settle(&store, [0, 1, 1_763_700_000_000].map(|hop| keys.key(id, hop)), Mark::MovedOn).await;
        settle(&store, [keys.key(id, 2), keys.key("order-70", 2)], Mark::Done).await;
        let claim = vec![(keys.key(id, 3), claim_of(1))];
        assert_eq!(store.claim(claim.clone(), TTL).await[0].clone().unwrap(), ClaimReply::Claimed);
        // Somebody else's, a list among them.
        server.command(&["SET", &keys.key(id, 4), "12"]);
        server.command(&["LPUSH", &keys.key(id, 5), "1"]);

        let found = Tally { in_progress: 1, done: 1, moved_on: 3, other: 2 };
        assert_eq!(forget(&store, &prefix, Removal::Ended).await, found);
        let in_progress = Tally { in_progress: 1, ..NONE };
        assert_eq!(forget(&store, &prefix, Removal::Ended).await, in_progress, "a claim stays");
        assert!(store.renew(claim.clone(), TTL).await[0].clone().unwrap(), "and holds");
        assert_eq!(forget(&store, &prefix, Removal::All).await, in_progress);
        assert!(!store.renew(claim, TTL).await[0].clone().unwrap());
        assert_eq!(left(&store, &keys).await, Tally { done: 1, ..NONE }, "the neighbour's");
    }
}

#[tokio::test]
async fn a_full_server_forgets() {
    let (server, store) = on_a_server().await;
    let keys = keys("idem");
    settle(&store, (0..100).map(|i| keys.key("a", i)), Mark::Done).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(forget(&store, &keys.prefix(None), Removal::Ended).await.done, 100);
    assert_eq!(left(&store, &keys).await, NONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_of_a_cluster_forget_page_by_page_while_a_slot_moves() {
    let cluster = spawn_blocking(|| RedisCluster::start(3, false)).await.unwrap();
    let urls = cluster.urls();
    let store = connect_cluster(&[&urls[0]], patient()).await.unwrap();
    let (mine, other) = (keys("idem"), keys("idem2"));
    let all = |keys: &CopyKeys| (0..5_000).map(|i| keys.key(&i.to_string(), 0)).collect::<Vec<_>>();
    settle(&store, all(&mine), Mark::Done).await;
    settle(&store, all(&other), Mark::Done).await;
    let slot = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", &mine.key("17", 0)]);
    let slot: usize = slot.trim().trim_start_matches(':').parse().unwrap();
    let from = (0..3).find(|&i| cluster.slots_of(i).contains(&slot)).unwrap();

    let expected = Tally { done: 5_000, ..NONE };
    let (mut pages, mut last) = (0, None);
    let prefix = mine.prefix(None);
    let counting = store.forget(&prefix, Removal::Nothing, |progress| {
        pages += 1;
        last = Some(progress);
    });
    assert_eq!(counting.await.unwrap(), expected);
    let last = last.unwrap();
    assert!(pages >= 10 && last.of == 10_000 && last.found == expected, "{pages} pages, {last:?}");

    // Half moved: its keys are on the source still, while clients are told to ask at the target as well.
    tokio::task::block_in_place(|| {
        cluster.move_slot(slot, from, (from + 1) % 3, || {
            let removed = tokio::runtime::Handle::current().block_on(forget(&store, &prefix, Removal::Ended));
            assert_eq!(removed, expected);
        });
    });
    assert_eq!(left(&store, &mine).await, NONE);
    assert_eq!(left(&store, &other).await, expected);
}
