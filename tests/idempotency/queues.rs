//! The queues of `order: ladder`: Redis' scripts, the memory store and the pure queue give the same answers.

use std::sync::Arc;
use std::time::Duration;

use retry_ladder::ladder::sequence::{Place, Queue, Turn};

use crate::stores::Subject;

const LONG: Duration = Duration::from_secs(3_600);
/// Short enough to be waited for.
const BLINK: Duration = Duration::from_millis(30);
const ROOM: usize = 4;

fn place(queue: &str, offset: i64) -> Place {
    Place { queue: Arc::from(format!("idem:order:g:t:0:{queue}")), offset }
}

async fn turn(s: &impl Subject, queue: &str, offset: i64) -> (Turn, u64) {
    let reply = s.store().turns(vec![place(queue, offset)], ROOM).await.remove(0).unwrap();
    (reply.turn, reply.lapsed)
}

async fn join(s: &impl Subject, queue: &str, offset: i64, good_for: Duration) {
    s.store().join(vec![(place(queue, offset), good_for)]).await.remove(0).unwrap();
}

async fn leave(s: &impl Subject, queue: &str, offset: i64) {
    s.store().leave(vec![place(queue, offset)]).await.remove(0).unwrap();
}

pub(crate) async fn the_lowest_place_goes_first_and_the_others_are_behind_it(s: &impl Subject) {
    assert_eq!(turn(s, "k", 7).await, (Turn::Free, 0), "a key without a queue");
    for offset in [12, 7, 9_007_199_254_740_000] {
        join(s, "k", offset, LONG).await;
        join(s, "k", offset, LONG).await;
    }
    assert_eq!(turn(s, "k", 3).await, (Turn::Free, 0), "before all of them");
    assert_eq!(turn(s, "k", 7).await, (Turn::First, 0));
    assert_eq!(turn(s, "k", 12).await, (Turn::Behind(7), 0));
    assert_eq!(turn(s, "other", 12).await, (Turn::Free, 0), "another key");
    leave(s, "k", 7).await;
    leave(s, "k", 7).await;
    leave(s, "never", 7).await;
    assert_eq!(turn(s, "k", 12).await, (Turn::First, 0));
    leave(s, "k", 12).await;
    assert_eq!(turn(s, "k", 9_007_199_254_740_001).await, (Turn::Behind(9_007_199_254_740_000), 0), "exact");
}

pub(crate) async fn a_full_queue_takes_nobody_new(s: &impl Subject) {
    for offset in 0..ROOM as i64 {
        join(s, "k", offset, LONG).await;
    }
    assert_eq!(turn(s, "k", 3).await, (Turn::Behind(0), 0), "it has its place");
    assert_eq!(turn(s, "k", 9).await, (Turn::Full(0), 0));
    leave(s, "k", 2).await;
    assert_eq!(turn(s, "k", 9).await, (Turn::Behind(0), 0));
}

pub(crate) async fn a_place_that_is_not_renewed_lapses_and_is_told_once(s: &impl Subject) {
    join(s, "k", 1, BLINK).await;
    join(s, "k", 2, BLINK).await;
    join(s, "k", 2, LONG).await;
    assert_eq!(turn(s, "k", 3).await.0, Turn::Behind(1));
    s.pass(BLINK).await;
    assert_eq!(turn(s, "k", 1).await, (Turn::First, 0), "who comes late finds its own place");
    assert_eq!(turn(s, "k", 3).await, (Turn::Behind(2), 1), "the renewed one is good");
    assert_eq!(turn(s, "k", 3).await, (Turn::Behind(2), 0));
    assert_eq!(turn(s, "k", 2).await, (Turn::First, 0));
}

/// The same calls to the store and to the pure queue; time stands still.
pub(crate) async fn a_store_answers_as_the_pure_queue_does(s: &impl Subject) {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut pure = Queue::default();
    for n in 0..300 {
        let offset = rng.i64(0..7);
        match rng.u8(..4) {
            0 => {
                let good_for = if rng.bool() { LONG } else { Duration::ZERO };
                // Zero is a millisecond to Redis.
                join(s, "k", offset, good_for).await;
                s.pass(Duration::from_millis(2)).await;
                pure.join(offset, good_for);
            }
            1 => {
                leave(s, "k", offset).await;
                pure.leave(offset);
            }
            _ => {
                let expected = pure.turn(offset, Duration::from_millis(1), ROOM);
                assert_eq!(turn(s, "k", offset).await, (expected.turn, expected.lapsed), "call {n}, offset {offset}");
            }
        }
    }
}

pub(crate) async fn a_batch_of_places_answers_in_order(s: &impl Subject) {
    let places = |step| (0..200).step_by(step).map(|n| place(&format!("k{n}"), 5)).collect::<Vec<_>>();
    let joins = places(2).into_iter().map(|place| (place, LONG)).collect();
    assert!(s.store().join(joins).await.iter().all(Result::is_ok));
    let turns: Vec<_> = s.store().turns(places(1), ROOM).await.into_iter().map(|turn| turn.unwrap().turn).collect();
    assert_eq!(turns.len(), 200);
    let expected = |n: usize| if n.is_multiple_of(2) { Turn::First } else { Turn::Free };
    assert!(turns.iter().enumerate().all(|(n, turn)| *turn == expected(n)), "{turns:?}");
    assert!(s.store().leave(places(1)).await.iter().all(Result::is_ok));
    let turns = s.store().turns(places(2), ROOM).await;
    assert!(turns.into_iter().all(|turn| turn.unwrap().turn == Turn::Free));
}
