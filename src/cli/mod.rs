//! The `pipeline` command line: one file per command, each thin over the modules below.

mod config;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Sources;

/// Non-blocking retries for Kafka: main → retry-1 … retry-N → DLQ.
#[derive(Parser, Debug)]
#[command(name = "pipeline", version, after_help = "Example: pipeline config check")]
struct Cli {
    /// Configuration file; without one ./topics.yaml
    #[arg(long, global = true, value_name = "F")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Check or show the configuration
    Config(config::ConfigArgs),
}

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { config::EXIT_CONFIG } else { 0 };
            return if e.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let sources = Sources::new(cli.config).env(std::env::vars_os());
    let result = match &cli.command {
        Command::Config(args) => config::run(args, &sources, &mut std::io::stdout(), &mut std::io::stderr()),
    };
    result.unwrap_or(ExitCode::FAILURE)
}
