//! The ports of a worker's engine, watched: what the outside answers is told to a [`Witness`] before the engine sees it.
//!
//! The engine knows nothing of it; what it is given and gives passes unchanged.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::journal::{Line, Step};
use super::now_us;
use crate::ladder::event::ClaimReply;
use crate::stage::ports::{
    AckSink, Claim, CopyKey, IdempotencyStore, Mark, Outgoing, PublishError, Publisher, SettleReply, StoreError,
};

/// Who is told.
pub trait Witness: Send + Sync + 'static {
    /// Has seen this when it returns, if it does.
    fn saw(self: &Arc<Self>, lines: &[Line]);
}

/// Event id and hop of a copy's key: its last parts.
fn id_and_hop(key: &CopyKey) -> (String, u64) {
    let mut parts = key.rsplit(':');
    let hop = parts.next().and_then(|hop| hop.parse().ok()).unwrap_or_default();
    let id = percent_encoding::percent_decode_str(parts.next().unwrap_or_default()).decode_utf8_lossy();
    (id.into_owned(), hop)
}

fn line((id, hop): &(String, u64), step: Step) -> Line {
    Line { at_us: now_us(), step, hop: *hop, id: id.clone() }
}

/// A store, watched.
pub struct WatchedStore<W> {
    /// The real one.
    pub inner: Arc<dyn IdempotencyStore>,
    /// Sees each claim, renewal, settlement and release.
    pub witness: Arc<W>,
}

impl<W: Witness> WatchedStore<W> {
    /// Tells what each reply says of its copy.
    fn watch<T: Send + 'static>(
        &self,
        copies: Vec<(String, u64)>,
        call: BoxFuture<'static, Vec<T>>,
        says: impl Fn(usize, &T) -> Option<Step> + Send + 'static,
    ) -> BoxFuture<'static, Vec<T>> {
        let witness = Arc::clone(&self.witness);
        async move {
            let replies = call.await;
            let said = copies.iter().zip(&replies).enumerate();
            let lines: Vec<_> = said.filter_map(|(n, (copy, reply))| Some(line(copy, says(n, reply)?))).collect();
            if !lines.is_empty() {
                witness.saw(&lines);
            }
            replies
        }
        .boxed()
    }
}

impl<W: Witness> IdempotencyStore for WatchedStore<W> {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        // Redis counts from when it executes the command, which is later.
        let leased_until_us = now_us() + lease.as_micros() as u64;
        let copies = batch.iter().map(|(key, _)| id_and_hop(key)).collect();
        let fences: Vec<u64> = batch.iter().map(|(_, claim)| claim.fence).collect();
        self.watch(copies, self.inner.claim(batch, lease), move |n, reply| match reply {
            Ok(ClaimReply::Claimed | ClaimReply::AlreadyOurs) => {
                Some(Step::Claimed { fence: fences[n], leased_until_us })
            }
            Ok(ClaimReply::Busy) => Some(Step::Busy),
            Ok(ClaimReply::Done | ClaimReply::MovedOn) => Some(Step::Known),
            _ => None,
        })
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let leased_until_us = now_us() + lease.as_micros() as u64;
        let copies = batch.iter().map(|(key, _)| id_and_hop(key)).collect();
        self.watch(copies, self.inner.renew(batch, lease), move |_, reply| match reply {
            Ok(true) => Some(Step::Renewed { leased_until_us }),
            Ok(false) => None,
            Err(_) => Some(Step::NotRenewed),
        })
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, ..)| id_and_hop(key)).collect();
        let lines: Vec<_> = copies.iter().map(|copy| line(copy, Step::Settling)).collect();
        self.witness.saw(&lines);
        self.watch(copies, self.inner.settle(batch), |_, reply| reply.is_ok().then_some(Step::Settled))
    }

    fn is_available(&self) -> bool {
        self.inner.is_available()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let copies = batch.iter().map(|(key, _)| id_and_hop(key)).collect();
        self.watch(copies, self.inner.release(batch), |_, reply| matches!(reply, Ok(true)).then_some(Step::Released))
    }
}

/// A publisher, watched.
pub struct WatchedPublisher<W> {
    /// The real one.
    pub inner: Arc<dyn Publisher>,
    /// Sees each record and each acknowledgement.
    pub witness: Arc<W>,
}

impl<W: Witness> Publisher for WatchedPublisher<W> {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let header = |name: &str| {
            let value = record.headers.iter().find(|(n, _)| n == name).and_then(|(_, value)| value.as_deref());
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let id = header("x-ladder-event-id").unwrap_or_default().to_owned();
        let next = header("x-ladder-hop").and_then(|hop| hop.parse::<u64>().ok());
        let copy = (id, next.map_or(0, |next| next.saturating_sub(1)));
        self.witness.saw(&[line(&copy, Step::Published)]);
        let acks = WatchedAck { acks: Arc::clone(acks), witness: Arc::clone(&self.witness), copy };
        self.inner.publish(record, ticket, &(Arc::new(acks) as _));
    }
}

struct WatchedAck<W> {
    acks: Arc<dyn AckSink>,
    witness: Arc<W>,
    copy: (String, u64),
}

impl<W: Witness> AckSink for WatchedAck<W> {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        let step = match result {
            Ok(()) => Some(Step::Acknowledged),
            Err(PublishError::Unacknowledged(_)) => Some(Step::Unacknowledged),
            Err(PublishError::TooLarge | PublishError::Aborted) => None,
        };
        if let Some(step) = step {
            self.witness.saw(&[line(&self.copy, step)]);
        }
        self.acks.acknowledged(ticket, result);
    }
}
