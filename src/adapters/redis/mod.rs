//! The deduplication records in Redis: one key per copy of an event, leased by `SET … NX GET PX`.
//!
//! Owns how records are written and read (`commands`), the one connection to a server (`link`), what a server must be
//! before it is trusted (`server`), the queues of keys for `order: ladder` (`queues`), and for a Redis Cluster which node a record belongs to (`cluster`, `slots`), and
//! how records are found and removed on purpose (`forget`). A batch
//! is one pipeline per server and every command has its own reply, so one that is refused fails alone. Whoever calls owns the protocol around it: when to claim, renew and settle, local deadlines
//! and what a reply means for an offset. Times nothing and counts nothing.
//!
//! # Invariants
//! - A batch answers within the response timeout (twice that where a cluster redirects it), whatever the server does,
//!   with as many results as it has entries.
//! - `Err` means that the outcome is unknown: the command may have been executed, or be executed later.

mod cluster;
mod commands;
mod forget;
mod link;
mod queues;
mod server;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::cluster::Cluster;
pub use self::forget::{Progress, Removal, Tally};
use self::link::Link;
use self::server::Kind;
use crate::stage::ports::{
    Claim, ClaimReply, CopyKey, IdempotencyStore, Mark, Place, SettleReply, StoreError, TurnReply,
};

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// A batch, or a ping, that has no answer after this long has failed, and the connection is given up.
    pub response_timeout: Duration,
    /// One attempt to connect (name resolution, TCP, TLS, authentication) takes no longer.
    pub connect_timeout: Duration,
    /// [`connect`] goes on trying a server that cannot be reached for this long; zero means one attempt.
    pub startup_timeout: Duration,
    /// The certificate authority for `rediss://` in PEM; `None`: the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// First part of the records' keys: that this user may write them is tried before they are needed.
    pub prefix: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            startup_timeout: Duration::from_secs(30),
            ca_pem: None,
            prefix: "idem".to_owned(),
        }
    }
}

/// Why a server cannot be used. Urls are shown without their password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The url cannot be understood, or does not go together with the other options.
    #[error(
        "redis url {url} cannot be used: {reason}; right would be redis://[user:password@]host[:port][/db], rediss:// for TLS"
    )]
    BadUrl {
        /// The url.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there, or not in time, or the server is still loading its data.
    #[error(
        "redis at {url} is not reachable: {reason}; start it, or correct the url (rediss:// speaks TLS, redis:// does not)"
    )]
    Unreachable {
        /// The url.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Nothing vouches for the server's certificate.
    #[error(
        "redis at {url} has a certificate that is not trusted: {reason}; give its certificate authority, and the host name that it is made out to"
    )]
    Certificate {
        /// The url.
        url: String,
        /// The TLS library's words.
        reason: String,
    },
    /// The server answers, but not to this client.
    #[error(
        "redis at {url} refuses this client: {reason}; the url must name a user and password that may run SET, GET, PEXPIRE, DEL and EVAL on its keys, PING and INFO"
    )]
    Refused {
        /// The url.
        url: String,
        /// The server's words.
        reason: String,
    },
    /// Claims need `SET` with both `NX` and `GET`.
    #[error("redis at {url} has version {found}; Redis 7.0 or newer, or Valkey, is needed")]
    TooOld {
        /// The url.
        url: String,
        /// The server's version.
        found: String,
    },
    /// Evicted records are repeated executions.
    #[error(
        "redis at {url} has maxmemory-policy {found}: under pressure it would forget what was done; set `maxmemory-policy noeviction`, or use another instance than the cache"
    )]
    EvictionPolicy {
        /// The url.
        url: String,
        /// The server's policy.
        found: String,
    },
    /// Claims are writes.
    #[error("redis at {url} is a read-only replica; give the url of the primary")]
    Replica {
        /// The url.
        url: String,
    },
    /// One connection reaches one node's slots only.
    #[error(
        "redis at {url} is a node of a Redis Cluster; give a list of urls, `[{url}]`, or that of a standalone server"
    )]
    Cluster {
        /// The url.
        url: String,
    },
    /// A list of urls means a cluster.
    #[error("redis at {url} is no node of a Redis Cluster; give the one url alone, not as a list")]
    NoCluster {
        /// The url.
        url: String,
    },
}

impl Error {
    /// Whether trying again later can help without anybody changing anything.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
    }

    /// The exit code of a command that ends by this error: 69 when nobody answers, else 64.
    pub const fn exit_code(&self) -> u8 {
        if self.is_unreachable() { 69 } else { 64 }
    }
}

/// Connects to the server at `url` and checks that it can be trusted with the records. From then on the connection
/// comes back by itself.
///
/// What a managed service hides (version, eviction policy) is a warning in the log, not an error.
///
/// # Errors
/// When the url is wrong, nobody answers within [`Options::startup_timeout`], or the server is not fit.
///
/// # Panics
/// Outside a tokio runtime with I/O and time.
pub async fn connect(url: &str, options: Options) -> Result<Store, Error> {
    Ok(Store::keep(Server::One(Arc::new(Link::open(url, options, Kind::Standalone).await?))))
}

/// As [`connect`], for a Redis Cluster: the urls of some of its nodes, the others are found. Every primary is checked;
/// scheme, user and password are those of the first url for all.
///
/// # Errors
/// When an url is wrong, no node answers within [`Options::startup_timeout`], slots are not served, or a primary is not
/// fit.
///
/// # Panics
/// Outside a tokio runtime with I/O and time.
pub async fn connect_cluster(urls: &[&str], options: Options) -> Result<Store, Error> {
    Ok(Store::keep(Server::Cluster(Box::new(Cluster::open(urls, options).await?))))
}

/// The records of one Redis server, or of one Redis Cluster, over one multiplexed connection to each primary, which end
/// with this value.
#[derive(Debug)]
pub struct Store {
    server: Arc<Server>,
    keeper: AbortHandle,
}

#[derive(Debug)]
enum Server {
    One(Arc<Link>),
    Cluster(Box<Cluster>),
}

impl Server {
    /// One result per entry, in order.
    async fn run<E: Keyed>(&self, batch: &[E], command: impl Fn(&E) -> Cmd) -> Vec<Result<Value, StoreError>> {
        match self {
            Server::One(link) => match link.run(&commands::pipeline(batch.iter().map(command))).await {
                Ok(values) => values.into_iter().map(Ok).collect(),
                Err(error) => batch.iter().map(|_| Err(error.clone())).collect(),
            },
            Server::Cluster(cluster) => cluster.run(batch, command).await,
        }
    }

    /// To each server.
    fn links(&self) -> Vec<Arc<Link>> {
        match self {
            Server::One(link) => vec![Arc::clone(link)],
            Server::Cluster(cluster) => cluster.links(),
        }
    }

    fn available(&self) -> watch::Receiver<bool> {
        match self {
            Server::One(link) => link.available(),
            Server::Cluster(cluster) => cluster.available(),
        }
    }
}

/// An entry of a batch: its key decides which node of a cluster it goes to.
trait Keyed {
    fn key(&self) -> &str;
}

impl Keyed for (CopyKey, Claim) {
    fn key(&self) -> &str {
        &self.0
    }
}

impl Keyed for (CopyKey, Claim, Mark, Duration) {
    fn key(&self) -> &str {
        &self.0
    }
}

impl Store {
    fn keep(server: Server) -> Self {
        let server = Arc::new(server);
        let kept = Arc::clone(&server);
        let keeper = tokio::spawn(async move {
            match &*kept {
                Server::One(link) => link.keep().await,
                Server::Cluster(cluster) => cluster.keep().await,
            }
        });
        Self { server, keeper: keeper.abort_handle() }
    }

    /// Whether the server can be used right now, and every change of that.
    pub fn available(&self) -> watch::Receiver<bool> {
        self.server.available()
    }

    /// Asks the server, every primary of a cluster, for a sign of life; the time that the slowest took.
    ///
    /// # Errors
    /// When there is no connection, or no answer within the response timeout.
    pub async fn ping(&self) -> Result<Duration, StoreError> {
        match &*self.server {
            Server::One(link) => link.ping().await,
            Server::Cluster(cluster) => cluster.ping().await,
        }
    }

    /// The url (of a cluster: the urls), passwords masked.
    pub fn url(&self) -> &str {
        match &*self.server {
            Server::One(link) => link.url(),
            Server::Cluster(cluster) => cluster.name(),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl IdempotencyStore for Store {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        let server = Arc::clone(&self.server);
        async move {
            let replies = server.run(&batch, commands::claim(lease)).await;
            commands::results(replies, batch.iter().map(|(_, claim)| claim), commands::claim_reply)
        }
        .boxed()
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let server = Arc::clone(&self.server);
        async move {
            let replies = server.run(&batch, commands::renew(lease)).await;
            commands::results(replies, batch.iter(), |reply, _| commands::held(reply))
        }
        .boxed()
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        let server = Arc::clone(&self.server);
        async move {
            let mut replies = server.run(&batch, commands::settle).await;
            // A key of another type refuses GET, and a settlement must be recorded all the same (rule 4).
            let is_foreign = |reply: &Result<_, _>| reply.as_ref().is_ok_and(commands::is_wrong_type);
            let foreign: Vec<usize> = (0..batch.len()).filter(|&i| is_foreign(&replies[i])).collect();
            if !foreign.is_empty() {
                let again: Vec<_> = foreign.iter().map(|&i| batch[i].clone()).collect();
                // Without an answer it is an error: the caller settles again.
                for (i, reply) in foreign.into_iter().zip(server.run(&again, commands::overwrite).await) {
                    replies[i] = reply;
                }
            }
            commands::results(replies, batch.iter().map(|(_, claim, ..)| claim), commands::settle_reply)
        }
        .boxed()
    }

    fn is_available(&self) -> bool {
        *self.server.available().borrow()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let server = Arc::clone(&self.server);
        async move {
            let replies = server.run(&batch, commands::release).await;
            commands::results(replies, batch.iter(), |reply, _| commands::held(reply))
        }
        .boxed()
    }

    fn turns(&self, batch: Vec<Place>, room: usize) -> BoxFuture<'static, Vec<Result<TurnReply, StoreError>>> {
        let server = Arc::clone(&self.server);
        async move { queues::turns(&server, &batch, room).await }.boxed()
    }

    fn join(&self, batch: Vec<(Place, Duration)>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        let server = Arc::clone(&self.server);
        async move { queues::join(&server, &batch).await }.boxed()
    }

    fn leave(&self, batch: Vec<Place>) -> BoxFuture<'static, Vec<Result<(), StoreError>>> {
        let server = Arc::clone(&self.server);
        async move { queues::leave(&server, &batch).await }.boxed()
    }
}
