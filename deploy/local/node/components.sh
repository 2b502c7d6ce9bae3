# shellcheck shell=bash
# shellcheck disable=SC2154
# The components' configuration, and one small program for each in DIR/cmd, so
# that a component can be started again just as it was.

command_file() { # name command…
  local n=$1
  shift
  { echo '#!/bin/sh'; printf 'exec'; printf ' %q' "$@"; echo; } > "$dir/cmd/$n"
  chmod +x "$dir/cmd/$n"
}

commands() {
  local p=$dir/pki
  command_file etcd etcd --data-dir "$dir/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
  command_file apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 \
    --bind-address 10.250.0.1 --advertise-address 10.250.0.1 --secure-port 6443 \
    --tls-cert-file "$p/apiserver.crt" --tls-private-key-file "$p/apiserver.key" --client-ca-file "$p/ca.crt" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$p/sa.pub" --service-account-signing-key-file "$p/sa.key" \
    --service-cluster-ip-range 10.96.0.0/16 --authorization-mode Node,RBAC --allow-privileged \
    --kubelet-client-certificate "$p/apiserver-kubelet.crt" --kubelet-client-key "$p/apiserver-kubelet.key" \
    --kubelet-certificate-authority "$p/ca.crt" --kubelet-preferred-address-types InternalIP \
    --audit-policy-file "$dir/audit.yaml" --audit-log-path "$dir/audit.log" --audit-log-maxsize 4096
  command_file kcm kube-controller-manager --kubeconfig "$p/kcm.kubeconfig" --leader-elect=false --bind-address 127.0.0.1 \
    --service-account-private-key-file "$p/sa.key" --root-ca-file "$p/ca.crt"
  command_file scheduler kube-scheduler --kubeconfig "$p/scheduler.kubeconfig" --leader-elect=false --bind-address 127.0.0.1
  command_file kubelet kubelet --config "$dir/kubelet.yaml" --kubeconfig "$p/kubelet.kubeconfig" --node-ip 10.250.0.1 --hostname-override node-1
  command_file proxy kube-proxy --kubeconfig "$p/proxy.kubeconfig" --proxy-mode iptables --hostname-override node-1 \
    --cluster-cidr 10.244.0.0/16 --conntrack-max-per-core 0 --bind-address 10.250.0.1
  command_file coredns coredns -conf "$dir/Corefile"
  command_file containerd containerd -c "$dir/containerd.toml"
  command_file jaeger jaeger --memory.max-traces 100000 --log-level warn
  containerd_files
  kubelet_file
  cat > "$dir/Corefile" << EOF
.:53 {
  bind 10.250.0.1
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $p/dns.kubeconfig
  }
  cache 5
}
EOF
}

containerd_files() {
  local snapshotter=overlayfs # which cannot lie on another overlay
  [ "$(stat -f -c %T "$dir")" != overlayfs ] || snapshotter=native
  mkdir -p "$dir/cni"
  cat > "$dir/cni/10-pods.conflist" << 'EOF'
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
  # restrict_oom_score_adj: without it runc may fail with "can't get final child's PID from pipe"
  cat > "$dir/containerd.toml" << EOF
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
EOF
}

# crashLoopBackOff: tests that kill containers cannot wait minutes for the next start;
# volumeStatsAggPeriod: nor for a full volume to be noticed
kubelet_file() {
  local p=$dir/pki
  cat > "$dir/kubelet.yaml" << EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {x509: {clientCAFile: $p/ca.crt}, webhook: {enabled: true}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
tlsCertFile: $p/kubelet.crt
tlsPrivateKeyFile: $p/kubelet.key
address: 10.250.0.1
clusterDNS: [10.250.0.1]
clusterDomain: cluster.local
resolvConf: $dir/resolv.conf
volumePluginDir: /var/lib/kubelet/volumeplugins
protectKernelDefaults: true
failSwapOn: false
maxPods: ${MAX_PODS:-300}
registryPullQPS: 0
eventRecordQPS: 0
serializeImagePulls: false
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
containerLogMaxSize: ${CONTAINER_LOG_MAX_SIZE:-10Mi}
containerLogMaxFiles: ${CONTAINER_LOG_MAX_FILES:-5}
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
volumeStatsAggPeriod: 5s
EOF
}
