//! The whole contender, on paused time.
#![expect(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;
use crate::{
    Timings,
    test_contender::{
        ME, MS, Manner, OTHER, S, Sight, held, released, start, start_as, start_with,
    },
    test_server::{
        Asked, Fate, HOLDER_CONTAINER_ID, HOLDER_POD_UID, RELEASED_BY, STARTED, Server, held_by,
    },
};

#[path = "contest_tests/proofs.rs"]
mod proofs;

/// The jitter, and what the runtime's clock rounds up.
const AT_ONCE: Duration = Duration::from_millis(60);
const OBEDIENT: Manner = Manner::Drains(Duration::ZERO);

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_at_once_and_renewed_every_retry_period() {
    let one = start(&released(), OBEDIENT);
    let (began, leader) = one.term_after(0).await;
    assert!(began < AT_ONCE, "{began:?}");
    assert_eq!((leader.term.transitions, one.writes().len()), (4, 1));
    sleep(S(600)).await;
    let writes = one.writes();
    let gaps = writes.windows(2).map(|w| w[1].at - w[0].at);
    assert!(writes.len() > 590, "{}", writes.len());
    assert!(gaps.clone().min() >= Some(S(1)) && gaps.max() < Some(S(1) + AT_ONCE));
    assert!(leader.client.is_valid() && !leader.lost.is_cancelled());
    assert!(one.leads());
    assert_eq!(one.acquired(), [(4, Some(AcquireReason::Released))]);
    assert_eq!(one.server.lease()["spec"]["leaseTransitions"], 4);
    // Answered as soon as sent.
    let latency = one.told.lock().unwrap().latency;
    assert!(latency < S(1), "{latency:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_released_later_is_taken_at_once() {
    let server = held();
    let one = start(&server, OBEDIENT);
    sleep(S(3)).await;
    server.put(held_by(""), json!({RELEASED_BY: OTHER}));
    let (began, _) = one.term_after(0).await;
    assert!(began < S(3) + AT_ONCE, "{began:?}");
}

#[tokio::test(start_paused = true)]
async fn a_held_lease_is_not_even_asked_for_before_its_time() {
    let server = held();
    let one = start(&server, OBEDIENT);
    for n in 0..60 {
        sleep(S(1)).await;
        server.patch(&json!({"spec": {"renewTime": format!("2020-01-01T00:00:{n:02}.000000Z")}}));
    }
    // The first look may come before the watch.
    let calls = server.seen_where(Asked::is_lease_call);
    assert!(calls.iter().all(|a| a.at < AT_ONCE), "{calls:?}");
    let (began, leader) = one.term_after(0).await;
    assert!(began > S(66) && began < S(66) + AT_ONCE, "{began:?}");
    assert_eq!(leader.term.transitions, 4);
    assert_eq!(one.acquired(), [(4, Some(AcquireReason::Expired))]);
}

#[tokio::test(start_paused = true)]
async fn the_drain_comes_first_renewed_all_the_while_and_then_the_release() {
    let one = start(&released(), Manner::Drains(MS(5500)));
    one.term_after(0).await;
    sleep(S(10)).await;
    one.shutdown.cancel();
    let began = one.server.now();
    one.until(|one| one.running.is_finished()).await;
    let (drain, ended) = (one.when(&Sight::Drain).await, one.when(&Sight::Ended).await);
    let releases = one.releases();
    assert_eq!(releases.len(), 1);
    assert!(drain - began < AT_ONCE && ended >= drain + MS(5500));
    assert!(releases[0].at >= ended && releases[0].at < ended + AT_ONCE);
    let during = one
        .writes()
        .iter()
        .filter(|w| w.at > drain && w.at < ended)
        .count();
    assert!(
        (5..=6).contains(&during),
        "{during} renewals while draining"
    );
    assert!(one.all(|s| *s == Sight::Lost).is_empty());
    let lease = one.server.lease();
    assert_eq!(lease["spec"]["holderIdentity"], "");
    assert!(
        lease["metadata"]["annotations"][RELEASED_BY].is_string(),
        "{lease}"
    );
    assert_eq!(one.leadership.current(), None);
    assert!(!one.leads());
    assert_eq!(one.acquired(), [(4, Some(AcquireReason::Released))]);
    assert_eq!(one.ended(), [(4, EndReason::HandedOver)]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_end_is_cut_and_the_release_waits_for_the_work() {
    let one = start(&released(), Manner::Deaf);
    one.term_after(0).await;
    one.shutdown.cancel();
    one.until(|one| one.running.is_finished()).await;
    let (drain, lost) = (one.when(&Sight::Drain).await, one.when(&Sight::Lost).await);
    let ended = one.when(&Sight::Ended).await;
    assert!(lost >= drain + S(20) && lost < drain + S(20) + AT_ONCE);
    // Told that it is lost, it has two seconds before it is dropped.
    assert!(ended >= lost + S(2) && ended < lost + S(2) + AT_ONCE);
    let releases = one.releases();
    assert_eq!(releases.len(), 1);
    assert!(releases[0].at >= ended);
}

/// On real time: nothing else can run beside a thread that is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_work_lives_the_lease_is_not_released() {
    let hurried = Timings {
        handover_timeout: MS(50),
        ..Timings::default()
    };
    let one = start_with(&released(), Manner::Stuck, None, hurried, MS(50));
    let (_, leader) = one.term_after(0).await;
    one.shutdown.cancel();
    one.until(|one| one.running.is_finished()).await;
    assert!(one.releases().is_empty(), "{:?}", one.releases());
    assert!(!leader.client.is_valid());
    assert_eq!(one.leadership.current(), None);
    assert_eq!(one.ended(), [(4, EndReason::WorkStuck)]);
}

#[tokio::test(start_paused = true)]
async fn when_renewing_fails_the_work_is_cancelled_first_and_nothing_is_released() {
    let one = start(&released(), OBEDIENT);
    let (_, leader) = one.term_after(0).await;
    sleep(S(10)).await;
    one.server.on(|a| {
        if a.is_lease_call() {
            Fate::Refused(500)
        } else {
            Fate::Answered
        }
    });
    let last = one.writes().pop().unwrap();
    let lost = one.when(&Sight::Lost).await;
    // As late as its last acknowledged write allows, and no later.
    assert!(
        lost > last.at + S(4) - AT_ONCE && lost < last.at + S(4) + MS(5),
        "{lost:?} {last:?}"
    );
    assert!(!leader.client.is_valid());
    assert!(one.all(|s| *s == Sight::Drain).is_empty());
    assert_eq!(one.leadership.current(), None);
    sleep(S(60)).await;
    one.server.on(|_| Fate::Answered);
    let healed = one.server.now();
    let (began, next) = one.term_after(1).await;
    assert!(began < healed + S(2), "{began:?} {healed:?}");
    // Another identity, and so another term.
    assert_ne!(next.term.holder, leader.term.holder);
    assert_eq!(next.term.transitions, leader.term.transitions + 1);
    assert!(one.releases().is_empty() && !leader.client.is_valid());
    assert_eq!(one.ended(), [(4, EndReason::NotRenewed)]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_tried_again_soon() {
    let one = start(&released(), OBEDIENT);
    let (_, leader) = one.term_after(0).await;
    sleep(MS(500)).await;
    let mut fails = 3;
    one.server.on(move |a| {
        fails -= i32::from(a.is_lease_call());
        if fails < 0 {
            Fate::Answered
        } else {
            Fate::Refused(500)
        }
    });
    sleep(S(3)).await;
    let calls = one
        .server
        .seen_where(|a| a.is_lease_call() && !a.is_write() && a.at > MS(500));
    let gaps: Vec<Duration> = calls.windows(2).map(|c| c[1].at - c[0].at).collect();
    assert!(gaps.len() > 3, "{calls:?}");
    assert!(
        gaps[..3].iter().all(|g| *g >= MS(250) && *g < MS(260)),
        "{gaps:?}"
    );
    // Acknowledged: back to the ordinary pace.
    assert!(gaps[3] >= S(1), "{gaps:?}");
    assert!(leader.client.is_valid());
}

/// One answer that never comes may not cost the term.
#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_leaves_time_for_another() {
    let one = start(&released(), OBEDIENT);
    let (_, leader) = one.term_after(0).await;
    sleep(MS(500)).await;
    let mut first = true;
    one.server.on(move |a| {
        let lost = a.is_lease_call() && std::mem::take(&mut first);
        if lost { Fate::Lost } else { Fate::Answered }
    });
    sleep(S(20)).await;
    assert!(leader.client.is_valid() && !leader.lost.is_cancelled());
    assert_eq!(one.server.lease()["spec"]["leaseTransitions"], 4);
}

#[tokio::test(start_paused = true)]
async fn validity_counts_from_when_the_renewal_was_sent() {
    let one = start(&released(), OBEDIENT);
    let (_, leader) = one.term_after(0).await;
    sleep(S(3)).await;
    // One more renewal, acknowledged 1.5 s late; nothing after it.
    let mut answers = 1;
    one.server
        .on(move |a| match (a.is_lease_call(), a.is_write()) {
            (true, true) => {
                answers -= 1;
                if answers == 0 {
                    Fate::Late(MS(1500))
                } else {
                    Fate::Lost
                }
            }
            (true, false) if answers > 0 => Fate::Answered,
            _ => Fate::Lost,
        });
    let before = one.writes().len();
    one.until(|one| one.writes().len() > before).await;
    let sent = one.writes()[before].at;
    let lost = one.when(&Sight::Lost).await;
    assert!(
        lost > sent + S(4) - MS(5) && lost < sent + S(4) + MS(5),
        "{sent:?} {lost:?}"
    );
    assert!(!leader.client.is_valid());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_else_wrote_ends_the_term_at_once() {
    for deleted in [false, true] {
        let one = start(&released(), OBEDIENT);
        let (_, leader) = one.term_after(0).await;
        sleep(MS(4300)).await;
        let written = one.server.now();
        let writes = one.writes().len();
        if deleted {
            one.server.delete();
        } else {
            one.server.put(held_by(OTHER), json!({}));
        }
        let lost = one.when(&Sight::Lost).await;
        assert!(lost < written + MS(5), "{written:?} {lost:?}");
        assert!(!leader.client.is_valid());
        sleep(S(5)).await;
        assert_eq!(one.writes().len(), writes, "nothing to release");
        let reason = if deleted {
            EndReason::Deleted
        } else {
            EndReason::Overwritten
        };
        assert_eq!(one.ended(), [(4, reason)]);
    }
}

/// The work may take its time to end.
#[tokio::test(start_paused = true)]
async fn a_lost_term_writes_nothing_while_its_work_ends() {
    let one = start(&released(), Manner::Deaf);
    let (_, leader) = one.term_after(0).await;
    assert!(leader.client.is_valid());
    one.server.put(held_by(OTHER), json!({}));
    one.when(&Sight::Lost).await;
    assert!(!leader.client.is_valid());
    assert!(one.all(|sight| *sight == Sight::Ended).is_empty());
}

/// The watch may be late; the renewal's own read is not.
#[tokio::test(start_paused = true)]
async fn a_change_of_the_lease_that_no_watch_told_is_seen_by_the_renewal() {
    let others = [
        (
            json!({"spec": {"holderIdentity": OTHER}}),
            EndReason::HeldByOther,
        ),
        (
            json!({"spec": {"leaseTransitions": 9}}),
            EndReason::OtherTerm,
        ),
    ];
    for (patch, reason) in others {
        let server = released();
        server.lag(S(60));
        let one = start(&server, OBEDIENT);
        let (_, leader) = one.term_after(0).await;
        sleep(MS(4300)).await;
        let written = server.now();
        server.patch(&patch);
        let lost = one.when(&Sight::Lost).await;
        assert!(lost < written + S(1), "{written:?} {lost:?}");
        assert!(!leader.client.is_valid() && one.releases().is_empty());
        assert_eq!(one.ended(), [(4, reason)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_late_watch_tells_of_the_time_before_ends_no_term() {
    let server = held();
    server.lag(MS(300));
    let one = start(&server, OBEDIENT);
    sleep(S(2)).await;
    server.put(held_by(""), json!({RELEASED_BY: OTHER}));
    sleep(MS(100)).await;
    // Told after the first has made us leader.
    server.patch(&json!({"metadata": {"annotations": {"by": "hand"}}}));
    let (began, leader) = one.term_after(0).await;
    assert!(began < MS(2390), "{began:?}");
    sleep(S(10)).await;
    assert!(leader.client.is_valid() && !leader.lost.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_by_itself_ends_the_term_and_the_next_has_another_identity() {
    for manner in [Manner::Returns, Manner::Panics] {
        let one = start(&released(), manner);
        let (_, first) = one.term_after(0).await;
        one.until(|_| !first.client.is_valid()).await;
        let (began, next) = one.term_after(1).await;
        let ended = one.when(&Sight::Ended).await;
        // Our own record of a term that is over need not run out.
        assert!(began < ended + MS(100), "{ended:?} {began:?}");
        assert_ne!(next.term.holder, first.term.holder);
        assert!(one.releases().is_empty());
        assert_eq!(one.ended(), [(4, EndReason::WorkEnded)]);
    }
}

#[tokio::test(start_paused = true)]
async fn everybody_is_told_who_leads_and_where() {
    let server = held();
    let one = start(&server, OBEDIENT);
    let shown = || {
        one.leadership
            .current()
            .map(|l| (l.address.clone().unwrap(), l.is_local))
    };
    one.until(|_| shown().is_some()).await;
    assert_eq!(shown(), Some(("10.0.0.2:9090".into(), false)));
    assert_eq!(one.leadership.current().unwrap().term.holder, OTHER);
    // A stranger's identity tells no address.
    server.patch(&json!({"spec": {"holderIdentity": "somebody"}}));
    one.until(|_| shown().is_none()).await;
    // Ours without a term that runs: a process of the past at our address.
    server.patch(&json!({"spec": {"holderIdentity": format!("me_{ME}_00000000")}}));
    sleep(S(1)).await;
    assert_eq!(shown(), None);
    server.put(held_by(""), json!({RELEASED_BY: "x"}));
    let (_, leader) = one.term_after(0).await;
    assert_eq!(shown(), Some((ME.into(), true)));
    assert_eq!(one.leadership.current().unwrap().term, leader.term);
    let mut watch = one.leadership.watch();
    watch.mark_unchanged();
    sleep(S(10)).await;
    assert!(
        !watch.has_changed().unwrap(),
        "told again what had not changed"
    );
}

#[tokio::test(start_paused = true)]
async fn who_leads_is_told_as_long_as_calls_may_come() {
    let one = start(&released(), OBEDIENT);
    one.term_after(0).await;
    one.shutdown.cancel();
    let released = one.until(|one| !one.releases().is_empty()).await;
    one.until(|one| one.leadership.current().is_none()).await;
    one.server.put(held_by(OTHER), json!({}));
    let told = one.until(|one| one.leadership.current().is_some()).await;
    assert!(told < released + AT_ONCE);
    assert_eq!(one.leadership.current().unwrap().term.holder, OTHER);
    let gone = one.until(|one| one.running.is_finished()).await;
    assert!(
        gone >= released + S(2) && gone < released + S(2) + AT_ONCE,
        "{gone:?}"
    );
    // It does not contend again.
    assert_eq!(one.all(|s| matches!(s, Sight::Began(_))).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_beat_tells_life_and_its_silence_death() {
    let server = held();
    let one = start(&server, OBEDIENT);
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        sleep(MS(100)).await;
        longest = longest.max(one.heartbeat.age());
    }
    // However long it waits.
    assert!(longest <= S(1) + AT_ONCE, "{longest:?}");
    one.term_after(0).await;
    for _ in 0..600 {
        sleep(MS(100)).await;
        assert!(one.heartbeat.age() < S(1) + AT_ONCE);
    }
    one.running.abort();
    sleep(S(100)).await;
    assert!(one.heartbeat.age() > S(99));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_refuses_is_not_stormed() {
    let server = released();
    server.on(|a| {
        if a.is_lease_call() {
            Fate::Refused(500)
        } else {
            Fate::Answered
        }
    });
    let one = start(&server, OBEDIENT);
    sleep(S(60)).await;
    let tries = server.seen_where(Asked::is_lease_call).len();
    assert!((60..90).contains(&tries), "{tries} in a minute");
    // Nor is it left alone for long.
    let last = server.seen().pop().unwrap();
    assert!(last.at > S(58));
    server.on(|_| Fate::Answered);
    let (began, _) = one.term_after(0).await;
    assert!(began < S(62), "{began:?}");
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_a_contender_that_does_not_lead_goes_and_writes_nothing() {
    let server = held();
    let one = start(&server, OBEDIENT);
    sleep(S(1)).await;
    one.shutdown.cancel();
    let gone = one.until(|one| one.running.is_finished()).await;
    assert!(gone < S(3) + AT_ONCE, "{gone:?}");
    assert!(one.writes().is_empty());
    // Nor does one begin that was told before.
    let server = released();
    let one = start(&server, OBEDIENT);
    one.shutdown.cancel();
    one.until(|one| one.running.is_finished()).await;
    assert!(one.writes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_release_that_met_a_conflict_is_tried_again() {
    let one = start(&released(), OBEDIENT);
    one.term_after(0).await;
    let mut conflicts = 2;
    one.server.on(move |a| {
        conflicts -= i32::from(a.is_release());
        if a.is_release() && conflicts >= 0 {
            Fate::Refused(409)
        } else {
            Fate::Answered
        }
    });
    one.shutdown.cancel();
    one.until(|one| one.running.is_finished()).await;
    assert_eq!(one.releases().len(), 3);
    assert_eq!(one.server.lease()["spec"]["holderIdentity"], "");
}

#[test]
fn contenders_that_wake_together_do_not_all_write_together() {
    let all: std::collections::BTreeSet<Duration> = (0..100).map(|_| jitter()).collect();
    assert!(all.len() > 5 && all.iter().all(|j| *j < MS(20)), "{all:?}");
}
