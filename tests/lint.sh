#!/usr/bin/env bash
# Everything that can be judged without running the program.
# shellcheck disable=SC2317 # called by name
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
# shellcheck source=SCRIPTDIR/tools.sh
. tests/tools.sh
failed=0
check() { # what, command…
  printf '%-28s' "$1"
  if out=$("${@:2}" 2>&1); then echo ok; else echo FAILED; printf '%s\n' "$out"; failed=1; fi
}

# File length: 600 lines at most, for good; tests of a module count on their own.
length() {
  local long
  long=$(git ls-files '*.rs' '*.sh' '*.proto' | xargs wc -l | awk '$2 != "total" && $1 > 600')
  [ -z "$long" ] || { echo "$long"; return 1; }
}

# domain is pure: its dependencies hold no client, runtime or contract. That it asks no clock
# is held by its clippy.toml.
purity() {
  local tree
  tree=$(cargo tree --package domain --edges normal --prefix none --format '{lib}') || return
  grep -qx serde <<< "$tree" && ! grep -xE 'kube.*|k8s_openapi|tonic.*|tokio.*|prost|hyper' <<< "$tree"
}
# ottoctl knows the contract only.
ottoctl_has_no_kubernetes() { ! cargo tree --package ottoctl --edges normal --prefix none --format '{lib}' | grep -xE 'kube.*|k8s_openapi|domain|ottoscaler'; }

# fenced-lease is a library of its own: it links nothing of ours and no metrics, and its
# protocol without the client links nothing of Kubernetes.
fenced_lease_stands_alone() {
  local tree=(cargo tree --package fenced-lease --edges normal --prefix none --format '{lib}')
  ! "${tree[@]}" --features client | grep -xE 'domain|output|ottoscaler.*|prometheus.*|tonic|kube_runtime' &&
    ! "${tree[@]}" --no-default-features | grep -xE 'kube.*|k8s_openapi|tokio.*|http|rustix'
}
# It is ready for a registry. A library leaves the version of Kubernetes to the application;
# this is the one that it is built with here.
publishes() {
  local dirty=()
  [ -z "$(git status --porcelain src/fenced-lease)" ] || dirty=(--allow-dirty)
  K8S_OPENAPI_ENABLED_VERSION=1.34 cargo publish --dry-run --quiet "${dirty[@]}" --package fenced-lease
}
# Under one version its interface only grows. The last released interface is that of the commit
# which set the version; a release names its own commit here.
released=3dbb41694358b9fa0fbf04052ee0627e6650b1ff
interface_holds() {
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler baseline work built
  built=${CARGO_TARGET_DIR:-$cache/target}/interface
  # The format of an interface belongs to a version of rustc.
  baseline=$cache/interface/$released-$(rustc --version | sha256sum | cut -c1-16).json
  if [ ! -s "$baseline" ]; then
    work=$(mktemp -d) && mkdir -p "$cache/interface" && git archive "$released" | tar -x -C "$work" &&
      (cd "$work" && interface "$built") && mv "$built/doc/fenced_lease.json" "$baseline"
    rm -rf "$work"
  fi
  interface "$built" &&
    cargo semver-checks check-release --baseline-rustdoc "$baseline" --current-rustdoc "$built/doc/fenced_lease.json"
}
# Describes the interface of the fenced-lease in the working directory. The dependencies are those
# of Cargo.lock: cargo semver-checks by itself takes the newest, among them two k8s-openapi. The
# build directory is its own, because both variables would make the others build anew.
interface() { # build directory
  rm -f "$1/doc/fenced_lease.json"
  RUSTC_BOOTSTRAP=1 K8S_OPENAPI_ENABLED_VERSION=1.34 CARGO_TARGET_DIR=$1 \
    cargo rustdoc --quiet --locked --package fenced-lease --lib --all-features -- \
    -Z unstable-options --output-format json --cap-lints allow
}
# Tests wait for facts: the one pause is in wait_for (a delay of the proxy is a fault,
# a probe's moments are its question).
sleeps() {
  ! grep -nE 'sleep(_until)?\(' -r tests/e2e | grep -vE 'support.rs.*std::thread::sleep\(pause\)|sleep_until\(began |tests/e2e/proxy.rs'
}

# Who runs a program of the local cluster's tools, or the tests that do, builds it: on a
# machine where only the demo ran there are few.
tools_of_each_script_are_built() {
  local file seen=0 missing=0
  for file in $(git ls-files 'tests/*.sh' 'deploy/local/demo*.sh' Makefile); do
    [ "$file" != tests/lint.sh ] || continue
    grep -qE '(^|[^-_/.a-z])(grpc-health-probe|grpcurl|ghz|helm) |grpc-health-probe\)|--test e2e ' "$file" || continue
    seen=$((seen + 1))
    grep -E '^[[:space:]@]*deploy/local/build\.sh' "$file" | grep -qv -- --path ||
      { echo "$file runs tools that it does not build (deploy/local/build.sh)"; missing=1; }
  done
  [ "$seen" -gt 3 ] && [ "$missing" = 0 ]
}
paths() { ! git grep -nE '/(root|work)/' -- . ':!tests/lint.sh' ':!*/go.sum'; }

tool cargo-machete 0.9.2
tool cargo-deny 0.20.2
tool cargo-semver-checks 0.51.0
check "format" cargo fmt --all --check
check "clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings
check "documentation" env RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items --quiet
check "dependencies allowed" cargo deny --log-level error check bans licenses sources
check "no unused dependencies" cargo machete --skip-target-dir
check "file length" length
check "domain is pure" purity
check "ottoctl knows no Kubernetes" ottoctl_has_no_kubernetes
check "fenced-lease stands alone" fenced_lease_stands_alone
check "fenced-lease publishes" publishes
if git cat-file -e "$released^{commit}" 2> /dev/null; then
  check "fenced-lease's interface" interface_holds
else
  echo "fenced-lease's interface    not compared: this clone lacks the commit $released (git fetch --unshallow)"
  [ "${CI:-}" != true ] || failed=1
fi
check "no sleep in tests" sleeps
check "no machine's paths" paths
check "tools are built" tools_of_each_script_are_built
if command -v shellcheck > /dev/null; then
  check "scripts" bash -c 'cd deploy/local && shellcheck -x ./*.sh node/*.sh ../../tests/*.sh ../../tests/*/*.sh ../../.ci/run'
elif [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  apt-get install -y -qq --no-remove --no-install-recommends shellcheck > /dev/null 2>&1 &&
    check "scripts" bash -c 'cd deploy/local && shellcheck -x ./*.sh node/*.sh ../../tests/*.sh ../../tests/*/*.sh ../../.ci/run'
else
  echo "scripts                     not checked: shellcheck is missing"
fi
exit $failed
