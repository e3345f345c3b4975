//! Dead letters in number: `cargo bench --bench dlq -- [--letters 1000000]` on a real Kafka.
//!
//! Groups of like errors over the whole DLQ against a plain consumer that reads the same topic and looks at nothing, in
//! turn in one run: a ratio of times, and the memory that it took.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use retry_ladder::adapters::kafka::Properties;
use retry_ladder::admin::dlq::groups::groups;
use retry_ladder::admin::dlq::redrive::Desk;
use retry_ladder::admin::dlq::select::Selection;
use retry_ladder::ladder::headers::IdSource;
use retry_ladder::ladder::rungs::{Ladder, LadderSpec};
use retry_ladder::messages::{Decoder, Framing, Reader};
use retry_ladder::stage::clock::SystemClock;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTITIONS: i32 = 6;
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "Groups over many dead letters, against a plain consumer")]
struct Args {
    /// Kafka brokers.
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092")]
    brokers: String,
    /// Letters on the DLQ.
    #[arg(long, default_value_t = 1_000_000)]
    letters: usize,
    /// Rounds of both.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let topic = format!("bench-dlq-{:08x}", fastrand::u32(..));
    let ladder = Arc::new(Ladder::new(LadderSpec::new("orders", "g", &topic).retry(Duration::from_secs(5))).unwrap());
    create(&args.brokers, &ladder);
    fill(&args.brokers, &ladder, args.letters);
    let desk = Desk::open(
        Properties::new(args.brokers.as_str()),
        Arc::clone(&ladder),
        IdSource::default(),
        Reader::Own(Decoder::new("shop.v1.OrderPlaced", None, Framing::Plain).unwrap()),
        Arc::new(SystemClock),
        None,
    )
    .unwrap();
    println!("{} letters of 5 kinds of error on {PARTITIONS} partitions", args.letters);
    println!("round   plain s   groups s   ratio   groups found");
    for round in 1..=args.rounds {
        let plain = plain(&args.brokers, &ladder.dlq().topic, args.letters);
        let begun = Instant::now();
        let book = desk.book().unwrap();
        let go_on = |_| ControlFlow::Continue(());
        let found = groups(desk.scan().unwrap(), &book, &Selection::default(), go_on).unwrap().unwrap();
        let took = begun.elapsed().as_secs_f64();
        assert_eq!(found.iter().map(|group| group.count).sum::<u64>(), args.letters as u64);
        println!("{round:>5} {plain:>9.2} {took:>10.2} {:>7.2} {:>14}", took / plain, found.len());
    }
    println!("max rss {} MiB", max_rss_mib());
}

fn create(brokers: &str, ladder: &Ladder) {
    let client: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let topics = ladder.rungs().iter().map(|rung| (rung.topic.to_string(), PARTITIONS));
    let topics: Vec<_> = topics.chain([(ladder.redrive_topic().to_string(), 1)]).collect();
    let new: Vec<_> = topics.iter().map(|(name, n)| NewTopic::new(name, *n, TopicReplication::Fixed(1))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let made = runtime.block_on(client.create_topics(&new, &AdminOptions::new())).unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// As the ladder writes them, compat headers and all.
fn fill(brokers: &str, ladder: &Ladder, letters: usize) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("queue.buffering.max.messages", "1000000")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    let value = [b'v'; 512];
    let topic = ladder.dlq().topic.to_string();
    for n in 0..letters {
        let error = match n % 5 {
            0 => format!("permanent: order {n} not found"),
            1 => format!("exhausted: 503 from 10.0.0.{}:80", n % 250),
            2 => format!("exhausted: customer \"{n}\" is locked"),
            3 => "poison: not a shop.v1.OrderPlaced: wrong wire type in quantity".to_owned(),
            _ => format!("expired: connection refused after {n} ms"),
        };
        let (id, origin) = (format!("event-{n}"), format!("{}:{}:{n}:1", ladder.topic(), n % 6));
        let history = format!(r#"[{{"s":0,"t":1795000000000,"ms":12,"e":"transient","m":"{}"}}]"#, &error[..9]);
        let mut headers = OwnedHeaders::new_with_capacity(24);
        for (key, value) in [
            ("x-ladder-event-id", id.as_str()),
            ("x-ladder-stage", "0"),
            ("x-ladder-attempt", "1"),
            ("x-ladder-hop", "1"),
            ("x-ladder-fence", "1795000000000"),
            ("x-ladder-origin", &origin),
            ("x-ladder-group", "g"),
            ("x-ladder-error", &error),
            ("x-ladder-history", &history),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("__dlq.errors.topic", ladder.topic()),
            ("__dlq.errors.partition", "0"),
            ("__dlq.errors.offset", "0"),
            ("__dlq.errors.group", "g"),
            ("__dlq.errors.delivery.count", "1"),
            ("__dlq.errors.message", &error),
            ("kafka_dlt-original-topic", ladder.topic()),
            ("kafka_dlt-original-partition", "\0\0\0\0"),
            ("kafka_dlt-original-offset", "\0\0\0\0\0\0\0\0"),
            ("kafka_dlt-original-timestamp", "\0\0\0\0\0\0\0\0"),
            ("kafka_dlt-original-timestamp-type", "CreateTime"),
            ("kafka_dlt-original-consumer-group", "g"),
            ("kafka_dlt-exception-fqcn", "retry_ladder.permanent"),
            ("kafka_dlt-exception-message", &error),
        ] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut record = BaseRecord::<str, [u8]>::to(&topic).key(&id).payload(&value).headers(headers);
        record = record.partition((n % PARTITIONS as usize) as i32);
        while let Err((error, again)) = producer.send(record) {
            let full = rdkafka::types::RDKafkaErrorCode::QueueFull;
            assert_eq!(error.rdkafka_error_code(), Some(full), "{error}");
            producer.poll(Duration::from_millis(10));
            record = again;
        }
        if n % 1_000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(LIMIT).unwrap();
}

/// Seconds that a consumer takes which looks at nothing, with buffers that it never fills.
fn plain(brokers: &str, topic: &str, letters: usize) -> f64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench-plain")
        .set("enable.auto.commit", "false")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", "32768")
        .set("fetch.wait.max.ms", "50")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    let begun = Instant::now();
    consumer.assign(&list).unwrap();
    let mut read = 0;
    while read < letters {
        consumer.poll(LIMIT).expect("a record in time").unwrap();
        read += 1;
    }
    begun.elapsed().as_secs_f64()
}

/// Largest resident memory of this process, the load included.
fn max_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or_default() / 1024
}
