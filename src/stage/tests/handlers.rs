//! Handlers that misbehave: they panic, overrun, never yield, fall apart when they are dropped.

use super::ports::Fault;
use super::*;

/// Runs one event; the error that it moved on with.
async fn error_of(rig: &Rig) -> String {
    let lane = rig.lane(records(0..1));
    rig.position(&lane, 1).await;
    rig.is_at_rest();
    let out = &rig.producer.published()[0];
    assert_eq!((&*out.topic, rig.stored("e0", 0).as_str()), ("orders.billing.retry-1", "F"));
    // The stage goes on.
    lane.hand_over(records(1..9));
    rig.position(&lane, 9).await;
    rig.is_at_rest();
    value_of(out, "x-ladder-error").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_transient_failure_with_its_message() {
    let rig = Rig::new(MAIN, as_usual, |event| async move {
        once_more().await;
        panic!("bang {}", event.record.offset)
    });
    assert_eq!(error_of(&rig).await, "transient: handler panicked: bang 0");
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_there_is_a_future_is_one_too() {
    let rig = Rig::with_handler(MAIN, as_usual, |_| panic!("bang"));
    let lane = rig.lane(records(0..3));
    rig.position(&lane, 3).await;
    assert_eq!(rig.ctx.permits.available_permits(), 4);
    assert_eq!(rig.stats().running.load(Ordering::Relaxed), 0);
    for out in rig.producer.published() {
        assert_eq!(value_of(&out, "x-ladder-error"), "transient: handler panicked: bang");
    }
    assert_eq!(rig.producer.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_panic_without_a_text_is_one_too() {
    let rig = Rig::new(MAIN, as_usual, |_| async { std::panic::panic_any(7) });
    assert_eq!(error_of(&rig).await, "transient: handler panicked: (no message)");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_overruns_is_cancelled_at_its_deadline() {
    let rig = Rig::new(MAIN, |s| s.handler_timeout = SECOND * 40, |_| std::future::pending());
    assert_eq!(error_of(&rig).await, "transient: handler overran its deadline of 40s and was cancelled");
    assert_eq!(rig.handler.cancelled(), 9);
    let (elapsed, expected) = (rig.clock.elapsed(), SECOND * 40 * 3);
    assert!((expected..expected + SECOND).contains(&elapsed), "one, then eight on four permits: {elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_wakes_itself_for_ever_is_cancelled_too() {
    let rig = Rig::new(
        MAIN,
        |s| s.handler_timeout = SECOND,
        |_| async {
            loop {
                tokio::time::advance(MS).await;
                once_more().await;
            }
        },
    );
    let lane = rig.lane(records(0..1));
    rig.position(&lane, 1).await;
    assert!(value_of(&rig.producer.published()[0], "x-ladder-error").contains("overran"));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_blocks_past_its_lease_publishes_nothing_and_its_neighbours_are_not_started_without_one() {
    let rig = Rig::new(MAIN, as_usual, |event| {
        let blocks = event.record.offset == 0 && event.fence == START_MS;
        async move {
            if blocks {
                // As a blocked thread: time goes by and nobody else gets to run.
                let mut advance = std::pin::pin!(tokio::time::advance(SECOND * 16));
                while futures::FutureExt::now_or_never(&mut advance).is_none() {}
            }
            if event.record.offset == 0 { fail(event).await } else { Outcome::Done }
        }
    });
    let lane = rig.lane(records(0..3));
    rig.position(&lane, 3).await;
    rig.is_at_rest();
    assert_eq!(rig.producer.count(), 1, "published by the second run alone");
    let mut ids = rig.handler.ids();
    ids.sort();
    assert_eq!(ids, ["e0", "e0", "e1", "e2"], "the others ran once, with a lease of their own");
}

/// Panics when it is dropped.
struct Fragile;

impl Drop for Fragile {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in the destructor");
        }
    }
}

fn fragile_at_first() -> impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync {
    |event| {
        Box::pin(async move {
            if event.record.offset == 0 && event.fence == START_MS {
                let _fragile = Fragile;
                std::future::pending::<()>().await;
            }
            Outcome::Done
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_while_it_is_cancelled_takes_nothing_with_it() {
    // At its deadline.
    let rig = Rig::with_handler(MAIN, |s| s.handler_timeout = SECOND, fragile_at_first());
    let lane = rig.lane(records(0..2));
    rig.position(&lane, 2).await;
    assert_eq!(rig.ctx.permits.available_permits(), 4);
    // When its lease is lost.
    let rig = Rig::with_handler(MAIN, as_usual, fragile_at_first());
    rig.store.fail(|f| f.renew = Fault::Down);
    let lane = rig.lane(records(0..2));
    rig.position(&lane, 2).await;
    assert_eq!(rig.ctx.permits.available_permits(), 4);
    // When the lane is stopped.
    let rig = Rig::with_handler(MAIN, as_usual, fragile_at_first());
    let mut lane = rig.lane(records(0..2));
    rig.until("it runs", || rig.handler.running() == 1).await;
    lane.command(LaneCommand::Stop);
    rig.ended(&mut lane).await;
    assert_eq!(rig.ctx.permits.available_permits(), 4);
    assert_eq!(lane.position(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_only_looks_is_shown_what_cannot_be_read() {
    let rig = Rig::new(MAIN, |s| s.decode = false, done);
    let lane = rig.lane([Record { value: Some("bad".into()), ..record(0) }]);
    rig.until("it is done", || lane.position() == Some(1)).await;
    assert_eq!((rig.handler.count(), rig.producer.count()), (1, 0));
}
