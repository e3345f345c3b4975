//! The brake and pauses by command: what stops, what goes on, and what releases it.

use super::*;
use crate::stage::context::Tombstones;

#[tokio::test(start_paused = true)]
async fn the_rung_that_only_looks_at_dead_letters_is_stopped_by_command_alone() {
    let outage = breaker();
    let (_target, main) = {
        let target = Arc::new(Target::default());
        target.set_down(true);
        let rig = target.rig(&outage, MAIN, 4);
        (target, rig)
    };
    let _lane = main.lane(records(0..200));
    main.until("it opens", || paused(&main, PauseReason::Breaker)).await;
    let dlq =
        Rig::behind(Some(&outage), DLQ, as_usual, |event| -> BoxFuture<'static, Outcome> { Box::pin(done(event)) });
    let lane = dlq.lane([retry(DLQ, 0, Duration::ZERO)]);
    dlq.position(&lane, 1).await;
    assert!(!paused(&dlq, PauseReason::Breaker));
    outage.command("dlq", Some("a look"));
    lane.hand_over(vec![retry(DLQ, 1, Duration::ZERO)]);
    dlq.pass(SECOND * 60).await;
    assert_eq!((lane.position(), paused(&dlq, PauseReason::Command)), (Some(1), true));
    outage.command("dlq", None);
    dlq.position(&lane, 2).await;
}

#[tokio::test(start_paused = true)]
async fn too_many_dead_letters_stop_the_pipeline_until_one_event_succeeds() {
    let brake = BrakeSettings { min_events: 100, ..BrakeSettings::default() };
    let outage = guard(OutageSettings { breaker: None, brake: Some(brake) });
    let good = Arc::new(AtomicBool::new(false));
    let rig = {
        let good = Arc::clone(&good);
        Rig::behind(Some(&outage), MAIN, as_usual, move |_| -> BoxFuture<'static, Outcome> {
            let outcome = match good.load(Ordering::Relaxed) {
                true => Outcome::Done,
                false => Outcome::Failed(Failure::permanent("a bug")),
            };
            Box::pin(async move {
                tokio::time::sleep(MS * 20).await;
                outcome
            })
        })
    };
    let lane = rig.lane(records(0..500));
    rig.until("it stops", || paused(&rig, PauseReason::Brake)).await;
    rig.pass(SECOND * 290).await;
    let dead = rig.stats().dead_letters();
    assert!((100..=104).contains(&dead), "{dead}: the least that is judged, and what ran then");
    // One is tried after 5 min, and dies: 10 min. The next succeeds.
    rig.pass(SECOND * 11).await;
    assert_eq!(rig.stats().dead_letters(), dead + 1);
    good.store(true, Ordering::Relaxed);
    rig.pass(SECOND * 590).await;
    assert!(paused(&rig, PauseReason::Brake) && rig.stats().done.get() == 0);
    rig.position(&lane, 500).await;
    assert_eq!(rig.stats().done.get() + rig.stats().dead_letters(), 500);
    assert!(!paused(&rig, PauseReason::Brake) && rig.stats().dead_letters() == dead + 1);
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_that_is_skipped_does_not_release_the_brake() {
    let brake = BrakeSettings { min_events: 50, ..BrakeSettings::default() };
    let outage = guard(OutageSettings { breaker: None, brake: Some(brake) });
    let bad = |_| -> BoxFuture<'static, Outcome> { Box::pin(async { Outcome::Failed(Failure::permanent("a bug")) }) };
    let rig = Rig::behind(Some(&outage), MAIN, |s| s.tombstones = Tombstones::Skip, bad);
    let lane = rig.lane(records(0..50));
    rig.until("it stops", || paused(&rig, PauseReason::Brake)).await;
    rig.position(&lane, 50).await;
    // After 5 min the tombstones are skipped one by one, then an event is tried, dies, and the rest waits on.
    lane.hand_over((50..70).map(|n| Record { value: None, ..record(n) }).collect());
    lane.hand_over(records(70..100));
    rig.pass(SECOND * 301).await;
    assert_eq!((lane.position(), rig.handler.count()), (Some(71), 51));
    assert!(paused(&rig, PauseReason::Brake));
}

#[tokio::test(start_paused = true)]
async fn a_resume_by_command_releases_the_brake_and_probes_the_target_at_once() {
    let brake = BrakeSettings { min_events: 50, ..BrakeSettings::default() };
    let outage = guard(OutageSettings { breaker: Some(BREAKER), brake: Some(brake) });
    let bad = |_| -> BoxFuture<'static, Outcome> { Box::pin(async { Outcome::Failed(Failure::permanent("a bug")) }) };
    let rig = Rig::behind(Some(&outage), MAIN, as_usual, bad);
    let lane = rig.lane(records(0..60));
    rig.until("it stops", || paused(&rig, PauseReason::Brake)).await;
    outage.command("main", None);
    rig.position(&lane, 60).await;
    assert!(rig.clock.elapsed() < SECOND && !paused(&rig, PauseReason::Brake));

    let (target, rig, lane) = opened(100).await;
    rig.pass(SECOND * 8).await;
    target.set_down(false);
    let at = rig.clock.elapsed();
    rig.ctx.gate.outage().command("main", None);
    rig.position(&lane, 100).await;
    assert!(rig.clock.elapsed() - at < SECOND * 2, "{:?}", rig.clock.elapsed() - at);
}

#[tokio::test(start_paused = true)]
async fn a_pause_by_command_lets_what_runs_finish_and_keeps_what_waits() {
    let rig = Rig::new(MAIN, as_usual, |event| async move {
        tokio::time::sleep(SECOND * 28).await;
        if event.record.offset == 1 { fail(event).await } else { Outcome::Done }
    });
    let lane = rig.lane(records(0..10));
    rig.until("four run", || rig.handler.running() == 4).await;
    rig.ctx.gate.outage().command("main", Some("deploy"));
    rig.pass(SECOND * 100).await;
    // Nearly twice the lease of 15 s: renewed, published, settled, committed.
    assert!(rig.store.calls("renew") >= 2 && rig.handler.cancelled() == 0);
    assert_eq!((rig.handler.count(), rig.producer.count(), lane.position()), (4, 1, Some(4)));
    assert_eq!(
        (rig.stored("e0", 0).as_str(), rig.stored("e1", 0).as_str(), rig.stored("e4", 0).as_str()),
        ("1", "F", "-")
    );
    assert_eq!(lane.state().in_flight(), 6);
    let view = rig.stage.look().await[0].1;
    assert_eq!((view.overdue, view.in_flight), (6, 0), "overdue is what they are");
    let reads = rig.clock.reads();
    rig.pass(SECOND * 20).await;
    assert!(rig.clock.reads() - reads < 20, "nobody polls a shut gate");
    rig.ctx.gate.outage().command("main", None);
    rig.position(&lane, 10).await;
    assert!(!paused(&rig, PauseReason::Command));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_granted_after_the_pause_is_given_back_and_its_event_starts_after_the_resume() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.fail(|f| f.claim = Fault::Slow(SECOND));
    let lane = rig.lane(records(0..3));
    rig.until("the claims are sent", || rig.store.calls("claim") == 1).await;
    rig.ctx.gate.outage().command("main", Some("deploy"));
    rig.pass(SECOND * 5).await;
    assert_eq!((rig.handler.count(), rig.store.records.len()), (0, 0));
    assert_eq!((rig.stats().released.get(), rig.stats().executions.get()), (3, 0));
    rig.store.all(Fault::None);
    let at = rig.clock.elapsed();
    rig.ctx.gate.outage().command("main", None);
    rig.position(&lane, 3).await;
    assert!(rig.clock.elapsed() - at < MS * 100, "it is not parked");
    assert!(rig.handler.count() == 3 && rig.handler.events().iter().all(|event| event.attempt == 1));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_starts_while_it_is_paused_starts_nothing() {
    let outage = breaker();
    outage.command("main", Some("deploy"));
    outage.command("retry-1", Some("deploy"));
    outage.command("retry-1", None);
    let target = Arc::new(Target::default());
    let (main, retry_1) = (target.rig(&outage, MAIN, 4), target.rig(&outage, RETRY_1, 4));
    let lane = main.lane(records(0..10));
    let other = retry_1.lane([retry(RETRY_1, 0, Duration::ZERO)]);
    retry_1.position(&other, 1).await;
    main.pass(SECOND * 60).await;
    assert_eq!((main.handler.count(), paused(&main, PauseReason::Command)), (0, true));
    assert!(!paused(&retry_1, PauseReason::Command));
    outage.command("main", None);
    main.position(&lane, 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_or_a_stop_while_paused_ends_the_lane_and_the_next_owner_starts_what_waited() {
    for reason in [PauseReason::Command, PauseReason::Breaker] {
        for command in [|| LaneCommand::Drain, || LaneCommand::Stop] {
            let (target, rig, mut lane) = opened(200).await;
            if reason == PauseReason::Command {
                target.set_down(false);
                rig.ctx.gate.outage().command("main", Some("deploy"));
            }
            rig.pass(MS * 100).await;
            let position = lane.position().unwrap();
            lane.command(command());
            rig.ended(&mut lane).await;
            rig.is_at_rest();
            assert!(lane.position() == Some(position) && position < 200, "{reason:?} {position}");
            // The partition comes back; still nothing starts before the gate opens.
            let count = rig.handler.count();
            let again = rig.lane(records(position..200));
            rig.pass(MS * 500).await;
            assert_eq!(rig.handler.count(), count, "{reason:?}");
            target.set_down(false);
            rig.ctx.gate.outage().command("main", None);
            rig.position(&again, 200).await;
            rig.is_at_rest();
        }
    }
}
