#!/usr/bin/env bash
# A local Kubernetes with one command; usually called by make.
#   cluster.sh up NAME [KIND]        node, fake, kind or existing (default: node where it can be, else fake)
#   cluster.sh down NAME             leaves nothing behind
#   cluster.sh env NAME              shell lines: KUBECONFIG, RUN, AUDIT_LOG, JAEGER, OTLP, …
#   cluster.sh run NAME COMMAND…     runs a command in the cluster's network, with its kubeconfig and tools
#   cluster.sh load NAME TAR…        imports images
#   cluster.sh kubeconfig-for NAME NAMESPACE SERVICEACCOUNT
#                                    writes a kubeconfig that acts as that account, prints its path
#   cluster.sh component NAME stop|kill|pause|resume|start COMPONENT
#                                    takes a part away and brings it back (kinds node and fake)
#   cluster.sh autopsy NAME          the log's end of each part that should run and does not (kinds node and fake)
#   cluster.sh prepare KIND          installs packages and builds tools, starts nothing
#   cluster.sh possible KIND         prints nothing, or why KIND cannot be had here
#   cluster.sh list
# Settings by environment: NODES (fake), CONTEXT (existing), KWOK_CONFIG (fake), AUDIT_POLICY,
# CONTAINER_LOG_MAX_SIZE, CONTAINER_LOG_MAX_FILES and MAX_PODS (node).
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for part in lib deps pki jaeger images node fake kind existing; do
  # shellcheck source=/dev/null
  . "$source_dir/$part.sh"
done

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 64; }

up() {
  local kind=${1:-} have why
  case $kind in
    '') why=$(node_possible)
        kind=node
        [ -z "$why" ] || { kind=fake; say "KIND=node is not possible ($why): starting KIND=fake, where no containers run"; } ;;
    node | fake | kind | existing) ;;
    *) die "KIND '$kind': takes node, fake, kind or existing" 64 ;;
  esac
  lock_cluster
  have=$(kind_of)
  if [ -n "$have" ]; then
    tools_path
    if [ "$have" = "$kind" ] && "${have}_healthy"; then
      say "cluster '$name' ($kind) is up already"
      return
    fi
    [ "$have" = "$kind" ] || die "cluster '$name' exists and is of kind $have: make cluster-down NAME=$name first"
    say "cluster '$name' is half up or dead: cleaning up first"
    "${have}_down"
    find "$dir" -xdev -mindepth 1 -delete
  fi
  trap 'gave_up $?' EXIT
  set -E
  trap 'say "error: \"$BASH_COMMAND\" failed (${BASH_SOURCE[0]##*/}, line $LINENO)"' ERR
  trap 'exit 130' INT TERM
  echo "$kind" > "$dir/kind"
  say "cluster '$name' ($kind)"
  "${kind}_up"
  trap - EXIT ERR
  say "up in $((($(now) - began) / 1000)).$((($(now) - began) % 1000 / 100)) s; make cluster-env NAME=$name tells how to reach it"
}

gave_up() { # whatever ended `up` early: nothing may stay
  trap - EXIT INT TERM ERR
  "$(kind_of)_down" || true
  remove_state
  exit "$1"
}

down() {
  local kind
  [ -d "$dir" ] || { say "no cluster '$name'"; return; }
  lock_cluster
  kind=$(kind_of)
  [ -z "$kind" ] || "${kind}_down"
  remove_state
  say "cluster '$name' is down after $((($(now) - began) / 1000)).$((($(now) - began) % 1000 / 100)) s"
}

must_be_up() {
  kind=$(kind_of)
  [ -n "$kind" ] || die "no cluster '$name': make cluster-up NAME=$name" 3
  tools_path
  "${kind}_healthy" || say "warning: cluster '$name' does not answer; make cluster-up NAME=$name puts it right"
}

environment() {
  echo "NAME='$name'"
  echo "KIND='$kind'"
  "${kind}_env"
  echo "KUBECACHEDIR='$dir/tmp/kube'"
  echo "TOOLS='$("$here/build.sh" --path)'"
}

run() {
  local KUBECONFIG RUN
  eval "$(environment)"
  mkdir -p "$dir/tmp/helm"
  export KUBECONFIG KUBECACHEDIR
  export HELM_CACHE_HOME=$dir/tmp/helm HELM_CONFIG_HOME=$dir/tmp/helm HELM_DATA_HOME=$dir/tmp/helm
  # shellcheck disable=SC2086
  exec $RUN "$@"
}

kubeconfig_for() { # namespace account
  local token out=$dir/access/$1-$2.kubeconfig KUBECONFIG RUN
  eval "$("${kind}_env")"
  local k="$RUN kubectl --kubeconfig $KUBECONFIG"
  token=$($k create token "$2" -n "$1" --duration=24h) ||
    die "no token for ServiceAccount '$2' in namespace '$1': does it exist? (make install)"
  $k config view --raw --minify --flatten -o 'jsonpath={.clusters[0].cluster.certificate-authority-data}' | base64 -d > "$dir/access/ca.crt"
  (umask 077; kubeconfig "$($k config view --minify -o 'jsonpath={.clusters[0].cluster.server}')" "$dir/access/ca.crt" "token: $token" "$1" > "$out")
  echo "$out"
}

# component ACTION COMPONENT: for tests that take a part of the cluster away
component() {
  case $kind in node | fake) ;; *) die "component: only for KIND=node and KIND=fake" 64 ;; esac
  [ -e "$dir/cmd/$2" ] || die "no component '$2'; there are: $(cd "$dir/cmd" && echo *)" 64
  [ "$1" = start ] || signal_for "$1" > /dev/null
  "${kind}_component" "$@"
  # Its sockets go with it: started before that, the next one could not listen.
  [ "$1" != kill ] || await "the end of $2" 10 "${kind}_ended" "$2"
}
signal_for() {
  case $1 in
    stop) echo TERM ;;
    kill) echo KILL ;;
    pause) echo STOP ;;
    resume) echo CONT ;;
    *) die "component: takes stop, kill, pause, resume or start, not '$1'" 64 ;;
  esac
}

list() {
  local d
  for d in "$clusters"/*/; do
    [ -f "$d/kind" ] && printf '%s\t%s\n' "$(basename "$d")" "$(cat "$d/kind")"
  done
  return 0
}

action=${1:-}
[ "$action" != list ] || { list; exit; }
[ $# -ge 2 ] || usage
case $action in
  prepare) "$2_needs"; exit ;;
  possible) "$2_possible"; exit ;;
esac
use_name "$2"
shift 2
case $action in
  up) up "${1:-}" ;;
  down) down ;;
  env) must_be_up; environment ;;
  run) must_be_up; run "$@" ;;
  load) must_be_up; for tar in "$@"; do "${kind}_load" "$tar"; done ;;
  kubeconfig-for) [ $# = 2 ] || usage; must_be_up; kubeconfig_for "$@" ;;
  component)
    [ $# = 2 ] || usage
    must_be_up
    component "$@" ;;
  autopsy) kind=$(kind_of); case $kind in node | fake) "${kind}_autopsy" ;; esac ;;
  *) usage ;;
esac
