//! Behaviour of the configuration as a whole, through [`super::load`].

mod faults;
mod layers;
mod printing;

use super::{Config, Faults, Loaded, Sources, load};

/// The least that a pipeline needs.
const LEAST: &str = "pipelines: {orders: {topic: orders, message: shop.v1.OrderPlaced, handler: {log: {}}}}";

fn sources(yaml: &str) -> Sources {
    Sources::inline("topics.yaml", yaml)
}

#[track_caller]
fn loaded(sources: &Sources) -> Loaded {
    load(sources).unwrap_or_else(|faults| panic!("{faults}"))
}

#[track_caller]
fn config(yaml: &str) -> Config {
    loaded(&sources(yaml)).config
}

#[track_caller]
fn faults(sources: &Sources) -> Faults {
    match load(sources) {
        Ok(loaded) => panic!("no fault: {:?}", loaded.config),
        Err(faults) => faults,
    }
}

/// The least pipeline with further keys, in flow style without the braces.
fn with(keys: &str) -> String {
    format!("pipelines: {{orders: {{topic: orders, message: shop.v1.OrderPlaced, handler: {{log: {{}}}}, {keys}}}}}")
}
