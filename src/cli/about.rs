//! What the command says about itself: its version, completions for shells, manual pages. All made from the clap types.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;

/// Which shell.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    shell: Shell,
}

/// One page, or all.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder, instead of the first one to standard output
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The version with all that a report of a bug needs.
pub(super) fn version(commit: &str) -> String {
    let (_, librdkafka) = rdkafka::util::get_rdkafka_version();
    format!("{} (commit {commit}, librdkafka {librdkafka})", env!("CARGO_PKG_VERSION"))
}

/// Where HEAD stood last by git's reflog, whose lines are `<old> <new> who when<TAB>what`; `unknown` when it is empty.
pub const fn head(reflog: &[u8]) -> &str {
    const SHOWN: usize = 12;
    let mut line = reflog.len().saturating_sub(1); // the last byte ends the last line
    while line > 0 && reflog[line - 1] != b'\n' {
        line -= 1;
    }
    let mut new = line;
    while new < reflog.len() && reflog[new] != b' ' {
        new += 1;
    }
    if new + 1 + SHOWN > reflog.len() {
        return "unknown";
    }
    match std::str::from_utf8(reflog.split_at(new + 1).1.split_at(SHOWN).0) {
        Ok(commit) => commit,
        Err(_) => "unknown",
    }
}

/// Prints what makes a shell complete `command`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn completions(args: &CompletionsArgs, command: &Command, out: &mut impl Write) -> io::Result<()> {
    // A copy without the hidden commands, which no shell should offer.
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
    let mut visible = Command::new("pipeline").version(env!("CARGO_PKG_VERSION"));
    visible = visible.args(command.get_arguments().cloned()).subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible, "pipeline", &mut script);
    out.write_all(&script)
}

/// Prints the manual page of `command`, or writes that and one for each of its commands into a folder.
///
/// # Errors
/// When it cannot be written.
pub(super) fn man(args: &ManArgs, command: Command, out: &mut impl Write) -> io::Result<()> {
    let command = command.disable_help_subcommand(true);
    let Some(folder) = &args.out else { return clap_mangen::Man::new(command).render(out) };
    let told = |error: io::Error| io::Error::new(error.kind(), format!("--out {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(command, folder)).map_err(told)
}
