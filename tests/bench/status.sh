# shellcheck shell=bash
# shellcheck disable=SC2154,SC2086 # sourced by bench.sh, which sets these
# GetWorkerStatus of a hundred workers over loopback, at the leader and at a follower, while
# one of them changes each second: through a stock grpc-js client, and through tonic beside a
# bare handler that encodes the same answer. Then what a hop adds to a ScaleUp, and what a
# call costs once the index has ten times the workers.

load() { "$bin/status-load" --server "127.0.0.1:$1" --task status "${@:2}"; }
# The median of a column of a file.
median() { sort -n -k "$2,$2" "$1" | awk -v c="$2" '{v[NR] = $c} END {print v[int((NR + 1) / 2)]}'; }

running() { # count
  until [ "$(k -n $ns get pods --no-headers 2> /dev/null | grep -c Running)" = "$1" ]; do sleep 0.2; done
}

# One pod of the hundred changes each second.
changes() {
  local n=0
  while sleep 1; do
    n=$((n % 100 + 1))
    k -n $ns annotate --overwrite pod "otto-agent-status-$n" "bench/changed=$EPOCHREALTIME" > /dev/null || return
  done
}

status() {
  # shellcheck source=SCRIPTDIR/../tools.sh
  . tests/tools.sh
  needs node:nodejs npm:npm
  local client n who times bare=30980 ports=()
  client=$(tests/nest/build.sh)/dist/status-client.js
  plane recording
  for n in 0 1; do
    replica "$n"
    ready
    ports+=("$grpc")
  done
  # The first one leads: the Lease was free when it came.
  until [[ $(k -n $ns get lease ottoscaler-leader -o 'jsonpath={.spec.holderIdentity}' 2> /dev/null || true) == replica-0_* ]]; do sleep 0.1; done
  scale_up() { "$bin/ottoctl" --server "127.0.0.1:${ports[0]}" --timeout 120 scale-up "$1" -n "$2" --repository r --commit c > "$raw/scale-up-$1.txt"; }
  scale_up status 100
  scale_up others 900
  running 1000
  # The last status writes and notifications.
  sleep 5
  "$bin/bare-status" --of "127.0.0.1:${ports[0]}" --task status --listen "127.0.0.1:$bare" &
  pids+=("$!")
  until (: < "/dev/tcp/127.0.0.1/$bare") 2> /dev/null; do sleep 0.05; done
  changes &
  pids+=("$!")
  for n in 0 1; do
    who=$([ $n = 0 ] && echo leader || echo follower)
    times=$(SERVER=127.0.0.1:${ports[n]} TASK=status PROTO=$PWD/proto/ottoscaler/v1/ottoscaler.proto node "$client")
    echo "$times" > "$raw/status-$who-js.txt"
    read -r -a times <<< "$times"
    [ "${times[0]}" = 100 ] || { echo "an answer of the $who has ${times[0]} workers" >&2; exit 1; }
    figure "status_100_$who" "${times[1]}" ms 3
    echo "  99th percentile ${times[2]} ms; ${times[3]} calls/s one at a time, ${times[4]} calls/s with 16 in flight"
    for _ in 1 2 3; do
      load $bare --calls 5000 --in-flight 16 >> "$raw/status-$who-bare.txt"
      load "${ports[n]}" --calls 5000 --in-flight 16 >> "$raw/status-$who.txt"
    done
    ratio "status_rate_$who" "$(median "$raw/status-$who.txt" 4)" "/s" ">=1" "$(median "$raw/status-$who-bare.txt" 4)"
    ratio "status_p99_$who" "$(median "$raw/status-$who.txt" 3)" ms "<=1.2" "$(median "$raw/status-$who-bare.txt" 3)"
  done
  for _ in 1 2 3; do
    load "${ports[0]}" --calls 300 --scale-up 100 >> "$raw/scale-up-leader.txt"
    load "${ports[1]}" --calls 300 --scale-up 100 >> "$raw/scale-up-follower.txt"
  done
  figure forwarding "$(awk -v l="$(median "$raw/scale-up-leader.txt" 2)" -v f="$(median "$raw/scale-up-follower.txt" 2)" 'BEGIN {print f - l}')" ms 2
  # The nodes have no room for these: their pods wait.
  for n in {1..9}; do scale_up "more-$n" 1000; done
  sleep 5
  # Beside the bare handler, which knows of a hundred: what else the machine has to do is alike.
  for _ in 1 2 3; do
    load $bare --calls 5000 --in-flight 16 >> "$raw/status-of-10000-bare.txt"
    load "${ports[0]}" --calls 5000 --in-flight 16 >> "$raw/status-of-10000.txt"
  done
  ratio status_rate_of_10000 "$(median "$raw/status-of-10000.txt" 4)" "/s" ">=1" "$(median "$raw/status-of-10000-bare.txt" 4)"
}
