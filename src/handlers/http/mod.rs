//! The `http` handler: one POST per execution, and what its answer means.
//!
//! # Meaning of the answer
//! | answer | outcome |
//! |---|---|
//! | 2xx | done |
//! | 401, 403, 408, 425, 429, 5xx | transient; `Retry-After` of 429 and 503 is passed on |
//! | 412 | fenced: the sink has seen a higher fence |
//! | other 3xx and 4xx | permanent; redirects are never followed |
//! | none: no connection, broken connection, time-out | transient |
//!
//! `classify` overrides this by status. A status outside 200 to 599 counts as 5xx (RFC 9110, section 15).
//! The status alone decides: once it says done, a body that breaks off or never ends changes nothing.
//!
//! # Invariants
//! - A request carries the payload byte for byte, or the JSON that the injected mapping makes of it.
//! - One execution sends one request. (An idle connection that the server had closed before anything was written to it is
//!   replaced without a word.)
//! - At most [`MAX_BODY`] of an answer's body is read: enough that ordinary answers leave their connection usable for the
//!   next request.
//! - No proxy is taken from the environment.
//! - Configured header values and the URL's user, password and query never reach `Debug`; messages of failures, which
//!   travel in headers of records, name host and port only.
//!
//! What is left to others: the mapping to JSON (`messages`), what happens next (`ladder::route`), deadline and lease.

mod headers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Request, Response, StatusCode, Url, redirect};
use tokio::time::{Instant, timeout_at};

use super::retry_after;
use crate::ladder::event::{Failure, Outcome};
use crate::stage::clock::Clock;
use crate::stage::ports::{Event, Handler};

/// Bytes of an answer's body that are read at most; what is longer costs its connection.
pub const MAX_BODY: usize = 64 * 1024;

/// Time spent at most on reading a body after the status is known.
const MAX_BODY_TIME: Duration = Duration::from_secs(1);

/// Bytes of a failing answer's body that go into the failure's message.
const BODY_SHOWN: usize = 200;

/// Makes the proto3 JSON of Protobuf bytes, or says why they are no such message.
pub type JsonMapping = Arc<dyn Fn(&[u8]) -> Result<String, String> + Send + Sync>;

/// What the request's body is.
#[derive(Clone)]
pub enum Body {
    /// The Protobuf bytes (the record's value without any schema registry framing), as `application/x-protobuf`.
    Protobuf,
    /// Their proto3 JSON mapping, as `application/json`.
    Json(JsonMapping),
}

impl Body {
    fn content_type(&self) -> &'static str {
        match self {
            Body::Protobuf => "application/x-protobuf",
            Body::Json(_) => "application/json",
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Body::Protobuf => "Protobuf",
            Body::Json(_) => "Json",
        })
    }
}

/// What a status may be declared to mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The effect happened.
    Done,
    /// May succeed later.
    Transient,
    /// Will never succeed.
    Permanent,
}

/// Where and how to call. `Debug` masks what may be secret.
#[derive(Clone)]
pub struct HttpOptions {
    /// `http://` or, with the feature `tls`, `https://`. A user and password in it become `Authorization: Basic`.
    pub url: String,
    /// From the start of an execution to the head of the answer; should be shorter than the engine's deadline.
    pub timeout: Duration,
    /// For a new connection, within `timeout`.
    pub connect_timeout: Duration,
    /// What the body is.
    pub body: Body,
    /// Overrides the meaning of a status, 200 to 599; also of 412.
    pub classify: BTreeMap<u16, Class>,
    /// Sent with every request; values may be secret. Headers that the handler itself sets are faults.
    pub headers: BTreeMap<String, String>,
    /// How long an unused connection is kept. The default, 4 s, is below the 5 s after which common servers close it: a
    /// request that meets such a close fails.
    pub pool_idle_timeout: Duration,
    /// How many unused connections are kept.
    pub pool_max_idle: usize,
}

impl HttpOptions {
    /// The defaults: 10 s, 5 s to connect, Protobuf, no overrides, no headers.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            body: Body::Protobuf,
            classify: BTreeMap::new(),
            headers: BTreeMap::new(),
            pool_idle_timeout: Duration::from_secs(4),
            pool_max_idle: 1024,
        }
    }

    /// Everything that is wrong with these options; empty when nothing is.
    pub fn faults(&self) -> Vec<Error> {
        let mut faults = Vec::new();
        let url = parse_url(&self.url).map_err(|fault| faults.push(fault)).ok();
        if self.timeout.is_zero() {
            faults.push(Error::ZeroTimeout("timeout"));
        }
        if self.connect_timeout.is_zero() {
            faults.push(Error::ZeroTimeout("connect_timeout"));
        }
        faults.extend(self.classify.keys().filter(|s| !(200..600).contains(*s)).map(|s| Error::Status(*s)));
        let (headers, bad_headers) = headers::configured(&self.headers);
        faults.extend(bad_headers);
        if headers.contains_key(AUTHORIZATION) && url.is_some_and(|url| has_credentials(&url)) {
            faults.push(Error::TwoAuthorizations);
        }
        faults
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: BTreeMap<_, _> = self.headers.keys().map(|name| (name, "***")).collect();
        f.debug_struct("HttpOptions")
            .field("url", &masked(&self.url))
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("body", &self.body)
            .field("classify", &self.classify)
            .field("headers", &headers)
            .field("pool_idle_timeout", &self.pool_idle_timeout)
            .field("pool_max_idle", &self.pool_max_idle)
            .finish()
    }
}

/// Why there is no such handler. No text holds a header's value or the URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be called.
    #[error("url: {0}; expected http://host[:port]/path or https://…")]
    Url(String),
    /// Built without TLS.
    #[error("url: https needs the feature `tls`, which this build does not have; use http or build with the feature")]
    NoTls,
    /// Nothing happens in no time.
    #[error("{0} is 0; it must be longer, for example 10s")]
    ZeroTimeout(&'static str),
    /// It is no final status.
    #[error("classify: {0} is not a status that an answer ends with; expected 200 to 599")]
    Status(u16),
    /// Not a header's name.
    #[error("headers: `{0}` is not a header name; expected letters, digits and hyphens")]
    HeaderName(String),
    /// Not a header's value.
    #[error("headers: the value of `{0}` holds a line break or another character that a header cannot carry")]
    HeaderValue(String),
    /// The same header twice.
    #[error("headers: `{0}` is there twice, in other capitals")]
    DuplicateHeader(String),
    /// The handler sets it, or the protocol.
    #[error("headers: `{0}` is set by the handler itself or by the protocol and cannot be configured; remove it")]
    ReservedHeader(String),
    /// Both in the URL and in the headers.
    #[error("url: has a user or password although headers has `Authorization`; keep one of them")]
    TwoAuthorizations,
    /// The client could not be built.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// Calls a URL for each event.
pub struct HttpHandler {
    options: HttpOptions,
    client: Client,
    /// Without user and password.
    url: Url,
    /// `host:port`, for messages.
    target: String,
    /// The headers of every request.
    headers: HeaderMap,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for HttpHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandler").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What a status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Done,
    Transient,
    Permanent,
    Fenced,
}

impl HttpHandler {
    /// `clock` turns a date in `Retry-After` into a time to wait.
    ///
    /// # Errors
    /// When the options are faulty (the first fault) or the TLS library cannot be set up.
    pub fn new(options: HttpOptions, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        if let Some(fault) = options.faults().into_iter().next() {
            return Err(fault);
        }
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .connect_timeout(options.connect_timeout)
            .pool_idle_timeout(options.pool_idle_timeout)
            .pool_max_idle_per_host(options.pool_max_idle)
            .build()
            .map_err(|e| Error::Client(e.without_url()))?;
        let (configured, _) = headers::configured(&options.headers);
        // The client's own builder turns user and password into a header.
        let template = client
            .post(parse_url(&options.url)?)
            .headers(headers::constant(configured, &options.body))
            .build()
            .map_err(|e| Error::Client(e.without_url()))?;
        let url = template.url().clone();
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        Ok(Self { target: format!("{host}:{port}"), headers: template.headers().clone(), url, client, options, clock })
    }

    async fn post(&self, event: Event) -> Outcome {
        let body = match self.body(&event) {
            Ok(body) => body,
            Err(failure) => return Outcome::Failed(failure),
        };
        let mut request = Request::new(Method::POST, self.url.clone());
        *request.headers_mut() = headers::for_event(&self.headers, &event);
        if body.is_empty() {
            // The client would say nothing; some servers then refuse a POST (411).
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        *request.body_mut() = Some(body.into());

        let deadline = Instant::now() + self.options.timeout;
        match timeout_at(deadline, self.client.execute(request)).await {
            Ok(Ok(response)) => self.outcome(response, deadline).await,
            Ok(Err(error)) => Outcome::Failed(Failure::transient(self.describe(&error))),
            Err(_) => {
                let timeout = humantime::format_duration(self.options.timeout);
                Outcome::Failed(Failure::transient(format!("{}: timed out after {timeout}", self.target)))
            }
        }
    }

    fn body(&self, event: &Event) -> Result<Bytes, Failure> {
        match &self.options.body {
            // A tombstone is no message: nothing is there to be mapped.
            _ if event.record.value.is_none() => Ok(Bytes::new()),
            Body::Protobuf => Ok(event.payload.clone()),
            Body::Json(mapping) => match mapping(&event.payload) {
                Ok(json) => Ok(json.into()),
                Err(error) => Err(Failure::poison(format!("{} has no json form: {error}", event.message))),
            },
        }
    }

    async fn outcome(&self, response: Response, deadline: Instant) -> Outcome {
        let status = response.status();
        let meaning = self.meaning(status);
        let wish = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE if meaning == Meaning::Transient => {
                let value = response.headers().get(RETRY_AFTER);
                value.and_then(|value| retry_after::parse(value.as_bytes(), self.clock.now().wall))
            }
            _ => None,
        };
        let mut shown = Vec::new();
        let patience = deadline.min(Instant::now() + MAX_BODY_TIME);
        // Whether it came to its end matters to the connection only.
        timeout_at(patience, read(response, &mut shown)).await.ok();

        let failure = match meaning {
            Meaning::Done => return Outcome::Done,
            Meaning::Fenced => return Outcome::Fenced,
            Meaning::Transient => Failure::transient,
            Meaning::Permanent => Failure::permanent,
        }(self.describe_status(status, &shown));
        Outcome::Failed(Failure { retry_after: wish, ..failure })
    }

    fn meaning(&self, status: StatusCode) -> Meaning {
        match self.options.classify.get(&status.as_u16()) {
            Some(Class::Done) => Meaning::Done,
            Some(Class::Transient) => Meaning::Transient,
            Some(Class::Permanent) => Meaning::Permanent,
            None => match status.as_u16() {
                200..300 => Meaning::Done,
                401 | 403 | 408 | 425 | 429 => Meaning::Transient,
                412 => Meaning::Fenced,
                300..500 => Meaning::Permanent,
                _ => Meaning::Transient,
            },
        }
    }

    /// `host:port: status 503: the body's beginning`.
    fn describe_status(&self, status: StatusCode, body: &[u8]) -> String {
        // What is no text grows when it is replaced; a character that the bound cuts in two is dropped.
        let text = String::from_utf8_lossy(body);
        let text = text.trim_end_matches(char::REPLACEMENT_CHARACTER).chars();
        let text: String = text.take(BODY_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = text.trim();
        let colon = if text.is_empty() { "" } else { ": " };
        format!("{}: status {}{colon}{text}", self.target, status.as_u16())
    }

    /// The innermost cause says what happened; all around it only says that a request failed, and names the URL.
    fn describe(&self, error: &reqwest::Error) -> String {
        let target = &self.target;
        if error.is_connect() && error.is_timeout() {
            let timeout = humantime::format_duration(self.options.connect_timeout);
            return format!("{target}: connecting timed out after {timeout}");
        }
        let mut cause = error.source();
        while let Some(inner) = cause.and_then(StdError::source) {
            cause = Some(inner);
        }
        let cause = cause.map_or_else(|| "request failed".to_owned(), ToString::to_string);
        if error.is_connect() {
            format!("{target}: cannot connect: {cause}")
        } else {
            format!("{target}: no answer: {cause}")
        }
    }
}

impl Handler for HttpHandler {
    fn handle(&self, event: Event) -> BoxFuture<'_, Outcome> {
        Box::pin(self.post(event))
    }
}

/// Reads a body to its end, or to the bound; keeps its beginning.
async fn read(mut response: Response, beginning: &mut Vec<u8>) {
    let mut bytes = 0;
    // A body that breaks off has told its status all the same.
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = BODY_SHOWN.saturating_sub(beginning.len());
        beginning.extend_from_slice(&chunk[..chunk.len().min(room)]);
        bytes += chunk.len();
        if bytes > MAX_BODY {
            return;
        }
    }
}

fn parse_url(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|e| Error::Url(e.to_string()))?;
    match url.scheme() {
        "http" => {}
        "https" if cfg!(feature = "tls") => {}
        "https" => return Err(Error::NoTls),
        other => return Err(Error::Url(format!("scheme `{other}` cannot be called"))),
    }
    // The client converts it for each request; better to fail now.
    axum::http::Uri::try_from(url.as_str()).map_err(|e| Error::Url(e.to_string()))?;
    Ok(url)
}

fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// The URL as it may be shown.
fn masked(text: &str) -> String {
    // Without a host nobody knows which part of it is secret.
    let Some(url) = Url::parse(text).ok().filter(Url::has_host) else {
        return "***".to_owned();
    };
    let user = if has_credentials(&url) { "***@" } else { "" };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let query = if url.query().is_some() || url.fragment().is_some() { "?***" } else { "" };
    format!("{}://{user}{}{port}{}{query}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}
