//! A dead letter goes back: what its copy's headers say, and how they are read there.

use super::write::{Case, EXHAUSTED, is_own, value};
use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_700_000_900_000_700);

/// Where the copy stands: written when it was redriven.
const THERE: Coordinates = Coordinates { partition: 3, offset: 99, timestamp_ms: 1_700_000_900_001 };

/// The dead letter that a healthy event of `retry-2` became, with a header of somebody else.
fn letter() -> Headers {
    let mut inbound = on_retry_2(&[]);
    inbound.extend(headers(&[
        ("source", "till-4"),
        (TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]));
    Case::new(2, &inbound, EXHAUSTED).write().unwrap()
}

fn redriven_to(target: usize, letter: &Headers) -> Option<Headers> {
    redriven_in(None, target, letter)
}

fn redriven_in(trace: Option<Trace<'_>>, target: usize, letter: &Headers) -> Option<Headers> {
    let ladder = ladder();
    let envelope = read_at(ladder.dlq().index, AT, letter);
    let target = ladder.rung(target).unwrap();
    let redrive = Redrive { ladder: &ladder, envelope: &envelope, target, at: NOW, trace };
    let out = redriven(iter(letter), &redrive)?;
    Some(out.pairs(iter(letter)).iter().map(|(n, v)| (n.to_vec(), v.map(<[u8]>::to_vec))).collect())
}

#[test]
fn attempts_begin_anew_under_a_new_hop_and_the_story_stays() {
    let letter = letter();
    let copy = redriven_to(1, &letter).unwrap();
    let text = |name| std::str::from_utf8(value(&copy, name).unwrap_or_else(|| panic!("no {name}"))).unwrap();
    assert_eq!((text(EVENT_ID), text(ORIGIN), text(GROUP)), ("id-1", "shop:3:7:1699999990000", "billing"));
    assert_eq!((text(STAGE), text(ATTEMPT), text(HOP), text(REDRIVE)), ("1", "0", "4", "1"));
    assert_eq!((text(DUE), text(REDRIVEN_AT)), ("1700000900000", "1700000900000"), "due now, not a moment later");
    for kept in [ERROR, HISTORY, FENCE, TRACEPARENT, "source"] {
        assert_eq!(value(&copy, kept), value(&letter, kept), "{kept}");
    }
    let left = copy.iter().filter(|(name, _)| is_own(name, true) && !is_own(name, false)).count();
    assert_eq!(left, 0, "the compat headers are about a dead letter");

    let envelope = read_at(1, THERE, &copy);
    assert!(envelope.own && envelope.repaired.is_empty(), "{envelope:?}");
    assert_eq!((envelope.attempt, envelope.hop, envelope.redrives), (0, 4, 1));
    assert_eq!(envelope.redriven_at, Some(Timestamp::from_millis(1_700_000_900_000)));
}

#[test]
fn on_main_its_own_group_knows_it_again_and_another_takes_it_for_new() {
    let copy = redriven_to(0, &letter()).unwrap();
    assert_eq!(value(&copy, DUE), None, "nothing waits on main");
    let envelope = read_at(0, THERE, &copy);
    assert_eq!((&*envelope.event_id, envelope.hop, envelope.redrives), ("id-1", 4, 1));
    assert!(envelope.repaired.is_empty() && !envelope.untrusted, "{envelope:?}");

    let other = Ladder::new(LadderSpec::new("stock", "inventory", "shop").retry(Duration::from_secs(1))).unwrap();
    let envelope = read(&other, 0, THERE, iter(&copy), &IdSource::default(), None);
    assert_eq!((envelope.hop, envelope.redrives, envelope.own), (0, 0, false));
}

#[test]
fn a_second_redrive_counts_on() {
    let once = redriven_to(1, &letter()).unwrap();
    let again = Case::new(1, &once, EXHAUSTED).write().unwrap();
    let twice = redriven_to(3, &again).unwrap();
    let text = |name| std::str::from_utf8(value(&twice, name).unwrap()).unwrap();
    assert_eq!((text(REDRIVE), text(HOP), text(STAGE), text(ATTEMPT)), ("2", "6", "3", "0"));
}

#[test]
fn a_given_trace_context_goes_on_in_the_copy() {
    for (state, written) in [(Some("b=2"), Some("b=2")), (Some(""), None), (None, None)] {
        let copy = redriven_in(Some(Trace { parent: "new", state }), 1, &letter()).unwrap();
        assert_eq!(value(&copy, TRACEPARENT), Some(b"new".as_slice()));
        assert_eq!(value(&copy, TRACESTATE), written.map(str::as_bytes));
    }
}

#[test]
fn a_story_stays_up_to_the_last_byte_that_is_left_for_it() {
    let with_history = |bytes: usize| {
        let mut letter = letter();
        letter.retain(|(name, _)| name != HISTORY.as_bytes());
        letter.push((HISTORY.as_bytes().to_vec(), Some(vec![b'7'; bytes])));
        let copy = redriven_to(1, &letter).unwrap();
        let own = copy.iter().filter(|(name, _)| is_own(name, false));
        (value(&copy, HISTORY).is_some(), own.map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>())
    };
    let (kept, without_any) = with_history(MAX_OWN_BYTES);
    assert!(!kept);
    let room = MAX_OWN_BYTES - without_any - HISTORY.len();
    assert_eq!(with_history(room), (true, MAX_OWN_BYTES));
    assert_eq!(with_history(room + 1), (false, without_any));
}

#[test]
fn what_another_group_wrote_about_a_record_is_not_passed_on_as_our_story() {
    let mut foreign = letter();
    foreign.retain(|(name, _)| name != GROUP.as_bytes());
    let copy = redriven_to(1, &foreign).unwrap();
    assert_eq!((value(&copy, ERROR), value(&copy, HISTORY)), (None, None));
    let envelope = read_at(1, THERE, &copy);
    assert!(envelope.repaired.is_empty(), "{envelope:?}");
    assert_eq!(envelope.hop, WRITTEN as u64 + 1, "above every real count");
}

#[test]
fn neither_the_dlq_nor_a_copy_without_a_hop_is_a_target() {
    assert_eq!(redriven_to(4, &letter()), None);
    let ladder = ladder();
    let letter = letter();
    let mut envelope = read_at(4, AT, &letter);
    envelope.hop = HOP_LIMIT - 1;
    let target = ladder.rung(1).unwrap();
    let redrive = Redrive { ladder: &ladder, envelope: &envelope, target, at: NOW, trace: None };
    assert_eq!(redriven(iter(&letter), &redrive), None);
}
