#!/usr/bin/env bash
# The main job, start to end, on a cluster of its own: three replicas, a handler,
# three workers, and the leader killed on the way. Exits 0 only if every printed
# line arrived once and every worker was made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=${NAME:-demo} task=${TASK:-demo-$$}
cluster=deploy/local/cluster.sh
target=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/target}/release
bold() { if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then printf '\n\033[1m%s\033[0m\n' "$1"; else printf '\n%s\n' "$1"; fi; }

why=$($cluster possible node)
if [ -n "$why" ]; then
  bold "No containers can run here ($why): the demo on a fake cluster, replicas as processes"
  echo "not shown: log lines of real containers, the kubelet's word on a killed leader"
  exec deploy/local/demo-fake.sh
fi

bold "1. Programs, images, a Kubernetes node"
make -s image > /dev/null
$cluster up "$name" node
make -s load NAME="$name" > /dev/null

bold "2. Three replicas and a handler"
tests/e2e/install.sh "$name"
eval "$($cluster env "$name")"
k() { $cluster run "$name" kubectl -n ottoscaler "$@"; }
ip=$(k get service ottoscaler -o 'jsonpath={.spec.clusterIP}')
ctl() { $cluster run "$name" "$target/ottoctl" --server "$ip:9090" "$@"; }
k get pods -l app.kubernetes.io/name=ottoscaler

bold "3. ScaleUp of three workers through the Service; their lines as the handler gets them"
record=$TRUTH/handler.jsonl
"$target/recording-handler" tail "$record" --prefix "otto-agent-$task-" --every 20 &
tail=$!
trap 'kill $tail 2> /dev/null || true' EXIT
answer=$(ctl -o json scale-up "$task" -n 3 --repository demo/repo --commit abc123 -e LINES=150 -e RATE=15)
trace=${answer##*\"trace\":\"} trace=${trace%%\"*}

half() { cat "$TRUTH/otto-agent-$task"-*.truth 2> /dev/null | wc -l; }
until [ "$(half)" -ge 150 ]; do sleep 0.1; done
holder=$(k get lease ottoscaler-leader -o 'jsonpath={.spec.holderIdentity}')
leader=${holder%%_*}
id=$(k get pod "$leader" -o 'jsonpath={.status.containerStatuses[0].containerID}')
bold "4. The leader's container is killed: $leader"
killed=$(date +%s%N)
$NODE ctr -n k8s.io tasks kill -s KILL "${id#containerd://}"
until now=$(k get lease ottoscaler-leader -o 'jsonpath={.spec.holderIdentity}') && [ "$now" != "$holder" ] && [ -n "$now" ]; do sleep 0.05; done
takeover=$((($(date +%s%N) - killed) / 1000000))
echo "leader now: ${now%%_*}"

bold "5. To the end"
ctl --timeout 120 status "$task" > /dev/null
until [ "$(ctl -o json status "$task" | grep -o '"succeeded":[0-9]*')" = '"succeeded":3' ]; do sleep 0.3; done
until [ -z "$(k get pods -l "task-id=$task" -o name)" ]; do sleep 0.3; done
kill $tail 2> /dev/null || true
ctl status "$task"
verdict=0
checked=$("$target/log-checker" --truth "$TRUTH" --record "$record" --prefix "otto-agent-$task-" --expect-workers 3 --min-lines 450) || verdict=1
audited=$("$target/audit-checker" --log "$AUDIT_LOG" --user system:serviceaccount:ottoscaler:ottoscaler --task "$task" --expect-creates 3 --min-terms 2) || verdict=1
echo
echo "$checked, takeover $((takeover / 1000)).$(printf %03d $((takeover % 1000))) s"
echo "$audited"

bold "6. The trace, from the call to the handler"
$cluster run "$name" curl -fsS "$JAEGER/api/traces/$trace" | "$target/trace-tree"

bold "7. Go on by hand"
cat << TEXT
  eval "\$(make -s cluster-env NAME=$name)"; export PATH=\$TOOLS\$PATH KUBECONFIG KUBECACHEDIR
  \$RUN kubectl -n ottoscaler get workertasks,pods
  \$RUN $target/ottoctl --server $ip:9090 scale-up hello -n 2 --watch
  make demo-down
TEXT
exit $verdict
