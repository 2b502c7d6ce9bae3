#!/usr/bin/env bash
# The first process inside the node: init.sh DIR CGROUP IMAGES. Prepares mounts and
# network, starts the components as their needs are met, tells its steps in
# DIR/steps, then only reaps. When it is killed the kernel ends the rest.
set -euo pipefail
dir=$1 cgroup=$2 images=$3
inside=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# /proc is still the outside's here: this is our pid as the others know it
read -r stat < /proc/self/stat
pid=${stat%% *} rest=${stat##*) }
read -ra fields <<< "$rest"
echo "$pid ${fields[19]}" > "$dir/init.pid"
ulimit -n "$(ulimit -Hn)" # a followed log and a connection each take one
tell() { echo "$*" >> "$dir/steps"; }
fail() { tell "failed $1"; exit 1; }
trap 'tell "failed node"' ERR

# shellcheck source=mounts.sh
. "$inside/mounts.sh"
# shellcheck source=components.sh
. "$inside/components.sh"
mounts
network
commands

alive() { kill -0 "$(cat "$dir/pid/$1")" 2> /dev/null; }
start() { local c; for c in "$@"; do "$inside/start.sh" "$dir" "$c"; done; }
# ready COMPONENT FACT…: waits until the fact holds, fails as soon as the component is gone
ready() {
  local c=$1 until=$((SECONDS + 90))
  shift
  until "$@" > /dev/null 2> "$dir/tmp/last-error"; do
    if ! alive "$c" || [ $SECONDS -ge $until ]; then
      echo "not ready: $* ($(tail -c 300 "$dir/tmp/last-error"))" >> "$dir/log/$c.log"
      fail "$c"
    fi
    sleep 0.1
  done
}
kube() { kubectl --kubeconfig "$dir/pki/admin.kubeconfig" --request-timeout=5s "$@"; }
import() { ctr -n k8s.io images import "$images/node-$1.tar"; }
service_rule() { iptables -t nat -S KUBE-SERVICES | grep -q 10.96.0.1; }
answers() { { exec 9<> "/dev/tcp/$1/$2" && exec 9>&-; } 2> /dev/null; }

start etcd containerd jaeger apiserver
ready containerd ctr version
tell containerd
import pause > /dev/null && import busybox > /dev/null
start kubelet
ready apiserver answers 10.250.0.1 6443
start kcm # waits for the rest by itself
ready apiserver kube get --raw /readyz
tell "API server"
start scheduler proxy coredns
ready jaeger answers 10.250.0.1 16686
ready jaeger answers 10.250.0.1 4317
tell Jaeger
ready kubelet kube wait node/node-1 --for=condition=Ready --timeout=1s
tell "node ready"
ready kcm kube get serviceaccount default
ready proxy service_rule # before it, a connection would hang
ready proxy kube --server https://10.96.0.1 get --raw /readyz
tell "services"
ready coredns busybox nslookup kubernetes.default.svc.cluster.local 10.250.0.1
tell DNS
ready scheduler alive scheduler
tell 'done'
trap - ERR
set +e
while :; do
  sleep 1000000 &
  wait $!
done
