//! The deduplication stores: one contract for both, and what Redis alone can do to us.
//!
//! The Redis cases start servers of their own; without a `redis-server` they fail and say what to do.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

#[allow(dead_code, reason = "the other tests that share it use the rest")]
#[cfg(feature = "tls")]
#[path = "../support/certificates.rs"]
mod certificates;
mod contract;
mod forget;
mod queues;
#[allow(dead_code, reason = "the other tests that share it use the rest")]
#[path = "../support/redis_cluster.rs"]
mod redis_cluster;
mod redis_cluster_faults;
mod redis_faults;
#[allow(dead_code, reason = "the other tests that share it use the rest")]
#[path = "../support/redis_server.rs"]
mod redis_server;
#[cfg(feature = "tls")]
mod redis_secured;
mod redis_start;
mod stores;

use retry_ladder::stage::ports::{Claim, CopyKey};

/// The claim of one of many processes.
fn claim_of(process: u64) -> Claim {
    Claim { process, sequence: 7, fence: 1_700_000_000_000 }
}

fn key(name: &str) -> CopyKey {
    CopyKey::from(format!("idem:orders:shop.orders:{name}:0"))
}
