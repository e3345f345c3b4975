//! What a browser asks for: a selection in the words of the command line's flags, and what to do with it.

use reqwest::Url;
use serde::Deserialize;

use super::answer::Refused;
use crate::admin::dlq::book::Fate;
use crate::admin::dlq::order::{START, target, who};
use crate::admin::dlq::page::Place;
use crate::admin::dlq::redrive::Order;
use crate::admin::dlq::select::{self, Selection};
use crate::ladder::rungs::Ladder;

/// Letters on a page.
const PAGE: usize = 50;
/// Letters on the longest page.
const MAX_PAGE: usize = 200;
/// Longest reason and name.
pub(super) const MAX_TEXT: usize = 500;

/// Which letters, as text; an empty text says nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Choice {
    fingerprint: String,
    class: String,
    since: String,
    until: String,
    key: String,
    event_id: String,
    /// `NAME=VALUE`, each on a line.
    header: String,
    partition: String,
    offsets: String,
    state: String,
    limit: String,
}

impl Choice {
    /// Reads it.
    pub(super) fn selection(&self, now_ms: i64) -> Result<Selection, Refused> {
        let state = |text: &str| match text {
            "open" => Ok(Fate::Open),
            "redriven" => Ok(Fate::Redriven),
            "discarded" => Ok(Fate::Discarded),
            _ => Err("one of open, redriven, discarded".to_owned()),
        };
        let partition = |text: &str| match text.parse::<i32>() {
            Ok(partition) if partition >= 0 => Ok(partition),
            _ => Err("the number of a partition".to_owned()),
        };
        let limit = |text: &str| match text.parse::<u64>() {
            Ok(limit) if limit > 0 => Ok(limit),
            _ => Err("a whole number above 0".to_owned()),
        };
        let selection = Selection {
            fingerprint: read("fingerprint", &self.fingerprint, |text| text.parse().map_err(|e| format!("{e}")))?,
            class: read("class", &self.class, |text| Ok(text.to_owned()))?,
            since_ms: read("since", &self.since, |text| select::instant(text, now_ms))?,
            until_ms: read("until", &self.until, |text| select::instant(text, now_ms))?,
            key: read("key", &self.key, |text| Ok(text.to_owned()))?,
            event_id: read("event_id", &self.event_id, |text| Ok(text.to_owned()))?,
            headers: self
                .header
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(|line| select::header(line).map_err(|why| Refused::bad(format!("header: {why}"))))
                .collect::<Result<_, _>>()?,
            partition: read("partition", &self.partition, partition)?,
            offsets: read("offsets", &self.offsets, select::offsets)?,
            state: read("state", &self.state, state)?,
            limit: read("limit", &self.limit, limit)?,
        };
        if selection.offsets.is_some() && selection.partition.is_none() {
            return Err(Refused::bad("offsets: of which partition?"));
        }
        Ok(selection)
    }
}

fn read<T>(name: &str, text: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    read(text).map(Some).map_err(|why| Refused::bad(format!("{name}: {why}")))
}

/// A page of a selection, from the query of a request.
#[derive(Debug)]
pub(super) struct PageAsk {
    pub(super) selection: Selection,
    pub(super) from: Option<Place>,
    pub(super) size: usize,
}

impl PageAsk {
    pub(super) fn read(query: Option<&str>, now_ms: i64) -> Result<Self, Refused> {
        let (mut choice, mut from, mut size) = (Choice::default(), None, PAGE);
        let url = Url::parse(&format!("http://query/?{}", query.unwrap_or_default()));
        let url = url.map_err(|_| Refused::bad("the query cannot be read"))?;
        for (name, value) in url.query_pairs() {
            let field = match &*name {
                "from" => {
                    from = read("from", &value, str::parse)?;
                    continue;
                }
                "size" => {
                    let number = |text: &str| text.parse().map_err(|_| format!("a number up to {MAX_PAGE}"));
                    size = read::<usize>("size", &value, number)?.unwrap_or(PAGE).clamp(1, MAX_PAGE);
                    continue;
                }
                "fingerprint" => &mut choice.fingerprint,
                "class" => &mut choice.class,
                "since" => &mut choice.since,
                "until" => &mut choice.until,
                "key" => &mut choice.key,
                "event_id" => &mut choice.event_id,
                "header" => &mut choice.header,
                "partition" => &mut choice.partition,
                "offsets" => &mut choice.offsets,
                "state" => &mut choice.state,
                _ => return Err(Refused::bad(format!("`{}` selects nothing", name.escape_debug()))),
            };
            *field = value.into_owned();
        }
        Ok(Self { selection: choice.selection(now_ms)?, from, size })
    }
}

/// What to do with which letters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderAsk {
    #[serde(default)]
    select: Choice,
    action: Action,
    /// `start`, `main` or a retry stage.
    #[serde(default)]
    to: String,
    /// Letters a second.
    rate: Option<f64>,
    /// Share of copies that come back, 0 to 1.
    stop_at: Option<f64>,
    #[serde(default)]
    reason: String,
    /// Every open letter is meant.
    #[serde(default)]
    all: bool,
    /// The name of who asks, as typed.
    #[serde(default)]
    who: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Redrive,
    Discard,
}

impl OrderAsk {
    /// Reads it.
    pub(super) fn order(&self, ladder: &Ladder, now_ms: i64) -> Result<Order, Refused> {
        let selection = self.select.selection(now_ms)?;
        if selection == Selection::default() && !self.all {
            return Err(Refused::bad("nothing is selected; say that every open letter is meant"));
        }
        if self.reason.len() > MAX_TEXT || self.who.len() > MAX_TEXT {
            return Err(Refused::bad(format!("reason and name have at most {MAX_TEXT} bytes")));
        }
        let order = Order { selection, who: named(&self.who), ..Order::default() };
        if self.action == Action::Discard {
            let reason = Some(self.reason.trim().to_owned()).filter(|reason| !reason.is_empty());
            let reason = reason.ok_or_else(|| Refused::bad("reason: say why, for those who wonder later"))?;
            return Ok(Order { reason: Some(reason), ..order });
        }
        let to = if self.to.is_empty() { START } else { &self.to };
        if self.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(Refused::bad("rate: letters a second, above 0"));
        }
        let stop_at = self.stop_at.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&stop_at) {
            return Err(Refused::bad("stop_at: a share from 0 to 1"));
        }
        Ok(Order {
            target: Some(target(to, ladder).map_err(|why| Refused::bad(format!("to: {why}")))?),
            to: Some(to.to_owned()),
            rate: self.rate,
            stop_at: (stop_at < 1.0).then_some(stop_at),
            ..order
        })
    }
}

/// Who asks: the name as typed, and whose console it is.
pub(super) fn named(typed: &str) -> String {
    let name: String = typed.trim().chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { format!("console of {}", who()) } else { format!("{name} (console of {})", who()) }
}

/// Another value for one letter, and where to send it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CorrectionAsk {
    /// The message in the proto3 JSON mapping, as text.
    pub(super) json: String,
    /// Without the old value's fields that its declaration does not have.
    #[serde(default)]
    pub(super) drop_unknown: bool,
    #[serde(default)]
    pub(super) to: String,
    #[serde(default)]
    pub(super) who: String,
}

impl CorrectionAsk {
    /// The order for the letter at `place`.
    pub(super) fn order(&self, place: Place, ladder: &Ladder) -> Result<Order, Refused> {
        let select = Choice {
            partition: place.partition.to_string(),
            offsets: format!("{0}..{0}", place.offset),
            ..Choice::default()
        };
        let (to, who) = (self.to.clone(), self.who.clone());
        let action = Action::Redrive;
        let ask = OrderAsk { select, action, to, rate: None, stop_at: None, reason: String::new(), all: false, who };
        Ok(Order { drop_unknown: self.drop_unknown, ..ask.order(ladder, 0)? })
    }
}
