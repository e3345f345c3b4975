//! Groups, pages of letters, and one letter, as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};

use super::Shared;
use super::answer::{Refused, blocking};
use super::ask::PageAsk;
use super::shelf::now_ms;
use crate::admin::dlq::page::{self, Page, Place};
use crate::admin::dlq::view::{Bytes, View};

/// A page that is not full by then is shown as it is.
const BUDGET: Duration = Duration::from_millis(1500);

/// The groups of a DLQ as far as they are read; reading goes on while somebody asks.
pub(super) async fn groups(
    State(shared): State<Arc<Shared>>,
    Path(pipeline): Path<String>,
) -> Result<Json<Value>, Refused> {
    let shelf = shared.shelf(&pipeline)?;
    Ok(Json(shelf.groups()))
}

/// Some letters of a selection.
pub(super) async fn page(
    State(shared): State<Arc<Shared>>,
    Path(pipeline): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page>, Refused> {
    let shelf = shared.shelf(&pipeline)?;
    let ask = PageAsk::read(query.as_deref(), now_ms())?;
    blocking(move || {
        let (desk, book) = (shelf.desk()?, shelf.book()?);
        // Of a group it may be known where its letters are.
        if let Some((letters, next)) = shelf.places(&ask, &book) {
            let letters = page::at(&desk, &book, &letters)?;
            return Ok(Json(Page { letters, next, ..Page::default() }));
        }
        Ok(Json(page::page(&desk, &book, &ask.selection, ask.from, ask.size, BUDGET)?))
    })
    .await
}

/// One letter.
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Path((pipeline, place)): Path<(String, String)>,
) -> Result<Json<Value>, Refused> {
    let shelf = shared.shelf(&pipeline)?;
    let place: Place = place.parse().map_err(Refused::bad)?;
    blocking(move || {
        let (desk, book) = (shelf.desk()?, shelf.book()?);
        let letter = page::find(&desk, &book, place)?;
        let letter = letter.ok_or_else(|| Refused::not_found(format!("no letter is at {place} any more, or yet")))?;
        let mut view = View::of(&letter, &desk.ladder, &shelf.reader);
        if !shared.show_values {
            hide(&mut view);
        }
        Ok(Json(json!(view)))
    })
    .await
}

/// Leaves of what the event came with only the names.
fn hide(view: &mut View) {
    let hidden = || Bytes::Text("hidden".to_owned());
    view.value = view.value.hidden();
    view.key = view.key.as_ref().map(|_| hidden());
    let is_ours = |name: &str| {
        ["x-ladder-", "__dlq.errors.", "kafka_dlt-"].iter().any(|prefix| name.starts_with(prefix))
            || ["traceparent", "tracestate"].contains(&name)
    };
    for (_, value) in view.headers.iter_mut().filter(|(name, value)| value.is_some() && !is_ours(name)) {
        *value = Some(hidden());
    }
}
