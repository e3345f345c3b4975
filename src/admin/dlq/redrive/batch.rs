//! Letters on their way: copies, entries in the book and the job's progress, written together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Desk, Error, Order};
use crate::adapters::kafka::transactions::{self, Transactions};
use crate::admin::dlq::book::{self, Book, Job};
use crate::admin::dlq::letter::Letter;
use crate::ladder::event::Timestamp;
use crate::ladder::headers::{self, Redrive, Trace};
use crate::stage::ports::{Outgoing, Span, SpanKind, TraceContext};

/// A transaction that failed for a reason that may pass is tried again so often.
const TRIES: u32 = 5;
/// A job that waits tells this often that it is alive.
const SILENCE: Duration = Duration::from_secs(5);

/// A copy on its way, for its span.
struct Sent {
    context: TraceContext,
    parent: Option<TraceContext>,
    event_id: Arc<str>,
    key: Option<Bytes>,
    partition: Option<i32>,
}

/// What the next transaction holds.
pub(super) struct Batch<'d> {
    desk: &'d Desk,
    order: &'d Order,
    writer: &'d Transactions,
    /// Where the entries are written, and about which topic.
    pages: Arc<str>,
    book: &'d Book,
    letters: u64,
    records: Vec<Outgoing>,
    sent: Vec<Sent>,
    begun: Option<Timestamp>,
}

impl<'d> Batch<'d> {
    pub(super) fn new(desk: &'d Desk, order: &'d Order, writer: &'d Transactions, book: &'d Book) -> Self {
        let pages = Arc::clone(&desk.book_topic);
        Self { desk, order, writer, pages, book, letters: 0, records: Vec::new(), sent: Vec::new(), begun: None }
    }

    /// Letters in it.
    pub(super) fn len(&self) -> u64 {
        self.letters
    }

    /// Takes a letter in.
    pub(super) fn add(&mut self, job: &Job, letter: Letter) -> Result<(), Error> {
        let now = self.desk.clock.now().wall;
        let (partition, offset) = (letter.record.partition, letter.record.offset);
        if let Some(target) = self.order.target {
            let copy = self.copy(&letter, target, now)?.ok_or(Error::NoCopy { partition, offset })?;
            self.records.push(copy);
        }
        self.records.push(self.book.entry(&self.pages, partition, offset, job, now));
        self.letters += 1;
        self.begun.get_or_insert(now);
        Ok(())
    }

    /// Writes it and the progress that it makes.
    pub(super) fn write(&mut self, job: &mut Job) -> Result<(), Error> {
        if self.letters == 0 {
            return Ok(());
        }
        job.moved += self.letters;
        let mut records = std::mem::take(&mut self.records);
        self.commit(job, &mut records)?;
        self.tell_spans();
        self.letters = 0;
        Ok(())
    }

    /// Writes how the job stands; what was taken in waits on.
    pub(super) fn heartbeat(&self, job: &mut Job) -> Result<(), Error> {
        self.commit(job, &mut Vec::new())
    }

    fn commit(&self, job: &mut Job, records: &mut Vec<Outgoing>) -> Result<(), Error> {
        job.updated_ms = self.desk.clock.now().wall.floor_millis();
        records.push(book::job(&self.pages, job));
        let mut tries = 0;
        loop {
            tries += 1;
            match self.writer.write(&records.iter().collect::<Vec<_>>(), None) {
                Ok(()) => return Ok(()),
                Err(transactions::Error::Aborted(why)) if tries < TRIES => {
                    tracing::warn!(job = job.id, why, "nothing of a batch was written; trying it again");
                    std::thread::sleep(Duration::from_millis(200) * tries);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether nothing was told for a while.
    pub(super) fn is_silent(&self, job: &Job) -> bool {
        let now = self.desk.clock.now().wall.floor_millis();
        now.saturating_sub(job.updated_ms) > u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX)
    }

    /// `None`: it has no hop left, or no place to go.
    fn copy(&mut self, letter: &Letter, target: usize, now: Timestamp) -> Result<Option<Outgoing>, Error> {
        let Some(rung) = self.desk.ladder.rung(target) else { return Ok(None) };
        let record = &letter.record;
        let parent = record.trace();
        let context = self.desk.tracer.as_ref().and(parent).map(TraceContext::child);
        let traceparent = context.map(|context| context.to_string());
        let redrive = Redrive {
            ladder: &self.desk.ladder,
            envelope: &letter.envelope,
            target: rung,
            at: now,
            trace: traceparent.as_deref().map(|parent| Trace { parent, state: record.trace_state() }),
        };
        let Some(next) = headers::redriven(record.headers(), &redrive) else { return Ok(None) };
        let dlq = self.desk.ladder.dlq().index;
        let partition = (self.desk.partitions_of(target) == self.desk.partitions_of(dlq)).then_some(record.partition);
        let place = (record.partition, record.offset);
        let value = match self.order.corrected.get(&place) {
            Some(json) => Some(self.desk.corrected(place, record.value.as_deref(), json, self.order)?.value.into()),
            None => record.value.clone(),
        };
        let out = Outgoing {
            topic: Arc::clone(&rung.topic),
            partition,
            key: record.key.clone(),
            value,
            headers: record.headers_of_copy(next),
        };
        if let Some(context) = context.filter(|context| context.is_sampled()) {
            let event_id = Arc::clone(&letter.envelope.event_id);
            self.sent.push(Sent { context, parent, event_id, key: out.key.clone(), partition });
        }
        Ok(Some(out))
    }

    fn tell_spans(&mut self) {
        let (Some(tracer), Some(start)) = (&self.desk.tracer, self.begun.take()) else { return };
        let Some(rung) = self.order.target.and_then(|target| self.desk.ladder.rung(target)) else { return };
        for sent in self.sent.drain(..) {
            tracer.write(&Span {
                kind: SpanKind::Send,
                context: sent.context,
                parent: sent.parent,
                start,
                end: self.desk.clock.now().wall,
                topic: &rung.topic,
                partition: sent.partition,
                offset: None,
                key: sent.key.as_ref(),
                event_id: &sent.event_id,
                stage: None,
                due: None,
                error: None,
                action: None,
            });
        }
    }
}
