#!/usr/bin/env bash
# Builds the local cluster's programs from the pinned Go modules in tools/ into
# a cache outside the checkout, each module once per content of its go.mod and
# go.sum. Prints nothing when all are there.
#   build.sh [MODULE…]     builds these (default: all)
#   build.sh --path        prints a PATH prefix of the built programs
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/tools

all=(etcd kwok helm grpcurl grpc-health-probe ghz coredns jaeger kubernetes)

out_dir() { # module → its cache folder
  local key
  key=$(cat "$here/tools/$1/go.mod" "$here/tools/$1/go.sum" | sha256sum | cut -c1-16)
  echo "$cache/$1-$key"
}

if [ "${1:-}" = --path ]; then
  for m in "${all[@]}"; do printf '%s:' "$(out_dir "$m")"; done
  echo
  exit
fi

ldflags() {
  local f="-s -w"
  if [ "$1" = kubernetes ]; then
    local v p=k8s.io/component-base/version
    v=$(sed -n 's#^\tk8s.io/kubernetes \(v[0-9.]*\).*#\1#p; s#^require k8s.io/kubernetes \(v[0-9.]*\).*#\1#p' "$here/tools/kubernetes/go.mod" | head -1)
    local major=${v#v} minor=${v#v*.}
    f+=" -X $p.gitVersion=$v -X $p.gitMajor=${major%%.*} -X $p.gitMinor=${minor%%.*}"
  fi
  echo "$f"
}

build() { # module: every tool of its go.mod, in one go command
  local m=$1 out tmp started=$SECONDS pkg name
  out=$(out_dir "$m")
  [ -d "$out" ] && return
  command -v go > /dev/null || { echo "error: missing: go 1.26 (https://go.dev/dl)" >&2; exit 1; }
  mkdir -p "$cache"
  exec 9>> "$cache/.$m.lock" # whoever else builds it: wait instead of building it twice
  if ! flock -n 9; then
    echo "waiting for another build of $m …" >&2
    flock 9
    [ -d "$out" ] && return
  fi
  echo "building $m … (once per machine; all of them take some 20 min on 2 cores)" >&2
  tmp=$out.partial.$$
  for tmp in "$out".partial.*; do # of builds that were killed
    kill -0 "${tmp##*.}" 2> /dev/null || rm -rf "$tmp"
  done
  tmp=$out.partial.$$
  mkdir -p "$tmp"
  for pkg in $(cd "$here/tools/$m" && go list tool); do
    name=${pkg##*/}
    case $pkg in go.etcd.io/etcd/server/v3) name=etcd ;; */cmd/all-in-one) name=jaeger ;; esac
    (cd "$here/tools/$m" && CGO_ENABLED=0 go build -trimpath -ldflags "$(ldflags "$m")" -o "$tmp/$name" "$pkg")
    echo "  $name ($((SECONDS - started)) s)" >&2
  done
  mv -T "$tmp" "$out"
  exec 9>&-
}

mods=("$@")
[ ${#mods[@]} -gt 0 ] || mods=("${all[@]}")
for m in "${mods[@]}"; do build "$m"; done
