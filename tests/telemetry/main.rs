//! Which metrics a stage moves, for every outcome: the real stage over ports in memory, its scrape read back by a
//! parser of the test's own. What is not named in a test has not moved.
#![allow(clippy::unwrap_used, reason = "a test that meets an error it did not ask for fails")]

mod answers;
mod board;
mod fixture;
mod parser;
mod spans;

use std::time::{Duration, Instant};

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::admin::{health, monitor};
use retry_ladder::app::engine::StageView;
use retry_ladder::ladder::event::{Failure, Outcome};
use retry_ladder::stage::clock::{Clock, SystemClock};
use retry_ladder::stage::lanes::{LaneCommand, LaneHost};
use retry_ladder::stage::ports::{Claim, PublishError};
use retry_ladder::stage::stats::PauseReason;
use retry_ladder::telemetry::metrics::{ALL, Kind};

use fixture::*;

const CLAIMED: (&str, f64) = ("ladder_idempotency_total{op=claim result=ours}", 1.0);
const CLAIM: (&str, f64) = ("ladder_idempotency_seconds_count{op=claim}", 1.0);
const SETTLED: (&str, f64) = ("ladder_idempotency_total{op=settle result=ours}", 1.0);
const SETTLE: (&str, f64) = ("ladder_idempotency_seconds_count{op=settle}", 1.0);
const RAN: (&str, f64) = ("ladder_handler_duration_seconds_count{}", 1.0);
const ON_TIME: (&str, f64) = ("ladder_lateness_seconds_count{}", 1.0);
const ACKED: (&str, f64) = ("ladder_produced_total{result=acknowledged}", 1.0);

fn transient() -> Outcome {
    Outcome::Failed(Failure::transient("not now"))
}

#[tokio::test]
async fn a_quiet_stage_reads_0_everywhere_and_every_series_is_there() {
    let fixture = Fixture::new(1, &[], &[]);
    fixture.expect(&[]).await;
    let samples = fixture.scrape().await;
    // What no Kafka has told yet is no number.
    let told = |name: &str| name != "ladder_retention_seconds";
    for metric in ALL.iter().filter(|m| m.labels.contains(&"stage") && told(m.name)) {
        let suffix = if metric.kind == Kind::Histogram { "_count" } else { "" };
        let prefix = format!("{}{suffix}{{", metric.name);
        assert!(samples.keys().any(|s| s.starts_with(&prefix)), "{} has no series", metric.name);
    }
    for le in ["0.001", "0.01", "0.1", "1", "10", "60", "600", "3600", "+Inf"] {
        let bucket = format!("ladder_lateness_seconds_bucket{{le=\"{le}\",pipeline=\"orders\",stage=\"retry-1\"}}");
        assert!(samples.contains_key(&bucket), "{bucket}");
    }
    for word in ["done", "forwarded", "dead_lettered", "duplicate", "busy", "released"] {
        let series = format!("ladder_events_total{{outcome=\"{word}\",pipeline=\"orders\",stage=\"retry-1\"}}");
        assert_eq!(samples.get(&series), Some(&0.0), "{series}");
    }
    assert!(samples["process_resident_memory_bytes"] > 1e6 && samples["process_open_fds"] > 2.0);
    assert!(samples["process_cpu_seconds_total"] >= 0.0);
}

#[tokio::test]
async fn done_on_main() {
    let mut fixture = Fixture::new(0, &[Outcome::Done], &[]);
    fixture.hand("x", None, &[]);
    let outcome = [("ladder_events_total{outcome=done}", 1.0), ("ladder_attempts_total{result=done}", 1.0)];
    fixture.expect(&[&outcome[..], &[CLAIMED, CLAIM, SETTLED, SETTLE, RAN]].concat()).await;
}

#[tokio::test]
async fn done_on_a_retry_stage_is_late_by_what_it_was_late() {
    let mut fixture = Fixture::new(1, &[Outcome::Done], &[]);
    fixture.hand("x", Some(-3_000), &[]);
    let outcome = [("ladder_events_total{outcome=done}", 1.0), ("ladder_attempts_total{result=done}", 1.0)];
    fixture.expect(&[&outcome[..], &[CLAIMED, CLAIM, SETTLED, SETTLE, RAN, ON_TIME]].concat()).await;
    let samples = fixture.scrape().await;
    let bucket =
        |le| samples[&format!("ladder_lateness_seconds_bucket{{le=\"{le}\",pipeline=\"orders\",stage=\"retry-1\"}}")];
    assert_eq!((bucket("2"), bucket("3600")), (0.0, 1.0));
    let sum = samples["ladder_lateness_seconds_sum{pipeline=\"orders\",stage=\"retry-1\"}"];
    assert!((3.0..600.0).contains(&sum), "{sum}");
}

#[tokio::test]
async fn forwarded_after_a_transient_failure() {
    let mut fixture = Fixture::new(0, &[transient()], &[]);
    fixture.hand("x", None, &[]);
    let outcome = [("ladder_events_total{outcome=forwarded}", 1.0), ("ladder_attempts_total{result=transient}", 1.0)];
    fixture.expect(&[&outcome[..], &[CLAIMED, CLAIM, SETTLED, SETTLE, RAN, ACKED]].concat()).await;
}

#[tokio::test]
async fn deferred_by_the_target_on_the_last_stage_counts_as_forwarded() {
    let failure = Failure::transient("busy").retry_after(Duration::from_secs(45));
    let mut fixture = Fixture::new(2, &[Outcome::Failed(failure)], &[]);
    fixture.hand("x", Some(-1), &[]);
    let outcome = [("ladder_events_total{outcome=forwarded}", 1.0), ("ladder_attempts_total{result=transient}", 1.0)];
    fixture.expect(&[&outcome[..], &[CLAIMED, CLAIM, SETTLED, SETTLE, RAN, ACKED, ON_TIME]].concat()).await;
}

#[tokio::test]
async fn dead_letters_are_counted_by_class() {
    let permanent = Outcome::Failed(Failure::permanent("never"));
    let executed = [CLAIMED, CLAIM, SETTLED, SETTLE, ACKED, RAN];
    let dead = ("ladder_events_total{outcome=dead_lettered}", 1.0);

    let mut fixture = Fixture::new(0, &[permanent], &[]);
    fixture.hand("x", None, &[]);
    let class = [("ladder_dead_letters_total{class=permanent}", 1.0), ("ladder_attempts_total{result=permanent}", 1.0)];
    fixture.expect(&[&class[..], &[dead], &executed].concat()).await;

    let mut fixture = Fixture::new(2, &[transient()], &[]);
    fixture.hand("x", Some(-1), &[]);
    let class = [("ladder_dead_letters_total{class=exhausted}", 1.0), ("ladder_attempts_total{result=transient}", 1.0)];
    fixture.expect(&[&class[..], &[dead, ON_TIME], &executed].concat()).await;

    // Older than a day when it fails, with stages left.
    let mut fixture = Fixture::new(1, &[transient()], &[]);
    fixture.hand("x", Some(-1), &[("x-ladder-origin", "orders:0:0:1000")]);
    let class = [("ladder_dead_letters_total{class=expired}", 1.0), ("ladder_attempts_total{result=transient}", 1.0)];
    fixture.expect(&[&class[..], &[dead, ON_TIME], &executed].concat()).await;

    // The handler cannot read it.
    let mut fixture = Fixture::new(0, &[Outcome::Failed(Failure::poison("no such currency"))], &[]);
    fixture.hand("x", None, &[]);
    let class = [("ladder_dead_letters_total{class=poison}", 1.0), ("ladder_attempts_total{result=poison}", 1.0)];
    fixture.expect(&[&class[..], &[dead], &executed].concat()).await;

    // No handler ever sees it: no attempt, no duration.
    let mut fixture = Fixture::new(0, &[], &[]);
    fixture.hand("poison", None, &[]);
    let class = ("ladder_dead_letters_total{class=poison}", 1.0);
    fixture.expect(&[class, dead, CLAIMED, CLAIM, SETTLED, SETTLE, ACKED]).await;
}

#[tokio::test]
async fn a_copy_that_the_store_knows_is_a_duplicate() {
    for (mark, answer) in [("1", "done"), ("F", "moved_on")] {
        let mut fixture = Fixture::new(0, &[], &[]);
        fixture.store.0.set(&fixture.key(0), mark, Duration::from_secs(60));
        fixture.hand("x", None, &[]);
        let told = format!("ladder_idempotency_total{{op=claim result={answer}}}");
        fixture.expect(&[("ladder_events_total{outcome=duplicate}", 1.0), (&told, 1.0), CLAIM]).await;
    }
}

#[tokio::test]
async fn a_copy_that_somebody_else_holds_is_busy_and_overdue() {
    let mut fixture = Fixture::new(0, &[], &[]);
    let other = Claim { process: 9, sequence: 1, fence: 1 };
    fixture.store.0.set(&fixture.key(0), &other.to_string(), Duration::from_secs(60));
    fixture.hand("x", None, &[]);
    // Parked for a second at least: long enough to be seen once.
    let samples = fixture.until("ladder_events_total{outcome=\"busy\",pipeline=\"orders\",stage=\"main\"}").await;
    assert_eq!(samples["ladder_overdue_events{pipeline=\"orders\",stage=\"main\"}"], 1.0);
    assert_eq!(samples["ladder_consumer_lag_events{pipeline=\"orders\",stage=\"main\"}"], 1.0);
    assert_eq!(
        samples["ladder_idempotency_total{op=\"claim\",pipeline=\"orders\",result=\"busy\",stage=\"main\"}"],
        1.0
    );
}

#[tokio::test]
async fn a_refused_fence_releases_the_claim_and_is_tried_again() {
    let mut fixture = Fixture::new(0, &[Outcome::Fenced, Outcome::Done], &[]);
    fixture.hand("x", None, &[]);
    let twice =
        [("ladder_idempotency_total{op=claim result=ours}", 2.0), ("ladder_idempotency_seconds_count{op=claim}", 2.0)];
    let attempts = [("ladder_attempts_total{result=fenced}", 1.0), ("ladder_attempts_total{result=done}", 1.0)];
    let events = [("ladder_events_total{outcome=released}", 1.0), ("ladder_events_total{outcome=done}", 1.0)];
    let released = [
        ("ladder_idempotency_total{op=release result=ours}", 1.0),
        ("ladder_idempotency_seconds_count{op=release}", 1.0),
        ("ladder_handler_duration_seconds_count{}", 2.0),
    ];
    fixture.expect(&[&twice[..], &attempts, &events, &released, &[SETTLED, SETTLE]].concat()).await;
}

#[tokio::test]
async fn what_the_producer_answers_is_counted() {
    let refusals = [PublishError::Unacknowledged("timed out".into()), PublishError::TooLarge];
    let mut fixture = Fixture::new(0, &[transient()], &refusals);
    fixture.hand("x", None, &[]);
    let produced = [
        ("ladder_produced_total{result=unacknowledged}", 1.0),
        ("ladder_produced_total{result=too_large}", 1.0),
        ("ladder_events_total{outcome=forwarded}", 1.0),
        ("ladder_attempts_total{result=transient}", 1.0),
    ];
    fixture.expect(&[&produced[..], &[CLAIMED, CLAIM, SETTLED, SETTLE, RAN, ACKED]].concat()).await;
}

#[tokio::test]
async fn a_partition_that_halts_is_told_as_a_pause_with_its_event_overdue() {
    let mut fixture = Fixture::new(0, &[transient()], &vec![PublishError::TooLarge; 20]);
    fixture.hand("x", None, &[]);
    let samples = fixture.until("ladder_paused{pipeline=\"orders\",reason=\"halted\",stage=\"main\"}").await;
    assert_eq!(samples["ladder_overdue_events{pipeline=\"orders\",stage=\"main\"}"], 1.0);
    assert_eq!(samples["ladder_in_flight{pipeline=\"orders\",stage=\"main\"}"], 0.0);
}

#[tokio::test]
async fn repaired_headers_are_counted_by_name() {
    let mut fixture = Fixture::new(1, &[Outcome::Done, Outcome::Done], &[]);
    let far = (SystemClock.now().wall + Duration::from_secs(900)).floor_millis().to_string();
    fixture.hand("x", Some(-1), &[("x-ladder-due", ""), ("x-ladder-attempt", "many")]);
    fixture.hand("x", Some(-1), &[("x-ladder-due", &far)]);
    // Both wait: 5 s from now, and 10.
    fixture
        .expect(&[
            ("ladder_headers_repaired_total{header=x-ladder-due}", 1.0),
            ("ladder_headers_repaired_total{header=x-ladder-attempt}", 1.0),
            ("ladder_headers_repaired_total{header=due_clamped}", 1.0),
            ("ladder_waiting_events{}", 2.0),
            ("ladder_consumer_lag_events{}", 2.0),
        ])
        .await;

    // Copied to main by somebody else's service: none of its ladder headers is believed.
    let mut fixture = Fixture::new(0, &[Outcome::Done], &[]);
    fixture.hand("x", None, &[("x-ladder-group", "somebody"), ("x-ladder-hop", "1")]);
    fixture.until("ladder_headers_repaired_total{header=\"untrusted\",pipeline=\"orders\",stage=\"main\"}").await;
}

#[tokio::test]
async fn what_waits_runs_and_is_overdue_is_told_apart() {
    let mut fixture = Fixture::new(1, &[], &[]);
    for _ in 0..3 {
        fixture.hand("x", Some(4_000_000), &[]); // clamped to 10 s from now
    }
    for _ in 0..6 {
        fixture.hand("x", Some(-60_000), &[]); // 4 permits
    }
    let mut seen = fixture.moved().await;
    for _ in 0..6_000 {
        if seen.get("ladder_in_flight{}") == Some(&4.0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        seen = fixture.moved().await;
    }
    assert_eq!(seen["ladder_waiting_events{}"], 3.0, "{seen:?}");
    assert_eq!((seen["ladder_in_flight{}"], seen["ladder_overdue_events{}"]), (4.0, 2.0), "{seen:?}");
    assert_eq!(seen["ladder_consumer_lag_events{}"], 9.0, "{seen:?}");
    assert!((60.0..600.0).contains(&seen["ladder_overdue_seconds{}"]), "{seen:?}");

    // The partition is taken away: what ran is cancelled, and no gauge stays behind.
    fixture.lane.command(LaneCommand::Stop);
    fixture.lane.wait_ended().await;
    let seen = fixture.moved().await;
    assert_eq!(seen["ladder_attempts_total{result=cancelled}"], 4.0, "{seen:?}");
    for gauge in ["waiting_events", "overdue_events", "overdue_seconds", "consumer_lag_events", "in_flight"] {
        assert!(!seen.contains_key(&format!("ladder_{gauge}{{}}")), "{gauge}: {seen:?}");
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_pauses_the_stage() {
    let mut fixture = Fixture::new(0, &[Outcome::Done], &[]);
    fixture.store.set(Mode::Off);
    fixture.hand("x", None, &[]);
    let samples = fixture
        .until("ladder_idempotency_total{op=\"claim\",pipeline=\"orders\",result=\"unavailable\",stage=\"main\"}")
        .await;
    assert_eq!(samples["ladder_paused{pipeline=\"orders\",reason=\"store\",stage=\"main\"}"], 1.0);
    fixture.store.set(Mode::On);
    let events = "ladder_events_total{outcome=\"done\",pipeline=\"orders\",stage=\"main\"}";
    fixture.until(events).await;
    let samples = fixture.scrape().await;
    assert_eq!(samples["ladder_paused{pipeline=\"orders\",reason=\"store\",stage=\"main\"}"], 0.0);
}

#[tokio::test]
async fn every_reason_that_a_stage_is_not_ready_is_told() {
    let fixture = Fixture::new(0, &[], &[]);
    let (view, limit) = (fixture.view(Duration::ZERO), Duration::from_secs(300));
    let reasons = |view: &StageView, figures: &monitor::Figures| {
        health::readiness(view, figures, limit).iter().map(|t| t.reason).collect::<Vec<_>>()
    };
    let fine = monitor::Figures::default();
    assert_eq!(reasons(&view, &fine), [""; 0]);
    assert_eq!(reasons(&fixture.view(limit), &fine), ["poll"]);
    assert_eq!(health::liveness(&fixture.view(limit), limit).map(|t| t.reason), Some("poll"));

    let halted = monitor::Figures { halted: vec![3], ..monitor::Figures::default() };
    assert_eq!(reasons(&view, &halted), ["halted"]);
    fixture.store.set(Mode::Off);
    assert_eq!(reasons(&view, &fine), ["store"]);
    fixture.stage.context().stats.pauses.set(PauseReason::Command, true);
    fixture.stage.member(false);
    assert_eq!(reasons(&view, &fine), ["assignment", "command", "store"]);
    assert!(health::liveness(&view, limit).is_none(), "nothing of this is cured by a restart");
}

#[tokio::test]
async fn a_kafka_that_does_not_answer_delays_nobody_for_long_and_makes_the_stage_not_ready() {
    let mut fixture = Fixture::new(1, &[], &[]);
    fixture.hand("x", Some(4_000_000), &[]);
    // A port that nobody listens on: bound, then given back.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let watched = monitor::Watched::new(fixture.view(Duration::ZERO), Properties::new(free.to_string()));
    let begun = Instant::now();
    let figures = watched.figures().await;
    assert!(begun.elapsed() < monitor::PATIENCE + Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(figures.waiting, 1, "what is in memory is told all the same");
    let troubles = health::readiness(watched.view(), &figures, Duration::from_secs(300));
    assert_eq!(troubles.iter().map(|t| t.reason).collect::<Vec<_>>(), ["kafka"]);
}
