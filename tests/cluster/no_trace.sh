#!/usr/bin/env bash
# A cluster leaves nothing behind: what the machine holds (processes, mounts,
# cgroups, namespaces, interfaces, packet filter, settings, files) is listed
# before `up`, while up and after `down`. After must equal before; while up the
# same lists must have shown the cluster, or they would prove nothing.
# Other clusters may come and go meanwhile: what belongs to them is left out.
#   no_trace.sh [node|fake|half-up|failed-up …]    (default: all that can be done here)
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cluster=$repo/deploy/local/cluster.sh
name=trace-$(($$ % 100000))
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler
dir=$cache/clusters/$name
work=$(mktemp -d)
export TMPDIR=$work/tmp # what our scripts leave in /tmp is left here
mkdir "$TMPDIR"
cleanup() {
  # shellcheck disable=SC2317
  "$cluster" down "$name" > /dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

# not_others: drops the lines that name another cluster's directory or cgroup
not_others() {
  awk -v own="$name" '
    match($0, /ottoscaler-[^\/ ]+/) && substr($0, RSTART + 11, RLENGTH - 11) != own {next}
    match($0, /\/clusters\/[^\/ ]+/) && substr($0, RSTART + 10, RLENGTH - 10) != own {next}
    {print}'
}

# owner PID → ours, other or unknown, by the mark that every process of a cluster
# carries, by its cgroup or by the network namespace that it is in
owner() {
  local mark d
  mark=$(tr '\0' '\n' 2> /dev/null < "/proc/$1/environ" | sed -n 's/^OTTOSCALER_CLUSTER_DIR=//p') || true
  case $mark in "$dir") echo ours; return ;; ?*) echo other; return ;; esac
  d=$(sed -n 's#.*/ottoscaler-\([^/]*\).*#\1#p' "/proc/$1/cgroup" 2> /dev/null | head -n 1) || true
  case $d in "$name") echo ours; return ;; ?*) echo other; return ;; esac
  for d in "$cache"/clusters/*/netns; do
    if [ "/proc/$1/ns/net" -ef "$d" ]; then
      if [ "$d" = "$dir/netns" ]; then echo ours; else echo other; fi
      return
    fi
  done
  echo unknown
}

list_processes() { # ours; and any program of a cluster that nobody owns
  local p command looked=0
  for p in /proc/[0-9]*; do
    p=${p#/proc/}
    command=$(tr '\0' ' ' 2> /dev/null < "/proc/$p/cmdline") || continue
    [ -n "$command" ] || continue # kernel threads and zombies
    looked=$((looked + 1))
    case $(owner "$p") in
      ours) echo "$p $command" ;;
      unknown)
        case $command in
          *"$dir"* | *containerd-shim* | kube-apiserver\ * | kubelet\ * | etcd\ * | kwok\ * | jaeger\ * | coredns\ *) echo "$p $command" ;;
        esac ;;
    esac
  done
  echo "$looked" > "$work/looked"
}
list_mounts() { awk '{print $5, $9, $10}' /proc/self/mountinfo | not_others | sort; }
list_cgroups() { # not those beside our own: whoever runs us makes and removes them
  local beside
  beside=$(sed -n 's#^[^:]*:[^:]*:\(/.*\)/[^/]*$#\1/#p' /proc/self/cgroup | sort -u | paste -sd'|')
  find /sys/fs/cgroup -type d | not_others | grep -vE "${beside:-no cgroup of ours}" | sort
}
list_namespaces() { # network namespaces: held by a process that is not another cluster's, or pinned
  local p ns
  declare -A known
  for p in /proc/[0-9]*; do
    ns=$(readlink "$p/ns/net" 2> /dev/null) || continue
    [ -z "${known[$ns]:-}" ] || continue
    [ "$(owner "${p#/proc/}")" = other ] || known[$ns]=1
  done
  printf '%s\n' "${!known[@]}" | sort
  find /run/netns /var/run/netns -mindepth 1 2> /dev/null | sort -u
}
list_interfaces() { ip -o link | awk '{print $2}' | sort; }
list_filter() { { iptables -S; iptables -t nat -S; iptables-save; ip6tables-save; } 2> /dev/null | sed '/^#/d; s/\[[0-9:]*\]//' | sort; }
list_settings() {
  local f
  # fs.inotify is raised as long as any cluster is up: with others about it says nothing
  [ "$("$cluster" list | grep -cv "^$name	")" = 0 ] || : > "$work/with-others"
  for f in /proc/sys/vm/{overcommit_memory,panic_on_oom} /proc/sys/kernel/{panic,panic_on_oops,keys/*} /proc/sys/fs/inotify/* \
    /proc/sys/net/ipv4/ip_forward /proc/sys/net/bridge/* /proc/sys/net/ipv4/conf/*/{forwarding,route_localnet} /proc/sys/net/netfilter/nf_conntrack_max; do
    [ ! -r "$f" ] || echo "$f $(cat "$f")"
  done | sort
}
list_files() { # whole trees of the machine, and by name where others write at the same time
  {
    find /run /etc /opt /usr/libexec /var/lib /var/log -xdev \
      \( -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/log/apt -o -path /run/lock -o -path "$cache/clusters" \) -prune -o -print
    find "$TMPDIR" -mindepth 1 -printf 'TMPDIR/%P\n'
    find "$dir" "$HOME/.kube" "$HOME/.kwok" "$HOME/.config/helm" "$HOME/.cache/helm" -maxdepth 1
    find /tmp /dev/shm /var/tmp -maxdepth 2 | grep -E "$name|cni-|containerd|kubelet|runc|etcd|kwok|jaeger|coredns"
    find "$cache" -maxdepth 2 | grep -vE "^$cache/(tools|target|images)|/clusters$"
  } 2> /dev/null | not_others | grep -vF "$work" | sort
}

categories=(processes mounts cgroups namespaces interfaces filter settings files)
snapshot() { # moment
  local c
  mkdir -p "$work/list/$1"
  for c in "${categories[@]}"; do "list_$c" > "$work/list/$1/$c" || true; done
}

compare() { # scenario, categories that must have shown the cluster while it was up
  local c seen left compared wrong=0
  for c in "${categories[@]}"; do
    local before=$work/list/before/$c during=$work/list/while/$c after=$work/list/after/$c
    if [ "$c" = settings ] && [ -e "$work/with-others" ]; then sed -i '/fs.inotify/d' "$before" "$during" "$after"; fi
    seen=$(comm -13 "$before" "$during" 2> /dev/null | wc -l)
    left=$(diff "$before" "$after" | grep -c '^[<>]' || true)
    compared=$(cat "$before" "$after" | wc -l)
    [ "$c" != processes ] || compared=$(cat "$work/looked")
    printf '  %-11s compared %5d, while up %4d more, left %d\n' "$c" "$compared" "$seen" "$left"
    if [ "$left" != 0 ]; then diff "$before" "$after" | grep '^[<>]' | cut -c1-200 | head -20; wrong=1; fi
    case " $2 " in *" $c "*) [ "$seen" -gt 0 ] || { echo "  $c did not show the cluster while it was up"; wrong=1; } ;; esac
    [ "$compared" -gt 0 ] || { echo "  $c: nothing was compared"; wrong=1; }
  done
  [ "$wrong" = 0 ] || { echo "$1: FAILED"; exit 1; }
  echo "$1: nothing left behind"
}

scenario_node() {
  "$cluster" up "$name" node
  "$cluster" run "$name" kubectl run p --image=busybox --image-pull-policy=IfNotPresent --restart=Never -- sh -c 'echo hello; sleep 1000'
  "$cluster" run "$name" kubectl wait pod/p --for=condition=Ready --timeout=60s
  [ "$("$cluster" run "$name" kubectl logs p)" = hello ]
  "$cluster" run "$name" sleep 1000 & # whoever was started with RUN ends too
  snapshot while
  "$cluster" down "$name"
}
scenario_fake() {
  "$cluster" up "$name" fake
  "$cluster" run "$name" kubectl run p --image=none
  "$cluster" run "$name" kubectl wait pod/p --for=condition=Ready --timeout=60s
  snapshot while
  "$cluster" down "$name"
}
scenario_half-up() { # `up` is killed on the way
  "$cluster" up "$name" node &
  local up=$! until=$((SECONDS + 60))
  until [ -s "$dir/pid/kubelet" ]; do [ $SECONDS -lt $until ] || exit 1; sleep 0.1; done
  kill -KILL $up
  wait $up || true
  snapshot while
  "$cluster" down "$name"
}
scenario_failed-up() { # a component cannot start: `up` says so and removes what it had begun
  ! CONTAINER_LOG_MAX_SIZE=none "$cluster" up "$name" node || { echo "up succeeded with a bad kubelet configuration"; exit 1; }
  snapshot while
}

[ $# -gt 0 ] || set -- fake node half-up failed-up
why=$("$cluster" possible node)
for s in "$@"; do
  if [ "$s" != fake ] && [ -n "$why" ]; then echo "$s: not done here: $why"; continue; fi
  case $s in fake) kind=fake must="processes files" ;; failed-up) kind=node must='' ;; *) kind=node must="processes mounts cgroups namespaces files" ;; esac
  "$cluster" prepare "$kind"
  echo "$s:"
  snapshot before
  "scenario_$s"
  snapshot after
  compare "$s" "$must"
done
