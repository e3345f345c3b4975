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
//! - A request carries the payload byte for byte, or its proto3 JSON.
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
mod options;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, Method, Request, Response, StatusCode, Url, redirect};
use tokio::time::{Instant, timeout_at};

pub use self::options::{Body, Class, Error, HttpOptions};
use super::{registered, retry_after};
use crate::ladder::event::{Failure, Outcome};
use crate::stage::clock::Clock;
use crate::stage::ports::{Event, Handler};

/// Bytes of an answer's body that are read at most; what is longer costs its connection.
pub const MAX_BODY: usize = 64 * 1024;

/// Time spent at most on reading a body after the status is known.
const MAX_BODY_TIME: Duration = Duration::from_secs(1);

/// Bytes of a failing answer's body that go into the failure's message.
const BODY_SHOWN: usize = 200;

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

#[cfg(feature = "tls")]
fn trusting(builder: ClientBuilder, ca: Option<&Path>) -> Result<ClientBuilder, Error> {
    let Some(file) = ca else { return Ok(builder) };
    let wrong = |e: &dyn fmt::Display| Error::Authority { file: file.to_owned(), reason: e.to_string() };
    let pem = std::fs::read(file).map_err(|e| wrong(&e))?;
    let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| wrong(&e))?;
    Ok(builder.tls_certs_merge(authorities))
}

#[cfg(not(feature = "tls"))]
fn trusting(builder: ClientBuilder, _ca: Option<&Path>) -> Result<ClientBuilder, Error> {
    Ok(builder)
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
        let client = trusting(Client::builder(), options.ca.as_deref())?
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
            .post(options::parse_url(&options.url)?)
            .headers(headers::constant(configured, &options.body))
            .build()
            .map_err(|e| Error::Client(e.without_url()))?;
        let url = template.url().clone();
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        Ok(Self { target: format!("{host}:{port}"), headers: template.headers().clone(), url, client, options, clock })
    }

    async fn post(&self, event: Event) -> Outcome {
        let body = match self.body(&event).await {
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

    async fn body(&self, event: &Event) -> Result<Bytes, Failure> {
        match (&self.options.body, &event.record.value) {
            // A tombstone is no message: nothing is there to be mapped.
            (_, None) => Ok(Bytes::new()),
            (Body::Protobuf, _) => Ok(event.payload.clone()),
            (Body::Json(reader), Some(value)) => match reader.to_json(value).await {
                Ok(json) => Ok(json.into()),
                Err(error) => Err(registered::failure(&error)),
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
