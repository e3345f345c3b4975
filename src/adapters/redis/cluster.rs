//! A Redis Cluster: which node has which slot, and one [`Link`] to each of its primaries.
//!
//! A batch is split by node, one pipeline each, all under way at once. A command that is answered by a redirection
//! (`MOVED`, `ASK`) was not executed, so it is sent once more where that points; every other fault (a node that is gone,
//! `CLUSTERDOWN`, `TRYAGAIN`) is the result of its own command alone. Batches never connect: the keeper alone opens
//! links and reads the map, each ten seconds, and each second while something is wrong. The cluster counts as available
//! while all slots have a primary that answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Cmd, ServerErrorKind, Value};
use futures::future::join_all;
use reqwest::Url;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::link::{Link, PULSE, masked};
use super::slots::{Address, NO_NODE, SLOTS, SlotMap, slot_of};
use super::{Error, Keyed, Options, commands, server};
use crate::stage::ports::StoreError;

/// Between two looks at the map while all is well.
const CALM: Duration = Duration::from_secs(10);
/// How often one command follows a redirection: a slot that moves on twice in one batch is left for the next try.
const REDIRECTIONS: usize = 3;
/// A node that is in no map and that no redirection named for so long is let go.
const STRANGER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Cluster {
    /// Where the cluster is asked for its map when none of its known nodes answers.
    seeds: Vec<Url>,
    name: String,
    options: Options,
    state: Mutex<State>,
    available: watch::Sender<bool>,
    /// Wakes the keeper when the map is found to be wrong.
    trouble: Notify,
}

#[derive(Debug, Default)]
struct State {
    routes: Arc<Routes>,
    /// Nodes that redirections named: one that is given its first slot is in no map yet.
    strangers: BTreeMap<Address, Instant>,
}

/// An immutable picture of the cluster.
#[derive(Debug)]
struct Routes {
    nodes: Vec<Node>,
    /// Index into `nodes`.
    of_slot: Vec<u16>,
    /// What is wrong with slots that have no node.
    gap: String,
}

impl Default for Routes {
    fn default() -> Self {
        Self { nodes: Vec::new(), of_slot: vec![NO_NODE; SLOTS], gap: "the map is not read yet".to_owned() }
    }
}

#[derive(Clone, Debug)]
struct Node {
    address: Address,
    kept: Arc<Kept>,
}

/// A link and the task that keeps it, which ends with it.
#[derive(Debug)]
struct Kept {
    link: Arc<Link>,
    keeper: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Commands of one batch that go to one node.
struct Part {
    node: usize,
    /// They follow an `ASK`: each is announced by `ASKING`.
    asking: bool,
    entries: Vec<usize>,
}

impl Cluster {
    /// Connects to every primary, trying again until the start-up time-out.
    pub(super) async fn open(urls: &[&str], options: Options) -> Result<Self, Error> {
        let bad = |url: &str, reason: String| Error::BadUrl { url: masked(url), reason };
        let seeds: Result<Vec<Url>, Error> =
            urls.iter().map(|url| Url::parse(url).map_err(|e| bad(url, e.to_string()))).collect();
        let seeds = seeds?;
        if seeds.is_empty() {
            return Err(bad("", "the list of a cluster's urls is empty".to_owned()));
        }
        let begin = Instant::now();
        let startup = options.startup_timeout;
        let name = urls.iter().map(|url| masked(url)).collect::<Vec<_>>().join(", ");
        let cluster = Self {
            seeds,
            name,
            options: Options { startup_timeout: Duration::ZERO, ..options },
            state: Mutex::default(),
            available: watch::Sender::new(true),
            trouble: Notify::new(),
        };
        let mut waiting = false;
        while let Err(error) = cluster.look().await {
            if !error.is_unreachable() || begin.elapsed() + PULSE > startup {
                return Err(error);
            }
            if !waiting {
                waiting = true;
                tracing::warn!(%error, timeout = ?startup, "waiting for redis");
            }
            sleep(PULSE).await;
        }
        Ok(cluster)
    }

    pub(super) fn available(&self) -> watch::Receiver<bool> {
        self.available.subscribe()
    }

    /// The urls that were given, without passwords.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// To each primary.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.state().routes.nodes.iter().map(|node| Arc::clone(&node.kept.link)).collect()
    }

    /// The longest that any primary takes to answer.
    pub(super) async fn ping(&self) -> Result<Duration, StoreError> {
        let routes = Arc::clone(&self.state().routes);
        let pings = join_all(routes.nodes.iter().map(|node| node.kept.link.ping())).await;
        pings.into_iter().try_fold(Duration::ZERO, |longest, ping| Ok(longest.max(ping?)))
    }

    /// One result per entry, in order.
    pub(super) async fn run<E: Keyed>(
        &self,
        batch: &[E],
        command: impl Fn(&E) -> Cmd,
    ) -> Vec<Result<Value, StoreError>> {
        let routes = Arc::clone(&self.state().routes);
        let begin = Instant::now();
        let mut parts = Vec::new();
        let mut results: Vec<Result<Value, StoreError>> = Vec::with_capacity(batch.len());
        for (i, entry) in batch.iter().enumerate() {
            let slot = slot_of(entry.key());
            results.push(Err(StoreError(format!("redis cluster: no primary for slot {slot}: {}", routes.gap))));
            match routes.of_slot[usize::from(slot)] {
                NO_NODE => self.trouble.notify_one(),
                node => add(&mut parts, usize::from(node), false, i),
            }
        }
        for _ in 0..=REDIRECTIONS {
            let sent = parts.drain(..).map(|part: Part| async {
                let asking = part.asking;
                let commands = part
                    .entries
                    .iter()
                    .flat_map(|&i| asking.then(asking_command).into_iter().chain([command(&batch[i])]));
                let pipeline = commands::pipeline(commands.collect::<Vec<_>>().into_iter());
                let reply = routes.nodes[part.node].kept.link.run(&pipeline).await;
                (part, reply)
            });
            for (part, reply) in join_all(sent).await {
                let values = match reply {
                    Ok(values) => values,
                    Err(error) => {
                        self.trouble.notify_one();
                        part.entries.iter().for_each(|&i| results[i] = Err(error.clone()));
                        continue;
                    }
                };
                let values = values.into_iter().skip(usize::from(part.asking)).step_by(1 + usize::from(part.asking));
                for (&i, value) in part.entries.iter().zip(values) {
                    if let Some((asking, address)) = redirection(&value, &routes.nodes[part.node].address) {
                        let known = routes.nodes.iter().position(|node| node.address == address);
                        match known {
                            Some(node) => add(&mut parts, node, asking, i),
                            None => drop(self.state().strangers.insert(address, Instant::now())),
                        }
                        // While a slot moves the map is as right as it can be.
                        if !asking || known.is_none() {
                            self.trouble.notify_one();
                        }
                    } else if is_down(&value) {
                        self.trouble.notify_one();
                    }
                    // A redirection that leads nowhere stays, as the refusal that it is.
                    results[i] = Ok(value);
                }
            }
            // A batch answers in time: a first answer that came late is not followed.
            if parts.is_empty() || begin.elapsed() >= self.options.response_timeout {
                break;
            }
        }
        results
    }

    /// Follows the cluster. Never returns.
    pub(super) async fn keep(&self) {
        let mut looked = Instant::now();
        let mut gone: Option<Instant> = None;
        loop {
            let told = tokio::select! {
                () = self.trouble.notified() => true,
                () = sleep(PULSE) => false,
            };
            if !told && gone.is_none() && looked.elapsed() < CALM && self.state().routes.all_answer() {
                continue;
            }
            match self.look().await {
                Ok(()) => {
                    if let Some(since) = gone.take() {
                        tracing::info!(cluster = %self.name, after = ?since.elapsed(), "redis cluster is whole again");
                    }
                    self.available.send_replace(true);
                }
                Err(error) => {
                    self.available.send_replace(false);
                    if gone.is_none() {
                        gone = Some(Instant::now());
                        tracing::warn!(cluster = %self.name, %error, "redis cluster is not whole; looking until it is");
                    }
                }
            }
            looked = Instant::now();
            // However many batches are in trouble.
            sleep(PULSE / 10).await;
        }
    }

    /// Reads the map and connects to what is new in it. Fails with the first thing that keeps a slot from being served,
    /// after all that can be used is in use.
    async fn look(&self) -> Result<(), Error> {
        let known = Arc::clone(&self.state().routes);
        let map = self.read_map(&known).await?;
        let mut wanted: Vec<Address> = map.primaries().cloned().collect();
        {
            let mut state = self.state();
            state.strangers.retain(|address, named| named.elapsed() < STRANGER && !wanted.contains(address));
            wanted.extend(state.strangers.keys().cloned());
        }
        let nodes = join_all(wanted.iter().map(|address| self.node(address, &known))).await;
        let mut problem = map.problem(&self.name);
        let mut routes = Routes::default();
        for (address, node) in wanted.iter().zip(nodes) {
            match node {
                Ok(node) => {
                    let index = u16::try_from(routes.nodes.len()).unwrap_or(NO_NODE);
                    map.slots_of(address).for_each(|slot| routes.of_slot[slot] = index);
                    routes.nodes.push(node);
                }
                // A stranger that cannot be reached keeps nobody else from his work.
                Err(error) if map.slots_of(address).next().is_some() => problem = Err(error),
                Err(_) => {}
            }
        }
        let up = join_all(routes.nodes.iter().map(|node| server::is_up(&node.kept.link))).await;
        if problem.is_ok()
            && let Some(down) = up.iter().position(|up| !up)
        {
            let url = routes.nodes[down].kept.link.url().to_owned();
            problem = Err(Error::Unreachable { url, reason: "the node does not count the cluster as up".to_owned() });
        }
        routes.gap = problem.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.state().routes = Arc::new(routes);
        problem
    }

    /// The map as the first node that counts the cluster as whole tells it, else any node.
    async fn read_map(&self, known: &Routes) -> Result<SlotMap, Error> {
        let mut best = None;
        for node in &known.nodes {
            if let Some(map) = server::slot_map(&node.kept.link, &node.address).await {
                if map.is_whole() {
                    return Ok(map);
                }
                best.get_or_insert(map);
            }
        }
        let mut failed = None;
        for seed in &self.seeds {
            // Nobody to be asked but a stranger, who is asked once.
            match Link::open(seed.as_str(), self.options.clone(), server::Kind::ClusterNode).await {
                Ok(link) => match server::slot_map(&link, &Address::of(seed)).await {
                    Some(map) if map.is_whole() => return Ok(map),
                    Some(map) => drop(best.get_or_insert(map)),
                    None => {}
                },
                Err(error) if !error.is_unreachable() => return Err(error),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        let nobody = || Error::Unreachable { url: self.name.clone(), reason: "no node tells the slots".to_owned() };
        best.ok_or_else(|| failed.unwrap_or_else(nobody))
    }

    /// The link to a node: the one that there is, or a new one.
    async fn node(&self, address: &Address, known: &Routes) -> Result<Node, Error> {
        if let Some(node) = known.nodes.iter().find(|node| node.address == *address) {
            return Ok(node.clone());
        }
        let url = address.url_like(&self.seeds[0]);
        let link = Arc::new(Link::open(&url, self.options.clone(), server::Kind::ClusterNode).await?);
        let keeper = {
            let link = Arc::clone(&link);
            tokio::spawn(async move { link.keep().await }).abort_handle()
        };
        Ok(Node { address: address.clone(), kept: Arc::new(Kept { link, keeper }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    fn all_answer(&self) -> bool {
        self.nodes.iter().all(|node| *node.kept.link.available().borrow())
    }
}

fn add(parts: &mut Vec<Part>, node: usize, asking: bool, entry: usize) {
    match parts.iter_mut().find(|part| part.node == node && part.asking == asking) {
        Some(part) => part.entries.push(entry),
        None => parts.push(Part { node, asking, entries: vec![entry] }),
    }
}

fn asking_command() -> Cmd {
    let mut cmd = Cmd::with_capacity(1, 8);
    cmd.arg("ASKING");
    cmd
}

/// Whether the reply is an `ASK` (true) or a `MOVED`, and where it points.
fn redirection(reply: &Value, answered: &Address) -> Option<(bool, Address)> {
    let Value::ServerError(error) = reply else { return None };
    let asking = match error.kind()? {
        ServerErrorKind::Ask => true,
        ServerErrorKind::Moved => false,
        _ => return None,
    };
    let (_slot, place) = error.details()?.split_once(' ')?;
    Some((asking, Address::parse(place, &answered.host)?))
}

fn is_down(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::ClusterDown))
}
