//! `pipeline console` on a real Kafka: what its pages ask for and what becomes of it, judged by a plain consumer.

mod browser;
mod serve;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use self::serve::{Served, until};
use crate::dlq::setup::{Dlq, KINDS, Kind, MARKUP, number};

fn redrive(class: &str) -> Value {
    json!({ "action": "redrive", "select": { "class": class } })
}

fn groups_of(seen: &Value) -> Vec<(String, u64, u64, u64)> {
    let one = |g: &Value| {
        let text = format!("{}: {}", g["class"].as_str().unwrap(), g["error"].as_str().unwrap());
        (text, number(g, "open"), number(g, "redriven"), number(g, "discarded"))
    };
    let mut groups: Vec<_> = seen["groups"].as_array().unwrap().iter().map(one).collect();
    groups.sort();
    groups
}

#[tokio::test]
async fn groups_follow_what_comes_and_what_is_dealt_with() {
    let dlq = Dlq::new(3).await;
    let console = Served::start(&dlq, &[]);
    let groups = || async {
        let seen = until(|| async {
            let seen = console.get("groups").await;
            (seen["known"] == true && seen["reading"] == false).then_some(seen)
        });
        seen.await
    };
    assert_eq!(groups_of(&groups().await), [], "an empty DLQ is a DLQ");

    dlq.fill(100);
    let expected = |dealt: &dyn Fn(&Kind) -> (u64, u64, u64)| {
        let mut all: Vec<_> = KINDS.iter().map(|kind| (kind, dealt(kind))).collect::<Vec<_>>();
        all.sort_by_key(|(kind, _)| kind.folded);
        all.into_iter().map(|(kind, (open, re, di))| (kind.folded.to_owned(), open, re, di)).collect::<Vec<_>>()
    };
    let open = expected(&|_| (20, 0, 0));
    until(|| async { (groups_of(&groups().await) == open).then_some(()) }).await;

    assert!(dlq.run(&["discard", "--class", "poison", "--reason", "x", "--yes"]).status.success());
    dlq.fill(50);
    let after = expected(&|kind| if kind.folded.starts_with("poison") { (10, 0, 20) } else { (30, 0, 0) });
    until(|| async { (groups_of(&groups().await) == after).then_some(()) }).await;
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_or_a_repetition() {
    let dlq = Dlq::new(3).await;
    dlq.fill(100);
    let console = Served::start(&dlq, &[]);
    let (mut from, mut pages, mut places) = (String::new(), 0, Vec::new());
    loop {
        let page = console.get(&format!("letters?size=7&class=permanent{from}")).await;
        let letters = page["letters"].as_array().unwrap();
        assert!(letters.len() <= 7);
        places.extend(letters.iter().map(|l| (l["partition"].as_i64(), l["offset"].as_i64())));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => from = format!("&from={next}"),
            None => break,
        }
    }
    let distinct: BTreeSet<_> = places.iter().collect();
    assert_eq!((places.len(), distinct.len(), pages), (20, 20, 3));
    assert!(places.is_sorted());
    let one = console.get("letters?key=key-7&state=open&header=number%3D7").await;
    assert_eq!(one["letters"][0]["event_id"], "event-7");
    let wrong = console.ask("GET", "letters?since=yesterday", &[], None).await;
    assert_eq!(wrong.status, 400, "{wrong:?}");
    assert!(wrong.text.contains("since: `yesterday` is no instant"), "{wrong:?}");
    assert_eq!(console.ask("GET", "letters/0:99", &[], None).await.status, 404);
    assert_eq!(console.ask("GET", "letters/0", &[], None).await.status, 400);
}

#[tokio::test]
async fn a_plan_is_run_once_however_often_its_button_is_pressed() {
    let dlq = Dlq::new(3).await;
    dlq.fill(100);
    let console = Served::start(&dlq, &[]);
    let plan = console.planned(&redrive("permanent")).await;
    assert_eq!((number(&plan["job"], "planned"), plan["sample"].as_array().unwrap().len()), (20, 5));
    assert_eq!(dlq.copies("retry-1").len(), 0, "a dry run moves nothing");

    let run = format!("plans/{}/run", plan["id"].as_str().unwrap());
    let presses = futures::future::join_all((0..5).map(|_| console.ask("POST", &run, &[], Some("{}")))).await;
    let taken = presses.iter().filter(|press| press.status == 202).count();
    assert_eq!((taken, presses.iter().filter(|press| press.status == 409).count()), (1, 4), "{presses:?}");
    let ended = console.ended(&plan).await;
    assert_eq!((number(&ended["job"], "moved"), &ended["job"]["state"]), (20, &json!("done")));
    assert_eq!(console.ask("POST", &run, &[], Some("{}")).await.status, 409, "nor later");

    let again = console.planned(&redrive("permanent")).await;
    assert_eq!((number(&again["job"], "planned"), number(&again, "already")), (0, 20));
    let ids: BTreeSet<_> = dlq.copies("retry-1").iter().map(|copy| copy.text("x-ladder-event-id").to_owned()).collect();
    assert_eq!((dlq.copies("retry-1").len(), ids.len()), (20, 20));
    let jobs = console.get("jobs").await;
    assert_eq!((&jobs["jobs"][0]["state"], number(&jobs["jobs"][0], "moved")), (&json!("done"), 20));
    assert!(jobs["jobs"][0]["who"].as_str().unwrap().starts_with("console of "), "{jobs}");
}

#[tokio::test]
async fn a_job_that_died_with_its_console_is_gone_on_with_by_the_next() {
    let dlq = Dlq::new(3).await;
    dlq.fill(500);
    let mut console = Served::start(&dlq, &[]);
    let order = json!({ "action": "redrive", "select": { "class": "expired" }, "rate": 60 });
    let plan = console.planned(&order).await;
    console.run(&plan, json!({})).await;
    dlq.wait_for_copies("retry-1", 20);
    console.kill();
    assert!(dlq.copies("retry-1").len() < 100, "killed too late");

    let console = Served::start(&dlq, &[]);
    let plan = console.planned(&redrive("expired")).await;
    assert!(number(&plan["job"], "planned") < 100);
    // The dead job told of itself a moment ago: it may still be alive.
    console.run(&plan, json!({})).await;
    let failed = console.phase(&plan, &["failed", "ended"]).await;
    if failed["phase"] == "failed" {
        assert_eq!(failed["busy"], true, "{failed}");
        console.run(&plan, json!({ "take_over": true })).await;
    }
    console.ended(&plan).await;
    let ids: BTreeSet<_> = dlq.copies("retry-1").iter().map(|copy| copy.text("x-ladder-event-id").to_owned()).collect();
    assert_eq!((dlq.copies("retry-1").len(), ids.len()), (100, 100), "each once");
}

#[tokio::test]
async fn a_job_stops_when_it_is_told_to_or_its_console_ends() {
    let dlq = Dlq::new(1).await;
    dlq.fill(500);
    let mut console = Served::start(&dlq, &[]);
    let order = json!({ "action": "redrive", "select": { "class": "expired" }, "rate": 20 });
    let plan = console.planned(&order).await;
    console.run(&plan, json!({})).await;
    let stop = format!("plans/{}/stop", plan["id"].as_str().unwrap());
    assert_eq!(console.ask("POST", &stop, &[], Some("{}")).await.status, 200);
    let ended = console.ended(&plan).await;
    assert!(ended["job"]["state"]["stopped"].as_str().unwrap().contains("interrupted"), "{ended}");

    let second = console.planned(&order).await;
    console.run(&second, json!({})).await;
    assert_eq!(console.terminate(), Some(0));
    let jobs = dlq.lines(&["jobs", "--json"]);
    assert!(jobs.iter().all(|job| job["state"]["stopped"].is_string()), "{jobs:?}");
}

#[tokio::test]
async fn what_is_markup_stays_text_and_values_can_be_hidden() {
    let dlq = Dlq::new(1).await;
    dlq.fill(5);
    let console = Served::start(&dlq, &[]);
    let answer = console.ask("GET", "letters/0:1", &[], None).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("cache-control"), "no-store");
    let letter: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(letter["value"]["json"]["itemId"], MARKUP);
    assert_eq!(letter["history"][0]["message"], "history of event-1");

    let hiding = Served::start(&dlq, &[("PIPELINE_CONSOLE__SHOW_VALUES", "false")]);
    let answer = hiding.ask("GET", "letters/0:1", &[], None).await;
    assert!(!answer.text.contains("<script>") && !answer.text.contains("key-1"), "{answer:?}");
    let letter: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!((&letter["event_id"], &letter["key"]["text"]), (&json!("event-1"), &json!("hidden")));
    let refused = hiding.ask("POST", "letters/0:1/plans", &[], Some(r#"{"json":"{}"}"#)).await;
    assert_eq!(refused.status, 403, "{refused:?}");
}

#[tokio::test]
async fn a_corrected_value_goes_out_under_the_same_id() {
    let dlq = Dlq::new(2).await;
    dlq.fill(10);
    let console = Served::start(&dlq, &[]);
    let letter = console.get("letters/1:0").await;
    assert_eq!(letter["event_id"], "event-1");
    let mut value = letter["value"]["json"].clone();
    value["quantity"] = json!(77);
    let wrong = console.ask("POST", "letters/1:0/plans", &[], Some(r#"{"json":"{\"nothing\":1}"}"#)).await;
    assert_eq!(wrong.status, 422, "{wrong:?}");

    let begun = console.post("letters/1:0/plans", &json!({ "json": value.to_string() })).await;
    let plan = console.phase(&begun, &["planned"]).await;
    assert_eq!(number(&plan["job"], "planned"), 1);
    console.run(&plan, json!({})).await;
    console.ended(&plan).await;
    let copies = dlq.copies("retry-1");
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].text("x-ladder-event-id"), "event-1");
    let order: crate::dlq::setup::OrderPlaced = prost::Message::decode(&copies[0].value[..]).unwrap();
    assert_eq!((order.quantity, order.item_id.as_str()), (77, MARKUP));
}

#[tokio::test]
async fn the_live_stream_tells_of_depths_and_pauses() {
    let dlq = Dlq::new(2).await;
    dlq.fill(10);
    let console = Served::start(&dlq, &[]);
    let mut live = console.live().await;
    let letters = |look: &Value| look["pipelines"][0]["stages"][2]["letters"].clone();
    let stage = |look: &Value| look["pipelines"][0]["stages"][1].clone();
    live.until(|look| letters(look) == json!({ "open": 10, "redriven": 0, "discarded": 0 })).await;
    assert!(dlq.run(&["discard", "--class", "poison", "--reason", "x", "--yes"]).status.success());
    live.until(|look| letters(look) == json!({ "open": 8, "redriven": 0, "discarded": 2 })).await;

    console.post("stages/retry-1", &json!({ "paused": true, "reason": "deploy", "who": "ann" })).await;
    let paused = live.until(|look| stage(look)["paused"].is_object()).await;
    let paused = stage(&paused)["paused"].clone();
    assert_eq!(paused["reason"], "deploy");
    assert!(paused["by"].as_str().unwrap().starts_with("ann (console of "), "{paused}");
    console.post("stages/retry-1", &json!({ "paused": false })).await;
    live.until(|look| stage(look)["paused"].is_null()).await;
    assert_eq!(console.ask("POST", "stages/retry-9", &[], Some(r#"{"paused":true}"#)).await.status, 404);
}

#[tokio::test]
async fn the_letters_of_a_group_are_the_same_whether_their_places_are_known_or_looked_for() {
    let dlq = Dlq::new(3).await;
    dlq.fill(300);
    let console = Served::start(&dlq, &[]);
    let ids = |page: &Value| -> Vec<String> {
        page["letters"].as_array().unwrap().iter().map(|l| l["event_id"].as_str().unwrap().to_owned()).collect()
    };
    let groups = dlq.json(&["groups", "--json"]);
    let fingerprint = groups[0]["fingerprint"].as_str().unwrap();
    let path = format!("letters?fingerprint={fingerprint}&state=open&size=40");
    let first = console.get(&path).await;
    assert_eq!(first["total"], 300, "looked for");
    let known = until(|| async {
        let counted = console.get("groups").await["reading"] == false;
        let page = console.get(&path).await;
        (counted && page["total"] == 0).then_some(page)
    });
    let known = known.await;
    assert_eq!((ids(&known), &known["next"]), (ids(&first), &first["next"]));
    let next = format!("{path}&from={}", known["next"].as_str().unwrap());
    let second = console.get(&next).await;
    assert_eq!((ids(&second).len(), &second["next"]), (20, &Value::Null));
    assert!(ids(&second).iter().all(|id| !ids(&known).contains(id)));
}
