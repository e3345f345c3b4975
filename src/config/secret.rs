//! Secrets: what counts as one, and how it is shown (`***`).
//!
//! Invariant: neither `Debug` nor `Display` of a type here, nor of anything that contains it, shows a secret. The
//! values themselves are read by the calls named for it.

use std::collections::BTreeMap;
use std::fmt;

use reqwest::Url;

/// What stands where a secret is.
pub const MASK: &str = "***";

/// Whether a key of this name holds a secret: passwords, tokens, keys given as text, authorization headers.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace(['-', '.'], "_");
    if key.ends_with("_file") || key.ends_with("_location") || key.ends_with("_url") {
        return false;
    }
    // Of SASL's properties only these are no secrets; a misspelt or unknown one may hold anything.
    let open =
        ["sasl_mechanism", "sasl_mechanisms", "sasl_username", "sasl_oauthbearer_method", "sasl_oauthbearer_scope"];
    if key.starts_with("sasl_") && !open.contains(&key.as_str()) {
        return true;
    }
    let words = ["password", "passwd", "passphrase", "secret", "token", "credential", "cookie", "authorization"];
    let keys = [
        "api_key",
        "apikey",
        "access_key",
        "private_key",
        "ssl_key",
        "ssl_key_pem",
        "x_auth",
        "bearer_config",
        "honeycomb_team",
        "dsn",
    ];
    words.iter().chain(&keys).any(|w| key.contains(w))
}

/// `text` fit to be shown as the value of `key`.
pub(super) fn masked(key: &str, text: &str) -> String {
    if is_secret_key(key) { MASK.to_owned() } else { mask_url(text) }
}

/// `text` without the password and the secret query parameters that a URL in it may carry.
pub(super) fn mask_url(text: &str) -> String {
    if !text.contains("://") {
        // Perhaps a url with a typo: what stands before the host may be a password.
        return text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("{MASK}@{rest}"));
    }
    let Ok(mut url) = Url::parse(text) else {
        // Not a URL, so where its password would end is unknown: all of it up to the last `@` goes.
        return match (text.split_once("://"), text.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{MASK}@{rest}"),
            _ => text.to_owned(),
        };
    };
    let secret_query = url.query_pairs().any(|(k, _)| is_secret_query(&k));
    if url.password().is_none() && !secret_query {
        return text.to_owned();
    }
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return MASK.to_owned();
    }
    if secret_query {
        let pairs: Vec<(String, String)> = url
            .query_pairs()
            .map(|(k, v)| (k.to_string(), if is_secret_query(&k) { MASK.to_owned() } else { v.to_string() }))
            .collect();
        url.query_pairs_mut().clear().extend_pairs(pairs);
    }
    url.to_string()
}

fn is_secret_query(key: &str) -> bool {
    is_secret_key(key) || ["pass", "key", "sig", "signature", "auth"].contains(&key.to_ascii_lowercase().as_str())
}

/// A URL that may carry a password. `Display` and `Debug` mask it.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) url: Url,
    /// The text as it was written, which is kept because parsing normalises it (a trailing slash appears).
    pub(super) text: String,
    /// The file that it was read from (`url_file`).
    pub(super) file: Option<String>,
}

impl Endpoint {
    /// The URL as it was written, password included: for the client that connects, not for people.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The parsed URL, password included.
    pub fn url(&self) -> &Url {
        &self.url
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask_url(&self.text))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", mask_url(&self.text))
    }
}

/// One server's URL, or the list of those of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoints {
    pub(super) urls: Vec<Endpoint>,
    pub(super) is_list: bool,
}

impl Endpoints {
    /// The URL of the one server; `None` where a list was given.
    pub fn one(&self) -> Option<&Endpoint> {
        if self.is_list { None } else { self.urls.first() }
    }

    /// All that were given.
    pub fn all(&self) -> &[Endpoint] {
        &self.urls
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, url) in self.urls.iter().enumerate() {
            write!(f, "{}{url}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.one() {
            Some(url) => url.fmt(f),
            None => self.urls.fmt(f),
        }
    }
}

/// A text that nobody is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    pub(super) text: String,
    /// The file that it was read from (`<key>_file`).
    pub(super) file: Option<String>,
}

impl Secret {
    /// The text: for who checks or sends it, not for people.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self { text, file: None }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Names with values, some of them secret: librdkafka properties, HTTP headers. `Debug` masks the secret ones and all
/// that came from files.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(pub(super) BTreeMap<String, Property>);

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) value: String,
    /// The file that it was read from (`<key>_file`).
    pub(super) file: Option<String>,
}

impl Properties {
    /// Names and values, secrets included: for the client that uses them, not for people.
    pub fn reveal(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, p)| (k.as_str(), p.value.as_str()))
    }

    /// The value of one name, secret or not.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|p| p.value.as_str())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(k, p): (&String, &Property)| {
            let value = if p.file.is_some() { MASK.to_owned() } else { masked(k, &p.value) };
            (k.clone(), value)
        };
        f.debug_map().entries(self.0.iter().map(shown)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        #[track_caller]
        fn check(key: &str, text: &str, expected: &str) {
            assert_eq!(masked(key, text), expected, "{key}");
        }
        check("url", "redis://localhost:6379/0", "redis://localhost:6379/0");
        check("url", "redis://:hunter2@localhost:6379/0", "redis://:***@localhost:6379/0");
        check("url", "rediss://app:hunter2@cache:6380/1", "rediss://app:***@cache:6380/1");
        check("url", "http://sink:8080/x?token=hunter2&a=1", "http://sink:8080/x?token=***&a=1");
        check("url", "redis://:hunter2@[broken", "redis://***@[broken");
        check("sasl.password", "hunter2", "***");
        check("ssl.key.password", "hunter2", "***");
        check("ssl.key.pem", "-----BEGIN", "***");
        check("ssl.key.location", "/etc/key.pem", "/etc/key.pem");
        check("sasl.password_file", "/run/secrets/p", "/run/secrets/p");
        check("Authorization", "Bearer hunter2", "***");
        check("X-Api-Key", "hunter2", "***");
        check("x-honeycomb-team", "hunter2", "***");
        check("sasl.oauthbearer.token.endpoint.url", "https://id/token", "https://id/token");
        check("sasl.oauthbearer.client.secret", "hunter2", "***");
        check("sasl.username", "app", "app");
    }
}
