//! The book of the dead letters that somebody dealt with, and of the jobs that did: the compacted redrive topic.
//!
//! A letter is named by its partition and offset on the DLQ. `record/<partition>/<offset>` says what became of it,
//! `job/<id>` what somebody asked for and how far it is; the last word under a key counts. Both are written in the same
//! transaction as the copies that they tell of, so the book is never wrong about a letter.
//!
//! Offsets begin anew when a DLQ is deleted and made again. So an entry carries the id of the topic that it was written
//! about, and counts for that topic alone; one without an id (brokers before 2.8 have none) counts for any.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::offsets::Offsets;
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::scan::{self, Scan};
use crate::ladder::event::Timestamp;
use crate::stage::ports::Outgoing;

/// What became of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Nothing yet.
    Open,
    /// It was sent back into the ladder.
    Redriven,
    /// Somebody said that nothing needs to be done.
    Discarded,
}

impl Fate {
    /// The word used in output and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Fate::Open => "open",
            Fate::Redriven => "redriven",
            Fate::Discarded => "discarded",
        }
    }
}

/// How a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// At work, or killed at it.
    Running,
    /// Every selected letter was dealt with.
    Done,
    /// It ended before that: why.
    Stopped(String),
}

/// What somebody asked for, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// What becomes of the letters.
    pub fate: Fate,
    /// Who asked, as far as the process knows.
    pub who: String,
    /// The selection, as flags.
    pub selection: String,
    /// Where to, for a redrive: `start`, `main` or the name of a stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, for a discard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Unix ms.
    pub started_ms: u64,
    /// Unix ms of the last progress.
    pub updated_ms: u64,
    /// How it stands.
    pub state: JobState,
    /// Letters that were selected when it began.
    pub planned: u64,
    /// Letters dealt with so far.
    pub moved: u64,
    /// Copies that came back to the DLQ so far.
    pub relapsed: u64,
    /// One past the last offset of each partition of the DLQ when it began: what comes later is none of its business.
    pub until: BTreeMap<i32, i64>,
}

/// What stands under `record/…`.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    state: Fate,
    job: String,
    at_ms: u64,
    /// Of the topic that the letter was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic_id: Option<String>,
}

/// All that was dealt with.
#[derive(Clone, Debug, Default)]
pub struct Book {
    topic_id: Option<String>,
    redriven: Offsets,
    discarded: Offsets,
    jobs: BTreeMap<String, Job>,
}

impl Book {
    /// An empty book about the topic with this id; `None`: entries count whatever topic they were written about.
    pub fn about(topic_id: Option<String>) -> Self {
        Self { topic_id, ..Self::default() }
    }

    /// Reads the whole `topic`, as a book about the topic `letters`. Blocks.
    ///
    /// # Errors
    /// When the topic is missing or Kafka does not answer.
    pub fn read(properties: &Properties, topic: &str, letters: &str) -> Result<Self, scan::Error> {
        let mut pages = Scan::open(properties, topic)?;
        let mut book = Self::about(pages.id_of(letters));
        pages.run(
            |seen| {
                book.note(seen.key(), seen.value());
                ControlFlow::Continue(())
            },
            |_| ControlFlow::Continue(()),
        )?;
        Ok(book)
    }

    /// Id of the topic that it is about, where the brokers tell one.
    pub fn topic_id(&self) -> Option<&str> {
        self.topic_id.as_deref()
    }

    /// What became of a letter.
    pub fn fate(&self, partition: i32, offset: i64) -> Fate {
        if self.redriven.contains(partition, offset) {
            Fate::Redriven
        } else if self.discarded.contains(partition, offset) {
            Fate::Discarded
        } else {
            Fate::Open
        }
    }

    /// Letters dealt with within these bounds.
    pub fn count(&self, fate: Fate, bounds: &BTreeMap<i32, scan::Bounds>) -> u64 {
        let offsets = match fate {
            Fate::Open => return 0,
            Fate::Redriven => &self.redriven,
            Fate::Discarded => &self.discarded,
        };
        bounds.iter().map(|(partition, b)| offsets.count(*partition, b.low..b.high)).sum()
    }

    /// The jobs, by id.
    pub fn jobs(&self) -> &BTreeMap<String, Job> {
        &self.jobs
    }

    /// Takes in one record of the topic; what is none of ours is passed over.
    pub fn note(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let Some(key) = key.and_then(|key| std::str::from_utf8(key).ok()) else { return };
        if let Some(id) = key.strip_prefix("job/") {
            match value.and_then(|value| serde_json::from_slice::<Job>(value).ok()) {
                Some(job) => drop(self.jobs.insert(id.to_owned(), job)),
                None => drop(self.jobs.remove(id)),
            }
        } else if let Some((partition, offset)) = key.strip_prefix("record/").and_then(|at| at.split_once('/')) {
            let (Ok(partition), Ok(offset)) = (partition.parse(), offset.parse()) else { return };
            self.redriven.remove(partition, offset);
            self.discarded.remove(partition, offset);
            let entry = value.and_then(|value| serde_json::from_slice::<Entry>(value).ok());
            let is_other = |id: &String| self.topic_id.as_ref().is_some_and(|ours| ours != id);
            let entry = entry.filter(|entry| !entry.topic_id.as_ref().is_some_and(is_other));
            match entry.map(|entry| entry.state) {
                Some(Fate::Redriven) => self.redriven.insert(partition, offset),
                Some(Fate::Discarded) => self.discarded.insert(partition, offset),
                Some(Fate::Open) | None => {}
            }
        }
    }
}

impl Book {
    /// The record that says what became of a letter.
    pub(super) fn entry(&self, topic: &Arc<str>, partition: i32, offset: i64, job: &Job, at: Timestamp) -> Outgoing {
        let topic_id = self.topic_id.clone();
        let entry = Entry { state: job.fate, job: job.id.clone(), at_ms: at.floor_millis(), topic_id };
        keyed(topic, format!("record/{partition}/{offset}"), &entry)
    }
}

/// The record that says how a job stands.
pub(super) fn job(topic: &Arc<str>, job: &Job) -> Outgoing {
    keyed(topic, format!("job/{}", job.id), job)
}

fn keyed(topic: &Arc<str>, key: String, value: &impl Serialize) -> Outgoing {
    // A struct of texts and numbers always has a JSON form.
    let value = serde_json::to_vec(value).unwrap_or_default();
    Outgoing {
        topic: Arc::clone(topic),
        partition: Some(0),
        key: Some(key.into()),
        value: Some(Bytes::from(value)),
        headers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::admin::dlq) fn sample(id: &str, fate: Fate) -> Job {
        Job {
            id: id.into(),
            fate,
            who: "ann@till-4".into(),
            selection: "--class permanent".into(),
            to: Some("start".into()),
            reason: None,
            started_ms: 1,
            updated_ms: 2,
            state: JobState::Running,
            planned: 3,
            moved: 1,
            relapsed: 0,
            until: BTreeMap::from([(0, 10)]),
        }
    }

    fn note(book: &mut Book, record: &Outgoing) {
        book.note(record.key.as_deref(), record.value.as_deref());
    }

    #[test]
    fn the_last_word_about_a_letter_and_a_job_counts() {
        let topic: Arc<str> = "t".into();
        let mut book = Book::default();
        let (redrive, discard) = (sample("r", Fate::Redriven), sample("d", Fate::Discarded));
        let writer = Book::default();
        let entry = |partition, job| writer.entry(&topic, partition, 5, job, Timestamp::default());
        note(&mut book, &entry(0, &discard));
        note(&mut book, &entry(1, &redrive));
        note(&mut book, &entry(0, &redrive));
        assert_eq!([book.fate(0, 5), book.fate(1, 5), book.fate(0, 6)], [Fate::Redriven, Fate::Redriven, Fate::Open]);
        let bounds = BTreeMap::from([(0, scan::Bounds { low: 0, high: 10 })]);
        assert_eq!((book.count(Fate::Redriven, &bounds), book.count(Fate::Discarded, &bounds)), (1, 0));

        note(&mut book, &job(&topic, &redrive));
        let done = Job { state: JobState::Stopped("relapse".into()), moved: 3, ..redrive };
        note(&mut book, &job(&topic, &done));
        assert_eq!(book.jobs().values().collect::<Vec<_>>(), [&done]);
        book.note(Some(b"job/r"), None);
        book.note(Some(b"record/0/5"), None);
        assert!(book.jobs().is_empty());
        assert_eq!(book.fate(0, 5), Fate::Open);
    }

    #[test]
    fn an_entry_counts_for_the_topic_that_it_was_written_about() {
        let check = |writer: Option<&str>, reader: Option<&str>, counts: bool| {
            let writer = Book::about(writer.map(str::to_owned));
            let mut book = Book::about(reader.map(str::to_owned));
            note(&mut book, &writer.entry(&"t".into(), 0, 5, &sample("r", Fate::Redriven), Timestamp::default()));
            assert_eq!(book.fate(0, 5) == Fate::Redriven, counts, "{writer:?} {book:?}");
        };
        check(Some("one"), Some("one"), true);
        check(Some("one"), Some("two"), false);
        // Rather left alone than redriven twice.
        check(None, Some("two"), true);
        check(Some("one"), None, true);
    }

    #[test]
    fn what_is_none_of_ours_is_passed_over() {
        let mut book = Book::default();
        for (key, value) in
            [("record/x/1", "{}"), ("record/1", "{}"), ("record/0/1", "[]"), ("other", "{}"), ("job/a", "{}")]
        {
            book.note(Some(key.as_bytes()), Some(value.as_bytes()));
        }
        book.note(None, None);
        book.note(Some(&[0xff]), Some(b"{}"));
        assert!(book.jobs().is_empty());
        assert_eq!(book.fate(0, 1), Fate::Open);
    }
}
