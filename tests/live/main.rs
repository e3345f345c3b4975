//! Tests on real services. They fail, with the remedy, where the services are not there: a test that passes by doing
//! nothing proves nothing. Each makes topics and groups of its own, so that they can share a cluster and be repeated.

#![allow(clippy::unwrap_used, reason = "a test that meets an error it did not ask for fails")]

#[allow(dead_code, reason = "the other tests that share it use the rest")]
#[path = "../support/board.rs"]
mod board;
#[path = "../support/certificates.rs"]
mod certificates;
mod operations;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
#[path = "../support/postgres_server.rs"]
mod postgres_server;
#[allow(dead_code, reason = "the other tests that share it use the rest")]
#[path = "../support/redis_cluster.rs"]
mod redis_cluster;
#[allow(dead_code, reason = "the other tests that share it use the rest")]
#[path = "../support/redis_server.rs"]
mod redis_server;
mod console;
mod dlq;
mod real_run;
mod crash_points;
mod faults;
mod outside;
mod prove;
mod status;
mod support;
mod topics;
mod traces;
mod transactional;
mod worker;
