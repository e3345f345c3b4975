//! What a person sees while the demo runs, on standard error: on a terminal a table refreshed in place, else a line
//! every two seconds. Log lines come above the table and never into it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::app::engine::RunningStage;
use crate::telemetry::duration;

/// Between two lines when the output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Characters of the progress bar.
const BAR: usize = 40;

/// One row: a stage now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    name: Arc<str>,
    delay: Option<Duration>,
    waiting: u64,
    overdue: u64,
    running: u64,
    done: u64,
    retried: u64,
    dead: u64,
}

/// The ladder now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) produced: u64,
    rows: Vec<Row>,
    dlq: Arc<str>,
}

impl View {
    /// Looks at the stages, of which the last is the DLQ's.
    pub(super) fn of(stages: &[RunningStage], produced: u64) -> Self {
        let mut rows = Vec::new();
        let (handling, dlq) = stages.split_at(stages.len().saturating_sub(1));
        let mut entered = produced;
        for stage in handling {
            let (stats, rung) = (stage.stats(), stage.context().rung());
            let (done, retried, dead) = (stats.done.get(), stats.forwarded.get(), stats.dead_letters());
            let left = done + retried + dead;
            let begun = stats.executions.get().saturating_sub(left);
            // In memory and past their due time, the running ones among them.
            let due = stage.overview().in_flight as u64;
            // Whatever has come and is not due, in memory or not. On main nothing waits: it is on its way.
            let waiting = if rung.delay.is_some() { entered.saturating_sub(left + due) } else { 0 };
            rows.push(Row {
                name: Arc::clone(&rung.name),
                delay: rung.delay,
                waiting,
                overdue: due.saturating_sub(begun),
                running: stats.running.load(std::sync::atomic::Ordering::Relaxed),
                done,
                retried,
                dead,
            });
            entered = retried;
        }
        let dlq = dlq.first().map_or_else(|| "dlq".into(), |stage| Arc::clone(&stage.context().rung().name));
        Self { produced, rows, dlq }
    }

    fn sum(&self, of: impl Fn(&Row) -> u64) -> u64 {
        self.rows.iter().map(of).sum()
    }

    /// Events that are done or dead, as the engine counts them.
    pub(super) fn finished(&self) -> u64 {
        self.sum(|row| row.done + row.dead)
    }

    /// Grows as long as anything happens.
    pub(super) fn moves(&self) -> u64 {
        self.produced + self.sum(|row| row.done + row.retried + row.dead)
    }

    /// The table, header first.
    fn table(&self) -> Vec<String> {
        let mut lines = vec![line("stage", "delay", ["waiting", "overdue", "running", "done", "retried", "dead"])];
        for row in &self.rows {
            let delay = row.delay.map_or_else(|| "-".to_owned(), duration::show);
            let numbers = [row.waiting, row.overdue, row.running, row.done, row.retried, row.dead].map(grouped);
            lines.push(line(&row.name, &delay, numbers.each_ref().map(String::as_str)));
        }
        let dead = grouped(self.sum(|row| row.dead));
        lines.push(line(&self.dlq, "-", ["", "", "", "", "", &dead]));
        lines
    }

    fn progress(&self, events: u64, elapsed: Duration) -> String {
        let full = (self.finished().min(events) * BAR as u64 / events.max(1)) as usize;
        format!(
            "[{}{}] {} of {} finished, {:.1} s",
            "#".repeat(full),
            ".".repeat(BAR - full),
            grouped(self.finished()),
            grouped(events),
            elapsed.as_secs_f64()
        )
    }

    fn plain(&self, events: u64, elapsed: Duration) -> String {
        format!(
            "{:5.1} s  produced {} of {}, waiting {}, overdue {}, running {}, done {}, retried {}, dead {}",
            elapsed.as_secs_f64(),
            grouped(self.produced),
            grouped(events),
            grouped(self.sum(|row| row.waiting)),
            grouped(self.sum(|row| row.overdue)),
            grouped(self.sum(|row| row.running)),
            grouped(self.sum(|row| row.done)),
            grouped(self.sum(|row| row.retried)),
            grouped(self.sum(|row| row.dead)),
        )
    }
}

fn line(stage: &str, delay: &str, numbers: [&str; 6]) -> String {
    let numbers: String = numbers.iter().map(|number| format!("{number:>9}")).collect();
    format!("{stage:<9}{delay:>5}{numbers}").trim_end().to_owned()
}

/// A number with commas between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Shows views.
pub(super) struct Screen {
    logs: LogLines,
    events: u64,
    started: Instant,
    /// Whether the output is a terminal that can move its cursor.
    live: bool,
    bold: bool,
    /// Lines of the picture that is on the terminal now; the cursor is at the start of the line below it.
    drawn: usize,
    last_line: Option<Instant>,
}

impl Screen {
    /// A screen for a run of so many events; the clock runs from now.
    pub(super) fn new(logs: LogLines, events: u64) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let live = io::stderr().is_terminal() && set("TERM").is_some_and(|term| term != "dumb");
        let bold = live && set("NO_COLOR").is_none();
        Self { logs, events, started: Instant::now(), live, bold, drawn: 0, last_line: None }
    }

    /// Lines of their own, above the table.
    pub(super) fn print(&mut self, text: &str) {
        self.write(&[text], &[]);
    }

    /// The ladder now.
    pub(super) fn show(&mut self, view: &View) {
        let logs = self.logs.take();
        let mut above: Vec<&str> = logs.iter().map(String::as_str).collect();
        if self.live {
            self.write(&above, &self.picture(view));
            return;
        }
        let plain = view.plain(self.events, self.started.elapsed());
        if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            above.push(&plain);
        }
        self.write(&above, &[]);
    }

    /// The ladder at the end; stays on the screen.
    pub(super) fn end(&mut self, view: &View) {
        self.last_line = None;
        self.show(view);
        self.drawn = 0;
        self.print("");
    }

    /// Puts `above` where the picture was, and `picture` below it, in one write so that nothing flickers.
    fn write(&mut self, above: &[&str], picture: &[String]) {
        let text = redraw(self.drawn, above, picture);
        self.drawn = picture.len();
        // Somebody who has closed standard error does not look.
        drop(io::stderr().write_all(text.as_bytes()));
    }

    fn picture(&self, view: &View) -> Vec<String> {
        let mut lines = view.table();
        if self.bold {
            lines[0] = format!("\x1b[1m{}\x1b[0m", lines[0]);
        }
        lines.extend([String::new(), view.progress(self.events, self.started.elapsed())]);
        lines
    }
}

/// Text that replaces a picture of `drawn` lines. Lines of a picture are cut at the terminal's edge (no wrapping
/// meanwhile), or the next redraw would miscount them.
fn redraw(drawn: usize, above: &[&str], picture: &[String]) -> String {
    let mut text = String::new();
    if drawn > 0 {
        // Up to its first line, then clear to the end of the screen: an echoed ^C, too.
        text.push_str(&format!("\r\x1b[{drawn}A\x1b[J"));
    }
    for line in above {
        text.push_str(line);
        text.push('\n');
    }
    if !picture.is_empty() {
        text.push_str("\x1b[?7l");
        for line in picture {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("\x1b[?7h");
    }
    text
}

/// Log lines that wait to be shown.
#[derive(Clone, Default)]
pub(super) struct LogLines(Arc<Mutex<Vec<u8>>>);

impl LogLines {
    /// Logs into it from now on: warnings and errors, or what `RUST_LOG` says.
    pub(super) fn start() -> Self {
        let lines = Self::default();
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,librdkafka=off"));
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .with_writer(move || writer.clone());
        // Somebody (a test) logs in its own way already.
        drop(subscriber.try_init());
        lines
    }

    /// The complete lines so far.
    fn take(&self) -> Vec<String> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text: Vec<u8> = buffer.drain(..end).collect();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let row = |name: &str, delay: Option<u64>, [waiting, overdue, running, done, retried, dead]: [u64; 6]| Row {
            name: name.into(),
            delay: delay.map(Duration::from_secs),
            waiting,
            overdue,
            running,
            done,
            retried,
            dead,
        };
        let rows = vec![row("main", None, [0, 1, 2, 12_345, 201, 9]), row("retry-1", Some(1), [40, 0, 3, 70, 80, 8])];
        View { produced: 12_600, rows, dlq: "dlq".into() }
    }

    #[test]
    fn the_table_is_aligned_and_the_dlq_holds_the_sum() {
        let expected = [
            "stage    delay  waiting  overdue  running     done  retried     dead",
            "main         -        0        1        2   12,345      201        9",
            "retry-1     1s       40        0        3       70       80        8",
            "dlq          -                                                    17",
        ];
        assert_eq!(view().table(), expected);
    }

    #[test]
    fn without_a_terminal_one_line_says_it_all() {
        assert_eq!(
            view().plain(20_000, Duration::from_millis(3_210)),
            "  3.2 s  produced 12,600 of 20,000, waiting 40, overdue 1, running 5, done 12,415, retried 281, dead 17"
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let check = |number, text: &str| assert_eq!(grouped(number), text);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(1_234_567, "1,234,567");
    }

    #[test]
    fn a_picture_replaces_the_one_before_and_lines_come_above_it() {
        let picture = ["a".to_owned(), "b".to_owned()];
        assert_eq!(redraw(0, &[], &picture), "\x1b[?7la\nb\n\x1b[?7h");
        assert_eq!(redraw(2, &["log"], &picture), "\r\x1b[2A\x1b[Jlog\n\x1b[?7la\nb\n\x1b[?7h");
        assert_eq!(redraw(0, &["line"], &[]), "line\n", "no escapes without a picture");
    }

    #[test]
    fn only_complete_log_lines_are_taken() {
        let mut logs = LogLines::default();
        logs.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(logs.take(), ["one", "two"]);
        logs.write_all(b"ee\n").unwrap();
        assert_eq!(logs.take(), ["three"]);
        assert_eq!(logs.take(), [""; 0]);
    }
}
