#!/usr/bin/env bash
# Runs the tests: without a cluster, then on a fake and on a real one, which it
# brings up and takes down again.
#   ONLY=<filter>   only tests whose name has it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=deploy/local/cluster.sh
# shellcheck source=SCRIPTDIR/served_logs.sh
. tests/served_logs.sh
only=${ONLY:-}
up=() failed='' beside=''
finish() {
  [ -z "$beside" ] || { pkill -P "$beside"; kill "$beside"; } 2> /dev/null || true
  for name in "${up[@]}"; do $cluster down "$name" > /dev/null || true; done
}
trap finish EXIT
# Tests panic on purpose; a backtrace of each would hide the one that counts.
export RUST_BACKTRACE=0
started=$SECONDS
step() { printf '\n--- %s (%d s)\n' "$1" $((SECONDS - started)); }

step "without a cluster"
cargo test --workspace --lib -- ${only:+"$only"}
cargo test --package ottoctl --bins -- ${only:+"$only"}
cargo test --test programs --test layout -- ${only:+"$only"}
# What the programs are built of, with the same features.
cargo build --release --workspace --bins
cargo test --release -p ottoscaler-model -p ottoscaler-partners --test model -- --nocapture ${only:+"$only"}

if [ -z "$only" ]; then
  step "what the chart renders and refuses"
  tests/chart.sh
  step "breaks of the leadership code, some of them"
  tests/mutants.sh sample
  step "random scripts for the resume of logs"
  tests/fuzz.sh 10
  step "the reasons that Kubernetes can give, by its sources"
  tests/reasons.sh check
  step "an otto-handler in NestJS"
  tests/nest.sh
fi

why=$($cluster possible node)
if [ -n "$why" ]; then
  echo "the real-node tests and the trace test are not run: $why"
  [ "${CI:-}" != true ] || { echo "in CI nothing may be skipped" >&2; exit 1; }
fi

step "programs and images"
[ -n "$only" ] || tests/clients/build.sh > /dev/null
deploy/local/build.sh
[ -n "$why" ] || make -s image

# Two lanes, each with a cluster of its own at a time: attacks, which mostly wait for a Lease;
# beside them the real node, and then the rest. More would take the time that elections need:
# with three, leaders lost terms to the load.
cargo test --test e2e --no-run
cargo build --package fenced-lease --examples
cargo test --quiet --package fenced-lease --doc
[ -n "$only" ] || tests/cases.sh
export OTTO_TEST_NODE=t-node
declare -A tests_of=(
  [attacks]="clients:: contenders:: delayed:: faults:: janitor:: tasks:: windows::"
  [node]="node::"
  [rest]="fake::"
  # What asks how soon something is done while the processors have all to do.
  [alone]="saturation::"
)
# Each line with the second in which it was said.
timed() { while IFS= read -r line; do printf '%4d  %s\n' $((SECONDS - started)) "$line"; done; }
e2e() { # lane
  local other skip=()
  for other in "${!tests_of[@]}"; do
    # shellcheck disable=SC2206
    [ "$other" = "$1" ] || skip+=(${tests_of[$other]})
  done
  cargo test --test e2e -- --test-threads=1 --nocapture "${skip[@]/#/--skip=}" ${only:+"$only"} 2>&1 | timed
}
run_lane() { # lane kind
  local code=0
  export OTTO_TEST_FAKE=t-$1
  [ "$1" != rest ] || served_logs "$said/logs"
  # Small logs: some tests want them rotated.
  CONTAINER_LOG_MAX_SIZE=500Ki $cluster up "t-$1" "$2" || return
  [ "$2" = fake ] || make -s load NAME="t-$1" || code=1
  [ $code != 0 ] || e2e "$1" || code=1
  [ $code = 0 ] || $cluster autopsy "t-$1" 2>&1
  [ "$1" = attacks ] || $cluster down "t-$1" || code=1
  # Beside clusters that come and go: it tells its own from others.
  if [ "$1$why$only" = rest ]; then
    echo "clusters leave no trace:"
    tests/cluster/no_trace.sh || code=1
  fi
  return $code
}
said=$(mktemp -d)
beside() {
  local code=0
  [ -n "$why" ] || run_lane node node || code=1
  run_lane rest fake || code=1
  return $code
}
step "attacks on leadership, beside the real node and the rest"
up+=(t-attacks t-rest)
[ -n "$why" ] || up+=(t-node)
beside > "$said/beside" 2>&1 &
beside=$!
run_lane attacks fake | tee "$said/attacks" || failed=1
wait "$beside" || failed=1
beside=''
step "real node and the rest, meanwhile"
cat "$said/beside"
step "with nothing beside"
OTTO_TEST_FAKE=t-attacks e2e alone | tee "$said/alone" || failed=1
$cluster down t-attacks

if [ -z "$why$only$failed" ]; then
  # What a lane leaves out, by a part of its name, another must run.
  passed=$(cat "$said"/{attacks,beside,alone} | awk '/^ *[0-9]+ +test result: ok/ {n += $5} END {print n}')
  all=$(cargo test --quiet --test e2e -- --list | grep -c ': test$')
  echo "$passed of $all tests passed, in one lane or the other"
  [ "$passed" = "$all" ] || failed=1
fi
rm -rf "$said"
[ -z "$failed" ] || exit 1
step "done"
