//! What a browser is told when something cannot be: a status and one sentence as JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::adapters::kafka::scan;
use crate::admin::dlq::redrive;

/// Nothing was done, and why.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    body: Value,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: json!({ "error": error.into() }) }
    }

    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// What was asked for makes no sense.
    pub(super) fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// It cannot be done as things stand.
    pub(super) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }
}

impl From<redrive::Error> for Refused {
    fn from(error: redrive::Error) -> Self {
        let status = match &error {
            redrive::Error::Busy { .. } => StatusCode::CONFLICT,
            redrive::Error::Scan(_) | redrive::Error::Write(_) => StatusCode::BAD_GATEWAY,
            redrive::Error::NoCopy { .. } | redrive::Error::NotCorrected { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.to_string())
    }
}

impl From<scan::Error> for Refused {
    fn from(error: scan::Error) -> Self {
        redrive::Error::from(error).into()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<Refused> for Response {
    fn from(refused: Refused) -> Self {
        refused.into_response()
    }
}

/// Reads the body of a request.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| Refused::bad(format!("the request cannot be read: {error}")))
}

/// Does what blocks its thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        tracing::error!(%error, "a request of the console ended early");
        Err(Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the console failed; its log says more"))
    })
}
