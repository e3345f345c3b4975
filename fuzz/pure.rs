//! The parts of the library that the targets feed, by its name and paths, and nothing that needs a server: librdkafka takes
//! minutes to build and has no place under a sanitizer.

#[path = "../src/config/mod.rs"]
pub mod config;
#[path = "../src/ladder/mod.rs"]
pub mod ladder;
#[path = "../src/messages/mod.rs"]
pub mod messages;

#[path = "../src/handlers"]
pub mod handlers {
    pub mod retry_after;
}

#[path = "../src/telemetry"]
pub mod telemetry {
    pub mod duration;
    pub mod trace_context;
}

extern crate self as rdkafka;

/// Stands for librdkafka where the configuration asks whether a property exists: names with an `x` do not.
#[derive(Default)]
pub struct ClientConfig {
    refused: Option<error::KafkaError>,
}

impl ClientConfig {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&mut self, name: &str, value: &str) {
        let text = || format!("No such configuration property: \"{name}\" with \"{value}\".");
        self.refused = name.contains('x').then(|| error::KafkaError::ClientConfig((), text()));
    }

    pub fn create_native_config(self) -> Result<(), error::KafkaError> {
        self.refused.map_or(Ok(()), Err)
    }
}

pub mod error {
    #[non_exhaustive]
    pub enum KafkaError {
        ClientConfig((), String),
        Other,
    }
}
