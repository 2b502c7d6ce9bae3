# shellcheck shell=bash
# A small CA and what it signed, good for 30 days, in $dir/pki.

pki() { # node address, service address of the API server, kubeconfigs' server
  local node_ip=$1 service_ip=$2 server=$3 pids=() pid
  mkdir -p "$dir/pki"
  cd "$dir/pki" || return
  openssl ecparam -name prime256v1 -genkey -noout -out ca.key
  openssl req -x509 -new -key ca.key -days 30 -subj /CN=ottoscaler-local -out ca.crt
  openssl ecparam -name prime256v1 -genkey -noout -out sa.key
  openssl ec -in sa.key -pubout -out sa.pub 2> /dev/null
  local names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
  certificate apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$node_ip,IP:$service_ip,$names" & pids+=($!)
  certificate kubelet "/O=system:nodes/CN=system:node:node-1" "IP:$node_ip,DNS:node-1" & pids+=($!)
  certificate apiserver-kubelet "/O=system:masters/CN=apiserver-kubelet" & pids+=($!)
  certificate admin "/O=system:masters/CN=admin" & pids+=($!)
  # not one ServiceAccount for each controller: making their tokens takes 5 s at the client's default rate
  certificate kcm "/O=system:masters/CN=system:kube-controller-manager" & pids+=($!)
  certificate scheduler "/CN=system:kube-scheduler" & pids+=($!)
  certificate proxy "/CN=system:kube-proxy" & pids+=($!)
  certificate dns "/O=system:masters/CN=coredns" & pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid" || die "openssl could not make a certificate"; done
  local user
  for user in admin kubelet kcm scheduler proxy dns; do
    kubeconfig "$server" ca.crt "client-certificate-data: $(base64 -w0 < $user.crt), client-key-data: $(base64 -w0 < $user.key)" > $user.kubeconfig
  done
  chmod 600 ./*
  cd - > /dev/null || return
}

certificate() { # name subject [subjectAltName]
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  {
    echo "basicConstraints=CA:FALSE"
    echo "extendedKeyUsage=serverAuth,clientAuth"
    [ -z "${3:-}" ] || echo "subjectAltName=$3"
  } > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days 30 \
    -extfile "$1.ext" -out "$1.crt" 2> /dev/null
  rm -f "$1.csr" "$1.ext"
}

kubeconfig() { # server, CA file, user fields [, namespace] → a kubeconfig that needs no other file
  cat << EOF
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "$1", certificate-authority-data: $(base64 -w0 < "$2")}}]
users: [{name: u, user: {$3}}]
contexts: [{name: c, context: {cluster: c, user: u, namespace: "${4:-default}"}}]
current-context: c
EOF
}
