//! Real Kafka brokers of a test's own: KRaft nodes as plain processes on free loopback ports, small heaps, ended by
//! their pids on drop.
//!
//! One cluster at a time: it holds a lock that the next one waits for, as each takes some 300 MB and seconds of CPU
//! time to come up.

use std::fmt::Write as _;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::certificates::Certificates;
use crate::outside;
use crate::redis_server::free_port;

/// For brokers to come up: a JVM each.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a command until standard input ends, and then kills it: so it ends with the test, however that ends.
const UNTIL_STDIN_ENDS: &str = r#""$@" </dev/null & server=$!; cat >/dev/null; kill -9 $server; wait $server"#;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Node {
    port: u16,
    controller_port: u16,
    /// A second listener, whose clients are told to come to `advertised`.
    beside: Option<Beside>,
    process: Option<Child>,
}

#[derive(Clone, Copy)]
struct Beside {
    port: u16,
    advertised: u16,
}

/// Listeners for those who prove who they are.
struct Guarded {
    /// By a password.
    port: u16,
    /// By a certificate.
    mutual_port: u16,
    keystore: PathBuf,
    ca: PathBuf,
    /// Name and password.
    users: Vec<(String, String)>,
}

/// A cluster; every node is broker and controller.
pub(crate) struct KafkaCluster {
    nodes: Vec<Node>,
    guarded: Option<Guarded>,
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl KafkaCluster {
    /// Starts so many nodes and waits until all are there. With three or more, topics have three copies, two in sync.
    pub(crate) fn start(nodes: usize) -> Self {
        Self::prepared(nodes).up()
    }

    /// One node with a second listener, which is reached through a proxy: the proxy is made from the listener's port
    /// and returned with the port that it is at.
    pub(crate) fn behind<P>(proxy: impl FnOnce(u16) -> (P, u16)) -> (Self, P) {
        let mut cluster = Self::prepared(1);
        let port = free_port();
        let (proxy, advertised) = proxy(port);
        cluster.nodes[0].beside = Some(Beside { port, advertised });
        (cluster.up(), proxy)
    }

    /// One node with two more listeners, both TLS: for users with a password (SCRAM-SHA-512 or PLAIN), and for clients with
    /// a certificate. They have the rights that they are given; whoever comes to the first listener has every right.
    pub(crate) fn guarded(certificates: &Certificates, users: &[(&str, &str)]) -> Self {
        let mut cluster = Self::prepared(1);
        let keystore = cluster.file(0, "keystore.pem");
        let pem = [&certificates.key, &certificates.cert].map(|file| std::fs::read_to_string(file).expect("PEM"));
        std::fs::write(&keystore, pem.concat()).expect("its keystore");
        let users = users.iter().map(|(name, password)| ((*name).to_owned(), (*password).to_owned())).collect();
        let (port, mutual_port, ca) = (free_port(), free_port(), certificates.ca.clone());
        cluster.guarded = Some(Guarded { port, mutual_port, keystore, ca, users });
        cluster.up()
    }

    /// Address of the listener that asks for a password.
    pub(crate) fn guarded_brokers(&self) -> String {
        format!("localhost:{}", self.guarded.as_ref().expect("a guarded cluster").port)
    }

    /// Address of the listener that asks for a certificate.
    pub(crate) fn mutual_brokers(&self) -> String {
        format!("localhost:{}", self.guarded.as_ref().expect("a guarded cluster").mutual_port)
    }

    fn prepared(nodes: usize) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let node = |_| Node { port: free_port(), controller_port: free_port(), beside: None, process: None };
        let folder = tempfile::Builder::new().prefix("ladder-kafka").tempdir().expect("a folder");
        Self { nodes: (0..nodes).map(node).collect(), guarded: None, folder, _alone: alone }
    }

    fn up(mut self) -> Self {
        let id = "ladderLadderLadderLadd"; // 16 bytes in url-safe base64
        let format = |index: usize| {
            std::fs::write(self.file(index, "properties"), self.properties(index)).expect("its properties");
            let mut command = self.java(index, "format", "exec \"$@\"");
            command.args(["kafka.tools.StorageTool", "format", "-t", id, "-c"]).arg(self.file(index, "properties"));
            for (name, password) in self.guarded.iter().flat_map(|guarded| &guarded.users) {
                command.args(["--add-scram", &format!("SCRAM-SHA-512=[name={name},password={password}]")]);
            }
            command.spawn().expect("java starts")
        };
        let formats: Vec<_> = (0..self.nodes.len()).map(format).collect();
        for (index, mut format) in formats.into_iter().enumerate() {
            let status = format.wait().expect("java ends");
            assert!(status.success(), "kafka's storage: {status}\n{}", self.log(index, "format"));
        }
        for index in 0..self.nodes.len() {
            self.launch(index);
        }
        self.await_brokers(self.nodes.len());
        self
    }

    /// Addresses of all nodes.
    pub(crate) fn brokers(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        addresses.join(",")
    }

    /// SIGKILL to a node, and gone when this returns.
    pub(crate) fn kill(&mut self, index: usize) {
        end(self.nodes[index].process.take().expect("it runs"));
    }

    /// Starts a node again on its data and waits until all that should be there are.
    pub(crate) fn restart(&mut self, index: usize) {
        self.launch(index);
        self.await_brokers(self.nodes.iter().filter(|node| node.process.is_some()).count());
    }

    /// The node that leads a partition, `None` while nobody does.
    pub(crate) fn leader(&self, topic: &str, partition: usize) -> Option<usize> {
        let metadata = self.looker().fetch_metadata(Some(topic), Duration::from_secs(5)).ok()?;
        let leader = metadata.topics().first()?.partitions().get(partition)?.leader();
        usize::try_from(leader - 1).ok()
    }

    fn looker(&self) -> BaseConsumer {
        outside::config(&self.brokers()).create().expect("a client that looks")
    }

    /// Waits until each node that runs knows so many brokers.
    fn await_brokers(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            let looker: BaseConsumer =
                outside::config(&format!("127.0.0.1:{}", node.port)).create().expect("a client that looks");
            let known = || looker.fetch_metadata(None, Duration::from_secs(2)).map_or(0, |m| m.brokers().len());
            while known() < count {
                let logs = || (0..self.nodes.len()).map(|n| self.log(n, "server")).collect::<String>();
                assert!(Instant::now() < deadline, "not {count} brokers after {PATIENCE:?}\n{}", logs());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn launch(&mut self, index: usize) {
        let mut command = self.java(index, "server", UNTIL_STDIN_ENDS);
        command.arg("kafka.Kafka").arg(self.file(index, "properties"));
        self.nodes[index].process = Some(command.spawn().expect("java starts"));
    }

    fn java(&self, index: usize, log: &str, how: &str) -> Command {
        let libs = std::env::var("KAFKA_LIBS").unwrap_or_else(|_| {
            panic!(
                "KAFKA_LIBS is not set: this test starts brokers of its own; eval \"$(scripts/services env)\" sets it"
            )
        });
        let java = std::env::var_os("JAVA_HOME").map_or("java".into(), |home| PathBuf::from(home).join("bin/java"));
        let log = File::options().create(true).append(true).open(self.file(index, log)).expect("a log");
        let mut command = Command::new("sh");
        command
            .args(["-c", how, "sh"])
            .arg(java)
            .args(["-Xmx256m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", &format!("{libs}/*")])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        command
    }

    fn file(&self, index: usize, kind: &str) -> PathBuf {
        self.folder.path().join(format!("{index}.{kind}"))
    }

    fn log(&self, index: usize, kind: &str) -> String {
        let log = std::fs::read_to_string(self.file(index, kind)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("---- node {index}\n{}\n", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    fn properties(&self, index: usize) -> String {
        let node = &self.nodes[index];
        let (copies, in_sync) = if self.nodes.len() >= 3 { (3, 2) } else { (1, 1) };
        let voters: Vec<_> =
            (1..).zip(&self.nodes).map(|(id, node)| format!("{id}@127.0.0.1:{}", node.controller_port)).collect();
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{}", node.port);
        let mut advertised = listeners.clone();
        if let Some(Beside { port, advertised: at }) = node.beside {
            write!(listeners, ",BESIDE://127.0.0.1:{port}").expect("text");
            write!(advertised, ",BESIDE://127.0.0.1:{at}").expect("text");
        }
        let mut guard = String::new();
        if let Some(Guarded { port, mutual_port, keystore, ca, users }) = &self.guarded {
            write!(listeners, ",SASL_SSL://127.0.0.1:{port},SSL://127.0.0.1:{mutual_port}").expect("text");
            write!(advertised, ",SASL_SSL://localhost:{port},SSL://localhost:{mutual_port}").expect("text");
            let jaas = "org.apache.kafka.common.security";
            let plain: String = users.iter().map(|(name, password)| format!(" user_{name}=\"{password}\"")).collect();
            guard = [
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
                "super.users=User:ANONYMOUS".to_owned(),
                "sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN".to_owned(),
                format!(
                    "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={jaas}.scram.ScramLoginModule required;"
                ),
                format!("listener.name.sasl_ssl.plain.sasl.jaas.config={jaas}.plain.PlainLoginModule required{plain};"),
                "ssl.keystore.type=PEM".to_owned(),
                format!("ssl.keystore.location={}", keystore.display()),
                "listener.name.ssl.ssl.client.auth=required".to_owned(),
                "ssl.truststore.type=PEM".to_owned(),
                format!("ssl.truststore.location={}", ca.display()),
            ]
            .join("\n");
        }
        [
            guard,
            "process.roles=broker,controller".to_owned(),
            format!("node.id={}", index + 1),
            format!("controller.quorum.voters={}", voters.join(",")),
            format!("listeners={listeners},CONTROLLER://127.0.0.1:{}", node.controller_port),
            format!("advertised.listeners={advertised}"),
            "controller.listener.names=CONTROLLER".into(),
            "inter.broker.listener.name=PLAINTEXT".into(),
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,BESIDE:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL".into(),
            format!("log.dirs={}", self.file(index, "data").display()),
            format!("default.replication.factor={copies}"),
            format!("min.insync.replicas={in_sync}"),
            format!("offsets.topic.replication.factor={copies}"),
            "offsets.topic.num.partitions=3".into(),
            format!("transaction.state.log.replication.factor={copies}"),
            format!("transaction.state.log.min.isr={in_sync}"),
            format!("share.coordinator.state.topic.replication.factor={copies}"),
            format!("share.coordinator.state.topic.min.isr={in_sync}"),
            "group.initial.rebalance.delay.ms=0".into(),
            // A killed node is given up after this long.
            "broker.session.timeout.ms=4000".into(),
            "broker.heartbeat.interval.ms=500".into(),
            "num.network.threads=2".into(),
            "num.io.threads=2".into(),
            "auto.create.topics.enable=false".into(),
        ]
        .join("\n")
    }
}

impl Drop for KafkaCluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().filter_map(|node| node.process.take()).for_each(end);
    }
}

/// SIGKILL, and gone when this returns.
fn end(mut process: Child) {
    drop(process.stdin.take());
    // Killed by the shell that is waited for here; there is no news in how that ends.
    drop(process.wait());
}
