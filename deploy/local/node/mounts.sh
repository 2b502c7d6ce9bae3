# shellcheck shell=bash
# The node's own view of the file system and of the network: what its programs
# write outside the cluster's directory goes to places that end with the node.

mounts() {
  local d f v
  mount -t proc proc /proc
  # namespaces that others pinned would live as long as our copy of their mounts
  awk '$3 == "nsfs" {print $2}' /proc/mounts | while read -r d; do umount -l "$d"; done
  mount --make-rshared /
  exec 8< "${dir%/clusters/*}"
  mount -t tmpfs -o mode=755,size=256m tmpfs /run
  for d in lib log; do
    mkdir -p "$dir/var/$d"
    mount --bind "$dir/var/$d" "/var/$d"
  done
  if [ ! -d "$dir" ]; then # the cache lies under one of these
    mkdir -p "${dir%/clusters/*}"
    mount --bind /proc/self/fd/8 "${dir%/clusters/*}"
  fi
  exec 8<&-
  mkdir -p /run/lock /run/netns
  echo "nameserver 10.250.0.1" > "$dir/resolv.conf"
  mount --bind "$dir/resolv.conf" /etc/resolv.conf
  # The kubelet insists on these values and would set them for the whole machine.
  mkdir -p "$dir/sysctl"
  for v in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    f=${v%=*}
    echo "${v#*=}" > "$dir/sysctl/${f//\//.}"
    mount --bind "$dir/sysctl/${f//\//.}" "/proc/sys/$f"
  done
}

network() {
  ip link set lo up
  ip link add node0 type bridge # a dummy device is not in every kernel
  ip addr add 10.250.0.1/24 dev node0
  ip link set node0 up
  ip route add default via 10.250.0.1 dev node0
  echo 1 > /proc/sys/net/ipv4/ip_forward
  [ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
}
