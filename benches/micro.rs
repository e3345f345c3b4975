//! The pure parts of the hot path, alone: `cargo bench --bench micro [-- NAME]` prints nanoseconds per operation, the best
//! of several rounds. For instruction counts, which a busy machine does not disturb:
//! `valgrind --tool=callgrind --toggle-collect='*micro::NAME*' …`, divided by [`ROUNDS`] × [`OPERATIONS`].
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use retry_ladder::ladder::event::{Action, ClaimReply, Failure, Now, Timestamp};
use retry_ladder::ladder::headers::{self, CompatHeaders, Coordinates, CopyKeys, Envelope, IdSource, Move, Shrink};
use retry_ladder::ladder::lane::{Arrival, Dedup, Delivery, Effects, Input, Lane, LaneConfig, Order, Verdict};
use retry_ladder::ladder::offsets::Watermark;
use retry_ladder::ladder::route;
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};

type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Rounds of each benchmark; the best counts.
const ROUNDS: usize = 10;
/// Operations in a round.
const OPERATIONS: usize = 20_000;
/// Events that go through a lane together.
const BATCH: usize = 100;

const AT: Coordinates = Coordinates { partition: 3, offset: 4_711, timestamp_ms: 1_700_000_000_000 };
const NOW: Timestamp = Timestamp::from_millis(1_700_000_005_000);

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let all: [(&str, fn()); 8] = [
        ("read", read),
        ("next", next),
        ("key", key),
        ("decide", decide),
        ("watermark", watermark),
        ("lane", lane),
        ("lane_without_store", lane_without_store),
        ("due", due),
    ];
    for (name, bench) in all.into_iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name)) {
        let best = (0..ROUNDS)
            .map(|_| {
                let begin = Instant::now();
                bench();
                begin.elapsed()
            })
            .min();
        println!("{name:<20} {:>8.1} ns", best.unwrap_or_default().as_secs_f64() * 1e9 / OPERATIONS as f64);
    }
}

fn ladder() -> Ladder {
    let delays = [5, 30, 300].map(Duration::from_secs);
    Ladder::new(delays.into_iter().fold(LadderSpec::new("orders", "billing", "orders"), LadderSpec::retry)).unwrap()
}

fn pairs(headers: &Headers) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
    headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()))
}

fn forward() -> Action {
    Action::Forward { stage: 2, due: NOW + Duration::from_secs(30) }
}

fn envelope(ladder: &Ladder, stage: usize, inbound: &Headers) -> Envelope {
    headers::read(ladder, stage, AT, pairs(inbound), &IdSource::default(), None)
}

fn written(ladder: &Ladder, envelope: &Envelope, inbound: &Headers, action: &Action) -> headers::NextHeaders {
    let failure = Failure::transient("connection refused");
    let (started, took) = (NOW, Duration::from_millis(3));
    let compat = CompatHeaders::ALL;
    let step = Move { ladder, envelope, action, failure: &failure, started, took, fence: 7, trace: None, compat };
    headers::next(pairs(inbound), &step, Shrink::Full).unwrap()
}

/// What a record on the first retry stage carries: three headers of others, then ours.
fn inbound(ladder: &Ladder) -> Headers {
    let foreign = [("content-type", "application/x-protobuf"), ("correlation-id", "c-1"), ("ce_type", "order")];
    let main: Headers = foreign.iter().map(|(k, v)| (k.as_bytes().to_vec(), Some(v.as_bytes().to_vec()))).collect();
    let next = written(ladder, &envelope(ladder, 0, &main), &main, &Action::Forward { stage: 1, due: NOW });
    next.pairs(pairs(&main)).into_iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect()
}

#[inline(never)]
fn read() {
    let ladder = ladder();
    let inbound = inbound(&ladder);
    for _ in 0..OPERATIONS {
        black_box(envelope(&ladder, 1, black_box(&inbound)));
    }
}

#[inline(never)]
fn next() {
    let ladder = ladder();
    let inbound = inbound(&ladder);
    let envelope = envelope(&ladder, 1, &inbound);
    let action = forward();
    for _ in 0..OPERATIONS {
        black_box(written(&ladder, black_box(&envelope), &inbound, &action));
    }
}

#[inline(never)]
fn key() {
    let keys = CopyKeys::new("idem", &ladder());
    for hop in 0..OPERATIONS as u64 {
        black_box(keys.key(black_box("orders:3:4711:1700000000000"), hop));
    }
}

#[inline(never)]
fn decide() {
    let ladder = ladder();
    let envelope = envelope(&ladder, 1, &inbound(&ladder));
    let failure = Failure::transient("connection refused");
    for _ in 0..OPERATIONS {
        black_box(route::decide(&ladder, black_box(&envelope), Err(&failure), NOW, 0.5));
    }
}

#[inline(never)]
fn watermark() {
    let mut watermark = Watermark::new();
    let mut tickets = Vec::with_capacity(BATCH);
    for first in (0..OPERATIONS).step_by(BATCH) {
        tickets.extend((first..first + BATCH).map(|offset| watermark.deliver(offset as i64)));
        // Half of them out of order.
        for ticket in tickets.iter().skip(1).step_by(2).chain(tickets.iter().step_by(2)) {
            black_box(watermark.done(*ticket));
        }
        tickets.clear();
        black_box(watermark.position());
    }
}

fn config(dedup: Dedup) -> LaneConfig {
    LaneConfig {
        order: Order::Stage,
        dedup,
        lease: Duration::from_secs(15),
        max_waiting: 200,
        max_waiting_bytes: 4 << 20,
        max_in_flight: 1_000,
        max_in_flight_bytes: 16 << 20,
        first_sequence: 1,
        seed: 7,
    }
}

fn arrivals(first: usize, due: impl Fn(usize) -> Timestamp) -> Vec<Arrival<Box<[u8; 256]>>> {
    let event = |n| Arrival {
        offset: n as i64,
        due: due(n),
        key: Some(n as u64 % 1_000),
        bytes: 800,
        fence: 0,
        item: Box::new([0; 256]),
    };
    (first..first + BATCH).map(event).collect()
}

/// Arrival, claim, failure, acknowledgement, settlement.
fn whole_way(dedup: Dedup) {
    let mut lane = Lane::new(config(dedup));
    let mut fx = Effects::default();
    let now = Now { wall: NOW, boot: Duration::from_secs(1_000) };
    for first in (0..OPERATIONS).step_by(BATCH) {
        lane.step(now, Input::Arrived(arrivals(first, |_| NOW)), &mut fx);
        lane.step(now, Input::Permits(BATCH, 0), &mut fx);
        if dedup != Dedup::Off {
            let replies = fx.claim.drain(..).map(|slot| (slot, Some(ClaimReply::Claimed))).collect();
            lane.step(now, Input::Claimed(replies, now.boot), &mut fx);
        }
        for slot in std::mem::take(&mut fx.start) {
            lane.step(now, Input::Returned(slot, Verdict::Publish), &mut fx);
        }
        for slot in std::mem::take(&mut fx.publish) {
            lane.step(now, Input::Published(slot, Delivery::Acknowledged), &mut fx);
        }
        if dedup != Dedup::Off {
            let replies = fx.settle.drain(..).map(|(slot, _)| (slot, true)).collect();
            lane.step(now, Input::Settled(replies), &mut fx);
        }
        assert_eq!(fx.finished.len(), BATCH);
        fx.clear();
    }
    black_box(lane.position());
}

#[inline(never)]
fn lane() {
    whole_way(Dedup::Required);
}

#[inline(never)]
fn lane_without_store() {
    whole_way(Dedup::Off);
}

/// Into the heap of waiting events, and out of it in the order of their dues.
#[inline(never)]
fn due() {
    let mut fx = Effects::default();
    for _ in 0..OPERATIONS / BATCH {
        let mut lane = Lane::new(config(Dedup::Off));
        let now = |us: u64| Now { wall: NOW + Duration::from_micros(us), boot: Duration::from_micros(us) };
        lane.step(
            now(0),
            Input::Arrived(arrivals(0, |n| NOW + Duration::from_micros(1 + n as u64 * 37 % 100))),
            &mut fx,
        );
        for us in 0..=100 {
            lane.step(now(us), Input::Tick, &mut fx);
        }
        black_box(lane.wanted(now(100)));
        fx.clear();
    }
}
