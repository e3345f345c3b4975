//! Stops the dispatch of a stage in every instance, and lets it go on: what `pipeline pause` and `resume` do.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::answer::{Refused, blocking, read};
use super::ask::{MAX_TEXT, named};
use super::shelf::now_ms;
use crate::adapters::kafka::control::{self, Order};

/// Longest wait for the order to be written.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseAsk {
    paused: bool,
    #[serde(default)]
    reason: String,
    /// The name of who asks, as typed.
    #[serde(default)]
    who: String,
}

/// `POST …/stages/STAGE`: written when this returns; the instances follow within two seconds.
pub(super) async fn set(
    State(shared): State<Arc<Shared>>,
    Path((pipeline, stage)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Value>, Refused> {
    let shelf = shared.shelf(&pipeline)?;
    if !shelf.ladder.rungs().iter().any(|rung| *rung.name == *stage) {
        return Err(Refused::not_found(format!("no stage is called `{}`", stage.escape_debug())));
    }
    let ask: PauseAsk = read(&body)?;
    if ask.reason.len() > MAX_TEXT || ask.who.len() > MAX_TEXT {
        return Err(Refused::bad(format!("reason and name have at most {MAX_TEXT} bytes")));
    }
    let reason = Some(ask.reason.trim().to_owned()).filter(|reason| !reason.is_empty());
    let at_ms = u64::try_from(now_ms()).unwrap_or_default();
    let order = Order { paused: ask.paused, by: named(&ask.who), at_ms, reason };
    blocking(move || {
        let group = shelf.ladder.group();
        let stages = [stage];
        let written = control::write(&shelf.properties, group, &shelf.control_topic, &stages, &order, TIMEOUT);
        written.map_err(|error| Refused::new(StatusCode::BAD_GATEWAY, error.to_string()))?;
        let [stage] = stages;
        tracing::info!(pipeline = shelf.name, stage, paused = order.paused, by = order.by, "a stage was told");
        Ok(Json(json!({ "stage": stage, "paused": order.paused, "by": order.by })))
    })
    .await
}
