# shellcheck shell=bash
# shellcheck disable=SC2154,SC2086 # sourced by bench.sh, which sets these
# Leader changes on the real node, under a steady demand. "Acting" is the first pod
# create of the new term in the audit log. Beside ours: client-go's leader election
# with its defaults and with our timings, three processes each.
#   RUNS=20   of each kind
#   KINDS=…   of release, killed, frozen; fewer are a look, no result

election() {
  local runs=${RUNS:-20} kind n demand references
  deploy/local/build.sh
  command -v go > /dev/null || { echo "error: missing: go 1.26 (https://go.dev/dl)" >&2; exit 1; }
  (cd tests/bench/clientgo && CGO_ENABLED=0 go build -trimpath -o "$raw/clientgo" .)
  $cluster up "$name" node 1>&2
  make -s load NAME="$name" 1>&2
  # Worker pods are created and never scheduled: the node's speed is not measured.
  cat > "$raw/values.yaml" << VALUES
tolerations: [{key: bench, operator: Exists}]
VALUES
  tests/e2e/install.sh "$name" --values "$raw/values.yaml" 1>&2
  eval "$($cluster env "$name")"
  k taint node --all bench=only:NoSchedule > /dev/null
  service=$(k -n ottoscaler get service ottoscaler -o 'jsonpath={.spec.clusterIP}'):9090
  for kind in ${KINDS:-release killed frozen}; do
    # Some call waits at any time: a release is over sooner than the others.
    case $kind in release) demand 10 ;; *) demand 4 ;; esac
    for n in $(seq "$runs"); do change $kind "$n"; done
    kill "$demand"
  done
  if [ -n "${KINDS:-}" ]; then
    grep -H . "$raw"/ours-*
    return
  fi
  # Under the same demand, but not beside ours: neither waits for the other.
  demand 4
  references "$runs" & references=$!
  pids+=("$references")
  wait "$references"
  kill "$demand"
  election_figures
}

# ScaleUps of one worker, so many a second, each cancelled once answered.
demand() {
  $RUN "$bin/steady-demand" --server "$service" --per-second "$1" 2>> "$raw/demand.log" & demand=$!
  pids+=("$demand")
}

three_ready() {
  until [ "$(k -n ottoscaler get pods -l app.kubernetes.io/name=ottoscaler --field-selector=status.phase=Running \
    -o 'jsonpath={range .items[*]}{.metadata.deletionTimestamp}{.status.containerStatuses[0].ready}{"\n"}{end}' | grep -cx true)" = 3 ]; do sleep 0.2; done
}

change() { # release|killed|frozen number
  local holder pod id process from=fault fault
  three_ready
  # A leader that has shown itself: its container id is on the Lease.
  until [ -n "$(k -n ottoscaler get lease ottoscaler-leader -o 'jsonpath={.metadata.annotations.ottoscaler\.io/holder-container-id}')" ]; do sleep 0.2; done
  holder=$(k -n ottoscaler get lease ottoscaler-leader -o 'jsonpath={.spec.holderIdentity}')
  pod=${holder%%_*}
  id=$(k -n ottoscaler get pod "$pod" -o 'jsonpath={.status.containerStatuses[0].containerID}')
  id=${id#containerd://}
  process=$($NODE ctr -n k8s.io tasks ls | awk -v id="$id" '$1 == id { print $2 }')
  case $1 in
    release) from=release fault="$cluster run $name kubectl -n ottoscaler delete pod $pod --wait=false" ;;
    # By its process: containerd's tool takes longer than the fault may.
    killed) fault="$NODE kill -KILL $process" ;;
    frozen) fault="$NODE kill -STOP $process" ;;
  esac
  "$bin/takeover" --log "$AUDIT_LOG" --namespace ottoscaler --quiet "$(moment "$2")" --from $from -- $fault >> "$raw/ours-$1.txt" ||
    echo failed >> "$raw/ours-$1.txt"
  case $1 in
    # Its restarts would be put off for longer and longer.
    killed) k -n ottoscaler delete pod "$pod" --wait=false > /dev/null ;;
    frozen) $NODE kill -CONT "$process" ;;
  esac
}

# Any moment between two renewals.
moment() { awk -v s="$1$RANDOM" 'BEGIN { srand(s); print 1 + 2 * rand() }'; }

references() { # runs: both settings side by side
  reference default "$1" 15s 10s 2s &
  reference same "$1" 6s 4s 1s &
  wait
}

reference() { # name runs duration deadline retry
  local ns=client-go-$1 n holder from signal
  declare -A process
  trap 'kill "${process[@]}" 2> /dev/null; exit' TERM
  k create namespace "$ns" > /dev/null
  start_one() {
    $RUN "$raw/clientgo" --kubeconfig "$KUBECONFIG" --namespace "$ns" --lease leader --id "$1-$(date +%s%N)" \
      --lease-duration "$3" --renew-deadline "$4" --retry-period "$5" 2>> "$raw/clientgo-$2.log" &
    process[$1]=$!
    # Its end is no news.
    disown
  }
  for n in a b c; do start_one $n "$1" "$3" "$4" "$5"; done
  local kind
  for kind in killed release; do
    for n in $(seq "$2"); do
      until holder=$(k -n "$ns" get lease leader -o 'jsonpath={.spec.holderIdentity}' 2> /dev/null) && [ -n "$holder" ]; do sleep 0.2; done
      holder=${holder%%-*}
      case $kind in
        killed) from=fault signal=KILL ;;
        release) from=release signal=TERM ;;
      esac
      "$bin/takeover" --log "$AUDIT_LOG" --namespace "$ns" --quiet "$(moment "$n")" --from $from -- kill -$signal "${process[$holder]}" \
        >> "$raw/$1-$kind.txt" || echo failed >> "$raw/$1-$kind.txt"
      start_one "$holder" "$1" "$3" "$4" "$5"
    done
  done
  kill "${process[@]}"
}

worst() { sort -n "$1" | tail -1 | awk '{print $1 / 1000}'; }
middle() { sort -n "$1" | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)] / 1000}'; }

election_figures() {
  local kind target reference
  for kind in release killed frozen; do
    case $kind in release) target=0.25 ;; killed) target=2 ;; frozen) target=6.5 ;; esac
    case $kind in release) reference=release ;; *) reference=killed ;; esac
    ! grep -q failed "$raw/ours-$kind.txt" || echo "some runs of $kind failed: $raw"
    figure "${kind}_to_acting_max" "$(worst "$raw/ours-$kind.txt")" s $target "$(worst "$raw/default-$reference.txt")"
    printf '  median %s s of %s runs; client-go defaults: median %s, max %s; with our timings: median %s, max %s\n' \
      "$(middle "$raw/ours-$kind.txt")" "$(wc -l < "$raw/ours-$kind.txt")" \
      "$(middle "$raw/default-$reference.txt")" "$(worst "$raw/default-$reference.txt")" \
      "$(middle "$raw/same-$reference.txt")" "$(worst "$raw/same-$reference.txt")"
  done
}
