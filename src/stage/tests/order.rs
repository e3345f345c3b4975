//! `order: stage`: events of one key one at a time, in offset order; `order: ladder`: across the stages, too.

use super::ports::Fault;
use super::*;
use crate::ladder::lane::{Dedup, Order};
use crate::stage::ports::{IdempotencyStore as _, Outgoing, Place};

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

fn in_ladder(s: &mut StageSettings) {
    s.order = Order::Ladder;
}

/// The record that a stage produced, as the next one reads it.
fn arriving(out: &Outgoing, offset: i64) -> Record {
    let (key, value, headers) = (out.key.clone(), out.value.clone(), out.headers.clone());
    Record { partition: 0, offset, timestamp_ms: START_MS as i64, key, value, headers }
}

/// Fails the first of a key on main and on the first retry stage.
async fn first_fails(event: Event) -> Outcome {
    if &*event.id == "e0" && event.attempt < 3 { fail(event).await } else { Outcome::Done }
}

#[tokio::test(start_paused = true)]
async fn behind_an_event_in_the_ladder_later_ones_of_its_key_wait_and_others_do_not() {
    let main = Rig::new(MAIN, in_ladder, first_fails);
    let lane = main.lane([keyed("a", record(0)), keyed("a", record(1)), keyed("b", record(2))]);
    main.position(&lane, 3).await;
    assert_eq!(main.handler.ids(), ["e0", "e2"], "e1 waits, the other key does not");
    let hops = main.producer.published();
    let told =
        |n: usize| ["event-id", "attempt", "hop", "stage"].map(|name| value_of(&hops[n], &format!("x-ladder-{name}")));
    assert_eq!((told(0), told(1)), (["e0", "1", "1", "1"], ["e1", "0", "1", "1"]), "what has not run is not charged");
    assert!(value_of(&hops[1], "x-ladder-error").starts_with("transient: not its turn: "));
    assert_eq!(value_of(&hops[1], "x-ladder-history"), "");
    assert_eq!((main.stats().forwarded.get(), main.stats().behind.get()), (1, 1));

    // The two later stages share main's store.
    let retry_1 = Rig::sharing(&main, RETRY_1, in_ladder, first_fails);
    let lane = retry_1.lane([arriving(&hops[0], 0), arriving(&hops[1], 1)]);
    retry_1.position(&lane, 2).await;
    assert_eq!(retry_1.handler.ids(), ["e0"], "its turn has not come");
    let again = retry_1.producer.published();
    let at =
        |n: usize| (&*again[n].topic, value_of(&again[n], "x-ladder-hop"), value_of(&again[n], "x-ladder-attempt"));
    assert_eq!(at(0), ("orders.billing.retry-2", "2", "2"));
    assert_eq!(at(1), ("orders.billing.retry-1", "2", "0"), "it stays on its stage");

    let retry_2 = Rig::sharing(&main, RETRY_1 + 1, in_ladder, first_fails);
    let lane = retry_2.lane([arriving(&again[0], 0)]);
    retry_2.position(&lane, 1).await;
    assert_eq!(retry_2.handler.ids(), ["e0"]);

    let lane = retry_1.lane([arriving(&again[1], 2)]);
    retry_1.position(&lane, 3).await;
    assert_eq!(retry_1.handler.ids(), ["e0", "e1"], "now it is");
    let lane = main.lane([keyed("a", record(3))]);
    main.position(&lane, 4).await;
    assert_eq!(main.handler.ids(), ["e0", "e2", "e3"], "the key is free again");
    main.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_free_is_worked_off_in_one_go() {
    let rig = Rig::new(RETRY_1, in_ladder, done);
    let places = (0..20).map(|offset| (Place { queue: rig.ctx.keys.queue(0, b"a"), offset }, SECOND * 900)).collect();
    rig.store.join(places).await;
    let lane = rig.lane((0..20).map(|n| keyed("a", retry(RETRY_1, n, SECOND))).collect::<Vec<_>>());
    rig.position(&lane, 20).await;
    assert_eq!(rig.handler.ids(), (0..20).map(|n| format!("e{n}")).collect::<Vec<_>>());
    assert_eq!(rig.producer.count(), 0, "nobody had to wait once more");
    assert!(rig.clock.elapsed() < SECOND * 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_moves_without_its_place_and_no_end_is_recorded_before_it_is_given_back() {
    let rig = Rig::new(MAIN, in_ladder, first_fails);
    rig.store.fail(|f| f.queues = Fault::Down);
    let lane = rig.lane([keyed("a", record(0)), keyed("a", record(1))]);
    rig.pass(SECOND * 5).await;
    assert_eq!((rig.handler.count(), rig.producer.count()), (0, 0), "whose turn it is nobody knows");
    rig.store.all(Fault::None);
    rig.until("it has failed", || rig.producer.count() >= 1).await;
    rig.position(&lane, 2).await;
    assert_eq!((rig.handler.ids(), rig.producer.count()), (vec!["e0".to_owned()], 2));

    let rig = Rig::sharing(&rig, RETRY_1, in_ladder, done);
    let hops = [keyed("a", retry(RETRY_1, 0, SECOND)), keyed("a", retry(RETRY_1, 1, SECOND))];
    rig.store.fail(|f| f.settle = Fault::Down);
    let lane = rig.lane(hops);
    rig.until("it has ended", || rig.store.calls("leave") >= 2).await;
    assert_eq!((rig.handler.ids(), lane.position()), (vec!["e0".to_owned()], Some(0)), "the next waits for the record");
    rig.store.all(Fault::None);
    rig.position(&lane, 2).await;
    assert_eq!(rig.handler.ids(), ["e0", "e1"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_holds_the_next_back_until_there_is_room() {
    let rig = Rig::new(MAIN, |s| (s.order, s.order_room) = (Order::Ladder, 1), first_fails);
    let lane = rig.lane([keyed("a", record(0)), keyed("a", record(1)), keyed("b", record(2))]);
    rig.until("the other key is done", || rig.handler.count() == 2).await;
    rig.pass(SECOND * 20).await;
    assert_eq!((rig.handler.ids(), rig.producer.count()), (vec!["e0".to_owned(), "e2".to_owned()], 1));
    assert!(rig.stats().queue_full.get() >= 2 && lane.position() == Some(1));
    rig.store.leave(vec![Place { queue: rig.ctx.keys.queue(0, b"a"), offset: 0 }]).await;
    rig.position(&lane, 3).await;
    assert_eq!(rig.handler.ids(), ["e0", "e2", "e1"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_never_comes_back_holds_its_key_up_no_longer_than_the_patience() {
    let rig = Rig::new(RETRY_1, in_ladder, done);
    rig.store.join(vec![(Place { queue: rig.ctx.keys.queue(0, b"a"), offset: 0 }, SECOND * 30)]).await;
    let lane = rig.lane([keyed("a", retry(RETRY_1, 1, SECOND))]);
    rig.position(&lane, 2).await;
    assert_eq!(rig.handler.count(), 0, "it has moved on, behind the one that is gone");
    rig.pass(SECOND * 30).await;
    let next = arriving(&rig.producer.published()[0], 2);
    let lane = rig.lane([next]);
    rig.position(&lane, 3).await;
    assert_eq!((rig.handler.ids(), rig.stats().lapsed.get()), (vec!["e1".to_owned()], 1));
}

#[tokio::test(start_paused = true)]
async fn an_event_without_a_key_and_a_redriven_one_are_free() {
    let rig = Rig::new(RETRY_1, in_ladder, done);
    rig.store.join(vec![(Place { queue: rig.ctx.keys.queue(0, b"a"), offset: 0 }, SECOND * 900)]).await;
    let mut redriven = keyed("a", retry(RETRY_1, 1, SECOND));
    redriven.headers.push(header("x-ladder-redrive", "1"));
    let lane = rig.lane([redriven, Record { key: None, ..retry(RETRY_1, 2, SECOND) }]);
    rig.position(&lane, 3).await;
    assert_eq!(rig.handler.count(), 2);
}
