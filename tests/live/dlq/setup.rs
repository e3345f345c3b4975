//! A DLQ of a test's own, filled by hand, and the command on it.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

pub(crate) use retry_ladder::messages::shop::v1::OrderPlaced;

use crate::support::{brokers, client_config, create_topic, delete_topic, redis_url, unique};

const LIMIT: Duration = Duration::from_secs(90);

/// What a page must show as the text that it is.
pub(crate) const MARKUP: &str =
    "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">";

/// A field that the declaration of the message does not have, as a newer writer adds it.
pub(crate) const UNKNOWN: &[u8] = &[0xa0, 0x38, 7];

/// A kind of error; `#` in its text becomes the letter's number.
pub(crate) struct Kind {
    class: &'static str,
    text: &'static str,
    pub(crate) folded: &'static str,
}

/// The letters take them in turn.
pub(crate) const KINDS: [Kind; 5] = [
    Kind { class: "poison", text: "byte #", folded: "poison: byte #" },
    Kind { class: "permanent", text: "order # not found", folded: "permanent: order # not found" },
    Kind { class: "exhausted", text: "503 from 10.0.0.#:80", folded: "exhausted: # from #" },
    Kind { class: "exhausted", text: "customer \"#\" is locked", folded: "exhausted: customer '…' is locked" },
    Kind { class: "expired", text: "older than 1d", folded: "expired: older than #" },
];

impl Kind {
    pub(crate) fn of(class: &str) -> &'static Self {
        KINDS.iter().find(|kind| kind.class == class).expect("a class of the sample")
    }
}

pub(crate) fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// What a schema registry's serializer writes before letter `n`: another schema for each, and the message's index in two of
/// the ways that it can be written.
pub(crate) fn frame(n: usize) -> Vec<u8> {
    let index: &[u8] = if n.is_multiple_of(2) { &[0] } else { &[2, 0] };
    [&[0][..], &(n as u32 + 1).to_be_bytes(), index].concat()
}

/// A record as a plain consumer sees it.
pub(crate) struct Copy {
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

impl Copy {
    pub(crate) fn text(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let (_, value) = found.next().unwrap_or_else(|| panic!("no {name}"));
        assert!(found.next().is_none(), "{name} twice");
        std::str::from_utf8(value).expect("text")
    }
}

pub(crate) struct Dlq {
    topic: String,
    partitions: i32,
    /// Values have a schema registry's framing.
    framed: bool,
    dir: tempfile::TempDir,
}

impl Dlq {
    pub(crate) async fn new(partitions: i32) -> Self {
        Self::with(partitions, false).await
    }

    pub(crate) async fn with(partitions: i32, framed: bool) -> Self {
        let dlq = Self { topic: unique("dlq"), partitions, framed, dir: tempfile::tempdir().expect("a folder") };
        dlq.configure("fail_ratio: 0");
        create_topic(&dlq.topic, partitions, &[]).await;
        for stage in ["retry-1", "dlq"] {
            create_topic(&dlq.of(stage), partitions, &[]).await;
        }
        for notes in ["redrive", "control"] {
            create_topic(&dlq.of(notes), 1, &[("cleanup.policy", "compact")]).await;
        }
        dlq
    }

    /// Deletes the topic of the letters and makes it again: offsets begin anew.
    pub(crate) async fn make_again(&self) {
        let topic = self.of("dlq");
        delete_topic(&topic).await;
        create_topic(&topic, self.partitions, &[]).await;
    }

    pub(crate) fn configure(&self, simulate: &str) {
        let text = format!(
            "kafka: {{ brokers: \"{}\" }}\nredis: {{ url: \"{}\", prefix: {} }}\npipelines:\n  orders:\n    topic: {}\n    \
             group: g\n    message: shop.v1.OrderPlaced\n    framing: {}\n    retries: [{{ delay: 100ms }}]\n    allow_unsafe_topics: true\n    \
             handler: {{ simulate: {{ {simulate}, record: {:?} }} }}\n",
            brokers(),
            redis_url(),
            self.topic,
            self.topic,
            if self.framed { "confluent" } else { "plain" },
            self.path("executions")
        );
        std::fs::write(self.path("topics.yaml"), text).expect("written");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn of(&self, stage: &str) -> String {
        format!("{}.g.{stage}", self.topic)
    }

    /// Letters as the ladder writes them: number `n` on partition `n` modulo their count, its kind by turns.
    pub(crate) fn fill(&self, letters: usize) {
        let mut config = client_config();
        config.set("linger.ms", "5").set("queue.buffering.max.messages", "1000000").set("compression.type", "lz4");
        let producer: BaseProducer = config.create().expect("producer");
        for n in 0..letters {
            let kind = &KINDS[n % KINDS.len()];
            let (id, key, number) = (format!("event-{n}"), format!("key-{n}"), n.to_string());
            let order = OrderPlaced {
                unique_id: id.clone(),
                quantity: n as u32,
                item_id: MARKUP.into(),
                ..OrderPlaced::default()
            };
            let payload =
                if kind.class == "poison" { vec![0xff; 3] } else { [&*order.encode_to_vec(), UNKNOWN].concat() };
            let value = if self.framed { [&frame(n)[..], &payload].concat() } else { payload };
            let error = format!("{}: {}", kind.class, kind.text.replace('#', &number));
            let history = format!(r#"[{{"s":0,"t":1,"ms":2,"e":"permanent","m":"history of {id}"}}]"#);
            let origin = format!("{}:0:{n}:1", self.topic);
            let pairs = [
                ("number", number.as_str()),
                ("markup", MARKUP),
                ("x-ladder-event-id", id.as_str()),
                ("x-ladder-stage", "0"),
                ("x-ladder-attempt", "1"),
                ("x-ladder-hop", "1"),
                ("x-ladder-origin", origin.as_str()),
                ("x-ladder-group", "g"),
                ("x-ladder-error", error.as_str()),
                ("x-ladder-history", history.as_str()),
                ("__dlq.errors.topic", self.topic.as_str()),
                ("kafka_dlt-original-topic", self.topic.as_str()),
            ];
            let headers = pairs
                .iter()
                .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
            let topic = self.of("dlq");
            let partition = n as i32 % self.partitions;
            let record = BaseRecord::<str, [u8]>::to(&topic).partition(partition).key(&key).payload(&value);
            producer.send(record.headers(headers)).map_err(|(e, _)| e).expect("send");
            producer.poll(Duration::ZERO);
        }
        producer.flush(LIMIT).expect("flush");
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.arg("--config").arg(self.path("topics.yaml")).args(args).env_remove("PIPELINE_PROFILE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `pipeline dlq` with these arguments, to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.pipeline(&[&["dlq"], args].concat())
    }

    /// `pipeline` with these arguments, to its end.
    pub(crate) fn pipeline(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it runs")
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(&[&["dlq"], args].concat()).stderr(Stdio::null()).spawn().expect("it starts")
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }

    pub(crate) fn lines(&self, args: &[&str]) -> Vec<Value> {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// What a plain consumer reads on a stage's topic.
    pub(crate) fn copies(&self, stage: &str) -> Vec<Copy> {
        let topic = self.of(stage);
        let consumer: BaseConsumer = client_config()
            .set("group.id", unique("plain"))
            .set("enable.partition.eof", "true")
            .create()
            .expect("consumer");
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions {
            list.add_partition_offset(&topic, partition, Offset::Beginning).expect("offset");
        }
        consumer.assign(&list).expect("assign");
        let (mut ends, mut copies) = (std::collections::BTreeSet::new(), Vec::new());
        while ends.len() < self.partitions as usize {
            match consumer.poll(LIMIT).expect("an answer in time") {
                Ok(message) => {
                    let headers = message.headers().expect("headers");
                    let pair = |h: Header<'_, &[u8]>| (h.key.to_owned(), h.value.unwrap_or_default().to_vec());
                    let value = message.payload().unwrap_or_default().to_vec();
                    copies.push(Copy { value, headers: headers.iter().map(pair).collect() });
                }
                Err(rdkafka::error::KafkaError::PartitionEOF(partition)) => drop(ends.insert(partition)),
                Err(error) => panic!("{error}"),
            }
        }
        copies
    }

    pub(crate) fn wait_for_copies(&self, stage: &str, count: usize) {
        let begun = Instant::now();
        while self.copies(stage).len() < count {
            assert!(begun.elapsed() < LIMIT, "{count} copies on {stage} within {LIMIT:?}");
        }
    }

    /// Open, redriven and discarded letters, as `pipeline status` counts them.
    pub(crate) fn letters(&self) -> (u64, u64, u64) {
        let output = self.pipeline(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let stages = status["pipelines"][0]["stages"].as_array().expect("stages");
        let letters = &stages.last().expect("the DLQ")["letters"];
        (number(letters, "open"), number(letters, "redriven"), number(letters, "discarded"))
    }

    /// As `pipeline status` sees it from outside.
    pub(crate) fn until_nothing_lags(&self) {
        let begun = Instant::now();
        loop {
            let output = self.command(&["status", "--json"]).output().expect("it runs");
            let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let stages = status["pipelines"][0]["stages"].as_array().expect("stages");
            let behind = |stage: &&Value| stage["stage"] != "dlq" && stage["lag"] != 0;
            if !stages.iter().any(|stage| behind(&stage)) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{status}");
        }
    }

    /// A process that runs all stages.
    pub(crate) fn worker(&self, simulate: &str) -> Worker<'_> {
        self.configure(simulate);
        let log = std::fs::File::create(self.path("worker.log")).expect("a log");
        let child = self.command(&[]).stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("starts");
        Worker { dlq: self, child }
    }

    /// Ids of the events that the handler says it did, sorted.
    pub(crate) fn done(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("executions")).unwrap_or_default();
        let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut done: Vec<_> = words.filter(|w| w.last() == Some(&"done")).map(|w| w[5].to_owned()).collect();
        done.sort();
        done
    }
}

pub(crate) struct Worker<'d> {
    dlq: &'d Dlq,
    child: Child,
}

impl Worker<'_> {
    pub(crate) fn until_done(&self, count: usize) {
        let begun = Instant::now();
        while self.dlq.done().len() < count {
            let log = || std::fs::read_to_string(self.dlq.path("worker.log")).unwrap_or_default();
            assert!(begun.elapsed() < LIMIT, "{:?} of {count}\n{}", self.dlq.done(), log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
