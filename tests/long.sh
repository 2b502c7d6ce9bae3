#!/usr/bin/env bash
# The long checks in full: tests/long.sh model, soak (all but the model), or a part of that:
# leadership-changes, fence-windows, crashes, tasks, log-kills, log-kills-of-many, log-handovers, log-moments, log-away, clients.
# `make test` runs the same at a reduced count. What was seen goes to tests/results/<check>.txt.
set -eEuo pipefail
# Whatever fails says so, also what prints nothing itself.
trap 'echo "error: \"$BASH_COMMAND\" failed (${BASH_SOURCE[0]##*/}, line $LINENO)" >&2' ERR
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=deploy/local/cluster.sh
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/target}
check=${1:?which: model, soak, leadership-changes, fence-windows, crashes, tasks, log-kills, log-kills-of-many, log-handovers, log-moments, log-away, clients}
mkdir -p tests/results
result=tests/results/$check.txt
work=$(mktemp -d)
up=()
finish() {
  for name in "${up[@]}"; do $cluster down "$name" > /dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT
started=$SECONDS
# Before any result is written.
commit=$(git describe --always --dirty)
export RUST_BACKTRACE=0

# Runs a command, keeps what it says, and of that the lines that match in the result.
keep() { # pattern command…
  "${@:2}" 2>&1 | tee "$work/said"
  grep -E "$1" "$work/said" >> "$work/result"
}

model() {
  OTTO_MODEL=full keep 'states|^test |^[a-z ]+: \[|test result' \
    cargo test --release -p ottoscaler-model -p ottoscaler-partners --test model -- --test-threads=1 --nocapture
}

export OTTO_TEST_CHANGES=10000 OTTO_TEST_SAMPLES=$PWD/tests/results/leadership-changes.csv

soak() {
  on_a_fake_cluster faults:: contenders:: delayed:: saturation:: windows::
  tasks
  log-kills
  log-kills-of-many
  log-handovers
  log-moments
  log-away
  clients
}

# Ten thousand changes of leader.
leadership-changes() { on_a_fake_cluster contenders::growth::; }

# Stock clients through 20 rolling restarts and 20 leader kills, and 30,000 workers by pages.
clients() { on_a_fake_cluster clients::; }

# What remains of the fence's windows, and renewals under saturation.
fence-windows() { on_a_fake_cluster delayed:: saturation:: windows::; }

# The leader's death at each write of a ScaleUp.
crashes() { on_a_fake_cluster faults::boundaries::; }

# Half an hour of 20 tasks a second, each forgotten after a minute; on nodes that have room
# for MAX_WORKERS pods, 110 each. Of all that the API server does it records what counts.
tasks() { NODES=6 AUDIT_POLICY=$PWD/tests/bench/audit.yaml on_a_fake_cluster tasks::; }

# On a real node: 200 workers print 50 lines a second while leaders die, or hand over.
log-kills() {
  export OTTO_TEST_LOG_WORKERS=200 OTTO_TEST_LOG_KILLS=20 OTTO_TEST_LOG_CHANGE_S=15
  on_a_node 10Mi logs::leaders_killed
}

# On fake nodes, which serve one file as the log of all: 1,000 workers print 4 lines a second.
log-kills-of-many() {
  # shellcheck source=SCRIPTDIR/served_logs.sh
  . tests/served_logs.sh
  served_logs "$work/logs"
  export OTTO_TEST_MANY_LOGS=1000 OTTO_TEST_MANY_LOGS_KILLS=5
  NODES=12 on_a_fake_cluster fake::logs::
  unset KWOK_CONFIG
}

log-handovers() {
  export OTTO_TEST_LOG_WORKERS=200 OTTO_TEST_LOG_HANDOVERS=20 OTTO_TEST_LOG_CHANGE_S=20
  on_a_node 10Mi logs::leaders_that_hand_over
}

# A thousand workers that live for a moment; API server and kubelet restart; handlers of
# any habit; containers of any kind.
log-moments() {
  export OTTO_TEST_SHORT_WORKERS=1000
  on_a_node 10Mi logs::workers logs::an_ logs::a_
}

# otto-handler away for ten minutes; logs rotated away while nobody reads.
log-away() {
  export OTTO_TEST_AWAY_S=600
  on_a_node 500Ki logs::lines_rotated logs::while_the_handler
}

on_a_node() { # size of a log, test…
  deploy/local/build.sh
  make -s image
  export OTTO_TEST_NODE=${OTTO_TEST_NODE:-$check} CONTAINER_LOG_MAX_SIZE=$1
  up+=("$OTTO_TEST_NODE")
  $cluster up "$OTTO_TEST_NODE" node
  make -s load NAME="$OTTO_TEST_NODE"
  keep '^test |^away|kills|handovers|moment|restarting|rotated|habit|test result' \
    cargo test --test e2e -- --test-threads=1 --nocapture "${@:2}"
  $cluster down "$OTTO_TEST_NODE"
}

on_a_fake_cluster() { # module…
  deploy/local/build.sh
  cargo build --release --workspace --bins
  export OTTO_TEST_FAKE=${OTTO_TEST_FAKE:-$check} OTTO_TEST_FULL=1 OTTO_TEST_SAMPLES_DIR=$PWD/tests/results
  up+=("$OTTO_TEST_FAKE")
  $cluster up "$OTTO_TEST_FAKE" fake
  keep '^test |SEED|clients:|crashes:|kills|changes|growth|tasks in|terms|late|refused|outage|took|renewals|test result' \
    cargo test --test e2e -- --test-threads=1 --nocapture "$@"
  $cluster down "$OTTO_TEST_FAKE"
}

case $check in
model | soak | leadership-changes | fence-windows | crashes | tasks | log-kills | log-kills-of-many | log-handovers | log-moments | log-away | clients) "$check" ;;
*) echo "error: no such check: $check" >&2; exit 1 ;;
esac
{
  printf '%s of %s, %s cores, %d s\n\n' "$check" "$commit" "$(nproc)" $((SECONDS - started))
  cat "$work/result"
} > "$result"
echo "written to $result"
