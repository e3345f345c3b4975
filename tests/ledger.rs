//! The checker of the live tests is not blind: made-up books with one fault each are told, in words that name it, and
//! sound ones pass.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use retry_ladder::prove::ledger::{
    Cause, Copy, Execution, Fate, Header, Held, InHand, Interruption, Ledger, Produced, Stage, read_executions,
};

const DUE: u64 = 1_700_000_000_400;

fn header(name: &str, value: &str) -> Header {
    (name.to_owned(), Some(value.as_bytes().to_vec()))
}

fn copy(id: &str, offset: i64, own: &[(&str, &str)]) -> Copy {
    let own = own.iter().map(|(name, value)| header(name, value));
    Copy {
        partition: 1,
        offset,
        timestamp_ms: 1_700_000_000_000,
        key: Some(b"k\xff".to_vec()),
        value: Some(format!("value of {id}").into_bytes()),
        headers: [header("tenant", "a"), header("x-ladder-event-id", id), ("empty".into(), None)]
            .into_iter()
            .chain(own)
            .collect(),
    }
}

/// The next copies of the event whose main record has this offset.
fn moved(id: &str, offset: i64, to: &str) -> Copy {
    let origin = format!("orders:1:{offset}:1700000000000");
    let common = [("x-ladder-origin", origin.as_str()), ("x-ladder-group", "g")];
    let due = DUE.to_string();
    let own: &[(&str, &str)] = match to {
        "retry-1" => {
            &[("x-ladder-stage", "1"), ("x-ladder-attempt", "1"), ("x-ladder-hop", "1"), ("x-ladder-due", &due)]
        }
        "permanent" => &[
            ("x-ladder-stage", "0"),
            ("x-ladder-attempt", "1"),
            ("x-ladder-hop", "1"),
            ("x-ladder-error", "permanent: no"),
        ],
        "exhausted" => &[
            ("x-ladder-stage", "1"),
            ("x-ladder-attempt", "2"),
            ("x-ladder-hop", "2"),
            ("x-ladder-error", "exhausted: no"),
        ],
        _ => unreachable!("{to}"),
    };
    copy(id, offset, &[&common, own].concat())
}

fn execution(id: &str, attempt: u32, read: (i32, i64), outcome: &str) -> Execution {
    let started_us = if attempt == 1 { (DUE - 302) * 1_000 } else { (DUE + 1) * 1_000 };
    Execution {
        started_us,
        ended: Some((started_us + 1_500, outcome.to_owned())),
        stage: if attempt == 1 { "main".into() } else { "retry-1".into() },
        attempt,
        fence: started_us / 1_000,
        id: id.to_owned(),
        read: Some(read),
    }
}

fn stage(name: &str, topic: &str, delay_ms: u64, copies: Vec<Copy>) -> Stage {
    let end = copies.iter().map(|c| c.offset + 1).max().unwrap_or(0);
    Stage { name: name.into(), topic: topic.into(), delay_ms, copies, offsets: vec![(0, 0, 0), (1, end, end)] }
}

/// Sound books: `a` done at once, `b` after one failure, `c` dead for good, `d` exhausted, `e` heals.
fn sound() -> Ledger {
    let events = [
        ("a", Fate::Fails(0)),
        ("b", Fate::Fails(1)),
        ("c", Fate::Permanent),
        ("d", Fate::Fails(9)),
        ("e", Fate::Heals { permanent: true }),
    ];
    let produced: Vec<Produced> = events
        .iter()
        .zip(0..)
        .map(|((id, fate), offset)| Produced { id: (*id).into(), fate: *fate, record: copy(id, offset, &[]) })
        .collect();
    let main = produced.iter().map(|event| event.record.clone()).collect();
    let mut dead = vec![moved("c", 2, "permanent"), moved("d", 3, "exhausted"), moved("e", 4, "permanent")];
    let mut retry = vec![moved("b", 1, "retry-1"), moved("d", 3, "retry-1")];
    for (offset, copy) in (0..).zip(&mut retry) {
        copy.offset = offset;
    }
    for (offset, copy) in (0..).zip(&mut dead) {
        copy.offset = offset;
    }
    Ledger {
        group: "g".into(),
        stages: vec![
            stage("main", "orders", 0, main),
            stage("retry-1", "orders.g.retry-1", 300, retry),
            stage("dlq", "orders.g.dlq", 0, dead),
        ],
        produced,
        executions: vec![
            execution("a", 1, (1, 0), "done"),
            execution("b", 1, (1, 1), "transient"),
            execution("b", 2, (1, 0), "done"),
            execution("c", 1, (1, 2), "permanent"),
            execution("d", 1, (1, 3), "transient"),
            execution("d", 2, (1, 1), "transient"),
            execution("e", 1, (1, 4), "permanent"),
        ],
        interruptions: vec![Interruption::default()],
        keys: vec![("p:g:orders:a:0".into(), b"1".to_vec()), ("p:g:orders:b:0".into(), b"F".to_vec())],
    }
}

/// Changes sound books and expects exactly these words in the faults, one fault each.
fn check(change: impl FnOnce(&mut Ledger), expect: &[&str]) {
    let mut ledger = sound();
    change(&mut ledger);
    let faults = ledger.faults();
    assert_eq!(faults.len(), expect.len(), "{faults:#?}");
    for (fault, expect) in faults.iter().zip(expect) {
        assert!(fault.contains(expect), "{fault:?} lacks {expect:?}");
    }
}

fn set(copy: &mut Copy, name: &str, value: &str) {
    let header = copy.headers.iter_mut().find(|(n, _)| n == name).unwrap();
    header.1 = Some(value.as_bytes().to_vec());
}

/// The process was killed with this copy in hand.
fn killed(ledger: &mut Ledger, id: &str, hop: u64, how: InHand) {
    let of_copy = |e: &&Execution| e.id == id && u64::from(e.attempt) == hop + 1;
    let first = ledger.executions.iter().find(of_copy).unwrap();
    let (fence, leased_until_us) = (first.fence, first.started_us + 4_000_000);
    let held = Held { id: id.into(), hop, how, fence, leased_until_us };
    ledger.interruptions.push(Interruption { in_hand: vec![held], ..Interruption::default() });
}

/// `id` is executed once more at its first attempt, a lease later.
fn again(ledger: &mut Ledger, id: &str, outcome: &str) {
    let first = ledger.executions.iter().find(|e| e.id == id).unwrap();
    let mut again = execution(id, 1, first.read.unwrap(), outcome);
    again.started_us += 5_000_000;
    again.ended = Some((again.started_us + 1, outcome.into()));
    again.fence += 5_000;
    ledger.executions.push(again);
}

#[test]
fn sound_books_pass_and_add_up() {
    check(|_| {}, &[]);
    let summary = sound().summary();
    assert_eq!(
        summary.to_string(),
        "5 produced, 2 done, 3 dead-lettered, 7 executions (0 repeated), 0 copied again, 0 ended twice"
    );
}

#[test]
fn a_lost_event_is_told() {
    check(|l| l.executions.retain(|e| e.id != "a"), &["a: lost: neither done nor in the DLQ"]);
    check(
        |l| {
            l.stages[2].copies.retain(|c| c.offset != 0);
        },
        &["c: lost: neither done nor in the DLQ; attempts {1}"],
    );
    check(|l| drop(l.stages[0].copies.pop()), &["e: acknowledged, and not on the main topic"]);
}

#[test]
fn a_wrong_end_is_told() {
    check(|l| l.produced[0].fate = Fate::Permanent, &["a: done at attempts {1}, 0 in the DLQ; should be in the DLQ"]);
    check(|l| l.executions.retain(|e| (e.id.as_str(), e.attempt) != ("d", 1)), &["d: attempts [1] were never made"]);
}

#[test]
fn an_early_start_is_told() {
    let early = |l: &mut Ledger| l.executions[2].started_us = DUE * 1_000 - 7;
    check(early, &["b: attempt 2 started early, 7 us before its due"]);
    // By the executions file of a built-in handler, which does not say which record it was.
    check(
        |l| {
            early(l);
            l.executions[2].read = None;
        },
        &["b: attempt 2 started early, 7 us before its due"],
    );
    // A due that is further ahead than the record's timestamp and twice the delay is the work of a wrong clock.
    check(
        |l| {
            set(&mut l.stages[1].copies[0], "x-ladder-due", &(DUE + 300_000).to_string());
            l.executions[2].started_us = (DUE + 200) * 1_000 - 7;
        },
        &["b: attempt 2 started early, 7 us before its due"],
    );
    check(|l| l.executions[2].read = Some((0, 0)), &["b: attempt 2 was given a record that is not on retry-1"]);
    check(
        |l| set(&mut l.stages[1].copies[0], "x-ladder-due", &(DUE - 2).to_string()),
        &["b at retry-1 1:0: due 299 ms after the failure, the stage's delay is 300 ms"],
    );
}

#[test]
fn a_second_execution_needs_a_kill_that_had_the_copy_in_hand() {
    let words = ["b: attempt 1 was executed 2 times, 0 interruptions explain one more each: unexplained execution"];
    check(|l| again(l, "b", "transient"), &words);
    check(
        |l| {
            again(l, "b", "transient");
            killed(l, "b", 1, InHand::Claimed);
            killed(l, "a", 0, InHand::Claimed);
        },
        &words,
    );
    check(
        |l| {
            again(l, "b", "transient");
            killed(l, "b", 0, InHand::Claimed);
        },
        &[],
    );
    check(
        |l| {
            again(l, "a", "done");
            killed(l, "a", 0, InHand::Claimed);
            l.executions[0].ended = Some((u64::MAX, "done".into()));
        },
        &["a: attempt 1 ran twice at the same time"],
    );
    // A frozen process cannot know that its lease is over.
    for cause in [Cause::Frozen, Cause::Stalled, Cause::Forgotten] {
        check(
            |l| {
                again(l, "a", "done");
                killed(l, "a", 0, InHand::Claimed);
                l.interruptions[1].cause = cause;
                l.executions[0].ended = Some((u64::MAX, "done".into()));
            },
            &[],
        );
    }
    check(
        |l| {
            again(l, "b", "transient");
            killed(l, "b", 0, InHand::Claimed);
            l.executions.last_mut().unwrap().fence = 1;
        },
        &[
            "b: attempt 1 was executed 2 times, 0 interruptions explain one more each",
            "b: attempt 1 again with fence 1, the one before had",
        ],
    );
}

#[test]
fn a_process_that_was_frozen_before_a_start_starts_when_it_is_woken_once_a_thread() {
    // The second execution in time has the first claim.
    let woken = |l: &mut Ledger, cause: Cause, threads: usize| {
        again(l, "b", "transient");
        killed(l, "b", 0, InHand::Claimed);
        let interruption = l.interruptions.last_mut().unwrap();
        (interruption.cause, interruption.threads) = (cause, threads);
        interruption.in_hand[0].leased_until_us = 0;
        let held = interruption.in_hand[0].fence;
        let first = l.executions.iter().position(|e| e.id == "b" && e.fence == held).unwrap();
        let last = l.executions.len() - 1;
        l.executions[last].fence = held;
        l.executions[first].fence = held + 1;
    };
    check(|l| woken(l, Cause::Frozen, 1), &[]);
    check(|l| woken(l, Cause::Stalled, 2), &[]);
    let text =
        "a process of 0 threads was woken after its leases and started, handed on or settled 1 copies anew: b of hop 0";
    check(|l| woken(l, Cause::Frozen, 0), &[text]);
    // Who is killed, or cut off, does not wake.
    for cause in [Cause::Killed, Cause::CutOff] {
        check(|l| woken(l, cause, 2), &["b: attempt 1 again with fence"]);
    }
}

#[test]
fn an_execution_before_the_lease_of_a_killed_process_ended_is_told() {
    check(
        |l| {
            again(l, "a", "done");
            killed(l, "a", 0, InHand::Claimed);
            l.interruptions[1].in_hand[0].leased_until_us += 1_100_000;
        },
        &["a: attempt 1 ran 100 ms before the lease of an interrupted process ended"],
    );
}

#[test]
fn a_move_that_was_not_acknowledged_explains_a_second_record_and_no_second_execution() {
    let twice = |l: &mut Ledger, unacknowledged: &[u64]| {
        let mut second = l.stages[1].copies[0].clone();
        second.offset = 2;
        l.stages[1].copies.push(second);
        l.stages[1].offsets[1] = (1, 3, 3);
        let unacknowledged = unacknowledged.iter().map(|hop| ("b".to_owned(), *hop)).collect();
        l.interruptions.push(Interruption { unacknowledged, ..Interruption::default() });
    };
    check(|l| twice(l, &[0]), &[]);
    check(|l| twice(l, &[1]), &["b: 2 records of hop 1 on retry-1, 0 interruptions explain"]);
    check(
        |l| {
            twice(l, &[0]);
            again(l, "b", "transient");
        },
        &["b: attempt 1 was executed 2 times, 0 interruptions explain"],
    );
}

#[test]
fn a_second_end_needs_a_kill_between_the_acknowledgement_and_its_record() {
    let words = "e: a second terminal state: done at attempts {1}, 1 in the DLQ; 1 more than one at hop 0, and 0 inter";
    check(
        |l| {
            again(l, "e", "done");
            killed(l, "e", 0, InHand::Claimed);
        },
        &[words],
    );
    for how in [InHand::Published, InHand::Acknowledged] {
        check(
            |l| {
                again(l, "e", "done");
                killed(l, "e", 0, how);
                assert_eq!(l.summary().ended_twice, 1);
            },
            &[],
        );
    }
}

#[test]
fn a_second_end_needs_that_kill_at_the_very_hop_where_it_ended_and_went_on() {
    // `b` was moved to retry-1, done there, and done on main as well.
    let twice = |l: &mut Ledger, hops: &[u64]| {
        again(l, "b", "done");
        killed(l, "b", 0, InHand::Claimed);
        for hop in hops {
            killed(l, "b", *hop, InHand::Acknowledged);
        }
    };
    let words =
        "b: a second terminal state: done at attempts {1, 2}, 0 in the DLQ; 1 more than one at hop 0, and 0 inter";
    check(|l| twice(l, &[]), &[words]);
    check(|l| twice(l, &[1]), &[words]);
    check(|l| twice(l, &[0]), &[]);
}

#[test]
fn however_much_befalls_one_claim_it_explains_one_second_copy() {
    let words = ["c: 3 records of hop 1 on dlq, 1 interruptions", "c: a second terminal state"];
    check(
        |l| {
            for offset in [8, 9] {
                let again = Copy { offset, ..l.stages[2].copies[0].clone() };
                l.stages[2].copies.push(again);
            }
            // Frozen, and then killed, with the same claim in hand.
            killed(l, "c", 0, InHand::Acknowledged);
            killed(l, "c", 0, InHand::Acknowledged);
        },
        &words,
    );
}

#[test]
fn a_process_that_acts_after_its_leases_when_it_is_woken_is_told() {
    let woken = |l: &mut Ledger, deeds: &[&str]| {
        let zombie = deeds.iter().map(|id| ((*id).to_owned(), 0)).collect();
        l.interruptions.push(Interruption { cause: Cause::Frozen, zombie, threads: 2, ..Interruption::default() });
    };
    // Each thread may have been in the middle of one.
    check(|l| woken(l, &["a", "b"]), &[]);
    let words = "a process of 2 threads was woken after its leases and started, handed on or settled 3 copies anew: a of hop 0, b";
    check(|l| woken(l, &["a", "b", "c"]), &[words]);
}

#[test]
fn a_second_copy_needs_such_a_kill_too() {
    let twice = |l: &mut Ledger| {
        let mut copy = l.stages[2].copies[0].clone();
        copy.offset = 9;
        l.stages[2].copies.push(copy);
    };
    check(twice, &["c: 2 records of hop 1 on dlq, 0 interruptions", "c: a second terminal state"]);
    check(
        |l| {
            twice(l);
            killed(l, "c", 0, InHand::Acknowledged);
            assert_eq!(l.summary().copied_again, 1);
        },
        &[],
    );
}

#[test]
fn a_changed_byte_is_told() {
    check(
        |l| l.stages[2].copies[0].value.as_mut().unwrap()[3] ^= 1,
        &["c at dlq 1:0: value differs from what was produced"],
    );
    check(|l| l.stages[1].copies[0].key = None, &["b at retry-1 1:0: key differs"]);
    check(|l| set(&mut l.stages[2].copies[0], "tenant", "b"), &["c at dlq 1:0: a header of others differs"]);
    check(|l| l.stages[1].copies[0].headers.swap(0, 2), &["b at retry-1 1:0: a header of others differs"]);
}

#[test]
fn a_wrong_header_is_told() {
    check(
        |l| l.stages[1].copies[0].headers.push(header("x-ladder-hop", "1")),
        &["b at retry-1 1:0: x-ladder-hop more than once"],
    );
    for (name, wrong, words) in [
        ("x-ladder-attempt", "2", "x-ladder-attempt is Some(\"2\"), should be \"1\""),
        ("x-ladder-stage", "2", "x-ladder-stage is Some(\"2\"), should be \"1\""),
        ("x-ladder-hop", "0", "x-ladder-hop is Some(\"0\"), should be \"1\""),
        ("x-ladder-group", "h", "x-ladder-group is Some(\"h\"), should be \"g\""),
        ("x-ladder-origin", "orders:1:7:1", "x-ladder-origin is Some(\"orders:1:7:1\"), should be \"orders:1:1:17"),
        ("x-ladder-due", "+5", "x-ladder-due is \"+5\", no number"),
    ] {
        let mut ledger = sound();
        set(&mut ledger.stages[1].copies[0], name, wrong);
        let faults = ledger.faults();
        assert!(faults.iter().any(|fault| fault.contains(words)), "{words}: {faults:#?}");
    }
    check(
        |l| set(&mut l.stages[2].copies[0], "x-ladder-error", "poison: no"),
        &["c at dlq 1:0: x-ladder-error is \"poison: no\", its class should be permanent"],
    );
    check(
        |l| set(&mut l.stages[2].copies[0], "x-ladder-event-id", "z"),
        &["dlq 1:0: event id Some(\"z\") was never produced", "c: lost"],
    );
}

#[test]
fn the_origin_bears_the_records_own_timestamp_not_the_acknowledgements() {
    // One answer for a batch that was sent twice.
    check(|l| l.produced.iter_mut().for_each(|event| event.record.timestamp_ms += 136), &[]);
}

#[test]
fn what_is_left_open_is_told() {
    check(|l| l.stages[1].offsets[1].1 = 1, &["retry-1 partition 1: committed 1, the log ends at 2"]);
    check(|l| l.keys[0].1 = b"P.0011223344556677-1.5".to_vec(), &["p:g:orders:a:0 holds P.0011223344556677-1.5"]);
}

#[test]
fn the_executions_file_reads_back_and_a_broken_line_is_refused() {
    let file = "start 10 main 1 7 a - 1:4\nstart 11 main 1 8 b -\nend 12 main 1 7 a done\n";
    let executions = read_executions(file).unwrap();
    assert_eq!(executions.len(), 2);
    assert_eq!(executions[0].ended, Some((12, "done".into())));
    assert_eq!((executions[0].read, executions[1].read), (Some((1, 4)), None));
    assert_eq!(executions[1].ended, None, "killed");
    for line in ["start 10 main 1 7 a", "end 12 main 1 7 a done", "start x main 1 7 a -", "start 1 main 1 7 a - 4"] {
        assert!(read_executions(line).is_err(), "{line}");
    }
}
