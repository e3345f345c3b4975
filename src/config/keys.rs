//! Every key of the configuration, declared once: name, type, default, range, meaning.
//!
//! The structs made here are what the layers say, key by key; [`super::check`] turns them into [`super::Config`].
//! Defaults are YAML, just as a user would write them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;

use super::choices::{
    CompatHeaders, Forward, Framing, HttpBody, LogFormat, OnUnavailable, Order, StatusClass, Store, Tombstones,
};
use super::postgres::PostgresHandler;
use super::report::{At, Report};
use super::schema::{Entry, KeyDoc, Out, Setting, section};
use super::secret::{Endpoint, Endpoints, Properties, Secret};
use super::settings::{ByteSize, Ratio, chosen, map};
use super::yaml::Node;

section! {
    /// The whole file.
    pub(super) struct Keys {
        /// Kafka: where it is and how this process is its client.
        kafka: Kafka = "{}";
        /// Redis: where deduplication records are kept.
        redis: Redis = "{}";
        /// Schema registry with Confluent's API, for pipelines with `framing: confluent`.
        registry: Registry = "{}";
        /// Any key of a pipeline, for all pipelines; a pipeline's own key wins.
        defaults: Defaults = "{}";
        /// One ladder each: a consumer group over a main topic. The name is yours.
        pipelines: Pipelines = "{}";
        /// Static member id, one per process: a restart within the session keeps its partitions.
        instance: Option<String> = "null";
        /// Health, metrics and status server.
        admin: Admin = "{}";
        /// Traces and logs.
        telemetry: Telemetry = "{}";
        /// The web console.
        console: Console = "{}";
    }
}

section! {
    /// Kafka: where it is and how this process is its client.
    pub struct Kafka {
        /// Bootstrap servers, `host:port`, separated by commas.
        brokers: String = "localhost:9092";
        /// Any librdkafka property for every client: security.protocol, sasl.*, ssl.* and so on; `<name>_file` for secrets.
        properties: Properties = "{}";
        /// Properties for consumers only.
        consumer_properties: Properties = "{}";
        /// Properties for producers only.
        producer_properties: Properties = "{}";
        /// How long Kafka and Redis may be unreachable at start before the process gives up (exit code 69).
        startup_timeout: Duration = "30s" in "1s" ..= "1h";
        /// How long running handlers may go on when partitions are taken away or the process stops.
        drain_timeout: Duration = "10s" in "0s" ..= "1h";
        /// After this much silence a member counts as dead and its partitions move.
        session_timeout: Duration = "15s" in "1s" ..= "30m";
        /// Longest time between two polls before a member counts as stuck.
        max_poll_interval: Duration = "5m" in "10s" ..= "1d";
        /// How long one record may wait for its acknowledgement before it is produced again.
        message_timeout: Duration = "2m" in "2m" ..= "1d";
    }
}

section! {
    /// Redis: where deduplication records are kept.
    pub struct Redis {
        /// Server and database; rediss:// for TLS; a list of urls: Redis Cluster. `url_file` names a file that holds it,
        /// or the list, one a line.
        url: Endpoints = "redis://localhost:6379/0";
        /// PEM file of the authority that is trusted instead of the system's, for rediss://.
        ca: Option<PathBuf> = "null";
        /// First part of every record's key; clusters that share a Redis need different ones.
        prefix: String = "idem";
    }
}

section! {
    /// Schema registry with Confluent's API, for pipelines with `framing: confluent`.
    pub struct Registry {
        /// Servers that know the same, like `http://localhost:8081`; `[]`: none, then `message` alone says how values are read.
        urls: Vec<Endpoint> = "[]";
        /// User for basic authorization.
        user: Option<String> = "null";
        /// Password of `user`. `password_file` names a file that holds it.
        password: Option<Secret> = "null";
        /// Bearer token, instead of a user. `token_file` names a file that holds it.
        token: Option<Secret> = "null";
        /// PEM file of authorities that are trusted beside the system's, for https://.
        ca: Option<PathBuf> = "null";
        /// For one try.
        timeout: Duration = "5s" in "10ms" ..= "1m";
        /// Tries after the first, by turns at the servers; then the events that need the schema fail for now.
        retries: u32 = "2" in "0" ..= "10";
        /// Schemas that are kept, those used last.
        cache: usize = "1000" in "1" ..= "100000";
        /// How long it is remembered that an id is unknown.
        unknown_for: Duration = "5s" in "10ms" ..= "1h";
    }
}

section! {
    /// Health, metrics and status server.
    pub struct Admin {
        /// Address, like `0.0.0.0:9464`. Without one: 127.0.0.1, port 9464 + index of the stage, or a free port.
        listen: Option<String> = "null";
        /// The same of every instance, `host:port`: `pipeline status` and the console ask them what pauses their stages
        /// (breaker, brake, Redis), which Kafka does not tell. Without any: the default ports of their own host.
        instances: Vec<String> = "[]";
    }
}

section! {
    /// The web console.
    pub struct Console {
        /// Address. One that is not on loopback needs a token.
        listen: String = "127.0.0.1:9490";
        /// What a browser has to present, at least 16 characters; none on loopback only. `token_file` names a file that holds it.
        token: Option<Secret> = "null";
        /// Whether pages show values, keys and headers that are not the ladder's own.
        show_values: bool = "true";
    }
}

section! {
    /// Traces and logs.
    pub struct Telemetry {
        /// Where traces go (OTLP over gRPC); https:// for TLS; none without one.
        otlp_endpoint: Option<Endpoint> = "null";
        /// Sent with every export, like `Authorization` or a vendor's key; `<name>_file` for secrets.
        otlp_headers: Properties = "{}";
        /// PEM file of authorities that are trusted beside the system's, for https://.
        otlp_ca: Option<PathBuf> = "null";
        /// Share of events that are traced; one that arrives with a trace context says for itself.
        sample_ratio: Ratio = "1.0" in "0" ..= "1";
        /// An event that is not traced becomes so with its first failure.
        sample_on_failure: bool = "true";
        /// Jaeger's user interface and query API, for `pipeline trace` and links.
        jaeger_url: Endpoint = "http://localhost:16686";
        /// `text` for people, `json` for machines.
        log_format: LogFormat = "text";
    }
}

section! {
    /// The keys of one pipeline, as written.
    pub(super) struct PipelineKeys {
        /// Main topic.
        topic: String;
        /// Consumer group; without one the pipeline's name.
        group: Option<String> = "null";
        /// Full name of the Protobuf message, like `shop.v1.OrderPlaced`; without one any message that the registry knows.
        message: Option<String> = "null";
        /// File with a compiled descriptor set that holds the message; without one the built-in protos.
        descriptor_set: Option<PathBuf> = "null";
        /// `plain` Protobuf bytes, or `confluent`: behind a schema registry's magic byte, schema id and message index.
        framing: Framing = "plain";
        /// Partitions of topics that are created.
        partitions: u32 = "6" in "1" ..= "100000";
        /// Replicas of topics that are created.
        replication: u16 = "1" in "1" ..= "1000";
        /// The retry stages in order, at most 16; their delays rise strictly. `[]`: failures go to the DLQ at once.
        retries: Vec<Rung> = "[{ delay: 5s }, { delay: 30s }, { delay: 5m }]";
        /// How long retry topics keep records; must be longer than the ladder.
        retention: Duration = "7d" in "1m" ..= "36500d";
        /// Where events end that failed for good.
        dlq: DlqKeys = "{}";
        /// Handlers in flight per stage and process.
        concurrency: usize = "64" in "1" ..= "100000";
        /// `stage`: within a stage and partition handlers of one key run one at a time in order; `none`: they need not;
        /// `ladder`: while an event is in the ladder, later ones of its key wait there behind it.
        order: Order = "stage";
        /// With `order: ladder`: one that is this much overdue is no longer waited for.
        order_patience: Duration = "1h" in "1s" ..= "30d";
        /// With `order: ladder`: events of one key that may be in the ladder; more of them hold their partition up.
        order_room: usize = "1000" in "1" ..= "1000000";
        /// `idempotent`: an event's offset is committed after its next copy was acknowledged; `transactional`: hops and
        /// offsets in one transaction, so that each hop is in the log once. Its cost: docs/operations.md.
        forward: Forward = "idempotent";
        /// What becomes of null values: `dead_letter`, `deliver` to the handler, or `skip`.
        tombstones: Tombstones = "dead_letter";
        /// An event older than this at a failure goes to the DLQ, reason `expired`; without one it never expires.
        max_event_age: Option<Duration> = "null" in "1s" ..= "36500d";
        /// Where the event id is found: `header: [names]`, the first that is there, or `field: name`; else the record's origin.
        event_id: EventId = "{ header: [x-ladder-event-id, ce_id, MessageID] }";
        /// How concurrent and repeated executions are prevented.
        idempotency: IdempotencyKeys = "{}";
        /// What executes events: exactly one of http, postgres, log, simulate.
        handler: Handler;
        /// One execution is cancelled after this long and counts as a transient failure.
        handler_timeout: Duration = "30s" in "1ms" ..= "1d";
        /// How much is held in memory per partition.
        window: Window = "{}";
        /// Pauses the pipeline while the handler's target is down.
        breaker: Breaker = "{}";
        /// Pauses the pipeline when too many of its events become dead letters.
        brake: Brake = "{}";
        /// How often the last stage may repeat because a target asked for a longer wait (Retry-After).
        max_deferrals: u32 = "10" in "0" ..= "1000";
        /// Headers that other tools read on DLQ records: kafka, spring, or `[]` for none.
        compat_headers: Vec<CompatHeaders> = "[kafka, spring]";
        /// Start even when a topic's settings could lose events (compacted, too short a retention). Say why in a comment.
        allow_unsafe_topics: bool = "false";
    }
}

section! {
    /// One retry stage, as written.
    pub(super) struct Rung {
        /// How long an event waits here before it is tried again.
        delay: Duration = "required" in "1ms" ..= "365d";
        /// Name of the topic; without one `<topic>.<group>.retry-N`.
        name: Option<String> = "null";
        /// Longer by a random share of the delay, at most `10 %`, so that failures do not come back all at once.
        jitter: Ratio = "0.0" in "0" ..= "0.1";
        /// Handlers in flight on this stage; without one the pipeline's `concurrency`.
        concurrency: Option<usize> = "null" in "1" ..= "100000";
    }
}

section! {
    /// The dead letter queue, as written.
    pub(super) struct DlqKeys {
        /// How long it keeps records.
        retention: Duration = "30d" in "1m" ..= "36500d";
        /// Name of the topic; without one `<topic>.<group>.dlq`.
        name: Option<String> = "null";
        /// Where the `dlq` stage POSTs that dead letters came: JSON with `text` (as chat rooms take it), counts by class and
        /// some letters. `webhook_file` names a file that holds it.
        webhook: Option<Endpoint> = "null";
        /// Longest silence about letters that came: one POST in this time, with all that came since the last.
        webhook_every: Duration = "1m" in "100ms" ..= "1d";
    }
}

section! {
    /// Deduplication of one pipeline, as written.
    pub(super) struct IdempotencyKeys {
        /// `redis`, `memory` (this process only, lost at its end) or `off`.
        store: Store = "redis";
        /// How long a claim lasts without renewal: what a crash costs the event that it hit.
        lease: Duration = "15s" in "3s" ..= "10m";
        /// How long a finished event is remembered; at least 24h and twice the ladder.
        done_ttl: Duration = "24h" in "1s" ..= "365d";
        /// How long a moved event is remembered; without one as long as `done_ttl`, never shorter.
        handed_ttl: Option<Duration> = "null" in "1s" ..= "365d";
        /// With the store down: `pause` until it is back, or `process` without it (repeats become possible).
        on_unavailable: OnUnavailable = "pause";
    }
}

section! {
    /// How much is held in memory per partition.
    pub struct Window {
        /// Events that wait for their due time; a full window pauses the partition.
        waiting: usize = "1000" in "1" ..= "1000000";
        /// The same in bytes; whichever is reached first.
        waiting_bytes: ByteSize = "4MiB" in "64KiB" ..= "1GiB";
        /// Events that were started and whose offsets are not committed yet.
        in_flight: usize = "1000" in "1" ..= "1000000";
        /// The same in bytes; whichever is reached first.
        in_flight_bytes: ByteSize = "16MiB" in "64KiB" ..= "1GiB";
    }
}

section! {
    /// Pauses the pipeline while the handler's target is down: per process, all its stages but dlq. Switch it off where
    /// everything fails on purpose.
    pub struct Breaker {
        /// Whether there is one.
        enabled: bool = "true";
        /// It opens after this many transient failures in a row, without one success,
        consecutive_failures: u32 = "50" in "1" ..= "1000000";
        /// over at least this long.
        min_time: Duration = "1s" in "0s" ..= "1h";
        /// Where events are rare, it also opens after this many in a row,
        slow_failures: u32 = "10" in "1" ..= "1000000";
        /// over at least this long.
        slow_time: Duration = "30s" in "0s" ..= "1d";
        /// How long nothing starts before one event probes the target; doubled for each probe that fails.
        cool_down: Duration = "1s" in "10ms" ..= "1h";
        /// Longest cool-down; a target that asks for a longer wait (Retry-After) gets this long, too.
        max_cool_down: Duration = "30s" in "10ms" ..= "1d";
    }
}

section! {
    /// Pauses the pipeline instead of emptying its topic into the DLQ: per process, all its stages but dlq.
    pub struct Brake {
        /// Whether there is one.
        enabled: bool = "true";
        /// Dead letters / events that entered, at which it stops. Without the main stage in the process only permanent
        /// failures and poison count, against what was executed there.
        ratio: Ratio = "0.5" in "0.01" ..= "1";
        /// With fewer events entered within the window it judges nothing.
        min_events: u64 = "100" in "1" ..= "1000000000";
        /// The window; the ladder's length is added, because events fail for good that much after they entered.
        window: Duration = "10m" in "1m" ..= "30d";
        /// How long nothing starts before one event is tried; doubled each time that it becomes a dead letter.
        cool_down: Duration = "5m" in "1s" ..= "1d";
        /// Longest cool-down.
        max_cool_down: Duration = "1h" in "1s" ..= "30d";
    }
}

section! {
    /// Calls a URL for each event.
    pub struct HttpHandler {
        /// Where to POST. A user and password in it become `Authorization: Basic`. `url_file` names a file that holds it.
        url: Endpoint;
        /// From the start of an execution to the answer; shorter than `handler_timeout`.
        timeout: Duration = "10s" in "1ms" ..= "1h";
        /// For a new connection, within `timeout`.
        connect_timeout: Duration = "5s" in "1ms" ..= "1h";
        /// `protobuf`: the bytes untouched; `json`: their proto3 JSON mapping.
        body: HttpBody = "protobuf";
        /// Overrides what a status means: `404: transient`; done, transient or permanent.
        classify: Classify = "{}";
        /// Sent with every request; `<name>_file` for secrets.
        headers: Properties = "{}";
        /// PEM file of authorities that are trusted beside the system's, for https://.
        ca: Option<PathBuf> = "null";
        /// How long an unused connection is kept; below the 5s after which common servers close it.
        pool_idle_timeout: Duration = "4s" in "0s" ..= "1h";
        /// How many unused connections are kept.
        pool_max_idle: usize = "1024" in "0" ..= "100000";
    }
}

section! {
    /// Succeeds and fails by a seeded rule: for the demo, for load and for tests.
    pub struct SimulateHandler {
        /// Another seed, other events that fail.
        seed: u64 = "0";
        /// Share of all events that fail at first.
        fail_ratio: Ratio = "0.2" in "0" ..= "1";
        /// Share of these that fail at every attempt: they end in the DLQ as `exhausted`.
        dead_ratio: Ratio = "0.1" in "0" ..= "1";
        /// Share of these that fail permanently: they go to the DLQ at once.
        permanent_ratio: Ratio = "0.05" in "0" ..= "1";
        /// The others of these fail 1 to this many times, then succeed.
        max_failures: u32 = "3" in "1" ..= "1000";
        /// How long each execution takes at least.
        latency: Duration = "0s" in "0s" ..= "1h";
        /// How much longer at most.
        jitter: Duration = "0s" in "0s" ..= "1h";
        /// File that records every execution, one line each.
        record: Option<PathBuf> = "null";
        /// Whether each line of `record` is on the disk before the execution goes on.
        fsync: bool = "false";
    }
}

section! {
    /// Writes a log line for each event and succeeds.
    pub struct LogHandler {}
}

/// What HTTP statuses mean where it is not the usual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classify(pub BTreeMap<u16, StatusClass>);

impl Setting for Classify {
    fn expects() -> String {
        "a map from status to done, transient or permanent, like `{ 404: transient }`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let Some(entries) = map(value, report) else {
            report.fault(at, "not a map", Self::expects());
            return None;
        };
        let mut read = BTreeMap::new();
        for (status, class) in entries {
            let here = at.key(&status);
            let class = StatusClass::read(&class, &here, report);
            match status.parse::<u16>().ok().filter(|s| (200..600).contains(s)) {
                Some(status) => read.extend(class.map(|c| (status, c))),
                None => report.fault(&here, "not a status that an answer ends with", "a status from 200 to 599"),
            }
        }
        Some(Self(read))
    }
    fn show(&self) -> Out {
        Out::Map(self.0.iter().map(|(s, c)| Entry::new(s.to_string(), c.show())).collect())
    }
}

/// Where the event id is found; else it is the record's origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventId {
    /// The first of these headers that is there and not empty.
    Header(Vec<String>),
    /// A field of the message.
    Field(String),
}

impl Setting for EventId {
    fn expects() -> String {
        "`{ header: [names] }` or `{ field: name }`".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let (kind, value) = chosen(value, &["header", "field"], "source", at, report)?;
        let here = at.key(&kind);
        match kind.as_str() {
            // One name need not stand in brackets.
            "header" => match report.untext(&value) {
                Value::String(..) => String::read(&value, &here, report).map(|name| Self::Header(vec![name])),
                _ => Vec::read(&value, &here, report).map(Self::Header),
            },
            _ => String::read(&value, &here, report).map(Self::Field),
        }
    }
    fn show(&self) -> Out {
        Out::Map(vec![match self {
            Self::Header(names) => Entry::new("header", names.show()),
            Self::Field(name) => Entry::new("field", name.show()),
        }])
    }
}

/// The built-in handlers: the key that chooses each, and its section.
macro_rules! handlers {
    ($( #[doc = $doc:literal] $kind:literal $name:ident($keys:ty); )*) => {
        /// What executes events.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Handler {
            $( #[doc = $doc] $name($keys), )*
        }

        impl Handler {
            const KINDS: &[&str] = &[$($kind),*];

            /// The key that chooses it.
            pub const fn kind(&self) -> &'static str {
                match self { $( Self::$name(_) => $kind, )* }
            }

            fn read_kind(kind: &str, value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
                match kind {
                    $( $kind => <$keys>::read(value, at, report).map(Self::$name), )*
                    _ => None,
                }
            }

            fn show_kind(&self) -> Out {
                match self { $( Self::$name(handler) => handler.show(), )* }
            }
        }

        fn keys_of_kind(kind: &str, path: &str, out: &mut Vec<KeyDoc>) {
            match kind {
                $( $kind => <$keys>::keys(path, out), )*
                _ => {}
            }
        }
    };
}

handlers! {
    /// Calls a URL.
    "http" Http(HttpHandler);
    /// Inserts rows.
    "postgres" Postgres(PostgresHandler);
    /// Writes a log line.
    "log" Log(LogHandler);
    /// Succeeds and fails by a seeded rule.
    "simulate" Simulate(SimulateHandler);
}

impl Setting for Handler {
    fn expects() -> String {
        format!("a map with exactly one of {}", Self::KINDS.join(", "))
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let (kind, value) = chosen(value, Self::KINDS, "handler", at, report)?;
        Self::read_kind(&kind, &value, &at.key(&kind), report)
    }
    fn stand_in() -> Option<Self> {
        Some(Self::Log(LogHandler {}))
    }
    fn show(&self) -> Out {
        let mut entries = vec![Entry::new(self.kind(), self.show_kind())];
        for kind in Self::KINDS.iter().filter(|k| **k != self.kind()) {
            entries.push(Entry { off: true, ..Entry::new(*kind, other_kind(kind)) });
        }
        Out::Map(entries)
    }
    fn keys(path: &str, out: &mut Vec<KeyDoc>) {
        for kind in Self::KINDS {
            keys_of_kind(kind, &format!("{path}.{kind}"), out);
        }
    }
}

/// A handler that was not chosen, with its defaults: what `--all` shows as a comment.
fn other_kind(kind: &str) -> Out {
    let mut keys = Vec::new();
    keys_of_kind(kind, "", &mut keys);
    let entry = |k: KeyDoc| {
        let url = if kind == "postgres" { "postgres://localhost:5432/app" } else { "http://localhost:8080/orders" };
        let default = k.default.unwrap_or(url);
        let value = super::yaml::parse(default).unwrap_or(Node::Null);
        Entry { doc: k.doc.to_owned(), ..Entry::new(k.path.trim_start_matches('.'), Out::Scalar(value)) }
    };
    Out::Map(keys.into_iter().map(entry).collect())
}

/// The section `defaults`: what it holds is read with each pipeline that it is merged into, so that it is judged there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Defaults;

impl Setting for Defaults {
    fn expects() -> String {
        "a map of pipeline keys".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        if map(value, report).is_none() {
            report.fault(at, "not a map", Self::expects());
            return None;
        }
        Some(Self)
    }
    /// Empty: what was in it stands in the pipelines.
    fn show(&self) -> Out {
        Out::Map(Vec::new())
    }
}

/// The section `pipelines`: keys by name, `defaults` already merged in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pipelines(pub(super) BTreeMap<String, PipelineKeys>);

impl Setting for Pipelines {
    fn expects() -> String {
        "a map from pipeline name to its keys".to_owned()
    }
    fn read(value: &Value, at: &At, report: &mut Report<'_>) -> Option<Self> {
        let Some(entries) = map(value, report) else {
            report.fault(at, "not a map", Self::expects());
            return None;
        };
        let mut read = BTreeMap::new();
        for (name, own) in entries {
            let here = at.key(&name);
            let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
            if !starts || name.len() > 100 || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                let remedy = "at most 100 letters, digits, `-`, `_`, `.`, a letter or digit first";
                report.fault_with(&here, None, "not a name for a pipeline", remedy);
            }
            let own = report.untext(&own);
            let keys = PipelineKeys::read(&report.with_defaults(own), &here, report);
            read.extend(keys.map(|keys| (name, keys)));
        }
        Some(Self(read))
    }
    fn show(&self) -> Out {
        Out::Map(self.0.iter().map(|(name, keys)| Entry::new(name, keys.show())).collect())
    }
    fn keys(path: &str, out: &mut Vec<KeyDoc>) {
        PipelineKeys::keys(&format!("{path}.<name>"), out);
    }
}
