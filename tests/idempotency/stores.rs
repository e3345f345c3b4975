//! The two stores as the contract sees them: the store, and what another program could do to its records.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use retry_ladder::adapters::memory::MemoryStore;
use retry_ladder::adapters::redis::{Options, Store, connect, connect_cluster};
use retry_ladder::ladder::event::Timestamp;
use retry_ladder::stage::clock::{Clock, Now};
use retry_ladder::stage::ports::IdempotencyStore;

use crate::redis_cluster::RedisCluster;
use crate::redis_server::RedisServer;

/// A store under test.
pub(crate) trait Subject {
    fn store(&self) -> &dyn IdempotencyStore;
    /// Writes any value, as another program could.
    async fn plant(&self, key: &str, value: &str);
    /// A record's value and the time that it has left.
    async fn look(&self, key: &str) -> Option<(String, Duration)>;
    /// Loses a record, as a failover could.
    async fn lose(&self, key: &str);
    /// Lets time pass until the record has run out by itself.
    async fn outlive(&self, key: &str);
    /// Lets at least this much time pass.
    async fn pass(&self, time: Duration);
}

pub(crate) struct Memory {
    store: MemoryStore,
    clock: Arc<HandClock>,
}

/// A clock that a test moves by hand.
struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn now(&self) -> Now {
        Now { wall: Timestamp::default(), boot: Duration::from_nanos(self.0.load(Ordering::Relaxed)) }
    }
}

impl Memory {
    pub(crate) async fn start() -> Self {
        let clock = Arc::new(HandClock(AtomicU64::new(0)));
        Self { store: MemoryStore::new(clock.clone()), clock }
    }
}

impl Subject for Memory {
    fn store(&self) -> &dyn IdempotencyStore {
        &self.store
    }

    async fn plant(&self, key: &str, value: &str) {
        self.store.set(key, value, Duration::from_secs(60));
    }

    async fn look(&self, key: &str) -> Option<(String, Duration)> {
        self.store.get(key)
    }

    async fn lose(&self, key: &str) {
        assert!(self.store.remove(key), "{key} is there to be lost");
    }

    async fn outlive(&self, key: &str) {
        if let Some((_, left)) = self.store.get(key) {
            self.clock.0.fetch_add(u64::try_from(left.as_nanos()).expect("a short time"), Ordering::Relaxed);
        }
    }

    async fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(u64::try_from(time.as_nanos()).expect("a short time"), Ordering::Relaxed);
    }
}

pub(crate) struct Redis {
    store: Store,
    side: MultiplexedConnection,
    _server: RedisServer,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let server = RedisServer::start();
        let store = connect(&server.url(), Options::default()).await.expect("a fresh redis is fit");
        Self { store, side: side(&server).await, _server: server }
    }
}

pub(crate) struct Cluster {
    store: Store,
    side: ClusterConnection,
    cluster: RedisCluster,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let cluster = tokio::task::spawn_blocking(|| RedisCluster::start(3, false)).await.expect("a cluster");
        let urls = cluster.urls();
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let store = connect_cluster(&urls, Options::default()).await.expect("a fresh cluster is fit");
        let client = ClusterClient::new(urls).expect("good urls");
        Self { store, side: client.get_async_connection().await.expect("a running cluster"), cluster }
    }

    pub(crate) async fn clear(&mut self) {
        self.cluster.nodes.iter().for_each(|node| drop(node.command(&["FLUSHALL"])));
    }
}

/// A connection of the test's own, past the store.
pub(crate) async fn side(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a good url");
    client.get_multiplexed_async_connection().await.expect("a running redis")
}

macro_rules! subject {
    ($subject:ty) => {
        impl Subject for $subject {
            fn store(&self) -> &dyn IdempotencyStore {
                &self.store
            }

            async fn plant(&self, key: &str, value: &str) {
                let mut set = redis::cmd("SET");
                set.arg(key).arg(value).arg("EX").arg(60);
                set.exec_async(&mut self.side.clone()).await.expect("SET");
            }

            async fn look(&self, key: &str) -> Option<(String, Duration)> {
                let mut look = redis::pipe();
                look.cmd("GET").arg(key).cmd("PTTL").arg(key);
                let (value, left): (Option<String>, i64) =
                    look.query_async(&mut self.side.clone()).await.expect("GET, PTTL");
                value.map(|value| {
                    (value, Duration::from_millis(u64::try_from(left).expect("every record has a lifetime")))
                })
            }

            async fn lose(&self, key: &str) {
                let deleted: u32 = redis::cmd("DEL").arg(key).query_async(&mut self.side.clone()).await.expect("DEL");
                assert_eq!(deleted, 1, "{key} is there to be lost");
            }

            async fn outlive(&self, key: &str) {
                while let Some((_, left)) = self.look(key).await {
                    tokio::time::sleep(left.max(Duration::from_millis(1))).await;
                }
            }

            async fn pass(&self, time: Duration) {
                tokio::time::sleep(time).await;
            }
        }
    };
}
subject!(Redis);
subject!(Cluster);
