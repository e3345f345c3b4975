//! What pauses the stages of running instances: breaker, brake, store. Kafka does not tell, so the instances are asked, at the
//! addresses that are configured or else at the default ports of this host. One that is not named and not here is not seen.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use reqwest::{Client, redirect};
use serde::{Deserialize, Serialize};

use super::server::DEFAULT_PORT;
use crate::config::Config;

/// Longest wait for an instance.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A stage of an instance that starts nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// Address of the instance.
    pub instance: String,
    /// `breaker`, `brake`, `store`, `halted`; not `command`, which all instances follow.
    pub reason: String,
}

/// What an instance says of one of its stages.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Said {
    topic: String,
    group: String,
    paused: Vec<String>,
    #[serde(skip)]
    instance: String,
}

/// The answer of `/status`, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    stages: Vec<Said>,
}

/// Asks the instances.
#[derive(Clone, Debug)]
pub(super) struct Instances {
    client: Client,
    addresses: Vec<String>,
    is_configured: bool,
}

impl Instances {
    /// Those that are configured, or those at this host's default ports.
    pub(super) fn new(config: &Config) -> Result<Self, reqwest::Error> {
        let client = Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(TIMEOUT).build()?;
        let is_configured = !config.admin.instances.is_empty();
        let mut addresses = config.admin.instances.clone();
        if !is_configured {
            let stages = config.pipelines.iter().map(|pipeline| pipeline.stages().len()).max().unwrap_or_default();
            let ports = DEFAULT_PORT..=DEFAULT_PORT + u16::try_from(stages).unwrap_or_default();
            addresses.extend(ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string()));
            addresses.extend(config.admin.listen.clone().filter(|address| !address.starts_with("0.0.0.0")));
            addresses.dedup();
        }
        Ok(Self { client, addresses, is_configured })
    }

    /// What each says of each of its stages; the rest are silent.
    pub(super) async fn ask(&self) -> Vec<Said> {
        let answers = join_all(self.addresses.iter().map(|address| async move {
            let answer = self.client.get(format!("http://{address}/status")).send().await;
            let answer = match answer {
                Ok(answer) => answer.bytes().await,
                Err(error) => Err(error),
            };
            let read = answer.map(|body| serde_json::from_slice::<Answer>(&body));
            match read {
                Ok(Ok(answer)) => {
                    answer.stages.into_iter().map(|said| Said { instance: address.clone(), ..said }).collect()
                }
                Ok(Err(error)) => self.unseen(address, &error),
                Err(error) => self.unseen(address, &error.without_url()),
            }
        }));
        answers.await.into_iter().flatten().collect()
    }

    fn unseen(&self, address: &str, error: &dyn std::fmt::Display) -> Vec<Said> {
        if self.is_configured {
            tracing::debug!(address, %error, "an instance does not say what pauses it");
        }
        Vec::new()
    }
}

/// Of one stage: how many instances told of it, and what pauses it there.
pub(super) fn of_stage(said: &[Said], topic: &str, group: &str) -> (usize, Vec<Pause>) {
    let ours: Vec<_> = said.iter().filter(|said| said.topic == topic && said.group == group).collect();
    let pauses = ours.iter().flat_map(|said| {
        let reasons = said.paused.iter().filter(|reason| *reason != "command");
        reasons.map(|reason| Pause { instance: said.instance.clone(), reason: reason.clone() })
    });
    (ours.len(), pauses.collect())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::config::{Sources, load};

    #[tokio::test]
    async fn instances_are_asked_and_those_that_are_silent_or_others_hide_nothing() {
        let body = r#"{"version":"1","stages":[
            {"pipeline":"p","stage":"main","topic":"t","group":"g","paused":["breaker","command"],"waiting":0},
            {"pipeline":"p","stage":"retry-1","topic":"t.g.retry-1","group":"g.retry-1","paused":[]}]}"#;
        let listen = async |answer: &'static str| {
            let app = Router::new().route("/status", get(move || std::future::ready(answer)));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
            address
        };
        let (ours, other) = (listen(body).await, listen("another server").await);
        let yaml = format!(
            "admin: {{instances: [\"{ours}\", \"{other}\", \"127.0.0.1:1\"]}}\npipelines: {{p: {{topic: t, group: g, message: \
             shop.v1.OrderPlaced, handler: {{log: {{}}}}}}}}"
        );
        let config = load(&Sources::inline("test", &yaml)).unwrap().config;
        let said = Instances::new(&config).unwrap().ask().await;
        let breaker = Pause { instance: ours.to_string(), reason: "breaker".into() };
        assert_eq!(of_stage(&said, "t", "g"), (1, vec![breaker]));
        assert_eq!(of_stage(&said, "t.g.retry-1", "g.retry-1"), (1, vec![]));
        assert_eq!(of_stage(&said, "t", "another group"), (0, vec![]));
    }
}
