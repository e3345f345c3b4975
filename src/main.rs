//! The `pipeline` command: parse, configure, run, exit code; nothing else.

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this was built from: as told (LADDER_COMMIT, for images and archives), else where the checkout's HEAD stood. The
/// compiler reads the file, so that a commit compiles nothing but this file again.
const COMMIT: &str = match option_env!("LADDER_COMMIT") {
    Some(commit) => commit,
    None => retry_ladder::cli::head(include_bytes!(env!("LADDER_REFLOG"))),
};

fn main() -> std::process::ExitCode {
    retry_ladder::cli::main(COMMIT)
}
