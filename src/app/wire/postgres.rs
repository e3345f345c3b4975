//! From the configuration to the `postgres` handler.

use std::time::Duration;

use super::{Error, decoder};
use crate::config::{self, PostgresHandler as Keys};
use crate::handlers::batched::{BatchOptions, Batched};
use crate::handlers::postgres::{Options, Plan, PoolOptions, PostgresHandler};

/// Table and columns.
///
/// # Errors
/// When there is no such message, or what is configured cannot be written from it.
pub fn plan(pipeline: &config::Pipeline, keys: &Keys) -> Result<Plan, Error> {
    let plan = Plan::new(decoder(pipeline)?, keys.table.as_deref(), &keys.columns.0);
    plan.map_err(|faults| Error::PostgresPlan { pipeline: pipeline.name.clone(), faults })
}

pub(super) async fn handler(
    pipeline: &config::Pipeline,
    keys: &Keys,
    startup_timeout: Duration,
) -> Result<Batched<PostgresHandler>, Error> {
    let options = Options {
        url: keys.url.reveal().to_owned(),
        migrate: keys.migrate,
        timeout: keys.timeout,
        connect_timeout: keys.connect_timeout,
        startup_timeout,
        pool: PoolOptions {
            max_size: keys.pool_max_size,
            min_idle: keys.pool_min_idle,
            idle_timeout: keys.pool_idle_timeout,
            max_lifetime: keys.pool_max_lifetime,
        },
    };
    let handler = PostgresHandler::connect(options, plan(pipeline, keys)?)
        .await
        .map_err(|source| Error::Postgres { pipeline: pipeline.name.clone(), source: Box::new(source) })?;
    // More than are in hand at a time never come: a batch that waited for them would wait in vain.
    let size = keys.batch_size.min(pipeline.concurrency);
    Ok(Batched::new(handler, BatchOptions { size, interval: keys.flush_interval, idle: keys.flush_idle }))
}
