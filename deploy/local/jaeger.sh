# shellcheck shell=bash
# Jaeger all-in-one on loopback, in memory, for the kinds that have no namespace of their own.

jaeger_up() { # base port: query API, OTLP gRPC; what else it must listen on follows
  local b=$1
  daemon jaeger jaeger --memory.max-traces 100000 --log-level warn \
    --query.http-server.host-port "127.0.0.1:$b" --query.grpc-server.host-port "127.0.0.1:$((b + 1))" \
    --collector.otlp.grpc.host-port "127.0.0.1:$((b + 2))" --collector.otlp.http.host-port "127.0.0.1:$((b + 3))" \
    --collector.grpc-server.host-port "127.0.0.1:$((b + 4))" --collector.http-server.host-port "127.0.0.1:$((b + 5))" \
    --admin.http.host-port "127.0.0.1:$((b + 6))"
}
jaeger_ready() {
  await "Jaeger's query API" 30 port_answers "$1" && await "Jaeger's OTLP port" 30 port_answers $(($1 + 2))
}
jaeger_env() { # base port
  echo "JAEGER='http://127.0.0.1:$1'"
  echo "OTLP='http://127.0.0.1:$(($1 + 2))'"
}

port_answers() { { exec 9<> "/dev/tcp/127.0.0.1/$1" && exec 9>&-; } 2> /dev/null; }

# claim_ports: a block of 20 free loopback ports for this cluster, its first in $dir/ports.
# Below the ephemeral range; called under the machine's lock.
claim_ports() {
  local base p
  for ((base = 21000; base < 31000; base += 20)); do
    ! grep -qsx $base "$clusters"/*/ports || continue
    for ((p = base; p < base + 20; p++)); do ! port_answers $p || continue 2; done
    echo $base > "$dir/ports"
    return
  done
  die "no free block of 20 ports between 21000 and 31000"
}
