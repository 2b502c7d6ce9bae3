# shellcheck shell=bash
# Kind `node`: one real Kubernetes node in network, mount and process namespaces
# of its own (seen from outside; node/init.sh is the inside).
#
# Its process namespace ends with its first process, and its mounts, interfaces
# and sockets with the last: `down` is a kill, and what is left to remove are
# the cgroups, one pinned namespace file and the cluster's directory.

node_ip=10.250.0.1
service_ip=10.96.0.1
node_cgroup() { echo "ottoscaler-$name"; }

node_possible() { # → empty, or why not
  if [ "$(uname -s)" != Linux ]; then echo "not Linux"
  elif [ "$(id -u)" != 0 ]; then echo "not root"
  elif ! unshare --net --mount --pid --fork true 2> /dev/null; then echo "namespaces cannot be made here (unshare is refused)"
  elif ! [ -w /sys/fs/cgroup ]; then echo "/sys/fs/cgroup is not writable"
  fi
}

node_needs() {
  need_packages containerd:containerd ctr:containerd runc:runc busybox:busybox-static iptables:iptables \
    conntrack:conntrack ip:iproute2 openssl:openssl /usr/lib/cni/bridge:containernetworking-plugins
  need_tools etcd coredns jaeger kubernetes
}

node_up() {
  local why log
  why=$(node_possible)
  [ -z "$why" ] || die "KIND=node is not possible: $why (KIND=fake needs no root)"
  node_needs
  began=$(now)
  [ -e /proc/sys/net/bridge ] || modprobe br_netfilter 2> /dev/null ||
    say "warning: no br_netfilter in this kernel: a pod may not reach its own Service"
  mkdir -p "$dir"/{log,cmd,pid,tmp,access,truth,var/lib,var/log}
  chmod 1777 "$dir/truth"
  cp "$audit_policy" "$dir/audit.yaml"
  node_image_archives
  pki $node_ip $service_ip "https://$node_ip:6443"
  node_cgroups
  with_machine_lock inotify_raise
  : > "$dir/netns"
  : > "$dir/steps"
  daemon node unshare --net="$dir/netns" --mount --propagation private --pid --fork --kill-child \
    env TMPDIR="$dir/tmp" "$here/node/init.sh" "$dir" "$(node_cgroup)" "$images"
  node_follow
}

# Shows the steps as the inside writes them, until the last or a failure.
node_follow() {
  local line running until=$(($(now) + 180000)) seen=0 steps=()
  while :; do
    running=$(recorded_process "$dir/node.pid" || true)
    mapfile -t steps < "$dir/steps"
    for line in "${steps[@]:seen}"; do
      case $line in
        failed\ *) node_failed "${line#failed }" ;;
        done) return ;;
        *) step "$line" ;;
      esac
    done
    seen=${#steps[@]}
    { [ -n "$running" ] && [ "$(now)" -lt "$until" ]; } || node_failed node
    sleep 0.1
  done
}

node_failed() { # component
  show_log node
  [ "$1" = node ] || show_log "$1"
  node_down
  die "cluster '$name' did not come up: $1 failed (its log is above)"
}

node_down() {
  ! [ /proc/self/ns/net -ef "$dir/netns" ] || die "cluster-down was called from inside the cluster"
  end_node_init
  end_processes our_processes
  if [ "$(stat -f -c %T "$dir/netns" 2> /dev/null)" = nsfs ]; then
    end_processes processes_in_netns # whoever was started with RUN
    umount -l "$dir/netns"
  fi
  end_processes processes_in_cgroups
  remove_cgroups
  with_machine_lock inotify_restore
}

end_node_init() { # the first process inside; the kernel ends the others
  local p
  p=$(recorded_process "$dir/init.pid") && kill -KILL "$p" 2> /dev/null
  return 0
}

processes_in_netns() {
  local p
  for p in /proc/[0-9]*; do
    [ "$p/ns/net" -ef "$dir/netns" ] && [ -n "$(start_time "${p#/proc/}")" ] && echo "${p#/proc/}"
  done
  return 0
}

processes_in_cgroups() {
  own_cgroups | while read -r d; do cat "$d/cgroup.procs" 2> /dev/null; done | sort -u | grep -vx 0 || true
}

own_cgroups() { # all below this cluster's roots, the deepest first
  local h root
  for h in /sys/fs/cgroup /sys/fs/cgroup/*/; do
    root=${h%/}/$(node_cgroup)
    [ ! -d "$root" ] || find "$root" -depth -type d
  done
}

remove_cgroups() {
  await "the cgroups of '$name' to empty" 10 cgroups_gone
}
cgroups_gone() {
  local d
  own_cgroups | while read -r d; do rmdir "$d" 2> /dev/null; done
  [ -z "$(own_cgroups)" ]
}

# The kubelet wants its root cgroup to exist, in every hierarchy (v1) or with the controllers handed down (v2).
node_cgroups() {
  local d f h=/sys/fs/cgroup c
  c=$(node_cgroup)
  if [ -f $h/cgroup.controllers ]; then
    for f in $(cat $h/cgroup.controllers); do echo "+$f" > $h/cgroup.subtree_control 2> /dev/null || true; done
    mkdir -p "$h/$c"
    for f in $(cat "$h/$c/cgroup.controllers"); do echo "+$f" > "$h/$c/cgroup.subtree_control" 2> /dev/null || true; done
    return
  fi
  for d in "$h"/*/; do
    [ -f "$d/cgroup.procs" ] && [ "$d" != $h/unified/ ] && mkdir -p "$d$c"
  done
  for f in cpus mems; do
    [ ! -f "$h/cpuset/cpuset.$f" ] || cat "$h/cpuset/cpuset.$f" > "$h/cpuset/$c/cpuset.$f"
  done
}

node_env() {
  echo "KUBECONFIG='$dir/pki/admin.kubeconfig'"
  echo "RUN='nsenter --net=$dir/netns'"
  echo "AUDIT_LOG='$dir/audit.log'"
  echo "JAEGER='http://$node_ip:16686'"
  echo "OTLP='http://$node_ip:4317'"
  echo "TRUTH='$dir/truth'"
  echo "NODE_DIR='$dir'"
  echo "NODE='$(node_prefix)'"
}

# runs a command in the node's network, mounts and processes (ctr, kill, crictl)
node_prefix() { echo "nsenter --target $(recorded_process "$dir/init.pid") --net --mount --pid"; }

node_healthy() { recorded_process "$dir/init.pid" > /dev/null && grep -qx 'done' "$dir/steps" 2> /dev/null; }

node_load() { # tar: imports its images, once per content
  local sum prefix
  sum=$(sha256sum "$1" | cut -d' ' -f1)
  [ ! -e "$dir/loaded/$sum" ] || return 0
  prefix=$(node_prefix)
  $prefix ctr -n k8s.io images import - < "$1" >&2
  # shellcheck disable=SC2016
  all_known() { [ -z "$($prefix ctr -n k8s.io images ls 'labels."io.cri-containerd.image"!=managed' -q)" ]; }
  await "the kubelet's view of the images" 15 all_known
  mkdir -p "$dir/loaded"
  : > "$dir/loaded/$sum"
}

node_component() { # action component
  local prefix
  prefix=$(node_prefix)
  if [ "$1" = start ]; then
    OTTOSCALER_CLUSTER_DIR=$dir TMPDIR=$dir/tmp $prefix "$here/node/start.sh" "$dir" "$2"
  else
    $prefix kill "-$(signal_for "$1")" "$(cat "$dir/pid/$2")"
  fi
}
node_ended() { ! $(node_prefix) kill -0 "$(cat "$dir/pid/$1")" 2> /dev/null; }

node_autopsy() {
  local c
  recorded_process "$dir/init.pid" > /dev/null || { show_log node; return; }
  for c in "$dir"/pid/*; do
    c=${c##*/}
    ! node_ended "$c" || show_log "$c"
  done
}
