#!/usr/bin/env bash
# Our log session against the example handler in NestJS (tests/nest): grpc-js on the
# other side, streams that break, repeats that are kept once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=SCRIPTDIR/tools.sh
. tests/tools.sh
needs node:nodejs npm:npm
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/target}
built=$(tests/nest/build.sh)
work=$(mktemp -d)
trap 'kill "$handler" 2> /dev/null || true; rm -rf "$work"' EXIT
port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
LISTEN=127.0.0.1:$port PROTO=$PWD/proto/ottoscaler/v1/log.proto RECORD=$work/record BREAK_EVERY=37 \
  node "$built/dist/handler.js" 2> "$work/said" & handler=$!
until grep -qx ready "$work/said"; do
  kill -0 "$handler" 2> /dev/null || { cat "$work/said"; exit 1; }
  sleep 0.1
done
OTTO_NEST_HANDLER=127.0.0.1:$port OTTO_NEST_RECORD=$work/record \
  cargo test --lib -- --ignored --exact logs::forward::session::tests::a_nest_handler_keeps_each_line_once | tee "$work/tested"
grep -q '1 passed' "$work/tested"
