//! The options of the `http` handler: what is right, what is a fault, and what may be shown of them.
//!
//! Invariant: neither `Debug` nor an [`Error`]'s text holds a configured header's value or the URL's user, password or
//! query.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::AUTHORIZATION;

use super::headers;
use crate::messages::Reader;

/// What the request's body is.
#[derive(Clone)]
pub enum Body {
    /// The Protobuf bytes (the record's value without any schema registry framing), as `application/x-protobuf`.
    Protobuf,
    /// Their proto3 JSON mapping, as `application/json`.
    Json(Reader),
}

impl Body {
    pub(super) fn content_type(&self) -> &'static str {
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
    /// PEM file of authorities that are trusted beside the system's.
    pub ca: Option<PathBuf>,
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
            ca: None,
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
            .field("ca", &self.ca)
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
    /// It cannot be read, or holds no certificates.
    #[error("ca: cannot use {}: {reason}; expected a PEM file of certificates", file.display())]
    Authority {
        /// The file.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The client could not be built.
    #[error("cannot set up the HTTP client: {0}")]
    Client(#[source] reqwest::Error),
}

pub(super) fn parse_url(text: &str) -> Result<Url, Error> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::handlers::http::HttpHandler;
    use crate::handlers::testing::FixedClock;

    fn handler(options: HttpOptions) -> HttpHandler {
        HttpHandler::new(options, Arc::new(FixedClock)).unwrap()
    }

    #[test]
    fn debug_masks_secrets() {
        let mut options = HttpOptions::new("https://user:hunter2@example.com:8443/orders?token=hunter2#hunter2");
        options.headers.insert("Authorization-2".into(), "Bearer hunter2".into());
        options.classify.insert(404, Class::Transient);
        let handler = handler(options.clone());
        for debug in [format!("{options:?}"), format!("{handler:?}"), format!("{handler:#?}")] {
            assert!(!debug.contains("hunter2"), "{debug}");
            assert!(debug.contains("https://***@example.com:8443/orders?***"), "{debug}");
            assert!(debug.contains("Authorization-2") && debug.contains("404"), "{debug}");
        }
        assert!(!format!("{:?}", HttpOptions::new("user:hunter2@host:1:1")).contains("hunter2"));
    }

    #[test]
    fn faults_are_all_reported_and_hold_no_secret() {
        let check = |change: &dyn Fn(&mut HttpOptions), expect: &[&str]| {
            let mut options = HttpOptions::new("http://localhost:8080/orders");
            change(&mut options);
            let faults: Vec<_> = options.faults().iter().map(ToString::to_string).collect();
            assert_eq!(faults, expect);
            assert_eq!(HttpHandler::new(options, Arc::new(FixedClock)).is_ok(), expect.is_empty());
        };
        let header = |name: &'static str, value: &'static str| {
            move |o: &mut HttpOptions| {
                o.headers.insert(name.into(), value.into());
            }
        };
        check(&|_| {}, &[]);
        check(&header("Authorization", "Bearer x"), &[]);
        check(&header("Host", "shop"), &[]);
        check(
            &header("x bad", "hunter2"),
            &["headers: `x bad` is not a header name; expected letters, digits and hyphens"],
        );
        check(
            &header("x-a", "hunter2\n"),
            &["headers: the value of `x-a` holds a line break or another character that a header cannot carry"],
        );
        for name in
            ["Content-Type", "CE-ID", "ce-subject", "Idempotency-Key", "X-Ladder-Fence", "TraceParent", "Connection"]
        {
            check(
                &header(name, "1"),
                &[&format!(
                    "headers: `{name}` is set by the handler itself or by the protocol and cannot be configured; remove it"
                )],
            );
        }
        check(
            &|o| o.url = "localhost:8080".into(),
            &["url: scheme `localhost` cannot be called; expected http://host[:port]/path or https://…"],
        );
        check(
            &|o| o.url = "/orders".into(),
            &["url: relative URL without a base; expected http://host[:port]/path or https://…"],
        );
        check(
            &|o| {
                o.url = "http://u:p@host/".into();
                o.timeout = Duration::ZERO;
                o.connect_timeout = Duration::ZERO;
                o.classify.extend([(100, Class::Done), (200, Class::Done), (600, Class::Done)]);
                header("X-A", "1")(o);
                header("x-a", "2")(o);
                header("authorization", "hunter2")(o);
            },
            &[
                "timeout is 0; it must be longer, for example 10s",
                "connect_timeout is 0; it must be longer, for example 10s",
                "classify: 100 is not a status that an answer ends with; expected 200 to 599",
                "classify: 600 is not a status that an answer ends with; expected 200 to 599",
                "headers: `x-a` is there twice, in other capitals",
                "url: has a user or password although headers has `Authorization`; keep one of them",
            ],
        );
    }
}
