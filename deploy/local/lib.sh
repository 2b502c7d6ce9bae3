# shellcheck shell=bash
# Shared by every kind: where state lives, messages, deadlines, ending processes.
#
# A cluster is one directory, $clusters/NAME. Its file `kind` is written first
# and removed last, so that `down` can always tell what is left to undo.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler
clusters=$cache/clusters
images=$cache/images
audit_policy=${AUDIT_POLICY:-$here/audit.yaml}

say() { printf '%s\n' "$*" >&2; }
step() { printf '  %-28s %s.%s s\n' "$1" $((($(now) - began) / 1000)) $((($(now) - began) % 1000 / 100)) >&2; }
die() { # message [exit code]
  say "error: $1"
  exit "${2:-1}"
}
now() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); } # milliseconds
began=$(now)
lock_fd=9 # none is held yet; closing it does no harm

use_name() { # NAME: sets name and dir
  [[ $1 =~ ^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?$ ]] ||
    die "NAME '$1': takes 1-24 of a-z, 0-9 and '-', neither first nor last a '-'" 64
  name=$1
  dir=$clusters/$name
  export KUBECACHEDIR=$dir/tmp/kube # kubectl would write into ~/.kube
}

kind_of() { cat "$dir/kind" 2> /dev/null || true; }

# One up or down of a name at a time. The lock is on the directory itself, so
# that no lock file stays behind; whoever waited for one that is gone begins again.
lock_cluster() {
  local fd
  while :; do
    mkdir -p "$dir"
    exec {fd}< "$dir"
    flock -w 180 "$fd" || die "cluster '$name' is busy for 180 s: another up or down is at work"
    [ "$dir" -ef "/proc/$$/fd/$fd" ] && break
    exec {fd}<&-
  done
  lock_fd=$fd
}

# with_machine_lock COMMAND…: for what all clusters of this user share
with_machine_lock() {
  mkdir -p "$clusters"
  (
    exec 7< "$clusters"
    flock -w 60 7 || die "$clusters is locked for 60 s"
    "$@"
  )
}

remove_state() {
  rm -rf --one-file-system "$dir"
  rmdir "$clusters" 2> /dev/null || true
}

# await WHAT SECONDS COMMAND…: until the command succeeds; no fixed sleeps elsewhere
await() {
  local what=$1 until=$(($(now) + $2 * 1000))
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$(now)" -lt "$until" ] || { say "gave up waiting for $what: $*"; return 1; }
    sleep 0.1
  done
}

# A process is known by its pid and its start time, so that a pid used again is never hit.
start_time() { # pid → start time in ticks, empty when it is gone or a zombie
  local stat
  { read -r stat < "/proc/$1/stat"; } 2> /dev/null || return 0
  stat=${stat##*) }
  [ "${stat%% *}" = Z ] || cut -d' ' -f20 <<< "$stat"
}
record_process() { echo "$1 $(start_time "$1")" > "$2"; } # pid file
recorded_process() { # file → pid, when that very process still runs
  local pid started
  read -r pid started 2> /dev/null < "$1" || return 1
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

# daemon NAME COMMAND…: in a session of its own, log in $dir/log, marked with the cluster's directory
daemon() {
  local n=$1
  shift
  OTTOSCALER_CLUSTER_DIR=$dir setsid "$@" < /dev/null >> "$dir/log/$n.log" 2>&1 {lock_fd}<&- &
  record_process $! "$dir/$n.pid"
}

# our_processes: those that carry the mark of this cluster's directory
our_processes() {
  local p
  for p in /proc/[0-9]*; do
    p=${p#/proc/}
    [ "$p" != $$ ] && grep -qzxF "OTTOSCALER_CLUSTER_DIR=$dir" "/proc/$p/environ" 2> /dev/null &&
      [ -n "$(start_time "$p")" ] && echo "$p"
  done
  return 0
}

# end_processes COMMAND…: ends what the command lists: politely for 2 s, then for good
end_processes() {
  local pids until=$(($(now) + 2000)) signal=TERM
  while :; do
    mapfile -t pids < <("$@")
    [ ${#pids[@]} -gt 0 ] || return 0
    [ "$(now)" -lt "$until" ] || signal=KILL
    [ "$(now)" -lt $((until + 10000)) ] || { say "still running after SIGKILL: ${pids[*]}"; return 1; }
    kill -$signal "${pids[@]}" 2> /dev/null || true
    sleep 0.1
  done
}

show_log() { # component: the end of its log
  local f=$dir/log/$1.log
  [ -s "$f" ] || return 0
  say "--- the end of $1's log"
  tail -n 25 "$f" | cut -c1-400 >&2
}

# Each follow of a log takes an inotify instance of root's, and 128 is the
# default. The value is the machine's: the first cluster raises it and the last
# one puts the old value back. $clusters/NAME/inotify holds the old value.
inotify_file=/proc/sys/fs/inotify/max_user_instances
inotify_raise() {
  local old
  old=$(cat "$clusters"/*/inotify 2> /dev/null | head -n 1 || true)
  [ -n "$old" ] || old=$(cat $inotify_file)
  [ "$old" -lt 8192 ] || return 0
  echo "$old" > "$dir/inotify.old"
  mv "$dir/inotify.old" "$dir/inotify"
  echo 8192 > $inotify_file
  say "  fs.inotify.max_user_instances $old -> 8192 until the last cluster is down"
}
inotify_restore() {
  [ -f "$dir/inotify" ] || return 0
  local old
  old=$(cat "$dir/inotify")
  rm -f "$dir/inotify"
  compgen -G "$clusters/*/inotify" > /dev/null || echo "$old" > $inotify_file
}
