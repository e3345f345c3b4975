//! Workers that break the promise on purpose, so that the proof can be seen to fail: only with the feature `sabotage`,
//! chosen by `LADDER_PROVE_SABOTAGE`.
//!
//! | value | does | as in |
//! |---|---|---|
//! | `setnx` | marks an event as finished when it is claimed, before its effect | `SETNX` without a lease |
//! | `early-offset` | acknowledges a record before the broker has it | offset committed before the acknowledgement |
//! | `drop-busy` | takes a copy that somebody holds for finished | skip on "already being processed" |

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::stage::ports::{
    AckSink, Claim, ClaimReply, CopyKey, IdempotencyStore, Mark, Outgoing, PublishError, Publisher, SettleReply,
    StoreError,
};

/// How long `early-offset` keeps a record to itself.
const HELD_BACK: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    SetNx,
    EarlyOffset,
    DropBusy,
}

fn chosen() -> Option<Sabotage> {
    match std::env::var("LADDER_PROVE_SABOTAGE").ok()?.as_str() {
        "setnx" => Some(Sabotage::SetNx),
        "early-offset" => Some(Sabotage::EarlyOffset),
        "drop-busy" => Some(Sabotage::DropBusy),
        other => panic!("LADDER_PROVE_SABOTAGE is {other:?}; it is setnx, early-offset or drop-busy"),
    }
}

/// The store that the chosen sabotage asks for.
pub(super) fn broken_store(inner: Arc<dyn IdempotencyStore>) -> Arc<dyn IdempotencyStore> {
    match chosen() {
        Some(how @ (Sabotage::SetNx | Sabotage::DropBusy)) => Arc::new(BrokenStore { inner, how }),
        _ => inner,
    }
}

/// The publisher that it asks for.
pub(super) fn broken_publisher(inner: Arc<dyn Publisher>) -> Arc<dyn Publisher> {
    match chosen() {
        Some(Sabotage::EarlyOffset) => Arc::new(BrokenPublisher { inner }),
        _ => inner,
    }
}

struct BrokenStore {
    inner: Arc<dyn IdempotencyStore>,
    how: Sabotage,
}

impl IdempotencyStore for BrokenStore {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        let (call, inner, how) = (self.inner.claim(batch.clone(), lease), Arc::clone(&self.inner), self.how);
        async move {
            let mut replies = call.await;
            if how == Sabotage::DropBusy {
                for reply in replies.iter_mut().filter(|reply| matches!(reply, Ok(ClaimReply::Busy))) {
                    *reply = Ok(ClaimReply::Done);
                }
                return replies;
            }
            let ours = |reply: &_| matches!(reply, Ok(ClaimReply::Claimed | ClaimReply::AlreadyOurs));
            let granted = batch.into_iter().zip(&replies).filter(|(_, reply)| ours(reply));
            let done = granted.map(|((key, claim), _)| (key, claim, Mark::Done, Duration::from_secs(86_400)));
            drop(inner.settle(done.collect()).await);
            replies
        }
        .boxed()
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        match self.how {
            // Nothing is leased, so nothing is ever lost.
            Sabotage::SetNx => futures::future::ready(batch.iter().map(|_| Ok(true)).collect()).boxed(),
            _ => self.inner.renew(batch, lease),
        }
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        self.inner.settle(batch)
    }

    fn is_available(&self) -> bool {
        self.inner.is_available()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.inner.release(batch)
    }
}

struct BrokenPublisher {
    inner: Arc<dyn Publisher>,
}

impl Publisher for BrokenPublisher {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(HELD_BACK).await;
            inner.publish(record, ticket, &(Arc::new(Deaf) as _));
        });
        acks.acknowledged(ticket, Ok(()));
    }
}

/// Has been answered already.
struct Deaf;

impl AckSink for Deaf {
    fn acknowledged(&self, _ticket: u64, _result: Result<(), PublishError>) {}
}
