//! A Redis that is closed to strangers: TLS, a password, and a user who may do what `docs/security.md` says and no more.

use std::process::Output;
use std::time::Duration;

use retry_ladder::adapters::redis::{Error, Options, Store, connect, connect_cluster};
use retry_ladder::stage::ports::{ClaimReply, IdempotencyStore, Mark, SettleReply, StoreError};

use crate::certificates::Certificates;
use crate::redis_cluster::RedisCluster;
use crate::redis_server::RedisServer;
use crate::{claim_of, key};

const LEASE: Duration = Duration::from_secs(60);

/// What the documentation gives to a stage: the words after `user worker on`.
fn documented_rules() -> Vec<String> {
    let text = include_str!("../../docs/security.md");
    let line = text.lines().find_map(|line| line.strip_prefix("user worker on "));
    line.expect("the user's line in docs/security.md").split_whitespace().map(str::to_owned).collect()
}

/// And what a Redis Cluster needs besides: in the sentence after it.
fn rules_of_a_cluster() -> Vec<String> {
    let text = include_str!("../../docs/security.md");
    let words = text.split("A Redis Cluster also needs `").nth(1).and_then(|rest| rest.split('`').next());
    words.expect("a cluster's rules in docs/security.md").split_whitespace().map(str::to_owned).collect()
}

struct Secured {
    _server: RedisServer,
    tls_port: u16,
    certificates: Certificates,
    folder: tempfile::TempDir,
}

impl Secured {
    /// `users`: the lines of the ACL file.
    fn start(users: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::make(folder.path());
        let acl = folder.path().join("users.acl");
        std::fs::write(&acl, users.join("\n")).unwrap();
        let tls_port = crate::redis_server::free_port();
        let paths = [&acl, &certificates.cert, &certificates.key, &certificates.ca].map(|p| p.display().to_string());
        let port = tls_port.to_string();
        let mut arguments = vec!["--tls-port", port.as_str(), "--tls-auth-clients", "no"];
        let names = ["--aclfile", "--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file"];
        arguments.extend(names.into_iter().zip(&paths).flat_map(|(name, path)| [name, path.as_str()]));
        Self { _server: RedisServer::start_with(&arguments), tls_port, certificates, folder }
    }

    fn with_worker(rules: &[String]) -> Self {
        let default = "user default on >owner ~* +@all".to_owned();
        Self::start(&[default, format!("user worker on {}", rules.join(" "))])
    }

    fn url(&self, login: &str) -> String {
        format!("rediss://{login}@localhost:{}", self.tls_port)
    }

    fn options(&self) -> Options {
        let ca_pem = Some(std::fs::read(&self.certificates.ca).unwrap());
        Options { startup_timeout: Duration::ZERO, ca_pem, ..Options::default() }
    }

    async fn connect(&self, login: &str) -> Result<Store, Error> {
        connect(&self.url(login), self.options()).await
    }

    /// The binary with a configuration that names this server; no Kafka is there.
    fn pipeline(&self, config: &str) -> Output {
        std::fs::write(self.folder.path().join("topics.yaml"), config).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.current_dir(self.folder.path()).output().unwrap()
    }
}

fn all<T>(replies: Vec<Result<T, StoreError>>) -> Vec<T> {
    replies.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn the_documented_rights_are_enough_for_every_command_on_records() {
    let secured = Secured::with_worker(&documented_rules());
    let store = secured.connect("worker:REDIS_SECRET").await.expect("let in");
    let (us, one) = (claim_of(1), |name: &str| (key(name), claim_of(1)));
    use ClaimReply::{Claimed, Done};
    assert_eq!(all(store.claim(vec![one("a"), one("b")], LEASE).await), [Claimed, Claimed]);
    assert_eq!(all(store.renew(vec![one("a")], LEASE).await), [true]);
    assert_eq!(all(store.settle(vec![(key("a"), us, Mark::Done, LEASE)]).await), [SettleReply::Ours]);
    assert_eq!(all(store.release(vec![one("b")]).await), [true]);
    assert_eq!(all(store.claim(vec![one("a"), one("b")], LEASE).await), [Done, Claimed]);
    store.ping().await.expect("a sign of life");
    assert_eq!(store.url(), format!("rediss://worker:***@localhost:{}", secured.tls_port));
}

#[tokio::test]
async fn without_any_one_of_the_documented_rights_the_start_is_refused_and_says_which() {
    let rules = documented_rules();
    let commands: Vec<_> = rules.iter().filter_map(|rule| rule.strip_prefix('+')).collect();
    assert_eq!(commands, ["set", "get", "pexpire", "del", "eval", "ping", "info"]);
    for missing in commands.into_iter().filter(|command| !["ping", "info"].contains(command)) {
        let fewer: Vec<_> = rules.iter().filter(|rule| **rule != format!("+{missing}")).cloned().collect();
        refused(&fewer, &format!("'{missing}' command")).await;
    }
    let elsewhere: Vec<_> = rules.iter().map(|rule| rule.replace("~idem:*", "~other:*")).collect();
    refused(&elsewhere, "idem:*").await;
}

/// Refused with these words, at the start, and the secret is not in them.
async fn refused(rules: &[String], says: &str) {
    let secured = Secured::with_worker(rules);
    let error = secured.connect("worker:REDIS_SECRET").await.expect_err("refused");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(error.exit_code(), 64);
    let text = error.to_string();
    assert!(text.contains(says) && text.contains("worker:***@") && !text.contains("REDIS_SECRET"), "{says}: {text}");
}

#[tokio::test]
async fn a_wrong_password_an_unknown_authority_and_another_name_are_refused() {
    let secured = Secured::with_worker(&documented_rules());
    let error = secured.connect("worker:guessed").await.expect_err("a wrong password");
    assert!(matches!(error, Error::Refused { .. }) && !error.to_string().contains("guessed"), "{error}");
    let trusting_the_system = Options { ca_pem: None, ..secured.options() };
    for (url, options) in [
        (secured.url("worker:REDIS_SECRET"), trusting_the_system),
        (secured.url("worker:REDIS_SECRET").replace("localhost", "127.0.0.1"), secured.options()),
    ] {
        let error = connect(&url, options).await.expect_err("not that server");
        assert!(matches!(error, Error::Certificate { .. }), "{error}");
        assert!(!error.to_string().contains("REDIS_SECRET"), "{error}");
    }
}

#[test]
fn the_binary_says_what_is_wrong_with_the_authority_and_not_the_secret() {
    let secured = Secured::with_worker(&documented_rules());
    std::fs::write(secured.folder.path().join("url"), secured.url("worker:REDIS_SECRET")).unwrap();
    let pipelines = "pipelines: { orders: { topic: t, message: shop.v1.OrderPlaced, handler: { log: {} } } }";
    let faulty = secured.pipeline(&format!("redis: {{ url_file: url, ca: nowhere.pem }}\n{pipelines}"));
    let told = String::from_utf8_lossy(&faulty.stderr).into_owned();
    assert_eq!(faulty.status.code(), Some(64), "{told}");
    assert!(told.contains("redis.ca") && told.contains("nowhere.pem") && !told.contains("REDIS_SECRET"), "{told}");
}

/// Gives the user these rules, on each node.
fn set_worker(cluster: &RedisCluster, rules: &[String]) {
    for node in &cluster.nodes {
        let rules = rules.iter().map(String::as_str);
        node.command(&["ACL", "SETUSER", "worker", "reset", "on"].into_iter().chain(rules).collect::<Vec<_>>());
    }
}

async fn connect_as_worker(cluster: &RedisCluster) -> Result<Store, Error> {
    let urls: Vec<_> = cluster.urls().iter().map(|url| url.replace("//", "//worker:REDIS_SECRET@")).collect();
    let options = Options { startup_timeout: Duration::ZERO, ..Options::default() };
    connect_cluster(&urls.iter().map(String::as_str).collect::<Vec<_>>(), options).await
}

/// Claims and settles as many events as touch every node.
async fn works(store: &Store, round: u64) {
    let claims: Vec<_> = (0..200).map(|n| (key(&format!("{round}-{n}")), claim_of(1))).collect();
    assert_eq!(all(store.claim(claims.clone(), LEASE).await), vec![ClaimReply::Claimed; 200]);
    assert_eq!(all(store.renew(claims.clone(), LEASE).await), vec![true; 200]);
    let settled = claims.iter().map(|(key, claim)| (key.clone(), *claim, Mark::Done, LEASE)).collect();
    assert_eq!(all(store.settle(settled).await), vec![SettleReply::Ours; 200]);
    assert_eq!(all(store.claim(claims, LEASE).await), vec![ClaimReply::Done; 200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_needs_the_documented_rights_and_no_other_while_its_slots_move_too() {
    // None is to be thought dead on a busy machine: the mover would be refused.
    let start = || RedisCluster::start_with(3, false, &["--cluster-node-timeout", "60000"]);
    let cluster = tokio::task::spawn_blocking(start).await.unwrap();
    let (rules, more) = (documented_rules(), rules_of_a_cluster());
    assert_eq!(more, ["+cluster|slots", "+cluster|info", "+asking"]);
    set_worker(&cluster, &[&rules[..], &more].concat());
    let store = connect_as_worker(&cluster).await.expect("let in");
    works(&store, 0).await;
    // A claim on a slot that is in both places is followed to the other one.
    let moving = key("moving");
    let slot = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", &moving]);
    let slot = slot.trim().trim_start_matches(':').parse().unwrap();
    let from = (0..3).find(|&node| cluster.slots_of(node).contains(&slot)).unwrap();
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        cluster.move_slot(slot, from, (from + 1) % 3, || {
            let claimed = runtime.block_on(store.claim(vec![(moving.clone(), claim_of(1))], LEASE));
            assert_eq!(all(claimed), [ClaimReply::Claimed]);
        });
    });
    assert!(cluster.nodes[from].command(&["INFO", "errorstats"]).contains("errorstat_ASK"));
    works(&store, 1).await;
    drop(store);

    for missing in &more {
        let fewer: Vec<_> = [&rules[..], &more].concat().into_iter().filter(|rule| rule != missing).collect();
        set_worker(&cluster, &fewer);
        let error = connect_as_worker(&cluster).await.expect_err("refused");
        assert!(matches!(error, Error::Refused { .. }) && error.exit_code() == 64, "{error}");
        assert!(error.to_string().contains(&format!("'{}' command", &missing[1..])), "{missing}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_behind_tls_is_reached_by_the_names_of_its_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let paths = [&certificates.cert, &certificates.key, &certificates.ca].map(|p| p.display().to_string());
    let cluster = tokio::task::spawn_blocking(move || {
        let [cert, key, ca] = paths.each_ref().map(String::as_str);
        let tls = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca, "--tls-cluster", "yes"];
        // The certificate is made out to the name, not to the address.
        let named = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"];
        RedisCluster::start_with(3, false, &[&tls[..], &["--tls-auth-clients", "no"], &named].concat())
    });
    let cluster = cluster.await.unwrap();
    set_worker(&cluster, &[documented_rules(), rules_of_a_cluster()].concat());
    let url = format!("rediss://worker:REDIS_SECRET@localhost:{}", cluster.nodes[0].port_of("--tls-port"));
    let options = |ca_pem| Options { startup_timeout: Duration::ZERO, ca_pem, ..Options::default() };
    let ca = std::fs::read(&certificates.ca).unwrap();
    works(&connect_cluster(&[&url], options(Some(ca))).await.expect("let in"), 0).await;
    let error = connect_cluster(&[&url], options(None)).await.expect_err("an unknown authority");
    assert!(matches!(error, Error::Certificate { .. }), "{error}");
}
