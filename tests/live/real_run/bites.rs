//! Whether the judgement would have noticed: the evidence of a run that went well, falsified in one place at a time.

use super::evidence::{Evidence, Faults};
use super::judge;
use super::observer::Seen;
use super::plan::{Kind, Plan};
use super::topics::Stored;

/// So many events are enough to falsify one.
const SAMPLE: usize = 1_000;

/// What a falsified place is told as, and the falsification.
type Bite = (&'static str, fn(&mut Evidence<'_>));

const BITES: &[Bite] = &[
    ("is lost", |e| {
        let lost = e.request(0, Kind::Succeeds).id.clone();
        e.requests.retain(|seen| seen.id != lost);
    }),
    ("is lost", |e| {
        let lost = e.dead_letter("poison").key.clone();
        e.dlq.retain(|record| record.key != lost);
    }),
    ("(done, dead) is (true, true)", |e| {
        let refused = e.plan.events.iter().find(|event| event.kind == Kind::Refused).expect("one").id.clone();
        e.requests.iter_mut().filter(|seen| seen.id == refused).for_each(|seen| seen.answer = Some(200));
    }),
    ("before its due", |e| e.retry(1).set("x-ladder-due", b"9999999999999")),
    ("before its delay", |e| {
        let seen = e.request(2, Kind::FailsAlways);
        seen.arrived -= 2_000_000;
    }),
    ("but the topic has no record of it", |e| e.retries[3].clear()),
    ("ran again without a kill", |e| {
        let mut again = e.request(0, Kind::Succeeds).clone();
        again.instance = "somebody".into();
        again.arrived += 5_000_000;
        again.ended += 5_000_000;
        again.fence += 1;
        e.requests.push(again);
    }),
    ("had ended", |e| {
        let mut again = e.request(0, Kind::Succeeds).clone();
        again.arrived += 1;
        again.fence += 1;
        e.requests.push(again);
    }),
    ("fence 1 after", |e| e.request(1, Kind::FailsAlways).fence = 1),
    ("another body", |e| e.request(0, Kind::Succeeds).body = vec![8, 1].into()),
    ("x-correlation-id is", |e| {
        e.request(0, Kind::Succeeds).headers.remove("x-correlation-id");
    }),
    ("was executed on main as attempt 2", |e| e.request(0, Kind::Succeeds).attempt = 2),
    ("another key", |e| e.dead_letter("permanent").key = None),
    ("another value", |e| e.retry(2).value.as_mut().expect("a value")[3] ^= 1),
    ("another value", |e| e.dead_letter("poison").value = Some(Vec::new())),
    ("headers of others are", |e| {
        let headers = &mut e.dead_letter("exhausted").headers;
        let tags: Vec<_> =
            (0..headers.len()).filter(|n| headers[*n].0 == "x-tenant" || headers[*n].0 == "größe").collect();
        headers.swap(tags[0], tags[1]);
    }),
    ("headers of others are", |e| e.dead_letter("exhausted").set("without-value", b"")),
    ("headers of others are", |e| e.retry(1).set("x-tenant", "\u{fffd}\0\u{fffd} north".as_bytes())),
    ("a header of ours twice", |e| {
        let due = ("x-ladder-fence".to_owned(), Some(b"1".to_vec()));
        e.retry(1).headers.insert(0, due);
    }),
    ("x-ladder-error is", |e| e.dead_letter("exhausted").set("x-ladder-error", b"transient: status 500: x")),
    ("x-ladder-attempt is", |e| e.dead_letter("exhausted").set("x-ladder-attempt", b"3")),
    ("x-ladder-origin is", |e| e.dead_letter("poison").set("x-ladder-origin", b"t:0:0:0")),
    ("no JSON array", |e| e.dead_letter("exhausted").set("x-ladder-history", b"[{]")),
    ("history of stages", |e| e.dead_letter("exhausted").set("x-ladder-history", b"[]")),
    ("was never given to the server", |e| e.dead_letter("permanent").set("x-ladder-fence", b"5")),
    ("kafka_dlt-original-offset is", |e| e.dead_letter("permanent").set("kafka_dlt-original-offset", b"12")),
    ("__dlq.errors.delivery.count is", |e| {
        e.dead_letter("exhausted").set("__dlq.errors.delivery.count", &4_i32.to_be_bytes());
    }),
    ("has no business in the DLQ", |e| {
        let retried = e.retries[1].iter().find(|record| e.event(record).kind == Kind::Fails(1));
        e.dlq.extend(retried.cloned());
    }),
];

/// # Panics
/// When a falsification is not told.
pub(crate) fn the_judgement_would_have_noticed(evidence: &Evidence<'_>) {
    let plan = Plan::of(SAMPLE);
    let sample = evidence.sample(&plan);
    let mut faults = Faults::default();
    judge(&sample, &mut faults);
    assert!(faults.0.is_empty(), "the sample itself: {:?}", faults.0);
    for (words, falsify) in BITES {
        let mut falsified = sample.clone();
        falsify(&mut falsified);
        let mut faults = Faults::default();
        judge(&falsified, &mut faults);
        assert!(faults.0.iter().any(|fault| fault.contains(words)), "nobody said {words:?}, but: {:?}", faults.0);
    }
}

impl<'p> Evidence<'p> {
    /// What concerns the events of a smaller plan, those aside that a kill or a time-out made special.
    fn sample<'s>(&self, plan: &'s Plan) -> Evidence<'s> {
        let of = |records: &[Stored]| -> Vec<_> {
            records.iter().filter(|record| self.event(record).index < plan.events.len()).cloned().collect()
        };
        Evidence {
            plan,
            group: self.group.clone(),
            target: self.target.clone(),
            requests: self.requests.iter().filter(|seen| plan.get(&seen.id).is_some()).cloned().collect(),
            kills: self.kills.clone(),
            main: of(&self.main),
            retries: [0, 1, 2, 3].map(|stage| of(&self.retries[stage])),
            dlq: of(&self.dlq),
        }
    }

    /// The first request of this kind on this stage; on main by a process that was not killed, which would explain things.
    fn request(&mut self, stage: usize, kind: Kind) -> &mut Seen {
        let killed = |seen: &Seen| self.kills.iter().any(|kill| kill.instance == seen.instance);
        let wanted =
            |seen: &&mut Seen| seen.stage == stage && Kind::of(&seen.id) == Some(kind) && (stage > 0 || !killed(seen));
        self.requests.iter_mut().find(wanted).expect("a request")
    }

    /// The first record of a retry topic.
    fn retry(&mut self, stage: usize) -> &mut Stored {
        &mut self.retries[stage][0]
    }

    /// The first dead letter of this class that has a value.
    fn dead_letter(&mut self, class: &str) -> &mut Stored {
        let wanted = |record: &&mut Stored| record.text("x-ladder-error").starts_with(class) && record.value.is_some();
        self.dlq.iter_mut().find(wanted).expect("a dead letter")
    }
}

impl Stored {
    fn set(&mut self, name: &str, value: &[u8]) {
        let header = self.headers.iter_mut().find(|(n, _)| n == name).expect("the header");
        header.1 = Some(value.to_vec());
    }
}
