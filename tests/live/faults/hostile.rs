//! What nobody should send, in one run with sound events: values that are missing, garbage or too large, ids that are
//! missing, used twice or somebody else's.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use retry_ladder::prove::journal::Blow;
use retry_ladder::prove::ledger::{Header, Produced};

use super::harness::{Run, fault_test, seconds};
use crate::outside;
use crate::redis_server::RedisServer;
use crate::worker::load::event;

const ID: &str = "x-ladder-event-id";

fn header(name: &str, value: &str) -> Header {
    (name.to_owned(), Some(value.as_bytes().to_vec()))
}

/// An event whose fate its payload spells, with other headers of ours than its producer should have set.
fn with_headers(name: &str, n: usize, headers: &[(&str, &str)]) -> Produced {
    let mut event = event(name, n, n as i32 % 4, 9);
    event.record.headers.retain(|(name, _)| name != ID);
    event.record.headers.extend(headers.iter().map(|(name, value)| header(name, value)));
    event
}

fault_test!(hostile_records_end_where_they_should_among_sound_ones, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    run.start("a");
    run.start("b");
    run.load_until_all_work(&["a", "b"]);

    // Null values. (Garbage is in the load.)
    for n in 0..8 {
        let mut tombstone = event(&format!("tomb-{}", 50_000 + n), n, n as i32 % 4, 9);
        tombstone.record.value = None;
        run.source.send_one(tombstone);
    }
    // No id, an empty one, one of a record that another service has copied from its retry topic: it counts as none.
    let copied = [(ID, "theirs"), ("x-ladder-hop", "2"), ("x-ladder-attempt", "7"), ("x-ladder-due", "99999999999999")];
    let broken = [(ID, ""), ("x-ladder-stage", "-1"), ("x-ladder-due", "soon"), ("x-ladder-fence", "\u{fffd}")];
    for (n, name) in (60_000..).zip(["ok", "f1", "f9", "perm", "f2", "ok", "f1", "perm"]) {
        for headers in [&[][..], &copied, &broken] {
            run.source.send_one(with_headers(&format!("{name}-{n}"), n, headers));
        }
    }
    // The same id again, in the same partition and elsewhere: one of them is executed.
    let twice: BTreeSet<String> = ["ok", "f1", "f9", "perm"].map(|kind| format!("{kind}-70000")).into();
    for id in &twice {
        for _ in 0..3 {
            run.source.send_one(event(id, 1, 1, 9));
        }
    }
    run.load(seconds(3.0));
    let ledger = run.finish_with(|produced| {
        for event in &mut *produced {
            let record = &event.record;
            let ours: BTreeSet<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
            let has_id = record.headers.iter().any(|(name, value)| name == ID && value.as_deref() != Some(b""));
            if !has_id || ours.contains("x-ladder-hop") {
                // As the contract has it, for whoever wants to find it again.
                event.id = format!("{{topic}}:{}:{}:{}", record.partition, record.offset, record.timestamp_ms);
            }
        }
        let mut known = BTreeSet::new();
        produced.sort_by_key(|event| (event.record.partition, event.record.offset));
        produced.retain(|event| !twice.contains(&event.id) || known.insert(event.id.clone()));
    });
    let summary = ledger.summary();
    assert_eq!((summary.repeated, summary.copied_again, summary.ended_twice), (0, 0, 0), "{summary}");
});

/// The DLQ's limit, and one that takes everything.
const LIMIT: usize = 50_000;
const ENOUGH: usize = 200_000;

fn limit_dlq(run: &Run, bytes: usize) {
    let client: AdminClient<DefaultClientContext> =
        outside::config(&run.orders.brokers).create().expect("an admin client");
    let dlq = run.orders.ladder().dlq().topic.to_string();
    let bytes = bytes.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&dlq)).set("max.message.bytes", &bytes);
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let done = outside::block_on(client.alter_configs(&[change], &options)).expect("an answer");
    assert!(done.iter().all(Result::is_ok), "{done:?}");
}

fn large(id: &str, n: usize, partition: i32, bytes: usize) -> Produced {
    let mut event = event(id, n, partition, 9);
    // Cannot be compressed, nor decoded.
    event.record.value = Some((0..bytes).map(|_| fastrand::u8(..)).map(|b| b | 0x80).collect());
    event
}

fault_test!(an_event_that_no_topic_takes_halts_its_partition_until_it_is_taken, |test: &str| {
    let redis = RedisServer::start();
    let mut run = Run::shared(test, &redis.url());
    limit_dlq(&run, LIMIT);
    run.start("a");
    run.load_until_all_work(&["a"]);
    // Fits without the headers that can be spared.
    run.source.send_one(large("junk-80000", 80_000, 0, LIMIT - 750));
    // Does not fit at all.
    run.source.send_one(large("junk-80001", 80_001, 3, LIMIT + 10));
    run.load_until("its partition is halted", |run| run.worker("a").log().contains("a partition is halted"));
    let sent = run.source.sent;
    run.load_until("the others go on", |run| run.claims_beyond("a", sent).len() >= 3);
    assert!(!run.is_committed("main"), "the event that was not taken was passed over");

    limit_dlq(&run, ENOUGH);
    run.stop("a");
    // What was in hand behind the halted event it gave up.
    run.interrupted("a", Blow::kill());
    run.start("b");
    run.load_until_all_work(&["b"]);
    let ledger = run.finish();
    assert_eq!(ledger.summary().ended_twice, 0);
    let spared = |id: &str| {
        let dlq = &ledger.stages.last().expect("a dlq").copies;
        let of_id = |copy: &&retry_ladder::prove::ledger::Copy| copy.headers.contains(&header(ID, id));
        let copy = dlq.iter().find(of_id).expect("a dead letter");
        !copy.headers.iter().any(|(name, _)| name.starts_with("kafka_dlt-"))
    };
    assert_eq!((spared("junk-80000"), spared("junk-80001")), (true, false));
});
