//! The one connection: fails fast while the server is gone, and comes back by itself.
//!
//! A batch that meets an I/O error or a time-out gives the connection up for all; from then on batches fail at once. The
//! keeper, a task of its own, brings it back: a bare look at the port each second, a complete attempt (TLS,
//! authentication, checks) when the look turns good, and otherwise with a back-off of 1 s to 30 s, so that a server that
//! is there but refuses is not pestered. Going and coming back are logged once each.
//!
//! Does not resend: only the caller knows what a lost reply means.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo};
use ::redis::{Pipeline, RedisError, ServerErrorKind, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::server::{self, Kind};
use super::{Error, Options};
use crate::stage::ports::StoreError;

/// Between two signs of life while connected, and between two looks at the port while not.
pub(super) const PULSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    url: String,
    kind: Kind,
    options: Options,
    state: Mutex<State>,
    available: watch::Sender<bool>,
    /// Wakes the keeper when a batch has given the connection up.
    given_up: Notify,
}

#[derive(Debug)]
struct State {
    /// Counts connections, so that a batch of an old one cannot give the new one up.
    generation: u64,
    /// The connection, or why there is none.
    connection: Result<MultiplexedConnection, String>,
}

impl Link {
    /// Connects, trying again until the start-up time-out.
    pub(super) async fn open(url: &str, options: Options, kind: Kind) -> Result<Self, Error> {
        let client = client(url, &options)?;
        let url = masked(url);
        let begin = Instant::now();
        let mut waiting = false;
        let connection = loop {
            match attempt(&client, &url, &options, kind).await {
                Ok((connection, warnings)) => {
                    for warning in warnings {
                        tracing::warn!(%url, "redis: {warning}");
                    }
                    break connection;
                }
                Err(error) if error.is_unreachable() && begin.elapsed() + PULSE <= options.startup_timeout => {
                    if !waiting {
                        waiting = true;
                        tracing::warn!(%error, timeout = ?options.startup_timeout, "waiting for redis");
                    }
                    sleep(PULSE).await;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            client,
            url,
            kind,
            options,
            state: Mutex::new(State { generation: 0, connection: Ok(connection) }),
            available: watch::Sender::new(true),
            given_up: Notify::new(),
        })
    }

    pub(super) fn available(&self) -> watch::Receiver<bool> {
        self.available.subscribe()
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The replies to a pipeline, one for each command; nothing is sent for an empty one.
    pub(super) async fn run(&self, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let (generation, mut connection) = self.current()?;
        match connection.send_packed_commands(pipeline, 0, pipeline.len()).await {
            Ok(replies) if replies.len() == pipeline.len() => {
                // A primary that became a replica keeps its connections: only a new one finds the new primary.
                if replies.iter().any(is_read_only) {
                    self.give_up(generation, "it has become a read-only replica".to_owned());
                }
                Ok(replies)
            }
            Ok(replies) => {
                let reason = format!("{} replies to {} commands", replies.len(), pipeline.len());
                Err(self.give_up(generation, reason))
            }
            Err(error) => Err(self.give_up(generation, describe(&error, &self.options))),
        }
    }

    pub(super) async fn ping(&self) -> Result<Duration, StoreError> {
        let (generation, mut connection) = self.current()?;
        let begin = Instant::now();
        match connection.send_packed_command(Cmd::new().arg("PING")).await {
            // Even a refusal is a sign of life.
            Ok(_) => Ok(begin.elapsed()),
            Err(error) => Err(self.give_up(generation, describe(&error, &self.options))),
        }
    }

    /// Keeps the connection: notices that it is gone when nobody uses it, and brings it back. Never returns.
    pub(super) async fn keep(&self) {
        loop {
            let since = Instant::now();
            while self.ping().await.is_ok() {
                tokio::select! {
                    () = self.given_up.notified() => {}
                    () = sleep(PULSE) => {}
                }
            }
            // A server that takes connections and drops them must not be met in a tight loop.
            if since.elapsed() < PULSE {
                sleep(PULSE).await;
            }
            self.come_back().await;
        }
    }

    async fn come_back(&self) {
        let gone = Instant::now();
        let mut ticks = interval(PULSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::default();
        let mut next_attempt = Instant::now();
        let mut answered = false;
        let mut fault_logged = false;
        loop {
            ticks.tick().await;
            let answers = timeout(PULSE - PULSE / 10, self.answers()).await.unwrap_or(false);
            let turned_good = answers && !answered;
            answered = answers;
            if !turned_good && Instant::now() < next_attempt {
                continue;
            }
            match attempt(&self.client, &self.url, &self.options, self.kind).await {
                Ok((connection, _)) => {
                    tracing::info!(url = %self.url, after = ?gone.elapsed(), "redis is back");
                    let mut state = self.state();
                    state.generation += 1;
                    state.connection = Ok(connection);
                    // Under the lock, as in `give_up`: both must change in the same order.
                    self.available.send_replace(true);
                    return;
                }
                Err(error) => {
                    // There again, but not as it was: somebody has to act, so this is said, too, and once.
                    if !error.is_unreachable() && !fault_logged {
                        fault_logged = true;
                        tracing::warn!(%error, "redis cannot be used");
                    }
                    self.state().connection = Err(error.to_string());
                    next_attempt = Instant::now() + backoff.next_delay();
                }
            }
        }
    }

    /// Whether somebody at the server's address takes commands. Behind TLS only that somebody listens.
    async fn answers(&self) -> bool {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => match TcpStream::connect((host.as_str(), *port)).await {
                Ok(stream) => takes_commands(stream).await,
                Err(_) => false,
            },
            ConnectionAddr::TcpTls { host, port, .. } => TcpStream::connect((host.as_str(), *port)).await.is_ok(),
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => match tokio::net::UnixStream::connect(path).await {
                Ok(stream) => takes_commands(stream).await,
                Err(_) => false,
            },
            _ => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<(u64, MultiplexedConnection), StoreError> {
        let state = self.state();
        match &state.connection {
            Ok(connection) => Ok((state.generation, connection.clone())),
            Err(reason) => Err(StoreError(format!("no connection to redis at {}: {reason}", self.url))),
        }
    }

    /// Gives up the connection of this generation, if it is still the current one.
    fn give_up(&self, generation: u64, reason: String) -> StoreError {
        let mut state = self.state();
        if state.generation == generation && state.connection.is_ok() {
            state.connection = Err(reason.clone());
            self.available.send_replace(false);
            drop(state);
            tracing::warn!(url = %self.url, %reason, "redis is gone; trying to reach it until it is back");
            self.given_up.notify_one();
        }
        StoreError(format!("redis at {}: {reason}", self.url))
    }
}

/// 1, 2, 4 … 30 seconds.
#[derive(Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_secs(1))
    }
}

impl Backoff {
    fn next_delay(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(Duration::from_secs(30));
        delay
    }
}

/// Any reply will do, a refusal for lack of a password, too; only a server that loads its data is not there yet.
async fn takes_commands(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> bool {
    let mut answer = [0; 8];
    stream.write_all(b"PING\r\n").await.is_ok()
        && stream.read(&mut answer).await.is_ok_and(|n| n > 0 && !answer[..n].starts_with(b"-LOADING"))
}

fn is_read_only(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::ReadOnly))
}

fn describe(error: &RedisError, options: &Options) -> String {
    if error.is_timeout() { format!("no answer within {:?}", options.response_timeout) } else { error.to_string() }
}

/// One attempt to connect, the checks included.
async fn attempt(
    client: &Client,
    url: &str,
    options: &Options,
    kind: Kind,
) -> Result<(MultiplexedConnection, Vec<String>), Error> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(options.connect_timeout))
        .set_response_timeout(Some(options.response_timeout));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| {
        let busy = error.detail().is_some_and(|detail| detail.contains("max number of clients"));
        match error.kind() {
            ErrorKind::InvalidClientConfig => Error::BadUrl { url: url.to_owned(), reason: error.to_string() },
            ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown) => {
                server::unreachable(url, &error)
            }
            ErrorKind::AuthenticationFailed | ErrorKind::Server(_) if !busy => {
                Error::Refused { url: url.to_owned(), reason: error.to_string() }
            }
            // The TLS libraries have no common type for it.
            _ if error.to_string().contains("certificate") => {
                Error::Certificate { url: url.to_owned(), reason: error.to_string() }
            }
            _ if error.is_timeout() => Error::Unreachable {
                url: url.to_owned(),
                reason: format!("no connection within {:?}", options.connect_timeout),
            },
            _ => server::unreachable(url, &error),
        }
    })?;
    let warnings = server::check(&mut connection, url, kind).await?;
    server::try_rights(&mut connection, url, &options.prefix, kind).await?;
    Ok((connection, warnings))
}

fn client(url: &str, options: &Options) -> Result<Client, Error> {
    let bad_url = |reason: String| Error::BadUrl { url: masked(url), reason };
    let info: ConnectionInfo = url.into_connection_info().map_err(|e| bad_url(e.to_string()))?;
    let settings = info.redis_settings().clone().set_lib_name("retry-ladder", env!("CARGO_PKG_VERSION"));
    // Batches are small and wait for their replies: Nagle's algorithm would hold them back.
    let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = match &options.ca_pem {
        None => Client::open(info),
        Some(ca_pem) if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => with_ca(info, ca_pem),
        Some(_) => {
            return Err(bad_url("a certificate authority is given, but the url is not rediss://".into()));
        }
    };
    client.map_err(|e| bad_url(e.to_string()))
}

#[cfg(feature = "tls")]
fn with_ca(info: ConnectionInfo, ca_pem: &[u8]) -> Result<Client, RedisError> {
    let certificates = ::redis::TlsCertificates { client_tls: None, root_cert: Some(ca_pem.to_vec()) };
    Client::build_with_tls(info, certificates)
}

#[cfg(not(feature = "tls"))]
fn with_ca(info: ConnectionInfo, _: &[u8]) -> Result<Client, RedisError> {
    Client::open(info)
}

/// The url fit for logs: without password and query (a unix url has the password there), whether it is valid or not.
pub(super) fn masked(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let rest = if scheme.contains("unix") { rest.split('?').next().unwrap_or_default() } else { rest };
    // The last `@`: a password may hold one that should have been encoded.
    let (user, place) = match rest.rsplit_once('@') {
        Some((credentials, place)) => match credentials.split_once(':') {
            Some((user, _)) => (format!("{user}:***@"), place),
            None => (format!("{credentials}@"), place),
        },
        None => (String::new(), rest),
    };
    let place = place.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}{user}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        fn check(url: &str, shown: &str) {
            assert_eq!(masked(url), shown);
        }
        check("redis://localhost:6379/0", "redis://localhost:6379/0");
        check("rediss://:secret@host:6380", "rediss://:***@host:6380");
        check("redis://user:secret@host/1?protocol=resp3", "redis://user:***@host/1");
        check("redis://user@host", "redis://user@host");
        check("redis://u:p@ss/w?rd@host", "redis://u:***@host");
        check("redis+unix:///run/r.sock?pass=secret@x", "redis+unix:///run/r.sock");
        check("u:secret@host", "u:***@host");
        check("", "");
    }

    #[test]
    fn complete_attempts_are_spaced_from_one_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let seconds: Vec<u64> = (0..7).map(|_| backoff.next_delay().as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_bad_url_is_refused_with_what_would_be_right() {
        fn check(url: &str, ca_pem: Option<Vec<u8>>, says: &str) {
            let error = client(url, &Options { ca_pem, ..Options::default() }).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.to_string().contains("right would be redis://"), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
            assert_eq!(error.exit_code(), 64);
        }
        check("localhost:6379", None, "localhost:6379");
        check("http://:secret@localhost", None, "http://:***@localhost");
        check("redis://:secret@localhost/first", None, "nvalid database number");
        check("redis://localhost", Some(Vec::new()), "not rediss://");
    }
}
