#!/usr/bin/env bash
# The long checks in full: tests/long.sh model|soak. `make test` runs the same at a
# reduced count. What was seen goes to tests/results/<check>.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=deploy/local/cluster.sh
check=${1:?which: model, soak}
mkdir -p tests/results
result=tests/results/$check.txt
work=$(mktemp -d)
up=()
finish() {
  for name in "${up[@]}"; do $cluster down "$name" > /dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
started=$SECONDS
export RUST_BACKTRACE=0

# Runs a command, keeps what it says, and of that the lines that match in the result.
keep() { # pattern command…
  "${@:2}" 2>&1 | tee "$work/said"
  grep -E "$1" "$work/said" >> "$work/result"
}

model() {
  OTTO_MODEL=full keep 'states|^test |^[a-z ]+: \[|test result' \
    cargo test --release --test model -- --test-threads=1 --nocapture
}

soak() {
  cargo build --release --workspace --bins
  up+=(soak)
  export OTTO_TEST_FAKE=soak OTTO_TEST_FULL=1 OTTO_TEST_CHANGES=10000
  export OTTO_TEST_SAMPLES=$PWD/tests/results/leadership-changes.csv
  $cluster up soak fake
  keep '^test |changes|growth|terms|late|refused|outage|took|test result' \
    cargo test --test e2e -- --test-threads=1 --nocapture faults:: contenders::
}

case $check in
model | soak) "$check" ;;
*) echo "error: no such check: $check" >&2; exit 1 ;;
esac
{
  printf '%s of %s, %s cores, %d s\n\n' "$check" "$(git describe --always --dirty)" "$(nproc)" $((SECONDS - started))
  cat "$work/result"
} > "$result"
echo "written to $result"
