//! When events start, and how seldom a lane wakes for nothing.

use super::ports::Fault;
use super::*;
use crate::ladder::lane::Dedup;

/// Time from the start of the test to the n-th run.
fn started(rig: &Rig, n: usize) -> Duration {
    rig.clock.elapsed().saturating_sub(rig.handler.times()[n].elapsed())
}

#[tokio::test(start_paused = true)]
async fn an_event_starts_at_its_due_and_not_before() {
    let rig = Rig::new(RETRY_1, as_usual, done);
    let dues = [700, 3_000, 5_000, 2, 0].map(Duration::from_millis);
    let records: Vec<_> = (0..).zip(dues).map(|(offset, due)| retry(RETRY_1, offset, due)).collect();
    let lane = rig.lane(records);
    rig.position(&lane, 5).await;
    assert_eq!(rig.handler.ids(), ["e4", "e3", "e0", "e1", "e2"]);
    for (n, due) in [0, 2, 700, 3_000, 5_000].map(Duration::from_millis).into_iter().enumerate() {
        let late = started(&rig, n).checked_sub(due).expect("not early");
        assert!(late <= MS * 2, "{late:?} late for {due:?}");
    }
    assert_eq!((rig.stats().early.get(), rig.stats().lateness.count()), (0, 5));
    assert!(rig.stats().lateness.max() <= MS * 2);
}

#[tokio::test(start_paused = true)]
async fn lateness_counts_from_the_due_to_the_start() {
    let rig = Rig::new(
        RETRY_1,
        |s| s.concurrency = 1,
        |_| async {
            tokio::time::sleep(SECOND).await;
            Outcome::Done
        },
    );
    let lane = rig.lane([retry(RETRY_1, 0, SECOND), retry(RETRY_1, 1, SECOND)]);
    rig.position(&lane, 2).await;
    let max = rig.stats().lateness.max();
    assert!((SECOND..SECOND + MS * 5).contains(&max), "{max:?}");
}

#[tokio::test(start_paused = true)]
async fn on_main_nothing_waits_and_no_lateness_is_counted() {
    let rig = Rig::new(MAIN, as_usual, done);
    let lane = rig.lane(records(0..3));
    rig.position(&lane, 3).await;
    assert!(rig.clock.elapsed() < SECOND);
    assert_eq!(rig.stats().lateness.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_step_back_of_the_wall_clock_waiting_events_wait_on() {
    let rig = Rig::new(RETRY_1, as_usual, done);
    let lane = rig.lane([retry(RETRY_1, 0, SECOND * 5)]);
    rig.pass(SECOND * 4).await;
    rig.clock.step(-10);
    rig.position(&lane, 1).await;
    assert!((SECOND * 15..SECOND * 15 + MS * 2).contains(&started(&rig, 0)), "{:?}", started(&rig, 0));
    assert_eq!(rig.stats().early.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_step_back_of_the_wall_clock_events_that_were_due_are_not_started_early() {
    for dedup in [Dedup::Required, Dedup::BestEffort, Dedup::Off] {
        let rig = Rig::new(RETRY_1, |s| s.dedup = dedup, done);
        let all = rig.ctx.permits.try_acquire_many(4).unwrap();
        let lane = rig.lane([retry(RETRY_1, 0, SECOND)]);
        rig.pass(SECOND * 2).await;
        assert_eq!(lane.state().in_flight(), 1, "due, but there is no permit");
        rig.clock.step(-5);
        drop(all);
        rig.position(&lane, 1).await;
        assert!(started(&rig, 0) >= SECOND * 6, "{:?} with {dedup:?}", started(&rig, 0));
        assert_eq!(rig.stats().early.get(), 0);
        rig.is_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_back_while_the_claim_is_under_way_starts_nothing_early() {
    let rig = Rig::new(RETRY_1, as_usual, done);
    rig.store.fail(|f| f.claim = Fault::Slow(MS * 100));
    let lane = rig.lane([retry(RETRY_1, 0, SECOND)]);
    rig.pass(SECOND + MS * 50).await;
    assert_eq!(rig.store.calls("claim"), 1);
    rig.clock.step(-5);
    rig.position(&lane, 1).await;
    assert_eq!((rig.stats().early.get(), rig.handler.count()), (0, 1));
    assert!(started(&rig, 0) >= SECOND * 6, "{:?}", started(&rig, 0));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_step_forward_of_the_wall_clock_is_noticed_within_half_a_minute() {
    let rig = Rig::new(RETRY_2, as_usual, done);
    let lane = rig.lane([retry(RETRY_2, 0, SECOND * 59)]);
    rig.pass(SECOND).await;
    rig.clock.step(3_600);
    rig.position(&lane, 1).await;
    assert!(started(&rig, 0) <= SECOND * 31, "{:?}", started(&rig, 0));
}

/// How often the clock is read in ten minutes, after `time` to settle down.
async fn reads(rig: &Rig, time: Duration) -> u64 {
    rig.pass(time).await;
    let before = rig.clock.reads();
    rig.pass(SECOND * 600).await;
    rig.clock.reads() - before
}

/// A lane reads the clock a few times each time it wakes.
const READS_A_WAKE: u64 = 6;

#[tokio::test(start_paused = true)]
async fn an_idle_lane_wakes_twice_a_minute() {
    let rig = Rig::new(MAIN, as_usual, done);
    let lane = rig.lane(records(0..50));
    rig.position(&lane, 50).await;
    let reads = reads(&rig, SECOND * 60).await;
    assert!(reads <= 20 * READS_A_WAKE, "{reads} reads in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_waits_for_a_permit_does_not_spin_while_the_store_is_down() {
    for dedup in [Dedup::Required, Dedup::BestEffort] {
        let rig = Rig::new(MAIN, |s| s.dedup = dedup, |_| std::future::pending());
        rig.store.all(Fault::Down);
        let all = rig.ctx.permits.try_acquire_many(3).unwrap();
        // The one permit left finds out that the store is down; then somebody else takes it.
        let _lane = rig.lane(records(0..3));
        rig.pass(MS * 10).await;
        let last = rig.ctx.permits.try_acquire_many(rig.ctx.permits.available_permits() as u32).unwrap();
        let reads = reads(&rig, SECOND * 5).await;
        // With best effort the handlers run and overrun their deadline of 30 s; each end is a handful of wakes.
        assert!(reads <= 200 * READS_A_WAKE, "{reads} reads in ten minutes, {dedup:?}");
        drop((all, last));
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_one_probe_a_second_goes_out() {
    let rig = Rig::new(MAIN, as_usual, done);
    rig.store.all(Fault::Down);
    let _lane = rig.lane(records(0..100));
    rig.pass(SECOND * 60).await;
    let claims = rig.store.calls("claim");
    assert!((50..=62).contains(&claims), "{claims} probes in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_lane_with_a_window_full_of_waiting_events_has_room_again_at_half() {
    let rig = Rig::new(RETRY_1, |s| s.max_waiting = 4, done);
    let lane = rig.lane((0..3).map(|n| retry(RETRY_1, n, SECOND * (n as u32 + 1))).collect::<Vec<_>>());
    rig.pass(MS).await;
    assert!(lane.room() > 0);
    lane.hand_over(vec![retry(RETRY_1, 3, SECOND * 4)]);
    rig.pass(MS).await;
    assert!(lane.room() == 0);
    assert_eq!((lane.state().waiting(), lane.state().in_flight()), (4, 0));
    rig.position(&lane, 1).await;
    assert!(lane.room() == 0, "three of four");
    rig.position(&lane, 2).await;
    assert!(lane.room() > 0, "half empty");
    rig.position(&lane, 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_with_a_window_full_of_bytes_or_of_running_events_has_no_room() {
    let rig = Rig::new(RETRY_1, |s| s.max_waiting_bytes = 100_000, done);
    let large = Record { value: Some(vec![b'v'; 100_000].into()), ..retry(RETRY_1, 0, SECOND) };
    let lane = rig.lane([large]);
    rig.pass(MS).await;
    assert!(lane.room() == 0);
    rig.position(&lane, 1).await;
    assert!(lane.room() > 0);

    let rig = Rig::new(
        MAIN,
        |s| s.max_in_flight = 2,
        |_| async {
            tokio::time::sleep(SECOND).await;
            Outcome::Done
        },
    );
    let lane = rig.lane(records(0..2));
    rig.pass(MS).await;
    assert!(lane.room() == 0);
    rig.position(&lane, 2).await;
    assert!(lane.room() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_has_taken_nothing_in_yet_has_no_room_for_more() {
    let rig = Rig::new(MAIN, |s| s.max_in_flight = 10, done);
    let lane = rig.lane(records(0..21));
    assert!(lane.room() == 0, "nothing was taken in yet");
    rig.position(&lane, 21).await;
    assert!(lane.room() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_between_the_claim_and_the_start_starts_nothing_early() {
    let clock: Arc<std::sync::OnceLock<Arc<TestClock>>> = Arc::default();
    let rig = {
        let clock = Arc::clone(&clock);
        // The first of the round sets the clock back before the second is started.
        Rig::new(RETRY_1, as_usual, move |event: Event| {
            if event.record.offset == 0 && event.attempt == 2 {
                clock.get().unwrap().step(-10);
            }
            async { Outcome::Done }
        })
    };
    clock.set(Arc::clone(&rig.clock)).ok().unwrap();
    let lane = rig.lane([retry(RETRY_1, 0, SECOND), retry(RETRY_1, 1, SECOND)]);
    rig.position(&lane, 2).await;
    let times = rig.handler.times();
    assert!(times[1] - times[0] >= SECOND * 10, "{:?}", times[1] - times[0]);
    assert_eq!((rig.handler.count(), rig.stats().early.get()), (2, 0));
    rig.is_at_rest();
}
