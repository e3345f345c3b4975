//! The ladder inside a program of one's own: `cargo run --example library`.
//!
//! A bank refuses some charges for a while and one card for ever. The handler only says so; the ladder waits, tries
//! again, and puts aside what never works. The program runs on the embedded broker, so it needs no server. On a real
//! Kafka give its address, leave `topics_as_configured` out and `idempotency` at its default, which is Redis.
#![allow(clippy::print_stdout, reason = "it tells what it does")]
#![allow(missing_docs, unreachable_pub, reason = "a program; tests/demo.rs runs it, too")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use retry_ladder::adapters::kafka::embedded::EmbeddedBroker;
use retry_ladder::app::Builder;
use retry_ladder::config::{Sources, load};
use retry_ladder::ladder::event::{Failure, Outcome};
use retry_ladder::messages::shop::v1::OrderPlaced;
use retry_ladder::stage::ports::{Event, Handler};

const CONFIG: &str = "
pipelines:
  orders:
    topic: orders
    group: billing
    message: shop.v1.OrderPlaced
    partitions: 3
    retries: [{ delay: 500ms }, { delay: 1s }]
    event_id: { field: unique_id }
    idempotency: { store: memory }
    handler: { log: {} }             # replaced by the program's own
";

/// Charges a customer for an order, each order once.
#[derive(Clone, Default)]
struct Billing {
    charged: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Billing {
    fn charge(&self, order: &OrderPlaced, event: &Event) -> Result<(), Failure> {
        if order.customer_id == "expired-card" {
            return Err(Failure::permanent("the card has expired"));
        }
        if order.quantity > event.attempt {
            return Err(Failure::transient("the bank does not answer"));
        }
        // Keyed on the event's id: a repeated execution would charge nobody twice.
        self.charged.lock().expect("no holder panics").insert(event.id.to_string(), event.attempt);
        Ok(())
    }
}

impl Handler for Billing {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let outcome = match event.decode::<OrderPlaced>() {
                Ok(order) => self.charge(&order, &event),
                Err(error) => Err(error.into()),
            };
            let told = match &outcome {
                Ok(()) => "charged".to_owned(),
                Err(failure) => failure.message.clone(),
            };
            println!("{:<8} attempt {} on {:<8} {told}", event.id, event.attempt, event.stage_name);
            outcome.map_or_else(Outcome::Failed, |()| Outcome::Done)
        })
    }
}

#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let broker = EmbeddedBroker::start()?;
    let sources = Sources::inline("library.rs", CONFIG).flag("the program", "kafka.brokers", broker.address());
    let config = load(&sources)?.config;
    for (_, topic) in config.pipelines[0].stages() {
        broker.create_topic(topic, 3)?;
    }

    let billing = Billing::default();
    let app = Builder::new(config).handler("orders", billing.clone()).topics_as_configured().start().await?;

    // Any producer will do: the ladder asks nothing of it but a value that decodes.
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker.address()).create()?;
    let orders = [
        ("order-1", "ann", 1),
        ("order-2", "bob", 2),
        ("order-3", "cid", 3),
        ("order-4", "expired-card", 1),
        ("order-5", "eve", 9),
    ];
    for (id, customer, quantity) in orders {
        let order =
            OrderPlaced { unique_id: id.into(), customer_id: customer.into(), quantity, ..OrderPlaced::default() };
        let value = order.encode_to_vec();
        producer.send(BaseRecord::to("orders").key(customer).payload(&value)).map_err(|(error, _)| error)?;
    }
    producer.flush(Duration::from_secs(10))?;

    // A service would run until a signal; this program runs until every order is charged or dead.
    // The stage that reads the DLQ counts each dead letter once more, so it is left out.
    let working = app.stages().iter().filter(|stage| !stage.view().is_last());
    let stages: Vec<_> = working.map(|stage| Arc::clone(stage.stats())).collect();
    let all_ended = async {
        while stages.iter().map(|stats| stats.done.get() + stats.dead_letters()).sum::<u64>() < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), app.run_until(all_ended)).await??;

    let charged = billing.charged.lock().expect("no holder panics").clone();
    println!("charged, with the attempt that did it: {charged:?}");
    let dead = broker.read("orders.billing.dlq")?;
    for record in &dead {
        let header = |name| String::from_utf8_lossy(record.header(name).unwrap_or_default()).into_owned();
        println!("dead: {} ({})", header("x-ladder-event-id"), header("x-ladder-error"));
    }
    let expected = BTreeMap::from([("order-1".into(), 1), ("order-2".into(), 2), ("order-3".into(), 3)]);
    if charged != expected || dead.len() != 2 {
        return Err("that does not add up".into());
    }
    Ok(())
}
