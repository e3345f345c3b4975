//! Logs on standard error, as text for people or JSON for machines.
//!
//! Levels by who must act: ERROR: data is at risk or somebody must act; WARN: it healed itself; INFO: what the process
//! is doing; DEBUG: single events. `RUST_LOG` overrides the filter. Lines about one event carry `trace_id`, `event_id`,
//! `correlation_id`, `stage` and `attempt`, as far as it has them.
//!
//! Invariant: no fault floods the log. Of a warning or error that repeats, [`REPEATS`] lines are written in each
//! [`WINDOW`]; how many more there were is told in one line once it is over, with the next line of any kind.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use super::handler_spans::HandlerSpans;

/// Lines of one warning or error that are written in a window.
pub const REPEATS: u64 = 10;
/// Begins with the first of these lines.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Different warnings that are told apart; beyond, all are forgotten and begin again.
const MAX_KINDS: usize = 1_000;
/// Bytes of a message that a summary shows.
const MAX_MESSAGE: usize = 200;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the whole process, and with `spans` the export of what handlers open; a second call changes nothing.
pub fn init(format: Format, spans: Option<&HandlerSpans>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,librdkafka=warn"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    let begin = Instant::now();
    let now = move || begin.elapsed();
    let result = match format {
        Format::Text => lines
            .event_format(Summarised::new(text(), format, now))
            .finish()
            .with(spans.map(HandlerSpans::layer))
            .try_init(),
        Format::Json => {
            let lines = lines.fmt_fields(JsonFields::new()).event_format(Summarised::new(json(), format, now));
            lines.finish().with(spans.map(HandlerSpans::layer)).try_init()
        }
    };
    // Somebody (a test, a program that uses the library) logs in its own way already.
    drop(result);
}

fn text() -> format::Format {
    format::format().with_target(false)
}

fn json() -> format::Format<format::Json> {
    format::format().json().flatten_event(true).with_current_span(false)
}

/// Writes lines by `inner`, and the repetitions of a fault as one.
struct Summarised<F, C> {
    inner: F,
    format: Format,
    /// Time since some fixed instant.
    now: C,
    faults: Mutex<HashMap<u64, Fault>>,
}

/// A warning or error in its window.
struct Fault {
    begin: Duration,
    lines: u64,
    level: Level,
    message: String,
}

impl<F, C: Fn() -> Duration> Summarised<F, C> {
    fn new(inner: F, format: Format, now: C) -> Self {
        Self { inner, format, now, faults: Mutex::default() }
    }

    /// Whether the line is to be written, and the faults whose window is over and that had more.
    fn take(&self, event: &Event<'_>) -> (bool, Vec<Fault>) {
        let (now, metadata) = ((self.now)(), event.metadata());
        let is_fault = *metadata.level() <= Level::WARN;
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let over = faults.extract_if(|_, fault| now.saturating_sub(fault.begin) >= WINDOW);
        let over = over.map(|(_, fault)| fault).filter(|fault| fault.lines > REPEATS).collect();
        if !is_fault {
            return (true, over);
        }
        let mut message = Message::default();
        event.record(&mut message);
        let mut hasher = DefaultHasher::new();
        metadata.callsite().hash(&mut hasher);
        message.0.hash(&mut hasher);
        if faults.len() >= MAX_KINDS {
            faults.clear();
        }
        let fault = faults.entry(hasher.finish()).or_insert_with(|| {
            let end = (0..=MAX_MESSAGE.min(message.0.len())).rev().find(|end| message.0.is_char_boundary(*end));
            message.0.truncate(end.unwrap_or(0));
            Fault { begin: now, lines: 0, level: *metadata.level(), message: message.0 }
        });
        fault.lines += 1;
        (fault.lines <= REPEATS, over)
    }

    fn summary(&self, fault: &Fault, writer: &mut Writer<'_>) -> fmt::Result {
        let Fault { level, message, lines, .. } = fault;
        let (more, seconds) = (lines - REPEATS, WINDOW.as_secs());
        match self.format {
            Format::Text => {
                SystemTime.format_time(writer)?;
                writeln!(writer, " {level:>5} {more} more times within {seconds} s: {message:?}")
            }
            Format::Json => {
                let mut time = String::new();
                SystemTime.format_time(&mut Writer::new(&mut time))?;
                let line = serde_json::json!({
                    "timestamp": time, "level": level.as_str(), "message": "a fault was repeated more often than it is written",
                    "of": message, "more": more, "seconds": seconds,
                });
                writeln!(writer, "{line}")
            }
        }
    }
}

impl<S, N, F, C> FormatEvent<S, N> for Summarised<F, C>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
    C: Fn() -> Duration,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (write, over) = self.take(event);
        over.iter().try_for_each(|fault| self.summary(fault, &mut writer))?;
        if write { self.inner.format_event(ctx, writer, event) } else { Ok(()) }
    }
}

/// The message of an event.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// The lines that `run` leaves; it is given the clock's seconds.
    fn lines(format: Format, run: impl FnOnce(&AtomicU64)) -> Vec<String> {
        let (captured, seconds) = (Captured::default(), Arc::new(AtomicU64::new(0)));
        let clock = Arc::clone(&seconds);
        let now = move || Duration::from_secs(clock.load(Ordering::Relaxed));
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(captured.clone());
        let run = || run(&seconds);
        match format {
            Format::Text => {
                let lines = lines.event_format(Summarised::new(text(), format, now));
                tracing::subscriber::with_default(lines.finish(), run);
            }
            Format::Json => {
                let lines = lines.fmt_fields(JsonFields::new()).event_format(Summarised::new(json(), format, now));
                tracing::subscriber::with_default(lines.finish(), run);
            }
        }
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_repeated_fault_is_summed_up_and_begins_anew_after_its_window() {
        let flood = |seconds: &AtomicU64| {
            (0..1_000).for_each(|n| tracing::warn!(n, "the broker is gone"));
            seconds.store(WINDOW.as_secs() - 1, Ordering::Relaxed);
            tracing::info!("too early");
            seconds.store(WINDOW.as_secs(), Ordering::Relaxed);
            tracing::info!("next");
            tracing::info!("after");
            tracing::warn!("the broker is gone");
        };
        let json = lines(Format::Json, flood);
        let read = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let repeats = REPEATS as usize;
        assert_eq!(json.len(), repeats + 5);
        let summary = read(&json[repeats + 1]);
        assert_eq!((&summary["level"], &summary["of"]), (&"WARN".into(), &"the broker is gone".into()));
        assert_eq!((&summary["more"], &summary["seconds"]), (&(1_000 - REPEATS).into(), &WINDOW.as_secs().into()));
        assert_eq!(read(&json[repeats + 2])["message"], "next");

        let text = lines(Format::Text, flood);
        assert_eq!(text.len(), repeats + 5);
        assert!(text[repeats + 1].contains(" WARN 990 more times within 60 s: \"the broker is gone\""), "{text:?}");
    }

    #[test]
    fn different_faults_and_lines_that_are_none_are_all_written() {
        let written = lines(Format::Json, |_| {
            for n in 0..100 {
                tracing::info!("again and again");
                tracing::error!("partition {n} is gone");
            }
        });
        assert_eq!(written.len(), 200);
    }

    #[test]
    fn hostile_messages_cannot_forge_a_summary_line() {
        let written = lines(Format::Text, |seconds| {
            (0..=REPEATS).for_each(|_| tracing::warn!("{}", format!("{}\n forged", "ä".repeat(99))));
            seconds.store(WINDOW.as_secs(), Ordering::Relaxed);
            tracing::info!("next");
        });
        assert!(written[written.len() - 2].contains(" WARN 1 more times within 60 s: "), "{written:?}");
    }
}
