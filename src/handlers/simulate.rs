//! The `simulate` handler: succeeds and fails by a seeded rule, for the demo, for load and for the proof.
//!
//! # The rule
//! A pure function of seed, event id and attempt, stable for ever, so that a checker can compute what must come of
//! each event without asking the handler:
//! ```text
//! base     = fnv1a64(event id as UTF-8) ^ seed
//! draw(k)  = splitmix64's mix(base + k * 0x9E3779B97F4A7C15)      (wrapping)
//! share(k) = (draw(k) >> 11) / 2^53                                in [0, 1)
//!
//! share(1) >= fail_ratio                        succeeds at every attempt
//! otherwise share(2) < permanent_ratio          fails permanently at every attempt
//! otherwise share(2) < permanent_ratio + dead_ratio   fails transiently at every attempt
//! otherwise                                     fails transiently at attempts 1 … n, n = 1 + draw(3) % max_failures,
//!                                               then succeeds
//! ```
//! The latency of an attempt is `latency + share(3 + attempt) * jitter`. `mix` is Stafford's variant 13, as in
//! SplittableRandom.
//!
//! It has no effect of its own but the [executions file](super::executions), which an observer reads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::executions::Executions;
use crate::ladder::event::{Failure, Outcome};
use crate::stage::clock::Clock;
use crate::stage::ports::{Event, Handler};

/// How it fails. The ratios are from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulateOptions {
    /// Another seed, other events that fail.
    pub seed: u64,
    /// Share of all events that fail at first.
    pub fail_ratio: f64,
    /// Share of these that fail at every attempt: they end in the DLQ as `exhausted`.
    pub dead_ratio: f64,
    /// Share of these that fail permanently: they go to the DLQ at once. With `dead_ratio` at most 1.
    pub permanent_ratio: f64,
    /// The others of these fail 1 to this many times, then succeed. At least 1; above the number of retry stages some of
    /// them end in the DLQ, too.
    pub max_failures: u32,
    /// How long each execution takes at least.
    pub latency: Duration,
    /// How much longer at most.
    pub jitter: Duration,
    /// Where executions are recorded; created when missing, appended to otherwise.
    pub record: Option<PathBuf>,
    /// Whether each line of `record` is on the disk before the execution goes on.
    pub fsync: bool,
}

impl Default for SimulateOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            fail_ratio: 0.2,
            dead_ratio: 0.1,
            permanent_ratio: 0.05,
            max_failures: 3,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            record: None,
            fsync: false,
        }
    }
}

/// Why there is no such handler.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A ratio is no share.
    #[error("{name} is {value}; it must be from 0 to 1")]
    Ratio {
        /// Which.
        name: &'static str,
        /// What it is.
        value: f64,
    },
    /// The shares of the failing events are more than all of them.
    #[error("dead_ratio and permanent_ratio are shares of the failing events and add up to {0}; at most 1 is possible")]
    Sum(f64),
    /// Events that fail 0 times do not fail.
    #[error("max_failures is 0; it must be at least 1 (use fail_ratio to let fewer events fail)")]
    MaxFailures,
    /// The executions file cannot be opened.
    #[error("cannot open the executions file {path}: {source}")]
    Record {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What the rule says about one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It succeeds.
    Done,
    /// It fails and may succeed later.
    Transient,
    /// It fails and never succeeds.
    Permanent,
}

impl SimulateOptions {
    /// Everything that is wrong with these options; empty when nothing is. (Does not open the executions file.)
    pub fn faults(&self) -> Vec<Error> {
        let ratios = [
            ("fail_ratio", self.fail_ratio),
            ("dead_ratio", self.dead_ratio),
            ("permanent_ratio", self.permanent_ratio),
        ];
        // `contains` is false for NaN.
        let bad = ratios.into_iter().filter(|(_, value)| !(0.0..=1.0).contains(value));
        let mut faults: Vec<_> = bad.map(|(name, value)| Error::Ratio { name, value }).collect();
        let sum = self.dead_ratio + self.permanent_ratio;
        if faults.is_empty() && sum > 1.0 + 1e-9 {
            faults.push(Error::Sum(sum));
        }
        if self.max_failures == 0 {
            faults.push(Error::MaxFailures);
        }
        faults
    }

    /// What the rule (see the [module](self)) says about this attempt, 1 being the first.
    pub fn verdict(&self, event_id: &str, attempt: u32) -> Verdict {
        let draws = Draws::new(self.seed, event_id);
        if draws.share(1) >= self.fail_ratio {
            return Verdict::Done;
        }
        let kind = draws.share(2);
        if kind < self.permanent_ratio {
            return Verdict::Permanent;
        }
        let always = kind < self.permanent_ratio + self.dead_ratio;
        let failures = 1 + draws.draw(3) % u64::from(self.max_failures.max(1));
        if always || u64::from(attempt) <= failures { Verdict::Transient } else { Verdict::Done }
    }

    /// How long this attempt takes.
    pub fn latency(&self, event_id: &str, attempt: u32) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        self.latency + self.jitter.mul_f64(Draws::new(self.seed, event_id).share(3 + u64::from(attempt)))
    }
}

/// The random numbers of one event.
struct Draws(u64);

impl Draws {
    fn new(seed: u64, event_id: &str) -> Self {
        let hash = event_id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(hash ^ seed)
    }

    fn draw(&self, k: u64) -> u64 {
        let mut z = self.0.wrapping_add(k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn share(&self, k: u64) -> f64 {
        (self.draw(k) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Fails by the rule of its options.
pub struct SimulateHandler {
    options: SimulateOptions,
    executions: Option<Executions>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for SimulateHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulateHandler").field("options", &self.options).finish_non_exhaustive()
    }
}

impl SimulateHandler {
    /// `clock` gives the times in the executions file.
    ///
    /// # Errors
    /// When the options are faulty (the first fault) or the executions file cannot be opened.
    pub fn new(options: SimulateOptions, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        if let Some(fault) = options.faults().into_iter().next() {
            return Err(fault);
        }
        let open = |path: &PathBuf| {
            Executions::open(path, options.fsync).map_err(|source| Error::Record { path: path.clone(), source })
        };
        let executions = options.record.as_ref().map(open).transpose()?;
        Ok(Self { options, executions, clock })
    }

    async fn execute(&self, event: Event) -> Outcome {
        if let Some(executions) = &self.executions
            && let Err(error) = executions.start(&event, self.clock.now().wall).await
        {
            // Nothing may happen that the observer does not see.
            return Outcome::Failed(Failure::transient(error.to_string()));
        }
        let latency = self.options.latency(&event.id, event.attempt);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let outcome = match self.options.verdict(&event.id, event.attempt) {
            Verdict::Done => Outcome::Done,
            // One text per class: the DLQ groups by it.
            Verdict::Transient => Outcome::Failed(Failure::transient("simulated transient failure")),
            Verdict::Permanent => Outcome::Failed(Failure::permanent("simulated permanent failure")),
        };
        if let Some(executions) = &self.executions
            && let Err(error) = executions.end(&event, self.clock.now().wall, &outcome).await
        {
            return Outcome::Failed(Failure::transient(error.to_string()));
        }
        outcome
    }
}

impl Handler for SimulateHandler {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        let waits = self.executions.as_ref().is_some_and(Executions::waits)
            || !self.options.latency.is_zero()
            || !self.options.jitter.is_zero();
        let mut execution = Box::pin(self.execute(event));
        if waits {
            return execution;
        }
        // Nothing to wait for: executed here and now, without a task or a timer.
        match execution.as_mut().now_or_never() {
            Some(outcome) => Box::pin(std::future::ready(outcome)),
            None => execution,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::executions::Execution;
    use crate::handlers::testing::{EventBuilder, FixedClock};

    fn handler(options: SimulateOptions) -> SimulateHandler {
        SimulateHandler::new(options, Arc::new(FixedClock)).unwrap()
    }

    #[test]
    fn draws_are_the_published_functions() {
        // FNV-1a 64 of "foobar", from its authors' list; the first outputs of SplitMix64 seeded with 1234567.
        assert_eq!(Draws::new(0, "foobar").0, 0x85944171f73967e8);
        let splitmix = Draws(1_234_567);
        assert_eq!(
            [1, 2, 3].map(|k| splitmix.draw(k)),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn shares_are_as_configured() {
        let options = SimulateOptions {
            seed: 11,
            fail_ratio: 0.4,
            dead_ratio: 0.25,
            permanent_ratio: 0.1,
            max_failures: 4,
            ..SimulateOptions::default()
        };
        let n = 50_000;
        let (mut done, mut permanent, mut dead, mut failures) = (0, 0, 0, [0; 5]);
        for id in (0..n).map(|n| format!("order-{n}")) {
            let verdicts = [1, 2, 3, 4, 5, 100].map(|attempt| options.verdict(&id, attempt));
            let failed = verdicts.iter().filter(|v| **v != Verdict::Done).count();
            match verdicts[0] {
                Verdict::Done => done += 1,
                Verdict::Permanent => permanent += 1,
                Verdict::Transient if failed == 6 => dead += 1,
                Verdict::Transient => failures[failed] += 1,
            }
            // Once it succeeds it stays so: a repeated execution never fails.
            assert!(verdicts[failed..].iter().all(|v| *v == Verdict::Done), "{verdicts:?}");
        }
        let check = |what: &str, count: i32, share: f64| {
            let got = f64::from(count) / f64::from(n);
            assert!((got - share).abs() < 0.01, "{what}: {got} instead of {share}");
        };
        check("done", done, 0.6);
        check("permanent", permanent, 0.4 * 0.1);
        check("dead", dead, 0.4 * 0.25);
        for (times, count) in failures.into_iter().enumerate().skip(1) {
            check(&format!("fails {times} times"), count, 0.4 * 0.65 / 4.0);
        }
    }

    #[test]
    fn extremes_are_exact() {
        let verdicts = |fail_ratio, dead_ratio, permanent_ratio| -> Vec<Verdict> {
            let options = SimulateOptions { fail_ratio, dead_ratio, permanent_ratio, ..SimulateOptions::default() };
            (0..1_000).map(|n| options.verdict(&n.to_string(), 50)).collect()
        };
        assert!(verdicts(0.0, 1.0, 0.0).iter().all(|v| *v == Verdict::Done));
        assert!(verdicts(1.0, 1.0, 0.0).iter().all(|v| *v == Verdict::Transient));
        assert!(verdicts(1.0, 0.0, 1.0).iter().all(|v| *v == Verdict::Permanent));
        assert!(verdicts(1.0, 0.0, 0.0).iter().all(|v| *v == Verdict::Done), "all recover in the end");
    }

    #[test]
    fn another_seed_fails_other_events() {
        let failing = |seed| -> Vec<u32> {
            let options = SimulateOptions { seed, fail_ratio: 0.5, ..SimulateOptions::default() };
            (0..1_000).filter(|n| options.verdict(&n.to_string(), 1) != Verdict::Done).collect()
        };
        assert_eq!(failing(1), failing(1));
        let same = failing(1).iter().filter(|n| failing(2).contains(n)).count();
        assert!((150..350).contains(&same), "{same} of about 500 in common; chance gives 250");
    }

    #[test]
    fn without_latency_the_future_is_ready_and_the_record_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("executions");
        let handler = handler(SimulateOptions {
            fail_ratio: 1.0,
            dead_ratio: 0.0,
            permanent_ratio: 1.0,
            record: Some(path.clone()),
            ..SimulateOptions::default()
        });
        let event = EventBuilder::new().id("a").build();
        let outcome = handler.handle(event).now_or_never();
        assert_eq!(outcome, Some(Outcome::Failed(Failure::permanent("simulated permanent failure"))));
        let text = std::fs::read_to_string(path).unwrap();
        let outcomes: Vec<_> = text.lines().map(|line| Execution::parse(line).unwrap().outcome).collect();
        assert_eq!(outcomes, [None, Some("permanent".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_is_drawn_from_its_range() {
        let (latency, jitter) = (Duration::from_millis(50), Duration::from_millis(100));
        let handler = handler(SimulateOptions { latency, jitter, ..SimulateOptions::default() });
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..50 {
            let started = tokio::time::Instant::now();
            handler.handle(EventBuilder::new().id(&n.to_string()).build()).await;
            // The runtime's timers tick in milliseconds.
            let took = started.elapsed();
            assert!(took >= latency && took <= latency + jitter + Duration::from_millis(1), "{took:?}");
            seen.insert(took);
        }
        assert!(seen.len() > 20, "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_execution_has_a_start_and_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("executions");
        let handler = handler(SimulateOptions {
            latency: Duration::from_secs(60),
            record: Some(path.clone()),
            ..SimulateOptions::default()
        });
        let execution = handler.handle(EventBuilder::new().build());
        assert!(tokio::time::timeout(Duration::from_secs(1), execution).await.is_err());
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.starts_with("start ") && text.lines().count() == 1, "{text}");
    }

    #[tokio::test]
    async fn what_cannot_be_recorded_is_not_done() {
        let handler = handler(SimulateOptions {
            fail_ratio: 0.0,
            record: Some("/dev/full".into()),
            ..SimulateOptions::default()
        });
        let outcome = handler.handle(EventBuilder::new().build()).await;
        assert!(
            matches!(&outcome, Outcome::Failed(f) if f.message.contains("/dev/full")),
            "{outcome:?} must be a failure that names the file"
        );
    }

    #[test]
    fn faults_say_what_would_be_right() {
        let check = |options: SimulateOptions, expect: &[&str]| {
            let faults: Vec<_> = options.faults().iter().map(ToString::to_string).collect();
            assert_eq!(faults, expect);
        };
        let default = SimulateOptions::default;
        check(default(), &[]);
        check(SimulateOptions { dead_ratio: 0.9, permanent_ratio: 0.1, ..default() }, &[]);
        check(
            SimulateOptions { fail_ratio: 1.5, max_failures: 0, ..default() },
            &[
                "fail_ratio is 1.5; it must be from 0 to 1",
                "max_failures is 0; it must be at least 1 (use fail_ratio to let fewer events fail)",
            ],
        );
        check(SimulateOptions { dead_ratio: f64::NAN, ..default() }, &["dead_ratio is NaN; it must be from 0 to 1"]);
        check(
            SimulateOptions { dead_ratio: 0.75, permanent_ratio: 0.5, ..default() },
            &[
                "dead_ratio and permanent_ratio are shares of the failing events and add up to 1.25; at most 1 is possible",
            ],
        );
    }

    #[test]
    fn a_record_that_cannot_be_opened_is_an_error_with_its_path() {
        let options = SimulateOptions { record: Some("/nonexistent/dir/file".into()), ..SimulateOptions::default() };
        let error = SimulateHandler::new(options, Arc::new(FixedClock)).unwrap_err();
        let told = "cannot open the executions file /nonexistent/dir/file: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), told);
    }
}
