//! The worker processes: start, kill, freeze, wake, end; and the record of what befell each of them.
//!
//! Invariant: none outlives the run. Each holds the end of a pipe as its standard input and drains when that closes; a
//! frozen one whose parent is gone is woken and hung up on by the kernel, because it is a process group of its own.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::journal::Blow;
use super::ledger::Cause;
use super::now_us;
use super::worker::Orders;

/// One start of a worker: its files, and what befell it.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) worker: usize,
    pub(super) orders: Orders,
    pub(super) blows: Vec<(usize, Blow)>,
}

struct Running {
    process: Child,
    life: usize,
    frozen: bool,
}

/// All workers.
pub(super) struct Crew {
    program: PathBuf,
    /// By worker; `None` while it is down.
    running: Vec<Option<Running>>,
    pub(super) lives: Vec<Life>,
    /// What each worker does, its name without the number of its start.
    orders: Vec<Orders>,
}

impl Crew {
    pub(super) fn new(program: PathBuf, orders: Vec<Orders>) -> Self {
        Self { program, running: orders.iter().map(|_| None).collect(), lives: Vec::new(), orders }
    }

    pub(super) fn start(&mut self, worker: usize) -> io::Result<()> {
        let mut orders = self.orders[worker].clone();
        let starts = self.lives.iter().filter(|life| life.worker == worker).count();
        orders.name = format!("{}-{starts}", orders.name);
        let file = orders.folder.join(format!("{}.json", orders.name));
        std::fs::write(&file, serde_json::to_vec(&orders)?)?;
        let log = File::create(orders.log())?;
        let process = Command::new(&self.program)
            .arg("prove-worker")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        self.lives.push(Life { worker, orders, blows: Vec::new() });
        self.running[worker] = Some(Running { process, life: self.lives.len() - 1, frozen: false });
        Ok(())
    }

    /// The first worker from this one on that runs and is not frozen.
    pub(super) fn at_work(&self, worker: usize) -> Option<usize> {
        let count = self.running.len();
        let works = |w: &usize| self.running[*w].as_ref().is_some_and(|r| !r.frozen);
        (0..count).map(|n| (worker + n) % count).find(works)
    }

    /// SIGKILL; `fault` is its number in the plan.
    pub(super) fn kill(&mut self, worker: usize, fault: usize) -> io::Result<()> {
        let Some(mut running) = self.running[worker].take() else { return Ok(()) };
        let from_us = now_us();
        running.process.kill()?;
        running.process.wait()?;
        let blow = Blow { cause: Cause::Killed, from_us, to_us: now_us() };
        self.lives[running.life].blows.push((fault, blow));
        Ok(())
    }

    /// SIGSTOP.
    pub(super) fn freeze(&mut self, worker: usize, fault: usize) -> io::Result<()> {
        let Some(running) = &mut self.running[worker] else { return Ok(()) };
        signal(&running.process, Signal::STOP)?;
        // A busy machine lets it go on for a while, and what it claims in that while is in its hand, too.
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid(&running.process)?), stopped)?;
        let blow = Blow { cause: Cause::Frozen, from_us: now_us(), to_us: u64::MAX };
        self.lives[running.life].blows.push((fault, blow));
        running.frozen = true;
        Ok(())
    }

    /// SIGCONT.
    pub(super) fn wake(&mut self, worker: usize, fault: usize) -> io::Result<()> {
        let Some(running) = &mut self.running[worker] else { return Ok(()) };
        for (of, blow) in &mut self.lives[running.life].blows {
            if *of == fault {
                blow.to_us = now_us();
            }
        }
        running.frozen = false;
        signal(&running.process, Signal::CONT)
    }

    /// Redis was cut off for everybody who lived then.
    pub(super) fn was_cut_off(&mut self, fault: usize, from_us: u64) {
        let blow = Blow { cause: Cause::CutOff, from_us, to_us: now_us() };
        for life in &mut self.lives {
            life.blows.push((fault, blow));
        }
    }

    /// Workers that ended without having been asked to, with the end of their log.
    pub(super) fn ended(&mut self) -> Option<String> {
        for worker in self.running.iter_mut().flatten() {
            if let Ok(Some(status)) = worker.process.try_wait() {
                let orders = &self.lives[worker.life].orders;
                return Some(format!("worker {} ended by itself: {status}\n{}", orders.name, tail(&orders.log())));
            }
        }
        None
    }

    pub(super) fn all_ready(&self) -> bool {
        self.running.iter().flatten().all(|r| self.lives[r.life].orders.ready().exists())
    }

    /// Asks all to drain, and kills those that have not ended in time. What they did not do well.
    pub(super) fn stop(&mut self, patience: Duration) -> Vec<String> {
        let mut faults = Vec::new();
        for running in self.running.iter_mut().flatten() {
            drop(running.process.stdin.take());
        }
        let deadline = Instant::now() + patience;
        for running in self.running.iter_mut().filter_map(Option::take) {
            let name = self.lives[running.life].orders.name.clone();
            match wait(running.process, deadline) {
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) => faults.push(format!("worker {name} was asked to stop and ended with {status}")),
                Ok(None) => faults.push(format!("worker {name} was asked to stop and did not within {patience:?}")),
                Err(error) => faults.push(format!("worker {name}: {error}")),
            }
        }
        faults
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for mut running in self.running.drain(..).flatten() {
            // It may have ended already.
            running.process.kill().and_then(|()| running.process.wait()).map(drop).ok();
        }
    }
}

/// `None`: it had to be killed.
fn wait(mut process: Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            process.kill()?;
            process.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(process: &Child, signal: Signal) -> io::Result<()> {
    Ok(kill_process(pid(process)?, signal)?)
}

fn pid(process: &Child) -> io::Result<Pid> {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("a process without a pid"))
}

/// The last lines of a log.
pub(super) fn tail(path: &std::path::Path) -> String {
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
