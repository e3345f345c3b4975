//! The pages: files that are part of the binary. They hold no data, need nothing from elsewhere and run nothing inline.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::Shared;

/// What a page may load and do.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                                 connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("assets/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("assets/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ("/app.js", SCRIPT, include_str!("assets/app.js")),
    ("/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/server.js", SCRIPT, include_str!("assets/server.js")),
    ("/overview.js", SCRIPT, include_str!("assets/overview.js")),
    ("/letters.js", SCRIPT, include_str!("assets/letters.js")),
    ("/letter.js", SCRIPT, include_str!("assets/letter.js")),
    ("/redrive.js", SCRIPT, include_str!("assets/redrive.js")),
];

pub(super) fn router() -> Router<Arc<Shared>> {
    FILES.iter().fold(Router::new(), |router, &(path, kind, text)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, kind)], text).into_response() }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_runs_anything_inline_loads_from_elsewhere_or_writes_markup() {
        for (path, _, text) in FILES {
            for wrong in
                ["style=", "onclick=", "onload=", "javascript:", "innerHTML", "outerHTML", "insertAdjacent", "eval("]
            {
                assert!(!text.contains(wrong), "{path} has {wrong}");
            }
            let urls = text.match_indices("://").map(|(at, _)| &text[at.saturating_sub(5)..]);
            for url in urls {
                assert!(
                    url.contains("://www.w3.org/2000/svg"),
                    "{path} names another host: {}",
                    &url[..url.len().min(60)]
                );
            }
        }
    }
}
