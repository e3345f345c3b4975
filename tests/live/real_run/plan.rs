//! What is produced, and what has to come of it: ten thousand events whose ids say how the HTTP server treats them.
//!
//! The mix repeats every hundred events, and each of the hundred keys gets each place of the mix exactly once.

use std::collections::HashMap;

use prost::Message;
use retry_ladder::messages::shop::v1::{Money, OrderPlaced};

pub(crate) const EVENTS: usize = 10_000;
const KEYS: usize = 100;

/// How an event is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Succeeds,
    /// 503 this often, then 200.
    Fails(u32),
    FailsAlways,
    /// 422.
    Refused,
    /// 429 with this many seconds in `Retry-After`, then 200.
    RetryAfter(u64),
    /// No answer at first, then 200.
    Hangs,
    /// No Protobuf message.
    Garbage,
    /// No value.
    Tombstone,
}

/// How an event ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    /// In the DLQ, with this class.
    Dead(&'static str),
}

impl Kind {
    /// In a hundred: 70 succeed, 12 fail 1 to 3 times, 5 always, 4 are refused, 4 throttled, 1 hangs, 4 cannot be read.
    fn at(place: usize) -> Self {
        match place {
            0..70 => Kind::Succeeds,
            70..82 => Kind::Fails((place - 70) as u32 % 3 + 1),
            82..87 => Kind::FailsAlways,
            87..91 => Kind::Refused,
            91..95 => Kind::RetryAfter((place - 91) as u64 % 2 + 1),
            95 => Kind::Hangs,
            96 | 97 => Kind::Garbage,
            _ => Kind::Tombstone,
        }
    }

    fn word(self) -> String {
        match self {
            Kind::Succeeds => "ok".into(),
            Kind::Fails(times) => format!("fails{times}"),
            Kind::FailsAlways => "fails".into(),
            Kind::Refused => "422".into(),
            Kind::RetryAfter(seconds) => format!("after{seconds}"),
            Kind::Hangs => "hangs".into(),
            Kind::Garbage => "garbage".into(),
            Kind::Tombstone => "null".into(),
        }
    }

    /// The rule that an event id carries.
    pub(crate) fn of(id: &str) -> Option<Self> {
        let (_, word) = id.rsplit_once('-')?;
        (0..100).map(Kind::at).find(|kind| kind.word() == word)
    }

    /// The stages that execute it, in order; the first execution is attempt 1.
    pub(crate) fn path(self) -> Vec<usize> {
        match self {
            Kind::Succeeds | Kind::Refused => vec![0],
            Kind::Fails(times) => (0..=times as usize).collect(),
            Kind::FailsAlways => vec![0, 1, 2, 3],
            Kind::RetryAfter(1) | Kind::Hangs => vec![0, 1],
            Kind::RetryAfter(_) => vec![0, 2],
            Kind::Garbage | Kind::Tombstone => vec![],
        }
    }

    pub(crate) fn end(self) -> End {
        match self {
            Kind::FailsAlways => End::Dead("exhausted"),
            Kind::Refused => End::Dead("permanent"),
            Kind::Garbage | Kind::Tombstone => End::Dead("poison"),
            _ => End::Done,
        }
    }
}

/// One event as it is produced.
pub(crate) struct Planned {
    pub(crate) index: usize,
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(&'static str, Option<Vec<u8>>)>,
}

impl Planned {
    fn new(index: usize) -> Self {
        let key = index % KEYS;
        let kind = Kind::at((key + 37 * (index / KEYS)) % 100);
        let name = format!("{index:05}-{}", kind.word());
        let mut headers: Vec<(&'static str, Option<Vec<u8>>)> =
            vec![("x-tenant", Some(b"\xff\x00\xfe north".to_vec()))];
        // The id comes from each of the places where it is looked for.
        let id = match index % 3 {
            0 => {
                headers.push(("x-ladder-event-id", Some(name.clone().into_bytes())));
                name
            }
            1 => {
                headers.push(("ce_source", Some(b"shop/berlin".to_vec())));
                headers.push(("ce_id", Some(name.clone().into_bytes())));
                format!("shop/berlin/{name}")
            }
            _ => {
                headers.push(("MessageID", Some(name.clone().into_bytes())));
                name
            }
        };
        headers.push(("tag", Some(b"first".to_vec())));
        headers.push(("correlation-id", Some(format!("session-{key}").into_bytes())));
        headers.push(("tag", Some((index as u64).to_be_bytes().to_vec())));
        headers.push(("traceparent", Some(format!("00-{:032x}-{:016x}-01", index + 1, index + 7).into_bytes())));
        headers.push(("größe", Some(Vec::new())));
        headers.push(("without-value", None));
        Self { index, value: value(kind, &id, index, key), id, kind, key: format!("k{key}"), headers }
    }
}

fn value(kind: Kind, id: &str, index: usize, key: usize) -> Option<Vec<u8>> {
    let order = OrderPlaced {
        unique_id: id.to_owned(),
        order_id: format!("order-{index}"),
        customer_id: format!("customer-{key}"),
        item_id: format!("item-{}", index % 977),
        quantity: index as u32 % 9 + 1,
        amount: Some(Money { currency_code: "EUR".into(), units: index as i64 % 500, nanos: 990_000_000 }),
        note: "grüße\u{0} ".repeat(index % 7),
        ..OrderPlaced::default()
    };
    let bytes = order.encode_to_vec();
    match kind {
        Kind::Tombstone => None,
        // Cut off, no wire format at all, text that is none.
        Kind::Garbage => Some(match index % 3 {
            0 => bytes[..bytes.len() / 3].to_vec(),
            1 => format!("{{\"unique_id\":\"{id}\"}}").into_bytes(),
            _ => [b"\x0a\x04\xff\xfe\xfd\xfc", bytes.as_slice()].concat(),
        }),
        _ => Some(bytes),
    }
}

/// Everything that is produced.
pub(crate) struct Plan {
    pub(crate) events: Vec<Planned>,
    by_id: HashMap<String, usize>,
}

impl Plan {
    pub(crate) fn new() -> Self {
        Self::of(EVENTS)
    }

    /// The first so many events.
    pub(crate) fn of(count: usize) -> Self {
        let events: Vec<_> = (0..count).map(Planned::new).collect();
        let by_id: HashMap<_, _> = events.iter().map(|event| (event.id.clone(), event.index)).collect();
        assert_eq!(by_id.len(), count, "ids are unique");
        for event in events.iter().filter(|event| event.kind == Kind::Garbage) {
            let value = event.value.as_deref().expect("garbage has a value");
            assert!(OrderPlaced::decode(value).is_err(), "{} must not be readable", event.id);
        }
        Self { events, by_id }
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Planned> {
        self.by_id.get(id).map(|index| &self.events[*index])
    }

    /// Executions on a stage when nothing goes wrong.
    pub(crate) fn executions(&self, stage: usize) -> usize {
        self.events.iter().filter(|event| event.kind.path().contains(&stage)).count()
    }

    /// Events that end in the DLQ.
    pub(crate) fn dead(&self) -> usize {
        self.events.iter().filter(|event| event.kind.end() != End::Done).count()
    }
}
