#!/usr/bin/env bash
# The reasons that Kubernetes 1.34 to 1.37 can give for the state of a pod or of its
# containers, from the sources of what writes them, and the committed list of them.
#   reasons.sh check    compares the two; versions that cannot be downloaded are named
#   reasons.sh write    writes the list
# Go's module cache keeps the sources. `src/domain/src/reasons.rs` says what each reason means, and
# a unit test compares it with the list.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
list=reasons.txt
# Of k8s.io/kubernetes; its libraries have 0 for 1.
versions=(1.34.4 1.35.4 1.36.3 1.37.2)
mode=${1:-}
[ "$mode" = check ] || [ "$mode" = write ] || { echo "usage: reasons.sh check|write" >&2; exit 64; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
(cd reasons && go build -o "$out/reasons" .)
printf 'module download\n\ngo 1.25\n' > "$out/go.mod"

folder() { # module version
  (cd "$out" && go mod download -json "$1@$2" 2> /dev/null) | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p'
}
# reason, carrier, file, of one version
reasons_of() {
  local kubernetes api cri
  kubernetes=$(folder k8s.io/kubernetes "v$1") && api=$(folder k8s.io/api "v0.${1#1.}") &&
    cri=$(folder k8s.io/cri-api "v0.${1#1.}") && [ -n "$kubernetes" ] && [ -n "$api" ] && [ -n "$cri" ] || return 3
  "$out/reasons" "$kubernetes" "$api" "$cri"
}

known=()
for version in "${versions[@]}"; do
  code=0
  reasons_of "$version" > "$out/$version" || code=$?
  [ $code = 0 ] || [ $code = 3 ] || exit 1
  if [ $code = 0 ]; then
    known+=("$version")
  else
    echo "the sources of Kubernetes $version cannot be downloaded" >&2
    [ "$mode" = check ] || exit 1
  fi
done
[ ${#known[@]} -gt 0 ] || { echo "none of the sources can be downloaded: nothing is compared" >&2; exit 1; }

if [ "$mode" = write ]; then
  {
    echo "# Reasons of pods and containers: written by tests/reasons.sh."
    echo "# reason, what carries it, the file that writes it, versions"
    for version in "${known[@]}"; do sed "s/\$/\t${version%.*}/" "$out/$version"; done |
      LC_ALL=C sort -t $'\t' -k 1,1 -k 4,4 | awk -F'\t' -v OFS='\t' '
        $1 != reason {if (reason != "") print reason, carrier, file, of; reason = $1; of = $4; carrier = $2; file = $3; next}
        {of = of " " $4}
        END {print reason, carrier, file, of}'
  } > "$list"
  exit
fi
failed=''
for version in "${known[@]}"; do
  short=${version%.*}
  if ! diff <(awk -F'\t' -v v="$short" '/^#/ {next} index(" " $4 " ", " " v " ") {print $1}' "$list" | LC_ALL=C sort) \
    <(cut -f1 "$out/$version" | LC_ALL=C sort); then
    echo "tests/reasons.txt (<) and the sources of Kubernetes $version (>) differ: tests/reasons.sh write, and say in src/domain/src/reasons.rs what is new" >&2
    failed=1
  fi
done
[ -z "$failed" ] || exit 1
echo "tests/reasons.txt has the reasons of Kubernetes ${known[*]}: $(grep -vc '^#' "$list")"
