#!/usr/bin/env bash
# Starts one component inside the node: start.sh DIR NAME. Its command is
# DIR/cmd/NAME, its pid (as seen inside) DIR/pid/NAME, its log DIR/log/NAME.log.
set -euo pipefail
setsid "$1/cmd/$2" < /dev/null >> "$1/log/$2.log" 2>&1 &
echo $! > "$1/pid/$2"
