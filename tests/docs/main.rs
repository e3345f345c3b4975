//! What the documents say is so: links lead somewhere, files, items and tests that they name exist, and every public name
//! (metric, header, key, variable) is one that the code knows. Command lines are held by `src/cli/tests.rs`, the dashboard
//! and the alerts by tests/telemetry, what deploys by tests/deployment.rs.
#![allow(clippy::unwrap_used, reason = "a test")]

mod names;
mod places;
#[path = "../support/pages.rs"]
mod pages;
