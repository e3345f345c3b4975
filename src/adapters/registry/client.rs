//! The registry's HTTP API: which server is asked, how often, and what its answers hold.
//!
//! Invariants: no text holds a user, password or token; an answer's size is bounded; what a server refuses for good is
//! not tried again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url, redirect};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Error, Options};

/// An answer is no longer than this.
const MAX_ANSWER: usize = 8 << 20;
/// Before the first repetition; doubled for each.
const BACKOFF: Duration = Duration::from_millis(100);
const JSON: &str = "application/vnd.schemaregistry.v1+json";

/// A file that a schema imports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) subject: String,
    pub(super) version: i32,
}

/// A schema's text.
#[derive(Deserialize)]
pub(super) struct Body {
    pub(super) schema: String,
    /// Left out where it is the API's oldest.
    #[serde(rename = "schemaType", default = "avro")]
    pub(super) schema_type: String,
    #[serde(default)]
    pub(super) references: Vec<Reference>,
}

fn avro() -> String {
    "AVRO".to_owned()
}

/// A version of a subject.
#[derive(Deserialize)]
pub(super) struct Registered {
    pub(super) id: u32,
    pub(super) version: i32,
}

/// What a server says when it refuses.
#[derive(Default, Deserialize)]
struct Refusal {
    message: String,
}

pub(super) struct Client {
    http: reqwest::Client,
    urls: Vec<Url>,
    retries: u32,
    /// The server that answered last.
    good: AtomicUsize,
}

impl Client {
    pub(super) fn new(options: Options) -> Result<Self, Error> {
        let mut headers = HeaderMap::from_iter([(
            ACCEPT,
            HeaderValue::from_static("application/vnd.schemaregistry.v1+json, application/json"),
        )]);
        if let Some(token) = &options.token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Error::Options("token: holds a character that a header cannot carry".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(options.timeout)
            .default_headers(headers);
        let http = trusting(builder, &options)?.build().map_err(|e| Error::Options(causes(&e.without_url())))?;
        let mut urls = options.urls;
        if let Some((user, password)) = &options.basic {
            for url in urls.iter_mut().filter(|url| url.username().is_empty() && url.password().is_none()) {
                // They are urls of HTTP, so neither can fail.
                url.set_username(user).and_then(|()| url.set_password(Some(password))).ok();
            }
        }
        if urls.is_empty() {
            return Err(Error::Options("urls: there is none".to_owned()));
        }
        Ok(Self { http, urls, retries: options.retries, good: AtomicUsize::new(0) })
    }

    /// Where it asks.
    pub(super) fn shown(&self) -> Vec<String> {
        self.urls.iter().map(shown).collect()
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Error> {
        self.call(Method::GET, path, None).await
    }

    /// Registers a text, or finds it registered.
    pub(super) async fn register(
        &self,
        subject: &str,
        text: &str,
        references: Vec<Reference>,
    ) -> Result<Registered, Error> {
        let body = json!({ "schemaType": "PROTOBUF", "schema": text, "references": references }).to_string();
        let _: serde_json::Value = self.call(Method::POST, &["subjects", subject, "versions"], Some(&body)).await?;
        // The answer's id is the schema's; what is wanted, too, is the version of this subject.
        self.call(Method::POST, &["subjects", subject], Some(&body)).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &[&str], body: Option<&str>) -> Result<T, Error> {
        let first = self.good.load(Ordering::Relaxed);
        let mut tries = 0;
        loop {
            let server = (first + tries as usize) % self.urls.len();
            let answer = self.try_once(&method, &self.urls[server], path, body).await;
            match answer {
                Err(error) if tries < self.retries && may_pass(&error) => {
                    tracing::debug!(%error, "schema registry: once more");
                    tokio::time::sleep(BACKOFF * (1 << tries.min(6))).await;
                    tries += 1;
                }
                answer => {
                    if answer.is_ok() {
                        self.good.store(server, Ordering::Relaxed);
                    }
                    return answer;
                }
            }
        }
    }

    async fn try_once<T: DeserializeOwned>(
        &self,
        method: &Method,
        base: &Url,
        path: &[&str],
        body: Option<&str>,
    ) -> Result<T, Error> {
        let mut url = base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let shown = shown(&url);
        let unreachable =
            |e: reqwest::Error| Error::Unreachable { url: shown.clone(), reason: causes(&e.without_url()) };
        let mut request = self.http.request(method.clone(), url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, JSON).body(body.to_owned());
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            answer.extend_from_slice(&chunk);
            if answer.len() > MAX_ANSWER {
                let reason = format!("its answer is longer than {MAX_ANSWER} bytes");
                return Err(Error::NotRegistry { url: shown, reason });
            }
        }
        if !status.is_success() {
            let text = serde_json::from_slice::<Refusal>(&answer).unwrap_or_default().message;
            let text = text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
            return Err(Error::Refused { url: shown, status, text });
        }
        serde_json::from_slice(&answer).map_err(|e| Error::NotRegistry { url: shown, reason: e.to_string() })
    }
}

/// Whether another try may have another answer.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => true,
        Error::Refused { status, .. } => {
            status.is_server_error() || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        }
        _ => false,
    }
}

#[cfg(feature = "tls")]
fn trusting(builder: reqwest::ClientBuilder, options: &Options) -> Result<reqwest::ClientBuilder, Error> {
    let Some(file) = &options.ca else { return Ok(builder) };
    let wrong = |e: &dyn std::fmt::Display| Error::Options(format!("ca: cannot use {}: {e}", file.display()));
    let pem = std::fs::read(file).map_err(|e| wrong(&e))?;
    let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| wrong(&e))?;
    Ok(builder.tls_certs_merge(authorities))
}

#[cfg(not(feature = "tls"))]
fn trusting(builder: reqwest::ClientBuilder, _options: &Options) -> Result<reqwest::ClientBuilder, Error> {
    Ok(builder)
}

/// Without user, password and query.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_password(None).and_then(|()| url.set_username("")).ok();
    url.to_string()
}

/// The error and what led to it.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
