//! Who may: the token where one is configured, else a page of this console in a browser on this host. Pure.
//!
//! Without a token the server is on loopback, and the danger is another site's page in a browser here: it may send
//! requests (so what changes something needs a header of ours, which such a page cannot set unasked, and the right
//! origin), and it may have its own name resolve to this host to read answers (so the name asked for must be one of
//! loopback's).

use axum::http::{HeaderMap, Method, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::answer::Refused;

/// The header that the console's own page sends with all that it asks for.
pub(super) const OWN: &str = "x-ladder-console";

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// No token was presented.
    #[error("this console needs its token: console.token or PIPELINE_CONSOLE__TOKEN of the process that serves it")]
    NoToken,
    /// Another one was.
    #[error("this is not the console's token")]
    WrongToken,
    /// The name that was asked for is not this host's.
    #[error("the console answers to localhost and 127.0.0.1 only; with console.token set, to any name")]
    Host,
    /// It was asked for by another site's page, or by none.
    #[error("only a page of this console may do that; a program sends the header `X-Ladder-Console: 1`")]
    Origin,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NoToken | Refusal::WrongToken => StatusCode::UNAUTHORIZED,
            Refusal::Host => StatusCode::MISDIRECTED_REQUEST,
            Refusal::Origin => StatusCode::FORBIDDEN,
        };
        Refused::new(status, refusal.to_string())
    }
}

/// The rule of one console.
pub(super) struct Access {
    /// Hash of the token: comparing hashes takes as long for a near miss as for any other.
    token: Option<[u8; 32]>,
}

impl Access {
    pub(super) fn new(token: Option<&str>) -> Self {
        Self { token: token.map(hash) }
    }

    /// Judges a request for data, or for the pages, which hold none.
    pub(super) fn judge(&self, method: &Method, is_data: bool, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.token else { return judge_local(method, is_data, headers) };
        if !is_data {
            return Ok(());
        }
        let presented = text(headers, header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let presented = presented.ok_or(Refusal::NoToken)?;
        if same(token, &hash(presented.trim())) { Ok(()) } else { Err(Refusal::WrongToken) }
    }
}

fn judge_local(method: &Method, is_data: bool, headers: &HeaderMap) -> Result<(), Refusal> {
    let host = text(headers, header::HOST).filter(|host| is_loopback(host)).ok_or(Refusal::Host)?;
    if !is_data {
        return Ok(());
    }
    let is_same_site = text(headers, "sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    let is_same_origin = text(headers, header::ORIGIN).is_none_or(|origin| {
        origin.strip_prefix("http://").or(origin.strip_prefix("https://")).is_some_and(|o| o.eq_ignore_ascii_case(host))
    });
    // A value that is not text is none that a browser sends for our page.
    let is_readable = |name: &str| headers.get_all(name).iter().all(|value| value.to_str().is_ok());
    let is_own = method.is_safe() || text(headers, OWN).is_some();
    let is_fine = is_same_site && is_same_origin && is_readable("origin") && is_readable("sec-fetch-site") && is_own;
    if is_fine { Ok(()) } else { Err(Refusal::Origin) }
}

/// The value of a header that stands once.
fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether `host` or `host:port` names loopback; the port may be another, as a tunnel makes it.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(address, _)| address),
        None => host.split(':').next(),
    };
    let Some(name) = name else { return false };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// In constant time.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(token: Option<&str>, method: &str, headers: &[(&'static str, &str)]) -> Result<(), Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Access::new(token).judge(&method.parse().unwrap(), true, &map)
    }

    #[test]
    fn without_a_token_only_the_own_page_on_this_host_may_change_anything() {
        #[track_caller]
        fn check(method: &str, headers: &[(&'static str, &str)], expected: Result<(), Refusal>) {
            assert_eq!(judge(None, method, headers), expected, "{method} {headers:?}");
        }
        let host = ("host", "127.0.0.1:9490");
        let own = (OWN, "1");
        check("GET", &[host], Ok(()));
        check("GET", &[("host", "localhost:8080")], Ok(()));
        check("GET", &[("host", "[::1]:9490")], Ok(()));
        for name in ["evil.example:9490", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1", "", "[::1"]
        {
            check("GET", &[("host", name)], Err(Refusal::Host));
        }
        check("GET", &[], Err(Refusal::Host));
        check("GET", &[host, ("host", "evil.example")], Err(Refusal::Host));
        check("GET", &[host, ("sec-fetch-site", "cross-site")], Err(Refusal::Origin));
        check("GET", &[host, ("sec-fetch-site", "same-site")], Err(Refusal::Origin));

        check("POST", &[host], Err(Refusal::Origin));
        check("POST", &[host, own], Ok(()));
        check("POST", &[host, own, ("origin", "http://127.0.0.1:9490"), ("sec-fetch-site", "same-origin")], Ok(()));
        for origin in ["http://evil.example", "http://127.0.0.1:3000", "http://localhost:9490", "null"] {
            check("POST", &[host, own, ("origin", origin)], Err(Refusal::Origin));
        }
        check("POST", &[host, own, ("sec-fetch-site", "cross-site")], Err(Refusal::Origin));
    }

    #[test]
    fn with_a_token_it_is_needed_to_read_too_and_the_name_of_the_host_is_free() {
        let token = Some("0123456789abcdef");
        let host = ("host", "console.internal");
        for method in ["GET", "POST"] {
            let check = |headers: &[(&'static str, &str)], expected| {
                assert_eq!(judge(token, method, headers), expected, "{method} {headers:?}");
            };
            check(&[host], Err(Refusal::NoToken));
            check(&[host, (OWN, "1")], Err(Refusal::NoToken));
            check(&[host, ("authorization", "Bearer 0123456789abcdef")], Ok(()));
            check(&[host, ("authorization", "Basic 0123456789abcdef")], Err(Refusal::NoToken));
            for wrong in ["Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdeF", "Bearer 0123456789abcdef0"] {
                check(&[host, ("authorization", wrong)], Err(Refusal::WrongToken));
            }
        }
    }
}
