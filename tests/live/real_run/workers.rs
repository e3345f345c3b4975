//! The processes of the run: the real binary, a configuration and a log file each, ended by their pids whatever happens.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::observer::now;

/// Lines of each log that are shown when the test fails.
const TAIL: usize = 30;

/// One process.
struct Worker {
    name: String,
    stage: usize,
    child: Child,
    running: bool,
}

/// A process that was killed, and when (Unix microseconds): just before the signal, and when it was certainly gone.
#[derive(Clone, Debug)]
pub(crate) struct Kill {
    pub(crate) instance: String,
    pub(crate) stage: usize,
    pub(crate) at: u64,
    pub(crate) gone: u64,
}

/// All processes of the run.
pub(crate) struct Workers {
    folder: TempDir,
    /// The configuration for a URL.
    config: Box<dyn Fn(&str) -> String>,
    workers: Vec<Worker>,
    kills: Vec<Kill>,
}

/// The command-line name of a stage.
pub(crate) fn stage_name(stage: usize) -> String {
    match stage {
        0 => "main".into(),
        1..=3 => format!("retry-{stage}"),
        _ => "dlq".into(),
    }
}

impl Workers {
    /// None yet. `config` makes the configuration of a process that calls the given URL.
    pub(crate) fn new(config: impl Fn(&str) -> String + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, config: Box::new(config), workers: Vec::new(), kills: Vec::new() }
    }

    fn command(&self, name: &str, url: &str) -> Command {
        let file = self.folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, (self.config)(url)).expect("write the configuration");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
        command.arg("--config").arg(file).stdin(Stdio::null());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PIPELINE_") {
                command.env_remove(variable);
            }
        }
        command
    }

    /// `pipeline topics create`.
    pub(crate) fn create_topics(&self) {
        let output = self.command("topics", "http://127.0.0.1:1/").args(["topics", "create"]).output();
        let output = output.expect("run pipeline topics create");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "pipeline topics create: {}\n{text}", output.status);
    }

    /// Starts a process of a stage under a name that is new.
    pub(crate) fn start(&mut self, stage: usize, name: &str, url: &str) {
        let log = File::create(self.log(name)).expect("create a log file");
        let mut command = self.command(name, url);
        command.args(["--stage", &stage_name(stage)]);
        command.stdout(log.try_clone().expect("the log file")).stderr(log);
        let child = command.spawn().expect("start pipeline");
        self.workers.push(Worker { name: name.to_owned(), stage, child, running: true });
    }

    /// Names of the running processes of a stage.
    pub(crate) fn of_stage(&self, stage: usize) -> Vec<String> {
        self.workers.iter().filter(|w| w.running && w.stage == stage).map(|w| w.name.clone()).collect()
    }

    /// Ends a process at once, as the kernel's memory killer would.
    pub(crate) fn kill(&mut self, name: &str) {
        let worker = self.workers.iter_mut().find(|w| w.running && w.name == name).expect("a running process");
        let at = now();
        worker.child.kill().expect("send SIGKILL");
        let status = worker.child.wait().expect("wait for a killed process");
        worker.running = false;
        assert_eq!(status.signal(), Some(9), "{name} ended by itself: {status}");
        self.kills.push(Kill { instance: name.to_owned(), stage: worker.stage, at, gone: now() });
    }

    pub(crate) fn kills(&self) -> &[Kill] {
        &self.kills
    }

    /// # Panics
    /// When a process ended that nobody ended.
    pub(crate) fn assert_running(&mut self) {
        for worker in self.workers.iter_mut().filter(|w| w.running) {
            if let Some(status) = worker.child.try_wait().expect("ask for a process") {
                worker.running = false;
                panic!("{} ended by itself: {status}", worker.name);
            }
        }
    }

    /// SIGTERM to all, and what did not end well within the limit.
    pub(crate) fn stop(&mut self, limit: Duration) -> Vec<String> {
        for worker in self.workers.iter().filter(|w| w.running) {
            let pid = Pid::from_child(&worker.child);
            kill_process(pid, Signal::TERM).expect("send SIGTERM");
        }
        let begun = Instant::now();
        let mut faults = Vec::new();
        for worker in self.workers.iter_mut().filter(|w| w.running) {
            let status = loop {
                if let Some(status) = worker.child.try_wait().expect("ask for a process") {
                    worker.running = false;
                    break Some(status);
                }
                if begun.elapsed() > limit {
                    break None;
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => faults.push(format!("{} ended with {status} after SIGTERM", worker.name)),
                None => faults.push(format!("{} had not ended {limit:?} after SIGTERM", worker.name)),
            }
        }
        faults
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// What a process has logged.
    pub(crate) fn read_log(&self, name: &str) -> String {
        std::fs::read(self.log(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The names of all processes that ever ran on a stage.
    pub(crate) fn ever_of_stage(&self, stage: usize) -> Vec<String> {
        self.workers.iter().filter(|w| w.stage == stage).map(|w| w.name.clone()).collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in self.workers.iter_mut().filter(|w| w.running) {
            // It may have ended just now, and nothing more can be done here.
            drop(worker.child.kill());
            drop(worker.child.wait());
        }
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("---- configurations and logs: {}", self.folder.path().display());
            for worker in &self.workers {
                let log = self.read_log(&worker.name);
                let lines: Vec<_> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(TAIL)..];
                let panics = lines.iter().position(|line| line.contains("panicked at"));
                let panics = panics.map_or(&[][..], |at| &lines[at..lines.len().min(at + 3)]);
                eprintln!(
                    "---- {}: {}",
                    worker.name,
                    if panics.is_empty() { "no panic".into() } else { panics.join("\n") }
                );
                eprintln!("---- end of the log of {} ({} lines)\n{}", worker.name, lines.len(), tail.join("\n"));
            }
        }
    }
}
