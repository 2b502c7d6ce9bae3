#!/usr/bin/env bash
# Builds the programs of this folder into the cache, once for each content, and prints
# where they are. Needs node and npm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
key=$(cat package*.json tsconfig.json src/* | sha256sum | cut -c1-16)
built=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/nest/$key
if [ ! -e "$built/done" ]; then
  echo "building the NestJS handler and the grpc-js client …" >&2
  rm -rf "$built"
  mkdir -p "$built"
  cp -r ./. "$built"
  (cd "$built" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error && npx --no-install tsc) > "$built/log" 2>&1 ||
    { tail -20 "$built/log" >&2; exit 1; }
  touch "$built/done"
fi
echo "$built"
