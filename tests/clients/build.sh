#!/usr/bin/env bash
# Builds the grpc-go client into the cache, once for each content, and prints where it is.
# Needs go. No generated code is kept in the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
protos=$PWD/../../proto
files=(ottoscaler/v1/ottoscaler.proto ottoscaler/v1/admin.proto)
key=$(cd "$protos" && cat "${files[@]}" "$OLDPWD"/go/{go.mod,go.sum,main.go,generate/main.go} | sha256sum | cut -c1-16)
built=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/clients/$key
if [ ! -e "$built/done" ]; then
  echo "building the grpc-go client …" >&2
  rm -rf "$built"
  mkdir -p "$built"
  cp -r go/. "$built"
  (
    cd "$built"
    go run ./generate "$protos" . "${files[@]}"
    go build -o client .
  ) > "$built/log" 2>&1 || { tail -20 "$built/log" >&2; exit 1; }
  touch "$built/done"
fi
echo "$built"
