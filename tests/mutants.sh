#!/usr/bin/env bash
# Small breaks of the leadership code, one at a time (.cargo/mutants.toml): each must
# turn a unit test red.
#   tests/mutants.sh           all of them; what was seen goes to tests/results/mutants.txt
#   tests/mutants.sh sample    one part of them, chosen by SEED (default: random)
#   SHARD=k/n                  only this part
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/tools.sh
# A sample has about as many.
some=${SOME:-20}
tool cargo-mutants 27.1.0
work=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/mutants
mkdir -p "$work"
exec 9> "$work/lock"
flock 9
started=$SECONDS

# A copy at a place that stays: so cargo builds again only what a break touches. Of
# the modules it keeps those that the leadership needs: seconds for each break.
tree=$work/tree
rm -rf "$tree" "$work/mutants.out"
mkdir -p "$tree"
git ls-files -z --cached --others --exclude-standard |
  tar --null --files-from - --ignore-failed-read -c | tar -x --touch -C "$tree"
sed -i -E -e '/^pub mod (app|ctl|grpc|index|logs|supervisor|telemetry|workers);$/d' \
  -e '/^pub mod proto \{$/,/^}$/d' -e '/^\/\/\/ Generated from/d' "$tree/src/lib.rs"
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_TERM_COLOR=never RUST_BACKTRACE=0
mutants() { (cd "$tree" && cargo mutants --package ottoscaler "$@"); }

shard=${SHARD:-}
if [ "${1:-}" = sample ]; then
  seed=${SEED:-$RANDOM}
  parts=$((($(mutants --list | wc -l) + some - 1) / some))
  shard=$((seed % parts))/$parts
  echo "SEED=$seed: part $shard"
fi
code=0
mutants --in-place --no-shuffle --caught --unviable --timeout 60 --output "$work" ${shard:+--shard "$shard" --sharding round-robin} || code=$?
# 2: some were missed, 3: some ran out of time (a test that hangs has noticed).
case $code in 0 | 2 | 3) ;; *) exit "$code" ;; esac

count() { wc -l < "$work/mutants.out/$1.txt"; }
summary() {
  printf 'mutants of %s, %s, cargo-mutants 27.1.0, %d s%s\n\n' "$(git describe --always --dirty)" "$(date -u +%F)" \
    $((SECONDS - started)) "${shard:+, part $shard}"
  for kind in caught missed timeout unviable; do printf '%-9s %d\n' $kind "$(count $kind)"; done
  [ "$(count missed)" = 0 ] || { printf '\nmissed:\n'; cat "$work/mutants.out/missed.txt"; }
}
if [ -n "$shard" ]; then
  summary
else
  mkdir -p tests/results
  summary | tee tests/results/mutants.txt
fi
[ "$(count missed)" = 0 ]
