#!/usr/bin/env bash
# Installs what the real-node tests and the demo need into cluster NAME: truth
# policy, recording handler, the chart with line printers as workers.
#   install.sh NAME [HELM_FLAGS…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=$1
shift
eval "$(deploy/local/cluster.sh env "$name")"
kubectl() { deploy/local/cluster.sh run "$name" kubectl "$@"; }
kubectl create namespace ottoscaler --dry-run=client -o yaml | kubectl apply -f - > /dev/null
sed "s#@TRUTH@#$TRUTH#" tests/cluster/truth-policy.yaml | kubectl apply -f - > /dev/null
: >> "$TRUTH/handler.jsonl"
chmod 666 "$TRUTH/handler.jsonl"
sed "s#@DIR@#$TRUTH#" tests/manifests/handler.yaml | kubectl -n ottoscaler apply -f - > /dev/null
make -s install NAME="$name" \
  HELM_FLAGS="--set worker.image=ottoscaler-partners:dev --set otlpEndpoint=$OTLP $*" > /dev/null
kubectl -n ottoscaler rollout status deployment/otto-handler --timeout=60s > /dev/null
