//! librdkafka properties: which ones a user may not set because the delivery promise rests on them, each with its
//! reason, and which ones librdkafka does not know at all.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

/// Why a property may not be set, and what to do instead.
pub(super) struct Reserved {
    pub(super) reason: &'static str,
    pub(super) remedy: &'static str,
}

const REMOVE: &str = "to leave it out";

/// The rule that holds for a property, if any.
pub(super) fn reserved(name: &str) -> Option<Reserved> {
    let (reason, remedy) = match name {
        "bootstrap.servers" | "metadata.broker.list" => ("has a key of its own", "the key kafka.brokers"),
        "session.timeout.ms" => ("has a key of its own", "the key kafka.session_timeout"),
        "max.poll.interval.ms" => ("has a key of its own", "the key kafka.max_poll_interval"),
        "message.timeout.ms" | "delivery.timeout.ms" => (
            "has a key of its own, and below 120 s slow acknowledgements would count as lost",
            "the key kafka.message_timeout",
        ),
        "group.instance.id" => ("has a key of its own", "the key instance"),
        "group.id" => (
            "the stages' groups follow from the pipeline, or two ladders would share offsets",
            "the key group of a pipeline",
        ),
        "enable.auto.offset.store" => {
            ("stored at delivery, offsets of unfinished events would be committed: events lost", REMOVE)
        }
        "enable.auto.commit" | "auto.commit.enable" => ("without it no offset would ever be committed", REMOVE),
        "auto.offset.reset" => {
            ("events that were produced before the first start, or after a reset, would be skipped", REMOVE)
        }
        "offset.store.method" | "offset.store.path" => {
            ("offsets must be in the group, where the next member finds them", REMOVE)
        }
        "enable.idempotence" => ("without it hops could be reordered and doubled", REMOVE),
        "acks" | "request.required.acks" => {
            ("an event leaves a topic only after all in-sync replicas have its next copy", REMOVE)
        }
        "max.in.flight" | "max.in.flight.requests.per.connection" => ("more than 5 would reorder hops", REMOVE),
        "retries" | "message.send.max.retries" => ("the idempotent producer must be free to repeat", REMOVE),
        "delivery.report.only.error" => {
            ("acknowledgements would never be told, and no event would leave its topic", REMOVE)
        }
        "transactional.id" => (
            "it would belong to every producer; whoever needs transactions names its own",
            "the key forward of a pipeline",
        ),
        "isolation.level" => ("hops and redrives of transactions that were aborted would be executed", REMOVE),
        "partition.assignment.strategy" => ("cooperative-sticky keeps the partitions that do not move running", REMOVE),
        "group.protocol" | "group.remote.assignor" => {
            ("only the classic protocol fences a stalled member in time", REMOVE)
        }
        "partitioner" => {
            ("hops by key must reach the partition that Java's default would choose: murmur2_random", REMOVE)
        }
        "enable.partition.eof" => ("the end of a partition is no event", REMOVE),
        "allow.auto.create.topics" => (
            "a topic made by the broker could be compacted or forget events too soon",
            "topics made by `pipeline topics create`",
        ),
        _ => return None,
    };
    Some(Reserved { reason, remedy })
}

/// What speaks against a property and what would be right; the value is in neither.
pub(super) fn refused(name: &str, value: &str) -> Option<(String, &'static str)> {
    if let Some(text) = complaint(name, value) {
        let is_token = name.starts_with("sasl.oauthbearer.");
        let remedy = if is_token { NO_TOKENS } else { "a property of librdkafka with a value that it knows" };
        return Some((format!("librdkafka refuses it{text}"), remedy));
    }
    let wants_tokens = name.starts_with("sasl.mechanism") && value.eq_ignore_ascii_case("OAUTHBEARER");
    let problem = "nothing in this build fetches tokens: it would wait for one without end";
    (wants_tokens && complaint("sasl.oauthbearer.method", "oidc").is_some()).then(|| (problem.to_owned(), NO_TOKENS))
}

const NO_TOKENS: &str = "SCRAM-SHA-512, PLAIN or a client certificate; docs/security.md says which build could do it";

/// What librdkafka says against a property.
fn complaint(name: &str, value: &str) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Err(KafkaError::ClientConfig(_, text, ..)) => {
            let text = if value.is_empty() { text } else { text.replace(value, "…") };
            Some(format!(": {}", text.trim_end_matches('.')))
        }
        Err(_) => Some(String::new()),
        Ok(_) => None,
    }
}
