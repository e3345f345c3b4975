//! What a server must be before it is trusted with the records, from its own description (`INFO`).
//!
//! The description is read rather than `CONFIG GET`: it tells the same, and managed services that forbid `CONFIG`
//! still answer it.

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, FromRedisValue, RedisError, Value};

use super::link::Link;
use super::slots::{Address, SlotMap};
use super::{Error, commands};

/// What a server is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Standalone,
    /// A primary of a Redis Cluster.
    ClusterNode,
}

/// What a cluster's node says about the cluster; `None` where it does not say it now.
pub(super) async fn slot_map(link: &Link, address: &Address) -> Option<SlotMap> {
    let up = is_up(link).await;
    SlotMap::read(cluster(link, "SLOTS").await?, up, address)
}

/// Whether a cluster's node takes commands: each decides for itself when it counts the cluster as up.
pub(super) async fn is_up(link: &Link) -> bool {
    let info = cluster(link, "INFO").await.and_then(|info| String::from_redis_value(info).ok());
    info.is_some_and(|info| info.lines().any(|line| line.trim() == "cluster_state:ok"))
}

async fn cluster(link: &Link, what: &str) -> Option<Value> {
    let mut cmd = Cmd::new();
    cmd.arg("CLUSTER").arg(what);
    link.run(&commands::pipeline([cmd].into_iter())).await.ok()?.pop()
}

/// Checks the server behind `connection`; the texts are warnings about what it does not tell.
pub(super) async fn check(connection: &mut MultiplexedConnection, url: &str, kind: Kind) -> Result<Vec<String>, Error> {
    let reply = connection.send_packed_command(Cmd::new().arg("INFO")).await.map_err(|e| unreachable(url, &e))?;
    match reply {
        Value::ServerError(error) if error.code() == "NOPERM" => Ok(vec![
            "the server's description (INFO) is forbidden to this user: cannot check version and maxmemory-policy"
                .into(),
        ]),
        Value::ServerError(error) => Err(Error::Refused {
            url: url.to_owned(),
            reason: format!("{} {}", error.code(), error.details().unwrap_or_default()),
        }),
        reply => {
            let info = String::from_redis_value(reply)
                .map_err(|e| Error::Unreachable { url: url.to_owned(), reason: format!("INFO cannot be read: {e}") })?;
            judge(&info, url, kind)
        }
    }
}

/// Tries each command of the records on a key that is not there, where none of them changes anything, and before them
/// what a cluster's node is asked besides: a right that is missing is found before an event needs it.
pub(super) async fn try_rights(
    connection: &mut MultiplexedConnection,
    url: &str,
    prefix: &str,
    kind: Kind,
) -> Result<(), Error> {
    let key = format!("{prefix}:rights:{:016x}", fastrand::u64(..));
    let of_a_cluster = (kind == Kind::ClusterNode).then(commands::of_a_cluster);
    let commands: Vec<Cmd> = of_a_cluster.into_iter().flatten().chain(commands::harmless(&key)).collect();
    let pipeline = commands::pipeline(commands.into_iter());
    let replies = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await;
    for reply in replies.map_err(|e| unreachable(url, &e))? {
        if let Value::ServerError(error) = reply
            && error.code() == "NOPERM"
        {
            let details = error.details().unwrap_or_default();
            return Err(Error::Refused {
                url: url.to_owned(),
                reason: format!("NOPERM {details} (tried on {prefix}:*)"),
            });
        }
    }
    Ok(())
}

pub(super) fn unreachable(url: &str, error: &RedisError) -> Error {
    Error::Unreachable { url: url.to_owned(), reason: error.to_string() }
}

fn judge(info: &str, url: &str, kind: Kind) -> Result<Vec<String>, Error> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .filter(|v| !v.is_empty())
    };
    let url = || url.to_owned();
    let mut warnings = Vec::new();
    if field("loading").is_some_and(|v| v != "0") {
        return Err(Error::Unreachable { url: url(), reason: "it is still loading its data".into() });
    }
    match field("redis_version") {
        // Every Valkey can do what Redis 7.0 can.
        _ if field("valkey_version").is_some() => {}
        Some(version) => {
            let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            if major.is_none_or(|major| major < 7) {
                return Err(Error::TooOld { url: url(), found: version.to_owned() });
            }
        }
        None => warnings.push("the server does not tell its version: 7.0 or newer is needed".into()),
    }
    match (field("cluster_enabled"), kind) {
        (Some("1"), Kind::Standalone) => return Err(Error::Cluster { url: url() }),
        (Some("0"), Kind::ClusterNode) => return Err(Error::NoCluster { url: url() }),
        _ => {}
    }
    if field("role").is_some_and(|v| v != "master") {
        return Err(Error::Replica { url: url() });
    }
    match field("maxmemory_policy") {
        Some("noeviction") => {}
        Some(policy) => {
            return Err(Error::EvictionPolicy { url: url(), found: policy.to_owned() });
        }
        None => warnings.push("the server does not tell its maxmemory-policy: it must be noeviction".into()),
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(info: &str, kind: Kind) -> String {
        match judge(&info.replace(' ', "\r\n"), "redis://h", kind) {
            Ok(warnings) => format!("{} warnings", warnings.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_server_is_judged_by_its_description() {
        fn check(info: &str, expected: &str) {
            let got = verdict(info, Kind::Standalone);
            assert!(got.contains(expected), "{info}: {got}");
        }
        check("redis_version:7.0.15 role:master maxmemory_policy:noeviction cluster_enabled:0 loading:0", "0 warnings");
        check("redis_version:8.2.1 role:master maxmemory_policy:noeviction", "0 warnings");
        check("redis_version:10.0.0 maxmemory_policy:noeviction", "0 warnings");
        check("redis_version:7.2.4 valkey_version:8.1.0 maxmemory_policy:noeviction", "0 warnings");
        check("redis_version:7.0.0", "1 warnings");
        check("role:master", "2 warnings");
        check("redis_version:6.2.14 maxmemory_policy:noeviction", "has version 6.2.14; Redis 7.0 or newer");
        check("redis_version:x maxmemory_policy:noeviction", "has version x");
        check("redis_version:7.0.15 maxmemory_policy:allkeys-lru", "maxmemory-policy allkeys-lru");
        check("redis_version:7.0.15 role:slave maxmemory_policy:noeviction", "read-only replica");
        check("redis_version:7.0.15 cluster_enabled:1 maxmemory_policy:noeviction", "Redis Cluster");
        check("redis_version:7.0.15 loading:1", "still loading");
    }

    #[test]
    fn a_node_of_a_cluster_is_judged_as_one() {
        let fit = "redis_version:7.0.15 role:master maxmemory_policy:noeviction cluster_enabled:";
        assert_eq!(verdict(&format!("{fit}1"), Kind::ClusterNode), "0 warnings");
        let alone = verdict(&format!("{fit}0"), Kind::ClusterNode);
        assert!(alone.contains("is no node of a Redis Cluster"), "{alone}");
    }
}
