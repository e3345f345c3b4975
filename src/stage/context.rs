//! What all lanes of a stage share: the ladder, the ports, the settings, the counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::clock::Clock;
use super::gate::Gate;
use super::ports::{Handler, IdempotencyStore, Publisher, Tracer};
use super::stats::StageStats;
use crate::ladder::headers::{CompatHeaders, CopyKeys, IdSource};
use crate::ladder::lane::{Dedup, LaneConfig, Order};
use crate::ladder::rungs::{Ladder, Rung};

/// Reads the value of a record.
pub trait Decode: Send + Sync + 'static {
    /// The Protobuf bytes in a record's value, framing taken off.
    ///
    /// # Errors
    /// Why the value is not a message of the pipeline's type: the record is poison.
    fn payload(&self, value: &Bytes) -> Result<Bytes, String>;

    /// The configured id field, `None` when it is empty or missing.
    fn event_id(&self, payload: &[u8]) -> Option<String>;
}

/// What to do with null values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tombstones {
    /// To the DLQ, class poison.
    DeadLetter,
    /// To the handler, with an empty payload.
    Deliver,
    /// Done at once.
    Skip,
}

/// How an event is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// By an idempotent producer; the offset follows the acknowledgement.
    Idempotent,
    /// Hops and offsets in one transaction.
    Transactional,
}

/// Settings of a stage.
#[derive(Clone, Debug)]
pub struct StageSettings {
    /// Handlers in flight in this process.
    pub concurrency: usize,
    /// A handler is cancelled after this long.
    pub handler_timeout: Duration,
    /// Order among events of one key.
    pub order: Order,
    /// With [`Order::Ladder`]: how long beyond its due time an event is waited for by those behind it.
    pub order_patience: Duration,
    /// With [`Order::Ladder`]: events of one key that may be in the ladder.
    pub order_room: usize,
    /// Whether values have to be readable; if not, the handler is given them as they are.
    pub decode: bool,
    /// Null values.
    pub tombstones: Tombstones,
    /// How events are sent on.
    pub forward: Forward,
    /// How claims are made.
    pub dedup: Dedup,
    /// Lease of a claim.
    pub lease: Duration,
    /// How long a finished copy is remembered.
    pub done_ttl: Duration,
    /// How long a copy that moved on is remembered.
    pub handed_ttl: Duration,
    /// How long the first copy after a redrive is remembered: at least the DLQ's retention.
    pub redriven_ttl: Duration,
    /// Where event ids come from.
    pub id_source: IdSource,
    /// Headers for other tools' readers on DLQ records.
    pub compat: CompatHeaders,
    /// Events of one partition that may wait in memory.
    pub max_waiting: usize,
    /// Bytes that they may hold.
    pub max_waiting_bytes: usize,
    /// Events of one partition that may be past their due time and not finished.
    pub max_in_flight: usize,
    /// Bytes that these may hold.
    pub max_in_flight_bytes: usize,
}

impl Default for StageSettings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self {
            concurrency: 64,
            handler_timeout: Duration::from_secs(30),
            order: Order::Stage,
            order_patience: Duration::from_secs(60 * 60),
            order_room: 1_000,
            decode: true,
            tombstones: Tombstones::DeadLetter,
            forward: Forward::Idempotent,
            dedup: Dedup::Required,
            lease: Duration::from_secs(15),
            done_ttl: day,
            handed_ttl: day,
            redriven_ttl: day * 30,
            id_source: IdSource::default(),
            compat: CompatHeaders::default(),
            max_waiting: 1_000,
            max_waiting_bytes: 4 << 20,
            max_in_flight: 1_000,
            max_in_flight_bytes: 16 << 20,
        }
    }
}

/// Partition counts of the ladder's topics, by rung, as they were at the start.
#[derive(Clone, Debug)]
pub struct Partitions(pub Vec<i32>);

impl Partitions {
    /// The partition on `target` for a record of `partition` on `source`: the same number where the target has as
    /// many partitions, else `None` (by key).
    pub fn keep(&self, source: usize, target: usize, partition: i32) -> Option<i32> {
        let (from, to) = (self.0.get(source)?, self.0.get(target)?);
        (to >= from && partition < *from).then_some(partition)
    }

    /// Whether the source has gained partitions since the start: this one was not there.
    pub fn gained(&self, source: usize, partition: i32) -> bool {
        self.0.get(source).is_some_and(|count| partition >= *count)
    }
}

/// What all lanes of a stage share.
pub struct StageContext {
    /// The ladder.
    pub ladder: Arc<Ladder>,
    /// Index of this stage's rung.
    pub stage: usize,
    /// Full name of the Protobuf message.
    pub message: Arc<str>,
    /// Reads values.
    pub decode: Arc<dyn Decode>,
    /// Executes events.
    pub handler: Arc<dyn Handler>,
    /// Deduplication records; unused with [`Dedup::Off`].
    pub store: Arc<dyn IdempotencyStore>,
    /// Produces hops.
    pub publisher: Arc<dyn Publisher>,
    /// Takes spans; `None`: nothing is traced, and trace contexts pass untouched.
    pub tracer: Option<Arc<dyn Tracer>>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Permits to run handlers.
    pub permits: Arc<Semaphore>,
    /// Asked before an event is started.
    pub gate: Gate,
    /// Partition counts.
    pub partitions: Partitions,
    /// Set once the stage's topic is seen to have gained partitions: from then on hops go by key.
    pub gained_partitions: AtomicBool,
    /// Settings.
    pub settings: StageSettings,
    /// Names copies in the store.
    pub keys: CopyKeys,
    /// 64 random bits of this process's start.
    pub process: u64,
    /// Counters.
    pub stats: Arc<StageStats>,
}

/// Lanes opened by this process, so that no two share sequence numbers.
static LANES: AtomicU64 = AtomicU64::new(0);

impl StageContext {
    /// The stage's rung.
    pub fn rung(&self) -> &Rung {
        &self.ladder.rungs()[self.stage]
    }

    /// The partition for the next copy of a record of `partition`, `None`: by key.
    pub(super) fn next_partition(&self, target: usize, partition: i32) -> Option<i32> {
        if self.partitions.gained(self.stage, partition) && !self.gained_partitions.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                topic = %self.rung().topic,
                "the topic has gained partitions; hops go by key until a restart. Raise the retry topics, too: \
                 pipeline topics create --add-partitions"
            );
        }
        if self.gained_partitions.load(Ordering::Relaxed) {
            return None;
        }
        self.partitions.keep(self.stage, target, partition)
    }

    pub(super) fn lane_config(&self) -> LaneConfig {
        let number = LANES.fetch_add(1, Ordering::Relaxed);
        LaneConfig {
            order: self.settings.order,
            dedup: self.settings.dedup,
            lease: self.settings.lease,
            max_waiting: self.settings.max_waiting,
            max_waiting_bytes: self.settings.max_waiting_bytes,
            max_in_flight: self.settings.max_in_flight,
            max_in_flight_bytes: self.settings.max_in_flight_bytes,
            first_sequence: number << 40,
            seed: self.process ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_number_is_kept_where_the_target_has_as_many() {
        let partitions = Partitions(vec![6, 6, 12, 3]);
        for (source, target, partition, kept) in [
            (0, 1, 5, Some(5)),
            (0, 2, 5, Some(5)),
            (0, 3, 2, None), // fewer: by key, or two keys of one partition would part
            (0, 1, 6, None), // gained since the start
            (0, 9, 0, None),
        ] {
            assert_eq!(partitions.keep(source, target, partition), kept, "{source} {target} {partition}");
        }
        assert!(partitions.gained(0, 6) && !partitions.gained(0, 5));
    }
}
