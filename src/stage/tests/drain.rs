//! The end of a lane: drained, stopped, abandoned.

use super::ports::{Answer, Fault};
use super::*;
use crate::stage::ports::PublishError;

async fn slow(_: Event) -> Outcome {
    tokio::time::sleep(SECOND * 5).await;
    Outcome::Done
}

#[track_caller]
fn holds_nothing(rig: &Rig, lane: &LaneHandle) {
    assert!(lane.ended());
    assert_eq!((lane.state().waiting(), lane.state().in_flight()), (0, 0));
    let overview = rig.stage.overview();
    assert_eq!((overview.waiting, overview.in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_forgets_what_waits_and_tells_the_position() {
    let rig = Rig::new(RETRY_1, |s| s.concurrency = 2, slow);
    let ready = (0..4).map(|n| retry(RETRY_1, n, Duration::ZERO));
    let mut lane = rig.lane(ready.chain([retry(RETRY_1, 4, SECOND * 2)]).collect::<Vec<_>>());
    rig.pass(SECOND).await;
    assert_eq!((rig.handler.count(), lane.ended()), (2, false));
    assert_eq!(rig.drain(&mut lane).await, Some(2));
    assert_eq!(rig.clock.elapsed().as_secs(), 5, "nothing was started after the drain began");
    assert_eq!((rig.handler.count(), rig.stored("e1", 1).as_str()), (2, "1"));
    holds_nothing(&rig, &lane);
}

#[tokio::test(start_paused = true)]
async fn a_lane_with_nothing_to_do_drains_at_once() {
    let rig = Rig::new(RETRY_1, as_usual, done);
    let mut idle = rig.open();
    assert_eq!(rig.drain(&mut idle).await, None);
    let mut waits = rig.lane([retry(RETRY_1, 7, SECOND * 9)]);
    rig.pass(MS).await;
    assert_eq!(rig.drain(&mut waits).await, Some(7));
    assert!(rig.clock.elapsed() < MS * 10);
    holds_nothing(&rig, &waits);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_acknowledgements_and_settlements() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Hold]);
    let mut lane = rig.lane(records(0..1));
    rig.until("it is with the producer", || rig.producer.held() == 1).await;
    lane.command(LaneCommand::Drain);
    rig.pass(SECOND * 3).await;
    assert!(!lane.ended());
    rig.store.fail(|f| f.settle = Fault::Down);
    rig.producer.answer_held(Ok(()));
    rig.pass(SECOND * 3).await;
    assert!(!lane.ended());
    rig.store.all(Fault::None);
    rig.ended(&mut lane).await;
    assert_eq!((lane.position(), rig.stored("e0", 0).as_str()), (Some(1), "F"));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_arrives_after_the_drain_began_is_released() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.fail(|f| f.claim = Fault::Slow(SECOND));
    let mut lane = rig.lane(records(0..3));
    rig.pass(MS * 100).await;
    assert!(rig.stored("e0", 0).starts_with("P."));
    assert_eq!(rig.drain(&mut lane).await, Some(0));
    assert_eq!((rig.handler.count(), rig.stats().released.get(), rig.store.records.len()), (0, 3, 0));
    holds_nothing(&rig, &lane);
}

#[tokio::test(start_paused = true)]
async fn claims_that_were_never_answered_do_not_hold_a_drain_up() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.all(Fault::Lost);
    let mut lane = rig.lane(records(0..3));
    rig.pass(SECOND * 3).await;
    assert_eq!(rig.drain(&mut lane).await, Some(0));
    assert_eq!(rig.handler.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_lost_in_a_drain_ends_the_wait() {
    let rig = Rig::new(MAIN, as_usual, |_| std::future::pending());
    rig.store.fail(|f| f.renew = Fault::Down);
    let mut lane = rig.lane(records(0..1));
    rig.pass(SECOND).await;
    assert_eq!(rig.drain(&mut lane).await, Some(0));
    assert!(rig.clock.elapsed() < SECOND * 16);
    assert_eq!((rig.handler.cancelled(), rig.producer.count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_over_after_the_drain_began_is_not_touched() {
    let rig = Rig::new(MAIN, as_usual, slow);
    let mut lane = rig.lane(records(0..1));
    rig.pass(MS).await;
    lane.command(LaneCommand::Drain);
    lane.hand_over(records(1..5));
    rig.pass(SECOND).await;
    lane.hand_over(records(5..9));
    assert_eq!(rig.drain(&mut lane).await, Some(1));
    assert_eq!(rig.handler.ids(), ["e0"]);
    lane.hand_over(records(9..12));
    holds_nothing(&rig, &lane);
    assert_eq!(lane.position(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn with_the_store_down_a_drain_goes_on_until_the_lane_is_stopped() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.fail(|f| f.settle = Fault::Down);
    let mut lane = rig.lane(records(0..3));
    rig.pass(SECOND).await;
    lane.command(LaneCommand::Drain);
    rig.pass(SECOND * 30).await;
    assert_eq!((lane.ended(), lane.position()), (false, Some(0)));
    lane.command(LaneCommand::Stop);
    rig.ended(&mut lane).await;
    rig.is_at_rest();
    holds_nothing(&rig, &lane);
    assert_eq!(lane.position(), Some(0), "what was not recorded is read again");
}

#[tokio::test(start_paused = true)]
async fn a_stop_cancels_what_runs_and_its_leases_run_out() {
    let rig = Rig::new(MAIN, as_usual, slow);
    let mut lane = rig.lane(records(0..9));
    rig.pass(SECOND).await;
    assert_eq!(rig.handler.running(), 4);
    lane.command(LaneCommand::Stop);
    rig.ended(&mut lane).await;
    rig.is_at_rest();
    holds_nothing(&rig, &lane);
    assert_eq!((rig.handler.cancelled(), lane.position(), rig.store.calls("settle")), (4, Some(0), 0));
    assert!(rig.stored("e0", 0).starts_with("P."));
    rig.pass(SECOND * 15).await;
    assert_eq!(rig.store.records.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_producer_after_the_end_reaches_nobody() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Hold; 3]);
    let mut lane = rig.lane(records(0..3));
    rig.until("they are with the producer", || rig.producer.held() == 3).await;
    lane.command(LaneCommand::Stop);
    rig.ended(&mut lane).await;
    rig.producer.answer_held(Ok(()));
    rig.pass(SECOND).await;
    assert_eq!((lane.position(), rig.store.calls("settle")), (Some(0), 0));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_handle_is_dropped_finishes_what_runs_and_ends() {
    let rig = Rig::new(MAIN, as_usual, slow);
    let lane = rig.lane(records(0..6));
    rig.pass(SECOND).await;
    drop(lane);
    rig.pass(SECOND * 5).await;
    rig.is_at_rest();
    assert_eq!((rig.handler.count(), rig.stats().done.get()), (4, 4));
    assert_eq!(rig.stage.overview(), LaneOverview::default(), "its numbers are gone");
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_handle_is_dropped_waits_for_its_handlers_but_not_for_ever() {
    let rig = Rig::new(MAIN, |s| s.handler_timeout = SECOND * 100, |_| std::future::pending());
    // The handlers overrun at 100 s; what is to be published then is refused again and again.
    rig.producer.answers(std::iter::repeat_n(Answer::Unacknowledged, 1_000));
    let lane = rig.lane(records(0..2));
    rig.pass(SECOND).await;
    drop(lane);
    rig.pass(SECOND * 158).await;
    assert_eq!((rig.handler.cancelled(), rig.stage.overview().in_flight), (2, 2));
    rig.pass(SECOND * 4).await;
    rig.is_at_rest();
    assert_eq!(rig.stage.overview(), LaneOverview::default(), "it has ended");
}

#[tokio::test(start_paused = true)]
async fn a_lane_keeps_its_leases_as_long_as_the_producer_has_its_records() {
    let rig = Rig::new(MAIN, |s| s.handler_timeout = SECOND * 5, fail);
    rig.producer.answers([Answer::Hold, Answer::Hold]);
    let lane = rig.lane(records(0..2));
    rig.until("they are with the producer", || rig.producer.held() == 2).await;
    drop(lane);
    // The message timeout may be as long as it likes.
    rig.pass(SECOND * 600).await;
    assert!(rig.stored("e0", 0).starts_with("P.") && rig.stored("e1", 0).starts_with("P."));
    rig.producer.answer_held(Ok(()));
    rig.pass(SECOND).await;
    rig.is_at_rest();
    assert_eq!(rig.stage.overview(), LaneOverview::default(), "it has ended");
    assert_eq!((rig.stored("e0", 0).as_str(), rig.stored("e1", 0).as_str()), ("F", "F"));
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_was_abandoned_long_ago_sends_nothing_again() {
    let rig = Rig::new(MAIN, |s| s.handler_timeout = SECOND * 5, fail);
    rig.producer.answers([Answer::Hold]);
    let lane = rig.lane(records(0..1));
    rig.until("it is with the producer", || rig.producer.held() == 1).await;
    drop(lane);
    rig.pass(SECOND * 120).await;
    rig.producer.answer_held(Err(PublishError::Unacknowledged("timed out".into())));
    rig.pass(SECOND * 6).await;
    rig.is_at_rest();
    assert_eq!(rig.stage.overview(), LaneOverview::default(), "it has ended");
    assert_eq!(rig.producer.count(), 1, "its next owner sends it");
}

#[tokio::test(start_paused = true)]
async fn records_that_nobody_took_in_count_for_nobody() {
    let rig = Rig::new(MAIN, as_usual, done);
    let mut lane = rig.open();
    lane.command(LaneCommand::Stop);
    lane.hand_over(records(0..5));
    rig.ended(&mut lane).await;
    lane.hand_over(records(5..9));
    holds_nothing(&rig, &lane);
    assert_eq!(lane.position(), None);
}

#[tokio::test(start_paused = true)]
async fn the_overview_counts_open_lanes_only() {
    let rig = Rig::new(RETRY_1, as_usual, slow);
    let first = rig.lane([retry(RETRY_1, 0, Duration::ZERO), retry(RETRY_1, 1, SECOND * 20)]);
    let second = rig.lane([retry(RETRY_1, 2, SECOND * 20)]);
    rig.pass(MS).await;
    assert_eq!(rig.stage.overview(), LaneOverview { partitions: 2, waiting: 2, in_flight: 1, halted: 0 });
    drop(first);
    rig.pass(SECOND * 6).await;
    assert_eq!(rig.stage.overview(), LaneOverview { partitions: 1, waiting: 1, in_flight: 0, halted: 0 });
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn a_bug_in_a_lane_halts_its_partition_and_no_other_and_keeps_no_permit() {
    let rig = Rig::new(MAIN, as_usual, slow);
    let mut lane = rig.lane([record(0), record(1), Record { value: Some("bug".into()), ..record(2) }, record(3)]);
    rig.ended(&mut lane).await;
    rig.is_at_rest();
    rig.until("it is told", || lane.state().halted()).await;
    assert_eq!((lane.position(), rig.stage.overview().halted), (Some(0), 1), "nothing is skipped");
    let other = rig.lane(records(10..30));
    rig.position(&other, 30).await;
    assert_eq!(rig.handler.most(), 4);
}
