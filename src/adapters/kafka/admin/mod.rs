//! Topics on the cluster: look, create, add partitions, and nothing else; never deletes, never alters a setting.
//!
//! [`plan`] says which topics there should be and what differs (pure), [`topics`] is what `pipeline topics` does,
//! [`startup`] decides whether stages may start.
//!
//! Invariants: looking at a topic never creates it (the lookups go through a consumer, which asks the broker not to);
//! nothing waits longer than its time-out; librdkafka's own complaints go to the log at DEBUG and the last of them
//! into the error that we return.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

pub mod plan;
pub mod startup;
pub mod topics;

use plan::{ActualTopic, PipelineTopics, TopicSpec};

/// Longest wait for one request to a cluster that was reachable a moment ago.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait until created topics are in the metadata with a leader for each partition.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is about to change.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What goes wrong between us and the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses a setting; the value is left out, it may be a secret.
    #[error("kafka client setting `{key}` refused: {reason}")]
    Settings {
        /// Name of the librdkafka property, or `client` when it is the combination.
        key: String,
        /// librdkafka's reason.
        reason: String,
    },
    /// No broker answered in time.
    #[error("kafka not reachable at {brokers} within {}: {cause}", humantime::format_duration(*timeout))]
    Unreachable {
        /// As configured.
        brokers: String,
        /// How long we tried.
        timeout: Duration,
        /// The client's last complaint.
        cause: String,
    },
    /// Topics that the stages need do not exist.
    #[error("topics missing at {brokers}: {}; remedy: scripts/create-topics.sh creates them", topics.join(", "))]
    Missing {
        /// As configured.
        brokers: String,
        /// Name of each, with a remark where it may only be hidden.
        topics: Vec<String>,
    },
    /// Topics are such that events would be lost.
    #[error(
        "topics would break the delivery promise, nothing started (`allow_unsafe_topics: true` overrides):\n{}",
        faults.join("\n")
    )]
    Unsafe {
        /// One text per difference, remedy included.
        faults: Vec<String>,
    },
    /// The cluster answered with an error.
    #[error("kafka at {brokers}: {action}: {source}")]
    Kafka {
        /// As configured.
        brokers: String,
        /// What we asked for.
        action: &'static str,
        /// Its answer.
        source: KafkaError,
    },
}

impl Error {
    /// The process's exit code for this error: 64 settings or unsafe topics, 69 unreachable or missing, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Settings { .. } | Error::Unsafe { .. } => 64,
            Error::Unreachable { .. } | Error::Missing { .. } => 69,
            Error::Kafka { .. } => 1,
        }
    }
}

/// Where the cluster is and how to talk to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// librdkafka properties for every client (`security.protocol`, `sasl.*`, …).
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.properties.keys().collect();
        f.debug_struct("Connection").field("brokers", &self.brokers).field("properties", &names).finish()
    }
}

impl Connection {
    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", "retry-ladder-admin");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

/// What is known about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// It is there.
    Exists(ActualTopic),
    /// It is not.
    Missing,
    /// It is not in the list that this user may see, and the broker does not say whether it exists.
    Hidden,
}

/// What became of the wish to create a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// We created it.
    Created,
    /// Somebody else had, or was faster.
    Existed,
    /// The cluster refused.
    Refused(String),
}

/// A topic that was a rung of a ladder and still holds events for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Name of the pipeline that it belonged to.
    pub pipeline: String,
    /// Name of the topic.
    pub topic: String,
    /// Name of the stage that it was.
    pub stage: String,
    /// Consumer group whose committed offsets were compared.
    pub group: String,
    /// Records that the group has not consumed; `None` when this user may not read its offsets.
    pub backlog: Option<u64>,
}

impl fmt::Display for Orphan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backlog {
            Some(count) => write!(f, "{count} messages that group {} has not consumed", self.group)?,
            None => write!(f, "an unknown backlog: the offsets of group {} cannot be read", self.group)?,
        }
        write!(f, ", no rung of pipeline {} now; drain with --stage orphan:{}", self.pipeline, self.topic)
    }
}

/// A connection for looking at topics and creating them. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    lookup: BaseConsumer<Quiet>,
    client: AdminClient<Quiet>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admin").field(&self.inner.connection).finish()
    }
}

impl Admin {
    /// Makes the clients; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Settings`] when librdkafka refuses a property.
    pub fn new(connection: Connection) -> Result<Self, Error> {
        let config = connection.client_config();
        let lookup = config.create_with_context(Quiet::default()).map_err(settings_error)?;
        let client = config.create_with_context(Quiet::default()).map_err(settings_error)?;
        Ok(Self { inner: Arc::new(Inner { connection, lookup, client }) })
    }

    /// [`Admin::new`] and [`Admin::wait_reachable`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn connect(connection: Connection, timeout: Duration) -> Result<Self, Error> {
        let admin = Self::new(connection)?;
        admin.wait_reachable(timeout).await?;
        Ok(admin)
    }

    /// The brokers as configured.
    pub fn brokers(&self) -> &str {
        &self.inner.connection.brokers
    }

    /// Waits until a broker answers.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when none did within `timeout`.
    pub async fn wait_reachable(&self, timeout: Duration) -> Result<(), Error> {
        let end = Instant::now() + timeout;
        // One call could wait for the whole time, but then a signal would not end the process: growing slices.
        let mut slice = Duration::from_secs(1);
        loop {
            let patience = slice.min(end.saturating_duration_since(Instant::now()));
            let answer = self.blocking(move |inner| inner.listing(patience)).await?;
            match answer {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < end => {}
                Err(last) => {
                    let cause = self.inner.complaint().unwrap_or_else(|| last.to_string());
                    return Err(Error::Unreachable { brokers: self.brokers().to_owned(), timeout, cause });
                }
            }
            slice = slice.saturating_mul(2);
        }
    }

    /// The state of each of these topics.
    ///
    /// # Errors
    /// When the cluster does not answer. A setting that may not be read is no error, see [`ActualTopic::configs`].
    pub async fn describe(&self, topics: &BTreeSet<String>) -> Result<BTreeMap<String, TopicState>, Error> {
        let end = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let listing = self.list().await?;
            let settings = topics.iter().map(|topic| async move { (topic, self.topic_configs(topic).await) });
            let settings = futures::future::join_all(settings).await;
            let mut states = BTreeMap::new();
            let mut in_doubt = false;
            for (topic, settings) in settings {
                let listed = listing.topics.get(topic);
                let state = match (listed, settings?) {
                    (Some(listed), Ok(configs)) => TopicState::Exists(listed.actual(Ok(configs))),
                    (None, Err(ConfigsUnread::NoSuchTopic)) => TopicState::Missing,
                    // One broker knows it, the other not yet or not any more: look again.
                    (Some(_), Err(ConfigsUnread::NoSuchTopic)) | (None, Ok(_)) => {
                        in_doubt = true;
                        TopicState::Missing
                    }
                    (Some(listed), Err(ConfigsUnread::Refused(why))) => TopicState::Exists(listed.actual(Err(why))),
                    (None, Err(ConfigsUnread::Refused(_))) => TopicState::Hidden,
                };
                states.insert(topic.clone(), state);
            }
            if !in_doubt || Instant::now() >= end {
                return Ok(states);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Creates topics and waits until the metadata shows them with a leader for each partition. Safe to repeat, and
    /// while others do the same.
    ///
    /// # Errors
    /// When the cluster does not answer, or does not show them in time. A refused topic is no error, see [`Creation`].
    pub async fn create(&self, specs: &[TopicSpec]) -> Result<BTreeMap<String, Creation>, Error> {
        let end = Instant::now() + VISIBLE_TIMEOUT;
        let mut results = BTreeMap::new();
        let mut open: Vec<&TopicSpec> = specs.iter().collect();
        while !open.is_empty() {
            let topics: Vec<NewTopic<'_>> = open.iter().map(|spec| new_topic(spec)).collect();
            let options = options().operation_timeout(Some(REQUEST_TIMEOUT));
            let answers = self.inner.client.create_topics(&topics, &options).await;
            let answers = answers.map_err(|e| self.failed("create topics", e))?;
            for answer in answers {
                match answer {
                    Ok(topic) => results.insert(topic, Creation::Created),
                    Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => results.insert(topic, Creation::Existed),
                    // Outcome unknown, or nobody to ask just now: the next try tells.
                    Err((_, code)) if passing(code) && Instant::now() < end => None,
                    Err((topic, code)) => {
                        let why = self.refusal(code, specs).await;
                        results.insert(topic, Creation::Refused(why))
                    }
                };
            }
            open.retain(|spec| !results.contains_key(&spec.topic));
            if !open.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        let visible = specs.iter().filter(|spec| !matches!(results.get(&spec.topic), Some(Creation::Refused(_))));
        let visible = visible.map(|spec| (spec.topic.clone(), 1)).collect();
        self.wait_visible(&visible, end).await?;
        Ok(results)
    }

    /// Raises topics to this many partitions and waits until the metadata shows them. A topic that has as many
    /// already is left alone.
    ///
    /// # Errors
    /// When the cluster does not answer. A refused topic is not in the answer's `Ok`, it has the reason.
    pub async fn add_partitions(
        &self,
        topics: &BTreeMap<String, i32>,
    ) -> Result<BTreeMap<String, Result<(), String>>, Error> {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let wanted: Vec<NewPartitions<'_>> = topics
            .iter()
            .map(|(topic, count)| NewPartitions::new(topic, usize::try_from(*count).unwrap_or_default()))
            .collect();
        let options = options().operation_timeout(Some(REQUEST_TIMEOUT));
        let answers = self.inner.client.create_partitions(&wanted, &options).await;
        let answers = answers.map_err(|e| self.failed("add partitions", e))?;
        let mut results = BTreeMap::new();
        let mut visible = BTreeMap::new();
        for answer in answers {
            // InvalidPartitions: it has as many by now, somebody was faster.
            let (topic, result) = match answer {
                Ok(topic) | Err((topic, RDKafkaErrorCode::InvalidPartitions)) => (topic, Ok(())),
                Err((topic, code)) => (topic, Err(code.to_string())),
            };
            if let (Ok(()), Some(count)) = (&result, topics.get(&topic)) {
                visible.insert(topic.clone(), *count);
            }
            results.insert(topic, result);
        }
        self.wait_visible(&visible, Instant::now() + VISIBLE_TIMEOUT).await?;
        Ok(results)
    }

    /// Topics that are named like a rung of one of these ladders, are not among the `known` ones, and hold a backlog.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn list_orphans(
        &self,
        pipelines: &[PipelineTopics],
        known: &BTreeSet<String>,
    ) -> Result<Vec<Orphan>, Error> {
        let listing = self.list().await?;
        let mut candidates = Vec::new();
        for pipeline in pipelines {
            for (topic, listed) in &listing.topics {
                if let Some(stage) = plan::orphan_stage(pipeline, known, topic) {
                    let group = format!("{}.{stage}", pipeline.group);
                    let (pipeline, stage) = (pipeline.pipeline.clone(), stage.to_owned());
                    let orphan = Orphan { pipeline, topic: topic.clone(), stage, group, backlog: None };
                    candidates.push((orphan, listed.partitions));
                }
            }
        }
        let mut orphans = Vec::new();
        for (mut orphan, partitions) in candidates {
            let (topic, group) = (orphan.topic.clone(), orphan.group.clone());
            match self.blocking(move |inner| inner.backlog(&topic, partitions, &group)).await? {
                Ok(backlog) => orphan.backlog = Some(backlog),
                Err(why) => tracing::debug!(topic = orphan.topic, group = orphan.group, %why, "backlog unknown"),
            }
            if orphan.backlog != Some(0) {
                orphans.push(orphan);
            }
        }
        Ok(orphans)
    }

    /// End minus start offset, summed over a topic's partitions: the number of records, except that transaction
    /// markers and compacted records count too. `None` when it could not be read.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn messages(&self, topic: &str, partitions: i32) -> Result<Option<u64>, Error> {
        let topic = topic.to_owned();
        self.blocking(move |inner| {
            let spans = (0..partitions).map(|partition| inner.watermarks(&topic, partition));
            let sum = spans.map(|span| span.map(|(low, high)| count(low, high))).sum::<Result<u64, KafkaError>>();
            sum.map_err(|why| tracing::debug!(topic, %why, "watermarks unknown")).ok()
        })
        .await
    }

    // ------------------------------------------------------------------------------------------ helpers

    async fn list(&self) -> Result<Listing, Error> {
        let listing = self.blocking(|inner| inner.listing(REQUEST_TIMEOUT)).await?;
        listing.map_err(|e| self.failed("list topics", e))
    }

    /// The effective settings of one topic. One request each, because an error in the answer does not name its topic.
    async fn topic_configs(&self, topic: &str) -> Result<Result<BTreeMap<String, String>, ConfigsUnread>, Error> {
        let answer = self.inner.client.describe_configs([&ResourceSpecifier::Topic(topic)], &options()).await;
        match answer {
            Ok(resources) => Ok(match resources.into_iter().next() {
                Some(Ok(resource)) => {
                    Ok(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
                }
                Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) => Err(ConfigsUnread::NoSuchTopic),
                Some(Err(code)) => Err(ConfigsUnread::Refused(code.to_string())),
                None => Err(ConfigsUnread::Refused("empty answer".to_owned())),
            }),
            Err(KafkaError::AdminOp(code)) if !passing(code) => Ok(Err(ConfigsUnread::Refused(code.to_string()))),
            Err(e) => Err(self.failed("read topic settings", e)),
        }
    }

    /// Waits until each topic shows this many partitions, each with a leader.
    async fn wait_visible(&self, topics: &BTreeMap<String, i32>, end: Instant) -> Result<(), Error> {
        loop {
            let listing = self.list().await?;
            let visible = |(topic, count): (&String, &i32)| {
                listing.topics.get(topic).is_some_and(|listed| listed.all_led && listed.partitions >= *count)
            };
            if topics.iter().all(visible) {
                return Ok(());
            }
            if Instant::now() >= end {
                let timed_out = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
                return Err(self.failed("wait until topics have leaders", timed_out));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn refusal(&self, code: RDKafkaErrorCode, specs: &[TopicSpec]) -> String {
        let brokers = match self.list().await {
            Ok(listing) if code == RDKafkaErrorCode::InvalidReplicationFactor => listing.brokers,
            _ => return code.to_string(),
        };
        let wanted = specs.iter().map(|spec| spec.replication).max().unwrap_or_default();
        format!("replication {wanted} needs as many brokers, the cluster has {brokers}: set `replication` to {brokers}")
    }

    fn failed(&self, action: &'static str, source: KafkaError) -> Error {
        let brokers = self.brokers().to_owned();
        match source.rdkafka_error_code().or(admin_code(&source)) {
            Some(code) if unreachable(code) => {
                let cause = self.inner.complaint().unwrap_or_else(|| format!("{action}: {source}"));
                Error::Unreachable { brokers, timeout: REQUEST_TIMEOUT, cause }
            }
            _ => Error::Kafka { brokers, action, source },
        }
    }

    /// Runs a call that blocks its thread.
    async fn blocking<T: Send + 'static>(&self, call: impl FnOnce(&Inner) -> T + Send + 'static) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        match tokio::task::spawn_blocking(move || call(&inner)).await {
            Ok(answer) => Ok(answer),
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(self.failed("run a request", KafkaError::Canceled)),
        }
    }
}

/// Why the settings of a topic are not known.
enum ConfigsUnread {
    NoSuchTopic,
    Refused(String),
}

/// What the metadata say.
struct Listing {
    topics: BTreeMap<String, Listed>,
    brokers: usize,
}

struct Listed {
    partitions: i32,
    replication: i32,
    all_led: bool,
}

impl Listed {
    fn actual(&self, configs: Result<BTreeMap<String, String>, String>) -> ActualTopic {
        ActualTopic { partitions: self.partitions, replication: self.replication, configs }
    }
}

impl Inner {
    /// All topics: naming one in the request could create it.
    fn listing(&self, timeout: Duration) -> Result<Listing, KafkaError> {
        let metadata = self.lookup.fetch_metadata(None, timeout);
        self.serve_events();
        let metadata = metadata?;
        let topics = metadata.topics().iter().map(|topic| {
            let partitions = topic.partitions();
            let replication = partitions.iter().map(|p| p.replicas().len()).min().unwrap_or_default();
            let listed = Listed {
                partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
                replication: i32::try_from(replication).unwrap_or(i32::MAX),
                all_led: !partitions.is_empty() && partitions.iter().all(|p| p.leader() >= 0),
            };
            (topic.name().to_owned(), listed)
        });
        Ok(Listing { topics: topics.collect(), brokers: metadata.brokers().len() })
    }

    fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        self.lookup.fetch_watermarks(topic, partition, REQUEST_TIMEOUT)
    }

    /// Records of a topic that a group has not consumed; from the log's start where it has committed nothing.
    fn backlog(&self, topic: &str, partitions: i32, group: &str) -> Result<u64, KafkaError> {
        let mut config = self.connection.client_config();
        config.set("group.id", group).set("enable.auto.commit", "false");
        // Neither subscribes nor joins: it only asks the coordinator for the group's offsets.
        let reader: BaseConsumer<Quiet> = config.create_with_context(Quiet::default())?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, partitions - 1);
        let committed = reader.committed_offsets(asked, REQUEST_TIMEOUT)?;
        let mut backlog = 0;
        for element in committed.elements_for_topic(topic) {
            element.error()?;
            let (low, high) = self.watermarks(topic, element.partition())?;
            let next = match element.offset() {
                Offset::Offset(offset) => offset.max(low),
                _ => low,
            };
            backlog += count(next, high);
        }
        Ok(backlog)
    }

    /// Delivers the client's logs and errors to its context.
    fn serve_events(&self) {
        // An error event comes back as a result, and is in the context by then; bounded against a storm of them.
        for _ in 0..100 {
            if self.lookup.poll(Duration::ZERO).is_none() {
                break;
            }
        }
    }

    fn complaint(&self) -> Option<String> {
        self.lookup.context().last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Keeps librdkafka's voice down and remembers its last complaint.
#[derive(Default)]
struct Quiet {
    last: Mutex<Option<String>>,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
        // "all brokers down" follows every reason and explains none.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Quiet {}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT))
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    let topic = NewTopic::new(&spec.topic, spec.partitions, TopicReplication::Fixed(spec.replication));
    spec.configs.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
}

fn count(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or_default()
}

/// rdkafka does not tell this one through `rdkafka_error_code`.
fn admin_code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => None,
    }
}

/// The request did not get through.
fn unreachable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as E;
    matches!(
        code,
        E::BrokerTransportFailure | E::AllBrokersDown | E::OperationTimedOut | E::Resolve | E::Authentication
    )
}

/// May succeed a moment later.
fn passing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as E;
    unreachable(code)
        || matches!(code, E::RequestTimedOut | E::NotController | E::NetworkException | E::CoordinatorLoadInProgress)
}

/// Without the value, which may be a secret.
fn settings_error(error: KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, reason, key, _) => Error::Settings { key, reason },
        other => Error::Settings { key: "client".to_owned(), reason: other.to_string() },
    }
}
