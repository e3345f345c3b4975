//! What the brokers hold of a ladder: its topics made, waited for, read back, made into a ledger.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::BaseConsumer;

use retry_ladder::ladder::rungs::Rung;
use retry_ladder::prove::ledger::{Interruption, Ledger, Produced, Stage, read_executions};

use super::Orders;
use super::process::Worker;
use crate::outside;

/// For anything that must happen: a machine shared by many may take its time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn looker(orders: &Orders, group: &str) -> BaseConsumer {
    outside::config(&orders.brokers).set("group.id", group).create().expect("a consumer that looks")
}

/// Makes the topics of a ladder, with so many copies of each; retry topics are stamped by the broker.
pub(crate) fn create_topics(orders: &Orders, replication: i32) {
    let client: AdminClient<DefaultClientContext> = outside::config(&orders.brokers).create().expect("an admin client");
    let ladder = orders.ladder();
    let topic = |rung: &'_ Rung| {
        let stamped = if rung.delay.is_some() { "LogAppendTime" } else { "CreateTime" };
        (rung.topic.to_string(), stamped)
    };
    let topics: Vec<_> = ladder.rungs().iter().map(topic).collect();
    let new: Vec<_> = topics
        .iter()
        .map(|(name, stamped)| {
            NewTopic::new(name, orders.partitions, TopicReplication::Fixed(replication))
                .set("message.timestamp.type", stamped)
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let made = outside::block_on(client.create_topics(&new, &options)).expect("topics are made");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// Whether the group of this stage has committed the end of its log.
pub(crate) fn is_committed(orders: &Orders, rung: &Rung) -> bool {
    let looker = looker(orders, &rung.group_id);
    let ends = outside::ends(&looker, &rung.topic, orders.partitions);
    outside::committed(&looker, &rung.topic, orders.partitions) == ends
}

/// Waits until the group of every stage has committed the end of its log. One stage after the other: what a stage has
/// committed has reached the next one's log.
pub(crate) fn wait_until_committed<'a>(orders: &Orders, alive: impl IntoIterator<Item = &'a mut Worker>) {
    let mut alive: Vec<_> = alive.into_iter().collect();
    let deadline = Instant::now() + PATIENCE;
    for rung in orders.ladder().rungs() {
        let looker = looker(orders, &rung.group_id);
        loop {
            let ends = outside::ends(&looker, &rung.topic, orders.partitions);
            let committed = outside::committed(&looker, &rung.topic, orders.partitions);
            if committed == ends {
                break;
            }
            for worker in &mut alive {
                let ended = worker.ended();
                assert!(ended.is_none(), "{} ended: {ended:?}", worker.name());
            }
            assert!(Instant::now() < deadline, "{}: committed {committed:?}, the log ends at {ends:?}", rung.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Everything that is known of the run: topics and offsets, executions and keys read back.
pub(crate) fn ledger(orders: &Orders, produced: Vec<Produced>, interruptions: Vec<Interruption>) -> Ledger {
    let file = std::fs::read_to_string(orders.executions()).unwrap_or_default();
    Ledger {
        group: orders.group.clone(),
        stages: stages(orders),
        produced,
        executions: read_executions(&file).expect("the executions file"),
        interruptions,
        keys: outside::keys(&orders.redis, &orders.prefix),
    }
}

fn stages(orders: &Orders) -> Vec<Stage> {
    let partitions = orders.partitions;
    let stage = |rung: &Rung| {
        let looker = looker(orders, &rung.group_id);
        let committed = outside::committed(&looker, &rung.topic, partitions);
        let ends = outside::ends(&looker, &rung.topic, partitions);
        Stage {
            name: rung.name.to_string(),
            topic: rung.topic.to_string(),
            delay_ms: rung.delay.map_or(0, |delay| delay.as_millis() as u64),
            copies: outside::read_back(&orders.brokers, &rung.topic, partitions),
            offsets: (0..partitions).zip(committed).zip(ends).map(|((p, c), e)| (p, c, e)).collect(),
        }
    };
    orders.ladder().rungs().iter().map(stage).collect()
}

/// Leaves nothing on services that others use.
pub(crate) fn clean_up(orders: &Orders, ledger: Ledger) {
    let ladder = orders.ladder();
    let topics: Vec<&str> = ladder.rungs().iter().map(|rung| &*rung.topic).collect();
    let keys: Vec<String> = ledger.keys.into_iter().map(|(key, _)| key).collect();
    outside::clean_up(&orders.brokers, &topics, &orders.redis, &keys);
}
