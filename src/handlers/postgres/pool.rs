//! Connections: where to, with TLS or without, and the pool, each of whose sessions has the statement prepared.
//!
//! Invariants: a session is set up whole or is no session; one that the server has closed is not handed out; no session
//! runs a statement for longer than the handler waits for it (`statement_timeout`), so that none comes back to the pool busy.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bb8::{ErrorSink, ManageConnection, Pool, RunError};
use bb8_postgres::PostgresConnectionManager;
use reqwest::Url;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Statement};

use super::fault::Fault;
use super::{Error, Options};

#[cfg(feature = "tls")]
type Tls = postgres_native_tls::MakeTlsConnector;
#[cfg(not(feature = "tls"))]
type Tls = tokio_postgres::NoTls;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    manager: PostgresConnectionManager<Tls>,
    /// Sets a session up.
    setup: String,
    connect_timeout: Duration,
}

impl Connector {
    /// # Errors
    /// When the url, its TLS parameters or the root certificate cannot be used.
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let (mut config, sslmode, root) = parse(&options.url)?;
        if config.get_application_name().is_none() {
            config.application_name("retry-ladder");
        }
        config.connect_timeout(options.connect_timeout);
        #[cfg(target_os = "linux")]
        config.tcp_user_timeout(options.timeout);
        let tls = tls(&mut config, &sslmode, root.as_deref())?;
        let setup = format!("set statement_timeout = {}", options.timeout.as_millis());
        let manager = PostgresConnectionManager::new(config, tls);
        Ok(Self { manager, setup, connect_timeout: options.connect_timeout })
    }

    /// A connection of its own, in no pool.
    pub(super) async fn connect(&self) -> Result<Client, Fault> {
        let connect = async {
            let client = self.manager.connect().await?;
            client.batch_execute(&self.setup).await?;
            Ok(client)
        };
        timeout(self.connect_timeout, connect).await.unwrap_or(Err(Fault::SlowConnect(self.connect_timeout)))
    }
}

/// A connection and the statement.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) insert: Statement,
    /// It has failed a batch as lost. The client itself learns a moment later that its connection is closed; until then it
    /// would be handed out again.
    pub(super) lost: bool,
}

impl Session {
    fn is_closed(&self) -> bool {
        self.lost || self.client.is_closed()
    }
}

/// Makes sessions for the pool.
pub(super) struct Manager {
    connector: Connector,
    insert: String,
}

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = Fault;

    async fn connect(&self) -> Result<Session, Fault> {
        let client = self.connector.connect().await?;
        let insert = client.prepare(&self.insert).await?;
        Ok(Session { client, insert, lost: false })
    }

    /// Asks nobody: what breaks after this costs a second try, not a round trip for each batch.
    async fn is_valid(&self, session: &mut Session) -> Result<(), Fault> {
        if session.is_closed() { Err(Fault::Closed) } else { Ok(()) }
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.is_closed()
    }
}

/// Sessions for batches.
pub(super) struct Sessions {
    pub(super) pool: Pool<Manager>,
    wait: Duration,
    /// Why the last connection that was tried was not made.
    last: LastFault,
}

impl Sessions {
    /// Nothing is connected yet.
    pub(super) fn new(connector: Connector, insert: String, options: &Options) -> Self {
        let last = LastFault::default();
        let pool = Pool::builder()
            .max_size(options.pool.max_size)
            .min_idle(options.pool.min_idle.min(options.pool.max_size))
            .idle_timeout(options.pool.idle_timeout)
            .max_lifetime(options.pool.max_lifetime)
            .connection_timeout(options.connect_timeout)
            .error_sink(Box::new(last.clone()))
            .build_unchecked(Manager { connector, insert });
        Self { pool, wait: options.connect_timeout, last }
    }

    pub(super) async fn get(&self) -> Result<bb8::PooledConnection<'_, Manager>, Fault> {
        self.pool.get().await.map_err(|error| match error {
            RunError::User(fault) => fault,
            RunError::TimedOut => {
                let last = self.last.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Other batches have sessions: then that is why there is none for this one.
                let last = last.filter(|_| self.pool.state().connections == 0);
                Fault::NoConnection { waited: self.wait, size: self.pool.config().max_size, last }
            }
        })
    }
}

/// Keeps the last error of the pool, for those that wait in vain.
#[derive(Clone, Debug, Default)]
struct LastFault(Arc<Mutex<Option<String>>>);

impl ErrorSink<Fault> for LastFault {
    fn sink(&self, fault: Fault) {
        fault.tell();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.to_string());
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<Fault>> {
        Box::new(self.clone())
    }
}

/// The client's settings, and what it does not know itself: libpq's `sslmode` and `sslrootcert`.
fn parse(url: &str) -> Result<(Config, String, Option<String>), Error> {
    let mut url = Url::parse(url).map_err(|e| Error::Url(e.to_string()))?;
    let (mut sslmode, mut root) = ("prefer".to_owned(), None);
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    url.set_query(None);
    for (key, value) in pairs {
        match key.as_str() {
            "sslmode" => sslmode = value,
            "sslrootcert" => root = Some(value),
            // The client takes one each time.
            "host" => drop(url.query_pairs_mut().extend_pairs(value.split(',').map(|host| (&key, host)))),
            _ => drop(url.query_pairs_mut().append_pair(&key, &value)),
        }
    }
    // The client reads `+` as it stands.
    let query = url.query().map(|query| query.replace('+', "%20"));
    url.set_query(query.as_deref());
    // Its errors name parameters and hold no values.
    let config = Config::from_str(url.as_str()).map_err(|e| Error::Url(Fault::from(e).to_string()))?;
    Ok((config, sslmode, root))
}

/// As libpq does: `require` trusts whoever answers, unless a root certificate is given.
#[cfg(feature = "tls")]
fn tls(config: &mut Config, sslmode: &str, root: Option<&str>) -> Result<Tls, Error> {
    let (mode, any_cert, any_host) = match (sslmode, root) {
        ("disable", _) => (SslMode::Disable, true, true),
        ("allow" | "prefer", _) => (SslMode::Prefer, true, true),
        ("require", None) => (SslMode::Require, true, true),
        ("require" | "verify-ca", _) => (SslMode::Require, false, true),
        ("verify-full", _) => (SslMode::Require, false, false),
        _ => return Err(Error::SslMode(sslmode.to_owned())),
    };
    config.ssl_mode(mode);
    let mut builder = native_tls::TlsConnector::builder();
    builder.danger_accept_invalid_certs(any_cert).danger_accept_invalid_hostnames(any_host);
    if let Some(file) = root {
        let refuse = |reason: String| Error::RootCert { file: file.to_owned(), reason };
        let pem = std::fs::read(file).map_err(|e| refuse(e.to_string()))?;
        let roots = native_tls::Certificate::stack_from_pem(&pem).map_err(|e| refuse(e.to_string()))?;
        if roots.is_empty() {
            return Err(refuse("it holds no certificate".to_owned()));
        }
        builder.disable_built_in_roots(true);
        for root in roots {
            builder.add_root_certificate(root);
        }
    }
    let connector = builder.build().map_err(|e| Error::Url(format!("TLS: {e}")))?;
    Ok(Tls::new(connector))
}

#[cfg(not(feature = "tls"))]
fn tls(config: &mut Config, sslmode: &str, _: Option<&str>) -> Result<Tls, Error> {
    match sslmode {
        "disable" | "allow" | "prefer" => config.ssl_mode(SslMode::Disable),
        "require" | "verify-ca" | "verify-full" => return Err(Error::Url("this build has no TLS".to_owned())),
        _ => return Err(Error::SslMode(sslmode.to_owned())),
    };
    Ok(tokio_postgres::NoTls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let url = "postgres://app:p%40ss@db:6432/events?sslmode=verify-full&sslrootcert=/ca.pem&application_name=a%20b";
        let (config, sslmode, root) = parse(url).unwrap();
        assert_eq!((config.get_user(), config.get_password()), (Some("app"), Some(&b"p@ss"[..])));
        assert_eq!((config.get_ports(), config.get_dbname()), (&[6432][..], Some("events")));
        assert_eq!(config.get_application_name(), Some("a b"));
        assert_eq!((&*sslmode, root.as_deref()), ("verify-full", Some("/ca.pem")));
        assert_eq!(parse("postgres://db/x").unwrap().1, "prefer");
        let several = "postgres:///x?user=app&host=pg-1,pg-2&port=5432,6432&target_session_attrs=read-write";
        let (config, ..) = parse(several).unwrap();
        assert_eq!((config.get_hosts().len(), config.get_ports()), (2, &[5432, 6432][..]));
        assert_eq!(config.get_target_session_attrs(), tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why_and_shows_no_password() {
        for (url, part) in [
            ("postgres://u:hunter2@db/x?sslmode=on", "sslmode `on` is not known"),
            (
                "postgres://u:hunter2@db/x?sslmode=verify-ca&sslrootcert=/nowhere.pem",
                "sslrootcert /nowhere.pem cannot be used",
            ),
            ("postgres://u:hunter2@db/x?colour=red", "colour"),
        ] {
            let options = Options::new(url);
            let error = Connector::new(&options).err().expect(url).to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
