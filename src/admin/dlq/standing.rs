//! How a DLQ stands, for somebody who keeps looking: its ends and its book, read once and then only what is new.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use super::book::{Book, Fate};
use crate::adapters::kafka::Properties;
use crate::adapters::kafka::scan::{self, Bounds, Scan};

/// Letters by fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Depth {
    /// Nobody dealt with.
    pub open: u64,
    /// Sent back.
    pub redriven: u64,
    /// Put aside.
    pub discarded: u64,
}

/// The last look.
#[derive(Default)]
pub struct Standing {
    /// Clients stay between looks; none before the first, and after one that failed.
    clients: Option<(Scan, Scan)>,
    /// Where to go on in the book.
    next: BTreeMap<i32, i64>,
    book: Arc<Book>,
    /// Grows with every change of the book.
    version: u64,
    bounds: BTreeMap<i32, Bounds>,
}

impl Standing {
    /// Looks again at the topic of the letters and that of the book. Blocks.
    ///
    /// # Errors
    /// When Kafka does not answer, or a topic is missing. What was seen before stays.
    pub fn refresh(&mut self, properties: &Properties, topic: &str, book_topic: &str) -> Result<(), scan::Error> {
        let (mut letters, mut pages) = match self.clients.take() {
            Some(clients) => clients,
            None => (Scan::open(properties, topic)?, Scan::open(properties, book_topic)?),
        };
        letters.renew()?;
        pages.renew()?;
        let ends: BTreeMap<i32, i64> = pages.bounds().iter().map(|(partition, b)| (*partition, b.high)).collect();
        let topic_id = letters.id_of(topic);
        let is_other_book = self.next.iter().any(|(partition, next)| ends.get(partition).is_none_or(|end| end < next));
        if is_other_book || self.book.topic_id() != topic_id.as_deref() {
            // One of the topics was made again under its name.
            (self.next, self.book) = (BTreeMap::new(), Arc::new(Book::about(topic_id)));
            self.version += 1;
        }
        if self.next != ends {
            self.version += 1;
            pages.from(&self.next);
            let book = Arc::make_mut(&mut self.book);
            pages.run(
                |seen| {
                    book.note(seen.key(), seen.value());
                    ControlFlow::Continue(())
                },
                |_| ControlFlow::Continue(()),
            )?;
            self.next = ends;
        }
        self.bounds = letters.bounds().clone();
        self.clients = Some((letters, pages));
        Ok(())
    }

    /// What was dealt with.
    pub fn book(&self) -> &Arc<Book> {
        &self.book
    }

    /// Another number for another book.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Letters by fate.
    pub fn depth(&self) -> Depth {
        let all: u64 = self.bounds.values().map(|b| u64::try_from(b.high - b.low).unwrap_or_default()).sum();
        let count = |fate| self.book.count(fate, &self.bounds);
        let (redriven, discarded) = (count(Fate::Redriven), count(Fate::Discarded));
        Depth { open: all.saturating_sub(redriven + discarded), redriven, discarded }
    }
}
