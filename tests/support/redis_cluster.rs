//! A real Redis Cluster of a test's own: primaries and replicas as processes on free loopback ports.
//!
//! Slots are cut evenly among the primaries, `slots_of` tells how. Nodes are judged dead after two seconds.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::redis_server::{RedisServer, free_port};

const SLOTS: usize = 16_384;

pub(crate) struct RedisCluster {
    /// The primaries, then the replicas in the same order.
    pub(crate) nodes: Vec<RedisServer>,
    primaries: usize,
    /// What each node was started with.
    arguments: Vec<String>,
}

impl RedisCluster {
    /// Starts so many primaries, with or without a replica for each, and waits until the cluster is up.
    ///
    /// # Panics
    /// When there is no `redis-server`, or the cluster does not come up.
    pub(crate) fn start(primaries: usize, with_replicas: bool) -> Self {
        Self::start_with(primaries, with_replicas, &[])
    }

    /// The same with more arguments for every node.
    pub(crate) fn start_with(primaries: usize, with_replicas: bool, arguments: &[&str]) -> Self {
        let count = if with_replicas { primaries * 2 } else { primaries };
        let nodes = (0..count).map(|_| node(arguments)).collect();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let cluster = Self { nodes, primaries, arguments };
        for (i, node) in cluster.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
        }
        for (i, node) in cluster.nodes[..primaries].iter().enumerate() {
            let slots = cluster.slots_of(i);
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &slots.start().to_string(), &slots.end().to_string()]);
        }
        for node in &cluster.nodes[1..] {
            cluster.meet(node);
        }
        cluster.until_all_know_each_other();
        for (i, replica) in cluster.nodes[primaries..].iter().enumerate() {
            replica.command(&["CLUSTER", "REPLICATE", &id(&cluster.nodes[i])]);
        }
        cluster.until_up();
        if with_replicas {
            let synced = |node: &RedisServer| {
                let replication = node.command(&["INFO", "replication"]);
                replication.contains("role:master") || replication.contains("master_link_status:up")
            };
            cluster.until("every replica is in step", synced);
        }
        cluster
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// The slots that a primary began with.
    pub(crate) fn slots_of(&self, primary: usize) -> RangeInclusive<usize> {
        SLOTS * primary / self.primaries..=SLOTS * (primary + 1) / self.primaries - 1
    }

    /// Starts one more primary, without a slot, and waits until it, too, counts the cluster as up.
    pub(crate) fn add_primary(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let node = node(&arguments);
        self.meet(&node);
        self.nodes.push(node);
        self.until_all_know_each_other();
        self.until_up();
    }

    /// By name: during the handshake a node is listed under another one.
    fn until_all_know_each_other(&self) {
        let ids: Vec<String> = self.nodes.iter().map(id).collect();
        let knows = |node: &RedisServer| {
            let known = words(node, "NODES");
            ids.iter().all(|id| known.contains(id.as_str()))
        };
        self.until("every node knows every other", knows);
    }

    /// Moves a slot and its keys as `redis-cli --cluster reshard` does; `meanwhile` is called when clients are asked to
    /// look in both places.
    pub(crate) fn move_slot(&self, slot: usize, from: usize, to: usize, meanwhile: impl FnOnce()) {
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let (slot, port) = (slot.to_string(), target.port().to_string());
        target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(source)]);
        source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(target)]);
        meanwhile();
        loop {
            let keys = source.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            let keys: Vec<&str> = keys.lines().skip(1).filter(|line| !line.starts_with('$')).collect();
            if keys.is_empty() {
                break;
            }
            source.command(&[&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"], &keys[..]].concat());
        }
        for node in [target, source] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(target)]);
        }
    }

    /// Waits until every living node counts the cluster as up.
    pub(crate) fn until_up(&self) {
        self.until("the cluster is up", |node| words(node, "INFO").contains("cluster_state:ok"));
    }

    fn meet(&self, node: &RedisServer) {
        let bus = self.nodes[0].port_of("--cluster-port").to_string();
        node.command(&["CLUSTER", "MEET", "127.0.0.1", &self.nodes[0].port().to_string(), &bus]);
    }

    fn until(&self, what: &str, holds: impl Fn(&RedisServer) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.nodes.iter().filter(|node| node.is_running()).all(&holds) {
            assert!(Instant::now() < deadline, "not after a minute: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn node(arguments: &[&str]) -> RedisServer {
    let (bus, tls) = (free_port().to_string(), free_port().to_string());
    let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
    let secured = if arguments.contains(&"--tls-cluster") { &["--tls-port", &tls][..] } else { &[] };
    RedisServer::start_with(&[&own[..], &["--repl-diskless-sync-delay", "0"], secured, arguments].concat())
}

fn id(node: &RedisServer) -> String {
    words(node, "MYID").lines().nth(1).unwrap_or_default().to_owned()
}

fn words(node: &RedisServer, what: &str) -> String {
    node.command(&["CLUSTER", what])
}
