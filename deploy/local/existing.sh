# shellcheck shell=bash
# Kind `existing`: a cluster that is somebody else's, only by a CONTEXT named on
# the command line. Nothing is started; `down` forgets the record, no more.

existing_needs() { need_tools kubernetes; }
existing_possible() { [ -n "${CONTEXT:-}" ] || echo "no CONTEXT named"; }

existing_up() {
  [ -n "${CONTEXT:-}" ] || die "KIND=existing takes CONTEXT, the name of a context in your kubeconfig" 64
  existing_needs
  began=$(now)
  mkdir -p "$dir/access"
  (umask 077; kubectl config view --raw --minify --flatten --context "$CONTEXT" > "$dir/kubeconfig") ||
    die "no context '$CONTEXT' in the kubeconfig"
  await "the API server of '$CONTEXT'" 15 existing_healthy || die "the API server of context '$CONTEXT' does not answer /readyz"
  step "API server of $CONTEXT"
}

existing_down() { :; }
existing_healthy() { kubectl --kubeconfig "$dir/kubeconfig" --request-timeout=5s get --raw /readyz > /dev/null 2>&1; }

existing_env() {
  echo "KUBECONFIG='$dir/kubeconfig'"
  echo "RUN=''"
  echo "AUDIT_LOG=''"
  echo "JAEGER='${JAEGER:-}'"
  echo "OTLP='${OTLP:-}'"
}

existing_load() { die "KIND=existing: push the image to a registry that the cluster can pull from"; }
