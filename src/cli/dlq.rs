//! `pipeline dlq …`: flags, questions and output. The work is [`crate::admin::dlq`]'s.
//!
//! Standard output carries the answer alone; progress, plans and questions go to standard error.

mod args;
mod correct;
mod print;

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use args::DlqArgs;
use args::{Action, DealArgs};

use super::progress::Meter;
use crate::adapters::kafka::admin::{self, Admin};
use crate::adapters::kafka::scan::{self, Seen};
use crate::adapters::otel::OtelTracer;
use crate::admin::dlq::book::{Book, Fate, Job, JobState};
use crate::admin::dlq::groups;
use crate::admin::dlq::letter::{Glance, Letter};
use crate::admin::dlq::redrive::{self, Desk, Order};
use crate::admin::dlq::select::Selection;
use crate::admin::dlq::sift::sift;
use crate::admin::dlq::view::View;
use crate::app::wire;
use crate::config::Config;
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::Tracer;

/// Letters that `list` shows to a person unless asked for more.
const PAGE: u64 = 50;

/// Why the command could not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A flag that cannot be used.
    #[error("{0}")]
    Usage(String),
    /// The DLQ.
    #[error(transparent)]
    Dlq(#[from] redrive::Error),
    /// Kafka does not answer, or refuses.
    #[error(transparent)]
    Kafka(#[from] admin::Error),
    /// A pipeline that cannot be built.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The collector's settings.
    #[error(transparent)]
    Traces(#[from] crate::telemetry::traces::Error),
    /// Input or output.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nothing matches.
    #[error("no such letter on the DLQ: {0}")]
    NotFound(String),
    /// Ended by a signal.
    #[error("interrupted")]
    Interrupted,
}

impl From<scan::Error> for Error {
    fn from(error: scan::Error) -> Self {
        Error::Dlq(error.into())
    }
}

impl Error {
    /// The process's exit code for this error: 64 flags, 69 not reachable or topics missing, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Kafka(error) => error.exit_code(),
            Error::Usage(_) | Error::Wire(_) | Error::Traces(_) => 64,
            Error::Dlq(redrive::Error::Scan(scan::Error::Config(_))) => 64,
            Error::Dlq(redrive::Error::Scan(scan::Error::Missing { .. } | scan::Error::Request { .. })) => 69,
            _ => 1,
        }
    }
}

/// Runs the command: whether everything asked for was done.
///
/// # Errors
/// When Kafka does not answer, a flag cannot be used, or the output is closed.
pub(crate) async fn run(args: DlqArgs, config: &Config) -> Result<bool, Error> {
    let pipeline = super::choose(config, args.pipeline.as_deref()).map_err(Error::Usage)?.clone();
    let reader = wire::reader(&pipeline, wire::registry(config)?.as_ref())?;
    let traces = wire::traces(config, "retry-ladder-dlq")?;
    let tracer = traces.as_ref().map(|traces| {
        Arc::new(OtelTracer::new(traces.queue(), wire::sampling(config), "retry-ladder-dlq")) as Arc<dyn Tracer>
    });
    // Says in plain words who refuses whom, which the requests on the DLQ do not.
    Admin::connect(wire::connection(config), config.kafka.startup_timeout).await?;
    let properties = wire::properties(config);
    let (ladder, id_source) = (Arc::new(wire::ladder(&pipeline)?), wire::id_source(&pipeline));
    let stop = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(130); // a second time: the transaction at hand is left to be aborted
                }
            }
        }
    });
    let work = tokio::task::spawn_blocking(move || {
        let desk = Desk::open(properties, ladder, id_source, reader, Arc::new(SystemClock), tracer)?;
        Command { desk, stop, pipeline: pipeline.name }.run(args.action)
    });
    let done = work.await.map_err(io::Error::other)?;
    if let Some(traces) = traces {
        let lost = traces.shutdown().await;
        if lost > 0 {
            super::note(&format!("{lost} spans were lost: the collector at telemetry.otlp_endpoint did not take them"));
        }
    }
    done
}

struct Command {
    desk: Desk,
    stop: Arc<AtomicBool>,
    pipeline: String,
}

impl Command {
    fn run(&self, action: Action) -> Result<bool, Error> {
        let now_ms = i64::try_from(SystemClock.now().wall.floor_millis()).unwrap_or(i64::MAX);
        match action {
            Action::Groups { select, json } => self.groups(&select.selection(now_ms)?, json),
            Action::List { select, json } => self.list(select.selection(now_ms)?, json),
            Action::Show { letter, json } => self.show(&letter, json),
            Action::Export { select } => self.export(&select.selection(now_ms)?),
            Action::Jobs { json } => print::jobs(self.desk.book()?.jobs().values(), json).map(|()| true),
            Action::Redrive(args) => {
                let (deal, order) = args.order(now_ms, &self.desk.ladder)?;
                let order = match &args.from {
                    Some(path) => correct::read(path, order, &self.desk)?,
                    None => order,
                };
                self.deal(&order, &deal)
            }
            Action::Discard(args) => {
                let (deal, order) = args.order(now_ms)?;
                self.deal(&order, &deal)
            }
        }
    }

    fn going_on(&self) -> ControlFlow<()> {
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn groups(&self, selection: &Selection, json: bool) -> Result<bool, Error> {
        let book = self.desk.book()?;
        let mut meter = Meter::new("dead letters read");
        let found = groups::groups(self.desk.scan()?, &book, selection, |progress| {
            meter.scan(progress);
            self.going_on()
        })?;
        meter.end();
        print::groups(&self.pipeline, &found.ok_or(Error::Interrupted)?, json)?;
        Ok(true)
    }

    /// Shows each selected letter, at most the selection's limit; whether there are more.
    fn each(
        &self,
        selection: &Selection,
        book: &Book,
        mut each: impl FnMut(Letter) -> io::Result<()> + Send,
    ) -> Result<bool, Error> {
        let mut scan = self.desk.scan()?;
        selection.narrow(&mut scan)?;
        let (mut shown, mut more, mut failed) = (0, false, None);
        let show = |glance: &Glance, seen: &Seen<'_>| {
            if selection.limit.is_some_and(|limit| shown >= limit) {
                more = true;
                return ControlFlow::Break(());
            }
            shown += 1;
            let fate = glance.fate.unwrap_or(Fate::Open);
            let letter = Letter::new(seen.to_record(), fate, &self.desk.ladder, &self.desk.id_source);
            failed = each(letter).err();
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let matches = |glance: &Glance, seen: &Seen<'_>| selection.matches(glance, seen);
        let ended = sift(&mut scan, book, matches, show, |_| self.going_on())?;
        match failed {
            // The reader has seen enough.
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Some(error) => Err(error.into()),
            None if !ended && !more => Err(Error::Interrupted),
            None => Ok(more),
        }
    }

    fn list(&self, mut selection: Selection, json: bool) -> Result<bool, Error> {
        let book = self.desk.book()?;
        let mut out = io::BufWriter::new(io::stdout());
        if json {
            self.each(&selection, &book, |letter| {
                serde_json::to_writer(&mut out, &letter.summary())?;
                writeln!(out)
            })?;
            out.flush()?;
            return Ok(true);
        }
        let page = *selection.limit.get_or_insert(PAGE);
        let mut letters = Vec::new();
        let more = self.each(&selection, &book, |letter| {
            letters.push(letter.summary());
            Ok(())
        })?;
        letters.sort_unstable_by_key(|letter| (letter.partition, letter.offset));
        print::list(&mut super::plain::Plain(&mut out), &letters)?;
        out.flush()?;
        if more {
            super::note(&format!("only the first {page} are shown; more with --limit, all with --json"));
        }
        Ok(true)
    }

    fn show(&self, which: &str, json: bool) -> Result<bool, Error> {
        let at = which.split_once(':').and_then(|(p, o)| Some((p.parse::<i32>().ok()?, o.parse::<i64>().ok()?)));
        let mut selection = Selection { limit: Some(1), ..Selection::default() };
        match at {
            Some((partition, offset)) => {
                selection.partition = Some(partition);
                selection.offsets = Some(offset..=offset);
            }
            // The last of an event that came several times is the one to look at.
            None => (selection.event_id, selection.limit) = (Some(which.to_owned()), None),
        }
        let mut found = None;
        self.each(&selection, &self.desk.book()?, |letter| {
            let at = |letter: &Letter| letter.record.timestamp_ms;
            if found.as_ref().is_none_or(|before| at(before) <= at(&letter)) {
                found = Some(letter);
            }
            Ok(())
        })?;
        let letter = found.ok_or_else(|| Error::NotFound(which.to_owned()))?;
        print::letter(&View::of(&letter, &self.desk.ladder, &self.desk.reader), json)?;
        Ok(true)
    }

    fn export(&self, selection: &Selection) -> Result<bool, Error> {
        let mut out = io::BufWriter::new(io::stdout());
        self.each(selection, &self.desk.book()?, |letter| {
            serde_json::to_writer(&mut out, &View::of(&letter, &self.desk.ladder, &self.desk.reader))?;
            writeln!(out)
        })?;
        out.flush()?;
        Ok(true)
    }

    fn deal(&self, order: &Order, deal: &DealArgs) -> Result<bool, Error> {
        let mut meter = Meter::new("dead letters read");
        let plan = self.desk.plan(order, |progress| {
            meter.scan(progress);
            self.going_on()
        })?;
        meter.end();
        let plan = plan.ok_or(Error::Interrupted)?;
        print::plan(&plan, order, &self.desk)?;
        if deal.dry_run {
            if deal.json {
                print::job(&plan.job)?;
            }
            return Ok(true);
        }
        if plan.job.planned == 0 {
            super::note("nothing to do");
        } else {
            super::confirm(deal.yes).map_err(Error::Usage)?;
        }
        let mut meter = Meter::new(if order.target.is_some() { "letters redriven" } else { "letters discarded" });
        let job = match plan.job.planned {
            0 => Job { state: JobState::Done, ..plan.job },
            _ => self.desk.execute(plan, order, &self.stop, |job| meter.job(job))?,
        };
        meter.end();
        if deal.json {
            print::job(&job)?;
        } else {
            print::ended(&job);
        }
        Ok(job.state == JobState::Done)
    }
}
