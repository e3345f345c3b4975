//! The deduplication records in Redis: one key per copy of an event, leased by `SET … NX GET PX`.
//!
//! Owns how records are written and read (`commands`), the one connection to the server (`link`) and what a server
//! must be before it is trusted (`server`). A batch is one pipeline and every command has its own reply, so one that
//! is refused fails alone. Whoever calls owns the protocol around it: when to claim, renew and settle, local deadlines
//! and what a reply means for an offset. Times nothing and counts nothing.
//!
//! # Invariants
//! - A batch answers within the response timeout, whatever the server does, with as many results as it has entries.
//! - `Err` means that the outcome is unknown: the command may have been executed, or be executed later.

mod commands;
mod link;
mod server;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::link::Link;
use crate::stage::ports::{Claim, ClaimReply, CopyKey, IdempotencyStore, Mark, SettleReply, StoreError};

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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            response_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            startup_timeout: Duration::from_secs(30),
            ca_pem: None,
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
        "redis at {url} refuses this client: {reason}; the url must name a user and password that may run SET, EVAL, GET, DEL, PEXPIRE, PING and INFO"
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
    #[error("redis at {url} is a node of a Redis Cluster; give the url of a standalone server")]
    Cluster {
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
    let link = Arc::new(Link::open(url, options).await?);
    let keeper = tokio::spawn(Arc::clone(&link).keep()).abort_handle();
    Ok(Store { link, keeper })
}

/// The records of one Redis server over one multiplexed connection, which ends with this value.
#[derive(Debug)]
pub struct Store {
    link: Arc<Link>,
    keeper: AbortHandle,
}

impl Store {
    /// Whether the server can be used right now, and every change of that.
    pub fn available(&self) -> watch::Receiver<bool> {
        self.link.available()
    }

    /// Asks the server for a sign of life; the time that it took.
    ///
    /// # Errors
    /// When there is no connection, or no answer within the response timeout.
    pub async fn ping(&self) -> Result<Duration, StoreError> {
        self.link.ping().await
    }

    /// The url, its password masked.
    pub fn url(&self) -> &str {
        self.link.url()
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
        let link = Arc::clone(&self.link);
        async move {
            let replies = link.run(&commands::claim(&batch, lease)).await;
            commands::results(replies, batch.iter().map(|(_, claim)| claim), commands::claim_reply)
        }
        .boxed()
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let link = Arc::clone(&self.link);
        async move {
            let replies = link.run(&commands::renew(&batch, lease)).await;
            commands::results(replies, batch.iter(), |reply, _| commands::held(reply))
        }
        .boxed()
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        let link = Arc::clone(&self.link);
        async move {
            let mut replies = link.run(&commands::settle(&batch)).await;
            // A key of another type refuses GET, and a settlement must be recorded all the same (rule 4).
            if let Ok(values) = &mut replies {
                let foreign: Vec<usize> = (0..values.len()).filter(|&i| commands::is_wrong_type(&values[i])).collect();
                if !foreign.is_empty() {
                    let again = link.run(&commands::overwrite(foreign.iter().map(|&i| &batch[i]))).await;
                    // Without an answer the first one stands, an error: the caller settles again.
                    for (i, value) in foreign.into_iter().zip(again.into_iter().flatten()) {
                        values[i] = value;
                    }
                }
            }
            commands::results(replies, batch.iter().map(|(_, claim, ..)| claim), commands::settle_reply)
        }
        .boxed()
    }

    fn is_available(&self) -> bool {
        *self.link.available().borrow()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let link = Arc::clone(&self.link);
        async move {
            let replies = link.run(&commands::release(&batch)).await;
            commands::results(replies, batch.iter(), |reply, _| commands::held(reply))
        }
        .boxed()
    }
}
