# shellcheck shell=bash
# shellcheck disable=SC2154,SC2086 # sourced by bench.sh, which sets these
# GetWorkerStatus of a hundred workers over loopback through a stock grpc-js client, at the
# leader and at a follower; beside it the same call by a client of tonic.

status() {
  # shellcheck source=SCRIPTDIR/../tools.sh
  . tests/tools.sh
  needs node:nodejs npm:npm
  local client n who reference times servers=()
  client=$(tests/nest/build.sh)/dist/status-client.js
  plane recording
  for n in 0 1; do
    replica "$n"
    ready
    servers+=("127.0.0.1:$grpc")
  done
  # The first one leads: the Lease was free when it came.
  until [[ $(k -n $ns get lease ottoscaler-leader -o 'jsonpath={.spec.holderIdentity}' 2> /dev/null || true) == replica-0_* ]]; do sleep 0.1; done
  "$bin/ottoctl" --server "${servers[0]}" --timeout 60 scale-up status -n 100 --repository r --commit c > "$raw/scale-up.txt"
  until [ "$(k -n $ns get pods --no-headers 2> /dev/null | grep -c Running)" = 100 ]; do sleep 0.2; done
  # The last status writes and notifications.
  sleep 5
  for n in 0 1; do
    who=$([ $n = 0 ] && echo leader || echo follower)
    read -r _ reference <<< "$("$bin/status-load" --server "${servers[n]}" --task status --calls 500)"
    times=$(SERVER=${servers[n]} TASK=status PROTO=$PWD/proto/ottoscaler/v1/ottoscaler.proto node "$client")
    echo "$times" > "$raw/status-$who.txt"
    read -r -a times <<< "$times"
    [ "${times[0]}" = 100 ] || { echo "an answer of the $who has ${times[0]} workers" >&2; exit 1; }
    figure "status_100_$who" "${times[1]}" ms 3 "$reference"
    echo "  99th percentile ${times[2]} ms; ${times[3]} calls/s one at a time, ${times[4]} calls/s with 16 in flight"
  done
}
