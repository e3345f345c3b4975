//! Properties of both directions together.

use proptest::prelude::*;

use super::history as history_of;
use super::read::hostile;
use super::write::{Case, EXHAUSTED, is_own, value};
use super::*;
use crate::ladder::event::{Action, Failure, Reason};

fn any_action() -> impl Strategy<Value = Action> {
    let due = (0..u64::MAX / 2).prop_map(Timestamp::from_micros);
    prop_oneof![
        (1..4_usize, due.clone()).prop_map(|(stage, due)| Action::Forward { stage, due }),
        due.prop_map(|due| Action::Defer { due }),
        prop_oneof![Just(Reason::Permanent), Just(Reason::Poison), Just(Reason::Exhausted), Just(Reason::Expired)]
            .prop_map(|reason| Action::DeadLetter { reason }),
    ]
}

proptest! {
    #[test]
    fn others_headers_pass_untouched_and_ours_occur_once_within_their_limit(
        inbound in hostile(), stage in 0..4_usize, action in any_action(), message in ".{0,700}", fence in any::<u64>(),
        shrink in prop_oneof![Just(Shrink::Full), Just(Shrink::NoHistory), Just(Shrink::NoErrorText), Just(Shrink::NoCompat)],
    ) {
        let dead = matches!(action, Action::DeadLetter { .. });
        let trace = Some(Trace { parent: "00-1-2-01", state: None });
        let failure = Failure::transient(message);
        let envelope = read_at(stage, AT, &inbound);
        let written = Case { failure, fence, trace, shrink, ..Case::new(stage, &inbound, action) }.write();
        prop_assume!(envelope.hop < HOP_LIMIT - 1);
        let out = written.unwrap();

        let foreign = |headers: &Headers| -> Headers {
            let trace = |n: &[u8]| n == TRACEPARENT.as_bytes() || n == TRACESTATE.as_bytes();
            headers.iter().filter(|(n, _)| !is_own(n, dead) && !trace(n)).cloned().collect()
        };
        prop_assert_eq!(foreign(&out), foreign(&inbound));
        let own: Headers = out.iter().filter(|pair| !foreign(&inbound).contains(pair)).cloned().collect();
        let mut names: Vec<_> = own.iter().map(|(n, _)| n).collect();
        names.sort();
        names.dedup();
        prop_assert_eq!(names.len(), own.len());
        let size: usize = own.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum();
        prop_assert!(size <= MAX_OWN_BYTES, "{}", size);
        for (name, value) in &own {
            let binary = name.starts_with(b"kafka_dlt-");
            prop_assert!(binary || std::str::from_utf8(value.as_deref().unwrap()).is_ok());
        }
        if let Some(history) = value(&out, HISTORY) {
            let json: serde_json::Value = serde_json::from_slice(history).unwrap();
            let entries = json.as_array().unwrap();
            prop_assert!((1..=8).contains(&entries.len()));
            prop_assert!(entries.iter().all(|e| e["m"].as_str().unwrap().len() <= 128));
            prop_assert_eq!(serde_json::to_vec(&history_of(iter(&out))).unwrap(), history.to_vec());
        }
    }

    #[test]
    fn what_is_written_is_read_back_through_the_whole_ladder(
        id in "[^\\s0]{1,40}", message in ".{0,200}", path in proptest::collection::vec(0..4_u8, 1..12),
        foreign in proptest::collection::vec(("[a-z]{1,8}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20))), 0..5),
    ) {
        let foreign: Headers = foreign.into_iter().map(|(n, v)| (n.into_bytes(), v)).collect();
        let mut inbound = foreign.clone();
        inbound.push((b"MessageID".to_vec(), Some(id.clone().into_bytes())));
        let mut stage = 0;
        let mut before = read_at(0, AT, &inbound);
        let origin = before.origin.clone();
        for step in path {
            // On, further on, the last one again, or out.
            let action = match step {
                0 if stage < 3 => Action::Forward { stage: stage + 1, due: ms(WRITTEN + 1_000) },
                1 if stage < 3 => Action::Forward { stage: 3, due: ms(WRITTEN + 1_000) },
                2 if stage == 3 => Action::Defer { due: ms(WRITTEN + 1_000) },
                _ => EXHAUSTED,
            };
            let failure = Failure::transient(message.clone());
            let charged = u32::from(!matches!(action, Action::Defer { .. }));
            let fence = next_fence(ms(WRITTEN), before.fence);
            let case = Case { failure, fence, ..Case::new(stage, &inbound, action.clone()) };
            let out = case.write().unwrap();
            stage = match action { Action::Forward { stage, .. } => stage, Action::Defer { .. } => stage, _ => 4 };
            let after = read_at(stage, AT, &out);
            prop_assert!(after.repaired.is_empty(), "{:?}", after.repaired);
            prop_assert_eq!(&*after.event_id, id.as_str());
            prop_assert_eq!(&after.origin, &origin);
            prop_assert_eq!(after.hop, before.hop + 1);
            prop_assert_eq!(after.attempt, before.attempt + charged);
            prop_assert_eq!(after.deferrals, before.deferrals + (1 - charged));
            prop_assert!(after.fence > before.fence);
            prop_assert_eq!(after.fence, fence);
            prop_assert_eq!(after.due, (stage < 4).then(|| ms(WRITTEN + 1_000)));
            prop_assert_eq!(&out[..foreign.len()], &foreign[..]);
            let own: Vec<_> = history(iter(&out)).iter().map(|e| e.stage as usize).collect();
            prop_assert_eq!(own.last(), Some(&before.stage));
            if stage == 4 {
                prop_assert_eq!(after.failed_stage, Some(before.stage));
                break;
            }
            (before, inbound) = (after, out);
        }
    }
}
