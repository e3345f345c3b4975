//! Finds records by the beginning of their keys, counts them, and removes them for a deliberate replay.
//!
//! Keys come from `SCAN`, page by page and primary by primary, so the server serves everybody else meanwhile and memory
//! is bounded however many there are. What a record is and whether it goes is decided on the server in one step
//! (`forget.lua`): a claim that is made between page and removal stays. What comes, goes or moves to another node
//! meanwhile may be missed; a second call finds it.

use ::redis::{Cmd, FromRedisValue, Value};
use serde::Serialize;

use super::link::Link;
use super::{Keyed, Store, commands};
use crate::stage::ports::{CopyKey, StoreError};

/// Keys looked at by one `SCAN`, about: some milliseconds of the server's time when all are records.
const PAGE: u32 = 1_000;

/// What goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing: records are counted.
    Nothing,
    /// All but claims. What nobody wrote goes as well: it would keep its event waiting for ever.
    Ended,
    /// Claims, too: what runs is cancelled at its next renewal, and until then a second execution may run beside it.
    All,
}

impl Removal {
    /// The kinds that go, as `forget.lua` names them.
    fn kinds(self) -> &'static str {
        match self {
            Removal::Nothing => "",
            Removal::Ended => "1F?",
            Removal::All => "P1F?",
        }
    }

    /// What goes of these.
    pub fn of(self, found: Tally) -> Tally {
        match self {
            Removal::Nothing => Tally::default(),
            Removal::Ended => Tally { in_progress: 0, ..found },
            Removal::All => found,
        }
    }
}

/// Records by what they say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Claims: an execution may be running.
    pub in_progress: u64,
    /// Finished.
    pub done: u64,
    /// On the next topic.
    pub moved_on: u64,
    /// Of nobody's making.
    pub other: u64,
}

impl Tally {
    /// All of them.
    pub fn total(self) -> u64 {
        self.in_progress + self.done + self.moved_on + self.other
    }

    fn add(&mut self, reply: Value) -> Result<(), StoreError> {
        match reply {
            Value::BulkString(kind) => match kind.as_slice() {
                b"P" => self.in_progress += 1,
                b"1" => self.done += 1,
                b"F" => self.moved_on += 1,
                _ => self.other += 1,
            },
            // Gone meanwhile, or seen twice.
            Value::Nil => {}
            reply => return Err(commands::refusal(&reply)),
        }
        Ok(())
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Keys of whatever kind looked at, about.
    pub looked_at: u64,
    /// Keys that there were on all servers at the start.
    pub of: u64,
    /// Records found so far.
    pub found: Tally,
}

impl Keyed for CopyKey {
    fn key(&self) -> &str {
        self
    }
}

impl Store {
    /// Counts the records whose keys begin with `prefix`, as [`CopyKeys::prefix`](crate::ladder::headers::CopyKeys::prefix)
    /// makes it, and removes those that `removal` says. `tell` is called after each page.
    ///
    /// # Errors
    /// When a server does not answer or refuses; what was removed by then is in the last progress told.
    pub async fn forget(
        &self,
        prefix: &str,
        removal: Removal,
        mut tell: impl FnMut(Progress),
    ) -> Result<Tally, StoreError> {
        let links = self.server.links();
        let mut progress = Progress::default();
        for link in &links {
            if let Value::Int(keys) = ask(link, ::redis::cmd("DBSIZE")).await? {
                progress.of += u64::try_from(keys).unwrap_or_default();
            }
        }
        for link in &links {
            let mut cursor = String::from("0");
            loop {
                let page = ask(link, commands::scan(&cursor, prefix, PAGE)).await?;
                let (next, keys) = <(String, Vec<Vec<u8>>)>::from_redis_value(page)
                    .map_err(|error| StoreError(format!("redis: {error}, which is no reply to SCAN")))?;
                // Every key of ours is text.
                let keys: Vec<CopyKey> = keys.into_iter().flat_map(String::from_utf8).map(Into::into).collect();
                let mut refused = None;
                for reply in self.server.run(&keys, commands::forget(removal.kinds())).await {
                    refused = reply.and_then(|reply| progress.found.add(reply)).err().or(refused);
                }
                progress.looked_at += u64::from(PAGE);
                tell(progress);
                match refused {
                    Some(error) => return Err(error),
                    None if next == "0" => break,
                    None => cursor = next,
                }
            }
        }
        Ok(progress.found)
    }
}

/// One command to one server.
async fn ask(link: &Link, command: Cmd) -> Result<Value, StoreError> {
    let reply = link.run(&commands::pipeline([command].into_iter())).await?.pop().unwrap_or_default();
    if matches!(reply, Value::ServerError(_)) { Err(commands::refusal(&reply)) } else { Ok(reply) }
}
