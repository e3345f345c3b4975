//! Every answer of the deduplication store to every call, as the metrics tell it, and what it does to the event.

use std::time::Duration;

use retry_ladder::ladder::event::Outcome;
use retry_ladder::stage::context::StageSettings;
use retry_ladder::stage::ports::Claim;

use super::{Fixture, Mode};

/// A claim of another process.
const FOREIGN: Claim = Claim { process: 9, sequence: 1, fence: 1 };

fn answer(op: &str, result: &str) -> String {
    format!("ladder_idempotency_total{{op=\"{op}\",pipeline=\"orders\",result=\"{result}\",stage=\"main\"}}")
}

fn event(outcome: &str) -> String {
    format!("ladder_events_total{{outcome=\"{outcome}\",pipeline=\"orders\",stage=\"main\"}}")
}

/// An event whose handler runs and returns `outcome` once the gate is opened.
async fn running(outcome: Outcome, lease: Duration) -> Fixture {
    let settings = StageSettings { lease, ..StageSettings::default() };
    let mut fixture = Fixture::with(0, &[outcome, Outcome::Done], &[], settings);
    fixture.gate.forget_permits(64);
    fixture.hand("x", None, &[]);
    fixture.until(&answer("claim", "ours")).await;
    fixture.until("ladder_in_flight{pipeline=\"orders\",stage=\"main\"}").await;
    fixture
}

/// So long that nothing is renewed during the test.
const LONG: Duration = Duration::from_secs(3_600);
/// Renewed a few times each second.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_found_to_be_ours_already() {
    let mut fixture = Fixture::new(0, &[Outcome::Done], &[]);
    fixture.store.set(Mode::Mute);
    fixture.hand("x", None, &[]);
    fixture.until(&answer("claim", "unavailable")).await;
    fixture.store.set(Mode::On);
    fixture.until(&answer("claim", "already_ours")).await;
    let samples = fixture.until(&event("done")).await;
    assert_eq!(samples[&answer("claim", "ours")], 0.0);
}

#[tokio::test]
async fn a_record_of_nobody_is_counted_as_corrupt() {
    let mut fixture = Fixture::new(0, &[Outcome::Done], &[]);
    fixture.store.0.set(&fixture.key(0), "nonsense", LONG);
    fixture.hand("x", None, &[]);
    fixture.until(&answer("claim", "corrupt")).await;
}

#[tokio::test]
async fn renewals_are_counted_by_their_answer() {
    let fixture = running(Outcome::Done, SHORT).await;
    fixture.until(&answer("renew", "ours")).await;
    fixture.store.set(Mode::Off);
    fixture.until(&answer("renew", "unavailable")).await;

    // Somebody else has it: what runs is cancelled.
    let fixture = running(Outcome::Done, SHORT).await;
    fixture.store.0.set(&fixture.key(0), &FOREIGN.to_string(), LONG);
    fixture.until(&answer("renew", "lost")).await;
    fixture.until("ladder_leases_lost_total{pipeline=\"orders\",stage=\"main\"}").await;
    fixture.until("ladder_attempts_total{pipeline=\"orders\",result=\"cancelled\",stage=\"main\"}").await;
}

#[tokio::test]
async fn settlements_are_counted_by_their_answer() {
    let fixture = running(Outcome::Done, LONG).await;
    fixture.store.set(Mode::Off);
    fixture.gate.add_permits(64);
    let samples = fixture.until(&answer("settle", "unavailable")).await;
    assert_eq!(samples[&event("done")], 0.0, "not done before it is recorded");
    fixture.store.set(Mode::On);
    fixture.until(&answer("settle", "ours")).await;
    fixture.until(&event("done")).await;

    let fixture = running(Outcome::Done, LONG).await;
    fixture.store.0.set(&fixture.key(0), &FOREIGN.to_string(), LONG);
    fixture.gate.add_permits(64);
    fixture.until(&answer("settle", "lost")).await;
    fixture.until("ladder_leases_lost_total{pipeline=\"orders\",stage=\"main\"}").await;
}

#[tokio::test]
async fn releases_are_counted_by_their_answer() {
    let fixture = running(Outcome::Fenced, LONG).await;
    fixture.store.0.set(&fixture.key(0), &FOREIGN.to_string(), LONG);
    fixture.gate.add_permits(64);
    fixture.until(&answer("release", "lost")).await;

    let fixture = running(Outcome::Fenced, LONG).await;
    fixture.store.set(Mode::Off);
    fixture.gate.add_permits(64);
    fixture.until(&answer("release", "unavailable")).await;
}
