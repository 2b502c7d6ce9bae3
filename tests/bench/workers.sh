# shellcheck shell=bash
# shellcheck disable=SC2154,SC2086,SC2034 # sourced by bench.sh, which sets these
# Creation and notification latency on a fake control plane where nothing is scheduled,
# API calls on a real node; with the chart's defaults (policy on) and three replicas.
# PARTS="creation" looks at one part, ROUNDS="1 2" takes fewer turns of it.

workers() {
  export AUDIT_POLICY=$PWD/tests/bench/audit.yaml
  local part
  for part in ${PARTS:-creation notifications api_calls}; do
    case $part in creation | notifications) [ ${#pids[@]} != 0 ] || fake_plane ;; esac
    "$part"
  done
}

fake_plane() {
  task_ttl=5s
  plane recording
  replica 0; ready
  local n servers=("$grpc")
  for n in 1 2; do replica "$n"; ready; servers+=("$grpc"); done
  until holder=$(k -n $ns get lease ottoscaler-leader -o 'jsonpath={.spec.holderIdentity}' 2> /dev/null) && [ -n "$holder" ]; do sleep 0.1; done
  holder=${holder%%_*}
  grpc=${servers[${holder#replica-}]}
  $cluster component $name stop scheduler
}

ctl() { "$bin/ottoctl" --server "127.0.0.1:$grpc" --timeout 120 "$@"; }
up() { ctl scale-up "$1" -n "$2" --repository r --commit c > "$raw/scale-up-$1.txt"; }
seen() { "$bin/audit-cost" --log "$audit" --namespace $ns "$@"; }
no_pods() { # selector
  until [ -z "$(k -n $ns get pods -l "$1" -o name --chunk-size=0 2> /dev/null | head -1)" ]; do sleep 0.3; done
}
remove() { # labels as a query
  # So many at once may take the server longer than it gives a request.
  until k delete --raw "/api/v1/namespaces/$ns/pods?labelSelector=$1&gracePeriodSeconds=0" > /dev/null 2>&1; do sleep 0.5; done
}

# ScaleUp(1000) and raw creates take turns; the reference is the median of the raw ones
# at the concurrency that does best.
creation() {
  local n concurrency since
  up warm 10
  for n in ${ROUNDS:-1 2 3 4 5}; do
    since=$(date +%s%N)
    up "made$n" 1000
    seen --prefix "otto-agent-made$n-" --since "$since" created --count 1000 >> "$raw/scale-up-1000-ms.txt"
    ctl cancel "made$n" > /dev/null
    no_pods "task-id=made$n"
    for concurrency in 32 64 128; do
      KUBECONFIG=$kubeconfig "$bin/raw-creates" --log "$audit" --namespace $ns --prefix "raw$n-$concurrency" --concurrency $concurrency > "$raw/one.txt"
      echo "$concurrency $(cat "$raw/one.txt")" >> "$raw/raw-creates-ms.txt"
      remove bench%3Draw
      no_pods bench=raw
    done
  done
  "$bin/raw-creates" --log "$audit" --namespace $ns --prefix job --job > "$raw/job.json"
  since=$(date +%s%N)
  k create -f "$raw/job.json" > /dev/null
  seen --prefix job- --since "$since" created --count 1000 --within 300 > "$raw/job-ms.txt"
  k -n $ns delete job job --cascade=background --wait=false > /dev/null
  no_pods job-name=job
  ctl cancel warm > /dev/null
  local ours best job
  ours=$(middle_of "$raw/scale-up-1000-ms.txt" | per_second)
  for concurrency in 32 64 128; do
    awk -v c=$concurrency '$1 == c {print $2}' "$raw/raw-creates-ms.txt" > "$raw/one.txt"
    middle_of "$raw/one.txt"
  done | sort -n | head -1 > "$raw/best.txt"
  best=$(per_second < "$raw/best.txt")
  job=$(per_second < "$raw/job-ms.txt")
  ratio scale_up_1000_creates "$ours" "/s" ">=0.8" "$best"
  echo "  the Job controller: $job/s"
  awk '{printf "  raw creates, %s at a time: %.0f/s\n", $1, 1e6 / $2}' "$raw/raw-creates-ms.txt"
  awk '{printf "  ScaleUp(1000): %.0f/s\n", 1e6 / $1}' "$raw/scale-up-1000-ms.txt"
}
per_second() { awk '{printf "%.1f", 1e6 / $1}'; }
middle_of() { sort -n "$1" | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

# The phase in the API → NotifyWorkerStatus received, beside a plain watch.
notifications() {
  local n load
  latency quiet
  up end-busy 400
  for n in $(seq 9); do up "beside$n" 1000 || true; done &
  load=$!
  pids+=("$load")
  until [ -n "$(k -n $ns get pods -l task-id=beside1 -o name --chunk-size=0 | head -1)" ]; do sleep 0.1; done
  latency busy
  kill "$load" 2> /dev/null || true
  wait "$load" 2> /dev/null || true
  for n in $(seq 9); do ctl cancel "beside$n" > /dev/null 2>&1 || true; done
  no_pods app=otto-agent
}
latency() { # quiet|busy: 400 workers, 50 ends a second
  local times target
  [ "$1" = busy ] || up "end-$1" 400
  times=$(KUBECONFIG=$admin "$bin/phase-latency" --namespace $ns --selector "task-id=end-$1" --rate 50 --record "$record" --csv "$raw/notify-$1.csv")
  read -r -a times <<< "$times"
  # Beside a ScaleUp as late as a plain watch allows.
  target=50
  [ "$1" = quiet ] || target=$(awk -v watch="${times[4]}" 'BEGIN {print (3 * watch > 150 ? 3 * watch : 150)}')
  figure "notify_p99_$1" "${times[1]}" ms "$target" "${times[4]}"
  echo "  notified: median ${times[0]} ms, at most ${times[2]} ms; the watch: median ${times[3]} ms, at most ${times[5]} ms"
}

# Of two tasks of a hundred workers each that print for seconds, from request to forgotten
# history. On a real node: fake ones know no log that ends.
api_calls() {
  local since n calls ip why
  why=$($cluster possible node)
  [ -z "$why" ] || { echo "API calls cannot be measured: $why" >&2; exit 1; }
  finish
  make -s image > /dev/null
  $cluster up "$name" node 1>&2
  make -s load NAME="$name" > /dev/null
  tests/e2e/install.sh "$name" --set config.TASK_TTL=5s
  eval "$($cluster env "$name")"
  ip=$(k -n ottoscaler get service ottoscaler -o 'jsonpath={.spec.clusterIP}')
  since=$(date +%s%N)
  for n in 1 2; do
    $cluster run "$name" "$bin/ottoctl" --server "$ip:9090" --timeout 120 scale-up "life$n" -n 100 \
      --repository r --commit c -e LINES=100 -e RATE=10 > "$raw/scale-up-life$n.txt"
    until k -n ottoscaler get workertasks -o 'jsonpath={.items[*].status.phase}' | grep -q Succeeded; do sleep 0.5; done
    until [ -z "$(k -n ottoscaler get workertasks -o name)" ]; do sleep 0.5; done
  done
  calls=$("$bin/audit-cost" --log "$AUDIT_LOG" --namespace ottoscaler --prefix life --since "$since" calls --workers 200 --tasks 2 2> "$raw/calls.txt")
  gzip -c "$AUDIT_LOG" > "$raw/api-calls-audit.jsonl.gz"
  read -r -a calls <<< "$calls"
  figure api_calls_per_worker "${calls[0]}" calls 4
  figure api_calls_per_task "${calls[1]}" calls 8
  echo "  log checkpoints: ${calls[2]} a worker; all: $(cat "$raw/calls.txt")"
}
