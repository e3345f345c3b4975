//! The spans of one trace as a tree of text: who caused what, when, for how long, and what came of it.
//!
//! Spans come from a store that anybody may write to, in any order. Invariants: every span is shown exactly once
//! (copies of one span count as one), whatever their parents say: one whose parent is not there, or whose parents form
//! a circle, begins a tree of its own and says so. Nothing of a span reaches a terminal as a control character, and no
//! depth overflows the stack. Leaves to others: where spans are found (`adapters::jaeger`), printing (`cli`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::duration;

/// Levels that are drawn; deeper spans stay at this indent with their depth as a number.
const MAX_INDENT: usize = 24;
/// Characters of a name or a text that are shown.
const MAX_TEXT: usize = 160;
/// The labels' column is at most so wide.
const MAX_LABEL: usize = 64;
/// Clocks of two hosts are not told apart from one clock below this.
const SAME_CLOCK_US: u64 = 1_000;

/// One span as a store tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredSpan {
    /// `service.name` of the process that wrote it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The span that caused it; `None` for the first.
    pub parent: Option<String>,
    /// Start in µs since the Unix epoch.
    pub start_us: u64,
    /// How long it took, in µs.
    pub duration_us: u64,
    /// Its attributes as text.
    pub tags: BTreeMap<String, String>,
}

impl StoredSpan {
    fn tag(&self, name: &str) -> Option<&str> {
        self.tags.get(name).map(String::as_str)
    }

    fn event(&self) -> Option<&str> {
        self.tag("ladder.event_id")
    }

    fn operation(&self) -> Option<&str> {
        self.tag("messaging.operation.name")
    }

    fn end_us(&self) -> u64 {
        self.start_us.saturating_add(self.duration_us)
    }

    fn is_failed(&self) -> bool {
        self.tag("error.type").is_some()
            || self.tag("otel.status_code") == Some("ERROR")
            || self.tag("error") == Some("true")
    }
}

/// What is odd about a span's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// The span that it names as its parent is not there.
    ParentMissing,
    /// Its parents form a circle, which is cut before it.
    Circle,
    /// It starts before its parent: the clocks of their hosts differ, or somebody wrote nonsense.
    BeforeParent,
}

/// A span in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The span.
    pub span: StoredSpan,
    /// How many spans are above it.
    pub depth: usize,
    /// What is odd about its place.
    pub oddity: Option<Oddity>,
    /// For each level from 1 to its own: whether more siblings follow there. As drawn, so at most [`MAX_INDENT`] long.
    follows: Vec<bool>,
}

/// The spans of one trace in the order in which they are drawn: each behind its parent, siblings by start.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceTree {
    /// The trace: 32 hex digits.
    pub trace_id: String,
    /// Its spans.
    pub nodes: Vec<Node>,
    /// Spans of other events in the same trace that are not shown.
    pub left_out: usize,
}

impl TraceTree {
    /// Puts spans in their places. With an `event`, only its own spans, those that led to them and those that they
    /// caused; without one, all.
    pub fn new(trace_id: &str, spans: Vec<StoredSpan>, event: Option<&str>) -> Self {
        let spans = unique(spans);
        let (parents, oddities) = parents(&spans);
        let children = children(&spans, &parents);
        let order = in_order(&spans, &parents, &children);
        let shown = shown(&spans, &parents, &order, event);
        let left_out = shown.iter().filter(|shown| !**shown).count();
        let mut nodes: Vec<Node> = Vec::new();
        let mut at = vec![None; spans.len()];
        let mut slots: Vec<Option<StoredSpan>> = spans.into_iter().map(Some).collect();
        for i in order.into_iter().filter(|i| shown[*i]) {
            let Some(span) = slots[i].take() else { continue };
            let (mut follows, mut depth, mut oddity) = (Vec::new(), 0, oddities[i]);
            if let Some((parent, above)) = parents[i].and_then(|p| Some((p, at[p].map(|at: usize| &nodes[at])?))) {
                depth = above.depth + 1;
                follows.clone_from(&above.follows);
                if follows.len() < MAX_INDENT {
                    follows.push(children[parent].iter().rev().find(|c| shown[**c]) != Some(&i));
                }
                if span.start_us.saturating_add(SAME_CLOCK_US) < above.span.start_us {
                    oddity = Some(Oddity::BeforeParent);
                }
            }
            at[i] = Some(nodes.len());
            nodes.push(Node { span, depth, oddity, follows });
        }
        Self { trace_id: trace_id.to_owned(), nodes, left_out }
    }

    /// When the first span starts, in µs since the Unix epoch.
    pub fn start_us(&self) -> u64 {
        self.nodes.iter().map(|node| node.span.start_us).min().unwrap_or_default()
    }

    /// From the first start to the last end.
    pub fn took(&self) -> Duration {
        let end = self.nodes.iter().map(|node| node.span.end_us()).max().unwrap_or_default();
        Duration::from_micros(end.saturating_sub(self.start_us()))
    }

    /// What became of the event, as far as its last execution before the DLQ tells.
    pub fn outcome(&self) -> Option<String> {
        let executions = self.nodes.iter().map(|node| &node.span).filter(|span| {
            span.operation() == Some("process") && span.tag("ladder.stage").is_some_and(|stage| stage != "dlq")
        });
        let last = executions.max_by_key(|span| span.end_us())?;
        let (stage, attempt) = (last.tag("ladder.stage")?, last.tag("ladder.attempt").unwrap_or("?"));
        let reason = last.tag("ladder.reason").unwrap_or("?");
        let outcome = match (last.tag("ladder.action"), last.is_failed()) {
            (Some("dead_letter"), _) => format!("dead-lettered by {stage} at attempt {attempt}: {reason}"),
            (Some("halt"), _) => format!("halts its partition on {stage}: {reason}"),
            (Some(action), _) => format!("failed on {stage} at attempt {attempt}, {action}ed; no execution since"),
            (None, true) => format!("cut off on {stage} at attempt {attempt}; runs again"),
            (None, false) => format!("done on {stage} at attempt {attempt}"),
        };
        Some(clean(&outcome))
    }

    /// The tree as data.
    pub fn json(&self) -> serde_json::Value {
        let start = self.start_us();
        let millis = |us: u64| us as f64 / 1e3;
        let number = |node: &Node, tag: &str| node.span.tag(tag).and_then(|text| text.parse::<f64>().ok());
        let spans = self.nodes.iter().map(|node| {
            let span = &node.span;
            serde_json::json!({
                "name": span.name, "span_id": span.id, "parent_id": span.parent, "service": span.service,
                "depth": node.depth, "start_ms": millis(span.start_us - start), "duration_ms": millis(span.duration_us),
                "event_id": span.event(), "stage": span.tag("ladder.stage"),
                "attempt": span.tag("ladder.attempt").and_then(|text| text.parse::<u32>().ok()),
                "lateness_ms": number(node, "ladder.lateness_ms"), "failed": span.is_failed(),
                "error_type": span.tag("error.type"), "error": span.tag("otel.status_description"),
                "action": span.tag("ladder.action"), "reason": span.tag("ladder.reason"), "oddity": node.oddity,
            })
        });
        serde_json::json!({
            "trace_id": self.trace_id, "start_ms": millis(start), "duration_ms": self.took().as_secs_f64() * 1e3,
            "outcome": self.outcome(), "left_out": self.left_out, "spans": spans.collect::<Vec<_>>(),
        })
    }
}

/// Each span once: an export that was tried again leaves copies.
fn unique(spans: Vec<StoredSpan>) -> Vec<StoredSpan> {
    let mut seen = BTreeSet::new();
    let mut spans: Vec<_> =
        spans.into_iter().filter(|s| seen.insert((s.id.clone(), s.name.clone(), s.start_us, s.duration_us))).collect();
    spans.sort_by(|a, b| (a.start_us, &a.name, &a.id).cmp(&(b.start_us, &b.name, &b.id)));
    spans
}

/// Each span's parent, so that following them always ends.
fn parents(spans: &[StoredSpan]) -> (Vec<Option<usize>>, Vec<Option<Oddity>>) {
    let mut by_id = HashMap::new();
    for (i, span) in spans.iter().enumerate() {
        by_id.entry(span.id.as_str()).or_insert(i);
    }
    let mut oddities = vec![None; spans.len()];
    let mut parents: Vec<Option<usize>> = Vec::with_capacity(spans.len());
    for (span, oddity) in spans.iter().zip(&mut oddities) {
        let parent = span.parent.as_deref().and_then(|id| by_id.get(id).copied());
        if span.parent.is_some() && parent.is_none() {
            *oddity = Some(Oddity::ParentMissing);
        }
        parents.push(parent);
    }
    // Walk up from each span; what was reached on an earlier walk is known to end.
    let mut walk = vec![usize::MAX; spans.len()];
    for i in 0..spans.len() {
        let mut at = i;
        while walk[at] == usize::MAX {
            walk[at] = i;
            let Some(parent) = parents[at] else { break };
            if walk[parent] == i {
                // The circle is cut before its earliest span. Spans are sorted, so that is the lowest index.
                let (mut first, mut next) = (parent, parent);
                while let Some(above) = parents[next].filter(|above| *above != parent) {
                    (first, next) = (first.min(above), above);
                }
                parents[first] = None;
                oddities[first] = Some(Oddity::Circle);
                break;
            }
            at = parent;
        }
    }
    (parents, oddities)
}

/// Each span's children by start.
fn children(spans: &[StoredSpan], parents: &[Option<usize>]) -> Vec<Vec<usize>> {
    let mut children = vec![Vec::new(); spans.len()];
    for (i, parent) in parents.iter().enumerate() {
        if let Some(parent) = parent {
            children[*parent].push(i);
        }
    }
    children
}

/// Every span behind its parent.
fn in_order(spans: &[StoredSpan], parents: &[Option<usize>], children: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::with_capacity(spans.len());
    let mut stack: Vec<usize> = (0..spans.len()).rev().filter(|i| parents[*i].is_none()).collect();
    while let Some(i) = stack.pop() {
        order.push(i);
        stack.extend(children[i].iter().rev());
    }
    order
}

/// Which spans belong to `event`: its own, what they caused, and what led to them.
fn shown(spans: &[StoredSpan], parents: &[Option<usize>], order: &[usize], event: Option<&str>) -> Vec<bool> {
    let Some(event) = event else { return vec![true; spans.len()] };
    let mut of: Vec<Option<&str>> = vec![None; spans.len()];
    for i in order {
        of[*i] = spans[*i].event().or_else(|| parents[*i].and_then(|parent| of[parent]));
    }
    let mut shown: Vec<bool> = of.iter().map(|of| *of == Some(event)).collect();
    for i in order.iter().rev() {
        if let Some(parent) = parents[*i] {
            shown[parent] |= shown[*i];
        }
    }
    shown
}

impl fmt::Display for TraceTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begun = UNIX_EPOCH.checked_add(Duration::from_micros(self.start_us())).unwrap_or(UNIX_EPOCH);
        // Beyond the year 9999 the format has no text.
        let mut at = String::new();
        write!(at, "{}", humantime::format_rfc3339_millis(begun)).unwrap_or_else(|_| at = "?".to_owned());
        let (took, count) = (text_of(self.took()), self.nodes.len());
        let spans = if count == 1 { "span" } else { "spans" };
        writeln!(f, "trace {} · begun {at} · took {took} · {count} {spans}", clean(&self.trace_id))?;
        let rows: Vec<_> = self.nodes.iter().map(|node| (label(node), details(node))).collect();
        let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0).min(MAX_LABEL);
        writeln!(f, "{:>9} {:>9}", "start", "duration")?;
        for (node, (label, details)) in self.nodes.iter().zip(&rows) {
            let start = text_of(Duration::from_micros(node.span.start_us - self.start_us()));
            let took = text_of(Duration::from_micros(node.span.duration_us));
            let line = format!("{start:>9} {took:>9}  {label:width$}  {details}");
            writeln!(f, "{}", line.trim_end())?;
        }
        match self.left_out {
            0 => Ok(()),
            1 => writeln!(f, "1 span of other events in this trace is left out; the trace id shows it"),
            more => writeln!(f, "{more} spans of other events in this trace are left out; the trace id shows them"),
        }
    }
}

/// Lines of the tree, then the name.
fn label(node: &Node) -> String {
    let mut label = String::new();
    if let Some((last, above)) = node.follows.split_last() {
        above.iter().for_each(|follows| label.push_str(if *follows { "│  " } else { "   " }));
        label.push_str(if *last { "├─ " } else { "└─ " });
    }
    if node.depth > node.follows.len() {
        write!(label, "[depth {}] ", node.depth).ok();
    }
    label + &clean(&node.span.name)
}

fn details(node: &Node) -> String {
    let span = &node.span;
    let mut parts = Vec::new();
    let is_wait = span.operation() == Some("wait");
    if span.operation() != Some("send") {
        parts.extend(span.tag("ladder.stage").map(clean));
    }
    if span.operation() == Some("process") {
        parts.extend(span.tag("ladder.attempt").map(|attempt| format!("attempt {}", clean(attempt))));
    }
    let late = span.tag("ladder.lateness_ms").and_then(|late| late.parse::<f64>().ok());
    let late = late.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
    match late.filter(|_| is_wait || span.operation() == Some("process")) {
        Some(late) if is_wait => parts.push(format!("waited until due, {} late", text_of(late))),
        Some(late) => parts.push(format!("{} late", text_of(late))),
        None => {}
    }
    if span.is_failed() {
        let class = span.tag("error.type").unwrap_or("error");
        let why = span.tag("otel.status_description").map(|text| format!(": {text}")).unwrap_or_default();
        parts.push(format!("FAILED {}", clean(&format!("{class}{why}"))));
    }
    if span.operation() == Some("process") {
        parts.extend(span.tag("ladder.action").map(|action| match span.tag("ladder.reason") {
            Some(reason) => format!("→ {}", clean(&format!("{action} ({reason})"))),
            None => format!("→ {}", clean(action)),
        }));
    }
    if !["retry-ladder", ""].contains(&span.service.as_str()) {
        parts.push(format!("[{}]", clean(&span.service)));
    }
    parts.extend(node.oddity.map(|oddity| {
        let text = match oddity {
            Oddity::ParentMissing => "(its parent is not here: not sampled, or still on its way)",
            Oddity::Circle => "(its parents form a circle)",
            Oddity::BeforeParent => "(starts before its parent: clocks differ)",
        };
        text.to_owned()
    }));
    parts.join(" · ")
}

/// Fit for a terminal: no control characters, not endless.
fn clean(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown: String = text.chars().take(MAX_TEXT).map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push('…');
    }
    shown
}

fn text_of(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match time.as_secs() {
        _ if ms < 9.95 => format!("{ms:.1} ms"),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        0..60 => format!("{:.2} s", ms / 1e3),
        _ => duration::coarse(time),
    }
}

#[cfg(test)]
mod tests;
