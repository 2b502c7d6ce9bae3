#![expect(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::{
    domain::{request::Refusal, violation::Violation},
    grpc::errors,
};

/// Returns the pushback in milliseconds, and the delay of the RetryInfo.
fn said(status: &Status) -> (Option<i64>, Option<Duration>) {
    let pushback = status.metadata().get(RETRY_PUSHBACK);
    let pushback = pushback.map(|value| value.to_str().unwrap().parse().unwrap());
    let details = status.get_details_retry_info();
    (pushback, details.and_then(|info| info.retry_delay))
}

/// Asserts what holds of every status: both say the same, and nothing else says anything.
fn assert_advice_is_consistent(status: &Status) {
    match (status.code(), said(status)) {
        (Code::Unavailable | Code::ResourceExhausted, (Some(ms), Some(delay))) => {
            assert_eq!(i128::from(ms), i128::try_from(delay.as_millis()).unwrap());
            assert!(!delay.is_zero(), "{status:?}");
        }
        (Code::ResourceExhausted, (Some(-1), None)) => {}
        (Code::Unavailable | Code::ResourceExhausted, said) => panic!("{status:?} says {said:?}"),
        (_, said) => assert_eq!(said, (None, None), "{status:?}"),
    }
}

/// One of each variant. The match has no wildcard, so that a new variant is added here too.
fn every_refusal() -> Vec<Refusal> {
    let next = |refusal: &Refusal| match refusal {
        Refusal::Invalid(_) => Some(Refusal::Conflict {
            task_id: "t".into(),
            fields: vec!["repository"],
        }),
        Refusal::Conflict { .. } => Some(Refusal::NoSuchTask("t".into())),
        Refusal::NoSuchTask(_) => Some(Refusal::Unavailable("u".into())),
        Refusal::Unavailable(_) => Some(Refusal::NotLeader),
        Refusal::NotLeader => Some(Refusal::Exhausted("e".into())),
        Refusal::Exhausted(_) => Some(Refusal::Failed("f".into())),
        Refusal::Failed(_) => None,
    };
    let first = Refusal::Invalid(vec![Violation {
        field: "f".into(),
        description: "d".into(),
    }]);
    std::iter::successors(Some(first), next).collect()
}

#[test]
fn every_status_that_we_make_says_once_when_to_retry() {
    let mut made: Vec<Status> = every_refusal()
        .into_iter()
        .map(errors::from_refusal)
        .collect();
    assert_eq!(made.len(), 7);
    made.extend([
        errors::not_leader("m"),
        errors::stopping(),
        errors::not_finished_in_time(),
        errors::from_hop(Status::cancelled("the connection broke")),
        errors::hop_refused(&Status::unauthenticated("m")),
        errors::unavailable("REASON", "m".into()),
        errors::resource_exhausted("m"),
        errors::worker_too_large(2, 1),
        errors::invalid("field", "m"),
        errors::not_synced(),
        errors::draining(),
        errors::from_viewer(Status::unavailable("m")),
        errors::from_viewer(Status::resource_exhausted("m")),
        errors::from_viewer(Status::not_found("m")),
    ]);
    for status in &made {
        assert_advice_is_consistent(status);
    }
}

#[test]
fn a_call_that_can_never_succeed_is_not_sent_again() {
    // tonic says this of a request that is too large once decompressed.
    let bomb = advise(Status::resource_exhausted("larger than the limit"));
    for status in [bomb, errors::worker_too_large(2, 1)] {
        assert_eq!(said(&status), (Some(-1), None), "{status:?}");
    }
}

#[test]
fn clients_that_were_refused_together_come_back_apart() {
    let delays: Vec<Duration> = (0..100)
        .map(|_| said(&errors::resource_exhausted("m")).1.unwrap())
        .collect();
    let bounds = RETRY_DELAY..RETRY_DELAY * 3 / 2;
    assert!(delays.iter().all(|delay| bounds.contains(delay)));
    let apart: std::collections::BTreeSet<&Duration> = delays.iter().collect();
    assert!(apart.len() > 50, "{} of 100 differ", apart.len());
}

#[test]
fn a_status_that_nobody_here_made_says_it_too_and_keeps_the_rest() {
    for code in (0..=16).map(Code::from_i32) {
        let mut headers = HeaderMap::new();
        let mut status = Status::new(code, "a message");
        status
            .metadata_mut()
            .insert("other", "kept".parse().unwrap());
        status.add_header(&mut headers).unwrap();
        advise_headers(&mut headers);
        let advised = Status::from_header_map(&headers).unwrap();
        assert_eq!((advised.code(), advised.message()), (code, "a message"));
        assert_eq!(advised.metadata().get("other").unwrap(), "kept");
        assert_advice_is_consistent(&advised);
        // It is said once, whoever passes it on.
        let before = headers.clone();
        advise_headers(&mut headers);
        assert_eq!(headers, before);
    }
    let mut headers = HeaderMap::new();
    advise_headers(&mut headers);
    assert!(headers.is_empty());
}
