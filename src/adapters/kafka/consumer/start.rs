//! Where partitions start that were just assigned: at what their group has committed, else at their beginning.
//!
//! librdkafka would ask the coordinator itself, but only once: when the coordinator has moved and says so, or goes away
//! while the assignment changes, librdkafka neither repeats the question nor asks for what is assigned later, and these
//! partitions stand still for as long as they are assigned, behind a member that looks healthy.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::adapters::kafka::offsets::committed_offsets;

/// Longest wait for one answer: it may have been lost with its connection.
const ANSWER: Duration = Duration::from_secs(3);
/// Pause between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Writes into the list from where on its partitions are to be read. Blocks its thread, at most about `timeout`, and no
/// longer than the membership lasts.
///
/// # Errors
/// The last answer, when there was no better one in time.
pub(super) fn set<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    assigned: &TopicPartitionList,
    timeout: Duration,
) -> Result<(), KafkaError> {
    let end = Instant::now() + timeout;
    let partitions: Vec<i32> = assigned.elements().iter().map(|element| element.partition()).collect();
    let committed = loop {
        match committed_offsets(consumer, topic, partitions.iter().copied(), ANSWER) {
            Err(error) if Instant::now() < end && !consumer.assignment_lost() => {
                tracing::debug!(topic, ?partitions, %error, "where to start is not known yet");
                std::thread::sleep(ASK_AGAIN);
            }
            result => break result?,
        }
    };
    for mut element in assigned.elements() {
        let start = committed.get(&element.partition()).map_or(Offset::Beginning, |offset| Offset::Offset(*offset));
        element.set_offset(start)?;
    }
    Ok(())
}
