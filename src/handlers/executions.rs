//! The executions file: what a handler really did, written by the handler itself.
//!
//! Tests, the demo and the proof count executions in it, never with the engine's own counters. One line each for the
//! start and the end of an execution, seven fields, one space between them:
//! ```text
//! start|end <unix_us> <stage> <attempt> <fence> <event_id> <outcome>
//! ```
//! Stage (its name) and event id are percent-encoded (all but printable ASCII, and space, `"`, `%`), so that a line always has seven fields; the
//! outcome is `-` at the start, and at the end `done`, `transient`, `permanent`, `poison` or `fenced`. A start without an
//! end is an execution that was cancelled or killed.
//!
//! Invariants: a line is on its way to the disk before the effect begins (start) or the handler returns (end); lines of
//! many tasks and processes never interleave, because each is handed over in one `write` to a file opened for appending.
//! With `fsync` a line is on the disk by then, so the file survives the machine; without, it survives the process.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use super::printable;
use crate::ladder::event::{Outcome, Timestamp};
use crate::stage::ports::Event;

/// An open executions file.
pub struct Executions {
    path: PathBuf,
    sink: Sink,
}

enum Sink {
    /// Straight into the page cache: a write is quicker than a hand-over.
    Direct(File),
    /// To a thread that writes all lines that came meanwhile and syncs once for them.
    Synced(mpsc::Sender<Line>),
}

struct Line {
    text: String,
    written: oneshot::Sender<io::Result<()>>,
}

impl fmt::Debug for Executions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executions").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Executions {
    /// Opens or creates the file for appending. `fsync`: every line is on the disk before it counts as written.
    ///
    /// # Errors
    /// When the file cannot be opened or the writing thread cannot be started.
    pub fn open(path: &Path, fsync: bool) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let sink = if fsync {
            let (lines, queue) = mpsc::channel();
            thread::Builder::new().name("executions".into()).spawn(move || write_synced(&file, &queue))?;
            Sink::Synced(lines)
        } else {
            Sink::Direct(file)
        };
        Ok(Self { path: path.to_owned(), sink })
    }

    /// Whether [`Executions::start`] and [`Executions::end`] may have to wait.
    pub(super) fn waits(&self) -> bool {
        matches!(self.sink, Sink::Synced(_))
    }

    /// Records that an execution of `event` begins at `now`.
    ///
    /// # Errors
    /// When the line could not be written: the effect must not happen then.
    pub async fn start(&self, event: &Event, now: Timestamp) -> io::Result<()> {
        self.append(line("start", event, now, "-")).await
    }

    /// Records that the execution of `event` ended at `now`.
    ///
    /// # Errors
    /// When the line could not be written.
    pub async fn end(&self, event: &Event, now: Timestamp, outcome: &Outcome) -> io::Result<()> {
        self.append(line("end", event, now, outcome_word(outcome))).await
    }

    /// Writes one whole line, its newline included.
    ///
    /// # Errors
    /// When it could not be written.
    pub(crate) async fn append(&self, text: String) -> io::Result<()> {
        let result = match &self.sink {
            Sink::Direct(file) => { file }.write_all(text.as_bytes()),
            Sink::Synced(lines) => {
                let (written, answer) = oneshot::channel();
                match lines.send(Line { text, written }) {
                    Ok(()) => answer.await.unwrap_or_else(|_| Err(gone())),
                    Err(_) => Err(gone()),
                }
            }
        };
        result.map_err(|e| io::Error::new(e.kind(), format!("executions file {}: {e}", self.path.display())))
    }
}

fn gone() -> io::Error {
    io::Error::other("its writing thread is gone")
}

/// Group commit: as many lines as are waiting, one write, one sync, then all the answers.
fn write_synced(mut file: &File, queue: &mpsc::Receiver<Line>) {
    let mut text = String::new();
    let mut answers = Vec::new();
    while let Ok(first) = queue.recv() {
        for line in std::iter::once(first).chain(queue.try_iter().take(10_000)) {
            text.push_str(&line.text);
            answers.push(line.written);
        }
        let result = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        text.clear();
        for answer in answers.drain(..) {
            let result = match &result {
                Ok(()) => Ok(()),
                Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
            };
            // Whoever was cancelled while waiting does not listen any more.
            answer.send(result).ok();
        }
    }
}

fn line(what: &str, event: &Event, now: Timestamp, outcome: &str) -> String {
    let mut text = String::with_capacity(96 + event.id.len());
    let (us, stage, id) = (now.as_micros(), printable(&event.stage_name), printable(&event.id));
    // A `String` takes everything.
    writeln!(text, "{what} {us} {stage} {} {} {id} {outcome}", event.attempt, event.fence).ok();
    text
}

fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Fenced => "fenced",
        Outcome::Failed(failure) => failure.class.as_str(),
    }
}

/// One line of an executions file, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// When.
    pub at: Timestamp,
    /// Name of the stage.
    pub stage: String,
    /// The attempt, 1 on the first.
    pub attempt: u32,
    /// The fence given to the handler.
    pub fence: u64,
    /// The event.
    pub event_id: String,
    /// `None`: the start; `Some`: the end, and its outcome's word.
    pub outcome: Option<String>,
}

impl Execution {
    /// Reads one line, without its newline; `None` when it is not one (as the last line of a file whose writer lost
    /// power may be).
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let ends = match fields.next()? {
            "start" => false,
            "end" => true,
            _ => return None,
        };
        let decode = |text: &str| Some(percent_encoding::percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let execution = Self {
            at: Timestamp::from_micros(fields.next()?.parse().ok()?),
            stage: decode(fields.next()?)?,
            attempt: fields.next()?.parse().ok()?,
            fence: fields.next()?.parse().ok()?,
            event_id: decode(fields.next()?)?,
            outcome: match (ends, fields.next()?) {
                (false, "-") => None,
                (true, word @ ("done" | "transient" | "permanent" | "poison" | "fenced")) => Some(word.to_owned()),
                _ => return None,
            },
        };
        fields.next().is_none().then_some(execution)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::handlers::testing::{EventBuilder, NOW};
    use crate::ladder::event::Failure;

    #[tokio::test]
    async fn start_and_end_of_an_execution_are_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        for fsync in [false, true] {
            let path = dir.path().join(format!("executions-{fsync}"));
            let event = EventBuilder::new().id("a b\n%é").attempt(3).stage(2, "retry-2").build();
            let executions = Executions::open(&path, fsync).unwrap();
            executions.start(&event, NOW).await.unwrap();
            executions.end(&event, NOW, &Outcome::Failed(Failure::permanent("no"))).await.unwrap();
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                "start 784111777000000 retry-2 3 7 a%20b%0A%25%C3%A9 -\n\
                 end 784111777000000 retry-2 3 7 a%20b%0A%25%C3%A9 permanent\n"
            );
        }
    }

    #[tokio::test]
    async fn an_existing_file_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("executions");
        for _ in 0..2 {
            let event = EventBuilder::new().build();
            Executions::open(&path, true).unwrap().start(&event, NOW).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn lines_of_many_tasks_and_openers_never_interleave() {
        let dir = tempfile::tempdir().unwrap();
        for fsync in [false, true] {
            let path = dir.path().join(format!("executions-{fsync}"));
            // Two openers, as two processes would be.
            let files = [(); 2].map(|()| Arc::new(Executions::open(&path, fsync).unwrap()));
            let tasks: Vec<_> = (0..200)
                .map(|n| {
                    let executions = files[n % 2].clone();
                    tokio::spawn(async move {
                        let event = EventBuilder::new().id(&format!("{n}-{}", "x".repeat(n * 7))).build();
                        executions.start(&event, NOW).await.unwrap();
                        tokio::task::yield_now().await;
                        executions.end(&event, NOW, &Outcome::Done).await.unwrap();
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let parsed: Vec<_> = text.lines().map(|line| Execution::parse(line).expect(line)).collect();
            assert_eq!(parsed.len(), 400);
            let ids: HashSet<_> = parsed.iter().map(|e| e.event_id.as_str()).collect();
            assert_eq!(ids.len(), 200);
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_names_the_file() {
        // Every write to it fails: no space left on device.
        let event = EventBuilder::new().build();
        for fsync in [false, true] {
            let executions = Executions::open(Path::new("/dev/full"), fsync).unwrap();
            let error = executions.start(&event, NOW).await.unwrap_err();
            assert!(error.to_string().starts_with("executions file /dev/full: "), "{error}");
        }
    }

    #[test]
    fn broken_lines_are_refused() {
        for line in [
            "",
            "start",
            "start 1 main 1 1 id",
            "start 1 main 1 1 id done",
            "end 1 main 1 1 id -",
            "end 1 main 1 1 id done more",
            "end 1 main one 1 id done",
            "begin 1 main 1 1 id -",
        ] {
            assert_eq!(Execution::parse(line), None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn every_line_reads_back(id: String, stage: String, attempt: u32, us: u64, ends: bool) {
            let event = EventBuilder::new().id(&id).stage(0, &stage).attempt(attempt).build();
            let (what, word) = if ends { ("end", "done") } else { ("start", "-") };
            let text = line(what, &event, Timestamp::from_micros(us), word);
            let expect = Execution {
                at: Timestamp::from_micros(us), stage, attempt, fence: 7, event_id: id,
                outcome: ends.then(|| "done".to_owned()),
            };
            prop_assert_eq!(Execution::parse(text.strip_suffix('\n').unwrap()), Some(expect));
        }

        #[test]
        fn any_other_line_is_none_of_an_execution(text in ".*|(start|end)( [0-9a-z%-]{0,9}){0,9}") {
            if Execution::parse(&text).is_some() {
                prop_assert_eq!(text.split(' ').count(), 7, "{}", text);
            }
        }
    }
}
