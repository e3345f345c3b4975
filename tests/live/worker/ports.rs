//! The ports of a worker's engine, each with the [`Witness`] in between, and its handler.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use retry_ladder::adapters::kafka::producer::KafkaPublisher;
use retry_ladder::ladder::event::{ClaimReply, Failure, Outcome};
use retry_ladder::messages::shop::v1::OrderPlaced;
use retry_ladder::prove::ledger::Fate;
use retry_ladder::stage::ports::{
    AckSink, Claim, CopyKey, Event, Handler, IdempotencyStore, Mark, Outgoing, PublishError, Publisher, SettleReply,
    StoreError,
};

use super::journal::Step;
use super::witness::{Witness, lock, now_us};
use super::{Moment, fate};

/// Event id and hop of a copy's key.
fn id_and_hop(key: &CopyKey) -> (String, u64) {
    let mut parts = key.rsplit(':');
    let hop = parts.next().and_then(|hop| hop.parse().ok()).expect("a hop");
    let id = percent_encoding::percent_decode_str(parts.next().expect("an id")).decode_utf8().expect("text");
    (id.into_owned(), hop)
}

pub(super) struct WitnessedStore {
    pub(super) inner: Arc<dyn IdempotencyStore>,
    pub(super) witness: Arc<Witness>,
}

impl IdempotencyStore for WitnessedStore {
    fn claim(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<ClaimReply, StoreError>>> {
        // Redis counts from when it executes the command, which is later.
        let leased_until_us = now_us() + lease.as_micros() as u64;
        let claim = |(key, claim): &(CopyKey, Claim)| {
            let (id, hop) = id_and_hop(key);
            (id, hop, claim.fence)
        };
        let claims: Vec<_> = batch.iter().map(claim).collect();
        let (call, witness) = (self.inner.claim(batch, lease), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.claimed(&claims, leased_until_us, &replies);
            replies
        }
        .boxed()
    }

    fn renew(
        &self,
        batch: Vec<(CopyKey, Claim)>,
        lease: Duration,
    ) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        self.inner.renew(batch, lease)
    }

    fn settle(
        &self,
        batch: Vec<(CopyKey, Claim, Mark, Duration)>,
    ) -> BoxFuture<'static, Vec<Result<SettleReply, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, ..)| id_and_hop(key)).collect();
        for (id, hop) in &copies {
            self.witness.note(Step::Settling, id, *hop);
        }
        let (call, witness) = (self.inner.settle(batch), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            witness.settled(&copies, &replies);
            replies
        }
        .boxed()
    }

    fn is_available(&self) -> bool {
        self.inner.is_available()
    }

    fn release(&self, batch: Vec<(CopyKey, Claim)>) -> BoxFuture<'static, Vec<Result<bool, StoreError>>> {
        let copies: Vec<_> = batch.iter().map(|(key, _)| id_and_hop(key)).collect();
        let (call, witness) = (self.inner.release(batch), Arc::clone(&self.witness));
        async move {
            let replies = call.await;
            for (id, hop) in &copies {
                witness.note(Step::Released, id, *hop);
            }
            replies
        }
        .boxed()
    }
}

pub(super) struct WitnessedPublisher {
    pub(super) inner: KafkaPublisher,
    pub(super) witness: Arc<Witness>,
}

impl Publisher for WitnessedPublisher {
    fn publish(&self, record: Outgoing, ticket: u64, acks: &Arc<dyn AckSink>) {
        let header = |name: &str| {
            let value = record.headers.iter().find(|(n, _)| n == name).and_then(|(_, value)| value.as_deref());
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let id = header("x-ladder-event-id").expect("an event id").to_owned();
        let hop = header("x-ladder-hop").and_then(|hop| hop.parse::<u64>().ok()).expect("a hop") - 1;
        self.witness.note(Step::Published, &id, hop);
        let (acks, witness) = (Arc::clone(acks), Arc::clone(&self.witness));
        let acks: Arc<dyn AckSink> = Arc::new(WitnessedAck { acks, witness, id, hop });
        self.inner.publish(record, ticket, &acks);
    }
}

struct WitnessedAck {
    acks: Arc<dyn AckSink>,
    witness: Arc<Witness>,
    id: String,
    hop: u64,
}

impl AckSink for WitnessedAck {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        if result.is_ok() {
            self.witness.note(Step::Acknowledged, &self.id, self.hop);
            self.witness.reach(Moment::Acknowledged, &self.id, self.hop);
        }
        self.acks.acknowledged(ticket, result);
    }
}

/// Does what the event's name (its `unique_id`) spells, and writes every start and end to the executions file.
pub(super) struct Executor {
    pub(super) witness: Arc<Witness>,
}

impl Executor {
    /// Once written it outlives the process, and that is all that dies here.
    fn record(&self, line: &str) {
        lock(&self.witness.executions).write_all(line.as_bytes()).expect("the executions file");
    }

    /// Whether any process has begun to execute this event before.
    fn has_begun(&self, id: &str) -> bool {
        let file = std::fs::read_to_string(self.witness.orders.executions()).expect("the executions file");
        let own = |line: &str| line.starts_with("start ") && line.split(' ').nth(5) == Some(id);
        file.lines().any(own)
    }
}

impl Handler for Executor {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        async move {
            let name = event.decode::<OrderPlaced>().expect("a readable event").unique_id;
            let fate = fate(&name);
            let begun = matches!(fate, Fate::Heals { .. }) && self.has_begun(&event.id);
            let (attempt, fence, id, stage) = (event.attempt, event.fence, &event.id, event.stage as u64);
            let line = |what: &str, outcome: &str| {
                let (at, record) = (self.witness.believes_us(), &event.record);
                let place = format!("{}:{}", record.partition, record.offset);
                format!("{what} {at} {} {attempt} {fence} {id} {outcome} {place}\n", event.stage_name)
            };
            self.record(&line("start", "-"));
            tokio::time::sleep(Duration::from_millis(self.witness.orders.latency_ms)).await;
            if self.witness.is_to_die_soon(Moment::Running, id, stage) {
                // The client commits every second.
                tokio::time::sleep(Duration::from_millis(2_500)).await;
                self.witness.die_now();
            }
            let outcome = outcome(fate, attempt, begun);
            let word = match &outcome {
                Outcome::Done => "done",
                Outcome::Failed(failure) if failure.message == "not yet" => "transient",
                _ => "permanent",
            };
            self.record(&line("end", word));
            self.witness.reach(Moment::Effect, id, stage);
            outcome
        }
        .boxed()
    }
}

fn outcome(fate: Fate, attempt: u32, begun: bool) -> Outcome {
    let failed = match fate {
        Fate::Fails(times) => attempt <= times,
        Fate::Permanent => return Outcome::Failed(Failure::permanent("will never do")),
        Fate::Heals { .. } if begun => false,
        Fate::Heals { permanent: true } => return Outcome::Failed(Failure::permanent("did not do")),
        Fate::Heals { permanent: false } => true,
        Fate::Poison => panic!("poison reached the handler"),
    };
    if failed { Outcome::Failed(Failure::transient("not yet")) } else { Outcome::Done }
}
