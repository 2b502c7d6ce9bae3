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
