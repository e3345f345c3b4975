//! Claims and settlements per second, one batch after the other: `REDIS_URL=… cargo bench --bench idempotency`.
//!
//! Without `REDIS_URL` only the memory store is measured. The records are left to expire.

use std::time::{Duration, Instant};

use retry_ladder::adapters::memory::MemoryStore;
use retry_ladder::adapters::redis::{Options, connect};
use retry_ladder::stage::ports::{Claim, CopyKey, IdempotencyStore, Mark};

const EXECUTIONS: usize = 100_000;
const LEASE: Duration = Duration::from_secs(15);
const TTL: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        measure("memory", &MemoryStore::default()).await?;
        match std::env::var("REDIS_URL") {
            Ok(url) => measure("redis", &connect(&url, Options::default()).await?).await,
            Err(_) => Ok(()),
        }
    })
}

#[allow(clippy::print_stdout, reason = "a bench reports on standard output")]
async fn measure(name: &str, store: &dyn IdempotencyStore) -> anyhow::Result<()> {
    // Keys of another run must not be met.
    let process = getrandom::u64()?;
    for batch in [10, 100, 500] {
        let keys: Vec<CopyKey> = (0..EXECUTIONS)
            .map(|i| CopyKey::from(format!("bench:orders:shop.orders:{process:016x}-{batch}-{i:08}:0")))
            .collect();
        let begin = Instant::now();
        let mut first = Vec::with_capacity(EXECUTIONS / batch);
        for (sequence, keys) in (0..).zip(keys.chunks(batch)) {
            let claim = Claim { process, sequence, fence: 1_700_000_000_000 };
            let claimed = Instant::now();
            for reply in store.claim(keys.iter().map(|key| (key.clone(), claim)).collect(), LEASE).await {
                reply?;
            }
            first.push(claimed.elapsed());
            let marks = keys.iter().map(|key| (key.clone(), claim, Mark::Done, TTL)).collect();
            for reply in store.settle(marks).await {
                reply?;
            }
        }
        let rate = EXECUTIONS as f64 / begin.elapsed().as_secs_f64();
        first.sort_unstable();
        let (p50, p99) = (first[first.len() / 2], first[first.len() * 99 / 100]);
        println!("{name}: batches of {batch:3}: {rate:9.0} claims + settlements/s, claim p50 {p50:?} p99 {p99:?}");
    }
    Ok(())
}
