//! SIGINT and SIGTERM: drain and exit 0. A second signal, or the end of the drain time: out at once, and what was
//! running runs again.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::harness::{LIMIT, Ladder, started, until, until_done};

#[test]
fn a_signal_drains_and_what_was_running_is_not_repeated() {
    fn check(signal: Signal) {
        let mut ladder = Ladder::created(2);
        ladder.pipeline()["concurrency"] = 8.into();
        ladder.simulate("latency", "1500ms");
        let sent = ladder.produce_all("main", 12);
        let mut first = ladder.start("first", &["--stage", "main"]);
        until("handlers run", || first.starts().len() >= 8, || first.log());

        let begun = Instant::now();
        first.signal(signal);
        assert_eq!(first.exit_code(LIMIT), 0);
        assert!(begun.elapsed() < Duration::from_secs(10), "longer than the drain time: {:?}", begun.elapsed());
        assert!(first.log().contains("drained"), "{}", first.log());
        let (starts, ends) = (first.starts().len(), first.ends().len());
        assert_eq!(starts, ends, "what was running was waited for");
        assert!(starts < sent.len(), "nothing new was started: {starts}");

        ladder.simulate("latency", "0s");
        let second = ladder.start("second", &["--stage", "main"]);
        until_done(&sent, &[&first, &second]);
        assert!(started(&[&first, &second]).values().all(|n| *n == 1));
    }
    check(Signal::INT);
    check(Signal::TERM);
}

#[test]
fn a_process_that_must_not_wait_ends_and_its_event_runs_again() {
    /// Ends the process with one handler running: with a second signal, or by the drain time.
    fn check(second_signal: bool, drain_timeout: &str) {
        let mut ladder = Ladder::created(1);
        ladder.config["kafka"]["drain_timeout"] = drain_timeout.into();
        ladder.simulate("latency", "5m");
        ladder.pipeline()["handler_timeout"] = "10m".into();
        let sent = ladder.produce_all("main", 1);
        let mut first = ladder.start("first", &["--stage", "main"]);
        until("the handler runs", || first.starts().len() == 1, || first.log());

        first.signal(Signal::TERM);
        until("it drains", || first.log().contains("draining"), || first.log());
        let begun = Instant::now();
        if second_signal {
            first.signal(Signal::TERM);
            assert_eq!(first.exit_code(LIMIT), 1);
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            assert!(first.log().contains("second signal"), "{}", first.log());
        } else {
            assert_eq!(first.exit_code(LIMIT), 1, "0 is for a clean drain");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert!(first.log().contains("still running after the drain time"), "{}", first.log());
        }
        assert_eq!(first.ends(), []);

        ladder.simulate("latency", "0s");
        let second = ladder.start("second", &["--stage", "main"]);
        until_done(&sent, &[&second]);
        assert_eq!(second.starts().len(), 1);
    }
    check(true, "4m");
    check(false, "1s");
}
