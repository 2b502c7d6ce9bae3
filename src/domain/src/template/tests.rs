#![expect(clippy::unwrap_used)]
use proptest::prelude::*;

use super::{test_policy::policy_with, *};

fn generous() -> Policy {
    policy_with(&[
        ("OTTO_AGENT_IMAGE", "agent:1"),
        ("ALLOWED_IMAGES", "ci.example/*,busybox:*"),
        ("ALLOWED_PULL_SECRETS", "pull-*"),
        ("ALLOWED_COMMANDS", "make *,[*"),
        ("ALLOWED_SECRETS", "build-*"),
        ("ALLOWED_CA_BUNDLES", "ca-*"),
        ("ALLOWED_CACHE_CLAIMS", "cache-*"),
        ("ALLOWED_SERVICE_ACCOUNTS", "*"),
        ("ALLOWED_PRIORITY_CLASSES", "ci-*"),
        ("ALLOWED_NODE_LABELS", "disk=ssd,kubernetes.io/arch=*"),
        ("ALLOWED_TOLERATIONS", "ci=*:NoSchedule,spot:NoExecute"),
        ("MAX_WORKER_CPU", "2"),
        ("MAX_WORKER_MEMORY", "1Gi"),
        ("MAX_WORKSPACE", "10Gi"),
        ("MAX_WORKER_TIMEOUT", "1h"),
        ("MAX_WORKER_RETRIES", "5"),
        ("MAX_PRIORITY", "10"),
        ("SERVICE_ACCOUNT", "ottoscaler"),
        ("OWN_SECRETS", "build-callers"),
    ])
}

fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(own).collect()
}

fn parse(pairs: &[(&str, &str)]) -> Result<Template, Vec<Violation>> {
    Template::parse(&config(pairs), &generous())
}

fn accepted(key: &str, value: &str) -> Template {
    parse(&[(key, value)]).unwrap_or_else(|found| {
        assert_eq!(found, [], "{key}={value}");
        unreachable!()
    })
}

/// Each value is refused, its key named, and the description says `says`.
fn refused(key: &str, says: &str, values: &[&str]) {
    for value in values {
        let found = parse(&[(key, value)]).unwrap_err();
        assert_eq!(found.len(), 1, "{value}: {found:?}");
        assert_eq!(found[0].field, format!("build_config[{key}]"));
        let description = &found[0].description;
        assert!(description.contains(says), "{value}: {description}");
    }
}

#[test]
fn who_asks_for_nothing_gets_the_installers_defaults() {
    let t = parse(&[("MODE", "fast")]).unwrap();
    assert_eq!(
        (t.image.as_str(), t.pull_policy.as_str(), t.user_id),
        ("agent:1", "IfNotPresent", 65_532)
    );
    assert_eq!(
        (t.cpu.request.as_str(), t.cpu.limit.as_str()),
        ("10m", "500m")
    );
    assert_eq!(
        (t.memory.request.as_str(), t.memory.limit.as_str()),
        ("16Mi", "128Mi")
    );
    // Leaving a maximum unsaid is no way around it.
    assert_eq!((t.workspace.as_str(), t.timeout_seconds), ("10Gi", 3_600));
    assert_eq!(
        (t.command, t.service_account, t.cache_claim, t.ca_bundle),
        (None, None, None, None)
    );
    assert_eq!(t.environment, config(&[("MODE", "fast")]));
}

#[test]
fn an_empty_value_is_no_value() {
    let all: Vec<(&str, &str)> = KEYS.iter().map(|k| (k.name, " ")).collect();
    assert_eq!(parse(&all), parse(&[]));
}

#[test]
fn a_key_that_is_nearly_right_is_told() {
    refused("OTTO_IMGAE", "is no key of ours", &["agent:1"]);
    refused("OTTO_", "OTTO_IMAGE, ", &["x"]);
    // Other names are the worker's own business.
    assert!(parse(&[("otto_imgae", "x"), ("OTTOMAN", "x")]).is_ok());
}

#[test]
fn what_we_set_ourselves_is_passed_over() {
    let ours: Vec<_> = OURS.iter().map(|ours| (ours.name, "x")).collect();
    let t = parse(&ours).unwrap();
    assert!(t.environment.is_empty());
}

#[test]
fn an_image_is_one_that_is_allowed_or_the_default() {
    for image in [
        "ci.example/team/agent:1.2",
        "ci.example/a__b/c-d.e@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "busybox:latest",
        "agent:1",
    ] {
        assert_eq!(accepted("OTTO_IMAGE", image).image, image);
    }
    refused(
        "OTTO_IMAGE",
        "ALLOWED_IMAGES",
        &[
            "agent:2",
            "ci.example.evil/agent:1",
            "evil/ci.example/agent",
        ],
    );
    refused(
        "OTTO_IMAGE",
        "must be an image",
        &[
            "ci.example/../evil",
            "ci.example/Agent",
            "ci.example//agent",
            "ci.example/agent:",
            "ci.example/agent@sha256:12",
            "busybox:a b",
            "https://ci.example/agent",
            "-",
        ],
    );
}

#[test]
fn only_allowed_secrets_pull_images_or_become_environment() {
    assert_eq!(
        accepted("OTTO_IMAGE_PULL_SECRETS", "pull-a, pull-b,pull-a").pull_secrets,
        ["pull-a", "pull-b"]
    );
    assert_eq!(accepted("OTTO_SECRETS", "build-npm").secrets, ["build-npm"]);
    refused(
        "OTTO_IMAGE_PULL_SECRETS",
        "ALLOWED_PULL_SECRETS",
        &["build-npm"],
    );
    refused(
        "OTTO_SECRETS",
        "ALLOWED_SECRETS",
        &["pull-a", "build-a,other"],
    );
    refused(
        "OTTO_SECRETS",
        "must be the name",
        &["build-A", "build-", "a b", "token=x"],
    );
    let many = vec!["build-x"; 17].join(",");
    refused("OTTO_SECRETS", "at most 16 items", &[&many]);
}

#[test]
fn a_command_is_a_line_or_an_array() {
    assert_eq!(
        accepted("OTTO_COMMAND", "make all && make test")
            .command
            .unwrap(),
        ["/bin/sh", "-c", "make all && make test"]
    );
    assert_eq!(
        accepted("OTTO_COMMAND", r#"["make", "-j", "2"]"#)
            .command
            .unwrap(),
        ["make", "-j", "2"]
    );
    refused("OTTO_COMMAND", "ALLOWED_COMMANDS", &["rm -rf /"]);
    refused(
        "OTTO_COMMAND",
        "JSON array",
        &["[make", "[1]", "[ -f x ] && make", "[null]"],
    );
    refused(
        "OTTO_COMMAND",
        "program",
        &["[]", r#"[""]"#, r#"["a\u0000"]"#],
    );
}

#[test]
fn root_is_refused_unless_the_installer_allows_it() {
    assert_eq!(accepted("OTTO_USER_ID", "1000").user_id, 1_000);
    refused("OTTO_USER_ID", "ALLOW_ROOT_WORKERS", &["0", "00"]);
    refused(
        "OTTO_USER_ID",
        "a user id",
        &["-1", "root", "2147483648", "1.5"],
    );
    let root = Template::parse(
        &config(&[("OTTO_USER_ID", "0")]),
        &policy_with(&[("ALLOW_ROOT_WORKERS", "true")]),
    );
    assert_eq!(root.unwrap().user_id, 0);
}

#[test]
fn cpu_and_memory_stay_within_their_maxima() {
    let t = accepted("OTTO_CPU_LIMIT", "2000m");
    assert_eq!(
        (t.cpu.request.as_str(), t.cpu.limit.as_str()),
        ("10m", "2000m")
    );
    // The default request gives way.
    assert_eq!(accepted("OTTO_CPU_LIMIT", "5m").cpu.request.as_str(), "5m");
    assert_eq!(
        accepted("OTTO_CPU_REQUEST", "0.5").cpu.request.as_str(),
        "0.5"
    );
    assert_eq!(
        accepted("OTTO_MEMORY_LIMIT", "1Gi").memory.limit.as_str(),
        "1Gi"
    );
    let t = parse(&[("OTTO_MEMORY_LIMIT", "1G"), ("OTTO_MEMORY_REQUEST", "900M")]).unwrap();
    assert_eq!(t.memory.request.as_str(), "900M");

    refused(
        "OTTO_CPU_LIMIT",
        "at most 2 (MAX_WORKER_CPU)",
        &["2001m", "1e1", "9E"],
    );
    refused(
        "OTTO_CPU_REQUEST",
        "at most 500m (OTTO_CPU_LIMIT)",
        &["501m"],
    );
    refused(
        "OTTO_CPU_LIMIT",
        "a quantity",
        &["much", "-1", "0", "0.1m", "1 m"],
    );
    refused(
        "OTTO_MEMORY_LIMIT",
        "at most 1Gi (MAX_WORKER_MEMORY)",
        &["1073741825", "1.1Gi"],
    );
    refused(
        "OTTO_MEMORY_REQUEST",
        "at most 128Mi (OTTO_MEMORY_LIMIT)",
        &["129Mi"],
    );
    refused("OTTO_MEMORY_LIMIT", "of bytes", &["128mib", "100m", "0"]);
}

#[test]
fn a_workspace_and_a_cache_are_bounded() {
    assert_eq!(
        accepted("OTTO_WORKSPACE_SIZE", "512Mi").workspace.as_str(),
        "512Mi"
    );
    refused(
        "OTTO_WORKSPACE_SIZE",
        "at most 10Gi (MAX_WORKSPACE)",
        &["11Gi"],
    );
    refused("OTTO_WORKSPACE_SIZE", "of bytes", &["big", "1m"]);
    assert_eq!(
        accepted("OTTO_CACHE_CLAIM", "cache-cargo")
            .cache_claim
            .as_deref(),
        Some("cache-cargo")
    );
    refused("OTTO_CACHE_CLAIM", "ALLOWED_CACHE_CLAIMS", &["data"]);
    refused(
        "OTTO_CACHE_CLAIM",
        "must be the name",
        &["cache-/x", "cache-a,cache-b"],
    );
}

#[test]
fn certificates_come_from_an_allowed_config_map() {
    let bundle = |text| accepted("OTTO_CA_BUNDLE", text).ca_bundle.unwrap();
    assert_eq!(bundle("ca-corp").key, "ca.crt");
    let with_key = bundle("ca-corp/bundle.pem");
    assert_eq!(
        (with_key.config_map.as_str(), with_key.key.as_str()),
        ("ca-corp", "bundle.pem")
    );
    refused("OTTO_CA_BUNDLE", "ALLOWED_CA_BUNDLES", &["root-ca.crt"]);
    refused(
        "OTTO_CA_BUNDLE",
        "ConfigMap/key",
        &["ca-corp/", "ca-corp/../x", "ca-corp/a/b"],
    );
    refused("OTTO_CA_BUNDLE", "must be the name", &["/x", "ca-"]);
}

#[test]
fn a_proxy_carries_no_password() {
    let t = parse(&[
        ("OTTO_HTTP_PROXY", "http://proxy:3128"),
        ("OTTO_HTTPS_PROXY", "https://proxy:3129/"),
        ("OTTO_NO_PROXY", "localhost,.svc, 10.0.0.0/8"),
    ]);
    let proxies = t.unwrap().proxies;
    assert_eq!(proxies["HTTP_PROXY"], "http://proxy:3128");
    assert_eq!(proxies["HTTPS_PROXY"], "https://proxy:3129/");
    assert_eq!(proxies["NO_PROXY"], "localhost,.svc, 10.0.0.0/8");
    refused(
        "OTTO_HTTP_PROXY",
        "no credentials",
        &["http://me:secret@proxy:3128"],
    );
    refused(
        "OTTO_HTTPS_PROXY",
        "a URL",
        &["proxy:3128", "http://", "http://a b"],
    );
    refused("OTTO_NO_PROXY", "hosts", &["a\nb"]);
    let found = parse(&[("OTTO_HTTP_PROXY", "http://me:secret@proxy")]).unwrap_err();
    assert!(!found[0].description.contains("secret"), "{found:?}");
}

#[test]
fn no_worker_gets_a_secret_of_ottoscaler() {
    // Though the policy allows it.
    for key in ["OTTO_SECRETS", "OTTO_IMAGE_PULL_SECRETS"] {
        refused(
            key,
            "own",
            &["build-callers", " build-callers ", "build-callers, build-x"],
        );
    }
    assert_eq!(accepted("OTTO_SECRETS", "build-x").secrets, ["build-x"]);
}

#[test]
fn no_worker_acts_as_ottoscaler() {
    assert_eq!(
        accepted("OTTO_SERVICE_ACCOUNT", "deployer")
            .service_account
            .as_deref(),
        Some("deployer")
    );
    // Though the policy allows any.
    refused(
        "OTTO_SERVICE_ACCOUNT",
        "own",
        &["ottoscaler", " ottoscaler "],
    );
    refused(
        "OTTO_SERVICE_ACCOUNT",
        "must be the name",
        &["a/b", "Deployer"],
    );
    let found = Template::parse(
        &config(&[("OTTO_SERVICE_ACCOUNT", "deployer")]),
        &policy_with(&[]),
    );
    assert!(
        found.unwrap_err()[0]
            .description
            .contains("ALLOWED_SERVICE_ACCOUNTS is none")
    );
}

#[test]
fn nodes_are_chosen_by_allowed_labels() {
    assert_eq!(
        accepted("OTTO_NODE_SELECTOR", "disk=ssd, kubernetes.io/arch=arm64").node_selector,
        config(&[("disk", "ssd"), ("kubernetes.io/arch", "arm64")])
    );
    refused(
        "OTTO_NODE_SELECTOR",
        "ALLOWED_NODE_LABELS",
        &["disk=hdd", "pool=gpu", "disk=ssd,pool=gpu"],
    );
    refused(
        "OTTO_NODE_SELECTOR",
        "must be label=value",
        &["disk", "=x", "a/b/c=d", "disk=a b", "/a=b"],
    );
    refused(
        "OTTO_NODE_SELECTOR",
        "once",
        &["kubernetes.io/arch=a,kubernetes.io/arch=b"],
    );
}

#[test]
fn tolerations_are_written_as_taints() {
    let all = accepted("OTTO_TOLERATIONS", "ci=a:NoSchedule,spot:NoExecute").tolerations;
    let toleration = |key: &str, value: Option<&str>, effect: &str| Toleration {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        effect: effect.to_owned(),
    };
    assert_eq!(
        all,
        [
            toleration("ci", Some("a"), "NoSchedule"),
            toleration("spot", None, "NoExecute")
        ]
    );
    // A toleration of any value is not one of some value.
    refused(
        "OTTO_TOLERATIONS",
        "ALLOWED_TOLERATIONS",
        &["ci:NoSchedule", "ci=a:NoExecute", "gpu:NoSchedule"],
    );
    refused(
        "OTTO_TOLERATIONS",
        "must be key=value:Effect",
        &[
            "ci",
            "ci=a",
            "ci=a:Never",
            ":NoSchedule",
            "=a:NoSchedule",
            "*:NoSchedule",
        ],
    );
}

#[test]
fn a_priority_class_is_allowed_by_name() {
    assert_eq!(
        accepted("OTTO_PRIORITY_CLASS", "ci-high")
            .priority_class
            .as_deref(),
        Some("ci-high")
    );
    refused(
        "OTTO_PRIORITY_CLASS",
        "ALLOWED_PRIORITY_CLASSES",
        &["system-node-critical"],
    );
}

#[test]
fn a_timeout_is_whole_seconds_up_to_the_maximum() {
    for (text, seconds) in [("90", 90), ("1h", 3_600), ("1500ms", 2), ("1ns", 1)] {
        assert_eq!(
            accepted("OTTO_TIMEOUT", text).timeout_seconds,
            seconds,
            "{text}"
        );
    }
    refused(
        "OTTO_TIMEOUT",
        "3600 s (MAX_WORKER_TIMEOUT)",
        &["3601", "1h1ms", "9999999h"],
    );
    refused("OTTO_TIMEOUT", "above 0", &["0", "0s", "-5s", "soon"]);
}

#[test]
fn the_planner_reads_priority_and_retry_limit_of_the_task() {
    let asked = config(&[("OTTO_PRIORITY", "-3"), ("OTTO_RETRY_LIMIT", " 0")]);
    assert!(Template::parse(&asked, &generous()).is_ok());
    assert_eq!((priority(&asked), retry_limit(&asked)), (-3, Some(0)));
    let none = config(&[]);
    assert_eq!((priority(&none), retry_limit(&none)), (0, None));
    refused(
        "OTTO_PRIORITY",
        "from -10 to 10",
        &["11", "-11", "high", "-2147483648"],
    );
    refused("OTTO_RETRY_LIMIT", "from 0 to 5", &["6", "-1", "many"]);
}

#[test]
fn every_wrong_key_is_told_at_once() {
    let all: Vec<(&str, &str)> = KEYS.iter().map(|k| (k.name, "\u{1}@ wrong")).collect();
    let found = parse(&all).unwrap_err();
    let mut told: Vec<&str> = found.iter().map(|v| v.field.as_str()).collect();
    told.sort_unstable();
    // A line for the shell is one, whatever it says: here the policy refuses it.
    let mut keys: Vec<String> = KEYS
        .iter()
        .map(|k| format!("build_config[{}]", k.name))
        .collect();
    keys.sort_unstable();
    assert_eq!(told, keys);
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(
        values in proptest::collection::vec("\\PC{0,20}|[a-z0-9:/@=,.*\\[\\]\"-]{0,30}", 22),
        other in "(OTTO_)?[A-Z_]{0,9}",
    ) {
        let mut all: BTreeMap<String, String> =
            KEYS.iter().map(|k| k.name.to_owned()).zip(values).collect();
        all.insert(other, String::new());
        let _ = Template::parse(&all, &generous());
    }
}
