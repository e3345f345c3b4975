//! What every deduplication store promises, once for each of them.

use std::time::Duration;

use futures::future::join_all;
use retry_ladder::stage::ports::{Claim, ClaimReply, CopyKey, Mark, SettleReply};

use crate::queues::*;
use crate::stores::Subject;
use crate::{claim_of, key};

macro_rules! contract {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&crate::stores::Memory::start().await).await;
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(&crate::stores::Redis::start().await).await;
            })*
        }
        /// One cluster for all: it takes seconds to come up.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn redis_cluster() {
            let mut cluster = crate::stores::Cluster::start().await;
            $(
                println!(stringify!($case));
                $case(&cluster).await;
                cluster.clear().await;
            )*
        }
    };
}

contract! {
    a_free_copy_is_claimed_for_one_lease
    claiming_again_with_the_same_claim_is_already_ours_and_extends_nothing
    a_claim_of_another_process_sequence_or_fence_is_busy
    a_finished_copy_is_done_and_a_forwarded_one_has_moved_on
    settling_reports_whether_the_claim_was_still_ours
    settling_overwrites_whatever_is_there
    a_late_settlement_after_a_takeover_wins_for_good
    renewing_extends_only_a_lease_that_is_ours
    renewing_a_lost_lease_changes_nothing
    releasing_deletes_only_a_claim_that_is_ours
    a_lease_runs_out_by_itself
    a_settled_record_runs_out_after_its_own_ttl
    a_foreign_value_is_corrupt_and_cut_short
    an_empty_batch_has_an_empty_answer
    a_batch_of_a_thousand_answers_in_order
    one_copy_twice_in_a_batch_is_claimed_once
    keys_of_any_characters_are_kept_apart
    of_many_racing_claimers_exactly_one_gets_each_copy
    the_lowest_place_goes_first_and_the_others_are_behind_it
    a_full_queue_takes_nobody_new
    a_place_that_is_not_renewed_lapses_and_is_told_once
    a_store_answers_as_the_pure_queue_does
    a_batch_of_places_answers_in_order
}

const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3_600);
/// Short enough to be waited for.
const BLINK: Duration = Duration::from_millis(30);

async fn claim_for(s: &impl Subject, name: &str, claim: Claim, lease: Duration) -> ClaimReply {
    let mut replies = s.store().claim(vec![(key(name), claim)], lease).await;
    assert_eq!(replies.len(), 1);
    replies.remove(0).unwrap()
}

async fn claim(s: &impl Subject, name: &str, claim: Claim) -> ClaimReply {
    claim_for(s, name, claim, LEASE).await
}

async fn settle(s: &impl Subject, name: &str, claim: Claim, mark: Mark) -> SettleReply {
    let mut replies = s.store().settle(vec![(key(name), claim, mark, TTL)]).await;
    assert_eq!(replies.len(), 1);
    replies.remove(0).unwrap()
}

async fn renew(s: &impl Subject, name: &str, claim: Claim, lease: Duration) -> bool {
    let mut replies = s.store().renew(vec![(key(name), claim)], lease).await;
    assert_eq!(replies.len(), 1);
    replies.remove(0).unwrap()
}

async fn release(s: &impl Subject, name: &str, claim: Claim) -> bool {
    let mut replies = s.store().release(vec![(key(name), claim)]).await;
    assert_eq!(replies.len(), 1);
    replies.remove(0).unwrap()
}

async fn value(s: &impl Subject, name: &str) -> Option<String> {
    s.look(&key(name)).await.map(|(value, _)| value)
}

async fn left(s: &impl Subject, name: &str) -> Duration {
    s.look(&key(name)).await.expect("the record is there").1
}

async fn a_free_copy_is_claimed_for_one_lease(s: &impl Subject) {
    let us = claim_of(1);
    assert_eq!(claim(s, "a", us).await, ClaimReply::Claimed);
    assert_eq!(value(s, "a").await, Some(us.to_string()));
    let left = left(s, "a").await;
    assert!(left <= LEASE && left > LEASE / 2, "{left:?}");
}

async fn claiming_again_with_the_same_claim_is_already_ours_and_extends_nothing(s: &impl Subject) {
    let us = claim_of(1);
    assert_eq!(claim_for(s, "a", us, LEASE / 2).await, ClaimReply::Claimed);
    assert_eq!(claim_for(s, "a", us, LEASE).await, ClaimReply::AlreadyOurs);
    assert!(left(s, "a").await <= LEASE / 2);
}

async fn a_claim_of_another_process_sequence_or_fence_is_busy(s: &impl Subject) {
    let us = claim_of(1);
    assert_eq!(claim(s, "a", us).await, ClaimReply::Claimed);
    let others = [Claim { process: 2, ..us }, Claim { sequence: 8, ..us }, Claim { fence: us.fence + 1, ..us }];
    for other in others {
        assert_eq!(claim(s, "a", other).await, ClaimReply::Busy, "{other}");
    }
    assert_eq!(value(s, "a").await, Some(us.to_string()));
}

async fn a_finished_copy_is_done_and_a_forwarded_one_has_moved_on(s: &impl Subject) {
    for (name, mark, reply, text) in
        [("d", Mark::Done, ClaimReply::Done, "1"), ("f", Mark::MovedOn, ClaimReply::MovedOn, "F")]
    {
        assert_eq!(claim(s, name, claim_of(1)).await, ClaimReply::Claimed);
        assert_eq!(settle(s, name, claim_of(1), mark).await, SettleReply::Ours);
        assert_eq!(value(s, name).await.as_deref(), Some(text));
        for process in [1, 2] {
            assert_eq!(claim(s, name, claim_of(process)).await, reply);
        }
        let left = left(s, name).await;
        assert!(left <= TTL && left > TTL / 2, "a claim must not shorten it: {left:?}");
    }
}

async fn settling_reports_whether_the_claim_was_still_ours(s: &impl Subject) {
    claim(s, "ours", claim_of(1)).await;
    claim(s, "theirs", claim_of(2)).await;
    claim(s, "lost", claim_of(1)).await;
    s.lose(&key("lost")).await;
    let batch = ["ours", "theirs", "lost", "never"].map(|name| (key(name), claim_of(1), Mark::Done, TTL));
    let replies: Vec<_> = s.store().settle(batch.to_vec()).await.into_iter().map(Result::unwrap).collect();
    use SettleReply::{LeaseLost, Ours};
    assert_eq!(replies, [Ours, LeaseLost, LeaseLost, LeaseLost]);
    for name in ["ours", "theirs", "lost", "never"] {
        assert_eq!(value(s, name).await.as_deref(), Some("1"), "{name}");
    }
}

async fn settling_overwrites_whatever_is_there(s: &impl Subject) {
    s.plant(&key("a"), "hello").await;
    assert_eq!(settle(s, "a", claim_of(1), Mark::MovedOn).await, SettleReply::LeaseLost);
    assert_eq!(value(s, "a").await.as_deref(), Some("F"));
    assert_eq!(settle(s, "a", claim_of(1), Mark::Done).await, SettleReply::LeaseLost);
    assert_eq!(value(s, "a").await.as_deref(), Some("1"));
}

async fn a_late_settlement_after_a_takeover_wins_for_good(s: &impl Subject) {
    let (slow, quick) = (claim_of(1), claim_of(2));
    assert_eq!(claim_for(s, "a", slow, BLINK).await, ClaimReply::Claimed);
    s.outlive(&key("a")).await;
    assert_eq!(claim(s, "a", quick).await, ClaimReply::Claimed);
    assert_eq!(settle(s, "a", slow, Mark::Done).await, SettleReply::LeaseLost);
    assert!(!renew(s, "a", quick, LEASE).await, "whoever took over learns that it is finished");
    assert!(!release(s, "a", quick).await);
    assert_eq!(value(s, "a").await.as_deref(), Some("1"));
    assert_eq!(claim(s, "a", claim_of(3)).await, ClaimReply::Done);
}

async fn renewing_extends_only_a_lease_that_is_ours(s: &impl Subject) {
    let us = claim_of(1);
    claim_for(s, "a", us, LEASE / 2).await;
    assert!(renew(s, "a", us, 2 * LEASE).await);
    assert!(left(s, "a").await > LEASE);
    assert!(!renew(s, "a", claim_of(2), 10 * LEASE).await);
    assert!(left(s, "a").await <= 2 * LEASE);
    assert_eq!(value(s, "a").await, Some(us.to_string()));
}

async fn renewing_a_lost_lease_changes_nothing(s: &impl Subject) {
    let us = claim_of(1);
    assert!(!renew(s, "free", us, LEASE).await);
    assert_eq!(value(s, "free").await, None);
    claim_for(s, "expired", us, BLINK).await;
    s.outlive(&key("expired")).await;
    assert!(!renew(s, "expired", us, LEASE).await);
    assert_eq!(value(s, "expired").await, None);
    settle(s, "done", us, Mark::Done).await;
    assert!(!renew(s, "done", us, LEASE).await);
    assert!(left(s, "done").await > LEASE);
}

async fn releasing_deletes_only_a_claim_that_is_ours(s: &impl Subject) {
    let us = claim_of(1);
    claim(s, "ours", us).await;
    claim(s, "theirs", claim_of(2)).await;
    settle(s, "done", us, Mark::Done).await;
    let batch = ["ours", "theirs", "done", "free"].map(|name| (key(name), us));
    let replies: Vec<_> = s.store().release(batch.to_vec()).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies, [true, false, false, false]);
    assert_eq!(value(s, "ours").await, None);
    assert_eq!(value(s, "theirs").await, Some(claim_of(2).to_string()));
    assert_eq!(value(s, "done").await.as_deref(), Some("1"));
    assert_eq!(claim(s, "ours", claim_of(2)).await, ClaimReply::Claimed, "free for the next at once");
}

async fn a_lease_runs_out_by_itself(s: &impl Subject) {
    assert_eq!(claim_for(s, "a", claim_of(1), BLINK).await, ClaimReply::Claimed);
    s.outlive(&key("a")).await;
    assert_eq!(claim(s, "a", claim_of(2)).await, ClaimReply::Claimed);
    assert_eq!(claim(s, "a", claim_of(1)).await, ClaimReply::Busy);
}

async fn a_settled_record_runs_out_after_its_own_ttl(s: &impl Subject) {
    let batch = vec![(key("short"), claim_of(1), Mark::Done, BLINK), (key("long"), claim_of(1), Mark::Done, TTL)];
    assert!(s.store().settle(batch).await.iter().all(Result::is_ok));
    s.outlive(&key("short")).await;
    assert_eq!(claim(s, "short", claim_of(2)).await, ClaimReply::Claimed);
    assert_eq!(claim(s, "long", claim_of(2)).await, ClaimReply::Done);
}

async fn a_foreign_value_is_corrupt_and_cut_short(s: &impl Subject) {
    let long = "ü".repeat(500);
    for (value, shown) in [("hello", "hello"), ("", ""), ("P.1-1.1", "P.1-1.1"), (&long, &long[..128])] {
        s.plant(&key("a"), value).await;
        assert_eq!(claim(s, "a", claim_of(1)).await, ClaimReply::Corrupt(shown.to_owned()));
        assert!(!renew(s, "a", claim_of(1), LEASE).await);
        assert!(!release(s, "a", claim_of(1)).await);
    }
}

async fn an_empty_batch_has_an_empty_answer(s: &impl Subject) {
    assert!(s.store().claim(Vec::new(), LEASE).await.is_empty());
    assert!(s.store().renew(Vec::new(), LEASE).await.is_empty());
    assert!(s.store().settle(Vec::new()).await.is_empty());
    assert!(s.store().release(Vec::new()).await.is_empty());
}

async fn a_batch_of_a_thousand_answers_in_order(s: &impl Subject) {
    let name = |i: usize| key(&i.to_string());
    let us = claim_of(1);
    // Every third is somebody else's, every seventh finished.
    let theirs: Vec<_> = (0..1_000).step_by(3).map(|i| (name(i), claim_of(2))).collect();
    assert_eq!(s.store().claim(theirs, LEASE).await.len(), 334);
    let done: Vec<_> = (0..1_000).step_by(7).map(|i| (name(i), us, Mark::Done, TTL)).collect();
    assert_eq!(s.store().settle(done).await.len(), 143);

    let all: Vec<(CopyKey, Claim)> = (0..1_000).map(|i| (name(i), us)).collect();
    let expected = |i: usize| match i {
        i if i % 7 == 0 => ClaimReply::Done,
        i if i % 3 == 0 => ClaimReply::Busy,
        _ => ClaimReply::Claimed,
    };
    let replies = s.store().claim(all.clone(), LEASE).await;
    assert_eq!(replies.len(), 1_000);
    for (i, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.unwrap(), expected(i), "{i}");
    }
    let renewed = s.store().renew(all.clone(), LEASE).await;
    assert_eq!(renewed.len(), 1_000);
    for (i, renewed) in renewed.into_iter().enumerate() {
        assert_eq!(renewed.unwrap(), expected(i) == ClaimReply::Claimed, "{i}");
    }
    let released = s.store().release(all).await;
    assert_eq!(released.len(), 1_000);
    for (i, released) in released.into_iter().enumerate() {
        assert_eq!(released.unwrap(), expected(i) == ClaimReply::Claimed, "{i}");
    }
}

async fn one_copy_twice_in_a_batch_is_claimed_once(s: &impl Subject) {
    let batch = vec![(key("a"), claim_of(1)), (key("a"), claim_of(2)), (key("a"), claim_of(1))];
    let replies: Vec<_> = s.store().claim(batch, LEASE).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies, [ClaimReply::Claimed, ClaimReply::Busy, ClaimReply::AlreadyOurs]);
}

async fn keys_of_any_characters_are_kept_apart(s: &impl Subject) {
    let names =
        ["", " ", "a b", "a\r\nb", "\0", "{x}", "*", "日本語", "\u{1f980}", "'\"\\", "%25", "$5", &"x".repeat(5_000)];
    for (i, name) in (1..).zip(names) {
        assert_eq!(claim(s, name, claim_of(i)).await, ClaimReply::Claimed, "{name:?}");
    }
    for (i, name) in (1..).zip(names) {
        assert!(renew(s, name, claim_of(i), LEASE).await, "{name:?}");
        assert_eq!(claim(s, name, claim_of(99)).await, ClaimReply::Busy, "{name:?}");
        assert_eq!(settle(s, name, claim_of(i), Mark::Done).await, SettleReply::Ours, "{name:?}");
    }
}

async fn of_many_racing_claimers_exactly_one_gets_each_copy(s: &impl Subject) {
    const CLAIMERS: u64 = 32;
    const COPIES: usize = 100;
    // Built first and run as tasks of several threads, so that they do race.
    let races = (0..CLAIMERS).map(|process| {
        let mut batch: Vec<_> = (0..COPIES).map(|i| (key(&i.to_string()), claim_of(process))).collect();
        // Each begins elsewhere, or the first batch would win them all.
        batch.rotate_left(usize::try_from(process).unwrap() * 3);
        let names: Vec<_> = batch.iter().map(|(key, _)| key.clone()).collect();
        let singles: Vec<_> = batch.into_iter().map(|entry| s.store().claim(vec![entry], LEASE)).collect();
        tokio::spawn(async move {
            let mut won = Vec::new();
            for (name, single) in names.into_iter().zip(singles) {
                match single.await.remove(0).unwrap() {
                    ClaimReply::Claimed => won.push((name, process)),
                    reply => assert_eq!(reply, ClaimReply::Busy),
                }
            }
            won
        })
    });
    let won: Vec<_> = join_all(races).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(won.len(), COPIES);
    for (name, process) in won {
        assert_eq!(s.look(&name).await.unwrap().0, claim_of(process).to_string(), "{name}");
    }
}
