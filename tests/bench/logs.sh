# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034,SC2086 # sourced by bench.sh, which sets these
# Lines from pods' logs to an otto-handler that acknowledges and counts each, beside a bare
# follow of the same pods that counts them; on fake nodes, which serve one file as every
# worker's log. PARTS="speed" looks at one part.

log_workers=20
log_lines=20000 # of a worker, of 100 bytes

logs() {
  # shellcheck source=SCRIPTDIR/../tools.sh
  . tests/tools.sh
  needs jq:jq
  lines_file=$raw/worker.log
  cat > "$raw/kwok-logs.yaml" << EOF
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterLogs
metadata: {name: worker}
spec: {logs: [{containers: [worker], logsFile: "$lines_file", follow: true}]}
EOF
  written 1
  export KWOK_CONFIG=$raw/kwok-logs.yaml
  plane counting
  unset KWOK_CONFIG
  replica 0
  ready
  local part
  for part in ${PARTS:-speed added followed}; do "$part"; done
}

written() { # lines
  awk -v n="$1" 'BEGIN {
    text = "the quick brown fox jumps over the lazy dog and runs on through the forest until night"
    for (i = 1; i <= n; i++) printf "2026-01-01T00:%02d:%02d.%09dZ stdout F %06d %s\n", i / 60000, (i / 1000) % 60, (i % 1000) * 1000000, i, text
  }' > "$lines_file.new"
  mv "$lines_file.new" "$lines_file"
}

came() { # task key: of what otto-handler counted
  jq -r --arg task "$1" --arg key "$2" '.[$task][$key] // 0' "$record" 2> /dev/null || echo 0
}
came_all() { # task lines
  local until=$((SECONDS + 300))
  until [ "$(came "$1" lines)" -ge "$2" ]; do
    [ $SECONDS -lt $until ] || { echo "only $(came "$1" lines) of $2 lines of $1 came" >&2; exit 1; }
    sleep 0.2
  done
}

# Both read what was written before, in turns.
speed() {
  local n ticks all=$((log_workers * log_lines))
  written $log_lines
  for n in 1 2 3 4 5; do
    ticks=$(cpu_ticks "$pid")
    up "speed$n" $log_workers
    came_all "speed$n" $all
    ticks=$(($(cpu_ticks "$pid") - ticks))
    awk -v l=$all -v s="$(came "speed$n" seconds)" 'BEGIN {print l / s}' >> "$raw/lines-per-s.txt"
    awk -v l=$all -v t=$ticks -v hz="$(getconf CLK_TCK)" 'BEGIN {print l / (t / hz)}' >> "$raw/lines-per-cpu-s.txt"
    KUBECONFIG=$admin "$bin/bare-follow" --namespace $ns --selector "task-id=speed$n" --lines $all > "$raw/bare.json"
    jq '.lines / .seconds' "$raw/bare.json" >> "$raw/bare-lines-per-s.txt"
    ctl cancel "speed$n" > /dev/null
    no_pods "task-id=speed$n"
  done
  ratio log_lines "$(middle_of "$raw/lines-per-s.txt")" "/s" ">=0.5" "$(middle_of "$raw/bare-lines-per-s.txt")"
  at_least log_lines_per_cpu_s "$(middle_of "$raw/lines-per-cpu-s.txt")" /s 100000
}

# Lines as they are written, 50 a second, to both at once.
added() {
  local n=0 bare second micros
  written 1
  up live $log_workers
  came_all live $log_workers
  KUBECONFIG=$admin "$bin/bare-follow" --namespace $ns --selector task-id=live --new --lines $((log_workers * 1000)) > "$raw/bare-live.json" &
  bare=$!
  pids+=("$bare")
  while kill -0 $bare 2> /dev/null; do
    n=$((n + 1)) micros=${EPOCHREALTIME#*.}
    TZ=UTC printf -v second '%(%Y-%m-%dT%H:%M:%S)T' "${EPOCHREALTIME%.*}"
    echo "$second.${micros}000Z stdout F live $n" >> "$lines_file"
    sleep 0.02
  done
  wait $bare
  came_all live $((log_workers * 1000))
  local key
  for key in p50 p99; do
    jq -r ".${key}_ms" "$raw/bare-live.json" > "$raw/one.txt"
    figure "log_latency_added_$key" "$(awk -v o="$(came live ${key}_ms)" '{print o - $1}' "$raw/one.txt")" ms "$([ $key = p50 ] && echo 20 || echo 250)"
    echo "  $key: $(came live ${key}_ms) ms, of a bare follow $(cat "$raw/one.txt") ms"
  done
  ctl cancel live > /dev/null
  no_pods task-id=live
}

followed() {
  written 100
  up followed 1000
  came_all followed 100000
  figure memory_1000_followed "$(resident "$pid")" MiB 256
}
