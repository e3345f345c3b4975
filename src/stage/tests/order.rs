//! `order: stage`: events of one key one at a time, in offset order.

use super::ports::Fault;
use super::*;
use crate::ladder::lane::{Dedup, Order};

async fn slow(event: Event) -> Outcome {
    // Later ones are faster: only the order of starting can keep theirs.
    tokio::time::sleep(MS * (100 - event.record.offset as u32)).await;
    Outcome::Done
}

#[tokio::test(start_paused = true)]
async fn events_of_one_key_run_one_at_a_time_in_offset_order_and_others_beside_them() {
    let rig = Rig::new(MAIN, as_usual, slow);
    let free = Record { key: None, ..record(9) };
    let lane =
        rig.lane([keyed("a", record(0)), keyed("a", record(1)), keyed("b", record(2)), keyed("a", record(3)), free]);
    rig.position(&lane, 10).await;
    assert_eq!(rig.handler.ids(), ["e0", "e2", "e9", "e1", "e3"]);
    let at = rig.handler.times();
    assert!(at[3] - at[0] >= MS * 100 && at[4] - at[3] >= MS * 99, "one after the other");
}

#[tokio::test(start_paused = true)]
async fn without_order_events_of_one_key_run_together() {
    let rig = Rig::new(MAIN, |s| s.order = Order::None, slow);
    let lane = rig.lane((0..4).map(|n| keyed("a", record(n))).collect::<Vec<_>>());
    rig.position(&lane, 4).await;
    assert_eq!(rig.handler.most(), 4);
}

#[tokio::test(start_paused = true)]
async fn handlers_that_answer_at_once_pass_the_key_on_at_once() {
    for dedup in [Dedup::Off, Dedup::Required, Dedup::BestEffort] {
        let rig = Rig::new(MAIN, |s| s.dedup = dedup, done);
        let lane = rig.lane((0..100).map(|n| keyed("a", record(n))).collect::<Vec<_>>());
        rig.position(&lane, 100).await;
        assert!(rig.clock.elapsed() < SECOND, "{:?} with {dedup:?}", rig.clock.elapsed());
        assert_eq!(rig.handler.ids(), (0..100).map(|n| format!("e{n}")).collect::<Vec<_>>());
        rig.is_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_of_a_key_starts_when_the_one_before_has_returned_not_when_it_is_recorded() {
    let rig = Rig::new(MAIN, as_usual, fail);
    rig.producer.answers([super::ports::Answer::Hold; 2]);
    let _lane = rig.lane([keyed("a", record(0)), keyed("a", record(1))]);
    rig.until("both are with the producer", || rig.producer.held() == 2).await;
}

/// The head of a key's chain ends in its own way; then the others run in their order.
async fn behind(what: &str, head: Record, prepare: impl AsyncFnOnce(&Rig)) -> Rig {
    let rig = Rig::new(MAIN, as_usual, slow);
    prepare(&rig).await;
    let lane = rig.lane([head, keyed("a", record(1)), keyed("a", record(2))]);
    rig.until(what, || lane.position() == Some(3)).await;
    assert!(rig.handler.ids().ends_with(&["e1".into(), "e2".into()]), "{what}: {:?}", rig.handler.ids());
    let at = rig.handler.times();
    assert!(at[at.len() - 1] - at[at.len() - 2] >= MS * 99, "{what}");
    rig.is_at_rest();
    rig
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_on_behind_whatever_its_head_was() {
    let head = || keyed("a", record(0));
    let poison = Record { value: Some("bad".into()), ..head() };
    assert_eq!(behind("poison", poison, async |_| {}).await.handler.count(), 2);
    let rig = behind("a duplicate", head(), async |rig| {
        rig.store.records.set(&rig.ctx.keys.key("e0", 0), "1", SECOND * 99);
    });
    assert_eq!(rig.await.handler.count(), 2);
    let rig = behind("a busy one", head(), async |rig| rig.hold_elsewhere("e0", 0, SECOND * 10)).await;
    assert_eq!(rig.handler.ids(), ["e0", "e1", "e2"], "those behind it wait for it");
    let rig = behind("a corrupt one", head(), async |rig| {
        rig.store.records.set(&rig.ctx.keys.key("e0", 0), "?", SECOND * 10);
    });
    assert_eq!(rig.await.handler.ids(), ["e0", "e1", "e2"]);
    let rig = behind("no answer", head(), async |rig| {
        rig.store.fail(|f| f.claim = Fault::Lost);
        let store = rig.store.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SECOND * 3).await;
            store.all(Fault::None);
        });
    });
    assert_eq!(rig.await.handler.ids(), ["e0", "e1", "e2"]);
}

#[tokio::test(start_paused = true)]
async fn in_a_retry_stage_a_key_waits_for_its_first_event() {
    let rig = Rig::new(RETRY_1, as_usual, done);
    let lane = rig.lane([
        keyed("a", retry(RETRY_1, 0, SECOND * 3)),
        keyed("a", retry(RETRY_1, 1, SECOND)),
        retry(RETRY_1, 2, SECOND * 2),
    ]);
    rig.position(&lane, 3).await;
    assert_eq!(rig.handler.ids(), ["e2", "e0", "e1"]);
    assert_eq!((lane.state().waiting(), lane.state().in_flight()), (0, 0));
}
