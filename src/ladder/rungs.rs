//! The ladder itself: one pipeline's rungs, valid by construction.
//!
//! Owns: names, order and delays of the rungs, and every rule that a ladder has to keep to be one. Rung 0 is main,
//! 1 … N the retry stages, N + 1 the DLQ. What differs between them is data (`delay: None` on main and on the DLQ, no
//! rung above the DLQ), so no code needs to ask for a stage's name.
//!
//! Invariants: there are N + 2 rungs with N in 0 ..= [`MAX_RETRIES`]; delays rise strictly from at least 1 ms (but for
//! [`Ladder::with_delay`]); topics are legal and pairwise distinct; `rungs()[i].index == i`.
//!
//! Leaves to others: whether the topics exist, and whether two pipelines share one (`config` sees all pipelines).

use std::sync::Arc;
use std::time::Duration;

/// The most retry stages that a ladder may have.
pub const MAX_RETRIES: usize = 16;

/// The largest jitter, as a fraction of the delay.
pub const MAX_JITTER: f64 = 0.10;

/// How often an event may be deferred by `Retry-After` unless configured otherwise.
pub const DEFAULT_MAX_DEFERRALS: u32 = 10;

/// The longest topic name that Kafka accepts, in bytes.
pub const MAX_TOPIC_LEN: usize = 249;

/// The longest consumer group name that fits into our headers, in bytes.
pub const MAX_GROUP_LEN: usize = 255;

/// Dues are whole milliseconds, so a shorter delay could not be told from none.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// What a ladder is built from: the part of a pipeline's configuration that routing depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderSpec {
    /// Pipeline name.
    pub pipeline: String,
    /// Consumer group.
    pub group: String,
    /// Main topic.
    pub topic: String,
    /// The retry stages in their order; may be empty.
    pub retries: Vec<RetrySpec>,
    /// The DLQ's topic; `None`: `<topic>.<group>.dlq`.
    pub dlq_topic: Option<String>,
    /// An event that fails and is older than this goes to the DLQ.
    pub max_event_age: Option<Duration>,
    /// How often one event may be deferred by `Retry-After` on the last retry stage.
    pub max_deferrals: u32,
}

impl LadderSpec {
    /// A ladder without retry stages and with every default.
    pub fn new(pipeline: impl Into<String>, group: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            pipeline: pipeline.into(),
            group: group.into(),
            topic: topic.into(),
            retries: Vec::new(),
            dlq_topic: None,
            max_event_age: None,
            max_deferrals: DEFAULT_MAX_DEFERRALS,
        }
    }

    /// The same with one more retry stage of this delay, without jitter and under its default topic name.
    #[must_use]
    pub fn retry(mut self, delay: Duration) -> Self {
        self.retries.push(RetrySpec { delay, topic: None, jitter: 0.0 });
        self
    }
}

/// One retry stage of a [`LadderSpec`].
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySpec {
    /// How long an event waits before this stage executes it.
    pub delay: Duration,
    /// Its topic; `None`: `<topic>.<group>.retry-<n>`.
    pub topic: Option<String>,
    /// Up to this fraction of the delay is added at random, 0 ..= [`MAX_JITTER`].
    pub jitter: f64,
}

/// One stage of a ladder.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// Its place: 0 is main, 1 … N the retry stages, N + 1 the DLQ.
    pub index: usize,
    /// `main`, `retry-1` … `retry-N`, `dlq`: for people; no code depends on it.
    pub name: Arc<str>,
    /// The topic that it reads.
    pub topic: Arc<str>,
    /// How long an event waits here; `None` where nothing waits (main, DLQ).
    pub delay: Option<Duration>,
    /// Up to this fraction of the delay is added at random, 0 ..= [`MAX_JITTER`].
    pub jitter: f64,
    /// Its consumer group: `<group>` on main, `<group>.<stage>` elsewhere.
    pub group_id: Arc<str>,
}

/// One pipeline's ladder.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    pipeline: Arc<str>,
    group: Arc<str>,
    rungs: Vec<Rung>,
    redrive_topic: Arc<str>,
    max_event_age: Option<Duration>,
    max_deferrals: u32,
}

/// Why a [`LadderSpec`] is no ladder. [`LadderFault::key`] is the configuration key that it is about.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LadderFault {
    /// A name that must not be empty is.
    #[error("`{key}` is empty, it needs a name")]
    Empty {
        /// Configuration key below the pipeline.
        key: &'static str,
    },
    /// The group's name does not fit into a header.
    #[error("`group` has {len} bytes, at most {MAX_GROUP_LEN} are possible")]
    GroupTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Kafka would refuse this topic name.
    #[error(
        "`{key}`: `{topic}` is no legal topic name, it needs 1 to {MAX_TOPIC_LEN} of a-z A-Z 0-9 . _ - (and not `.` or `..`)"
    )]
    IllegalTopic {
        /// Configuration key below the pipeline.
        key: String,
        /// The name, default names included.
        topic: String,
    },
    /// Two rungs would read one topic.
    #[error(
        "`{key}`: topic `{topic}` is already that of `{other}` (names that differ only in `.` and `_` collide, too)"
    )]
    SameTopic {
        /// Configuration key below the pipeline.
        key: String,
        /// The name, default names included.
        topic: String,
        /// The key that had it first.
        other: String,
    },
    /// More retry stages than [`MAX_RETRIES`].
    #[error("`retries` has {count} stages, at most {MAX_RETRIES} are possible")]
    TooManyRetries {
        /// How many there are.
        count: usize,
    },
    /// A delay below one millisecond.
    #[error("`retries[{index}].delay` is {delay:?}, it needs at least {MIN_DELAY:?}")]
    DelayTooShort {
        /// Position in `retries`, from 0.
        index: usize,
        /// The delay.
        delay: Duration,
    },
    /// A delay that is not longer than the one before.
    #[error("`retries[{index}].delay` is {delay:?}, it must be longer than {before:?} of the stage before")]
    DelayNotRising {
        /// Position in `retries`, from 0.
        index: usize,
        /// The delay.
        delay: Duration,
        /// The delay of the stage before.
        before: Duration,
    },
    /// A jitter outside 0 ..= [`MAX_JITTER`].
    #[error("`retries[{index}].jitter` is {jitter}, it must be between 0 and {MAX_JITTER}")]
    JitterOutOfRange {
        /// Position in `retries`, from 0.
        index: usize,
        /// The jitter as a fraction.
        jitter: f64,
    },
    /// A maximal age of zero, which would send every failure to the DLQ.
    #[error("`max_event_age` is 0, it needs a time (or leave it out: events never expire)")]
    ZeroEventAge,
}

impl LadderFault {
    /// The configuration key that it is about, relative to the pipeline.
    pub fn key(&self) -> String {
        match self {
            LadderFault::Empty { key } => (*key).to_owned(),
            LadderFault::GroupTooLong { .. } => "group".to_owned(),
            LadderFault::IllegalTopic { key, .. } | LadderFault::SameTopic { key, .. } => key.clone(),
            LadderFault::TooManyRetries { .. } => "retries".to_owned(),
            LadderFault::DelayTooShort { index, .. } | LadderFault::DelayNotRising { index, .. } => {
                format!("retries[{index}].delay")
            }
            LadderFault::JitterOutOfRange { index, .. } => format!("retries[{index}].jitter"),
            LadderFault::ZeroEventAge => "max_event_age".to_owned(),
        }
    }
}

/// The topic of `stage` unless it is named by hand: `<topic>.<group>.<stage>`.
pub fn default_topic(topic: &str, group: &str, stage: &str) -> String {
    format!("{topic}.{group}.{stage}")
}

/// The name of the `n`-th retry stage, from 1.
pub fn retry_name(n: usize) -> String {
    format!("retry-{n}")
}

/// Whether Kafka accepts this as the name of a topic.
pub fn legal_topic(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_TOPIC_LEN).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal)
}

impl Ladder {
    /// The same with another delay on one rung, which need not fit between its neighbours': for a rung that is only
    /// drained, where the delay does nothing but bound the dues that are believed.
    #[must_use]
    pub fn with_delay(mut self, index: usize, delay: Duration) -> Self {
        if let Some(rung) = self.rungs.get_mut(index) {
            rung.delay = Some(delay);
        }
        self
    }

    /// Builds the ladder.
    ///
    /// # Errors
    /// Every fault of `spec` at once.
    pub fn new(spec: LadderSpec) -> Result<Self, Vec<LadderFault>> {
        let mut faults = Vec::new();
        for (key, name) in [("pipeline", &spec.pipeline), ("group", &spec.group)] {
            if name.trim().is_empty() {
                faults.push(LadderFault::Empty { key });
            }
        }
        if spec.group.len() > MAX_GROUP_LEN {
            faults.push(LadderFault::GroupTooLong { len: spec.group.len() });
        }
        if spec.retries.len() > MAX_RETRIES {
            faults.push(LadderFault::TooManyRetries { count: spec.retries.len() });
        }
        if spec.max_event_age.is_some_and(|age| age.is_zero()) {
            faults.push(LadderFault::ZeroEventAge);
        }
        check_delays(&spec.retries, &mut faults);

        let rungs = build_rungs(&spec);
        let redrive_topic: Arc<str> = default_topic(&spec.topic, &spec.group, "redrive").into();
        check_topics(&spec, &rungs, &redrive_topic, &mut faults);

        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            pipeline: spec.pipeline.into(),
            group: spec.group.into(),
            rungs,
            redrive_topic,
            max_event_age: spec.max_event_age,
            max_deferrals: spec.max_deferrals,
        })
    }

    /// Pipeline name.
    pub fn pipeline(&self) -> &Arc<str> {
        &self.pipeline
    }

    /// Consumer group of the pipeline.
    pub fn group(&self) -> &Arc<str> {
        &self.group
    }

    /// Main topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.main().topic
    }

    /// All rungs, main first, the DLQ last.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// The rung of this index.
    pub fn rung(&self, index: usize) -> Option<&Rung> {
        self.rungs.get(index)
    }

    /// The rung of this stage name.
    pub fn rung_named(&self, name: &str) -> Option<&Rung> {
        self.rungs.iter().find(|rung| &*rung.name == name)
    }

    /// Rung 0.
    pub fn main(&self) -> &Rung {
        &self.rungs[0]
    }

    /// The retry stages, rungs 1 … N; may be empty.
    pub fn retries(&self) -> &[Rung] {
        &self.rungs[1..self.rungs.len() - 1]
    }

    /// The retry stages above `stage`; empty on the last one and on the DLQ.
    pub fn above(&self, stage: usize) -> &[Rung] {
        self.retries().get(stage..).unwrap_or_default()
    }

    /// The last retry stage, rung N.
    pub fn last_retry(&self) -> Option<&Rung> {
        self.retries().last()
    }

    /// The rung without a next, N + 1.
    pub fn dlq(&self) -> &Rung {
        &self.rungs[self.rungs.len() - 1]
    }

    /// The compacted topic that remembers what was redriven.
    pub fn redrive_topic(&self) -> &Arc<str> {
        &self.redrive_topic
    }

    /// The sum of all delays, without jitter.
    pub fn total_delay(&self) -> Duration {
        self.retries().iter().filter_map(|rung| rung.delay).fold(Duration::ZERO, Duration::saturating_add)
    }

    /// An event that fails and is older than this goes to the DLQ.
    pub fn max_event_age(&self) -> Option<Duration> {
        self.max_event_age
    }

    /// How often one event may be deferred by `Retry-After`.
    pub fn max_deferrals(&self) -> u32 {
        self.max_deferrals
    }
}

fn check_delays(retries: &[RetrySpec], faults: &mut Vec<LadderFault>) {
    let mut before: Option<Duration> = None;
    for (index, &RetrySpec { delay, jitter, .. }) in retries.iter().enumerate() {
        if delay < MIN_DELAY {
            faults.push(LadderFault::DelayTooShort { index, delay });
        } else if let Some(before) = before.filter(|before| delay <= *before) {
            faults.push(LadderFault::DelayNotRising { index, delay, before });
        }
        if !(0.0..=MAX_JITTER).contains(&jitter) {
            faults.push(LadderFault::JitterOutOfRange { index, jitter });
        }
        before = Some(delay);
    }
}

fn build_rungs(spec: &LadderSpec) -> Vec<Rung> {
    let named = |stage: &str, by_hand: &Option<String>| -> Arc<str> {
        by_hand.clone().unwrap_or_else(|| default_topic(&spec.topic, &spec.group, stage)).into()
    };
    let rung = |index, name: &str, topic, delay, jitter, group_id: String| Rung {
        index,
        name: name.into(),
        topic,
        delay,
        jitter,
        group_id: group_id.into(),
    };
    let mut rungs = vec![rung(0, "main", spec.topic.as_str().into(), None, 0.0, spec.group.clone())];
    for (i, retry) in spec.retries.iter().enumerate() {
        let name = retry_name(i + 1);
        let group_id = format!("{}.{name}", spec.group);
        rungs.push(rung(i + 1, &name, named(&name, &retry.topic), Some(retry.delay), retry.jitter, group_id));
    }
    let group_id = format!("{}.dlq", spec.group);
    rungs.push(rung(rungs.len(), "dlq", named("dlq", &spec.dlq_topic), None, 0.0, group_id));
    rungs
}

/// Default names that are only illegal because the main topic or the group is are not told again.
fn check_topics(spec: &LadderSpec, rungs: &[Rung], redrive_topic: &str, faults: &mut Vec<LadderFault>) {
    let named = |rung: &Rung| match rung.index {
        0 => ("topic".to_owned(), true),
        i if i <= spec.retries.len() => (format!("retries[{}].topic", i - 1), spec.retries[i - 1].topic.is_some()),
        _ => ("dlq.topic".to_owned(), spec.dlq_topic.is_some()),
    };
    let mut all: Vec<(String, bool, &str)> = Vec::with_capacity(rungs.len() + 1);
    for rung in rungs {
        let (key, by_hand) = named(rung);
        all.push((key, by_hand, &rung.topic));
    }
    all.push(("redrive topic".to_owned(), false, redrive_topic));

    let told = !legal_topic(&spec.topic) || spec.group.trim().is_empty() || spec.group.len() > MAX_GROUP_LEN;
    for (i, (key, by_hand, topic)) in all.iter().enumerate() {
        if !legal_topic(topic) && (*by_hand || !told) {
            faults.push(LadderFault::IllegalTopic { key: key.clone(), topic: (*topic).to_owned() });
        }
        if let Some((other, ..)) = all[..i].iter().find(|(_, _, t)| t.replace('.', "_") == topic.replace('.', "_")) {
            faults.push(LadderFault::SameTopic { key: key.clone(), topic: (*topic).to_owned(), other: other.clone() });
        }
    }
}

#[cfg(test)]
mod tests;
