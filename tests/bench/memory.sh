# shellcheck shell=bash
# shellcheck disable=SC2154,SC2086 # sourced by bench.sh, which sets these
# The leader's memory, and what ten thousand workers cost: ten tasks of a thousand whose
# pods nobody schedules, so that no log is followed beside.

memory() {
  plane recording
  replica 0
  leader=$pid leader_grpc=$grpc
  ready
  figure memory_leader_idle "$(resident "$leader")" MiB 20
  $cluster component $name stop scheduler
  local n since ticks one all
  for n in $(seq 10); do
    since=$(date +%s%N)
    up "many$n" 1000
    seen --prefix "otto-agent-many$n-" --since "$since" created --count 1000 >> "$raw/scale-up-to-10000-ms.txt"
  done
  # The last status writes and notifications.
  sleep 5
  figure memory_10000_workers "$(resident "$leader")" MiB 64
  # One that comes to them all at once.
  replica 9
  ready
  figure memory_10000_workers_listed "$(resident "$pid")" MiB 64
  kill "$pid"
  grpc=$leader_grpc
  ratio scale_up_to_10000 "$(tail -n 2 "$raw/scale-up-to-10000-ms.txt" | sort -n | head -1)" ms "<=1.5" "$(head -n 2 "$raw/scale-up-to-10000-ms.txt" | sort -n | head -1)"
  one=$("$bin/status-load" --server "127.0.0.1:$grpc" --task many1)
  all=$("$bin/status-load" --server "127.0.0.1:$grpc")
  echo "$one $all" > "$raw/status.txt"
  awk '{print $2 / $1 * 1000, $6 / $5 * 1000}' "$raw/status.txt" > "$raw/status-us.txt"
  ratio status_per_worker_10000 "$(awk '{print $2}' "$raw/status-us.txt")" us "<=1.5" "$(awk '{print $1}' "$raw/status-us.txt")"
  KUBECONFIG=$admin "$bin/phase-latency" --namespace $ns --selector app=otto-agent
  no_pods app=otto-agent
  # What the last workers leave to do; a sweep comes each 20 s.
  sleep 10
  ticks=$(cpu_ticks "$leader")
  sleep 60
  ticks=$(($(cpu_ticks "$leader") - ticks))
  figure idle_cpu_10000_finished "$(awk -v t="$ticks" -v hz="$(getconf CLK_TCK)" 'BEGIN {print t / hz / 60 * 100}')" % 1
  echo "  resident then: $(resident "$leader") MiB"
}
