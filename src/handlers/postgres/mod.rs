//! The `postgres` handler: each event is one row of a table, many rows in one statement.
//!
//! # Invariants
//! - One row per event id, however often an event is executed: `on conflict do nothing` on a unique index, which is there
//!   or the handler does not start.
//! - An event is done only after the statement that holds its row has committed.
//! - A row that the table cannot take fails alone, for good; the rest of its batch is written. Checked before (`table`),
//!   and where only the server finds the fault, by halving the batch.
//! - Whatever is not a row's own fault is transient, for the whole batch: the breaker sees the server down.
//!
//! What is left to others: collecting events into batches ([`super::batched`]), deadlines and leases (the engine).

mod fault;
mod plan;
mod pool;
mod table;

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

pub use self::plan::{Fault as PlanFault, Plan};

use self::fault::{Blame, Fault};
use self::pool::{Connector, Sessions};
use self::table::Target;
use super::batched::BatchHandler;
use crate::ladder::event::{Failure, Outcome};
use crate::stage::ports::Event;

/// One migration of a database at a time, whichever process and table it is for: a number of our own among the
/// database's advisory locks ("ladder" in ASCII).
const MIGRATION_LOCK: i64 = 0x6c61_6464_6572;
/// How long to wait at start before the server is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Where to, and how.
#[derive(Clone)]
pub struct Options {
    /// `postgres://user:password@host:5432/database`; libpq's `sslmode` and `sslrootcert` are understood.
    pub url: String,
    /// Whether a table or columns that are missing are made.
    pub migrate: bool,
    /// How long one call may take, with waiting for a connection; the server gives a statement up after as long.
    pub timeout: Duration,
    /// How long a call waits for a connection, free or new.
    pub connect_timeout: Duration,
    /// How long the server may be unreachable at start.
    pub startup_timeout: Duration,
    /// The pool.
    pub pool: PoolOptions,
}

/// How many connections are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// At most: so many batches are written at a time.
    pub max_size: u32,
    /// At least, also when nothing is to do.
    pub min_idle: u32,
    /// An unused one beyond `min_idle` is closed after this long.
    pub idle_timeout: Duration,
    /// One is replaced after this long.
    pub max_lifetime: Duration,
}

impl Options {
    /// The defaults: no migration, 10 s, 5 s to connect, 30 s at start, 4 connections.
    pub fn new(url: impl Into<String>) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            url: url.into(),
            migrate: false,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            startup_timeout: Duration::from_secs(30),
            pool: PoolOptions { max_size: 4, min_idle: 1, idle_timeout: 10 * minute, max_lifetime: 30 * minute },
        }
    }
}

/// Why there is no such handler. No text holds the url or its password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be used.
    #[error("url: {0}; right would be postgres://user@host:5432/database")]
    Url(String),
    /// Not one of libpq's.
    #[error("url: sslmode `{0}` is not known; it is disable, prefer, require, verify-ca or verify-full")]
    SslMode(String),
    /// The authorities' file.
    #[error("url: sslrootcert {file} cannot be used: {reason}; right would be a file of certificates in PEM")]
    RootCert {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Nobody answers, or not yet.
    #[error("url: not reachable within {waited:?}: {reason}")]
    Unreachable {
        /// How long it was tried.
        waited: Duration,
        /// What came of the last try.
        reason: String,
    },
    /// The server does not let us in, or does not do what is asked at start.
    #[error("url: {0}")]
    Refused(String),
    /// The table is missing, or is not one that the events can be written to.
    #[error("table {table}: {}; right would be `migrate: true`, or the table changed to fit:\n{sql}", faults.join("; "))]
    Table {
        /// Its name.
        table: String,
        /// What is wrong with it.
        faults: Vec<String>,
        /// What would make it.
        sql: String,
    },
}

impl Error {
    /// The process's exit code: 69 when nobody answers, else 64.
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Error::Unreachable { .. }) { 69 } else { 64 }
    }
}

/// Writes each event as one row.
pub struct PostgresHandler {
    plan: Plan,
    targets: Vec<Target>,
    sessions: Sessions,
    timeout: Duration,
}

impl fmt::Debug for PostgresHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresHandler").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// One event's values, as the statement takes them.
struct Row {
    /// Index of its event in the batch.
    event: usize,
    values: Vec<Option<String>>,
}

impl PostgresHandler {
    /// Connects, makes the table where that is asked for, and checks it.
    ///
    /// # Errors
    /// When the server cannot be reached, or the table does not fit.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub async fn connect(options: Options, plan: Plan) -> Result<Self, Error> {
        let connector = Connector::new(&options)?;
        let client = first(&connector, options.startup_timeout).await?;
        let refused = |e: tokio_postgres::Error| Error::Refused(Fault::from(e).to_string());
        let mut inspected = table::inspect(&client, &plan).await.map_err(refused)?;
        if options.migrate && inspected.is_err() {
            migrate(&client, &plan).await.map_err(refused)?;
            tracing::info!(table = plan.table, "made the table, or the columns that it lacked");
            inspected = table::inspect(&client, &plan).await.map_err(refused)?;
        }
        let targets =
            inspected.map_err(|faults| Error::Table { table: plan.table.clone(), faults, sql: plan.migration() })?;
        let sessions = Sessions::new(connector, table::insert(&plan, &targets), &options);
        Ok(Self { plan, targets, sessions, timeout: options.timeout })
    }

    fn row(&self, index: usize, event: &Event) -> Result<Row, Failure> {
        let values = self.plan.values(event)?.into_iter().zip(&self.targets);
        let values = values.map(|(value, target)| target.text(value)).collect::<Result<_, _>>()?;
        Ok(Row { event: index, values })
    }

    /// Writes rows, all of which are either written or answered for in `outcomes` when this returns.
    ///
    /// # Errors
    /// When nothing is known of the rows that have no outcome yet.
    async fn write(&self, rows: &[Row], outcomes: &mut [Option<Outcome>]) -> Result<(), Fault> {
        let mut parts = if rows.is_empty() { Vec::new() } else { vec![rows] };
        while let Some(part) = parts.pop() {
            let fault = match self.insert(part).await {
                Ok(()) => {
                    part.iter().for_each(|row| outcomes[row.event] = Some(Outcome::Done));
                    continue;
                }
                Err(fault) => fault,
            };
            match part {
                _ if fault.blame() == Blame::Server => return Err(fault),
                [row] => outcomes[row.event] = Some(Outcome::Failed(fault.failure())),
                // The server names no row: it is in one of the halves.
                _ => parts.extend([part.split_at(part.len() / 2).1, part.split_at(part.len() / 2).0]),
            }
        }
        Ok(())
    }

    async fn insert(&self, rows: &[Row]) -> Result<(), Fault> {
        match self.insert_once(rows).await {
            // The server or somebody between had closed it while it lay idle. Whether the rows were written is not known,
            // and writing them twice changes nothing.
            Err(fault) if fault.is_lost() => self.insert_once(rows).await,
            result => result,
        }
    }

    async fn insert_once(&self, rows: &[Row]) -> Result<(), Fault> {
        let columns: Vec<Vec<Option<&str>>> = (0..self.targets.len())
            .map(|column| rows.iter().map(|row| row.values[column].as_deref()).collect())
            .collect();
        let parameters: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| column as _).collect();
        let mut session = self.sessions.get().await?;
        let written = session.client.execute(&session.insert, &parameters).await.map_err(Fault::from);
        session.lost = written.as_ref().is_err_and(Fault::is_lost);
        written.map(drop)
    }
}

impl BatchHandler for PostgresHandler {
    fn handle_batch(&self, events: Vec<Event>) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(async move {
            let mut outcomes: Vec<Option<Outcome>> = vec![None; events.len()];
            let mut rows = Vec::with_capacity(events.len());
            for (i, event) in events.iter().enumerate() {
                match self.row(i, event) {
                    Ok(row) => rows.push(row),
                    Err(failure) => outcomes[i] = Some(Outcome::Failed(failure)),
                }
            }
            // Two batches that meet in the same ids lock them in the same order: no deadlock.
            rows.sort_by(|a, b| a.values[self.plan.id].cmp(&b.values[self.plan.id]));
            let unknown = match timeout(self.timeout, self.write(&rows, &mut outcomes)).await {
                Ok(Ok(())) => Failure::transient("not written; this is a bug"),
                Ok(Err(fault)) => {
                    fault.tell();
                    fault.failure()
                }
                Err(_) => Failure::transient(format!("postgres: timed out after {:?}", self.timeout)),
            };
            outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Outcome::Failed(unknown.clone()))).collect()
        })
    }
}

/// The first connection: tried until the server is there or the time is over.
async fn first(connector: &Connector, patience: Duration) -> Result<Client, Error> {
    let begun = Instant::now();
    loop {
        match connector.connect().await {
            Ok(client) => return Ok(client),
            Err(fault) if !fault.is_unreachable() => return Err(Error::Refused(fault.to_string())),
            Err(fault) if begun.elapsed() + AGAIN >= patience => {
                return Err(Error::Unreachable { waited: patience, reason: fault.to_string() });
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
}

/// One transaction; processes that start at the same time wait for each other.
async fn migrate(client: &Client, plan: &Plan) -> Result<(), tokio_postgres::Error> {
    let sql = format!("begin; select pg_advisory_xact_lock({MIGRATION_LOCK}); {} commit;", plan.migration());
    client.batch_execute(&sql).await
}
