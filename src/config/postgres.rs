//! The keys of the `postgres` handler, and what no one of them can check alone.

use std::collections::BTreeMap;
use std::time::Duration;

use figment::value::Value;

use super::model::{Endpoint, Pipeline};
use super::report::{At, Report};
use super::schema::{Entry, Out, Setting, section};
use super::settings::map;
use super::text::show_duration;

section! {
    /// Inserts each event as one row, many rows in one statement.
    pub struct PostgresHandler {
        /// Server and database; libpq's sslmode and sslrootcert are understood. `url_file` names a file that holds it.
        url: Endpoint;
        /// Table, with its schema where that is not the user's own: `audit.orders`; without one the message's name: `pipeline_step`.
        table: Option<String> = "null";
        /// Column to source: a field of the message (`amount`, `total.currency`), $event_id, $key, $json (the whole message), $topic,
        /// $partition, $offset, $timestamp (of the main record), $header.NAME. One column has to be $event_id. Without any:
        /// event_id and a column for each field.
        columns: Columns = "{}";
        /// Whether the table and columns that are missing are made at start. Nothing is ever dropped or changed.
        migrate: bool = "false";
        /// Rows per statement at most; never more than `concurrency`.
        batch_size: usize = "100" in "1" ..= "10000";
        /// A batch is written this long after its first event, full or not,
        flush_interval: Duration = "1s" in "1ms" ..= "1m";
        /// or when no event has joined it for this long: what else is there waits for it to end.
        flush_idle: Duration = "10ms" in "0s" ..= "1m";
        /// One batch's writing, with waiting for a connection; together with flush_interval shorter than `handler_timeout`.
        timeout: Duration = "10s" in "10ms" ..= "1h";
        /// How long a batch waits for a connection, free or new; within `timeout`.
        connect_timeout: Duration = "5s" in "10ms" ..= "1h";
        /// Connections at most, per process: so many batches are written at a time.
        pool_max_size: u32 = "4" in "1" ..= "1000";
        /// Connections that are kept although nothing is to do.
        pool_min_idle: u32 = "1" in "0" ..= "1000";
        /// An unused connection beyond these is closed after this long.
        pool_idle_timeout: Duration = "10m" in "1s" ..= "1d";
        /// A connection is replaced after this long.
        pool_max_lifetime: Duration = "30m" in "1s" ..= "7d";
    }
}

/// What is written into which column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(pub BTreeMap<String, String>);

impl Setting for Columns {
    fn expects() -> String {
        "a map from column to source, like `{ id: $event_id, amount: total.amount }`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let Some(entries) = map(value, report) else {
            report.fault(at, "not a map", Self::expects());
            return None;
        };
        let source = |(column, value): (String, Value)| {
            String::read(&value, &at.key(&column), report).map(|source| (column, source))
        };
        Some(Self(entries.into_iter().filter_map(source).collect()))
    }
    fn show(&self) -> Out {
        Out::Map(self.0.iter().map(|(column, source)| Entry::new(column, source.show())).collect())
    }
}

/// Reports what does not go together. Columns and fields are matched where the message's declaration is known.
pub(super) fn check(handler: &PostgresHandler, pipeline: &Pipeline, at: &At, report: &mut Report<'_>) {
    if cfg!(not(feature = "postgres")) {
        report.fault(at, "this build has no postgres handler", "a build with the feature `postgres`");
    }
    let url = at.key(if handler.url.file.is_some() { "url_file" } else { "url" });
    if report.clean(&url) && !matches!(handler.url.url().scheme(), "postgres" | "postgresql") {
        report.fault(&url, "not a url of PostgreSQL", "a url like postgres://user@localhost:5432/database");
    }
    let (timeout, interval) = (at.key("timeout"), at.key("flush_interval"));
    let all = handler.timeout.saturating_add(handler.flush_interval);
    if report.clean(&timeout) && report.clean(&interval) && all >= pipeline.handler_timeout {
        report.fault_with(
            &timeout,
            Some(show_duration(handler.timeout)),
            "with flush_interval not shorter than handler_timeout, which would cancel events while they are written",
            format!("together less than {}, or a longer handler_timeout", show_duration(pipeline.handler_timeout)),
        );
    }
    let connect = at.key("connect_timeout");
    if report.clean(&connect) && report.clean(&timeout) && handler.connect_timeout > handler.timeout {
        let remedy = format!("at most timeout, {}", show_duration(handler.timeout));
        report.fault_with(&connect, Some(show_duration(handler.connect_timeout)), "longer than timeout", remedy);
    }
    if report.clean(at) && handler.pool_min_idle > handler.pool_max_size {
        let remedy = format!("at most pool_max_size, {}", handler.pool_max_size);
        report.fault(&at.key("pool_min_idle"), "more than there may be", remedy);
    }
}

/// What works and is slow.
pub(super) fn warning(handler: &PostgresHandler, pipeline: &Pipeline) -> Option<String> {
    (pipeline.concurrency < handler.batch_size).then(|| {
        format!(
            "pipelines.{}.concurrency is {}, so that no batch has more rows than that; right would be: several times \
             handler.postgres.batch_size, for example {}",
            pipeline.name,
            pipeline.concurrency,
            handler.batch_size * 4
        )
    })
}
