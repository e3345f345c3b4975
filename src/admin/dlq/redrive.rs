//! Deals with selected letters: sends copies of them back into the ladder, or puts them aside.
//!
//! Every letter's copy and its entry in the book are written in one transaction, and opening the DLQ's transactional id
//! ends whoever had it: a kill at any moment, a second operator or a double click cannot send a letter twice. A job that
//! was killed is gone on with by asking for the same again: what it did is in the book.
//!
//! A job looks at the letters that were there when it was planned; copies that come back are new letters.
//! Everything here blocks its thread.

mod batch;
mod pace;
mod paused;
mod relapse;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::book::{Book, Fate, Job, JobState};
use super::letter::{Glance, Letter, Summary};
use super::select::Selection;
use super::sift::sift;
use super::view::block_on;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::producer;
use crate::adapters::kafka::scan::{self, Progress, Scan};
use crate::adapters::kafka::transactions::{self, Transactions};
use crate::ladder::headers::IdSource;
use crate::ladder::rungs::Ladder;
use crate::messages::{Corrected, ReadError, Reader};
use crate::stage::clock::Clock;
use crate::stage::ports::Tracer;
use batch::Batch;
use pace::Pace;
use paused::Paused;
use relapse::Relapses;

/// Letters shown with a plan.
const SAMPLE: usize = 5;
/// A running job that told nothing for so long was killed.
const ALIVE: Duration = Duration::from_secs(15);

/// Nothing was done, or nothing more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A topic cannot be read.
    #[error(transparent)]
    Scan(#[from] scan::Error),
    /// Nothing can be written.
    #[error(transparent)]
    Write(#[from] transactions::Error),
    /// Somebody else is at it.
    #[error(
        "job {id} of {who} is at work on this DLQ ({moved} of {planned}); wait for its end, or take over with \
         --take-over: it stops then"
    )]
    Busy {
        /// Its name.
        id: String,
        /// Who asked for it.
        who: String,
        /// Letters dealt with.
        moved: u64,
        /// Letters selected.
        planned: u64,
    },
    /// The framing of a letter's value cannot be read, so no other message can be put behind it; or what is to be put
    /// there is not such a message.
    #[error("letter {partition}:{offset} cannot be corrected: {why}")]
    NotCorrected {
        /// Partition on the DLQ.
        partition: i32,
        /// Offset in that partition.
        offset: i64,
        /// What is wrong with it.
        why: ReadError,
    },
    /// The copy of a letter has no hop left, or no place to go.
    #[error("letter {partition}:{offset} cannot be sent back: its hops are at their limit")]
    NoCopy {
        /// Partition on the DLQ.
        partition: i32,
        /// Offset in that partition.
        offset: i64,
    },
}

/// The DLQ of one pipeline, and what is needed to send its letters back.
#[derive(Clone)]
pub struct Desk {
    /// How to reach Kafka.
    pub properties: Properties,
    /// The ladder whose DLQ it is.
    pub ladder: Arc<Ladder>,
    /// Where ids come from on records that are not ours.
    pub id_source: IdSource,
    /// The compacted topic of the book.
    pub book_topic: Arc<str>,
    /// Reads the letters' values.
    pub reader: Reader,
    /// Partitions of each of the ladder's topics, by rung: a copy keeps its number where the target has as many.
    pub partitions: Vec<i32>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Takes a span for each copy whose event is traced.
    pub tracer: Option<Arc<dyn Tracer>>,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Which letters; only open ones are dealt with, whatever it says.
    pub selection: Selection,
    /// The rung to send them to; `None` puts them aside.
    pub target: Option<usize>,
    /// As the user said it: `start`, `main`, or a stage's name.
    pub to: Option<String>,
    /// Why they are put aside.
    pub reason: Option<String>,
    /// At most so many a second.
    pub rate: Option<f64>,
    /// Stop when more than this share of the copies came back to the DLQ, 0 to 1; `None`: never.
    pub stop_at: Option<f64>,
    /// Other messages, as JSON, for the letters at these partitions and offsets, each put behind the framing of the
    /// letter's own value; when there are any, only these letters are meant.
    pub corrected: HashMap<(i32, i64), String>,
    /// Drop fields of a corrected letter that its declaration does not have; they are kept otherwise.
    pub drop_unknown: bool,
    /// Who asks.
    pub who: String,
    /// Stop a job that is at work.
    pub take_over: bool,
}

/// What would be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The job, not begun.
    pub job: Job,
    /// Letters that match and were dealt with before.
    pub already: u64,
    /// The first letters.
    pub sample: Vec<Summary>,
    /// Fields of corrected letters that their declaration does not have, with the number of letters: kept or dropped, as
    /// the order says.
    pub unknown: BTreeMap<String, u64>,
}

impl Desk {
    /// Asks Kafka for the partitions of the ladder's topics.
    ///
    /// # Errors
    /// When Kafka does not answer or one of the topics is missing.
    pub fn open(
        properties: Properties,
        ladder: Arc<Ladder>,
        id_source: IdSource,
        reader: Reader,
        clock: Arc<dyn Clock>,
        tracer: Option<Arc<dyn Tracer>>,
    ) -> Result<Self, Error> {
        let topics: Vec<&str> = ladder.rungs().iter().map(|rung| &*rung.topic).collect();
        let partitions = scan::partitions(&properties, &topics)?;
        let book_topic = Arc::clone(ladder.redrive_topic());
        Ok(Self { properties, ladder, id_source, book_topic, reader, partitions, clock, tracer })
    }

    /// The topic of the letters.
    pub fn topic(&self) -> &str {
        &self.ladder.dlq().topic
    }

    /// What was dealt with so far.
    ///
    /// # Errors
    /// When Kafka does not answer, or the book's topic is missing.
    pub fn book(&self) -> Result<Book, Error> {
        Ok(Book::read(&self.properties, &self.book_topic, self.topic())?)
    }

    /// The letters that are there now.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn scan(&self) -> Result<Scan, Error> {
        Ok(Scan::open(&self.properties, self.topic())?)
    }

    /// Counts what an order would deal with; `None` when `progress` broke off. Changes nothing.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn plan(
        &self,
        order: &Order,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<Plan>, Error> {
        let book = self.book()?;
        let mut scan = self.scan()?;
        let until = scan.bounds().iter().map(|(partition, bounds)| (*partition, bounds.high)).collect();
        let (mut planned, mut already, mut sample, mut unknown) = (0, 0, Vec::new(), BTreeMap::new());
        let ended = self.each(&mut scan, order, &book, progress, |glance, seen| {
            if glance.fate != Some(Fate::Open) {
                already += 1;
                return Ok(ControlFlow::Continue(()));
            }
            let place = (glance.partition, glance.offset);
            if let Some(json) = order.corrected.get(&place) {
                // Before anything is done.
                for field in self.corrected(place, seen.value(), json, order)?.unknown {
                    *unknown.entry(field).or_default() += 1;
                }
            }
            planned += 1;
            if sample.len() < SAMPLE {
                let letter = Letter::new(seen.to_record(), Fate::Open, &self.ladder, &self.id_source);
                sample.push(letter.summary());
            }
            Ok(match order.selection.limit {
                Some(limit) if planned >= limit => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        })?;
        let now = self.clock.now().wall.floor_millis();
        let job = Job {
            id: format!("{now:x}-{:04x}", fastrand::u16(..)),
            fate: if order.target.is_some() { Fate::Redriven } else { Fate::Discarded },
            who: order.who.clone(),
            selection: match order.corrected.len() {
                0 => order.selection.to_string(),
                n if order.selection == Selection::default() => format!("corrected letters: {n}"),
                n => format!("corrected letters: {n}, {}", order.selection),
            },
            to: order.to.clone(),
            reason: order.reason.clone(),
            started_ms: now,
            updated_ms: now,
            state: JobState::Running,
            planned,
            moved: 0,
            relapsed: 0,
            until,
        };
        Ok(ended.then_some(Plan { job, already, sample, unknown }))
    }

    /// Does what was planned, until it is done, a limit of the order is met, or `stop` is set. The job as it ended.
    ///
    /// # Errors
    /// When Kafka does not answer, or somebody else is at it. What was done until then is in the book.
    pub fn execute(
        &self,
        plan: Plan,
        order: &Order,
        stop: &AtomicBool,
        mut told: impl FnMut(&Job) + Send,
    ) -> Result<Job, Error> {
        let mut job = plan.job;
        if !order.take_over {
            self.nobody_at_it()?;
        }
        let batch_size = producer::Options::default().batch_size;
        let writer = Transactions::open(&self.properties, &format!("{}.{}", self.book_topic, "writer"), batch_size)?;
        // Nothing of another job can be written from here on, and all that it wrote can be read.
        let book = self.book()?;
        let mut relapses = Relapses::watch(self, order, &job)?;
        let mut paused = Paused::follow(self, order);
        let mut pace = Pace::new(order.rate);
        let mut batch = Batch::new(self, order, &writer, &book);
        batch.heartbeat(&mut job)?;

        let mut scan = self.scan()?;
        scan.until(&job.until);
        let mut halted = paused.since();
        if halted.is_some() {
            scan.until(&BTreeMap::new()); // not a letter
        }
        let ended = self.each(
            &mut scan,
            order,
            &book,
            |_| ControlFlow::Continue(()),
            |glance, seen| {
                if glance.fate != Some(Fate::Open) {
                    return Ok(ControlFlow::Continue(()));
                }
                batch.add(&job, Letter::new(seen.to_record(), Fate::Open, &self.ladder, &self.id_source))?;
                let last = order.selection.limit.is_some_and(|limit| job.moved + batch.len() >= limit);
                if batch.len() < pace.batch() && !last {
                    return Ok(ControlFlow::Continue(()));
                }
                while !pace.ready(batch.len()) && !stop.load(Ordering::Relaxed) {
                    pace.wait();
                    if batch.is_silent(&job) {
                        batch.heartbeat(&mut job)?;
                    }
                }
                if !stop.load(Ordering::Relaxed) {
                    batch.write(&mut job)?;
                    job.relapsed = relapses.count()?;
                    told(&job);
                    halted = paused.since();
                }
                let go_on = !last && !stop.load(Ordering::Relaxed) && !relapses.too_many(&job) && halted.is_none();
                Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            },
        )?;

        if ended && halted.is_none() && !stop.load(Ordering::Relaxed) {
            batch.write(&mut job)?;
        }
        job.relapsed = relapses.count()?;
        job.state = if stop.load(Ordering::Relaxed) {
            JobState::Stopped("interrupted; asking for the same again goes on with the rest".to_owned())
        } else if relapses.too_many(&job) && job.moved < job.planned {
            JobState::Stopped(format!("{} of {} copies came back to the DLQ", job.relapsed, job.moved))
        } else if let Some(why) = halted.filter(|_| job.moved < job.planned) {
            JobState::Stopped(why)
        } else {
            JobState::Done
        };
        batch.heartbeat(&mut job)?;
        told(&job);
        Ok(job)
    }

    /// Whether an earlier job still tells of itself.
    fn nobody_at_it(&self) -> Result<(), Error> {
        let now = self.clock.now().wall.floor_millis();
        let alive = |job: &&Job| {
            job.state == JobState::Running
                && now.saturating_sub(job.updated_ms) < u64::try_from(ALIVE.as_millis()).unwrap_or(u64::MAX)
        };
        match self.book()?.jobs().values().find(alive) {
            Some(job) => {
                Err(Error::Busy { id: job.id.clone(), who: job.who.clone(), moved: job.moved, planned: job.planned })
            }
            None => Ok(()),
        }
    }

    /// Shows every letter that the order means, whatever its fate.
    fn each(
        &self,
        scan: &mut Scan,
        order: &Order,
        book: &Book,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
        mut each: impl FnMut(&Glance, &scan::Seen<'_>) -> Result<ControlFlow<()>, Error> + Send,
    ) -> Result<bool, Error> {
        order.selection.narrow(scan)?;
        let mut failed = None;
        let mut broke_off = false;
        let is_meant = |glance: &Glance, seen: &scan::Seen<'_>| {
            (order.corrected.is_empty() || order.corrected.contains_key(&(glance.partition, glance.offset)))
                && order.selection.matches(glance, seen)
        };
        let each = |glance: &Glance, seen: &scan::Seen<'_>| {
            let flow = each(glance, seen).unwrap_or_else(|error| {
                failed = Some(error);
                ControlFlow::Break(())
            });
            broke_off |= flow.is_break();
            flow
        };
        let ended = sift(scan, book, is_meant, each, progress)?;
        match failed {
            Some(error) => Err(error),
            // Enough was seen: that is an end, too.
            None => Ok(ended || broke_off),
        }
    }

    /// A letter's value with another message in it. Blocks while a schema is asked for.
    fn corrected(
        &self,
        (partition, offset): (i32, i64),
        value: Option<&[u8]>,
        json: &str,
        order: &Order,
    ) -> Result<Corrected, Error> {
        let corrected = block_on(self.reader.with_json(value.unwrap_or_default(), json, order.drop_unknown));
        corrected.map_err(|why| Error::NotCorrected { partition, offset, why })
    }

    /// Partitions of a rung's topic.
    fn partitions_of(&self, rung: usize) -> i32 {
        self.partitions.get(rung).copied().unwrap_or_default()
    }

    /// Ends of the letters' topic that a job looks at.
    fn ends(job: &Job) -> &BTreeMap<i32, i64> {
        &job.until
    }
}
