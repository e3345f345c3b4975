//! Over librdkafka's mock cluster, with the test in the place of the lanes.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use rdkafka::consumer::{ConsumerContext, Rebalance};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset};

use super::*;
use crate::adapters::kafka::producer::{KafkaPublisher, Options as ProducerOptions};
use crate::adapters::kafka::raw;
use crate::stage::lanes::{LaneEnds, LaneHandle};
use crate::stage::ports::{AckSink, Outgoing, PublishError, Publisher};
use crate::stage::record::Record;

/// Longest wait for something that takes seconds (the mock's groups wait 3 s for members).
const LIMIT: Duration = Duration::from_secs(60);
const MAX_IN_FLIGHT: usize = 100;

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Header = (&'static [u8], Option<&'static [u8]>);

fn cluster(partitions: i32) -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", partitions, 1).unwrap();
    cluster
}

fn options() -> Options {
    Options {
        topic: "t".into(),
        group_id: "g".into(),
        group_instance_id: None,
        session_timeout: Duration::from_secs(6),
        drain_timeout: Duration::from_secs(10),
        delay: Some(Duration::from_secs(5)),
        transactional: None,
    }
}

struct Acks(mpsc::Sender<()>);

impl AckSink for Acks {
    fn acknowledged(&self, _ticket: u64, result: Result<(), PublishError>) {
        result.unwrap();
        self.0.send(()).unwrap();
    }
}

/// Publishes with our own producer, and waits for the acknowledgements.
fn publish(cluster: &Cluster, records: Vec<(i32, Option<&'static [u8]>, Option<&'static [u8]>, Vec<Header>)>) {
    let publisher =
        KafkaPublisher::new(Properties::new(cluster.bootstrap_servers()), ProducerOptions::default()).unwrap();
    let (sender, answers) = mpsc::channel();
    let acks: Arc<dyn AckSink> = Arc::new(Acks(sender));
    let count = records.len();
    for (partition, key, value, headers) in records {
        let record = Outgoing {
            topic: "t".into(),
            partition: Some(partition),
            key: key.map(Bytes::from_static),
            value: value.map(Bytes::from_static),
            headers: headers.into_iter().map(|(n, v)| (n.into(), v.map(Bytes::from_static))).collect(),
        };
        publisher.publish(record, 0, &acks);
    }
    (0..count).for_each(|_| answers.recv_timeout(LIMIT).unwrap());
}

fn plain(partition: i32, count: usize) -> Vec<(i32, Option<&'static [u8]>, Option<&'static [u8]>, Vec<Header>)> {
    (0..count).map(|_| (partition, None, Some(b"v".as_slice()), Vec::new())).collect()
}

/// Gives the test the lanes' ends.
struct Host(mpsc::Sender<(i32, LaneEnds)>);

impl LaneHost for Host {
    fn open(&self, partition: i32) -> LaneHandle {
        let (handle, ends) = LaneHandle::new(MAX_IN_FLIGHT);
        self.0.send((partition, ends)).unwrap();
        handle
    }
}

fn consumer(cluster: &Cluster, options: Options) -> (StageConsumer, mpsc::Receiver<(i32, LaneEnds)>) {
    let (sender, lanes) = mpsc::channel();
    let properties = Properties::new(cluster.bootstrap_servers());
    (StageConsumer::new(&properties, options, Arc::new(Host(sender))).unwrap(), lanes)
}

/// A stage's consumer on its poll thread.
struct Running {
    lanes: mpsc::Receiver<(i32, LaneEnds)>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    /// Keeps the poll thread from going on.
    hold: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<(), Error>>>,
}

impl Running {
    fn start(cluster: &Cluster, options: Options) -> Self {
        let (consumer, lanes) = consumer(cluster, options);
        Self::run(consumer, lanes)
    }

    fn run(consumer: StageConsumer, lanes: mpsc::Receiver<(i32, LaneEnds)>) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let hold = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (stop, rounds, hold) = (Arc::clone(&stop), Arc::clone(&rounds), Arc::clone(&hold));
            move || {
                consumer.run(&stop, || {
                    rounds.fetch_add(1, Ordering::Relaxed);
                    while hold.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                })
            }
        });
        Self { lanes, stop, rounds, hold, thread: Some(thread) }
    }

    fn lane(&self) -> (i32, LaneEnds) {
        self.lanes.recv_timeout(LIMIT).unwrap()
    }

    /// Waits until so many rounds of polling have been completed.
    fn rounds(&self, count: u64) {
        let until = self.rounds.load(Ordering::Relaxed) + count;
        wait("rounds of polling", || self.rounds.load(Ordering::Relaxed) > until);
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn ended(&self) -> bool {
        self.thread.as_ref().is_some_and(std::thread::JoinHandle::is_finished)
    }

    fn join(mut self) -> Result<(), Error> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The next command to a lane.
fn command(lane: &mut LaneEnds) -> LaneCommand {
    let begun = Instant::now();
    loop {
        match lane.commands.try_recv() {
            Ok(command) => return command,
            Err(error) => assert!(begun.elapsed() < LIMIT, "no command: {error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// So many records, from as many commands as it takes.
fn records(lane: &mut LaneEnds, count: usize) -> Vec<Record> {
    let mut all = Vec::new();
    while all.len() < count {
        match command(lane) {
            LaneCommand::Records(records) => {
                lane.state.taken_in(records.len());
                all.extend(records);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all.len(), count);
    all
}

fn offsets(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.offset).collect()
}

fn committed(cluster: &Cluster, partition: i32) -> Option<i64> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition("t", partition);
    match consumer.committed_offsets(list, LIMIT).unwrap().elements()[0].offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

#[test]
fn records_come_out_byte_for_byte_and_null_is_not_empty() {
    let cluster = cluster(1);
    let headers: Vec<Header> = vec![
        (b"plain", Some(b"v")),
        (b"plain", Some(b"again")),
        (b"\xff\xfe name", Some(b"\x00\xff\x80")),
        (b"\xc3\x28", None),
        (b"", Some(b"nameless")),
        (b"empty", Some(b"")),
        (b"null", None),
    ];
    let sent: Vec<(i32, Option<&'static [u8]>, Option<&'static [u8]>, Vec<Header>)> = vec![
        (0, Some(b"k"), Some(b"v"), headers),
        (0, None, None, vec![]),
        (0, Some(b""), Some(b""), vec![]),
        (0, None, Some(b"\xff\x00"), vec![]),
        (0, Some(b"\xff\x00"), None, vec![(b"\x80", Some(b"\x80"))]),
    ];
    publish(&cluster, sent.clone());
    let running = Running::start(&cluster, options());
    let (partition, mut lane) = running.lane();
    assert_eq!(partition, 0);
    let got = records(&mut lane, sent.len());
    assert_eq!(offsets(&got), (0..sent.len() as i64).collect::<Vec<_>>());
    for (record, (partition, key, value, headers)) in got.iter().zip(&sent) {
        assert_eq!(record.partition, *partition);
        assert_eq!(record.key.as_deref(), *key);
        assert_eq!(record.value.as_deref(), *value);
        assert_eq!(record.headers().collect::<Vec<_>>(), *headers);
        assert!(record.timestamp_ms > 0);
    }
}

#[test]
fn what_a_lane_calls_done_is_committed_as_it_is() {
    let cluster = cluster(2);
    publish(&cluster, plain(0, 10));
    let running = Running::start(&cluster, options());
    let mut lanes: Vec<_> = [running.lane(), running.lane()].into();
    lanes.sort_by_key(|(partition, _)| *partition);
    let lane = &mut lanes[0].1;
    records(lane, 10);
    assert_eq!(committed(&cluster, 0), None, "nothing is done yet");
    // Never one more than the lane says: 4 is the first event that is not done.
    for position in [4, 9, 10] {
        lane.state.tell(Some(position), false, 0, 0, false);
        wait("the commit", || committed(&cluster, 0) == Some(position));
    }
    assert_eq!(committed(&cluster, 1), None, "nothing was delivered there");
}

#[test]
fn a_partition_pauses_and_resumes_at_the_lanes_wish_and_loses_nothing() {
    let cluster = cluster(2);
    publish(&cluster, plain(0, 3));
    let running = Running::start(&cluster, options());
    let mut lanes: Vec<_> = [running.lane(), running.lane()].into();
    lanes.sort_by_key(|(partition, _)| *partition);
    let [(_, first), (_, second)] = lanes.as_mut_slice() else { panic!("two lanes") };
    records(first, 3);

    first.state.tell(Some(0), true, 0, 0, false);
    running.rounds(2);
    publish(&cluster, [plain(0, 5), plain(1, 5)].concat());
    // The other partition is not held up, and polling goes on.
    assert_eq!(offsets(&records(second, 5)), [0, 1, 2, 3, 4]);
    running.rounds(20);
    assert!(first.commands.try_recv().is_err(), "paused");

    first.state.tell(Some(3), false, 0, 0, false);
    assert_eq!(offsets(&records(first, 5)), [3, 4, 5, 6, 7]);
}

#[test]
fn a_lane_is_given_what_it_has_room_for_and_a_full_one_holds_up_no_other() {
    let cluster = cluster(2);
    publish(&cluster, [plain(0, MAX_IN_FLIGHT * 3), plain(1, 1)].concat());
    let running = Running::start(&cluster, options());
    let mut lanes: Vec<_> = [running.lane(), running.lane()].into();
    lanes.sort_by_key(|(partition, _)| *partition);
    let [(_, full), (_, other)] = lanes.as_mut_slice() else { panic!("two lanes") };
    assert_eq!(offsets(&records(other, 1)), [0]);
    wait("a full lane", || full.state.in_flight() > MAX_IN_FLIGHT / 2);
    // It takes nothing in: it gets no more than it may hold, and the other one goes on.
    publish(&cluster, plain(1, 5));
    assert_eq!(offsets(&records(other, 5)), [1, 2, 3, 4, 5]);
    running.rounds(20);
    assert!(full.state.in_flight() <= MAX_IN_FLIGHT, "{}", full.state.in_flight());
    // Also after its partition was paused, for being full so long, nothing is missing and nothing comes twice.
    std::thread::sleep(FULL);
    running.rounds(2);
    let mut all = Vec::new();
    while all.len() < MAX_IN_FLIGHT * 3 {
        let LaneCommand::Records(some) = command(full) else { panic!("records") };
        assert!(some.len() <= MAX_IN_FLIGHT);
        full.state.taken_in(some.len());
        all.extend(offsets(&some));
        full.state.tell(Some(all.len() as i64), false, 0, 0, false);
    }
    assert!(all.iter().copied().eq(0..(MAX_IN_FLIGHT * 3) as i64), "{all:?}");
}

#[test]
fn a_full_lane_is_paused_unless_its_next_event_falls_due_soon() {
    let (handle, ends) = LaneHandle::new(1);
    let mut assigned = Assigned::new(handle);
    let now = SystemClock.now().wall;
    let mut check = |full_for: Option<Duration>, next_due, paused| {
        assigned.full_since = full_for.map(|time| Instant::now().checked_sub(time).unwrap());
        ends.state.tell_due(next_due);
        assert_eq!(assigned.wants_pause(), paused, "{full_for:?}, {next_due:?}");
    };
    check(None, None, false);
    check(Some(Duration::ZERO), None, false);
    check(Some(FULL), None, true);
    check(Some(FULL), Some(now + Duration::from_secs(3_600)), true);
    check(Some(FULL), Some(now), false);
}

#[test]
fn a_stage_with_a_delay_lets_the_broker_collect_for_a_part_of_it() {
    let cluster = cluster(1);
    let check = |delay: Option<u64>, min_bytes: Option<&str>, wait: &str| {
        let options = Options { delay: delay.map(Duration::from_millis), ..options() };
        let config = consumer(&cluster, options).0.config;
        assert_eq!((config.get("fetch.min.bytes"), config.get("fetch.wait.max.ms")), (min_bytes, Some(wait)));
    };
    check(None, None, "50");
    check(Some(5_000), Some("32768"), "50");
    check(Some(100), Some("32768"), "25");
    check(Some(1), Some("32768"), "1");
}

#[test]
fn a_lane_that_has_room_again_ends_its_poll_threads_wait() {
    let (handle, ends) = LaneHandle::new(10);
    assert_eq!(handle.room(), 10);
    handle.hand_over(vec![record(0); 6]);
    assert_eq!(handle.room(), 0, "more than half of what it may hold");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            ends.state.taken_in(6);
            ends.state.tell(Some(0), true, 9, 0, false);
            ends.state.tell(Some(0), false, 4, 3, false);
        });
        // Without the wake-up this would hang: there is no time-out.
        while handle.room() == 0 {
            std::thread::park();
        }
    });
    assert_eq!(handle.room(), 7);
}

#[test]
fn stopping_waits_for_the_lanes_and_commits_what_they_reached() {
    let cluster = cluster(1);
    publish(&cluster, plain(0, 10));
    let running = Running::start(&cluster, options());
    let (_, mut lane) = running.lane();
    records(&mut lane, 10);
    running.stop();
    assert!(matches!(command(&mut lane), LaneCommand::Drain));
    assert!(!running.ended(), "the lane has not ended");
    lane.state.tell(Some(7), false, 0, 0, false);
    lane.ended.send_replace(true);
    running.join().unwrap();
    assert_eq!(committed(&cluster, 0), Some(7));
}

#[test]
fn stopping_waits_no_longer_than_the_drain_time() {
    let cluster = cluster(1);
    publish(&cluster, plain(0, 10));
    let running = Running::start(&cluster, Options { drain_timeout: Duration::from_millis(100), ..options() });
    let (_, mut lane) = running.lane();
    records(&mut lane, 10);
    lane.state.tell(Some(2), false, 0, 0, false);
    running.stop();
    let ended = running.join();
    assert!(matches!(ended, Err(Error::Undrained { partitions: 1, .. })), "{ended:?}");
    assert!(matches!(command(&mut lane), LaneCommand::Drain));
    assert!(matches!(command(&mut lane), LaneCommand::Stop));
    assert_eq!(committed(&cluster, 0), Some(2), "as far as it came");
}

#[test]
fn a_fenced_consumer_lets_its_lanes_finish_and_stores_nothing() {
    let cluster = cluster(1);
    publish(&cluster, plain(0, 10));
    let running = Running::start(&cluster, Options { group_instance_id: Some("one".into()), ..options() });
    let (_, mut lane) = running.lane();
    records(&mut lane, 10);
    cluster.request_errors(RDKafkaApiKey::Heartbeat, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
    assert!(matches!(command(&mut lane), LaneCommand::Drain));
    assert!(!running.ended(), "the lane has not ended");
    lane.state.tell(Some(7), false, 0, 0, false);
    lane.ended.send_replace(true);
    let error = running.join().unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(committed(&cluster, 0), None);
}

#[test]
fn a_member_that_is_fenced_by_its_own_last_commit_joins_again() {
    // As a real coordinator answers: it knows the instance, by another member id than none.
    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
    // Whether the poll thread learns of it only after that answer has come.
    for late in [false, true] {
        let cluster = cluster(1);
        publish(&cluster, plain(0, 10));
        let mut properties = Properties::new(cluster.bootstrap_servers());
        properties.common.insert("reconnect.backoff.max.ms".into(), "250".into());
        let (sender, lanes) = mpsc::channel();
        let options = Options { group_instance_id: Some("one".into()), ..options() };
        let stage = StageConsumer::new(&properties, options, Arc::new(Host(sender))).unwrap();
        let client = Arc::clone(&stage.consumer);
        let running = Running::run(stage, lanes);
        let (_, mut lane) = running.lane();
        records(&mut lane, 10);
        // The coordinator is away for longer than the session, and something is to be committed.
        cluster.broker_down(1).unwrap();
        lane.state.tell(Some(7), false, 0, 0, false);
        running.rounds(20);
        running.hold.store(late, Ordering::Relaxed);
        wait("the loss of the membership", || !raw::has_member_id(&client));
        cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[fenced]);
        cluster.broker_up(1).unwrap();
        wait("the answer", || !late || client.client().fatal_error().is_some());
        drop(client);
        running.hold.store(false, Ordering::Relaxed);
        assert!(matches!(command(&mut lane), LaneCommand::Drain));

        let (_, mut lane) = running.lane();
        assert_eq!(offsets(&records(&mut lane, 10)), (0..10).collect::<Vec<_>>(), "nothing was committed");
        // Whoever is fenced without having lost anything has to go.
        cluster.request_errors(RDKafkaApiKey::Heartbeat, &[fenced]);
        assert!(matches!(command(&mut lane), LaneCommand::Drain));
        lane.ended.send_replace(true);
        let error = running.join().unwrap_err();
        assert!(matches!(error, Error::Fenced { .. }), "{error}");
    }
}

#[test]
fn a_client_that_is_fenced_before_it_had_a_place_tries_again() {
    let cluster = cluster(1);
    publish(&cluster, plain(0, 10));
    cluster.request_errors(RDKafkaApiKey::JoinGroup, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID]);
    let running = Running::start(&cluster, Options { group_instance_id: Some("one".into()), ..options() });
    let (_, mut lane) = running.lane();
    records(&mut lane, 10);
}

#[test]
fn a_partition_that_comes_back_gets_a_new_lane_from_the_stored_watermark_on() {
    let cluster = cluster(1);
    publish(&cluster, plain(0, 10));
    let first = Running::start(&cluster, options());
    let (_, mut lane) = first.lane();
    records(&mut lane, 10);
    lane.state.tell(Some(4), true, 0, 0, false);
    first.stop();
    assert!(matches!(command(&mut lane), LaneCommand::Drain));
    lane.ended.send_replace(true);
    first.join().unwrap();
    // It was paused when it went; it comes back unpaused.
    let second = Running::start(&cluster, options());
    let (_, mut lane) = second.lane();
    assert_eq!(offsets(&records(&mut lane, 6)), [4, 5, 6, 7, 8, 9]);
}

fn record(offset: i64) -> Record {
    Record { partition: 0, offset, timestamp_ms: 0, key: None, value: None, headers: Vec::new() }
}

#[test]
fn records_of_an_earlier_assignment_never_reach_a_later_lane() {
    let cluster = cluster(1);
    let (stage, lanes) = consumer(&cluster, options());
    let context = stage.consumer.context();
    // Nobody is asked where to start.
    context.over.store(true, Ordering::Relaxed);
    let mut list = TopicPartitionList::new();
    list.add_partition("t", 0);
    let rebalance = |event: &Rebalance<'_>| context.pre_rebalance(&stage.consumer, event);

    rebalance(&Rebalance::Assign(&list));
    let (_, mut earlier) = lanes.try_recv().unwrap();
    // Polled in the round in which the partition goes and comes back.
    context.lanes().get_mut(&0).unwrap().batch.push(record(41));
    earlier.ended.send_replace(true);
    rebalance(&Rebalance::Revoke(&list));
    rebalance(&Rebalance::Assign(&list));
    let (_, mut later) = lanes.try_recv().unwrap();

    assert!(matches!(earlier.commands.try_recv(), Ok(LaneCommand::Drain)));
    assert!(earlier.commands.try_recv().is_err(), "let go: what still runs there is finished, not cut off");
    assert!(later.commands.try_recv().is_err());
    let lanes = context.lanes();
    assert!(lanes[&0].batch.is_empty());
    // Nor does the earlier lane's watermark count for the later one.
    earlier.state.tell(Some(42), true, 0, 0, false);
    assert_eq!((lanes[&0].lane.position(), lanes[&0].paused, lanes[&0].stored), (None, false, -1));
}

#[test]
fn heartbeats_are_frequent_however_long_the_session() {
    fn check(session_ms: u64, heartbeat_ms: u64) {
        assert_eq!(heartbeat(Duration::from_millis(session_ms)), Duration::from_millis(heartbeat_ms));
    }
    check(1_000, 200);
    check(6_000, 1_000);
    check(15_000, 1_000);
    check(1_800_000, 1_000);
}

#[test]
fn properties_that_librdkafka_refuses_are_an_error_that_says_where_to_look() {
    let mut properties = Properties::new("127.0.0.1:1");
    properties.consumer.insert("fetch.wait.max.mss".into(), "1".into());
    let (sender, _lanes) = mpsc::channel();
    let error = StageConsumer::new(&properties, options(), Arc::new(Host(sender))).err().unwrap().to_string();
    assert!(error.contains("fetch.wait.max.mss") && error.contains("kafka.consumer_properties"), "{error}");
}

/// Partition 0 of a group that has committed 4 there, ten records in each of two partitions.
fn half_done() -> Cluster {
    let cluster = cluster(2);
    publish(&cluster, [plain(0, 10), plain(1, 10)].concat());
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("t", 0, Offset::Offset(4)).unwrap();
    consumer.commit(&list, rdkafka::consumer::CommitMode::Sync).unwrap();
    cluster
}

#[track_caller]
fn all_starts_where_it_should(running: &Running) {
    let mut lanes: Vec<_> = [running.lane(), running.lane()].into();
    lanes.sort_by_key(|(partition, _)| *partition);
    assert_eq!(offsets(&records(&mut lanes[0].1, 6)), (4..10).collect::<Vec<_>>(), "what was committed");
    assert_eq!(offsets(&records(&mut lanes[1].1, 10)), (0..10).collect::<Vec<_>>(), "nothing was committed");
}

#[test]
fn partitions_start_although_their_coordinator_has_moved_or_knows_nothing_yet() {
    use RDKafkaRespErr as E;
    for refusals in [
        vec![E::RD_KAFKA_RESP_ERR_NOT_COORDINATOR],
        vec![E::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, E::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS],
        vec![E::RD_KAFKA_RESP_ERR__TRANSPORT, E::RD_KAFKA_RESP_ERR_UNKNOWN],
    ] {
        let cluster = half_done();
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &refusals);
        let running = Running::start(&cluster, options());
        all_starts_where_it_should(&running);
    }
}

#[test]
fn a_client_that_is_never_told_where_to_start_is_replaced() {
    let cluster = half_done();
    cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR; 10_000]);
    let running = Running::start(&cluster, options());
    let (_, mut lane) = running.lane();
    assert!(matches!(command(&mut lane), LaneCommand::Drain));
    drop(running.lane());
    cluster.clear_request_errors(RDKafkaApiKey::OffsetFetch);
    let mut lanes = BTreeMap::from([running.lane(), running.lane()]);
    // What was asked last may still have been refused.
    while !lanes.values().all(|lane| !lane.commands.is_empty()) {
        lanes.extend(running.lanes.try_iter());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(offsets(&records(lanes.get_mut(&0).unwrap(), 6)), (4..10).collect::<Vec<_>>());
    assert_eq!(offsets(&records(lanes.get_mut(&1).unwrap(), 10)), (0..10).collect::<Vec<_>>());
}
