#!/usr/bin/env bash
# Checks the table in tests/cases.md: each row of inputs has at least one test, each test
# that it names exists, and none of them is ignored. Run by tests/run.sh after the test
# programs are built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
table=tests/cases.md
fail() { echo "cases: $*" >&2; exit 1; }

# The rows that must be there: a letter's last number.
for last in A2 B4 C4 D8 E6 F9 G5 H4 I10 J4 U7; do
  for n in $(seq "${last:1}"); do
    grep -qE "^\| ${last::1}$n \|" "$table" || fail "row ${last::1}$n is missing in $table"
  done
done

list() { cargo test --quiet "$@" 2> /dev/null | sed -n 's/: test$//p'; }
known=$(
  list --workspace --lib -- --list
  list --package ottoctl --bins -- --list
  list --test=programs -- --list
  list --test=e2e -- --list
  # Functions of scripts.
  sed -nE 's/^([a-z0-9_]+)\(\) *\{.*/\1/p' tests/*.sh tests/*/*.sh
)
ignored=$(list --workspace --lib -- --list --ignored)
rows=0 tests=0
while IFS='|' read -r _ row names _; do
  count=0
  while read -r name; do
    [ -n "$name" ] || continue
    [[ "$name" != tests/* || ! -x "${name%% *}" ]] || { count=$((count + 1)); continue; }
    grep -qE "(^|::)${name//./\\.}$" <<< "$known" || fail "row$row: there is no test $name"
    ! grep -qE "(^|::)${name//./\\.}$" <<< "$ignored" || fail "row$row: $name is ignored"
    count=$((count + 1))
  done < <(awk -F '\140' '{for (i = 2; i < NF; i += 2) print $i}' <<< "$names")
  [ "$count" -gt 0 ] || fail "row$row names no test"
  rows=$((rows + 1)) tests=$((tests + count))
done < <(grep -E '^\| [A-Z][0-9]+ \|' "$table")
[ "$rows" -gt 0 ] || fail "no row was seen"
echo "$rows rows of $table, each with its tests: $tests of them exist and run"
