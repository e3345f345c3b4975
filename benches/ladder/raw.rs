//! The yardstick: one thread, rdkafka consume → copy the headers, add three → idempotent produce, with the engine's
//! own client settings.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use retry_ladder::ladder::rungs::Ladder;

use crate::load::{Bench, usage};

pub struct Raw {
    pub rate: f64,
    pub cpu_us: f64,
}

/// As `adapters::kafka` sets them for every consumer, for one of a stage with a delay, for one without, and for the
/// producer.
const CONSUMER: &[(&str, &str)] = &[
    ("auto.offset.reset", "earliest"),
    ("enable.auto.offset.store", "false"),
    ("fetch.queue.backoff.ms", "20"),
    ("fetch.wait.max.ms", "50"),
    ("queued.min.messages", "2000"),
    ("queued.max.messages.kbytes", "1024"),
];
const DELAYED: &[(&str, &str)] = &[("fetch.min.bytes", "32768"), ("fetch.message.max.bytes", "65536")];
const MAIN: &[(&str, &str)] = &[];
const PRODUCER: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "2"),
    ("compression.type", "lz4"),
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "1000000"),
    ("queue.buffering.max.kbytes", "262144"),
    ("message.max.bytes", "100000000"),
    ("batch.size", "1000000"),
];

/// What raw loop and engine are set to, in one line.
pub fn settings(bench: &Bench, stage: usize) -> String {
    let of_stage = if stage == 0 { MAIN } else { DELAYED };
    let fixed = [CONSUMER, of_stage, PRODUCER].concat().into_iter().map(|(key, value)| format!("{key}={value}"));
    let given = bench.properties.consumer.iter().chain(&bench.properties.producer);
    fixed.chain(given.map(|(key, value)| format!("{key}={value}"))).collect::<Vec<_>>().join(" ")
}

fn config(bench: &Bench, parts: &[&[(&str, &str)]]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &bench.properties.brokers);
    for (key, value) in parts.concat() {
        config.set(key, value);
    }
    config
}

/// Reads a stage's topic in a group of its own and produces to the DLQ's topic.
pub fn forward(bench: &Bench, ladder: &Ladder, stage: usize, events: usize) -> Raw {
    let mut consumer = config(bench, &[CONSUMER, if stage == 0 { MAIN } else { DELAYED }]);
    consumer.set("group.id", format!("{}.raw", ladder.topic()));
    consumer.extend(bench.properties.consumer.clone());
    let consumer: BaseConsumer = consumer.create().unwrap();
    let mut producer = config(bench, &[PRODUCER]);
    producer.extend(bench.properties.producer.clone());
    let producer: ThreadedProducer<DefaultProducerContext> = producer.create().unwrap();
    consumer.subscribe(&[&ladder.rungs()[stage].topic]).unwrap();
    let target = &ladder.dlq().topic;
    let cpu = usage().cpu;
    let (mut start, mut seen) = (Instant::now(), 0);
    while seen < events {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.unwrap();
        if seen == 0 {
            start = Instant::now();
        }
        seen += 1;
        let mut headers = OwnedHeaders::new_with_capacity(16);
        if let Some(inbound) = message.headers() {
            for header in inbound.iter() {
                headers = headers.insert(Header { key: header.key, value: header.value });
            }
        }
        for key in ["x-raw-1", "x-raw-2", "x-raw-3"] {
            headers = headers.insert(Header { key, value: Some("1234567890123") });
        }
        let mut record = BaseRecord::to(target)
            .partition(message.partition())
            .key(message.key().unwrap_or_default())
            .payload(message.payload().unwrap_or_default())
            .headers(headers);
        while let Err((_, back)) = producer.send(record) {
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    let wall = start.elapsed().as_secs_f64();
    Raw { rate: events as f64 / wall, cpu_us: (usage().cpu - cpu) * 1e6 / events as f64 }
}
