//! The `pipeline` command line: one file per command, each thin over the modules below.
pub mod produce;

use std::process::ExitCode;

pub mod topics;

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
