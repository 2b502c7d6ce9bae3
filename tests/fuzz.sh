#!/usr/bin/env bash
# Random scripts against the resume core (tests/fuzz): whatever a node prints and however
# it is read, no line is missing unsaid.
#   tests/fuzz.sh          ten minutes; the corpus is kept, what was seen is
#                          tests/results/fuzz.txt
#   tests/fuzz.sh 20       so many seconds, from the kept corpus
# SEED=n repeats a run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=SCRIPTDIR/tools.sh
. tests/tools.sh
# libFuzzer is C++.
needs c++:g++
pinned=0.13.2
tool cargo-fuzz $pinned
seconds=${1:-600}
seed=${SEED:-$((RANDOM + 1))}
kept=tests/fuzz/corpus/resume
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$kept" "$work/corpus" "$work/found"
cp -r "$kept/." "$work/corpus"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/target}/fuzz
# No sanitizer: there is no unsafe code of ours, and stable Rust has none.
fuzz() { cargo fuzz "$1" --fuzz-dir tests/fuzz --sanitizer none resume "${@:2}"; }
echo "SEED=$seed, $seconds s"
began=$SECONDS
fuzz run "$work/corpus" -- -max_total_time="$seconds" -seed="$seed" -max_len=600 -timeout=10 \
  -artifact_prefix="$work/found/" -print_final_stats=1 > "$work/said" 2>&1 || {
  tail -40 "$work/said"
  for script in "$work/found"/*; do echo "a script for which something does not hold: $(base64 -w0 "$script")"; done
  exit 1
}
grep -E 'stat::(number_of_executed_units|average_exec_per_sec|new_units_added)|Done' "$work/said"
[ -z "${1:-}" ] || exit 0
rm -rf "$kept"
mkdir -p "$kept"
fuzz cmin "$work/corpus" > "$work/cmin" 2>&1
cp -r "$work/corpus/." "$kept"
mkdir -p tests/results
{
  printf 'fuzz of %s, cargo-fuzz %s, SEED=%s, %s cores, %d s\n\n' "$(git describe --always --dirty)" $pinned "$seed" "$(nproc)" $((SECONDS - began))
  grep -E 'stat::|Done|INITED' "$work/said"
  printf 'corpus kept: %d scripts\n' "$(find "$kept" -type f | wc -l)"
} > tests/results/fuzz.txt
echo "written to tests/results/fuzz.txt"
