//! Trees of traces as they are, and of what nobody should have written.

use proptest::prelude::*;

use super::*;

fn span(id: &str, parent: &str, start_ms: u64) -> StoredSpan {
    StoredSpan {
        service: "retry-ladder".into(),
        name: format!("span {id}"),
        id: id.into(),
        parent: (!parent.is_empty()).then(|| parent.into()),
        start_us: 1_000_000 + start_ms * 1_000,
        duration_us: 5_000,
        tags: BTreeMap::new(),
    }
}

impl StoredSpan {
    fn with(mut self, tags: &[(&str, &str)]) -> Self {
        self.tags.extend(tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        self
    }

    fn named(self, name: &str) -> Self {
        let operation = name.split(' ').next().unwrap_or_default();
        Self { name: name.into(), ..self }.with(&[("messaging.operation.name", operation)])
    }
}

/// The labels as drawn, and the oddities.
fn drawn(spans: Vec<StoredSpan>, event: Option<&str>) -> Vec<String> {
    let tree = TraceTree::new("t", spans, event);
    let odd = |node: &Node| node.oddity.map_or_else(String::new, |oddity| format!(" {oddity:?}"));
    tree.nodes.iter().map(|node| label(node).replace("span ", "") + &odd(node)).collect()
}

#[test]
fn a_ladder_reads_from_its_producer_to_its_end() {
    let event = [("ladder.event_id", "e")];
    let stage = |name, attempt| [("ladder.stage", name), ("ladder.attempt", attempt)];
    let failed = [("error.type", "transient"), ("otel.status_description", "503"), ("ladder.action", "forward")];
    let late = [("ladder.lateness_ms", "2.25")];
    let spans = vec![
        span("5", "3", 1_020).named("process r1").with(&event).with(&stage("retry-1", "2")).with(&late),
        StoredSpan { duration_us: 1_002_250, ..span("4", "3", 18) }
            .named("wait r1")
            .with(&event)
            .with(&stage("retry-1", "2"))
            .with(&late),
        span("1", "", 0).named("send orders").with(&event),
        span("3", "2", 15)
            .named("send r1")
            .with(&event)
            .with(&stage("main", "1"))
            .with(&[("ladder.action", "forward")]),
        span("2", "1", 10).named("process orders").with(&event).with(&stage("main", "1")).with(&failed),
    ];
    let spans = spans.into_iter().map(|span| StoredSpan {
        service: if span.id == "1" { "retry-ladder-produce".into() } else { span.service.clone() },
        ..span
    });
    let tree = TraceTree::new("0af7", spans.collect(), Some("e"));
    let expect = "\
trace 0af7 · begun 1970-01-01T00:00:01.000Z · took 1.02 s · 5 spans
    start  duration
   0.0 ms    5.0 ms  send orders          [retry-ladder-produce]
    10 ms    5.0 ms  └─ process orders    main · attempt 1 · FAILED transient: 503 · → forward
    15 ms    5.0 ms     └─ send r1
    18 ms    1.00 s        ├─ wait r1     retry-1 · waited until due, 2.2 ms late
   1.02 s    5.0 ms        └─ process r1  retry-1 · attempt 2 · 2.2 ms late
";
    assert_eq!(tree.to_string(), expect);
    assert_eq!(tree.outcome().as_deref(), Some("done on retry-1 at attempt 2"));
    let json = tree.json();
    assert_eq!(json["spans"][1]["error_type"], "transient");
    assert_eq!((&json["spans"][3]["stage"], &json["spans"][3]["lateness_ms"]), (&"retry-1".into(), &2.25.into()));
    assert_eq!((&json["spans"][4]["depth"], &json["spans"][4]["start_ms"]), (&3.into(), &1_020.0.into()));
}

#[test]
fn the_outcome_is_that_of_the_last_execution_before_the_dlq() {
    #[track_caller]
    fn check(tags: &[(&str, &str)], expect: &str) {
        let run = |id, start| span(id, "", start).named("process x");
        let first = run("1", 0).with(&[("ladder.stage", "main"), ("ladder.action", "forward"), ("error.type", "x")]);
        let last = run("2", 10).with(&[("ladder.stage", "retry-1"), ("ladder.attempt", "2")]).with(tags);
        let dlq = run("3", 20).with(&[("ladder.stage", "dlq")]);
        assert_eq!(TraceTree::new("t", vec![dlq, last, first], None).outcome().as_deref(), Some(expect));
    }
    check(&[], "done on retry-1 at attempt 2");
    check(
        &[("ladder.action", "dead_letter"), ("ladder.reason", "exhausted"), ("error.type", "transient")],
        "dead-lettered by retry-1 at attempt 2: exhausted",
    );
    check(&[("error.type", "cancelled")], "cut off on retry-1 at attempt 2; runs again");
    check(
        &[("ladder.action", "forward"), ("error.type", "x")],
        "failed on retry-1 at attempt 2, forwarded; no execution since",
    );
    assert_eq!(TraceTree::new("t", vec![span("1", "", 0).named("send x")], None).outcome(), None);
}

#[test]
fn siblings_stand_by_start_whatever_order_they_came_in() {
    let spans = vec![span("c", "a", 3), span("d", "b", 9), span("b", "a", 1), span("a", "", 0), span("e", "c", 4)];
    assert_eq!(drawn(spans, None), ["a", "├─ b", "│  └─ d", "└─ c", "   └─ e"]);
}

#[test]
fn a_missing_parent_and_further_roots_begin_trees_of_their_own() {
    let spans = vec![span("b", "gone", 2), span("c", "b", 3), span("x", "", 1)];
    assert_eq!(drawn(spans, None), ["x", "b ParentMissing", "└─ c"]);
}

#[test]
fn a_circle_is_cut_before_its_earliest_span() {
    assert_eq!(drawn(vec![span("a", "a", 0)], None), ["a Circle"]);
    let spans = vec![span("a", "c", 2), span("b", "a", 1), span("c", "b", 3), span("d", "c", 4)];
    assert_eq!(drawn(spans, None), ["b Circle", "└─ c", "   ├─ a", "   └─ d"]);
}

#[test]
fn a_span_before_its_parent_says_that_clocks_differ() {
    let spans = vec![span("a", "", 50), span("b", "a", 10), span("c", "a", 50)];
    let tree = TraceTree::new("t", spans.clone(), None);
    assert_eq!(drawn(spans, None), ["a", "├─ b BeforeParent", "└─ c"]);
    assert_eq!((tree.start_us(), tree.took()), (1_010_000, Duration::from_millis(45)));
}

#[test]
fn copies_of_a_span_count_as_one() {
    let spans = vec![span("a", "", 0), span("b", "a", 1), span("b", "a", 1), span("a", "", 0)];
    assert_eq!(drawn(spans, None), ["a", "└─ b"]);
}

#[test]
fn of_a_trace_with_many_events_one_is_shown_with_what_led_to_it() {
    let of = |event| [("ladder.event_id", event)];
    let spans = vec![
        span("request", "", 0),
        span("x", "request", 1).with(&of("x")),
        span("y", "request", 2).with(&of("y")),
        span("x-handler", "x", 3),
        span("y-handler", "y", 4),
        span("unrelated", "request", 5),
    ];
    assert_eq!(drawn(spans.clone(), Some("x")), ["request", "└─ x", "   └─ x-handler"]);
    let tree = TraceTree::new("t", spans.clone(), Some("x"));
    assert_eq!(tree.left_out, 3);
    assert!(tree.to_string().contains("3 spans of other events in this trace are left out"));
    assert_eq!(TraceTree::new("t", spans, None).left_out, 0);
}

#[test]
fn nothing_of_a_span_controls_the_terminal_or_fills_it() {
    let evil = "\u{1b}[2J\n\u{202e}x".to_owned() + &"ä".repeat(500);
    let tags = ["error.type", "otel.status_description", "ladder.stage", "ladder.attempt", "ladder.action"];
    let tags: Vec<_> = tags.iter().map(|tag| (*tag, evil.as_str())).collect();
    let span = StoredSpan { service: evil.clone(), ..span("a", "", 0).named("process x").with(&tags) };
    let text = TraceTree::new(&evil, vec![StoredSpan { name: evil.clone(), ..span }], None).to_string();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()) && !text.contains('\u{202e}'), "{text:?}");
    assert!(text.chars().count() < 9 * MAX_TEXT, "{}", text.len());
}

#[test]
fn a_chain_of_any_depth_is_drawn_with_a_bounded_indent() {
    let chain = (0..5_000).map(|n| span(&n.to_string(), &(n + 1).to_string(), 30_000 - n)).collect();
    let tree = TraceTree::new("t", chain, None);
    assert_eq!(tree.nodes.last().map(|node| node.depth), Some(4_999));
    let text = tree.to_string();
    assert!(text.lines().all(|line| line.chars().count() < 200), "{}", text.len());
    assert!(text.contains("[depth 4999]"));
}

proptest! {
    #[test]
    fn every_span_is_drawn_once_behind_its_parent(links in prop::collection::vec((0..12_u8, 0..14_u8, 0..50_u64), 0..40)) {
        let spans: Vec<_> = links.iter().map(|(id, parent, start)| {
            let parent = if *parent == 13 { String::new() } else { parent.to_string() };
            span(&id.to_string(), &parent, *start)
        }).collect();
        let distinct: BTreeSet<_> = spans.iter().map(|s| (s.id.clone(), s.start_us)).collect();
        let tree = TraceTree::new("t", spans, None);
        prop_assert_eq!(tree.nodes.len() + tree.left_out, distinct.len());
        for (i, node) in tree.nodes.iter().enumerate() {
            let above = tree.nodes[..i].iter().rev().find(|n| n.depth < node.depth);
            prop_assert_eq!(above.map(|n| (n.depth + 1, Some(&n.span.id))),
                (node.depth > 0).then_some((node.depth, node.span.parent.as_ref())));
        }
        prop_assert!(tree.to_string().lines().count() >= tree.nodes.len());
    }
}
