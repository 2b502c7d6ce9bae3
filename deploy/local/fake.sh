# shellcheck shell=bash
# Kind `fake`: a control plane with fake nodes (kwokctl's binary runtime) on
# loopback. No root; pods go through their phases but nothing runs in them.

fake_needs() { need_tools etcd kwok jaeger kubernetes; }
fake_possible() { :; }

fake_up() {
  local base nodes=${NODES:-3}
  [[ $nodes =~ ^[0-9]{1,5}$ ]] || die "NODES '$nodes': takes a number" 64
  fake_needs
  began=$(now)
  mkdir -p "$dir"/{log,access,tmp,cmd}
  with_machine_lock claim_ports
  # Where nodes serve logs, and may: each follow of one takes an instance.
  [ -z "${KWOK_CONFIG:-}" ] || [ ! -w "$inotify_file" ] || with_machine_lock inotify_raise
  base=$(cat "$dir/ports")
  jaeger_up "$base"
  fake_config "$((base + 10))" > "$dir/kwok.yaml"
  fake_kwokctl create cluster --config "$dir/kwok.yaml" --kubeconfig "$dir/kubeconfig" --wait 90s \
    >> "$dir/log/kwokctl.log" 2>&1 || fake_failed kwokctl
  fake_components
  step "control plane"
  fake_kwokctl scale node --replicas "$nodes" >> "$dir/log/kwokctl.log" 2>&1 || fake_failed kwokctl
  await "$nodes ready nodes" $((60 + nodes / 20)) ready_nodes "$nodes" || fake_failed kwok-controller
  await "the default ServiceAccount" 30 fake_kubectl get serviceaccount default || fake_failed kube-controller-manager
  step "$nodes nodes ready"
  jaeger_ready "$base" || fake_failed jaeger
  step Jaeger
  : > "$dir/up"
}

fake_config() { # first of five ports
  cat << EOF
apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokctlConfiguration
options:
  runtime: binary
  bindAddress: 127.0.0.1
  securePort: true
  etcdPort: $1
  etcdPeerPort: $(($1 + 1))
  kubeApiserverPort: $(($1 + 2))
  kubeControllerManagerPort: $(($1 + 3))
  kubeSchedulerPort: $(($1 + 4))
  kwokControllerPort: $(($1 + 5))
  kubeAuditPolicy: $audit_policy
  etcdBinary: $(command -v etcd)
  kubeApiserverBinary: $(command -v kube-apiserver)
  kubeControllerManagerBinary: $(command -v kube-controller-manager)
  kubeSchedulerBinary: $(command -v kube-scheduler)
  kwokControllerBinary: $(command -v kwok)
  kubectlBinary: $(command -v kubectl)
componentsPatches:
  - {name: etcd, extraArgs: [{key: unsafe-no-fsync, value: "true"}]}
  - {name: kube-apiserver, extraArgs: [{key: audit-log-maxsize, value: "4096"}]}
---
# Each node's kubelet writes for itself; kwok writes for all, 4 pods at a time by default:
# where a write takes the API server 0.1 s, 40 a second, and the pods wait for it. The rest
# are its defaults, which it no longer sets itself once it is given one.
apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
options:
  podPlayStageParallelism: 32
  cidr: 10.0.0.0/24
  nodePlayStageParallelism: 4
  nodeLeaseParallelism: 4
  podsOnNodeSyncParallelism: 1
  enablePodsOnNodeSyncListPager: true
  enableDebuggingHandlers: true
  enableProfilingHandler: true
EOF
  # pods' logs from files and other behaviours: more documents for kwok, e.g. ClusterLogs
  [ -z "${KWOK_CONFIG:-}" ] || { echo ---; cat "$KWOK_CONFIG"; }
}

fake_kwokctl() {
  env OTTOSCALER_CLUSTER_DIR="$dir" KWOK_WORKDIR="$dir/kwok" HOME="$dir/tmp" TMPDIR="$dir/tmp" \
    kwokctl --name "$name" "$@" {lock_fd}<&-
}
ready_nodes() {
  [ "$(fake_kubectl get nodes -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -c True)" = "$1" ]
}
fake_kubectl() { kubectl --kubeconfig "$dir/kubeconfig" --request-timeout=5s "$@"; }

fake_logs() { # component: the ends of what it said, first under kwokctl
  local f
  for f in "$dir"/kwok/clusters/*/logs/"$1"*.log; do
    [ ! -s "$f" ] || { say "--- the end of ${f##*/}"; tail -n 25 "$f" | cut -c1-400 >&2; }
  done
  show_log "$1"
}
fake_failed() { # component
  fake_logs "$1"
  fake_down
  die "cluster '$name' did not come up: $1 failed (its log is above)"
}

fake_down() {
  end_processes our_processes
  with_machine_lock inotify_restore
}
fake_healthy() { [ -e "$dir/up" ] && port_answers "$(($(cat "$dir/ports") + 12))"; }

fake_env() {
  echo "KUBECONFIG='$dir/kubeconfig'"
  echo "RUN=''"
  echo "AUDIT_LOG='$dir/kwok/clusters/$name/logs/audit.log'"
  jaeger_env "$(cat "$dir/ports")"
  echo "KWOK_DIR='$dir/kwok/clusters/$name'"
  echo "COMPONENTS='$dir/cmd'"
}

# Ours and kwokctl's.
kwok_names='etcd=etcd apiserver=kube-apiserver kcm=kube-controller-manager scheduler=kube-scheduler kwok=kwok-controller'
# What kwokctl started, kept as it was started: DIR/cmd/NAME (arguments, each ended by a NUL) and DIR/NAME.pid.
fake_components() {
  local c file pids=$dir/kwok/clusters/$name/pids
  for c in $kwok_names; do
    file=$pids/${c#*=}.pid
    cp "/proc/$(cat "$file")/cmdline" "$dir/cmd/${c%=*}" || fake_failed "${c#*=}"
    record_process "$(cat "$file")" "$dir/${c%=*}.pid"
  done
}
fake_component() { # action component
  local pid argv=()
  pid=$(recorded_process "$dir/$2.pid" || true)
  if [ "$1" = start ]; then
    [ -z "$pid" ] || return 0
    mapfile -d '' argv < "$dir/cmd/$2"
    daemon "$2" "${argv[@]}"
  else
    [ -n "$pid" ] || die "component $2 does not run"
    kill "-$(signal_for "$1")" "$pid"
  fi
}
fake_ended() { ! recorded_process "$dir/$1.pid" > /dev/null; }

fake_autopsy() {
  local c
  for c in $kwok_names; do
    ! fake_ended "${c%=*}" || { fake_logs "${c#*=}"; show_log "${c%=*}"; }
  done
}

fake_load() { say "a fake cluster runs no containers: nothing to load"; }
