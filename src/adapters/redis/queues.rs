//! The queues of `order: ladder`: one sorted set per key and main partition. A place has the offset on main as its score,
//! and is the member `<offset>:<good until>`, Unix ms by the server's clock. A place that was given back is the member
//! `<offset>` with a score below 0.
//!
//! The usual question, to a key without a queue, is one plain command; only where somebody is in the queue a script
//! looks closer. Held against [`crate::ladder::sequence::Queue`] by the tests of the stores. A set outlives its last
//! change by a day: what lapsed is found, and told, by whoever comes next, and who ended does not come back.

use std::time::Duration;

use ::redis::{Cmd, Value};

use super::{Keyed, Server, commands};
use crate::ladder::sequence::REMEMBERED;
use crate::stage::ports::{Place, StoreError, Turn, TurnReply};

/// `{0 free | 1 first | 2 behind | 3 full, lapsed, offset of who is ahead}`.
const TURN: &str = include_str!("turn.lua");
/// 1: it has its place; 0: it had given it back.
const JOIN: &str = include_str!("join.lua");
const LEAVE: &str = include_str!("leave.lua");

const OUTLIVES_MS: u64 = 24 * 60 * 60 * 1_000;

impl Keyed for Place {
    fn key(&self) -> &str {
        &self.queue
    }
}

impl Keyed for (Place, Duration) {
    fn key(&self) -> &str {
        &self.0.queue
    }
}

/// Whose turn it is, for each.
pub(super) async fn turns(server: &Server, batch: &[Place], room: usize) -> Vec<Result<TurnReply, StoreError>> {
    let empty: Vec<_> = server.run(batch, first).await.into_iter().map(|reply| is_empty(&reply?)).collect();
    let taken: Vec<usize> = (0..batch.len()).filter(|&i| matches!(empty.get(i), Some(Ok(false)))).collect();
    let mut answers: Vec<_> = empty.into_iter().map(|empty| empty.map(|_| TurnReply::default())).collect();
    if !taken.is_empty() {
        let closer: Vec<Place> = taken.iter().map(|&i| batch[i].clone()).collect();
        let replies = server.run(&closer, |place| turn(place, room)).await;
        for (i, reply) in taken.into_iter().zip(replies) {
            answers[i] = reply.and_then(turn_reply);
        }
    }
    answers
}

pub(super) async fn join(server: &Server, batch: &[(Place, Duration)]) -> Vec<Result<(), StoreError>> {
    server.run(batch, |(place, good_for)| join_command(place, *good_for)).await.into_iter().map(done).collect()
}

pub(super) async fn leave(server: &Server, batch: &[Place]) -> Vec<Result<(), StoreError>> {
    server.run(batch, leave_command).await.into_iter().map(done).collect()
}

fn first(place: &Place) -> Cmd {
    let mut cmd = Cmd::with_capacity(7, place.queue.len() + 40);
    cmd.arg("ZRANGEBYSCORE").arg(&*place.queue).arg("0").arg("+inf").arg("LIMIT").arg("0").arg("1");
    cmd
}

fn turn(place: &Place, room: usize) -> Cmd {
    let mut cmd = Cmd::with_capacity(6, TURN.len() + place.queue.len() + 48);
    cmd.arg("EVAL").arg(TURN).arg(1).arg(&*place.queue).arg(place.offset).arg(room);
    cmd
}

fn join_command(place: &Place, good_for: Duration) -> Cmd {
    let mut cmd = Cmd::with_capacity(6, JOIN.len() + place.queue.len() + 48);
    let good_for = commands::millis(good_for);
    cmd.arg("EVAL").arg(JOIN).arg(1).arg(&*place.queue).arg(place.offset).arg(good_for).arg(OUTLIVES_MS);
    cmd
}

fn leave_command(place: &Place) -> Cmd {
    let mut cmd = Cmd::with_capacity(7, LEAVE.len() + place.queue.len() + 64);
    cmd.arg("EVAL").arg(LEAVE).arg(1).arg(&*place.queue).arg(place.offset).arg(REMEMBERED).arg(OUTLIVES_MS);
    cmd
}

fn is_empty(reply: &Value) -> Result<bool, StoreError> {
    match reply {
        Value::Array(members) => Ok(members.is_empty()),
        other => Err(commands::refusal(other)),
    }
}

fn turn_reply(reply: Value) -> Result<TurnReply, StoreError> {
    let Value::Array(parts) = &reply else { return Err(commands::refusal(&reply)) };
    let ahead = match parts.get(2) {
        Some(Value::BulkString(text)) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
        _ => None,
    };
    let turn = match (parts.first(), ahead) {
        (Some(Value::Int(0)), _) => Turn::Free,
        (Some(Value::Int(1)), _) => Turn::First,
        (Some(Value::Int(2)), Some(ahead)) => Turn::Behind(ahead),
        (Some(Value::Int(3)), Some(ahead)) => Turn::Full(ahead),
        _ => return Err(commands::refusal(&reply)),
    };
    match parts.get(1) {
        Some(Value::Int(lapsed)) => Ok(TurnReply { turn, lapsed: u64::try_from(*lapsed).unwrap_or_default() }),
        _ => Err(commands::refusal(&reply)),
    }
}

fn done(reply: Result<Value, StoreError>) -> Result<(), StoreError> {
    match reply? {
        Value::Int(_) => Ok(()),
        other => Err(commands::refusal(&other)),
    }
}
