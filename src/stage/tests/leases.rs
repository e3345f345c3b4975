//! Leases: renewed while a handler runs, and what happens when one is lost.

use std::sync::atomic::AtomicUsize;

use super::ports::{Answer, Fault};
use super::*;
use crate::stage::ports::PublishError;

/// Fails after so long, at the second look.
fn fails_after(time: Duration) -> impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync {
    move |event| {
        Box::pin(async move {
            tokio::time::sleep(time).await;
            once_more().await;
            fail(event).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_for_as_long_as_the_handler_runs() {
    let rig = Rig::with_handler(MAIN, |s| s.handler_timeout = SECOND * 600, fails_after(SECOND * 300));
    let lane = rig.lane(records(0..3));
    rig.position(&lane, 3).await;
    assert_eq!((rig.handler.count(), rig.producer.count(), rig.stats().leases_lost.get()), (3, 3, 0));
    let renewals = rig.store.calls("renew");
    assert!((58..=62).contains(&renewals), "each third of the lease, all in one batch: {renewals}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_whose_lease_is_lost_is_cancelled_publishes_nothing_and_runs_again() {
    let rig = Rig::with_handler(MAIN, as_usual, fails_after(SECOND * 12));
    let lane = rig.lane(records(0..1));
    rig.until("it runs", || rig.handler.running() == 1).await;
    rig.hold_elsewhere("e0", 0, SECOND * 30);
    rig.pass(SECOND * 6).await;
    assert_eq!((rig.handler.cancelled(), rig.handler.running(), rig.stats().leases_lost.get()), (1, 0, 1));
    assert_eq!((rig.producer.count(), lane.position()), (0, Some(0)));
    rig.is_at_rest();
    rig.position(&lane, 1).await;
    assert_eq!((rig.handler.count(), rig.producer.count()), (2, 1));
    let fences: Vec<u64> = rig.handler.events().iter().map(|event| event.fence).collect();
    assert!(fences[1] > fences[0], "{fences:?}");
}

#[tokio::test(start_paused = true)]
async fn at_the_local_deadline_a_handler_is_cancelled_though_the_store_says_nothing() {
    let rig = Rig::with_handler(MAIN, as_usual, fails_after(SECOND * 20));
    rig.store.fail(|f| f.renew = Fault::Down);
    let lane = rig.lane(records(0..1));
    rig.pass(SECOND * 15 - MS * 2).await;
    assert_eq!(rig.handler.running(), 1);
    rig.pass(MS * 4).await;
    assert_eq!((rig.handler.running(), rig.producer.count(), lane.position()), (0, 0, Some(0)));
    rig.store.all(Fault::None);
    rig.position(&lane, 1).await;
    assert_eq!(rig.producer.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_does_not_go_on_when_its_process_wakes_up_after_its_lease() {
    let went_on = Arc::new(AtomicUsize::new(0));
    let rig = Rig::with_handler(MAIN, as_usual, {
        let went_on = Arc::clone(&went_on);
        move |_| {
            let went_on = Arc::clone(&went_on);
            Box::pin(async move {
                tokio::time::sleep(SECOND).await;
                went_on.fetch_add(1, Ordering::Relaxed);
                Outcome::Done
            })
        }
    });
    let mut lane = rig.lane(records(0..3));
    rig.until("they run", || rig.handler.running() == 3).await;
    // Everything stands still for an hour, and all timers fire at once.
    tokio::time::advance(SECOND * 3_600).await;
    rig.hold_elsewhere("e1", 0, SECOND * 30);
    rig.until("they are given up", || rig.handler.cancelled() == 3).await;
    assert_eq!((went_on.load(Ordering::Relaxed), rig.stats().leases_lost.get()), (0, 3));
    assert_eq!((rig.stored("e0", 0).as_str(), rig.store.calls("settle")), ("-", 0));
    rig.position(&lane, 3).await;
    assert_eq!(went_on.load(Ordering::Relaxed), 3, "each went on once, with a lease");
    assert_eq!(rig.drain(&mut lane).await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn an_outcome_in_the_very_round_in_which_the_lease_is_lost_no_longer_counts() {
    let rig = Rig::with_handler(MAIN, as_usual, {
        let first = fails_after(SECOND * 15);
        move |event| if event.fence == START_MS { first(event) } else { Box::pin(done(event)) }
    });
    rig.store.fail(|f| f.renew = Fault::Down);
    let mut lane = rig.lane(records(0..1));
    rig.position(&lane, 1).await;
    assert_eq!((rig.producer.count(), rig.handler.count(), rig.stats().leases_lost.get()), (0, 2, 1));
    assert_eq!(rig.drain(&mut lane).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_settlement_may_be_confirmed_in_the_very_round_of_a_renewal() {
    // The renewal of the other event goes out each 5 s; the settlement's reply comes at the same instant.
    let rig = Rig::with_handler(
        MAIN,
        |s| s.handler_timeout = SECOND * 60,
        |event| {
            let time = if event.record.offset == 0 { SECOND * 3 } else { SECOND * 30 };
            Box::pin(async move {
                tokio::time::sleep(time).await;
                Outcome::Done
            })
        },
    );
    for offset in [0, 2, 4] {
        rig.store.fail(|f| f.settle = Fault::Slow(SECOND * 2));
        let mut lane = rig.lane([record(offset), record(offset + 1)]);
        rig.position(&lane, offset + 2).await;
        rig.drain(&mut lane).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_counts_even_after_the_lease_was_lost() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Hold]);
    let lane = rig.lane(records(0..1));
    rig.until("it is with the producer", || rig.producer.held() == 1).await;
    rig.hold_elsewhere("e0", 0, SECOND * 600);
    rig.pass(SECOND * 60).await;
    rig.producer.answer_held(Ok(()));
    rig.position(&lane, 1).await;
    assert_eq!((rig.stored("e0", 0).as_str(), rig.producer.count(), rig.handler.count()), ("F", 1, 1));
    assert_eq!(rig.stats().leases_lost.get(), 1, "told by the settlement");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_frozen_between_two_publishes_of_a_round_hands_nothing_more_over() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.store.fail(|f| f.renew = Fault::Down);
    let clock = Arc::clone(&rig.clock);
    rig.producer.at_the_next(move || clock.freeze(SECOND * 30));
    let lane = rig.lane(records(0..3));
    rig.until("the first is handed over", || rig.producer.count() > 0).await;
    rig.pass(MS * 200).await;
    assert_eq!(rig.producer.count(), 1, "the leases of the others had run out");
    rig.store.all(Fault::None);
    rig.position(&lane, 3).await;
    assert_eq!(rig.producer.count(), 3);
}

/// The lease is lost while the record is with the producer, which then does not take it.
async fn lost_with_the_producer(result: PublishError) {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([Answer::Hold]);
    let lane = rig.lane(records(0..1));
    rig.until("it is with the producer", || rig.producer.held() == 1).await;
    rig.store.records.remove(&rig.ctx.keys.key("e0", 0));
    rig.pass(SECOND * 6).await;
    rig.producer.answer_held(Err(result));
    rig.pass(MS * 100).await;
    assert_eq!(rig.producer.count(), 1, "a lost lease publishes nothing");
    rig.position(&lane, 1).await;
    assert_eq!((rig.handler.count(), rig.producer.count()), (2, 2), "executed again, published once more");
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_not_acknowledged_is_not_published_again_without_a_lease() {
    lost_with_the_producer(PublishError::Unacknowledged("?".into())).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_too_large_is_not_published_smaller_without_a_lease() {
    lost_with_the_producer(PublishError::TooLarge).await;
}

#[tokio::test(start_paused = true)]
async fn success_is_settled_whatever_became_of_the_lease() {
    let rig = Rig::new(
        MAIN,
        |s| s.handler_timeout = SECOND * 60,
        |_| async {
            tokio::time::sleep(SECOND * 4).await;
            Outcome::Done
        },
    );
    let lane = rig.lane(records(0..1));
    rig.until("it runs", || rig.handler.running() == 1).await;
    rig.hold_elsewhere("e0", 0, SECOND * 600);
    rig.position(&lane, 1).await;
    assert_eq!((rig.stored("e0", 0).as_str(), rig.handler.count(), rig.stats().leases_lost.get()), ("1", 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_fence_releases_the_claim_and_runs_again_with_a_higher_one() {
    let rig = Rig::new(MAIN, as_usual, |event| async move {
        if event.fence < START_MS + 1_000 { Outcome::Fenced } else { Outcome::Done }
    });
    let lane = rig.lane(records(0..1));
    rig.position(&lane, 1).await;
    assert_eq!((rig.stats().released.get() as usize, rig.producer.count()), (rig.handler.count() - 1, 0));
    let fences: Vec<u64> = rig.handler.events().iter().map(|event| event.fence).collect();
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
}
