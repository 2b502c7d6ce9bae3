//! Tests with the texts of the API server of Kubernetes 1.37.
use super::*;

fn judged(code: u16, message: &str) -> Refusal {
    judge(Answer {
        code,
        message,
        ..Answer::default()
    })
}

/// Returns the message of a pod that the API server forbids.
fn forbidden(said: &str) -> Refusal {
    judged(
        403,
        &format!("pods \"otto-agent-t-1\" is forbidden: {said}"),
    )
}

fn is(refusal: &Refusal, by: By, verdict: Verdict) {
    assert_eq!((refusal.by, refusal.verdict), (by, verdict), "{refusal:?}");
}

#[test]
fn a_quota_waits_whatever_it_says() {
    for said in [
        "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2",
        "status unknown for quota: q, resources: limits.memory,pods",
        "failed quota: q: must specify limits.ephemeral-storage for: worker",
        "insufficient quota to consume: pods",
    ] {
        let refusal = forbidden(said);
        is(&refusal, By::Quota, Verdict::Waits);
        assert_eq!(refusal.scope(), Scope::Shape);
        assert!(refusal.waits_for().contains(said), "{refusal:?}");
    }
    // The plain error of an admission plugin comes like this.
    let scopes = "insufficient quota to match these scopes: [{PriorityClass In [high]}]";
    is(&judged(500, scopes), By::Quota, Verdict::Waits);
}

#[test]
fn what_a_quota_can_never_give_is_told_as_such() {
    let exceeded = |asked: &str, used: &str, limited: &str| {
        let said = format!(
            "exceeded quota: q, requested: limits.memory={asked},pods=1, used: limits.memory={used},pods=3, limited: limits.memory={limited},pods=2"
        );
        forbidden(&said).waits_for()
    };
    let told = exceeded("8Gi", "0", "4Gi");
    assert!(told.starts_with("ask for more than the quota has in all (exceeded quota: q"));
    assert!(exceeded("1Gi", "4Gi", "4Gi").starts_with("wait for room in the quota ("));
    let none = exceeded("1Gi", "0", "0");
    assert!(none.starts_with("ask for more than"), "{none}");
}

#[test]
fn a_quotas_refusal_says_what_it_counted() {
    let refusal = forbidden(
        "exceeded quota: q, requested: limits.memory=128Mi,pods=1, used: pods=2, limited: pods=2",
    );
    let amounts = vec![
        ("limits.memory", Quantity::parse("128Mi")),
        ("pods", Quantity::parse("1")),
    ];
    assert_eq!(refusal.requested(), amounts);
    let unknown = forbidden("status unknown for quota: q, resources: pods");
    assert_eq!(unknown.requested(), []);
}

#[test]
fn a_limit_range_fails_at_once_and_says_what_sets_the_amounts() {
    let refusal = forbidden("minimum cpu usage per Container is 100m, but request is 10m");
    is(&refusal, By::LimitRange, Verdict::Final);
    assert_eq!(
        refusal.text,
        "LimitRange: minimum cpu usage per Container is 100m, but request is 10m (set by \
         WORKER_CPU_REQUEST and WORKER_CPU_LIMIT, or OTTO_CPU_REQUEST and OTTO_CPU_LIMIT)"
    );
    for said in [
        "maximum memory usage per Pod is 1Gi, but limit is 2147483648",
        "cpu max limit to request ratio per Container is 10, but provided ratio is 50.000000",
        "[minimum memory usage per Container is 32Mi, but request is 16Mi, memory max limit to request ratio per Container is 4, but provided ratio is 8.000000]",
        "minimum ephemeral-storage usage per Container is 1Gi.  No request is specified",
    ] {
        is(&forbidden(said), By::LimitRange, Verdict::Final);
    }
    let trouble =
        "unable to CREATE pods at this time because there was an error enforcing limit ranges";
    is(&forbidden(trouble), By::Unknown, Verdict::Repeats);
}

#[test]
fn who_denies_this_very_pod_fails_it_at_once() {
    let violates = "violates PodSecurity \"restricted:latest\": runAsNonRoot != true";
    is(&forbidden(violates), By::PodSecurity, Verdict::Final);
    let policy = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no registry.example.com, try again";
    is(&forbidden(policy), By::Policy, Verdict::Final);
    let invalid = format!("pods \"x\" is forbidden: {policy}");
    is(&judged(422, &invalid), By::Policy, Verdict::Final);
    for code in [400, 403, 422] {
        let denied =
            "admission webhook \"validation.gatekeeper.sh\" denied the request: [no-latest] tag";
        is(&judged(code, denied), By::Webhook, Verdict::Final);
    }
    let silent = "admission webhook \"w\" denied the request without explanation";
    is(&judged(400, silent), By::Webhook, Verdict::Final);
    let images = "one or more images rejected by webhook backend";
    is(&forbidden(images), By::Webhook, Verdict::Final);
    let invalid = "Pod \"p\" is invalid: spec.containers[0].image: Required value";
    is(&judged(422, invalid), By::Invalid, Verdict::Final);
}

#[test]
fn who_could_not_judge_is_asked_again_for_a_while() {
    for why in [
        "failed to call webhook: Post \"https://w.n.svc:443/v?timeout=10s\": context deadline exceeded",
        "failed to call webhook: Post \"https://w.n.svc:443/v?timeout=10s\": dial tcp 10.0.0.1:443: connect: connection refused",
        "failed to call webhook: Post \"https://w.n.svc:443/v?timeout=10s\": no endpoints available for service \"w\"",
        "received invalid webhook response: expected webhook response of admission.k8s.io/v1",
    ] {
        let text = format!("Internal error occurred: failed calling webhook \"w\": {why}");
        let refusal = judged(500, &text);
        is(&refusal, By::Judge, Verdict::Repeats);
        assert_eq!(refusal.scope(), Scope::Task);
        assert!(refusal.text.contains(why));
    }
    for (code, said) in [
        (500, "cannot decode"),
        (403, "the webhook is not yet ready"),
        (403, "failed to get x: Timed out, try again"),
    ] {
        let text = format!("admission webhook \"w\" denied the request: {said}");
        is(&judged(code, &text), By::Judge, Verdict::Repeats);
    }
    for said in [
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed to configure binding: paramKind kind `v1, Kind=ConfigMap` not yet synced to use for admission",
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: expression 'params.x' resulted in error: no such key: x",
    ] {
        is(&forbidden(said), By::Judge, Verdict::Repeats);
    }
    let mutating = "policy 'm' with binding 'b' denied request: failed to configure binding: x";
    is(&judged(422, mutating), By::Judge, Verdict::Repeats);
}

#[test]
fn what_concerns_all_pods_is_known_as_such() {
    let all = |refusal: Refusal, by| {
        is(&refusal, by, Verdict::Repeats);
        assert_eq!(refusal.scope(), Scope::All);
    };
    let user = "User \"system:serviceaccount:n:o\" cannot create resource \"pods\" in API group \"\" in the namespace \"n\"";
    all(judged(403, &format!("pods is forbidden: {user}")), By::Rbac);
    let more =
        format!("pods is forbidden: {user}: RBAC: role.rbac.authorization.k8s.io \"o\" not found");
    all(judged(403, &more), By::Rbac);
    all(judged(401, "Unauthorized"), By::Rbac);
    all(forbidden("not yet ready to handle request"), By::Startup);
    let terminating = "unable to create new content in namespace n because it is being terminated";
    all(forbidden(terminating), By::Namespace);
    all(judged(404, "namespaces \"n\" not found"), By::Namespace);
    let cause = judge(Answer {
        code: 403,
        message: "in words of another version",
        causes: &["NamespaceTerminating"],
        ..Answer::default()
    });
    all(cause, By::Namespace);
}

#[test]
fn what_is_missing_may_come() {
    for said in [
        "error looking up service account n/default: serviceaccount \"default\" not found",
        "no PriorityClass with name urgent was found",
        "pod rejected: RuntimeClass \"gvisor\" not found",
    ] {
        is(&forbidden(said), By::Missing, Verdict::Repeats);
    }
}

#[test]
fn the_servers_own_trouble_never_fails_a_worker() {
    for (code, message) in [
        (429, "Too many requests, please try again later."),
        (
            500,
            "Internal error occurred: resource quota evaluation timed out",
        ),
        (500, "etcdserver: request timed out"),
        (503, "apiserver is shutting down"),
        (
            504,
            "Timeout: request did not complete within requested timeout - context deadline exceeded",
        ),
    ] {
        is(&judged(code, message), By::Server, Verdict::Waits);
    }
    let modified = "Operation cannot be fulfilled on resourcequotas \"q\": the object has been modified; please apply your changes to the latest version and try again";
    is(&judged(409, modified), By::Conflict, Verdict::Waits);
    let fenced = judge(Answer {
        code: 422,
        message: "ValidatingAdmissionPolicy 'n-o-fence' denied request: x",
        is_fenced: true,
        ..Answer::default()
    });
    is(&fenced, By::Fence, Verdict::Waits);
}

#[test]
fn what_is_not_understood_is_tried_again_for_a_while() {
    is(
        &forbidden("the moon is full"),
        By::Unknown,
        Verdict::Repeats,
    );
    is(&judged(418, ""), By::Unknown, Verdict::Repeats);
}

/// Policies and webhooks may quote anything.
#[test]
fn nobodys_words_stand_for_somebody_elses_refusal() {
    let quoted = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2";
    let policy = format!(
        "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: pods \"x\" is forbidden: {quoted}"
    );
    is(&forbidden(&policy), By::Policy, Verdict::Final);
    let webhook = format!("admission webhook \"w\" denied the request: {quoted}");
    is(&judged(403, &webhook), By::Webhook, Verdict::Final);
    let named = "the pod violates PodSecurity \"restricted\", says somebody";
    is(&forbidden(named), By::Unknown, Verdict::Repeats);
}

#[test]
fn a_text_names_no_pod_and_has_an_end() {
    let long = format!("violates PodSecurity \"x\": {}", "é".repeat(600));
    let refusal = forbidden(&long);
    assert!(refusal.text.len() <= 600 && !refusal.text.contains("otto-agent"));
    let other = Refusal::other_pod("otto-agent-t-1", false);
    is(&other, By::OtherPod, Verdict::Repeats);
    assert_eq!(
        other.waits_for(),
        "find their name taken: pod otto-agent-t-1 exists and is not ours; delete it or use another task id"
    );
    is(&Refusal::other_pod("p", true), By::OtherPod, Verdict::Waits);
}
