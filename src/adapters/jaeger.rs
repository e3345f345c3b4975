//! Traces out of Jaeger, by the HTTP API that its own user interface uses (`/api/traces`).
//!
//! Invariants: asks only, never writes; each question ends within [`TIMEOUT`]; an answer may hold anything, what of it
//! is no span is left out. What a trace looks like is `telemetry::trace_tree`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use crate::ladder::event::Timestamp;
use crate::telemetry::trace_tree::StoredSpan;

/// One question may take this long.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Traces that one search returns at most.
pub const MOST: usize = 20;
/// Who writes spans of events: the stages, `pipeline produce`, and what redrives: `pipeline dlq` and the console.
const SERVICES: [&str; 4] = ["retry-ladder", "retry-ladder-produce", "retry-ladder-dlq", "retry-ladder-console"];

/// Jaeger did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody there.
    #[error(
        "no Jaeger answers at {url}: {reason}; start one with `scripts/services up jaeger`, or say where yours is: --jaeger URL or telemetry.jaeger_url"
    )]
    Unreachable {
        /// As asked, without a password.
        url: String,
        /// What the connection says.
        reason: String,
    },
    /// An answer that says no.
    #[error("Jaeger at {url} answers {status}: {text}")]
    Refused {
        /// As asked, without a password.
        url: String,
        /// Of HTTP.
        status: StatusCode,
        /// The beginning of what it says.
        text: String,
    },
    /// An answer that is none of Jaeger's.
    #[error("{url} is no Jaeger's query API: {reason}; its port is usually 16686")]
    NotJaeger {
        /// As asked, without a password.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

/// A trace as Jaeger keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// 32 hex digits.
    pub id: String,
    /// Its spans, in no order.
    pub spans: Vec<StoredSpan>,
}

/// Asks one Jaeger.
#[derive(Clone, Debug)]
pub struct Jaeger {
    base: Url,
    /// Fit to be shown.
    shown: String,
    client: reqwest::Client,
}

impl Jaeger {
    /// `base` is where its user interface is, a path before it included; a user and password go as basic authorization.
    ///
    /// # Errors
    /// When no HTTP client can be made, which means that the system has no usable certificates.
    pub fn new(base: Url) -> Result<Self, Error> {
        let mut shown = base.clone();
        // It has a host, so neither can fail.
        shown.set_password(None).and_then(|()| shown.set_username("")).ok();
        let shown = shown.to_string();
        let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
        match client {
            Ok(client) => Ok(Self { base, shown, client }),
            Err(error) => Err(Error::Unreachable { url: shown, reason: causes(&error) }),
        }
    }

    /// The trace of this id (hex digits); `None` when there is none.
    ///
    /// # Errors
    /// When Jaeger does not answer, or not as Jaeger does.
    pub async fn trace(&self, id: &str) -> Result<Option<Trace>, Error> {
        let traces = self.ask(&format!("api/traces/{id}"), &[]).await?;
        Ok(traces.into_iter().next().filter(|trace| !trace.spans.is_empty()))
    }

    /// The traces with a span of this event, oldest first, that began within `since` before `now`.
    ///
    /// # Errors
    /// When Jaeger does not answer, or not as Jaeger does.
    pub async fn traces_of_event(&self, event_id: &str, since: Duration, now: Timestamp) -> Result<Vec<Trace>, Error> {
        let now = Duration::from_micros(now.as_micros());
        // A little into the future: clocks differ.
        let (start, end) = (now.saturating_sub(since), now + Duration::from_secs(300));
        let tags = serde_json::json!({ "ladder.event_id": event_id }).to_string();
        let mut found: BTreeMap<String, Trace> = BTreeMap::new();
        for service in SERVICES {
            let query = [
                ("service", service.to_owned()),
                ("tags", tags.clone()),
                ("start", start.as_micros().to_string()),
                ("end", end.as_micros().to_string()),
                ("limit", MOST.to_string()),
            ];
            let traces = self.ask("api/traces", &query).await?;
            found.extend(traces.into_iter().map(|trace| (trace.id.clone(), trace)));
        }
        let mut traces: Vec<_> = found.into_values().collect();
        traces.sort_by_key(|trace| trace.spans.iter().map(|span| span.start_us).min());
        Ok(traces)
    }

    async fn ask(&self, path: &str, query: &[(&str, String)]) -> Result<Vec<Trace>, Error> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().clear().extend_pairs(query);
        }
        let unreachable = |error| Error::Unreachable { url: self.shown.clone(), reason: causes(&error) };
        let response = self.client.get(url).send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.text().await.map_err(unreachable)?;
        let answer: Result<Answer, _> = serde_json::from_str(&body);
        match answer {
            // How Jaeger says that there is no such trace.
            Ok(_) if status == StatusCode::NOT_FOUND => Ok(Vec::new()),
            Ok(answer) if status.is_success() => Ok(answer.data.unwrap_or_default().into_iter().map(trace).collect()),
            Ok(Answer { errors: Some(errors), .. }) if !errors.is_empty() => {
                let text = errors[0]["msg"].as_str().unwrap_or_default().chars().take(200).collect();
                Err(Error::Refused { url: self.shown.clone(), status, text })
            }
            Ok(_) => Err(Error::Refused { url: self.shown.clone(), status, text: "no reason".to_owned() }),
            Err(error) => {
                let reason = format!("it answers {status} with what is no such JSON ({error})");
                Err(Error::NotJaeger { url: self.shown.clone(), reason })
            }
        }
    }
}

/// Where it is, without a password.
impl std::fmt::Display for Jaeger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The error and what caused it, without the url, which may hold a password.
fn causes(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    if error.is_timeout() {
        return format!("no answer within {TIMEOUT:?}");
    }
    causes.pop().unwrap_or_else(|| "the request failed".to_owned())
}

#[derive(Deserialize)]
struct Answer {
    data: Option<Vec<RawTrace>>,
    errors: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTrace {
    #[serde(default, rename = "traceID")]
    trace_id: String,
    #[serde(default)]
    spans: Vec<Value>,
    #[serde(default)]
    processes: BTreeMap<String, Value>,
}

fn trace(raw: RawTrace) -> Trace {
    let spans = raw.spans.iter().filter_map(|span| {
        let number = |name: &str| span[name].as_u64().unwrap_or_default();
        let id = span["spanID"].as_str()?;
        let references = span["references"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of_this = |r: &&Value| r["traceID"].as_str() == Some(raw.trace_id.as_str());
        let parent = references.iter().filter(of_this).find(|r| r["refType"] == "CHILD_OF");
        let parent = parent.or_else(|| references.iter().find(of_this)).and_then(|r| r["spanID"].as_str());
        let service = span["processID"].as_str().and_then(|id| raw.processes.get(id)?["serviceName"].as_str());
        Some(StoredSpan {
            service: service.unwrap_or_default().to_owned(),
            name: span["operationName"].as_str().unwrap_or_default().to_owned(),
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
            start_us: number("startTime"),
            duration_us: number("duration"),
            tags: tags(&span["tags"]),
        })
    });
    let spans = spans.collect();
    Trace { id: raw.trace_id, spans }
}

fn tags(list: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let tags = list.as_array().into_iter().flatten();
    tags.filter_map(|tag| Some((tag["key"].as_str()?.to_owned(), text(&tag["value"])))).collect()
}

#[cfg(test)]
mod tests;
