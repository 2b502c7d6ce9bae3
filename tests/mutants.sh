#!/usr/bin/env bash
# Small breaks of the leadership code, one at a time (.cargo/mutants.toml): each must
# turn a unit test red.
#   tests/mutants.sh          all, in parts; goes on where it was cut off, if nothing
#                             has changed; the outcome is tests/results/mutants.txt
#   tests/mutants.sh sample   one small part, chosen by SEED (default: random)
#   WITH=command              runs each part, where others share the machine: "flock /tmp/x"
#   HANGS=seconds             after which a test counts as hung (default: 30), where it is slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=SCRIPTDIR/tools.sh
. tests/tools.sh
pinned=27.1.0
tool cargo-mutants $pinned
work=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/mutants
mkdir -p "$work"
exec 9> "$work/lock"
flock 9
started=$SECONDS

# A copy at a place that stays, so that cargo builds again only what a break touches.
tree=$work/tree
rm -rf "$tree"
mkdir -p "$tree"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from - --ignore-failed-read -c | tar -x --touch -C "$tree"

export CARGO_PROFILE_DEV_DEBUG=0 CARGO_TERM_COLOR=never RUST_BACKTRACE=0
mutants() { ${WITH:-} cargo mutants --dir "$tree" --package fenced-lease "$@"; }

total=$(WITH='' mutants --list | wc -l)
if [ "${1:-}" = sample ]; then
  seed=${SEED:-$RANDOM} parts=$((total / 4))
  run=($((seed % parts)))
  out=$work/sample
  rm -rf "$out"
  echo "SEED=$seed: part ${run[0]} of $parts, of $total breaks"
else
  parts=$((total / 12))
  mapfile -t run < <(seq 0 $((parts - 1)))
  # Of what is broken and of what its tests run through.
  parts_of=(src/fenced-lease .cargo Cargo.lock tests/mutants.sh)
  out=$work/$(git ls-files -z --cached --others --exclude-standard "${parts_of[@]}" |
    sort -z | xargs -0 cat | sha256sum | cut -c1-16)
fi

# Without a break all is green.
${WITH:-} cargo test --quiet --manifest-path "$tree/Cargo.toml" --package fenced-lease --lib -- --skip an_hour
for part in "${run[@]}"; do
  [ ! -e "$out/$part/done" ] || continue
  rm -rf "${out:?}/$part"
  mkdir -p "$out/$part"
  code=0 began=$SECONDS
  mutants --in-place --baseline skip --timeout "${HANGS:-30}" --caught --unviable --colors never \
    --output "$out/$part" --shard "$part/$parts" --sharding round-robin || code=$?
  # 2: some were missed, 3: a test hung, which is to notice.
  case $code in 0 | 2 | 3) ;; *) exit "$code" ;; esac
  echo $((SECONDS - began)) > "$out/$part/done"
  echo "$((part + 1)) of $parts parts, $((SECONDS - started)) s"
done

all() { cat "$out"/*/mutants.out/"$1".txt; }
summary() {
  printf 'mutants of %s, %s, cargo-mutants %s, %s cores, %d s\n\n' "$(git describe --always --dirty)" \
    "$(date -u +%F)" $pinned "$(nproc)" "$(cat "$out"/*/done | awk "{s += \$1} END {print s}")"
  for kind in caught missed timeout unviable; do printf '%-9s %d\n' $kind "$(all $kind | wc -l)"; done
  printf '\nmissed:\n%s\n' "$(all missed)"
}
if [ "${1:-}" = sample ]; then
  summary
else
  mkdir -p tests/results
  summary | tee tests/results/mutants.txt
fi
[ -z "$(all missed)" ]
