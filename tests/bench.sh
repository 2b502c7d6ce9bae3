#!/usr/bin/env bash
# Measures, one line per figure:
#   <figure> <value> <unit> reference <value> ratio <r> target <t> met|short
# Exits 0 unless a figure could not be measured. Raw samples: $XDG_CACHE_HOME/ottoscaler/bench.
#   ONLY=<group>   start, memory, election, workers, logs, status
set -eEuo pipefail
# Whatever fails says so, also what prints nothing itself.
trap 'echo "error: \"$BASH_COMMAND\" failed (${BASH_SOURCE[0]##*/}, line $LINENO)" >&2' ERR
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=deploy/local/cluster.sh
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
bin=$CARGO_TARGET_DIR/release
raw=$cache/bench/$(date -u +%Y%m%dT%H%M%SZ)
name=${BENCH_CLUSTER:-bench} ns=bench task_ttl=24h pids=()
mkdir -p "$raw"
finish() {
  if [ ${#pids[@]} != 0 ]; then
    kill "${pids[@]}" 2> /dev/null || true
    # Its ports are the next group's.
    wait "${pids[@]}" 2> /dev/null || true
  fi
  pids=()
  $cluster down "$name" > /dev/null || true
}
trap finish EXIT

figure() { # name value unit target (at most) [reference]
  awk -v n="$1" -v v="$2" -v u="$3" -v t="$4" -v r="${5:--}" 'BEGIN {
    ratio = r == "-" ? r : sprintf("%.3f", v / r)
    printf "%-28s %10.3f %-5s reference %s ratio %s target %s %s\n", n, v, u, r, ratio, t, (v <= t ? "met" : "short") }'
}

at_least() { # name value unit target
  awk -v n="$1" -v v="$2" -v u="$3" -v t="$4" 'BEGIN {
    printf "%-28s %10.0f %-5s reference - ratio - target >=%s %s\n", n, v, u, t, (v >= t ? "met" : "short") }'
}

# name value unit bound (of the ratio: <=1.5, >=0.7) reference
ratio() {
  awk -v n="$1" -v v="$2" -v u="$3" -v b="$4" -v ref="$5" 'BEGIN {
    r = v / ref; t = substr(b, 3) + 0
    printf "%-28s %10.3f %-5s reference %s ratio %.3f target %s %s\n", n, v, u, ref, r, b, ((b ~ /^</ ? r <= t : r >= t) ? "met" : "short") }'
}

k() { $cluster run "$name" kubectl "$@"; }

replica() { # number: starts one, leaves its pid in $pid, its ports in $grpc and $health
  grpc=$((31000 + $1 * 3)) health=$((31001 + $1 * 3))
  KUBECONFIG=$kubeconfig NAMESPACE=$ns POD_NAME=replica-$1 GRPC_PORT=$grpc HEALTH_PORT=$health METRICS_PORT=$((health + 1)) MAX_WORKERS=12000 \
    OTTO_HANDLER_HOST=127.0.0.1:$handler TASK_TTL=$task_ttl LOG_DRAIN_TIMEOUT=2s LOG_LEVEL=error "$bin/ottoscaler" 2> "$raw/replica-$1.log" &
  pid=$!
  pids+=("$pid")
}

# The probe dials a refused port again only after a second: wait for the port first.
ready() {
  until (: < "/dev/tcp/127.0.0.1/$health") 2> /dev/null; do sleep 0.002; done
  until "$probe" -addr "127.0.0.1:$health" -service readiness > /dev/null 2>&1; do sleep 0.005; done
}

# A control plane, the chart without its Deployment, and an otto-handler.
plane() { # recording|counting
  deploy/local/build.sh grpc-health-probe 1>&2
  NODES=20 $cluster up "$name" fake 1>&2
  make -s install NAME="$name" NAMESPACE=$ns HELM_FLAGS="--set replicas=1" > /dev/null
  k -n $ns delete deployment ottoscaler > /dev/null
  kubeconfig=$($cluster kubeconfig-for "$name" $ns ottoscaler)
  admin=$($cluster env "$name" | sed -n "s/^KUBECONFIG='\(.*\)'/\1/p")
  audit=$($cluster env "$name" | sed -n "s/^AUDIT_LOG='\(.*\)'/\1/p")
  probe=$(PATH=$(deploy/local/build.sh --path)$PATH command -v grpc-health-probe)
  handler=30990 record=$raw/handler-$EPOCHSECONDS.jsonl
  case $1 in
    counting) "$bin/counting-handler" --listen "127.0.0.1:$handler" --out "$record" & ;;
    *) "$bin/recording-handler" serve --listen "127.0.0.1:$handler" --out "$record" 2> /dev/null & ;;
  esac
  pids+=("$!")
}

cpu_ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }
resident() { awk '/VmRSS/ {print $2 / 1024}' "/proc/$1/status"; }

start() { # exec → ready, synced with 1,000 pods; the worst of five
  plane recording
  replica 0
  ready
  "$bin/ottoctl" --server "127.0.0.1:$grpc" --timeout 60 scale-up bench -n 1000 --repository r --commit c > "$raw/scale-up.txt"
  # Settled, not in the middle of a ScaleUp.
  until [ "$(k -n $ns get pods --no-headers 2> /dev/null | grep -c Running)" = 1000 ]; do sleep 0.2; done
  local n from
  for n in 1 2 3 4 5; do
    from=$(date +%s%N)
    replica "$n"
    ready
    echo $((($(date +%s%N) - from) / 1000000)) >> "$raw/start-ms.txt"
    kill "$pid"
  done
  figure start_synced_1000_pods "$(sort -n "$raw/start-ms.txt" | tail -1 | awk '{print $1 / 1000}')" s 1
  figure binary_size "$(stat -c %s "$bin/ottoscaler" | awk '{print $1 / 1048576}')" MiB 25
  figure image_size "$(stat -c %s "$cache/images/ottoscaler-dev.tar" | awk '{print $1 / 1048576}')" MiB 40
}

# shellcheck source=SCRIPTDIR/bench/election.sh
. tests/bench/election.sh
# shellcheck source=SCRIPTDIR/bench/memory.sh
. tests/bench/memory.sh
# shellcheck source=SCRIPTDIR/bench/workers.sh
. tests/bench/workers.sh
# shellcheck source=SCRIPTDIR/bench/logs.sh
. tests/bench/logs.sh
# shellcheck source=SCRIPTDIR/bench/status.sh
. tests/bench/status.sh

case ${ONLY:-all} in
  memory | workers | logs | status) make -s build ;;
  *) make -s image > /dev/null ;;
esac
case ${ONLY:-all} in
  start | memory | election | workers | logs | status) "$ONLY" ;;
  all)
    for group in start memory election workers logs status; do "$group"; finish; done ;;
  *) echo "ONLY=$ONLY: takes start, memory, election, workers, status or logs" >&2; exit 64 ;;
esac
