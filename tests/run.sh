#!/usr/bin/env bash
# Runs the tests: without a cluster, then on a fake and on a real one, which it
# brings up and takes down again.
#   ONLY=<filter>   only tests whose name has it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=deploy/local/cluster.sh
only=${ONLY:-}
up=() beside='' failed=''
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
cargo test --workspace --lib --bins -- ${only:+"$only"}
cargo test --release --test model -- --nocapture ${only:+"$only"}

if [ -z "$only" ]; then
  step "breaks of the leadership code, some of them"
  tests/mutants.sh sample
  step "random scripts for the resume of logs"
  tests/fuzz.sh 20
  step "an otto-handler in NestJS"
  tests/nest.sh
fi

why=$($cluster possible node)
if [ -n "$why" ]; then
  echo "the real-node tests and the trace test are not run: $why"
  [ "${CI:-}" != true ] || { echo "in CI nothing may be skipped" >&2; exit 1; }
fi

step "programs and images"
deploy/local/build.sh
if [ -z "$why" ]; then make -s image; else cargo build --release --workspace --bins; fi

# Two lanes: the tests wait more than they work. Attacks on leadership have one fake
# cluster; beside them the real node, and then a fake one for the rest.
cargo test --test e2e --no-run
export OTTO_TEST_FAKE=t-fake OTTO_TEST_NODE=t-node
e2e() { # modules to leave out…
  cargo test --test e2e -- --test-threads=1 --nocapture "${@/#/--skip=}" ${only:+"$only"}
}
attacks=(contenders:: faults:: windows::)
others=(fake:: late:: tasks::)
# What asks how soon something is done while the processors have all to do.
alone=(saturation::)
node() {
  local code=0
  # Small logs: some tests want them rotated.
  CONTAINER_LOG_MAX_SIZE=500Ki $cluster up t-node node && make -s load NAME=t-node && e2e "${others[@]}" "${attacks[@]}" "${alone[@]}" || code=1
  $cluster down t-node
  return $code
}
rest() {
  local code=0
  $cluster up t-rest fake && OTTO_TEST_FAKE=t-rest e2e node:: "${attacks[@]}" "${alone[@]}" || code=1
  $cluster down t-rest
  return $code
}
beside() {
  local code=0
  [ -n "$why" ] || node || code=1
  rest || code=1
  return $code
}
up+=(t-rest)
[ -n "$why" ] || up+=(t-node)
said=$(mktemp) attacked=$(mktemp)
beside > "$said" 2>&1 &
beside=$!

step "attacks on leadership, on a fake cluster"
up+=(t-fake)
$cluster up t-fake fake
e2e node:: "${others[@]}" "${alone[@]}" | tee "$attacked" || failed=1

wait "$beside" || failed=1
beside=''
step "real node and fake cluster, meanwhile"
cat "$said"

step "with nothing beside"
e2e node:: "${others[@]}" "${attacks[@]}" | tee -a "$attacked" || failed=1
$cluster down t-fake

if [ -z "$why$only$failed" ]; then
  # What a lane leaves out, by a part of its name, another must run.
  passed=$(cat "$said" "$attacked" | awk '/^test result: ok/ {n += $4} END {print n}')
  all=$(cargo test --quiet --test e2e -- --list | grep -c ': test$')
  echo "$passed of $all tests passed, in one lane or the other"
  [ "$passed" = "$all" ] || failed=1
fi
rm -f "$said" "$attacked"
if [ -z "$why$only" ]; then
  step "clusters leave no trace"
  tests/cluster/no_trace.sh || failed=1
fi
[ -z "$failed" ] || exit 1
step "done"
