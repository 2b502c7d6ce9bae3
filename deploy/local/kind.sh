# shellcheck shell=bash
# Kind `kind`: Kubernetes in Docker. UNTESTED: no machine of ours has Docker and kind.

kind_needs() { need_tools jaeger kubernetes; }
kind_possible() { docker info > /dev/null 2>&1 || echo "no Docker engine"; }

kind_up() {
  local tool
  for tool in docker kind kubectl; do command -v $tool > /dev/null || die "KIND=kind needs $tool"; done
  docker info > /dev/null 2>&1 || die "KIND=kind needs a running Docker engine"
  kind_needs
  began=$(now)
  mkdir -p "$dir"/{log,access,audit,truth}
  chmod 1777 "$dir/truth" "$dir/audit"
  with_machine_lock claim_ports
  jaeger_up "$(cat "$dir/ports")"
  cp "$audit_policy" "$dir/audit.yaml"
  cat > "$dir/kind.yaml" << EOF
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    extraMounts:
      - {hostPath: $dir/audit.yaml, containerPath: /etc/kubernetes/audit.yaml, readOnly: true}
      - {hostPath: $dir/audit, containerPath: /var/log/audit}
      - {hostPath: $dir/truth, containerPath: $dir/truth}
    kubeadmConfigPatches:
      - |
        kind: ClusterConfiguration
        apiServer:
          extraArgs: {audit-policy-file: /etc/kubernetes/audit.yaml, audit-log-path: /var/log/audit/audit.log}
          extraVolumes:
            - {name: policy, hostPath: /etc/kubernetes/audit.yaml, mountPath: /etc/kubernetes/audit.yaml, readOnly: true, pathType: File}
            - {name: log, hostPath: /var/log/audit, mountPath: /var/log/audit, pathType: DirectoryOrCreate}
EOF
  kind create cluster --name "ottoscaler-$name" --config "$dir/kind.yaml" --kubeconfig "$dir/kubeconfig" --wait 180s >&2 ||
    { kind_down; die "kind could not create the cluster (its words are above)"; }
  step "node ready"
  jaeger_ready "$(cat "$dir/ports")" || { show_log jaeger; kind_down; die "Jaeger did not start"; }
  : > "$dir/up"
}

kind_down() {
  kind delete cluster --name "ottoscaler-$name" --kubeconfig "$dir/kubeconfig" >&2
  end_processes our_processes
}

kind_healthy() { [ -e "$dir/up" ] && kubectl --kubeconfig "$dir/kubeconfig" --request-timeout=5s get --raw /readyz > /dev/null 2>&1; }

kind_env() {
  echo "KUBECONFIG='$dir/kubeconfig'"
  echo "RUN=''"
  echo "AUDIT_LOG='$dir/audit/audit.log'"
  jaeger_env "$(cat "$dir/ports")"
  echo "TRUTH='$dir/truth'"
}

kind_load() { kind load image-archive --name "ottoscaler-$name" "$1" >&2; }
