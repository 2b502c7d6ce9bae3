#!/usr/bin/env bash
# The demo where no containers can run: the same job on the fake cluster, with
# replicas as processes. Pods are run by nobody, so there are no lines to follow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=${NAME:-demo}
trap 'deploy/local/cluster.sh down "$name"' EXIT
cargo build --release --workspace --bins
deploy/local/build.sh grpc-health-probe helm
deploy/local/cluster.sh up "$name" fake
export OTTO_TEST_FAKE=$name OTTO_TEST_NODE=none
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/target}
cargo test --test e2e -- --test-threads=1 --nocapture fake::a_handover_is_not_felt_and_workers_go_on
