//! A lane whose hops go in transactions, and the poll thread's part played by the test.

use std::sync::mpsc;

use super::*;
use crate::stage::context::Forward;
use crate::stage::ports::{PublishError, Share};

fn transactional(settings: &mut StageSettings) {
    settings.forward = Forward::Transactional;
}

async fn hops(rig: &Rig, lane: &LaneHandle, count: usize) {
    rig.until("hops wait", || lane.state().hops() == count).await;
}

/// What the lane has for the next transaction.
async fn share(rig: &Rig, lane: &LaneHandle) -> Option<Share> {
    let (to, answer) = mpsc::channel();
    lane.command(LaneCommand::Share(to));
    rig.pass(MS).await;
    answer.try_recv().ok()
}

fn offsets(share: &Share) -> (i64, Vec<&str>) {
    (share.position, share.hops.iter().map(|(_, hop)| value_of(hop, "x-ladder-event-id")).collect())
}

#[tokio::test(start_paused = true)]
async fn hops_are_settled_and_done_when_their_transaction_is_committed() {
    let rig = Rig::new(MAIN, transactional, fail);
    let lane = rig.lane(records(0..3));
    hops(&rig, &lane, 3).await;
    rig.pass(SECOND * 60).await;
    assert!(rig.stored("e0", 0).starts_with("P."), "held for as long as it takes");
    let committed = share(&rig, &lane).await.unwrap();
    assert_eq!(offsets(&committed), (3, vec!["e0", "e1", "e2"]));
    assert_eq!((lane.position(), rig.handler.count()), (Some(0), 3));
    committed.answer(|_| Ok(()));
    rig.position(&lane, 3).await;
    assert_eq!((rig.stored("e0", 0).as_str(), lane.state().hops()), ("F", 0));
    assert_eq!(rig.producer.count(), 0, "nothing goes another way");
    assert!(share(&rig, &lane).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_hop_that_was_committed_is_in_no_second_share_however_soon_that_is_asked_for() {
    let rig = Rig::new(MAIN, transactional, fail);
    let lane = rig.lane(records(0..3));
    hops(&rig, &lane, 3).await;
    let committed = share(&rig, &lane).await.unwrap();
    // The lane finds the answers and the question together.
    committed.answer(|_| Ok(()));
    assert!(share(&rig, &lane).await.is_none());
    rig.position(&lane, 3).await;
}

#[tokio::test(start_paused = true)]
async fn an_aborted_transaction_and_one_that_never_was_are_offered_again_without_a_second_execution() {
    let rig = Rig::new(MAIN, transactional, fail);
    let lane = rig.lane(records(0..2));
    hops(&rig, &lane, 2).await;
    drop(share(&rig, &lane).await.unwrap());
    rig.pass(MS).await;
    assert_eq!(lane.state().hops(), 0);
    hops(&rig, &lane, 2).await;
    share(&rig, &lane).await.unwrap().answer(|_| Err(PublishError::Aborted));
    rig.pass(SECOND * 2).await;
    hops(&rig, &lane, 2).await;
    share(&rig, &lane).await.unwrap().answer(|_| Ok(()));
    rig.position(&lane, 2).await;
    assert_eq!((rig.handler.count(), rig.stats().republished.get()), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn a_hop_that_is_too_large_goes_smaller_the_next_time_and_nothing_passes_it() {
    let rig = Rig::new(MAIN, transactional, fail);
    let lane = rig.lane(records(0..2));
    hops(&rig, &lane, 2).await;
    let first = share(&rig, &lane).await.unwrap();
    assert_ne!(value_of(&first.hops[0].1, "x-ladder-history"), "");
    first.answer(|place| Err(if place == 0 { PublishError::TooLarge } else { PublishError::Aborted }));
    rig.pass(SECOND).await;
    hops(&rig, &lane, 2).await;
    let second = share(&rig, &lane).await.unwrap();
    assert_eq!(offsets(&second), (2, vec!["e0", "e1"]));
    assert_eq!(value_of(&second.hops[0].1, "x-ladder-history"), "");
    assert_ne!(value_of(&second.hops[1].1, "x-ladder-history"), "");
    second.answer(|_| Ok(()));
    rig.position(&lane, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_event_holds_back_the_hops_behind_it() {
    let rig = Rig::new(MAIN, transactional, |event| async move {
        if &*event.id == "e1" {
            tokio::time::sleep(SECOND * 20).await;
        }
        Outcome::Failed(Failure::transient("no luck"))
    });
    let lane = rig.lane(records(0..3));
    hops(&rig, &lane, 2).await;
    let first = share(&rig, &lane).await.unwrap();
    assert_eq!(offsets(&first), (1, vec!["e0"]));
    first.answer(|_| Ok(()));
    rig.pass(SECOND).await;
    assert!(share(&rig, &lane).await.is_none());
    hops(&rig, &lane, 2).await;
    let second = share(&rig, &lane).await.unwrap();
    assert_eq!(offsets(&second), (3, vec!["e1", "e2"]));
    second.answer(|_| Ok(()));
    rig.position(&lane, 3).await;
}

#[tokio::test(start_paused = true)]
async fn what_nobody_will_commit_is_released_for_the_next_owner() {
    for gone in [true, false] {
        let rig = Rig::new(MAIN, transactional, fail);
        let mut lane = rig.lane(records(0..3));
        hops(&rig, &lane, 3).await;
        let late = share(&rig, &lane).await.unwrap();
        if gone {
            drop(lane);
            rig.until("its claims are released", || rig.store.records.is_empty()).await;
        } else {
            lane.command(LaneCommand::Withhold);
            assert_eq!(rig.drain(&mut lane).await, Some(0));
            assert_eq!(rig.store.records.len(), 0);
        }
        late.answer(|_| Ok(()));
        rig.pass(SECOND).await;
        assert_eq!(rig.stored("e0", 0), "-");
    }
}
