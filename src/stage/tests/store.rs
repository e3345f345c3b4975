//! The store fails: nothing starts, nothing is lost, nothing runs twice.

use super::ports::Fault;
use super::*;
use crate::ladder::lane::Dedup;

#[tokio::test(start_paused = true)]
async fn without_the_store_nothing_starts_and_everything_resumes_by_itself() {
    let rig = Rig::new(RETRY_2, as_usual, done);
    rig.store.all(Fault::Down);
    let lane = rig.lane((0..20).map(|n| retry(RETRY_2, n, SECOND * n as u32)).collect::<Vec<_>>());
    rig.pass(SECOND * 10 + MS).await;
    assert_eq!((rig.handler.count(), lane.position()), (0, Some(0)));
    assert_eq!((lane.state().waiting(), lane.state().in_flight()), (9, 11), "waiting goes on");
    rig.is_at_rest();
    rig.store.all(Fault::None);
    rig.position(&lane, 20).await;
    assert_eq!(rig.handler.count(), 20);
    assert!(rig.clock.elapsed() < SECOND * 21);
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_lead_to_no_second_run() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.all(Fault::Lost);
    let lane = rig.lane(records(0..10));
    rig.pass(SECOND * 4).await;
    assert_eq!(rig.handler.count(), 0);
    rig.store.fail(|f| (f.claim, f.renew) = (Fault::None, Fault::None));
    // They were claimed by us: a renewal confirms it. Their settlements are recorded, but nobody tells.
    rig.pass(SECOND * 10).await;
    assert_eq!((rig.handler.count(), rig.stored("e0", 0).as_str()), (10, "1"));
    assert_eq!(lane.position(), Some(0));
    rig.store.all(Fault::None);
    rig.position(&lane, 10).await;
    assert_eq!((rig.handler.count(), rig.stats().done.get()), (10, 10));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_claims_but_cannot_renew_is_not_asked_without_a_pause() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.fail(|f| f.claim = Fault::Lost);
    let lane = rig.lane(records(0..1));
    rig.pass(MS * 10).await;
    rig.store.fail(|f| (f.claim, f.renew) = (Fault::None, Fault::Down));
    rig.pass(SECOND * 10).await;
    let calls = rig.store.calls("renew");
    assert!((5..=12).contains(&calls), "{calls} renewals in ten seconds");
    rig.position(&lane, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_success_is_settled_until_it_is_confirmed_and_never_run_again() {
    for fault in [Fault::Down, Fault::Lost] {
        let rig = Rig::new(MAIN, as_usual, done);
        rig.store.fail(|f| (f.settle, f.renew) = (fault, fault));
        let lane = rig.lane(records(0..4));
        rig.pass(SECOND * 120).await;
        assert_eq!((rig.handler.count(), lane.position()), (4, Some(0)), "{fault:?}");
        let calls = rig.store.calls("settle");
        assert!((20..=40).contains(&calls), "backs off to 5 s, in one batch: {calls}");
        rig.store.all(Fault::None);
        rig.position(&lane, 4).await;
        assert_eq!((rig.handler.count(), rig.stats().done.get()), (4, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn an_acknowledged_copy_is_settled_until_it_is_confirmed_and_never_published_again() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.store.fail(|f| (f.settle, f.renew) = (Fault::Down, Fault::Down));
    let lane = rig.lane(records(0..4));
    rig.pass(SECOND * 120).await;
    assert_eq!((rig.producer.count(), lane.position()), (4, Some(0)));
    rig.store.all(Fault::None);
    rig.position(&lane, 4).await;
    assert_eq!((rig.handler.count(), rig.producer.count(), rig.stats().forwarded.get()), (4, 4, 4));
}

#[tokio::test(start_paused = true)]
async fn in_process_mode_events_run_while_the_store_is_down() {
    let rig = Rig::new(MAIN, |s| s.dedup = Dedup::BestEffort, fail);
    rig.store.all(Fault::Down);
    let lane = rig.lane(records(0..20));
    rig.position(&lane, 20).await;
    assert_eq!((rig.handler.count(), rig.producer.count()), (20, 20));
    assert!(rig.clock.elapsed() < SECOND);
    assert_eq!(rig.stats().leases_lost.get(), 0);
    rig.is_at_rest();
    // With the store back it is as ever.
    rig.store.all(Fault::None);
    rig.store.records.set(&rig.ctx.keys.key("e20", 0), "1", SECOND * 99);
    lane.hand_over(records(20..23));
    rig.position(&lane, 23).await;
    assert_eq!((rig.handler.count(), rig.stats().duplicates.get(), rig.stored("e21", 0).as_str()), (22, 1, "F"));
}

#[tokio::test(start_paused = true)]
async fn in_process_mode_a_handler_that_runs_unclaimed_is_not_cancelled_at_a_lease() {
    let rig = Rig::new(
        MAIN,
        |s| (s.dedup, s.handler_timeout) = (Dedup::BestEffort, SECOND * 100),
        |event| async move {
            tokio::time::sleep(SECOND * 60).await;
            fail(event).await
        },
    );
    rig.store.all(Fault::Down);
    let lane = rig.lane(records(0..1));
    rig.position(&lane, 1).await;
    assert_eq!((rig.handler.count(), rig.handler.cancelled(), rig.producer.count()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_somebody_else_holds_is_parked_and_the_others_go_on() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.hold_elsewhere("e1", 0, SECOND * 60);
    let lane = rig.lane(records(0..5));
    rig.pass(SECOND * 50).await;
    assert_eq!((rig.handler.ids().len(), lane.position()), (4, Some(1)), "its offset is not done");
    assert!(rig.stats().busy.get() >= 3);
    rig.position(&lane, 5).await;
    assert_eq!(rig.handler.ids().last().unwrap(), "e1");
    // Tried again at most a lease and a quarter after the last time.
    assert!(rig.clock.elapsed() < SECOND * 80, "{:?}", rig.clock.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_holder_finishes_it_is_done_without_a_run() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.hold_elsewhere("e0", 0, SECOND * 60);
    let lane = rig.lane(records(0..1));
    rig.pass(SECOND * 3).await;
    rig.store.records.set(&rig.ctx.keys.key("e0", 0), "F", SECOND * 60);
    rig.position(&lane, 1).await;
    assert_eq!((rig.handler.count(), rig.stats().duplicates.get()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_nobodys_parks_its_event_only() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.records.set(&rig.ctx.keys.key("e0", 0), "hello", SECOND * 60);
    let lane = rig.lane(records(0..3));
    rig.pass(SECOND * 50).await;
    assert_eq!((rig.handler.count(), lane.position()), (2, Some(0)));
    assert!(rig.stats().corrupt.get() >= 3);
    rig.position(&lane, 3).await;
}

#[tokio::test(start_paused = true)]
async fn one_copy_in_two_lanes_runs_once() {
    // Redelivered after a rebalance, while the old lane still runs it.
    let rig = Rig::new(MAIN, as_usual, |_| async {
        tokio::time::sleep(SECOND * 20).await;
        Outcome::Done
    });
    let old = rig.lane(records(0..3));
    rig.pass(SECOND).await;
    let new = rig.lane(records(0..3));
    rig.position(&old, 3).await;
    rig.position(&new, 3).await;
    assert_eq!((rig.handler.count(), rig.stats().duplicates.get()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn claims_and_settlements_of_one_round_are_one_batch_each() {
    let rig = Rig::new(MAIN, |s| s.concurrency = 100, done);
    let lane = rig.lane(records(0..100));
    rig.position(&lane, 100).await;
    assert_eq!((rig.store.calls("claim"), rig.store.calls("settle")), (1, 1));
}
