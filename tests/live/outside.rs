//! Kafka and Redis as an outsider sees them: the proof's own eyes ([`outside`]), which panic here where it tells.

use std::sync::atomic::AtomicBool;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;

use retry_ladder::prove::ledger::{Copy, Produced};
use retry_ladder::prove::outside::{self, Kafka};

fn kafka(brokers: &str) -> Kafka {
    Kafka { brokers: brokers.to_owned(), ..Kafka::default() }
}

/// librdkafka's settings for a plain client.
pub(crate) fn config(brokers: &str) -> ClientConfig {
    kafka(brokers).config()
}

/// Waits for the admin client, which knows only futures.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// Produces events and knows which of them the broker has.
pub(crate) struct Generator(outside::Generator);

impl Generator {
    pub(crate) fn new(brokers: &str, topic: &str) -> Self {
        Self(outside::Generator::new(&kafka(brokers), topic).expect("a producer"))
    }

    /// Hands one event over; partition, offset and timestamp come with the acknowledgement.
    pub(crate) fn send(&self, event: Produced) {
        assert!(self.0.send(event).expect("a producer that takes it"), "a place in the queue");
    }

    /// Waits for every answer; the events, all of them acknowledged.
    pub(crate) fn finish(self) -> Vec<Produced> {
        let (produced, refused) = self.0.finish().expect("all events answered");
        assert!(refused.is_empty(), "{refused:?}");
        produced
    }
}

/// What the consumer's group has committed, by partition; 0 where it never has.
pub(crate) fn committed(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Vec<i64> {
    outside::committed(consumer, topic, partitions).expect("the group's offsets")
}

/// Where the log of each partition ends.
pub(crate) fn ends(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Vec<i64> {
    outside::ends(consumer, topic, partitions).expect("the log's end")
}

/// Every record of a topic that nobody writes to any more.
pub(crate) fn read_back(brokers: &str, topic: &str, partitions: i32) -> Vec<Copy> {
    kafka(brokers).read_back(topic, partitions, &AtomicBool::new(false)).expect("every record")
}

/// Every key under the prefix and its value.
pub(crate) fn keys(redis: &str, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut connection = redis::Client::open(redis).and_then(|c| c.get_connection()).expect("a connection to redis");
    scan(&mut connection, prefix)
        .into_iter()
        .map(|key| {
            let value = redis::cmd("GET").arg(&key).query::<Option<Vec<u8>>>(&mut connection).expect("a value");
            (key, value.unwrap_or_default())
        })
        .collect()
}

fn scan(connection: &mut redis::Connection, prefix: &str) -> Vec<String> {
    let (mut keys, mut cursor) = (std::collections::BTreeSet::new(), 0_u64);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{prefix}:*")).arg("COUNT").arg(1_000);
        let (next, page): (u64, Vec<String>) = scan.query(connection).expect("a page of keys");
        keys.extend(page);
        cursor = next;
        if cursor == 0 {
            return keys.into_iter().collect();
        }
    }
}

/// Leaves nothing on services that others use.
pub(crate) fn clean_up(brokers: &str, topics: &[&str], redis: &str, keys: &[String]) {
    block_on(kafka(brokers).delete_topics(topics)).expect("topics deleted");
    if !keys.is_empty() {
        let mut connection = redis::Client::open(redis).and_then(|c| c.get_connection()).expect("a connection");
        redis::cmd("DEL").arg(keys).exec(&mut connection).expect("keys deleted");
    }
}
