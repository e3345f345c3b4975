//! A worker's handler: does what an event's name spells, and writes it down.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use retry_ladder::ladder::event::{Failure, Outcome};
use retry_ladder::messages::shop::v1::OrderPlaced;
use retry_ladder::prove::journal::{Line, Step};
use retry_ladder::prove::ledger::Fate;
use retry_ladder::prove::ports::Witness as _;
use retry_ladder::stage::clock::{Clock as _, SystemClock};
use retry_ladder::stage::ports::{Event, Handler};

use super::witness::{Witness, lock};
use super::{Moment, fate};

/// How much longer an event of which the name says `-slow` takes.
const SLOW: Duration = Duration::from_secs(5);

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
            if id.contains("-slow") {
                tokio::time::sleep(SLOW).await;
            }
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
            // By the right clock: the marks of all processes are compared.
            let at_us = SystemClock.now().wall.as_micros();
            self.witness.saw(&[Line { at_us, step: Step::Handled, hop: stage, id: id.to_string() }]);
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
