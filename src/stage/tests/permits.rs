//! The limit on handlers, and that no way out of the lane keeps a permit.

use super::ports::Fault;
use super::*;
use crate::ladder::lane::Dedup;

async fn slow(_: Event) -> Outcome {
    tokio::time::sleep(MS * 10).await;
    Outcome::Done
}

#[tokio::test(start_paused = true)]
async fn all_lanes_of_a_stage_share_one_limit_and_use_it_up() {
    let rig = Rig::new(MAIN, |s| s.concurrency = 3, slow);
    let lanes: Vec<_> = (0..4).map(|_| rig.open()).collect();
    for (lane, n) in lanes.iter().zip(0..) {
        lane.hand_over(records(n * 100..n * 100 + 20));
    }
    for (lane, n) in lanes.iter().zip(0..) {
        rig.position(lane, n * 100 + 20).await;
    }
    assert_eq!((rig.handler.count(), rig.handler.most()), (80, 3));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn no_lane_starves_while_another_has_a_backlog() {
    let rig = Rig::new(MAIN, |s| s.concurrency = 1, slow);
    let long = rig.lane(records(0..500));
    rig.pass(MS * 50).await;
    let short = rig.lane([record(1_000)]);
    rig.position(&short, 1_001).await;
    assert!(long.position() < Some(100), "{:?}", long.position());
}

/// Something happens to one event; afterwards everything is at rest, and the permits are still good for 40 others.
async fn check<F>(
    what: &str,
    tune: impl FnOnce(&mut StageSettings),
    sent: Record,
    script: impl Fn(Event) -> F + Send + Sync + 'static,
    meanwhile: impl AsyncFnOnce(&Rig),
) where
    F: Future<Output = Outcome> + Send + 'static,
{
    let script = Arc::new(script);
    let rig = Rig::new(MAIN, tune, move |event: Event| {
        let script = Arc::clone(&script);
        // Only the first run of the first event is special.
        async move { if event.record.offset == 0 { script(event).await } else { slow(event).await } }
    });
    let mut lane = rig.lane([sent]);
    meanwhile(&rig).await;
    rig.until(what, || lane.position() == Some(1)).await;
    rig.is_at_rest();
    lane.hand_over(records(1..41));
    rig.until(what, || lane.position() == Some(41)).await;
    assert_eq!(rig.handler.most(), 4, "{what}");
    rig.drain(&mut lane).await;
}

#[tokio::test(start_paused = true)]
async fn no_way_out_of_the_lane_keeps_a_permit() {
    let plain = || record(0);
    let nothing = async |_: &Rig| {};
    let first = |then: Outcome, after: Outcome| {
        let runs = std::sync::atomic::AtomicUsize::new(0);
        move |_: Event| {
            let outcome = if runs.fetch_add(1, Ordering::Relaxed) == 0 { then.clone() } else { after.clone() };
            async move { outcome }
        }
    };
    check("done", as_usual, plain(), done, nothing).await;
    check("failed", as_usual, plain(), fail, nothing).await;
    check("poison", as_usual, Record { value: Some("bad".into()), ..plain() }, done, nothing).await;
    check("without deduplication", |s| s.dedup = Dedup::Off, plain(), done, nothing).await;
    check("fenced", as_usual, plain(), first(Outcome::Fenced, Outcome::Done), nothing).await;
    check("panic", as_usual, plain(), |_| async { panic!("bang") }, nothing).await;
    check("overrun", |s| s.handler_timeout = SECOND, plain(), |_| std::future::pending(), nothing).await;
    check("busy", as_usual, plain(), done, async |rig| rig.hold_elsewhere("e0", 0, SECOND * 20)).await;
    check("corrupt", as_usual, plain(), done, async |rig| {
        rig.store.records.set(&rig.ctx.keys.key("e0", 0), "what", SECOND * 20);
    })
    .await;
    check("known", as_usual, plain(), done, async |rig| {
        rig.store.records.set(&rig.ctx.keys.key("e0", 0), "F", SECOND * 20);
    })
    .await;
    check("store down", as_usual, plain(), done, async |rig| {
        rig.store.all(Fault::Down);
        rig.pass(SECOND * 30).await;
        rig.store.all(Fault::None);
    })
    .await;
    check("reply of the claim lost", as_usual, plain(), done, async |rig| {
        rig.store.fail(|f| f.claim = Fault::Lost);
        rig.pass(MS * 10).await;
        rig.store.all(Fault::None);
    })
    .await;
    check("renewal fails after a lost reply", as_usual, plain(), done, async |rig| {
        rig.store.fail(|f| (f.claim, f.renew) = (Fault::Lost, Fault::Down));
        rig.pass(MS * 10).await;
        rig.store.fail(|f| f.claim = Fault::None);
        rig.pass(SECOND * 5).await;
        rig.store.all(Fault::None);
    })
    .await;
    check("lease lost", as_usual, plain(), slowly_at_first(), async |rig| {
        rig.until("it runs", || rig.handler.running() == 1).await;
        rig.store.records.remove(&rig.ctx.keys.key("e0", 0));
    })
    .await;
    check("claim answered after its lease", as_usual, plain(), done, async |rig| {
        rig.store.fail(|f| f.claim = Fault::Slow(SECOND * 16));
        rig.pass(SECOND).await;
        rig.store.all(Fault::None);
    })
    .await;
}

/// A minute at the first run.
fn slowly_at_first() -> impl Fn(Event) -> futures::future::BoxFuture<'static, Outcome> {
    let runs = std::sync::atomic::AtomicUsize::new(0);
    move |_| {
        let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            if first {
                tokio::time::sleep(SECOND * 20).await;
            }
            Outcome::Done
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_stopped_gives_all_its_permits_back() {
    // Running, claiming, waiting for a permit, with the producer, settling: whatever it is, it is cut off.
    for fault in [
        |f: &mut super::ports::Faults| f.claim = Fault::Slow(SECOND * 9),
        |f: &mut super::ports::Faults| f.settle = Fault::Slow(SECOND * 9),
        |f: &mut super::ports::Faults| f.claim = Fault::Down,
        |f: &mut super::ports::Faults| f.claim = Fault::Lost,
        |_: &mut super::ports::Faults| {},
    ] {
        for time in [MS, SECOND * 2, SECOND * 8] {
            let rig = Rig::new(MAIN, as_usual, |event| async move {
                if event.record.offset % 2 == 0 { std::future::pending().await } else { Outcome::Done }
            });
            rig.store.fail(fault);
            let mut lane = rig.lane(records(0..20));
            rig.pass(time).await;
            lane.command(LaneCommand::Stop);
            lane.wait_ended().await;
            rig.is_at_rest();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn permits_that_come_free_in_the_very_round_of_a_stop_are_not_lost() {
    let rig = Rig::new(MAIN, as_usual, |_| std::future::pending());
    let mut lane = rig.lane(records(0..3));
    rig.until("they run", || rig.handler.running() == 3).await;
    // Renewals fail, so that the leases end at this very instant; the drain's step sees it before the stop does.
    rig.store.fail(|f| f.renew = Fault::Down);
    let end = SECOND * 15 - rig.clock.elapsed().saturating_sub(MS);
    tokio::time::sleep(end - MS * 2).await;
    while rig.clock.elapsed() < SECOND * 15 - MS {
        tokio::time::sleep(MS).await;
    }
    tokio::time::advance(MS * 2).await;
    lane.command(LaneCommand::Drain);
    lane.command(LaneCommand::Stop);
    lane.wait_ended().await;
    rig.is_at_rest();
}
