//! Inbound: headers to [`Envelope`]. Total for any bytes, one pass over the headers for most records.
//!
//! Whom to believe is decided first, from three facts (does it carry a redrive, a hop, our group), and everything
//! else follows from that one answer.

use super::envelope::{Coordinates, Envelope, IdSource, Repairs};
use super::{MAX_ATTEMPT, NAMES, Name, identity, number};
use crate::ladder::due::{self, DueRepair};
use crate::ladder::event::{Origin, Timestamp};
use crate::ladder::rungs::{Ladder, legal_topic};

/// Whose word the ladder's headers of a record are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// New on main, or redriven to main by another group: nothing here is about our ladder.
    New,
    /// On main with a hop but without a redrive: somebody's service copied our headers along.
    Copied,
    /// Written by our group.
    Own,
    /// On one of our own topics, but not written by our group.
    Foreign,
}

impl Standing {
    fn of(on_main: bool, raw: &Raw<'_>, our_group: bool) -> Self {
        match (on_main, our_group) {
            (true, true) if raw.has(Name::Redrive) => Standing::Own,
            (true, _) if raw.has(Name::Hop) && !raw.has(Name::Redrive) => Standing::Copied,
            (true, _) => Standing::New,
            (false, true) => Standing::Own,
            (false, false) => Standing::Foreign,
        }
    }
}

/// The values of our headers, the last one of each name; one without a value is empty.
struct Raw<'a>([Option<&'a [u8]>; NAMES.len()]);

impl<'a> Raw<'a> {
    fn collect(headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Self {
        let mut raw = [None; NAMES.len()];
        for (name, value) in headers {
            if let Some(name) = Name::of(name) {
                raw[name as usize] = Some(value.unwrap_or_default());
            }
        }
        Self(raw)
    }

    fn get(&self, name: Name) -> Option<&'a [u8]> {
        self.0[name as usize]
    }

    fn has(&self, name: Name) -> bool {
        self.get(name).is_some()
    }

    /// The number in an optional header: absent is `None`, broken is `None` and a repair.
    fn optional(&self, name: Name, repaired: &mut Repairs) -> Option<u64> {
        let value = self.get(name)?;
        let number = number(value);
        if number.is_none() {
            repaired.add(name);
        }
        number
    }

    /// The number in a header that has to be there and to be valid; anything else is a repair.
    fn required(&self, name: Name, valid: impl Fn(u64) -> bool, repaired: &mut Repairs) -> Option<u64> {
        let number = self.get(name).and_then(number).filter(|n| valid(*n));
        if number.is_none() {
            repaired.add(name);
        }
        number
    }
}

/// Reads the headers of a record that stands at `at` on the topic of rung `rung_index` (beyond the last: the DLQ).
///
/// `field_id` is the id out of the decoded payload, for [`IdSource::Field`].
///
/// - On main the ladder's headers count only with `x-ladder-redrive` and our own `x-ladder-group`. With a redrive of
///   another group the record is a new event under the configured id. With a hop but no redrive it was copied by
///   somebody else's service: all our headers are ignored, the id included ([`Envelope::untrusted`]).
/// - On the other topics they count with our own group. Without it, only the stage, the attempt and the due do, which
///   are bounded by the topic; hop, id and origin are made from the record itself.
/// - With our own group `x-ladder-event-id` wins over any configured source.
/// - What is missing or broken is repaired as the header table says, and noted in [`Envelope::repaired`].
pub fn read<'a>(
    ladder: &Ladder,
    rung_index: usize,
    at: Coordinates,
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    id_source: &IdSource,
    field_id: Option<&'a str>,
) -> Envelope {
    let rung = ladder.rung(rung_index).unwrap_or_else(|| ladder.dlq());
    let raw = Raw::collect(headers.clone());
    let our_group = raw.get(Name::Group) == Some(ladder.group().as_bytes());
    let standing = Standing::of(rung.index == 0, &raw, our_group);
    let own = standing == Standing::Own;
    let mut repaired = Repairs::default();

    let origin = raw.get(Name::Origin).filter(|_| own).and_then(parse_origin).unwrap_or_else(|| {
        if own {
            repaired.add(Name::Origin);
        }
        at.on(&rung.topic)
    });

    let written_id = raw.get(Name::EventId).and_then(identity::usable).filter(|_| our_group);
    let event_id = match (standing, written_id) {
        (Standing::Own | Standing::New, Some(id)) => identity::bounded(id),
        (standing, _) => {
            if own {
                repaired.add(Name::EventId);
            }
            match identity::configured(headers, id_source, field_id, standing != Standing::Copied) {
                Some(id) => identity::bounded(&id),
                None => origin.to_string().into(),
            }
        }
    };

    let hop = match standing {
        Standing::New | Standing::Copied => 0,
        Standing::Own => raw
            .required(Name::Hop, identity::valid_hop, &mut repaired)
            .unwrap_or_else(|| identity::repaired_hop(at, rung.index)),
        Standing::Foreign => {
            repaired.add(Name::Group);
            identity::repaired_hop(at, rung.index)
        }
    };

    let mut envelope = Envelope {
        event_id,
        stage: rung.index,
        failed_stage: None,
        attempt: 0,
        hop,
        fence: 0,
        due: None,
        origin,
        redrives: 0,
        redriven_at: None,
        deferrals: 0,
        repaired,
        untrusted: standing == Standing::Copied,
        own,
    };
    match standing {
        Standing::New | Standing::Copied => return envelope,
        Standing::Own => read_own(&raw, &mut envelope),
        Standing::Foreign => {}
    }
    read_bounded(&raw, ladder, at, &mut envelope);
    envelope
}

/// What only our own group can know.
fn read_own(raw: &Raw<'_>, envelope: &mut Envelope) {
    let repaired = &mut envelope.repaired;
    let fence = raw.optional(Name::Fence, repaired).unwrap_or_default();
    if identity::valid_fence(fence) {
        envelope.fence = fence;
    } else {
        repaired.add(Name::Fence);
    }
    envelope.redriven_at = raw.optional(Name::RedrivenAt, repaired).map(Timestamp::from_millis);
    if raw.has(Name::Redrive) {
        // Whatever it says, a record that carries it was redriven at least once.
        let redrives = raw.required(Name::Redrive, |n| (1..=u64::from(u32::MAX)).contains(&n), repaired);
        envelope.redrives = redrives.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    }
    if raw.has(Name::Deferrals) {
        let deferrals = raw.required(Name::Deferrals, |n| n <= u64::from(u32::MAX), repaired);
        envelope.deferrals = deferrals.and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    }
}

/// What the topic itself bounds, so that anybody's word can be checked against it.
fn read_bounded(raw: &Raw<'_>, ladder: &Ladder, at: Coordinates, envelope: &mut Envelope) {
    let repaired = &mut envelope.repaired;
    let stage = envelope.stage;
    let dlq = ladder.dlq().index;
    if stage == dlq {
        let failed = raw.required(Name::Stage, |n| n < dlq as u64, repaired);
        envelope.failed_stage = failed.and_then(|n| usize::try_from(n).ok());
    } else if stage > 0 || raw.has(Name::Stage) {
        raw.required(Name::Stage, |n| n == stage as u64, repaired);
    }
    let attempt = raw.required(Name::Attempt, |n| n <= u64::from(MAX_ATTEMPT), repaired);
    envelope.attempt = attempt.unwrap_or(stage as u64).try_into().unwrap_or(MAX_ATTEMPT);

    if let Some(delay) = ladder.rung(stage).and_then(|rung| rung.delay) {
        let (due, repair) = due::effective(raw.get(Name::Due), at.timestamp_ms, delay);
        envelope.due = Some(due);
        match repair {
            Some(DueRepair::Missing) => repaired.add(Name::Due),
            Some(DueRepair::Clamped) => repaired.add_due_clamped(),
            None => {}
        }
    }
}

/// `topic:partition:offset:timestamp_ms`; a topic has no `:`.
fn parse_origin(value: &[u8]) -> Option<Origin> {
    let mut parts = std::str::from_utf8(value).ok()?.split(':');
    let topic = parts.next().filter(|topic| legal_topic(topic))?.to_owned();
    let partition = i32::try_from(number(parts.next()?.as_bytes())?).ok()?;
    let offset = i64::try_from(number(parts.next()?.as_bytes())?).ok()?;
    let timestamp_ms = match parts.next()? {
        "-1" => -1,
        ms => i64::try_from(number(ms.as_bytes())?).ok()?,
    };
    parts.next().is_none().then_some(Origin { topic, partition, offset, timestamp_ms })
}
