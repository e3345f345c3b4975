//! A worker as its test sees it: a child process, its files, and signals to it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::journal::{self, Line};
use super::{ORDERS, Orders};

/// A worker process; killed when it is dropped.
pub(crate) struct Worker {
    pub(crate) orders: Orders,
    process: Child,
}

impl Worker {
    /// Runs `test` of this program again, as a worker.
    pub(crate) fn start(test: &str, orders: &Orders) -> Self {
        let log = File::create(orders.log()).expect("a log");
        let process = Command::new(std::env::current_exe().expect("this program"))
            .args([test, "--exact", "--nocapture"])
            .env(ORDERS, serde_json::to_string(orders).expect("orders"))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("a worker");
        Self { orders: orders.clone(), process }
    }

    pub(crate) fn name(&self) -> &str {
        &self.orders.name
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("a worker that can be watched")
    }

    /// Ends its standard input, which asks it to drain and leave.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.process.wait().expect("a worker that ends")
    }

    /// SIGKILL, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it runs");
        let status = self.process.wait().expect("it ends");
        assert_eq!(status.signal(), Some(9), "{} ended by itself: {status}", self.name());
    }

    /// SIGSTOP, and frozen when this returns.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_child(&self.process);
        let status = waitpid(Some(pid), WaitOptions::UNTRACED).expect("a child").expect("its state").1;
        assert!(status.stopped(), "{}: {status:?}", self.name());
    }

    pub(crate) fn wake(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.orders.log()).unwrap_or_default()
    }

    pub(crate) fn journal(&self) -> Vec<Line> {
        journal::read(&self.orders.journal())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.process.kill().and_then(|()| self.process.wait()).map(drop).ok();
        }
    }
}

/// Prints what the workers of a case logged if its check fails.
pub(crate) struct LogsOnFailure {
    what: String,
    folder: PathBuf,
}

impl LogsOnFailure {
    pub(crate) fn new(what: &str, folder: &Path) -> Self {
        Self { what: what.to_owned(), folder: folder.to_owned() }
    }
}

impl Drop for LogsOnFailure {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(30)..].join("\n");
                eprintln!("--- {}: {}\n{tail}", self.what, entry.file_name().display());
            }
        }
    }
}
