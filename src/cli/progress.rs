//! Progress on standard error: a bar on a terminal, else a line now and then.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::adapters::kafka::scan::Progress;
use crate::admin::dlq::book::Job;

/// Nothing is shown of what is over sooner.
const PATIENCE: Duration = Duration::from_secs(1);
/// Without a terminal a line of progress comes this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Meter {
    what: &'static str,
    begun: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Meter {
    pub(super) fn new(what: &'static str) -> Self {
        let now = Instant::now();
        Self { what, begun: now, told: now, bar: None }
    }

    pub(super) fn scan(&mut self, progress: Progress) {
        self.tell(progress.read, progress.total, "");
    }

    pub(super) fn job(&mut self, job: &Job) {
        let back = if job.relapsed > 0 { format!(", {} came back", job.relapsed) } else { String::new() };
        self.tell(job.moved, job.planned, &back);
    }

    pub(super) fn tell(&mut self, done: u64, total: u64, aside: &str) {
        let total = total.max(done);
        if self.begun.elapsed() < PATIENCE {
            return;
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(total);
                let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {msg}, {per_sec}, {eta} left");
                style.map(|style| bar.set_style(style)).ok();
                bar
            });
            bar.set_length(total);
            bar.set_message(format!("{}{aside}", self.what));
            bar.set_position(done);
        } else if self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            super::note(&format!("{done} of {total} {}{aside}, {:.0}/s", self.what, done as f64 / seconds));
        }
    }

    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
