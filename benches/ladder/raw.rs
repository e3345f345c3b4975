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

pub fn forward(bench: &Bench, ladder: &Ladder, events: usize) -> Raw {
    forward_from(bench, ladder, 1, events)
}

/// Reads a stage's topic in a group of its own and produces to the DLQ's topic.
pub fn forward_from(bench: &Bench, ladder: &Ladder, stage: usize, events: usize) -> Raw {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &bench.properties.brokers)
        .set("group.id", format!("{}.raw", ladder.topic()))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.wait.max.ms", "50")
        .set("fetch.message.max.bytes", "262144")
        .set("queued.min.messages", "10000")
        .set("queued.max.messages.kbytes", "8192")
        .create()
        .unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &bench.properties.brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "2")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .unwrap();
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
