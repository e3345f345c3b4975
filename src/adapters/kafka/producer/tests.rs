//! Over librdkafka's mock cluster: every record is answered, to whoever published it, whatever happens to it.

use std::sync::mpsc;

use bytes::Bytes;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;

/// Longest wait for an answer that comes at once on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

type Answer = (u64, Result<(), PublishError>);

struct Sink(mpsc::Sender<Answer>);

impl AckSink for Sink {
    fn acknowledged(&self, ticket: u64, result: Result<(), PublishError>) {
        self.0.send((ticket, result)).unwrap();
    }
}

fn sink() -> (Arc<dyn AckSink>, mpsc::Receiver<Answer>) {
    let (sender, answers) = mpsc::channel();
    (Arc::new(Sink(sender)), answers)
}

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    cluster
}

fn publisher(brokers: &str) -> KafkaPublisher {
    KafkaPublisher::new(Properties::new(brokers), Options::default()).unwrap()
}

fn record(size: usize) -> Outgoing {
    Outgoing {
        topic: "t".into(),
        partition: Some(1),
        key: None,
        value: Some(Bytes::from(vec![b'x'; size])),
        headers: Vec::new(),
    }
}

#[test]
fn every_acknowledgement_reaches_the_ticket_and_the_sink_it_belongs_to() {
    let cluster = cluster();
    let publisher = publisher(&cluster.bootstrap_servers());
    let (odd, odd_answers) = sink();
    let (even, even_answers) = sink();
    for ticket in 0..1_000 {
        publisher.publish(record(10), ticket, if ticket % 2 == 1 { &odd } else { &even });
    }
    assert!(publisher.flush(LIMIT));
    for (answers, first) in [(odd_answers, 1), (even_answers, 0)] {
        let mut tickets: Vec<u64> = answers
            .try_iter()
            .map(|(ticket, result)| {
                result.unwrap();
                ticket
            })
            .collect();
        tickets.sort_unstable();
        assert_eq!(tickets, (first..1_000).step_by(2).collect::<Vec<_>>());
    }
}

#[test]
fn an_oversize_record_is_told_apart_and_fails_no_neighbour() {
    fn check(client_limit: Option<&str>) {
        let cluster = cluster();
        let mut properties = Properties::new(cluster.bootstrap_servers());
        match client_limit {
            Some(limit) => drop(properties.producer.insert("message.max.bytes".into(), limit.into())),
            None => {
                cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE])
            }
        }
        let publisher = KafkaPublisher::new(properties, Options::default()).unwrap();
        let (acks, answers) = sink();
        publisher.publish(record(5_000), 7, &acks);
        let (ticket, result) = answers.recv_timeout(LIMIT).unwrap();
        assert_eq!(ticket, 7);
        assert!(matches!(result, Err(PublishError::TooLarge)), "{result:?}");
        publisher.publish(record(10), 8, &acks);
        let (ticket, result) = answers.recv_timeout(LIMIT).unwrap();
        assert_eq!(ticket, 8);
        result.unwrap();
    }
    // Refused by the client itself, and by the broker.
    check(Some("2000"));
    check(None);
}

#[test]
fn a_record_that_no_broker_takes_is_answered_after_the_message_timeout() {
    let options = Options { message_timeout: Duration::from_secs(1), ..Options::default() };
    let publisher = KafkaPublisher::new(Properties::new("127.0.0.1:1"), options).unwrap();
    let (acks, answers) = sink();
    publisher.publish(record(10), 3, &acks);
    let (ticket, result) = answers.recv_timeout(LIMIT).unwrap();
    assert_eq!(ticket, 3);
    assert!(matches!(result, Err(PublishError::Unacknowledged(_))), "{result:?}");
}

#[test]
fn a_broker_that_is_away_for_a_while_costs_no_record() {
    let cluster = cluster();
    let publisher = publisher(&cluster.bootstrap_servers());
    let (acks, answers) = sink();
    publisher.publish(record(10), 0, &acks);
    answers.recv_timeout(LIMIT).unwrap().1.unwrap();
    cluster.broker_down(1).unwrap();
    for ticket in 1..=100 {
        publisher.publish(record(10), ticket, &acks);
    }
    assert!(answers.recv_timeout(Duration::from_millis(300)).is_err(), "nobody can have answered");
    cluster.broker_up(1).unwrap();
    let mut tickets: Vec<u64> = (1..=100)
        .map(|_| {
            let (ticket, result) = answers.recv_timeout(LIMIT).unwrap();
            result.unwrap();
            ticket
        })
        .collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (1..=100).collect::<Vec<_>>());
}

#[test]
fn after_a_fatal_error_the_producer_is_rebuilt_and_goes_on() {
    let cluster = cluster();
    let publisher = publisher(&cluster.bootstrap_servers());
    let (acks, answers) = sink();
    for round in 0..3 {
        cluster
            .request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
        let before = Arc::clone(&publisher.current.read().unwrap());
        let publish = |ticket| {
            publisher.publish(record(10), ticket, &acks);
            let (answered, result) = answers.recv_timeout(LIMIT).unwrap();
            assert_eq!(answered, ticket);
            result
        };
        let result = publish(round * 100);
        assert!(matches!(result, Err(PublishError::Unacknowledged(_))), "{result:?}");
        assert!(before.client().fatal_error().is_some(), "the fault is not the one that is meant");
        // As a lane does: again until it is acknowledged. One try at most meets the failed producer.
        let tries = (1..100).find(|n| publish(round * 100 + n).is_ok()).unwrap();
        assert!(tries <= 2, "{tries}");
        assert!(!Arc::ptr_eq(&before, &publisher.current.read().unwrap()));
    }
    assert!(answers.try_recv().is_err(), "every record is answered once");
}

#[test]
fn a_record_that_was_refused_is_not_acknowledged_by_the_success_of_a_later_one() {
    let cluster = cluster();
    let publisher = publisher(&cluster.bootstrap_servers());
    let (acks, answers) = sink();
    // Something that is there, so that the producer has its id and knows the partition.
    publisher.publish(Outgoing { partition: Some(0), ..record(1) }, 100, &acks);
    answers.recv_timeout(LIMIT).unwrap().1.unwrap();
    // Two requests under way at once: the first is refused, the second is taken, as by a broker to which the producer is
    // new. (A producer that is known would see it refused, too.)
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).unwrap();
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refused, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR]);
    publisher.publish(record(10), 0, &acks);
    std::thread::sleep(Duration::from_millis(100));
    publisher.publish(record(20), 1, &acks);
    let mut told = [false; 2];
    for _ in 0..2 {
        let (ticket, result) = answers.recv_timeout(LIMIT).unwrap();
        told[ticket as usize] = result.is_ok();
    }
    let reader: rdkafka::consumer::BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
    let (first, end) = rdkafka::consumer::Consumer::fetch_watermarks(&reader, "t", 1, LIMIT).unwrap();
    let acknowledged = told.iter().filter(|ok| **ok).count() as i64;
    assert!(acknowledged <= end - first, "{told:?}, and {} records are there", end - first);
    assert_eq!((told, end - first), ([false, true], 1), "the fault is not the one that is meant");
}

#[test]
fn properties_that_librdkafka_refuses_are_an_error_that_says_where_to_look() {
    let mut properties = Properties::new("127.0.0.1:1");
    properties.producer.insert("linger.mss".into(), "1".into());
    let error = KafkaPublisher::new(properties, Options::default()).err().unwrap().to_string();
    assert!(error.contains("linger.mss") && error.contains("kafka.producer_properties"), "{error}");
}
