//! Events for the ladders of the fault tests.

use prost::Message as _;

use retry_ladder::messages::shop::v1::OrderPlaced;
use retry_ladder::prove::ledger::{Copy, Fate, Produced};

use super::fate;
use crate::outside::Generator;

/// A stream of events.
pub(crate) struct Source {
    /// `None`: it has ended.
    generator: Option<Generator>,
    partitions: i32,
    /// How many keys there are of each kind.
    keys: usize,
    pub(crate) sent: usize,
}

impl Source {
    pub(crate) fn new(brokers: &str, topic: &str, partitions: i32, keys: usize) -> Self {
        Self { generator: Some(Generator::new(brokers, topic)), partitions, keys, sent: 0 }
    }

    /// In this order, again and again: most go up the ladder in some way.
    const KINDS: [&str; 10] = ["ok", "f1", "f9", "perm", "heal", "ok", "f2", "junk", "flip", "f1"];

    pub(crate) fn send(&mut self, count: usize) {
        for _ in 0..count {
            let n = self.sent;
            self.sent += 1;
            let id = format!("{}-{n}", Self::KINDS[n % Self::KINDS.len()]);
            self.send_one(event(&id, n, n as i32 % self.partitions, self.keys));
        }
    }

    pub(crate) fn send_one(&mut self, event: Produced) {
        self.generator.as_ref().expect("it goes on").send(event);
    }

    /// Ends it; every event that it sent, all of them acknowledged.
    pub(crate) fn finish(&mut self) -> Vec<Produced> {
        self.generator.take().expect("it goes on").finish()
    }
}

/// An event that lies on the main topic as its producer wrote it; keys repeat, some are null, some are no text.
pub(crate) fn event(id: &str, n: usize, partition: i32, keys: usize) -> Produced {
    let order = OrderPlaced { unique_id: id.to_owned(), quantity: n as u32, ..OrderPlaced::default() };
    let fate = fate(id);
    let value = if fate == Fate::Poison { vec![0xff; 9 + n % 7] } else { order.encode_to_vec() };
    let key = match n % 4 {
        0 => None,
        1 => Some(vec![0xc3, 0x28, (n % keys) as u8]),
        _ => Some(format!("customer-{}", n % keys).into_bytes()),
    };
    let headers = vec![
        ("tenant".to_owned(), Some(vec![0, 0xff, n as u8])),
        ("x-ladder-event-id".to_owned(), Some(id.as_bytes().to_vec())),
        ("tenant".to_owned(), None),
        ("correlation-id".to_owned(), Some(format!("c-{n}").into_bytes())),
    ];
    Produced {
        id: id.to_owned(),
        fate,
        record: Copy { partition, offset: -1, timestamp_ms: -1, key, value: Some(value), headers },
    }
}
