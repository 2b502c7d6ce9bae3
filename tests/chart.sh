#!/usr/bin/env bash
# What the chart renders and what it refuses, without a cluster. Each function below the
# line is a case; every case must check something.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
deploy/local/build.sh helm || exit 1
PATH=$(deploy/local/build.sh --path)$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HELM_CACHE_HOME=$work HELM_CONFIG_HOME=$work HELM_DATA_HOME=$work
release=otto namespace=ci checks=0 failures=0

wrong() { printf '    wrong: %s\n' "$*"; failures=$((failures + 1)); }

# Renders into $work/out; what Helm says otherwise is in $work/said.
template() {
  helm template "$release" charts/ottoscaler -n "$namespace" --kube-version 1.35.0 "$@" > "$work/out" 2> "$work/said"
}
render() { template "$@" || wrong "not rendered with $*: $(cat "$work/said")"; }

# text…: each is in what was rendered
shows() {
  local text
  for text in "$@"; do
    checks=$((checks + 1))
    grep -qF -- "$text" "$work/out" || wrong "not rendered: $text"
  done
}

# what expected: a value that was worked out
equals() {
  checks=$((checks + 1))
  [ "$1" = "$2" ] || wrong "is '$1', not '$2'"
}

# part-of-the-message flags…
refused() {
  local path=$1
  shift
  checks=$((checks + 1))
  if template "$@"; then wrong "taken: $*"; return; fi
  grep -qF -- "$path" "$work/said" || wrong "refused without naming $path: $(cat "$work/said")"
}

# One line for each object: kind, name, namespace (- without one).
objects() {
  awk 'function tell() { if (kind) print kind, name, (namespace ? namespace : "-"); kind = name = namespace = "" }
    /^---/ { tell() } END { tell() }
    /^kind: / { kind = $2 }
    /^[a-z]/ { in_metadata = /^metadata:/ }
    in_metadata && /^  name: / { name = $2 }
    in_metadata && /^  namespace: / { namespace = $2 }' "$work/out" | tr -d '"'
}
settings() { sed -nE 's/^ +- \{?name: ([A-Z_]+).*/\1/p' "$work/out"; }
setting() { sed -nE "s/^ +- \{name: $1, value: \"(.*)\"\}\$/\1/p" "$work/out"; }
grace() { sed -nE 's/.*terminationGracePeriodSeconds: ([0-9]+)$/\1/p' "$work/out"; }

shopt -s extdebug
helpers=$(compgen -A function)

# ---

a_service_in_the_namespace_is_no_setting_of_ours() {
  release=grpc render
  shows 'enableServiceLinks: false'
  # What is set is not taken from a link, whoever turns them on again.
  equals "$(setting GRPC_PORT) $(setting HEALTH_PORT) $(setting METRICS_PORT)" '9090 9091 9092'
}

a_log_level_that_is_none_is_refused() {
  local level
  for level in warning verbose 2 ottoscaler 'info,' 'kube=loud' 'info debug'; do
    refused /logLevel --set-json "logLevel=\"$level\""
  done
  for level in info WARN Debug off 'info,kube=debug' 'ottoscaler::logs=trace, warn'; do
    render --set-json "logLevel=\"$level\""
    equals "$(setting LOG_LEVEL)" "$level"
  done
}

a_collector_without_a_scheme_is_refused() {
  refused /otlpEndpoint --set otlpEndpoint=collector:4317
  refused /otlpEndpoint --set otlpEndpoint=grpc://collector:4317
  render --set otlpEndpoint=https://collector:4317
  equals "$(setting OTEL_EXPORTER_OTLP_ENDPOINT)" https://collector:4317
}

no_setting_is_rendered_twice() {
  local name
  render --set config.MAX_WORKERS=7
  equals "$(setting MAX_WORKERS)" 7
  equals "$(settings | sort | uniq -d)" ''
  for name in $(settings | grep -vx MAX_WORKERS); do
    refused "'$name'" --set "config.$name=1"
    # Without the schema as well.
    refused "config.$name" --skip-schema-validation --set "config.$name=1"
  done
}

a_setting_that_does_not_exist_is_refused() {
  refused "at '/config': additional properties 'MAX_WORKER'" --set config.MAX_WORKER=1
  refused "at '/config': additional properties 'max_workers'" --set config.max_workers=1
  refused /config/TASK_TTL --set config.TASK_TTL=soon
  refused /config/MAX_WORKERS --set config.MAX_WORKERS=many
  refused /config/PAUSED --set config.PAUSED=yes
}

the_grace_period_follows_the_handover() {
  local pair
  render
  equals "$(grace)" 45
  for pair in 60=85 60s=85 1m30s=115 1500ms=27 0.5s=26 2m=145 1h=3625 0s=25; do
    render --set "handoverTimeout=${pair%=*}"
    equals "$(grace)" "${pair#*=}"
  done
  for pair in soon 60x 's' '1s1m' '-1s' ''; do refused /handoverTimeout --set-json "handoverTimeout=\"$pair\""; done
}

lease_timings_that_cannot_be_safe_are_refused() {
  refused lease.renewDeadline --set lease.renewDeadline=6s
  refused lease.retryPeriod --set lease.retryPeriod=2100ms
  refused lease.duration --set lease.duration=1500ms
  refused lease.duration --set lease.duration=2h
  refused lease.retryPeriod --set lease.retryPeriod=0
  refused lease.retryPeriod --set lease.retryPeriod=50ms
  render --set lease.duration=1m --set lease.renewDeadline=40s --set lease.retryPeriod=10s
  equals "$(setting LEASE_DURATION) $(setting LEASE_RENEW_DEADLINE) $(setting LEASE_RETRY_PERIOD)" '1m 40s 10s'
}

a_value_that_does_not_exist_is_refused_with_its_path() {
  local path
  for path in replica image.tags callers.modes networkPolicy.enable worker.cpu lease.period logSpool.path fence.enabled fence.policy.enable \
    tls.secrets tls.certManager.issuer.names handlerTls.ca flowSchema.enable serviceAccount.create resources.limit; do
    refused "'${path##*.}' not allowed" --set "$path=1"
    case $path in *.*) refused "at '/$(sed 's#\.[^.]*$##; s#\.#/#g' <<< "$path")'" --set "$path=1" ;; esac
  done
  refused /tolerations/0 --set 'tolerations[0].keys=x'
  refused /resources/limits --set 'resources.limits.cpu.max=1'
}

each_namespaced_object_names_its_namespace() {
  local kind name in
  render
  while read -r kind name in; do
    case $kind in
      ValidatingAdmissionPolicy* | FlowSchema) equals "$kind $in" "$kind -" ;;
      *) equals "$kind $name $in" "$kind $name ci" ;;
    esac
  done < <(objects)
  # Names that YAML takes for numbers.
  namespace=1234 release=1e3 render
  equals "$(objects | awk '$1 == "Deployment"')" 'Deployment 1e3 1234'
  shows 'namespace: "1234"' 'name: "1e3"'
}

installations_share_no_cluster_scoped_name() {
  local names long
  global() { template; objects | awk '$3 == "-" {print $1, $2}'; }
  long=$(printf 'n%.0s' {1..62})
  names=$(
    namespace=c release=a-b global
    namespace=b-c release=a global
    namespace=a release=b-c global
    namespace=${long}1 release=a global
    namespace=${long}2 release=a global
    namespace=$long release=$(printf 'r%.0s' {1..53}) global
  )
  equals "$(wc -l <<< "$names")" 42
  equals "$(sort <<< "$names" | uniq -d)" ''
  equals "$(awk 'length($2) > 63' <<< "$names")" ''
}

a_namespace_takes_one_release() {
  # Helm refuses an object of another release; this one has the same name in each.
  local mine
  render
  mine=$(objects | grep -E '^Role(Binding)? ')
  release=other render --set serviceAccount.name=other --set lease.name=other
  equals "$(objects | grep -E '^Role(Binding)? ')" "$mine"
  equals "$(wc -l <<< "$mine")" 2
}

config_maps_are_granted_by_the_names_that_the_program_writes() {
  local code=src/ottoscaler/src/logs/forward/shards prefix shards names
  prefix=$(sed -n 's/^const PREFIX: &str = "\(.*\)";/\1/p' $code/store.rs)
  shards=$(sed -n 's/^const SHARDS: u32 = \(.*\);/\1/p' $code/mod.rs)
  names="[$(seq -f "$prefix-%.0f" -s ', ' 0 $((shards - 1)))]"
  render
  equals "$(grep configmaps "$work/out" | grep -c resources:)" 3
  equals "$(grep -cF "resourceNames: $names" "$work/out")" 3
  shows "resources: [configmaps], resourceNames: $names, verbs: [get, create, patch]}"
}

numbers_and_booleans_are_taken_as_text() {
  render --set config.MAX_WORKERS=500 --set config.MAX_FINISHED_TASKS=1000000 --set config.PAUSED=true \
    --set worker.cpuLimit=2 --set podAnnotations.port=9090 --set nodeSelector.ssd=true --set lease.duration=7
  equals "$(setting MAX_WORKERS) $(setting MAX_FINISHED_TASKS) $(setting PAUSED)" '500 1000000 true'
  equals "$(setting WORKER_CPU_LIMIT) $(setting LEASE_DURATION)" '2 7'
  shows '"port": "9090"' '"ssd": "true"'
  # Those of a file are floating-point numbers to Helm.
  printf 'config: {MAX_FINISHED_TASKS: 12000000, MAX_WORKER_CPU: 2.5, ALLOW_ROOT_WORKERS: false, TASK_TTL: 1000000}\n' > "$work/values.yaml"
  render --values "$work/values.yaml"
  equals "$(setting MAX_FINISHED_TASKS) $(setting MAX_WORKER_CPU) $(setting ALLOW_ROOT_WORKERS) $(setting TASK_TTL)" '12000000 2.5 false 1000000'
}

kubernetes_expands_nothing_in_a_setting() {
  # shellcheck disable=SC2016
  render --set-json 'config.ALLOWED_COMMANDS="echo $(POD_NAME) $HOME"'
  # shellcheck disable=SC2016
  equals "$(setting ALLOWED_COMMANDS)" 'echo $$(POD_NAME) $$HOME'
}

the_image_is_the_releases_own_by_default() {
  local version
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
  render
  shows "image: \"ottoscaler:$version\""
  render --set image.repository=registry.example/ci/ottoscaler --set image.tag=dev
  shows 'image: "registry.example/ci/ottoscaler:dev"'
}

callers_are_set_by_values_and_the_secret_is_mounted_whole() {
  render
  equals "$(setting CALLERS) $(setting CALLERS_FILE) $(setting CALLER_AUDIENCE)" 'none  ottoscaler'
  equals "$(setting REPLICAS_NAME)" otto-replicas.ci.svc
  equals "$(grep -c /etc/ottoscaler/callers "$work/out")" 0
  render --set callers.mode=static --set callers.secret=who --set callers.allowPlaintextTokens=true
  equals "$(setting CALLERS) $(setting CALLERS_FILE)" 'static /etc/ottoscaler/callers/callers'
  equals "$(setting OWN_SECRETS) $(setting ALLOW_PLAINTEXT_TOKENS)" 'who true'
  shows '{name: callers, secret: {secretName: "who"}}' \
    '{name: callers, mountPath: /etc/ottoscaler/callers, readOnly: true}'
  equals "$(grep -c subPath: "$work/out")" 0
  refused callers.secret --set callers.mode=static --set callers.allowPlaintextTokens=true
  refused callers.allowPlaintextTokens --set callers.mode=static --set callers.secret=who
  refused callers.allowPlaintextTokens --set callers.mode=kubernetes
  refused tls.secret --set callers.mode=kubernetes
  refused /callers/mode --set callers.mode=open
  refused "'token' not allowed" --set callers.token=x
}

only_callers_of_kubernetes_take_rights_outside_the_namespace() {
  local reviews='resources: [tokenreviews], verbs: [create]' access='resources: [localsubjectaccessreviews], verbs: [create]'
  local flags=(--set callers.mode=kubernetes --set callers.allowPlaintextTokens=true) mode
  for mode in none static; do
    render --set "callers.mode=$mode" --set callers.secret=who --set callers.allowPlaintextTokens=true
    equals "$(grep -cE 'tokenreviews|localsubjectaccessreviews|^kind: ClusterRole' "$work/out")" 0
  done
  render "${flags[@]}"
  shows "$reviews" "$access"
  equals "$(objects | grep '^ClusterRole')" $'ClusterRole ci.otto-callers -\nClusterRoleBinding ci.otto-callers -'
  equals "$(objects | awk '$1 == "Role" {print $2}' | sort | xargs)" \
    'ottoscaler ottoscaler-admin ottoscaler-scaler ottoscaler-viewer'
  shows 'resources: ["workers/pause"], verbs: ["update"]'
  equals "$(grep -c 'resources: \["workers"\], verbs: \["create","delete"\]' "$work/out")" 2
  equals "$(grep -c 'resources: \["workers"\], verbs: \["list","watch"\]' "$work/out")" 3
  equals "$(grep -c 'resources: \["workers/log"\], verbs: \["get"\]' "$work/out")" 3
  render "${flags[@]}" --set callers.clusterRole=false --set callers.roles=false
  equals "$(objects | grep -c '^ClusterRole')" 0
  shows "$access"
  equals "$(objects | grep -c '^Role ')" 1
}

tls_is_a_secret_that_is_mounted_whole_and_no_workers() {
  render
  equals "$(setting TLS_CERT_FILE)$(setting TLS_KEY_FILE)$(setting TLS_CA_FILE)" ''
  shows 'appProtocol: kubernetes.io/h2c'
  equals "$(grep -c /etc/ottoscaler/tls "$work/out")" 0
  # Tokens need no word about risk with it.
  render --set tls.secret=pki --set callers.mode=static --set callers.secret=who
  equals "$(setting TLS_CERT_FILE) $(setting TLS_KEY_FILE)" '/etc/ottoscaler/tls/tls.crt /etc/ottoscaler/tls/tls.key'
  equals "$(setting TLS_CA_FILE) $(setting OWN_SECRETS)" '/etc/ottoscaler/tls/ca.crt who,pki'
  equals "$(setting ALLOW_PLAINTEXT_TOKENS)" false
  shows '{name: tls, secret: {secretName: "pki"}}' '{name: tls, mountPath: /etc/ottoscaler/tls, readOnly: true}'
  equals "$(grep -c 'appProtocol: https' "$work/out")" 2
  equals "$(grep -c 'kind: Certificate' "$work/out")" 0
  refused "'secretname' not allowed" --set tls.secretname=pki
  refused /tls/secret --set tls.secret=Pki
}

cert_manager_makes_a_certificate_with_the_names_that_are_dialled() {
  local flags=(--set tls.certManager.enabled=true --set tls.certManager.issuer.name=ca)
  render "${flags[@]}" --set 'tls.certManager.dnsNames={otto.example}'
  equals "$(objects | grep '^Certificate')" 'Certificate otto ci'
  shows 'secretName: "otto-tls"' '- "otto-replicas.ci.svc"' '- "otto.ci.svc"' '- "otto.example"' \
    'usages: [digital signature, server auth, client auth]' 'kind: "Issuer"' '{name: tls, secret: {secretName: "otto-tls"}}'
  equals "$(setting OWN_SECRETS) $(setting REPLICAS_NAME)" 'otto-tls otto-replicas.ci.svc'
  render "${flags[@]}" --set tls.secret=pki --set tls.certManager.issuer.kind=ClusterIssuer
  shows 'secretName: "pki"' 'kind: "ClusterIssuer"'
  refused tls.certManager.issuer.name --set tls.certManager.enabled=true
  refused /tls/certManager/duration "${flags[@]}" --set tls.certManager.duration=long
}

otto_handler_is_reached_over_tls_with_the_ca_that_is_named() {
  render
  equals "$(setting OTTO_HANDLER_TLS)$(setting OTTO_HANDLER_CA_FILE)$(setting OTTO_HANDLER_SERVER_NAME)" false
  render --set handlerTls.enabled=true --set handlerTls.caSecret=theirs --set handlerTls.serverName=handler.example
  equals "$(setting OTTO_HANDLER_TLS) $(setting OTTO_HANDLER_CA_FILE)" 'true /etc/ottoscaler/handler-ca/ca.crt'
  equals "$(setting OTTO_HANDLER_SERVER_NAME)" handler.example
  shows '{name: handler-ca, secret: {secretName: "theirs", items: [{key: ca.crt, path: ca.crt}]}}'
  refused 'handlerTls: has no effect' --set handlerTls.caSecret=theirs
  refused handlerTls.enabled --set handlerTls.enabled=true --set handler=none
  refused /handlerTls/enabled --set-string handlerTls.enabled=yes
}

notes_warn_of_what_is_open() {
  # Helm shows notes of an install only, which takes a cluster; here they are an object.
  cp -r charts/ottoscaler "$work/noted"
  {
    echo '{{- define "notes" }}'
    cat charts/ottoscaler/templates/NOTES.txt
    printf '%s\n' '{{- end }}' 'kind: Notes' 'text: {{ include "notes" . | toJson }}'
  } > "$work/noted/templates/notes.yaml"
  notes() { helm template "$release" "$work/noted" -n "$namespace" --kube-version 1.35.0 --show-only templates/notes.yaml "$@"; }
  equals "$(notes | grep -c 'WARNING: callers.mode is none')" 1
  equals "$(notes --set callers.mode=static --set callers.secret=who --set callers.allowPlaintextTokens=true |
    grep -c 'callers.mode is none')" 0
  equals "$(notes --set callers.mode=static --set callers.secret=who --set callers.allowPlaintextTokens=true |
    grep -c 'WARNING: tokens are taken')" 1
  equals "$(notes --set callers.mode=kubernetes --set callers.clusterRole=false --set callers.allowPlaintextTokens=true |
    grep -c 'WARNING: callers.clusterRole is false')" 1
}

all_pods_but_workers_reach_the_grpc_port() {
  render
  equals "$(objects | grep -c '^NetworkPolicy otto ci$')" 1
  shows 'ports: [{port: grpc, protocol: TCP}]' '{key: app, operator: NotIn, values: [otto-agent]}' \
    'ports: [{port: metrics, protocol: TCP}]' 'app.kubernetes.io/name: prometheus'
  equals "$(grep -c 'port: health, protocol' "$work/out")" 0
  render --set-json 'networkPolicy.metricsFrom=[]' --set-json 'networkPolicy.grpcFrom=[{"ipBlock":{"cidr":"10.0.0.0/8"}}]'
  equals "$(grep -c 'port: metrics, protocol' "$work/out")" 0
  shows 'cidr: 10.0.0.0/8'
  render --set networkPolicy.enabled=false
  equals "$(objects | grep -c '^NetworkPolicy')" 0
  refused /networkPolicy/grpcFrom/0 --set 'networkPolicy.grpcFrom[0].pods=x'
}

the_chart_has_no_lint() {
  checks=$((checks + 1))
  helm lint --strict --kube-version 1.35.0 charts/ottoscaler > "$work/said" 2>&1 || wrong "$(cat "$work/said")"
}

# ---

all=0
for name in $(compgen -A function | grep -vxF "$helpers"); do
  before=$checks failed=$failures
  "$name"
  [ "$checks" -gt "$before" ] || wrong "$name checks nothing"
  [ "$failures" = "$failed" ] && end=ok || end=FAILED
  printf 'chart: %-55s %s\n' "$name" "$end"
  all=$((all + 1))
done
echo "chart: $all cases, $checks checks, $failures wrong"
[ "$all" -gt 0 ] && [ "$checks" -gt 0 ] && [ "$failures" = 0 ]
