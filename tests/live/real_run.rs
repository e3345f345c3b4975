//! The real run: ten thousand events through the five stages as seven processes on a real Kafka and a real Redis, one
//! process of each stage killed and restarted on the way. Judged from the outside: by the HTTP server that the handlers
//! call, and by reading every topic back without our codec.
//!
//! Reading order: `plan` (what is produced and what has to come of it), `workers`, `observer`, `topics` (the actors),
//! `evidence`, `records`, `figures`, `marks` (the judgement), `bites` (whether the judgement would notice).

mod bites;
mod evidence;
mod figures;
mod marks;
mod observer;
mod plan;
mod records;
mod topics;
mod workers;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use evidence::{Evidence, Faults};
use figures::Figures;
use observer::Observer;
use plan::{EVENTS, Plan};
use topics::{Group, PARTITIONS, Reader, produce};
use workers::{Workers, stage_name};

use crate::support::{brokers, unique};

/// Handlers in flight per stage and process.
const CONCURRENCY: usize = 64;
const SESSION: Duration = Duration::from_secs(6);
const LEASE: Duration = Duration::from_secs(10);
const PER_SECOND: f64 = 1_000.0;
/// Limits for machines that are busy with other things, not expectations: for a condition, and without any event.
const PATIENCE: Duration = Duration::from_secs(120);
const STILL: Duration = Duration::from_secs(60);

fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| {
        panic!(
            "REDIS_URL is not set: this test needs a real Redis; start one with `scripts/services up`, \
             then set REDIS_URL=redis://localhost:6379/0"
        )
    })
}

/// Waits for a condition.
///
/// # Panics
/// When it does not come true in time.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Names of this run.
struct Names {
    topic: String,
    group: String,
    prefix: String,
}

impl Names {
    fn topic(&self, stage: usize) -> String {
        if stage == 0 { self.topic.clone() } else { format!("{}.{}.{}", self.topic, self.group, stage_name(stage)) }
    }

    fn group(&self, stage: usize) -> String {
        if stage == 0 { self.group.clone() } else { format!("{}.{}", self.group, stage_name(stage)) }
    }

    /// The configuration of a process that calls `url`.
    fn config(&self, url: &str) -> String {
        let Names { topic, group, prefix } = self;
        format!(
            "kafka: {{ brokers: '{brokers}', session_timeout: {SESSION:?} }}
redis: {{ url: '{redis}', prefix: {prefix} }}
pipelines:
  orders:
    topic: {topic}
    group: {group}
    message: shop.v1.OrderPlaced
    partitions: {PARTITIONS}
    retries: [ {{ delay: 1s }}, {{ delay: 2s }}, {{ delay: 4s }} ]
    concurrency: {CONCURRENCY}
    idempotency: {{ store: redis, lease: {LEASE:?} }}
    handler: {{ http: {{ url: '{url}', timeout: 2s, body: protobuf }} }}
",
            brokers = brokers(),
            redis = redis_url(),
        )
    }
}

#[test]
fn ten_thousand_events_survive_a_kill_of_every_stage() {
    let plan = Plan::new();
    let name = unique("real-run");
    let names = Names { group: format!("{name}-billing"), prefix: name.clone(), topic: name };
    let observer = Observer::start();
    let config = {
        let names = Names { topic: names.topic.clone(), group: names.group.clone(), prefix: names.prefix.clone() };
        move |url: &str| names.config(url)
    };
    let mut workers = Workers::new(config);
    workers.create_topics();
    let members = [2, 2, 1, 1, 1];
    for (stage, members) in members.into_iter().enumerate() {
        for name in (0..members).map(|n| format!("{}{}", stage_name(stage), ["-a", "-b"][n])) {
            workers.start(stage, &name, &observer.url(&name));
        }
    }
    let groups = [0, 1, 2, 3, 4].map(|stage| Group::new(&names.group(stage), &names.topic(stage)));
    wait_until("every process is a member of its group", || {
        workers.assert_running();
        groups.iter().zip(members).all(|(group, members)| group.is_stable_with(members))
    });

    let begun = Instant::now();
    let mut faults = Faults::default();
    let dead = std::thread::scope(|scope| {
        let producer = scope.spawn(|| produce(&plan, &names.topic, PER_SECOND));
        let dead = run(&plan, &observer, &mut workers, &names, &mut faults);
        producer.join().expect("produced");
        dead
    });
    // Down the ladder: a stage that has nothing left puts nothing on the next.
    for (group, stage) in groups.iter().zip(0..) {
        wait_until(&format!("{} has committed everything", stage_name(stage)), || {
            workers.assert_running();
            group.lag() == 0
        });
    }
    let wall = begun.elapsed();

    faults.0.extend(workers.stop(Duration::from_secs(30)));
    let dlq_logs: String = workers.ever_of_stage(4).iter().map(|name| workers.read_log(name)).collect();
    faults.unless(dlq_logs.contains("dead letters"), || "the dlq stage logged no dead letters".into());

    let read = |stage: usize| Reader::new(&names.topic(stage)).into_records();
    let evidence = Evidence {
        plan: &plan,
        group: names.group.clone(),
        target: observer.target(),
        requests: observer.look(<[_]>::to_vec),
        kills: workers.kills().to_vec(),
        main: read(0),
        retries: [Vec::new(), read(1), read(2), read(3)],
        dlq: read(4),
    };
    let mut figures = judge(&evidence, &mut faults);
    figures.wall = wall;
    marks::check(&redis_url(), &names.prefix, &figures, &mut faults);
    faults.unless(dead == evidence.dead().len(), || format!("{dead} dead letters seen on the way, then others"));
    for stage in [0, 1] {
        let busy = figures.by_process.keys().filter(|name| name.starts_with(&stage_name(stage))).count();
        faults.unless(busy >= 2, || format!("{busy} processes of {} did all the work", stage_name(stage)));
    }

    println!("\n{figures}");
    let shown = faults.0.iter().take(30).fold(String::new(), |mut text, fault| {
        writeln!(text, "  {fault}").expect("a String takes everything");
        text
    });
    assert!(faults.0.is_empty(), "{} faults, the first of them:\n{shown}", faults.0.len());
    assert_eq!((figures.produced, figures.lost, figures.early), (EVENTS, 0, 0), "produced, lost, started early");
    bites::the_judgement_would_have_noticed(&evidence);
    marks::remove(&redis_url(), &names.prefix);
    topics::delete(&[0, 1, 2, 3, 4].map(|stage| names.topic(stage)));
}

/// All checks of what was seen.
fn judge(evidence: &Evidence<'_>, faults: &mut Faults) -> Figures {
    // A killed member counts as one until its session is over, its claims hold until their lease is, and a busy claim is
    // tried again after up to half a lease more.
    let recovery = SESSION + LEASE + LEASE / 2;
    let figures = Figures::of(evidence, recovery, CONCURRENCY, faults);
    evidence.check_main(faults);
    evidence.check_requests(faults);
    evidence.check_moved(faults);
    figures
}

/// Waits until every event has its end; on the way kills one process of each stage, each after a fifth of its stage's
/// work and while it has some in hand, and starts another in its place. Returns the number of events in the DLQ. When
/// nothing happens any more it is a fault, and the evidence will say what is missing.
fn run(plan: &Plan, observer: &Observer, workers: &mut Workers, names: &Names, faults: &mut Faults) -> usize {
    let reader = Reader::new(&names.topic(4));
    let mut dead: HashSet<String> = HashSet::new();
    let mut done: HashSet<String> = HashSet::new();
    let mut to_be_killed = vec![0, 1, 2, 3, 4];
    // Requests that have ended and are counted, and when something last happened.
    let mut counted = 0;
    let mut last = (Instant::now(), 0);
    loop {
        workers.assert_running();
        while let Some(record) = reader.next(Duration::ZERO) {
            dead.insert(record.text("x-ladder-event-id").to_owned());
        }
        to_be_killed.retain(|stage| match victim(*stage, plan, observer, workers, dead.len()) {
            None => true,
            Some(name) => {
                workers.kill(&name);
                let next = format!("{name}2");
                workers.start(*stage, &next, &observer.url(&next));
                false
            }
        });
        let requests = observer.look(|all| {
            // An open request is looked at again.
            let ended = all[counted..].iter().take_while(|seen| seen.ended != 0).count();
            let answered = all[counted..].iter().filter(|seen| seen.answer == Some(200));
            done.extend(answered.map(|seen| seen.id.clone()));
            counted += ended;
            all.len()
        });
        if to_be_killed.is_empty() && done.union(&dead).count() == EVENTS {
            return dead.len();
        }
        if last.1 != requests + dead.len() {
            last = (Instant::now(), requests + dead.len());
        }
        if last.0.elapsed() > STILL {
            let ended = done.union(&dead).count();
            faults.0.push(format!("nothing happened for {STILL:?}: {ended} events ended, {to_be_killed:?} not killed"));
            return dead.len();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process of a stage that is to be killed now, if any.
fn victim(stage: usize, plan: &Plan, observer: &Observer, workers: &Workers, dead: usize) -> Option<String> {
    let running = workers.of_stage(stage);
    if stage == 4 {
        // Nobody sees this stage work; but it has what the DLQ has.
        return running.into_iter().next().filter(|_| dead * 5 >= plan.dead());
    }
    observer.look(|all| {
        let of_stage = all.iter().filter(|seen| seen.stage == stage);
        if of_stage.clone().count() * 5 < plan.executions(stage) {
            return None;
        }
        let open = |name: &String| all.iter().filter(|seen| seen.ended == 0 && seen.instance == *name).count();
        running.into_iter().map(|name| (open(&name), name)).max().filter(|(open, _)| *open > 0).map(|(_, name)| name)
    })
}
