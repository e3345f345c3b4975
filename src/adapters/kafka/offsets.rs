//! Questions about offsets, by somebody who is no member of a group.
//!
//! A leader or coordinator that is being found, elected or loaded is waited for: on a cluster that never had a group
//! the very first question makes Kafka create its offsets topic, and a topic made a moment ago has leaders that not
//! every broker knows. librdkafka hands such answers on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

/// Pause between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The committed offsets of the consumer's group in these partitions; one without any is not in the answer. Blocks its
/// thread, at most about `timeout`.
///
/// # Errors
/// The last answer, when there was no better one in time.
pub(super) fn committed_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(topic, partition);
    }
    if asked.count() == 0 {
        return Ok(BTreeMap::new());
    }
    patiently(timeout, |left| consumer.committed_offsets(asked.clone(), left).and_then(|answer| read(topic, answer)))
}

/// First offset of the log and one past its last. Blocks its thread, at most about `timeout`.
///
/// # Errors
/// As [`committed_offsets`].
pub(super) fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<(i64, i64), KafkaError> {
    patiently(timeout, |left| consumer.fetch_watermarks(topic, partition, left))
}

/// For each partition the offset that `at` means, which may be a time given as an offset; one without any (a time
/// after the last record) is not in the answer. Blocks its thread, at most about `timeout`.
///
/// # Errors
/// As [`committed_offsets`].
pub(super) fn offsets_at<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    at: Offset,
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition_offset(topic, partition, at)?;
    }
    if asked.count() == 0 {
        return Ok(BTreeMap::new());
    }
    patiently(timeout, |left| consumer.offsets_for_times(asked.clone(), left).and_then(|answer| read(topic, answer)))
}

/// Asks again while the answer says that there will be a better one.
fn patiently<T>(timeout: Duration, mut ask: impl FnMut(Duration) -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(ASK_AGAIN);
        match ask(left) {
            Err(error) if passing(&error) && Instant::now() < end => std::thread::sleep(ASK_AGAIN),
            result => return result,
        }
    }
}

fn read(topic: &str, answer: TopicPartitionList) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let mut offsets = BTreeMap::new();
    for element in answer.elements_for_topic(topic) {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), offset);
        }
    }
    Ok(offsets)
}

/// The leader or coordinator is about to be there.
fn passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as E;
    matches!(
        error.rdkafka_error_code(),
        Some(
            E::NotCoordinator
                | E::CoordinatorNotAvailable
                | E::CoordinatorLoadInProgress
                | E::WaitingForCoordinator
                | E::NotLeaderForPartition
                | E::LeaderNotAvailable
        )
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::consumer::CommitMode;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn cluster() -> (MockCluster<'static, DefaultProducerContext>, BaseConsumer) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 2, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        let consumer = config.create().unwrap();
        (cluster, consumer)
    }

    fn commit(consumer: &BaseConsumer, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("t", 1, Offset::Offset(offset)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }

    #[test]
    fn a_coordinator_that_comes_late_is_waited_for() {
        let (cluster, consumer) = cluster();
        commit(&consumer, 7);
        use RDKafkaRespErr as E;
        cluster.request_errors(
            RDKafkaApiKey::OffsetFetch,
            &[
                E::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
                E::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
                E::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            ],
        );
        let offsets = committed_offsets(&consumer, "t", 0..2, TIMEOUT).unwrap();
        assert_eq!(offsets, BTreeMap::from([(1, 7)]), "partition 0 has none");
    }

    #[test]
    fn a_refusal_is_told_at_once_and_a_coordinator_that_never_comes_in_the_end() {
        let (cluster, consumer) = cluster();
        let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[denied]);
        let error = committed_offsets(&consumer, "t", 0..2, TIMEOUT).unwrap_err();
        assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::GroupAuthorizationFailed));

        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR; 1_000]);
        let error = committed_offsets(&consumer, "t", 0..2, Duration::from_millis(300)).unwrap_err();
        assert!(passing(&error) || error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut), "{error}");
    }
}
