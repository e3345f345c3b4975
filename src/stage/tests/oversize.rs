//! Records that the broker refuses for their size.

use super::ports::Lines;
use super::*;
use crate::ladder::headers::{CompatHeaders, MAX_OWN_BYTES};

/// A record of ours with a long history, which fails for good with a long text.
fn rig() -> (Rig, Record) {
    let compat = CompatHeaders { kafka: true, spring: true };
    let rig = Rig::new(
        RETRY_2,
        move |s| s.compat = compat,
        |_| async { Outcome::Failed(Failure::permanent("e".repeat(500))) },
    );
    let mut sent = retry(RETRY_2, 0, Duration::ZERO);
    let entry = format!(r#"{{"s":1,"t":1,"ms":1,"e":"transient","m":"{}"}}"#, "m".repeat(100));
    sent.headers.push(header("x-ladder-history", &format!("[{}]", vec![entry; 7].join(","))));
    sent.headers.push(header("theirs", &"t".repeat(300)));
    (rig, sent)
}

fn size(out: &Outgoing) -> usize {
    out.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, |v| v.len())).sum()
}

/// What a record has of the optional parts: history, error text, headers for other readers.
fn parts(out: &Outgoing) -> [bool; 3] {
    let error = value_of(out, "x-ladder-error");
    assert!(error.starts_with("permanent: "), "the class stays");
    let has = |name: &str| out.headers.iter().any(|(n, _)| n == name.as_bytes());
    [has("x-ladder-history"), error.len() > 100, has("__dlq.errors.topic") || has("kafka_dlt-original-topic")]
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_too_large_gives_up_its_optional_parts_one_after_the_other() {
    let (whole, sent) = rig();
    let lane = whole.lane([sent.clone()]);
    whole.position(&lane, 1).await;
    assert!(size(&whole.producer.published()[0]) < MAX_OWN_BYTES + 400);

    let mut limit = size(&whole.producer.published()[0]);
    let steps = [[true, true, true], [false, true, true], [false, false, true], [false, false, false]];
    for tries in 1..=4 {
        let (rig, sent) = rig();
        rig.producer.allow_header_bytes(limit);
        let lane = rig.lane([sent.clone()]);
        rig.position(&lane, 1).await;
        let published = rig.producer.published();
        assert_eq!(published.iter().map(parts).collect::<Vec<_>>(), steps[..tries]);
        for out in &published {
            assert_eq!(
                (&out.key, &out.value, value_of(out, "theirs")),
                (&sent.key, &sent.value, "t".repeat(300).as_str())
            );
        }
        assert_eq!((rig.handler.count(), rig.stored("e0", 2).as_str()), (1, "F"));
        limit = size(published.last().unwrap()) - 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_never_fits_halts_its_partition_and_no_other_and_is_never_skipped() {
    let (rig, sent) = rig();
    rig.producer.allow_header_bytes(100);
    let mut halted = rig.lane([retry(RETRY_2, -1, SECOND * 20), sent]);
    rig.until("it halts", || halted.state().halted()).await;
    assert_eq!(rig.producer.count(), 4, "each form once");
    rig.is_at_rest();
    halted.hand_over(vec![retry(RETRY_2, 1, Duration::ZERO)]);
    rig.producer.allow_header_bytes(0);
    let other = rig.lane([retry(RETRY_2, 50, Duration::ZERO)]);
    rig.position(&other, 51).await;
    rig.pass(SECOND * 300).await;
    assert_eq!((rig.handler.count(), rig.producer.count()), (2, 5), "nothing more starts in the halted one");
    assert_eq!(rig.stage.overview(), LaneOverview { partitions: 2, waiting: 0, in_flight: 3, halted: 1 });
    assert!(rig.drain(&mut halted).await <= Some(0));
}

#[tokio::test(start_paused = true)]
async fn what_runs_in_a_halted_partition_is_finished() {
    let rig = Rig::new(MAIN, as_usual, |event| async move {
        match event.record.offset {
            0 => Outcome::Failed(Failure::permanent("no")),
            _ => {
                tokio::time::sleep(SECOND * 20).await;
                Outcome::Done
            }
        }
    });
    rig.producer.allow_header_bytes(100);
    let mut lane = rig.lane(records(0..3));
    rig.until("it halts", || lane.state().halted()).await;
    rig.until("the others end", || rig.stats().done.get() == 2).await;
    assert_eq!((rig.stored("e1", 0).as_str(), lane.position()), ("1", Some(0)));
    assert_eq!(rig.drain(&mut lane).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_halt_is_said_once() {
    let (subscriber, lines) = Lines::new();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (rig, sent) = rig();
    rig.producer.allow_header_bytes(100);
    let lane = rig.lane([sent]);
    rig.until("it halts", || lane.state().halted()).await;
    lane.hand_over(records(1..9));
    rig.pass(SECOND * 300).await;
    let lines = lines.lock().unwrap().clone();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["partition=0", "offset=0", "reason=\"too_large\"", "topic=orders.billing.retry-2"] {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_hop_count_at_the_limit_does_not_halt_the_partition() {
    let rig = Rig::new(RETRY_1, as_usual, fail);
    let mut sent = retry(RETRY_1, 0, Duration::ZERO);
    let hop = sent.headers.iter_mut().find(|(n, _)| n == "x-ladder-hop").unwrap();
    hop.1 = Some(((1_u64 << 53) - 1).to_string().into());
    let lane = rig.lane([sent]);
    rig.until("it moves on", || lane.position() == Some(1)).await;
    assert_eq!((rig.producer.count(), lane.state().halted()), (1, false));
}
