# shellcheck shell=bash
# Logs of pods that nobody runs; sourced.

# directory: fake nodes of clusters that are started from now on serve a file in it as the log of
# every worker of the namespace `log-kills`.
served_logs() {
  mkdir -p "$1"
  export OTTO_TEST_LOG_FILE=$1/worker.log KWOK_CONFIG=$1/kwok.yaml
  : > "$OTTO_TEST_LOG_FILE"
  cat > "$KWOK_CONFIG" << EOF
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterLogs
metadata: {name: worker}
spec:
  selector: {matchNamespaces: [log-kills]}
  logs: [{containers: [worker], logsFile: "$OTTO_TEST_LOG_FILE", follow: true}]
EOF
}
