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

# command packages… : installs what a part of the checks needs, or says what is missing.
needs() {
  command -v "$1" > /dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get install -y -qq --no-remove --no-install-recommends "${@:2}" > /dev/null
    return
  fi
  echo "$(basename "$0") is not run: $1 is missing"
  [ "${CI:-}" != true ] || { echo "in CI nothing may be skipped" >&2; exit 1; }
  exit 0
}
