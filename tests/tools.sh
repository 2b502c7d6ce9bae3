# shellcheck shell=bash
# Cargo tools of the checks, pinned, built once into the cache; sourced.
tools=${XDG_CACHE_HOME:-$HOME/.cache}/ottoscaler/cargo-tools
export PATH=$tools/bin:$PATH

# name version
tool() {
  [ -x "$tools/bin/$1" ] && grep -qF "\"$1 $2 " "$tools/.crates.toml" && return
  echo "building $1 $2 …"
  (unset CARGO_TARGET_DIR; cd / && cargo install --quiet --locked --root "$tools" "$1@$2")
}

# command:package… : installs what a part of the checks needs, or says what is missing.
needs() {
  # shellcheck source=SCRIPTDIR/../deploy/local/lib.sh source=SCRIPTDIR/../deploy/local/deps.sh
  (. deploy/local/lib.sh && . deploy/local/deps.sh && need_packages "$@") && return
  echo "$(basename "$0") is not run"
  [ "${CI:-}" != true ] || { echo "in CI nothing may be skipped" >&2; exit 1; }
  exit 0
}
