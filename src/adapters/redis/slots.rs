//! Slots of a Redis Cluster: which one a key belongs to, and what a node says about who has them. Pure.

use std::ops::RangeInclusive;

use ::redis::Value;
use reqwest::Url;

use super::Error;

/// A cluster's key space is cut into so many.
pub(super) const SLOTS: usize = 16_384;
/// In place of a node's index: no node.
pub(super) const NO_NODE: u16 = u16::MAX;

/// Where a node is, as the cluster names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// That of a url that was given.
    pub(super) fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or("localhost").trim_matches(['[', ']']).to_owned();
        Self { host, port: url.port().unwrap_or(6379) }
    }

    /// `host:port`; a cluster that does not know its hosts by name leaves them out, and means the one that `answered`.
    pub(super) fn parse(place: &str, answered: &str) -> Option<Self> {
        let (host, port) = place.rsplit_once(':')?;
        Some(Self { host: known(host, answered), port: port.parse().ok()? })
    }

    /// `url` with this host and port: scheme and credentials are those of the whole cluster.
    pub(super) fn url_like(&self, url: &Url) -> String {
        let credentials = match (url.username(), url.password()) {
            ("", None) => String::new(),
            (user, None) => format!("{user}@"),
            (user, Some(password)) => format!("{user}:{password}@"),
        };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{}://{credentials}{host}:{}", url.scheme(), self.port)
    }
}

fn known(host: &str, answered: &str) -> String {
    if host.is_empty() || host == "?" { answered.to_owned() } else { host.trim_matches(['[', ']']).to_owned() }
}

/// Who has which slots, in the words of one node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// Each range and its primary.
    ranges: Vec<(RangeInclusive<usize>, Address)>,
    /// Whether that node counts the cluster as up.
    up: bool,
}

impl SlotMap {
    /// From the reply to `CLUSTER SLOTS` of the node at `answered`; `None` if it is none.
    pub(super) fn read(slots: Value, up: bool, answered: &Address) -> Option<Self> {
        let Value::Array(rows) = slots else { return None };
        let range = |row: Value| {
            let Value::Array(row) = row else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = row.as_slice() else { return None };
            let host = match primary.first()? {
                Value::BulkString(host) => String::from_utf8_lossy(host).into_owned(),
                Value::SimpleString(host) => host.clone(),
                _ => String::new(),
            };
            let Value::Int(port) = primary.get(1)? else { return None };
            let slots = usize::try_from(*first).ok()?..=usize::try_from(*last).ok()?.min(SLOTS - 1);
            Some((slots, Address { host: known(&host, &answered.host), port: u16::try_from(*port).ok()? }))
        };
        let ranges = rows.into_iter().map(range).collect::<Option<Vec<_>>>()?;
        Some(Self { ranges, up })
    }

    /// Whether the cluster serves every slot.
    pub(super) fn is_whole(&self) -> bool {
        self.up && self.served() == SLOTS
    }

    fn served(&self) -> usize {
        self.ranges.iter().map(|(slots, _)| slots.clone().count()).sum()
    }

    /// What is wrong with it.
    pub(super) fn problem(&self, cluster: &str) -> Result<(), Error> {
        let missing = SLOTS.saturating_sub(self.served());
        let reason = match missing {
            0 if self.up => return Ok(()),
            0 => "its nodes count it as down (cluster_state:fail)".to_owned(),
            _ => format!("{missing} of its {SLOTS} slots have no node"),
        };
        Err(Error::Unreachable { url: cluster.to_owned(), reason })
    }

    /// Each primary once.
    pub(super) fn primaries(&self) -> impl Iterator<Item = &Address> {
        let first = |i: usize, address: &Address| !self.ranges[..i].iter().any(|(_, earlier)| earlier == address);
        self.ranges.iter().enumerate().filter(move |(i, (_, address))| first(*i, address)).map(|(_, (_, a))| a)
    }

    pub(super) fn slots_of(&self, address: &Address) -> impl Iterator<Item = usize> {
        self.ranges.iter().filter(move |(_, primary)| primary == address).flat_map(|(slots, _)| slots.clone())
    }
}

/// The slot of a key: CRC16 (XMODEM) of what stands between the first `{` and the next `}`, if anything, else of all.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = hashed.bytes().fold(0_u16, |crc, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]);
    crc % SLOTS as u16
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn a_key_has_the_slot_that_redis_gives_it() {
        fn check(key: &str, slot: u16) {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        // As `CLUSTER KEYSLOT` answers.
        check("123456789", 0x31c3);
        check("foo", 12_182);
        check("idem:orders:shop.orders:a:0", slot_of("idem:orders:shop.orders:a:0"));
        check("x{foo}y", 12_182);
        check("{}foo", slot_of("{}foo"));
        check("", 0);
    }

    #[test]
    fn a_node_is_reached_with_scheme_and_credentials_of_the_urls_that_were_given() {
        fn check(seed: &str, host: &str, expected: &str) {
            assert_eq!(address(host, 7001).url_like(&Url::parse(seed).unwrap()), expected);
        }
        check("redis://a:1", "10.0.0.1", "redis://10.0.0.1:7001");
        check("rediss://app:p%40ss@a:1/0", "b.example", "rediss://app:p%40ss@b.example:7001");
        check("redis://:secret@a", "::1", "redis://:secret@[::1]:7001");
    }

    #[test]
    fn a_place_without_a_host_is_that_of_who_answered() {
        assert_eq!(Address::parse("10.0.0.2:7002", "h"), Some(address("10.0.0.2", 7002)));
        assert_eq!(Address::parse(":7002", "h"), Some(address("h", 7002)));
        assert_eq!(Address::parse("?:7002", "h"), Some(address("h", 7002)));
        assert_eq!(Address::parse("2001:db8::1:7002", "h"), Some(address("2001:db8::1", 7002)));
        assert_eq!(Address::parse("nowhere", "h"), None);
    }

    fn row(first: i64, last: i64, host: &str, port: i64) -> Value {
        let node = |port| Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::Nil]);
        // The second is a replica.
        Value::Array(vec![Value::Int(first), Value::Int(last), node(port), node(port + 100)])
    }

    #[test]
    fn a_map_is_whole_when_every_slot_has_a_node_and_the_cluster_is_up() {
        fn check(rows: Vec<Value>, up: bool, problem: Option<&str>) {
            let map = SlotMap::read(Value::Array(rows), up, &address("h", 1)).unwrap();
            match problem {
                None => assert!(map.is_whole() && map.problem("c").is_ok()),
                Some(text) => {
                    let error = map.problem("c").unwrap_err();
                    assert!(!map.is_whole() && error.is_unreachable(), "{error}");
                    assert!(error.to_string().contains(text), "{error}");
                }
            }
        }
        let whole = || vec![row(0, 8000, "a", 1), row(8001, 16383, "b", 2)];
        check(whole(), true, None);
        check(whole(), false, Some("cluster_state:fail"));
        check(vec![row(0, 8000, "a", 1)], true, Some("8383 of its 16384 slots"));
        check(Vec::new(), true, Some("16384 of its 16384"));
    }

    #[test]
    fn a_map_names_each_primary_once_and_no_replica() {
        let rows = vec![row(0, 10, "a", 1), row(11, 20, "", 2), row(30, 30, "a", 1)];
        let map = SlotMap::read(Value::Array(rows), true, &address("h", 9)).unwrap();
        assert_eq!(map.primaries().cloned().collect::<Vec<_>>(), [address("a", 1), address("h", 2)]);
        assert_eq!(map.slots_of(&address("a", 1)).count(), 12);
        assert!(SlotMap::read(Value::Okay, true, &address("h", 9)).is_none());
    }
}
