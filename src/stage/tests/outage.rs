//! The breaker: what is started while the target is down, what is not, and who is woken.

mod stops;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use tokio::time::Instant;

use super::ports::Fault;
use super::*;
use crate::ladder::brake::BrakeSettings;
use crate::ladder::breaker::BreakerSettings;
use crate::ladder::gate::OutageSettings;
use crate::stage::stats::PauseReason;

const BREAKER: BreakerSettings = BreakerSettings {
    consecutive_failures: 10,
    min_time: Duration::from_millis(100),
    slow_failures: 10,
    slow_time: Duration::from_secs(30),
    cool_down: Duration::from_secs(1),
    max_cool_down: Duration::from_secs(8),
};

fn breaker() -> Arc<Outage> {
    guard(OutageSettings { breaker: Some(BREAKER), brake: None })
}

fn guard(settings: OutageSettings) -> Arc<Outage> {
    Outage::new(&"orders".into(), settings, Arc::new(TestClock::new()))
}

fn paused(rig: &Rig, reason: PauseReason) -> bool {
    rig.stats().pauses.get(reason)
}

/// A target that is up or down, and takes 20 ms for each event.
#[derive(Default)]
struct Target {
    down: AtomicBool,
    failed: AtomicUsize,
    done: Mutex<Vec<(String, u32)>>,
}

impl Target {
    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    fn done(&self) -> usize {
        self.done.lock().unwrap().len()
    }

    fn script(self: &Arc<Self>) -> impl Fn(Event) -> BoxFuture<'static, Outcome> + Send + Sync + 'static {
        let target = Arc::clone(self);
        move |event| {
            let target = Arc::clone(&target);
            Box::pin(async move {
                tokio::time::sleep(MS * 20).await;
                if target.down.load(Ordering::Relaxed) {
                    target.failed.fetch_add(1, Ordering::Relaxed);
                    return fail(event).await;
                }
                target.done.lock().unwrap().push((event.id.to_string(), event.attempt));
                Outcome::Done
            })
        }
    }

    fn rig(self: &Arc<Self>, outage: &Arc<Outage>, stage: usize, concurrency: usize) -> Rig {
        Rig::behind(Some(outage), stage, |s| s.concurrency = concurrency, self.script())
    }
}

/// A target that is down, its breaker just open, and a lane with plenty of events.
async fn opened(events: i64) -> (Arc<Target>, Rig, LaneHandle) {
    let target = Arc::new(Target::default());
    target.set_down(true);
    let rig = target.rig(&breaker(), MAIN, 4);
    let lane = rig.lane(records(0..events));
    rig.until("it opens", || paused(&rig, PauseReason::Breaker)).await;
    (target, rig, lane)
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_minute_at_500_events_a_second_costs_the_breakers_window_and_no_event() {
    let target = Arc::new(Target::default());
    let outage =
        guard(OutageSettings { breaker: Some(BreakerSettings::default()), brake: Some(BrakeSettings::default()) });
    let stages: Vec<_> = (MAIN..=RETRY_2).map(|stage| target.rig(&outage, stage, 64)).collect();
    let lanes: Vec<_> = stages.iter().map(Rig::open).collect();
    let begun = Instant::now();
    let (mut sent, mut moved, mut starts_while_down) = (0, [0; 3], 0);
    let mut next = [0_i64; 3];
    while begun.elapsed() < SECOND * 120
        || lanes.iter().any(|lane| lane.state().in_flight() + lane.state().waiting() > 0)
    {
        assert!(begun.elapsed() < SECOND * 600, "it comes to an end");
        let (was_down, down) = (target.down.load(Ordering::Relaxed), (10..70).contains(&begun.elapsed().as_secs()));
        target.set_down(down);
        let executions = || stages.iter().map(|rig| rig.stats().executions.get()).sum::<u64>();
        if was_down && !down {
            starts_while_down = executions() - 500 * 10;
        }
        if begun.elapsed() < SECOND * 120 {
            lanes[MAIN].hand_over(records(sent..sent + 5));
            sent += 5;
        }
        // What is published goes to its topic.
        for stage in MAIN..=RETRY_2 {
            let published = stages[stage].producer.count();
            if moved[stage] == published {
                continue;
            }
            for out in stages[stage].producer.published().drain(moved[stage]..) {
                let to = (RETRY_1..=RETRY_2).find(|to| *stages[*to].ctx.rung().topic == *out.topic);
                let to = to.unwrap_or_else(|| {
                    panic!("a dead letter after {:?}: {}", begun.elapsed(), value_of(&out, "x-ladder-history"))
                });
                let record = Record {
                    partition: 0,
                    offset: next[to],
                    timestamp_ms: (START_MS + begun.elapsed().as_millis() as u64) as i64,
                    key: out.key,
                    value: out.value,
                    headers: out.headers,
                };
                next[to] += 1;
                lanes[to].hand_over(vec![record]);
            }
            moved[stage] = published;
        }
        tokio::time::sleep(MS * 10).await;
    }
    // The window: a second of events, what ran then, and the probes of a minute (1, 2, 4, 8, 16 and 30 s apart).
    let window = 500 + 50 + 64;
    assert!((500..=window + 8).contains(&target.failed()), "{} used an attempt", target.failed());
    assert!(starts_while_down <= (window + 8) as u64, "{starts_while_down} started in the outage");
    let mut done = target.done.lock().unwrap().clone();
    done.sort_unstable();
    let most = done.iter().map(|(_, attempt)| *attempt).max();
    assert!(most <= Some(3), "{most:?} attempts for one event");
    done.dedup_by(|a, b| a.0 == b.0);
    assert_eq!((done.len(), target.done()), (sent as usize, sent as usize), "each of them succeeds, once");
    let dead: u64 = stages.iter().map(|rig| rig.stats().dead_letters()).sum();
    assert_eq!(dead, 0);
    for rig in &stages {
        assert!(!paused(rig, PauseReason::Breaker));
        rig.is_at_rest();
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_is_open_nothing_starts_and_each_probe_is_one_event() {
    let (target, rig, lane) = opened(500).await;
    rig.pass(MS * 30).await; // those that ran
    let burnt = rig.handler.count();
    assert!(burnt <= 10 + 4 + 20, "{burnt}"); // 10 in a row, 4 at once for 100 ms at 20 ms each
    let first = burnt;
    // Probes after 1, 2, 4, 8, 8 s: 24 s have five.
    rig.pass(SECOND * 24).await;
    assert_eq!(rig.handler.count(), first + 5);
    assert_eq!((rig.stats().dead_letters(), target.failed()), (0, first + 5));
    assert!(paused(&rig, PauseReason::Breaker) && lane.position() == Some(first as i64 + 5));
}

#[tokio::test(start_paused = true)]
async fn after_the_outage_events_start_few_at_first() {
    let (target, rig, lane) = opened(500).await;
    rig.pass(MS * 30).await;
    let before = rig.handler.count();
    target.set_down(false);
    rig.position(&lane, 500).await;
    let times = rig.handler.times();
    let after: Vec<_> = times[before..].iter().map(|at| at.duration_since(times[before])).collect();
    let within = |ms: u32| after.iter().filter(|at| **at < MS * ms).count();
    // One for 20 ms, two for the next, then all four.
    assert_eq!((within(20), within(40)), (1, 3), "{:?}", &after[..8]);
    assert!(within(60) <= 7 && within(200) > 20, "{:?}", &after[..20]);
    assert!(!paused(&rig, PauseReason::Breaker));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn events_that_still_run_when_it_opens_neither_hold_the_probe_up_nor_count_for_it() {
    let target = Arc::new(Target::default());
    target.set_down(true);
    let script = target.script();
    let rig = Rig::behind(
        Some(&breaker()),
        MAIN,
        |s| s.concurrency = 4,
        move |event: Event| {
            if event.record.offset > 1 {
                return script(event);
            }
            // Two hang for 25 s, then fail late.
            Box::pin(async move {
                tokio::time::sleep(SECOND * 25).await;
                fail(event).await
            })
        },
    );
    let lane = rig.lane(records(0..100));
    rig.until("it opens", || paused(&rig, PauseReason::Breaker)).await;
    target.set_down(false);
    rig.until("it probes and goes on", || target.done() > 50).await;
    assert!(rig.clock.elapsed() < SECOND * 3 && rig.handler.running() >= 2, "{:?}", rig.clock.elapsed());
    rig.position(&lane, 100).await;
    assert!(!paused(&rig, PauseReason::Breaker));
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_never_ran_is_followed_by_the_next_at_once() {
    let (target, rig, lane) = opened(200).await;
    target.set_down(false);
    for n in 0..200 {
        // What waits has been finished elsewhere meanwhile, all but the last.
        if n < 199 && rig.stored(&format!("e{n}"), 0) == "-" {
            rig.store.records.set(&rig.ctx.keys.key(&format!("e{n}"), 0), "1", SECOND * 60);
        }
    }
    rig.until("the last is done", || target.done() == 1).await;
    assert!(rig.clock.elapsed() < SECOND * 2, "{:?}", rig.clock.elapsed());
    rig.position(&lane, 200).await;
    rig.is_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_stage_whose_events_always_fail_does_not_keep_another_from_being_tried() {
    let outage = breaker();
    let always = |event| -> BoxFuture<'static, Outcome> { Box::pin(fail(event)) };
    let bad = Rig::behind(Some(&outage), RETRY_2, |s| s.concurrency = 4, always);
    let target = Arc::new(Target::default());
    let main = target.rig(&outage, MAIN, 4);
    let lane = bad.open();
    for n in 0..60 {
        lane.hand_over(vec![retry(RETRY_2, n, Duration::ZERO)]);
        bad.pass(MS * 20).await;
    }
    assert!(paused(&main, PauseReason::Breaker), "all that ran failed");
    let healthy = main.lane(records(0..50));
    main.until("main goes on", || target.done() == 50).await;
    assert!(main.clock.elapsed() < SECOND * 20, "{:?}", main.clock.elapsed());
    main.position(&healthy, 50).await;
    bad.position(&lane, 60).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_dies_again_in_the_ramp_costs_the_breakers_window_though_another_stage_was_up() {
    let (outage, target) = (breaker(), Arc::new(Target::default()));
    target.set_down(true);
    let (main, retry_1) = (target.rig(&outage, MAIN, 4), target.rig(&outage, RETRY_1, 4));
    let _lane = main.lane(records(0..500));
    main.until("it opens", || paused(&main, PauseReason::Breaker)).await;
    // The probe is the one event of retry-1, which is idle from then on.
    outage.command("main", Some("a probe of retry-1"));
    main.pass(MS * 30).await;
    target.set_down(false);
    let other = retry_1.lane([retry(RETRY_1, 0, Duration::ZERO)]);
    retry_1.position(&other, 1).await;
    assert!(!paused(&main, PauseReason::Breaker));
    target.set_down(true);
    let before = target.failed();
    outage.command("main", None);
    main.until("it opens again", || paused(&main, PauseReason::Breaker)).await;
    main.pass(MS * 30).await; // those that ran
    let burnt = target.failed() - before;
    assert!((10..=10 + 4).contains(&burnt), "{burnt}");
}

#[tokio::test(start_paused = true)]
async fn a_fifth_of_failures_does_not_open_it() {
    let rig = Rig::behind(Some(&breaker()), MAIN, as_usual, |event| -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            tokio::time::sleep(MS * 20).await;
            if event.record.offset % 5 < 4 { fail(event).await } else { Outcome::Done }
        })
    });
    let lane = rig.lane(records(0..2_000));
    rig.until("a pause or the end", || paused(&rig, PauseReason::Breaker) || lane.position() == Some(2_000)).await;
    assert!(!paused(&rig, PauseReason::Breaker));
}

#[tokio::test(start_paused = true)]
async fn claims_under_way_when_the_breaker_opens_cost_no_attempt() {
    let target = Arc::new(Target::default());
    target.set_down(true);
    let rig = target.rig(&breaker(), MAIN, 20);
    // 10 failures over at least 100 ms open it.
    let first = rig.lane(records(0..1));
    rig.pass(MS * 100).await;
    first.hand_over(records(1..10));
    rig.until("nine run", || rig.handler.running() == 9).await;
    rig.store.fail(|f| f.claim = Fault::Slow(MS * 200));
    let second = rig.lane(records(100..110));
    rig.until("it opens", || paused(&rig, PauseReason::Breaker)).await;
    rig.pass(MS * 500).await;
    assert_eq!((rig.handler.count(), target.failed(), rig.stats().released.get()), (10, 10, 10));
    assert_eq!(rig.stored("e100", 0), "-");
    target.set_down(false);
    rig.store.all(Fault::None);
    rig.position(&second, 110).await;
    assert!(rig.handler.events()[10..].iter().all(|event| event.attempt == 1));
    rig.is_at_rest();
}

/// Real threads and real time: many openings and shuttings at random moments, and at the end everything was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_lane_sleeps_through_an_opening() {
    let quick = BreakerSettings {
        consecutive_failures: 3,
        min_time: Duration::ZERO,
        slow_failures: 3,
        slow_time: Duration::ZERO,
        cool_down: MS,
        max_cool_down: MS * 2,
    };
    let outage = guard(OutageSettings { breaker: Some(quick), brake: None });
    let opened = Arc::new(AtomicUsize::new(0));
    let rigs: Vec<_> = [MAIN, RETRY_1]
        .into_iter()
        .map(|stage| {
            let opened = Arc::clone(&opened);
            Rig::behind(
                Some(&outage),
                stage,
                |s| s.concurrency = 3,
                move |event: Event| {
                    // Every other hundred fails: the breaker opens again and again.
                    let fails = event.record.offset / 100 % 2 == 1;
                    opened.fetch_add(usize::from(fails), Ordering::Relaxed);
                    Box::pin(async move {
                        tokio::task::yield_now().await;
                        if fails { fail(event).await } else { Outcome::Done }
                    })
                },
            )
        })
        .collect();
    let mut lanes = Vec::new();
    for rig in &rigs {
        for n in 0..3 {
            let offsets = n * 1_000..n * 1_000 + 200;
            lanes.push(match rig.ctx.stage {
                MAIN => rig.lane(records(offsets)),
                stage => rig.lane(offsets.map(|n| retry(stage, n, Duration::ZERO)).collect::<Vec<_>>()),
            });
        }
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let begun = Instant::now();
    let finished =
        |lanes: &[LaneHandle]| lanes.iter().zip((0..3).cycle()).all(|(l, n)| l.position() == Some(n * 1_000 + 200));
    while !finished(&lanes) {
        let stage = if rng.bool() { "main" } else { "retry-1" };
        outage.command(stage, Some("now and then"));
        tokio::time::sleep(Duration::from_micros(rng.u64(0..1_500))).await;
        outage.command(stage, None);
        tokio::time::sleep(Duration::from_micros(rng.u64(0..3_000))).await;
        assert!(
            begun.elapsed() < SECOND * 100,
            "a lane sleeps: {:?}",
            lanes.iter().map(LaneHandle::position).collect::<Vec<_>>()
        );
        if begun.elapsed() > SECOND * 10 {
            // Commands wake everybody: without any, the openings alone have to.
            break;
        }
    }
    while !finished(&lanes) {
        tokio::time::sleep(MS * 10).await;
        assert!(
            begun.elapsed() < SECOND * 100,
            "a lane sleeps: {:?}",
            lanes.iter().map(LaneHandle::position).collect::<Vec<_>>()
        );
    }
    assert_eq!(opened.load(Ordering::Relaxed), 2 * 3 * 100);
    for rig in &rigs {
        rig.is_at_rest();
    }
}
