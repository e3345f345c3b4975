//! The requests of [`Admin`]: each is a future that waits a bounded time.
//!
//! What a request means for topics.yaml is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::lookup::{Listing, Lookup, Quiet};
use super::plan::{self, ActualTopic, PipelineTopics, TopicSpec};
use super::{Connection, Creation, Error, LOOK_AGAIN, Orphan, REQUEST_TIMEOUT, Retention, TopicState};
use crate::adapters::kafka::client::remedy_of_refusal;

/// Longest wait until created topics are in the metadata with a leader for each partition.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long settings may stay untold before we believe that they may not be read: a broker that answers may not know a
/// topic yet that another one lists.
const SETTINGS_GRACE: Duration = Duration::from_secs(1);

/// A connection for looking at topics and creating them. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    lookup: Arc<Lookup>,
    client: Arc<AdminClient<Quiet>>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admin").field(self.lookup.connection()).finish()
    }
}

impl Admin {
    /// Makes the clients; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Settings`] when librdkafka refuses a property.
    pub fn new(connection: Connection) -> Result<Self, Error> {
        let client = connection.client_config().create_with_context(Quiet::default()).map_err(settings_error)?;
        let lookup = Lookup::new(connection).map_err(settings_error)?;
        Ok(Self { lookup: Arc::new(lookup), client: Arc::new(client) })
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

    /// The same with clients that know nothing yet.
    pub(super) fn anew(&self) -> Result<Self, Error> {
        Self::new(self.lookup.connection().clone())
    }

    /// The brokers as configured.
    pub fn brokers(&self) -> &str {
        &self.lookup.connection().brokers
    }

    /// Waits until a broker answers.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when none did within `timeout`.
    pub async fn wait_reachable(&self, timeout: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        // One call could wait for the whole time, but then a signal would not end the process: growing slices.
        let mut slice = Duration::from_secs(1);
        loop {
            let patience = slice.min(timeout.saturating_sub(begun.elapsed()));
            let answer = self.blocking(move |lookup| lookup.listing(patience)).await?;
            let last = match answer {
                Ok(_) => return Ok(()),
                Err(last) => last,
            };
            if let Some(cause) = self.lookup.complaint()
                && let Some(remedy) = remedy_of_refusal(&cause)
            {
                return Err(Error::Refused { brokers: self.brokers().to_owned(), cause, remedy });
            }
            if begun.elapsed() >= timeout {
                let cause = self.lookup.complaint().unwrap_or_else(|| last.to_string());
                return Err(Error::Unreachable { brokers: self.brokers().to_owned(), timeout, cause });
            }
            // A broker that answers with an error does so at once.
            tokio::time::sleep(LOOK_AGAIN).await;
            slice = slice.saturating_mul(2);
        }
    }

    /// The state of each of these topics.
    ///
    /// # Errors
    /// When the cluster does not answer. A setting that may not be read is no error, see [`ActualTopic::configs`].
    pub async fn describe(&self, topics: &BTreeSet<String>) -> Result<BTreeMap<String, TopicState>, Error> {
        let end = Instant::now() + SETTINGS_GRACE;
        loop {
            let listing = self.list().await?;
            let mut states = BTreeMap::new();
            let mut in_doubt = false;
            for (topic, configs) in self.configs(topics).await? {
                let state = match listing.topics.get(&topic) {
                    Some(listed) => {
                        in_doubt |= configs.is_err();
                        let (partitions, replication) = (listed.partitions, listed.replication);
                        TopicState::Exists(ActualTopic { partitions, replication, configs })
                    }
                    None => self.unlisted(&topic).await?,
                };
                states.insert(topic, state);
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
            let answers = self.client.create_topics(&topics, &options).await;
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
        let mut visible = BTreeMap::new();
        for (topic, creation) in &results {
            let waited_for = match creation {
                Creation::Created => true,
                // One that this user may not describe would never appear.
                Creation::Existed => self.unlisted(topic).await? != TopicState::Hidden,
                Creation::Refused(_) => false,
            };
            if waited_for {
                visible.insert(topic.clone(), 1);
            }
        }
        self.wait_visible(&visible, end).await?;
        Ok(results)
    }

    /// Raises topics to this many partitions and waits until the metadata shows them. A topic that has as many
    /// already is left alone.
    ///
    /// # Errors
    /// When the cluster does not answer. A refused topic is no error, it has the reason for its value.
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
        let answers = self.client.create_partitions(&wanted, &options).await;
        let answers = answers.map_err(|e| self.failed("add partitions", e))?;
        let listing = self.list().await?;
        let mut results = BTreeMap::new();
        let mut visible = BTreeMap::new();
        for (topic, refused) in answers.into_iter().map(|answer| match answer {
            Ok(topic) => (topic, None),
            Err((topic, code)) => (topic, Some(code)),
        }) {
            let count = topics.get(&topic).copied().unwrap_or_default();
            let has_them = listing.topics.get(&topic).is_some_and(|listed| listed.partitions >= count);
            let result = match refused {
                // Somebody was faster.
                Some(RDKafkaErrorCode::InvalidPartitions) if has_them => Ok(()),
                Some(code) => Err(code.to_string()),
                None => {
                    visible.insert(topic.clone(), count);
                    Ok(())
                }
            };
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
            match self.blocking(move |lookup| lookup.backlog(&topic, partitions, &group)).await? {
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
        let name = topic.to_owned();
        let sum = self.blocking(move |lookup| lookup.messages(&name, partitions)).await?;
        Ok(sum.map_err(|why| tracing::debug!(topic, %why, "watermarks unknown")).ok())
    }

    /// For how long each of these topics keeps records; one whose settings cannot be read is [`Retention::Unknown`].
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn retentions(&self, topics: &BTreeSet<String>) -> Result<BTreeMap<String, Retention>, Error> {
        let configs = self.configs(topics).await?.into_iter();
        Ok(configs.map(|(topic, told)| (topic, told.map_or(Retention::Unknown, |c| Retention::of(&c)))).collect())
    }

    // ------------------------------------------------------------------------------------------ helpers

    async fn list(&self) -> Result<Listing, Error> {
        let listing = self.blocking(|lookup| lookup.listing(REQUEST_TIMEOUT)).await?;
        listing.map_err(|e| self.failed("list topics", e))
    }

    /// The effective settings of each topic, or why they are not known.
    async fn configs(
        &self,
        topics: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Result<BTreeMap<String, String>, String>>, Error> {
        let untold = "the broker tells none of them (is the right DESCRIBE_CONFIGS missing?)";
        let mut configs: BTreeMap<_, _> = topics.iter().map(|topic| (topic.clone(), Err(untold.to_owned()))).collect();
        let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let answer = match self.client.describe_configs(&resources, &options()).await {
            Ok(answer) => answer,
            Err(KafkaError::AdminOp(code)) if !passing(code) => {
                let all = configs.keys().map(|topic| (topic.clone(), Err(code.to_string())));
                return Ok(all.collect());
            }
            Err(e) => return Err(self.failed("read topic settings", e)),
        };
        for resource in answer.into_iter().flatten() {
            let OwnedResourceSpecifier::Topic(topic) = resource.specifier else {
                continue;
            };
            // rdkafka drops the error of a resource: a refused or unknown topic is one without any setting.
            if !resource.entries.is_empty() {
                let told = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
                configs.insert(topic, Ok(told.collect()));
            }
        }
        Ok(configs)
    }

    /// Why a topic is not in the list. Asking by name creates nothing, see [`Connection::lookup_config`].
    async fn unlisted(&self, topic: &str) -> Result<TopicState, Error> {
        let name = topic.to_owned();
        let answer = self.blocking(move |lookup| lookup.topic_error(&name)).await?;
        match answer.map_err(|e| self.failed("look for a topic", e))? {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => Ok(TopicState::Hidden),
            _ => Ok(TopicState::Missing),
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
                let action = "wait until created topics are listed with a leader for each partition";
                let source = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
                return Err(Error::Kafka { brokers: self.brokers().to_owned(), action, source });
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
                let cause = self.lookup.complaint().unwrap_or_else(|| format!("{action}: {source}"));
                Error::Unreachable { brokers, timeout: REQUEST_TIMEOUT, cause }
            }
            _ => Error::Kafka { brokers, action, source },
        }
    }

    /// Runs a call that blocks its thread.
    async fn blocking<T: Send + 'static>(&self, call: impl FnOnce(&Lookup) -> T + Send + 'static) -> Result<T, Error> {
        let lookup = Arc::clone(&self.lookup);
        match tokio::task::spawn_blocking(move || call(&lookup)).await {
            Ok(answer) => Ok(answer),
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(self.failed("run a request", KafkaError::Canceled)),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT))
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    let topic = NewTopic::new(&spec.topic, spec.partitions, TopicReplication::Fixed(spec.replication));
    spec.configs.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
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
