//! What is known of one pipeline's DLQ between requests: a desk once Kafka has answered, the book, the groups.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::answer::Refused;
use super::ask::PageAsk;
use super::work::Works;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::scan::{self, Progress, Scan};
use crate::admin::dlq::book::Book;
use crate::admin::dlq::catalog::Catalog;
use crate::admin::dlq::groups::Group;
use crate::admin::dlq::page::Place;
use crate::admin::dlq::redrive::{self, Desk};
use crate::admin::dlq::select::Selection;
use crate::admin::dlq::standing::Standing;
use crate::app::wire;
use crate::config::{Config, Pipeline};
use crate::ladder::headers::IdSource;
use crate::ladder::rungs::Ladder;
use crate::messages::Reader;
use crate::stage::clock::{Clock as _, SystemClock};
use crate::stage::ports::Tracer;

/// Groups that are sent to a page.
const MAX_SHOWN: usize = 500;
/// Groups that are older are counted again when somebody asks.
const FRESH: Duration = Duration::from_secs(1);
/// Kafka is not asked again so soon after it did not answer.
const AWAY: Duration = Duration::from_secs(3);
/// What was counted so long ago still tells where letters are.
const KNOWN: Duration = Duration::from_secs(15);
/// While the DLQ is read, what is known is told so often.
const SLICE: Duration = Duration::from_secs(1);

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> i64 {
    i64::try_from(SystemClock.now().wall.floor_millis()).unwrap_or(i64::MAX)
}

/// Nothing that is locked here is left half changed by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One pipeline's DLQ.
pub(super) struct Shelf {
    pub(super) name: String,
    pub(super) ladder: Arc<Ladder>,
    pub(super) reader: Reader,
    pub(super) works: Works,
    pub(super) properties: Properties,
    /// Where pauses are ordered.
    pub(super) control_topic: String,
    id_source: IdSource,
    tracer: Option<Arc<dyn Tracer>>,
    contact: Mutex<Contact>,
    shown: Mutex<Shown>,
}

/// What Kafka said last.
#[derive(Default)]
struct Contact {
    desk: Option<Arc<Desk>>,
    standing: Standing,
    /// When it did not answer, and what came of it.
    failed: Option<(Instant, Arc<str>)>,
}

/// Nothing is to be seen, and why.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It was asked.
    #[error(transparent)]
    Dlq(#[from] redrive::Error),
    /// It did not answer a moment ago.
    #[error("{0}")]
    Away(Arc<str>),
}

impl From<scan::Error> for Error {
    fn from(error: scan::Error) -> Self {
        Error::Dlq(error.into())
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            Error::Dlq(error) => error.into(),
            Error::Away(why) => Refused::new(StatusCode::BAD_GATEWAY, &*why),
        }
    }
}

/// The groups as they were counted last.
#[derive(Default)]
struct Shown {
    /// Away while it is read.
    catalog: Option<(Catalog, Scan)>,
    reading: bool,
    progress: Progress,
    error: Option<String>,
    groups: Vec<Group>,
    left_out: u64,
    /// The version of the book that they were counted with.
    version: Option<u64>,
    at: Option<Instant>,
    at_ms: i64,
}

impl Shelf {
    pub(super) fn new(
        config: &Config,
        pipeline: &Pipeline,
        tracer: Option<Arc<dyn Tracer>>,
    ) -> Result<Self, wire::Error> {
        Ok(Self {
            name: pipeline.name.clone(),
            ladder: Arc::new(wire::ladder(pipeline)?),
            reader: wire::reader(pipeline, wire::registry(config)?.as_ref())?,
            works: Works::default(),
            properties: wire::properties(config),
            control_topic: wire::topics(pipeline).control_topic(),
            id_source: wire::id_source(pipeline),
            tracer,
            contact: Mutex::default(),
            shown: Mutex::default(),
        })
    }

    /// What a page has to know of it first.
    pub(super) fn about(&self) -> Value {
        let stages = self.ladder.rungs().iter().map(|rung| {
            json!({ "stage": &*rung.name, "topic": &*rung.topic, "delay_ms": rung.delay.map(|d| d.as_millis() as u64) })
        });
        json!({
            "name": self.name,
            "topic": &**self.ladder.topic(),
            "group": &**self.ladder.group(),
            "message": self.reader.message(),
            "stages": stages.collect::<Vec<_>>(),
        })
    }

    /// The desk, opened with the first call that Kafka answers. Blocks.
    pub(super) fn desk(&self) -> Result<Arc<Desk>, Error> {
        if let Some(desk) = &lock(&self.contact).desk {
            return Ok(Arc::clone(desk));
        }
        self.ask(|desk, _| Arc::clone(desk))
    }

    /// What was dealt with until now. Blocks.
    pub(super) fn book(&self) -> Result<Arc<Book>, Error> {
        self.ask(|_, standing| Arc::clone(standing.book()))
    }

    /// Looks at the book and the ends of the DLQ. Those who wait while Kafka does not answer are told so together, and
    /// not one after the other.
    fn ask<T>(&self, take: impl FnOnce(&Arc<Desk>, &Standing) -> T) -> Result<T, Error> {
        let mut contact = lock(&self.contact);
        if let Some((at, why)) = &contact.failed
            && at.elapsed() < AWAY
        {
            return Err(Error::Away(Arc::clone(why)));
        }
        let looked = self.look(&mut contact);
        contact.failed = looked.as_ref().err().map(|error| (Instant::now(), error.to_string().into()));
        let desk = looked?;
        Ok(take(&desk, &contact.standing))
    }

    fn look(&self, contact: &mut Contact) -> Result<Arc<Desk>, Error> {
        let desk = match contact.desk.take() {
            Some(desk) => desk,
            None => {
                let (properties, ladder) = (self.properties.clone(), Arc::clone(&self.ladder));
                let (id_source, reader) = (self.id_source.clone(), self.reader.clone());
                Arc::new(Desk::open(properties, ladder, id_source, reader, Arc::new(SystemClock), self.tracer.clone())?)
            }
        };
        contact.desk = Some(Arc::clone(&desk));
        contact.standing.refresh(&desk.properties, desk.topic(), &desk.book_topic)?;
        Ok(desk)
    }

    /// Where the letters of a page are, and the first of the next page, when that is known: a group's, with or without a
    /// fate, while its letters are counted now and then.
    pub(super) fn places(&self, ask: &PageAsk, book: &Book) -> Option<(Vec<Place>, Option<Place>)> {
        let fingerprint = ask.selection.fingerprint?;
        let plain = Selection { fingerprint: Some(fingerprint), state: ask.selection.state, ..Selection::default() };
        let shown = lock(&self.shown);
        let is_fresh = shown.at.is_some_and(|at| at.elapsed() < KNOWN);
        let (catalog, _) = shown.catalog.as_ref().filter(|_| is_fresh && ask.selection == plain)?;
        let mut places = catalog.places(fingerprint, plain.state, book, ask.from, ask.size + 1);
        let next = if places.len() > ask.size { places.pop() } else { None };
        Some((places, next))
    }

    /// The groups as far as they are known; has them counted again when that was a while ago.
    pub(super) fn groups(self: &Arc<Self>) -> Value {
        let mut shown = lock(&self.shown);
        if !shown.reading && shown.at.is_none_or(|at| at.elapsed() >= FRESH) {
            shown.reading = true;
            let shelf = Arc::clone(self);
            tokio::task::spawn_blocking(move || shelf.read_groups());
        }
        let open: u64 = shown.groups.iter().map(|group| group.open).sum();
        let more: u64 = shown.groups.iter().skip(MAX_SHOWN).map(|group| group.count).sum();
        json!({
            "reading": shown.reading,
            "read": shown.progress.read,
            "total": shown.progress.total,
            "known": shown.at.is_some(),
            "at_ms": shown.at_ms,
            "error": shown.error,
            "open": open,
            "groups": &shown.groups[..shown.groups.len().min(MAX_SHOWN)],
            "more_groups": shown.groups.len().saturating_sub(MAX_SHOWN),
            "more_letters": more,
            "left_out": shown.left_out,
        })
    }

    fn read_groups(&self) {
        let done = self.read_slices();
        let mut shown = lock(&self.shown);
        shown.reading = false;
        shown.error = done.err().map(|error| error.to_string());
        if shown.error.is_some() {
            shown.at = shown.at.map(|_| Instant::now()); // not again at once
        }
    }

    fn read_slices(&self) -> Result<(), Error> {
        let desk = self.desk()?;
        let kept = lock(&self.shown).catalog.take();
        let (mut catalog, mut scan) = match kept {
            Some(kept) => kept,
            None => (Catalog::default(), desk.scan()?),
        };
        let mut before = 0;
        loop {
            let (book, version) = self.ask(|_, standing| (Arc::clone(standing.book()), standing.version()))?;
            let (until, mut passed) = (Instant::now() + SLICE, Progress::default());
            let ended = catalog.refresh(&mut scan, &book, |progress| {
                passed = progress;
                let (read, total) = (before + progress.read, before + progress.total);
                lock(&self.shown).progress = Progress { read, total };
                if Instant::now() < until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            before += passed.read;
            let is_known = lock(&self.shown).version == Some(version);
            let groups = (catalog.take_changed() || !is_known).then(|| catalog.groups(&book));
            let mut shown = lock(&self.shown);
            shown.groups = groups.unwrap_or_else(|| std::mem::take(&mut shown.groups));
            (shown.left_out, shown.version) = (catalog.left_out(), Some(version));
            (shown.at, shown.at_ms) = (Some(Instant::now()), now_ms());
            if ended {
                shown.catalog = Some((catalog, scan));
                return Ok(());
            }
        }
    }
}
