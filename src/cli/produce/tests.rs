//! Publishing against librdkafka's mock cluster, read back by a consumer that looks at the raw records.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Offset, TopicPartitionList};

use super::*;
use crate::messages::Framing;
use crate::stage::ports::{Sampling, Span, SpanKind};

const PARTITIONS: i32 = 4;

struct Read {
    partition: i32,
    key: Option<String>,
    value: Vec<u8>,
    headers: BTreeMap<String, String>,
}

impl Read {
    fn id(&self) -> &str {
        &self.headers["x-ladder-event-id"]
    }
}

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("orders", PARTITIONS, 1).unwrap();
    cluster
}

/// Everything on the topic: reads until each partition is at the end that it has now.
fn read_back(brokers: &str) -> Vec<Read> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset("orders", partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let mut open: BTreeSet<i32> = (0..PARTITIONS).collect();
    let mut records = Vec::new();
    while !open.is_empty() {
        match consumer.poll(Duration::from_secs(20)).expect("the mock cluster answers") {
            Err(rdkafka::error::KafkaError::PartitionEOF(partition)) => {
                open.remove(&partition);
            }
            Err(error) => panic!("{error}"),
            Ok(message) => records.push(Read {
                partition: message.partition(),
                key: message.key().map(|k| String::from_utf8(k.to_vec()).unwrap()),
                value: message.payload().unwrap().to_vec(),
                headers: message
                    .headers()
                    .unwrap()
                    .iter()
                    .map(|h| (h.key.to_owned(), String::from_utf8(h.value.unwrap().to_vec()).unwrap()))
                    .collect(),
            }),
        }
    }
    records
}

fn decoder() -> Decoder {
    Decoder::new("shop.v1.OrderPlaced", None, Framing::Plain).unwrap()
}

fn generated(count: u64) -> Source {
    Source::Generated { count, options: Options::default(), garbage_ratio: 0.0 }
}

fn json(lines: &str) -> Source {
    Source::Json { lines: Box::new(Cursor::new(lines.as_bytes().to_vec())), limit: None }
}

fn publish(request: ProduceRequest) -> (Result<Summary, Error>, Vec<Failure>) {
    let mut told = Vec::new();
    let result = run(request, &mut |update| {
        if let Update::Failed(failure) = update {
            told.push(failure.clone());
        }
    });
    (result, told)
}

#[test]
fn a_thousand_events_arrive_with_unique_ids_headers_and_keys() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let request = ProduceRequest {
        key_field: Some("customer_id".into()),
        ..ProduceRequest::new(&brokers, "orders", decoder(), generated(1_000))
    };
    let (summary, told) = publish(request);
    let summary = summary.unwrap();
    assert_eq!((summary.published, summary.failed, told.len()), (1_000, 0, 0));

    let records = read_back(&brokers);
    assert_eq!(records.len(), 1_000);
    let ids: BTreeSet<&str> = records.iter().map(Read::id).collect();
    let expected: BTreeSet<String> = (1..=1_000).map(|n| format!("{}-{n:09}", summary.run)).collect();
    assert_eq!(ids, expected.iter().map(String::as_str).collect());
    assert_eq!(summary.first_id.as_deref(), expected.first().map(String::as_str));
    assert_eq!(summary.last_id.as_deref(), expected.last().map(String::as_str));

    let hex = |text: &str, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut partition_of = BTreeMap::new();
    let mut traces = BTreeSet::new();
    for record in &records {
        decoder().check(&record.value).unwrap();
        assert_eq!(record.id(), decoder().field(&record.value, "unique_id").unwrap());
        assert_eq!(record.key, decoder().field(&record.value, "customer_id"));
        assert!(hex(&record.headers["correlation-id"], 32));
        let trace: Vec<&str> = record.headers["traceparent"].split('-').collect();
        assert!(trace.len() == 4 && trace[0] == "00" && hex(trace[1], 32) && hex(trace[2], 16) && trace[3] == "01");
        traces.insert(trace[1]);
        assert_eq!(record.headers.len(), 3);
        assert_eq!(*partition_of.entry(record.key.clone()).or_insert(record.partition), record.partition);
    }
    assert_eq!(traces.len(), 1_000, "each event begins a trace of its own");
    assert_eq!(partition_of.values().collect::<BTreeSet<_>>().len(), PARTITIONS as usize);
}

#[test]
fn bad_lines_are_told_by_number_and_the_others_are_published() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let lines = "\u{feff}{\"uniqueId\":\"a\",\"quantity\":1}\n\n{\"uniqueId\":\"b\",\"quantty\":1}\n{\"uniqueId\":\"c\"\n  \n\
                 {\"quantity\":3}\r\n{\"uniqueId\":\"d\"}";
    let request = ProduceRequest {
        id_field: Some("unique_id".into()),
        ..ProduceRequest::new(&brokers, "orders", decoder(), json(lines))
    };
    let (summary, told) = publish(request);
    let summary = summary.unwrap();
    assert_eq!((summary.published, summary.failed), (2, 3));
    assert_eq!((summary.first_id.as_deref(), summary.last_id.as_deref()), (Some("a"), Some("d")));
    assert_eq!(summary.failures, told);
    let parts = [(3, "quantty"), (4, "EOF"), (6, "its id field is empty")];
    for (failure, (line, part)) in told.iter().zip(parts) {
        assert_eq!(failure.line, Some(line), "{failure}");
        assert!(
            failure.error.contains(part) && failure.to_string().starts_with(&format!("line {line}: ")),
            "{failure}"
        );
    }
    let ids: BTreeSet<String> = read_back(&brokers).iter().map(|r| r.id().to_owned()).collect();
    assert_eq!(ids, BTreeSet::from(["a".to_owned(), "d".to_owned()]));
}

#[test]
fn lines_that_are_not_utf8_or_too_long_do_not_stop_the_others() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let mut lines = b"\xff\n".to_vec();
    lines.extend(std::iter::repeat_n(b'x', 17 << 20));
    lines.extend(b"\n{\"uniqueId\":\"c\"}\n");
    let source = Source::Json { lines: Box::new(Cursor::new(lines)), limit: None };
    let (summary, told) = publish(ProduceRequest::new(&brokers, "orders", decoder(), source));
    let summary = summary.unwrap();
    assert_eq!((summary.published, summary.failed), (1, 2));
    assert_eq!(summary.last_id, Some(format!("{}-000000003", summary.run)), "the id tells the line");
    assert!(told[0].error.contains("not UTF-8 at byte 1") && told[1].error.contains("longer than 16 MiB"), "{told:?}");
}

#[test]
fn round_robin_spreads_evenly_and_garbage_is_undecodable() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let source = Source::Generated { count: 400, options: Options::default(), garbage_ratio: 0.25 };
    let request = ProduceRequest {
        partitioner: Partitioner::RoundRobin,
        key_field: Some("customer_id".into()),
        ..ProduceRequest::new(&brokers, "orders", decoder(), source)
    };
    let summary = publish(request).0.unwrap();
    let records = read_back(&brokers);
    for partition in 0..PARTITIONS {
        assert_eq!(records.iter().filter(|r| r.partition == partition).count(), 100);
    }
    let undecodable = records.iter().filter(|r| decoder().check(&r.value).is_err()).count() as u64;
    assert_eq!(undecodable, summary.garbage);
    assert!((50..150).contains(&undecodable), "{undecodable}");
    assert!(records.iter().all(|r| r.key.is_some()));
}

#[test]
fn confluent_values_are_framed() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let decoder = Decoder::new("shop.v1.OrderPlaced", None, Framing::Confluent).unwrap();
    let request =
        ProduceRequest { schema_id: 258, ..ProduceRequest::new(&brokers, "orders", decoder.clone(), generated(3)) };
    publish(request).0.unwrap();
    for record in read_back(&brokers) {
        assert!(record.value.starts_with(b"\0\0\0\x01\x02\0"));
        assert_eq!(decoder.check(&record.value).unwrap().start, 6);
    }
}

#[test]
fn the_rate_is_kept() {
    let cluster = cluster();
    let request = ProduceRequest {
        rate: Some(50.0),
        ..ProduceRequest::new(cluster.bootstrap_servers(), "orders", decoder(), generated(26))
    };
    let summary = publish(request).0.unwrap();
    assert_eq!(summary.published, 26);
    assert!(summary.elapsed_ms >= 500, "25 gaps of 20 ms in {} ms", summary.elapsed_ms);
}

#[test]
fn a_full_queue_is_back_pressure() {
    let cluster = cluster();
    let mut request = ProduceRequest::new(cluster.bootstrap_servers(), "orders", decoder(), generated(2_000));
    request.properties.insert("queue.buffering.max.messages".into(), "20".into());
    request.properties.insert("acks".into(), "0".into());
    let summary = publish(request).0.unwrap();
    assert_eq!((summary.published, summary.failed), (2_000, 0));
}

#[test]
fn an_event_beyond_the_limit_fails_alone() {
    let cluster = cluster();
    let lines = format!("{{\"uniqueId\":\"a\",\"note\":\"{}\"}}\n{{\"uniqueId\":\"b\"}}\n", "x".repeat(5_000));
    let mut request = ProduceRequest::new(cluster.bootstrap_servers(), "orders", decoder(), json(&lines));
    request.properties.insert("message.max.bytes".into(), "2000".into());
    request.properties.insert("batch.size".into(), "2000".into());
    let (summary, told) = publish(request);
    assert_eq!(summary.unwrap().published, 1);
    assert_eq!(told[0].line, Some(1));
    assert!(told[0].error.contains("max.message.bytes"), "{}", told[0]);
}

#[test]
fn a_stop_ends_early_and_keeps_what_was_acknowledged() {
    let cluster = cluster();
    let request = ProduceRequest {
        rate: Some(20.0),
        ..ProduceRequest::new(cluster.bootstrap_servers(), "orders", decoder(), generated(u64::MAX))
    };
    let stop = request.stop.clone();
    let summary = run(request, &mut |update| {
        if let Update::Progress { acknowledged: 3.., .. } = update {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    })
    .unwrap();
    assert!(summary.interrupted && summary.failed == 0);
    assert_eq!(read_back(&cluster.bootstrap_servers()).len() as u64, summary.published);
}

#[test]
fn a_missing_topic_is_told_with_the_remedy_and_not_made() {
    let cluster = cluster();
    let request = ProduceRequest::new(cluster.bootstrap_servers(), "ordres", decoder(), generated(1));
    let error = publish(request).0.unwrap_err();
    assert!(matches!(error, Error::TopicMissing { .. }), "{error:?}");
    assert!(error.to_string().contains("create-topics"), "{error}");
    assert_eq!(error.exit_code(), 69);
}

#[test]
fn a_broker_that_does_not_answer_is_told_in_time() {
    let request = ProduceRequest {
        sample_ratio: 1.0,
        tracer: None,
        startup_timeout: Duration::from_secs(1),
        ..ProduceRequest::new("127.0.0.1:1", "orders", decoder(), generated(1))
    };
    let started = Instant::now();
    let error = publish(request).0.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:1 ") && error.to_string().contains("refused"), "{error}");
    assert_eq!(error.exit_code(), 69);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn wrong_requests_are_refused_before_a_broker_is_asked() {
    let check = |change: &dyn Fn(&mut ProduceRequest), part: &str| {
        let mut request = ProduceRequest::new("127.0.0.1:1", "orders", decoder(), generated(1));
        change(&mut request);
        let error = publish(request).0.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), 64);
    };
    check(&|r| r.key_field = Some("customer".into()), "customer_id");
    check(&|r| r.id_field = Some("amount".into()), "name a field in it");
    check(&|r| r.rate = Some(0.0), "--rate");
    check(&|r| r.rate = Some(f64::NAN), "--rate");
    check(&|r| drop(r.properties.insert("no.such.property".into(), "1".into())), "no.such.property");
    check(
        &|r| r.source = Source::Generated { count: 1, options: Options::default(), garbage_ratio: 1.5 },
        "--garbage-ratio",
    );
}

/// Keeps trace context, partition, offset and error of each span.
#[derive(Debug, Default)]
struct Spans(std::sync::Mutex<Vec<(String, Option<i32>, Option<i64>, bool)>>);

impl Tracer for Spans {
    fn sampling(&self) -> Sampling {
        Sampling::default()
    }

    fn write(&self, span: &Span<'_>) {
        assert_eq!((span.kind, &**span.topic, span.parent), (SpanKind::Send, "orders", None));
        assert!(span.start <= span.end && !span.event_id.is_empty());
        let span = (span.context.to_string(), span.partition, span.offset, span.error.is_some());
        self.0.lock().unwrap().push(span);
    }
}

#[test]
fn a_sampled_event_leaves_the_span_that_its_trace_begins_with() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let spans = Arc::new(Spans::default());
    let request = ProduceRequest {
        sample_ratio: 0.5,
        tracer: Some(Arc::clone(&spans) as _),
        ..ProduceRequest::new(&brokers, "orders", decoder(), generated(400))
    };
    assert_eq!(publish(request).0.unwrap().published, 400);
    let traceparents: BTreeSet<_> = read_back(&brokers).into_iter().map(|r| r.headers["traceparent"].clone()).collect();
    let sampled: BTreeSet<_> = traceparents.iter().filter(|t| t.ends_with("-01")).cloned().collect();
    assert!((100..300).contains(&sampled.len()), "{} of 400 are sampled", sampled.len());
    let spans = spans.0.lock().unwrap();
    assert!(spans.iter().all(|(_, partition, offset, failed)| partition.is_some() && offset.is_some() && !failed));
    assert_eq!(spans.iter().map(|(traceparent, ..)| traceparent.clone()).collect::<BTreeSet<_>>(), sampled);
}

#[test]
fn the_flags_make_the_request() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ProduceArgs,
    }
    let parse = |flags: &str| <Cli as clap::Parser>::try_parse_from(flags.split(' ')).map(|cli| cli.args);
    let target = |framing| Target {
        brokers: "b:1".into(),
        properties: BTreeMap::new(),
        topic: "orders".into(),
        decoder: Decoder::new("shop.v1.OrderPlaced", None, framing).unwrap(),
        sample_ratio: 1.0,
        tracer: None,
        startup_timeout: Duration::from_secs(30),
    };
    let args =
        parse("produce --pipeline orders --count 7 --partitioner round-robin --seed 3 --key-field item_id").unwrap();
    let request = request(&args, target(Framing::Plain), Arc::default()).unwrap();
    assert_eq!(request.partitioner, Partitioner::RoundRobin);
    assert!(matches!(request.source, Source::Generated { count: 7, options: Options { seed: 3, .. }, .. }));
    let args = parse("produce --partitioner murmur2_random --report json").unwrap();
    assert_eq!((args.partitioner, args.report), (Partitioner::Murmur2Random, Report::Json));
    let error = super::request(&args, target(Framing::Confluent), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("--schema-id"), "{error}");
    let missing = parse("produce --json nowhere.jsonl").unwrap();
    let error = super::request(&missing, target(Framing::Plain), Arc::default()).unwrap_err();
    assert!(error.to_string().contains("nowhere.jsonl") && error.exit_code() == 64, "{error}");
    assert!(parse("produce --json - --seed 3").is_err());
}
