//! The `pipeline` command: parse, configure, run, exit code; nothing else.
fn main() -> std::process::ExitCode {
    retry_ladder::cli::main()
}
