//! `pipeline dlq` as a person uses it: the real binary on a real Kafka, judged by a plain consumer that knows nothing
//! of redrives.

pub(crate) mod setup;

use std::collections::BTreeMap;

use serde_json::Value;
use setup::{Dlq, KINDS, Kind, frame, number};

/// Letters on most DLQs here.
const LETTERS: usize = 600;

/// Letters on the DLQ of the redrive that is killed, five kinds of error in all: 10,000, so that it is short. The size that
/// the project promises is `LADDER_DLQ_LETTERS=100000 scripts/test --live killed_twice`: then it redrives 20,000 at 2,000/s.
fn many() -> usize {
    let many = std::env::var("LADDER_DLQ_LETTERS").ok();
    many.map_or(10_000, |many| many.parse().expect("LADDER_DLQ_LETTERS: a number of letters"))
}

fn by_error(groups: &Value) -> BTreeMap<String, (u64, u64, u64)> {
    let groups = groups.as_array().expect("an array");
    let one = |group: &Value| {
        let error = format!("{}: {}", group["class"].as_str().unwrap(), group["error"].as_str().unwrap());
        (error, (number(group, "open"), number(group, "redriven"), number(group, "discarded")))
    };
    groups.iter().map(one).collect()
}

#[tokio::test]
async fn groups_fold_what_differs_and_tell_open_from_dealt_with() {
    let dlq = Dlq::new(4).await;
    dlq.fill(LETTERS);
    let groups = dlq.json(&["groups", "--json"]);
    let expected: BTreeMap<_, _> = KINDS.iter().map(|kind| (kind.folded.to_owned(), (120, 0, 0))).collect();
    assert_eq!(by_error(&groups), expected);
    for group in groups.as_array().unwrap() {
        assert_eq!(number(group, "count"), 120);
        assert!(group["first_ms"].as_u64() <= group["last_ms"].as_u64());
    }

    let done = dlq.run(&["discard", "--class", "permanent", "--reason", "cancelled by hand", "--yes"]);
    assert!(done.status.success(), "{done:?}");
    let seen = by_error(&dlq.json(&["groups", "--json"]));
    assert_eq!(seen[Kind::of("permanent").folded], (0, 0, 120));
    let listed = dlq.lines(&["list", "--state", "discarded", "--json"]);
    assert_eq!(listed.len(), 120);
    assert!(listed.iter().all(|letter| letter["class"] == "permanent" && letter["state"] == "discarded"));
    assert_eq!(dlq.copies("retry-1").len(), 0, "nothing moves");
    assert_eq!(dlq.letters(), (480, 0, 120));
}

#[tokio::test]
async fn letters_of_a_dlq_that_was_made_again_are_new_ones() {
    let dlq = Dlq::new(2).await;
    dlq.fill(20);
    let redrive = || {
        let done = dlq.run(&["redrive", "--yes"]);
        assert!(done.status.success(), "{done:?}");
        (dlq.copies("retry-1").len(), dlq.letters())
    };
    assert_eq!(redrive(), (20, (0, 20, 0)));
    dlq.make_again().await;
    dlq.fill(10);
    assert_eq!(dlq.letters(), (10, 0, 0), "the same offsets, other letters");
    assert_eq!(dlq.lines(&["list", "--state", "open", "--json"]).len(), 10);
    assert_eq!(redrive(), (30, (0, 10, 0)));
    assert_eq!(redrive(), (30, (0, 10, 0)), "each once");
}

#[tokio::test]
async fn a_corrected_value_keeps_the_framing_of_the_letter_and_its_unknown_fields() {
    let dlq = Dlq::with(1, true).await;
    dlq.fill(20);
    let mut corrected = String::new();
    for id in ["event-6", "event-7"] {
        let exported = dlq.run(&["export", "--event-id", id]);
        let mut letter: Value = serde_json::from_slice(&exported.stdout).unwrap();
        letter["value"]["json"]["quantity"] = 77.into();
        corrected += &format!("{letter}\n");
    }
    let file = dlq.path("corrected.jsonl");
    std::fs::write(&file, corrected).unwrap();
    let redrive = |flag| {
        let done = dlq.run(&["redrive", "--from", file.to_str().unwrap(), "--yes", flag]);
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stderr).unwrap()
    };
    let told = redrive("--dry-run");
    assert!(told.contains("keeps fields that the message's declaration does not have: 900 (of 2)"), "{told}");
    redrive("--json");
    let copies = dlq.copies("retry-1");
    assert_eq!(copies.len(), 2);
    for copy in copies {
        let n = copy.text("number").parse().unwrap();
        let payload = copy.value.strip_prefix(&frame(n)[..]).expect("the letter's own frame");
        let order: setup::OrderPlaced = prost::Message::decode(payload).unwrap();
        assert_eq!((order.quantity, order.unique_id), (77, format!("event-{n}")));
        assert!(payload.ends_with(setup::UNKNOWN), "{payload:?}");
    }
}

#[tokio::test]
async fn every_flag_of_a_selection_narrows_it() {
    let dlq = Dlq::new(2).await;
    dlq.fill(50);
    let ids = |args: &[&str]| {
        let mut all = vec!["list", "--json"];
        all.extend(args);
        dlq.lines(&all).iter().map(|letter| letter["event_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]).len(), 50);
    assert_eq!(ids(&["--event-id", "event-7"]), ["event-7"]);
    assert_eq!(ids(&["--key", "key-7"]), ["event-7"]);
    assert_eq!(ids(&["--header", "number=7"]), ["event-7"]);
    assert_eq!(ids(&["--partition", "1", "--offsets", "3..4"]), ["event-7", "event-9"]);
    assert_eq!(ids(&["--class", "poison"]).len(), 10);
    assert_eq!(ids(&["--class", "poison", "--limit", "3"]).len(), 3);
    assert_eq!(ids(&["--since", "1h"]).len(), 50);
    assert_eq!(ids(&["--until", "1h"]).len(), 0);
    assert_eq!(ids(&["--since", "2100-01-01T00:00:00Z"]).len(), 0);
    let groups = dlq.json(&["groups", "--json"]);
    let group = &groups.as_array().unwrap()[0];
    let fingerprint = group["fingerprint"].as_str().unwrap();
    assert_eq!(ids(&["--fingerprint", fingerprint]).len() as u64, number(group, "count"));

    let wrong = dlq.run(&["list", "--since", "yesterday"]);
    assert_eq!(wrong.status.code(), Some(64), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("--since: `yesterday` is no instant"), "{wrong:?}");
}

#[tokio::test]
async fn a_letter_is_shown_decoded_and_what_cannot_be_decoded_in_hexadecimal() {
    let dlq = Dlq::new(1).await;
    dlq.fill(5);
    let shown = dlq.json(&["show", "event-1", "--json"]);
    assert_eq!(shown["value"]["json"]["uniqueId"], "event-1", "{shown}");
    assert_eq!((shown["key"]["text"].as_str(), shown["failed_stage"].as_str()), (Some("key-1"), Some("main")));
    assert_eq!(shown["history"][0]["message"], "history of event-1");
    let poison = dlq.json(&["show", "0:0", "--json"]);
    assert_eq!(poison["value"]["hex"], "ffffff", "{poison}");
    assert!(poison["value"]["problem"].as_str().unwrap().contains("not a shop.v1.OrderPlaced"), "{poison}");

    let text = dlq.run(&["show", "0:1"]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("\"uniqueId\": \"event-1\"") && text.contains("history of event-1"), "{text}");
    let none = dlq.run(&["show", "0:99"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
}

#[tokio::test]
async fn a_redrive_that_is_killed_twice_sends_each_letter_once_and_leaves_the_rest() {
    let dlq = Dlq::new(4).await;
    let (many, of_each) = (many(), many() / KINDS.len());
    dlq.fill(many);
    let redrive = ["redrive", "--class", "expired", "--yes", "--take-over"];
    let wanted = of_each;
    // Ten seconds' worth, so that even a busy machine sees each kill in the middle.
    let rate = (wanted / 10).to_string();
    let slowly = [&redrive[..], &["--rate", &rate]].concat();
    for share in [wanted / 5, wanted / 2] {
        let mut killed = dlq.start(&slowly);
        dlq.wait_for_copies("retry-1", share);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let moved = dlq.copies("retry-1").len();
        assert!(moved < wanted, "killed too late");
        println!("killed after {moved} of {wanted}");
    }
    let done = dlq.run(&slowly);
    assert!(done.status.success(), "{done:?}");
    let copies = dlq.copies("retry-1");
    let ids: std::collections::BTreeSet<_> = copies.iter().map(|copy| copy.text("x-ladder-event-id")).collect();
    assert_eq!((copies.len(), ids.len()), (wanted, wanted), "each once");
    for copy in &copies {
        assert_eq!((copy.text("x-ladder-attempt"), copy.text("x-ladder-redrive")), ("0", "1"));
        assert_eq!((copy.text("x-ladder-hop"), copy.text("x-ladder-stage")), ("2", "1"));
        assert_eq!(copy.text("number"), copy.text("x-ladder-event-id").trim_start_matches("event-"), "others' headers");
        assert!(copy.text("x-ladder-error").starts_with("expired: "));
        assert!(!copy.headers.iter().any(|(name, _)| name.starts_with("__dlq.") || name.starts_with("kafka_dlt-")));
    }
    let seen = by_error(&dlq.json(&["groups", "--json"]));
    let each = of_each as u64;
    assert_eq!(seen[Kind::of("expired").folded], (0, each, 0));
    assert_eq!(seen.values().filter(|counts| **counts == (each, 0, 0)).count(), KINDS.len() - 1, "{seen:?}");
    assert_eq!(dlq.letters(), ((many - wanted) as u64, each, 0), "the rest is untouched, and nothing came back");

    let again = dlq.run(&["redrive", "--class", "expired", "--yes", "--json"]);
    assert!(again.status.success(), "{again:?}");
    let job: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((number(&job, "planned"), number(&job, "moved")), (0, 0));
    assert_eq!(dlq.copies("retry-1").len(), wanted);
}

#[tokio::test]
async fn of_two_at_once_the_second_is_refused_or_takes_over() {
    let dlq = Dlq::new(4).await;
    dlq.fill(LETTERS);
    let mut first = dlq.start(&["redrive", "--rate", "100", "--yes"]);
    dlq.wait_for_copies("retry-1", 20);
    let refused = dlq.run(&["redrive", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is at work on this DLQ"), "{refused:?}");

    let second = dlq.run(&["redrive", "--yes", "--take-over"]);
    assert!(second.status.success(), "{second:?}");
    assert_eq!(first.wait().unwrap().code(), Some(1), "it was taken over");
    let ids: std::collections::BTreeSet<_> =
        dlq.copies("retry-1").iter().map(|copy| copy.text("x-ladder-event-id").to_owned()).collect();
    assert_eq!((dlq.copies("retry-1").len(), ids.len()), (LETTERS, LETTERS), "each once");
}

#[tokio::test]
async fn a_dry_run_moves_nothing_and_without_a_yes_nobody_is_asked_in_a_script() {
    let dlq = Dlq::new(1).await;
    dlq.fill(5);
    let dry = dlq.run(&["redrive", "--dry-run", "--json"]);
    assert!(dry.status.success(), "{dry:?}");
    let job: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!(number(&job, "planned"), 5);
    let unasked = dlq.run(&["redrive"]);
    assert_eq!(unasked.status.code(), Some(64), "{unasked:?}");
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("--yes"), "{unasked:?}");
    let nothing = dlq.run(&["discard", "--reason", "x", "--yes"]);
    assert_eq!(nothing.status.code(), Some(64), "a discard of everything is asked for by name: {nothing:?}");
    assert_eq!(dlq.copies("retry-1").len(), 0);
    assert_eq!(by_error(&dlq.json(&["groups", "--json"])).values().map(|counts| counts.0).sum::<u64>(), 5);
}

#[tokio::test]
async fn redriven_events_are_executed_again_and_the_corrected_ones_with_their_new_value() {
    let dlq = Dlq::new(2).await;
    dlq.fill(20);
    let exported = dlq.run(&["export", "--event-id", "event-6"]);
    let mut letter: Value = serde_json::from_slice(&exported.stdout).unwrap();
    letter["value"]["json"]["quantity"] = 77.into();
    let corrected = dlq.path("corrected.jsonl");
    std::fs::write(&corrected, format!("{letter}\n")).unwrap();
    let done = dlq.run(&["redrive", "--from", corrected.to_str().unwrap(), "--yes"]);
    assert!(done.status.success(), "{done:?}");
    let rest = dlq.run(&["redrive", "--class", "permanent", "--yes"]);
    assert!(rest.status.success(), "{rest:?}");

    let copies = dlq.copies("retry-1");
    let quantity = |id: &str| {
        let copy = copies.iter().find(|copy| copy.text("x-ladder-event-id") == id).unwrap();
        prost::Message::decode(&copy.value[..]).map(|order: setup::OrderPlaced| order.quantity)
    };
    assert_eq!((quantity("event-6"), quantity("event-11")), (Ok(77), Ok(11)));
    assert_eq!(copies.len(), 4, "letter 6 is permanent, too, and was sent once");

    let worker = dlq.worker("fail_ratio: 0");
    worker.until_done(4);
    // The marker that ends a transaction is no event that waits.
    dlq.until_nothing_lags();
    drop(worker);
    assert_eq!(dlq.done(), ["event-1", "event-11", "event-16", "event-6"]);
}

#[tokio::test]
async fn a_redrive_stops_when_its_copies_come_back() {
    let dlq = Dlq::new(2).await;
    dlq.fill(LETTERS);
    let worker = dlq.worker("fail_ratio: 1, dead_ratio: 0, permanent_ratio: 1");
    let stopped = dlq.run(&["redrive", "--class", "exhausted", "--rate", "20", "--stop-at", "30%", "--yes", "--json"]);
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    drop(worker);
    let job: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert!(job["state"]["stopped"].as_str().unwrap().contains("came back to the DLQ"), "{job}");
    assert!(number(&job, "relapsed") >= 20 && number(&job, "moved") < number(&job, "planned"), "{job}");
    assert!(dlq.copies("retry-1").len() < 240);
}

#[tokio::test]
async fn a_redrive_to_a_paused_stage_moves_nothing_until_it_is_resumed() {
    let dlq = Dlq::new(2).await;
    dlq.fill(20);
    let pause = dlq.pipeline(&["pause", "--stage", "retry-1", "--reason", "the bank is down"]);
    assert!(pause.status.success(), "{pause:?}");
    let stopped = dlq.run(&["redrive", "--yes"]);
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    let told = String::from_utf8_lossy(&stopped.stderr);
    assert!(told.contains("retry-1 is paused") && told.contains("the bank is down"), "{told}");
    assert_eq!(dlq.copies("retry-1").len(), 0);
    let resume = dlq.pipeline(&["resume", "--stage", "retry-1"]);
    assert!(resume.status.success(), "{resume:?}");
    let done = dlq.run(&["redrive", "--yes"]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(dlq.copies("retry-1").len(), 20);
}
