#!/usr/bin/env bash
# Builds the release programs and the images made of them, as docker-archive tars
# in the cache; prints their paths. What has not changed is not built again.
#   image.sh                 ottoscaler:dev and ottoscaler-partners:dev, each also tagged with
#                            the program's version, which is what the chart asks for
#   image.sh --paths         only prints the paths
set -euo pipefail
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for part in lib deps images; do
  # shellcheck source=/dev/null
  . "$source_dir/$part.sh"
done
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
PATH=$PATH:/usr/sbin:/sbin

# image, its Dockerfile, its programs
dockerfile() { case $1 in ottoscaler) echo "$repo/Dockerfile" ;; *) echo "$repo/tests/partners/Dockerfile" ;; esac; }
programs() {
  local p
  case $1 in
    ottoscaler) echo ottoscaler ottoctl ;;
    *) for p in "$repo"/tests/partners/src/bin/*.rs; do [ ! -f "$p" ] || basename "$p" .rs; done ;;
  esac
}

# One way to build per machine: Docker where its engine runs, else buildah on a
# base that needs no registry.
builder() { if docker info > /dev/null 2>&1; then echo docker; else echo buildah; fi; }

image() { # name
  local n=$1 out=$images/$1-dev.tar context key program
  [ -f "$(dockerfile "$n")" ] || { say "no $(dockerfile "$n"): no image $n"; return 0; }
  [ -n "$(programs "$n")" ] || { say "no programs for image $n yet"; return 0; }
  [ "$with" = docker ] || base_archive
  context=$(mktemp -d "$images/context.XXXXXX")
  mkdir "$context/bin"
  for program in $(programs "$n"); do
    if [ -f "$CARGO_TARGET_DIR/release/$program" ]; then
      ln "$CARGO_TARGET_DIR/release/$program" "$context/bin/" 2> /dev/null || cp "$CARGO_TARGET_DIR/release/$program" "$context/bin/"
    else
      rm -rf "$context"
      die "image $n: cargo built no program '$program'"
    fi
  done
  cp "$(dockerfile "$n")" "$context/Dockerfile"
  key=$(cd "$context" && { sha256sum -- Dockerfile bin/*; echo "$with"; cat "$images/base.key" "$source_dir/image.sh" 2> /dev/null; } | sha256sum | cut -c1-16)
  if [ ! -f "$out" ] || [ "$(cat "$images/$n.key" 2> /dev/null)" != "$key" ]; then
    say "building image $n:dev with $with"
    "with_$with" "$n" "$context" "$out.partial" > "$images/build.log" 2>&1 ||
      { tail -n 25 "$images/build.log" >&2; rm -rf "$context"; die "image $n could not be built"; }
    tag_with_version "$n" "$out.partial"
    mv "$out.partial" "$out"
    echo "$key" > "$images/$n.key"
    say "  $n:dev $(($(stat -c %s "$out") / 1048576)) MiB"
  fi
  rm -rf "$context"
}

# A docker-archive names its tags in manifest.json. The archive is packed anew: `tar --delete`
# fails on large ones ("Unexpected EOF in archive").
tag_with_version() { # image archive
  local work version
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml" | head -n 1)
  work=$(mktemp -d "$images/tag.XXXXXX")
  tar -xf "$2" -C "$work"
  chmod u+w "$work/manifest.json"
  sed -i "s#\"RepoTags\":\[\(\"[^\"]*\"\)\]#\"RepoTags\":[\1,\"docker.io/library/$1:$version\"]#" "$work/manifest.json"
  grep -q "$1:$version" "$work/manifest.json" || { rm -rf "$work"; die "image $1: no tag in its archive's manifest"; }
  (cd "$work" && tar -cf "$2" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -- *)
  rm -rf "$work"
}

with_docker() { # name context out
  docker build -t "$1:dev" "$2" && docker save -o "$3" "$1:dev"
}

with_buildah() { # name context out
  local b=(buildah --root "$images/buildah" --runroot "$images/buildah-run" --storage-driver vfs)
  local base=docker.io/library/ottoscaler-base:local policy=$images/policy.json
  echo '{"default":[{"type":"insecureAcceptAnything"}]}' > "$policy"
  export BUILDAH_ISOLATION=chroot
  "${b[@]}" pull --signature-policy "$policy" "docker-archive:$images/base.tar" &&
    "${b[@]}" bud --signature-policy "$policy" --pull-never --build-arg BASE=$base --timestamp 0 -t "docker.io/library/$1:dev" "$2" &&
    rm -f "$3" &&
    "${b[@]}" push --signature-policy "$policy" "docker.io/library/$1:dev" "docker-archive:$3:docker.io/library/$1:dev"
  local status=$?
  rm -rf "$images/buildah" "$images/buildah-run" # vfs keeps a full copy of every layer
  return $status
}

all=(ottoscaler ottoscaler-partners)
if [ "${1:-}" != --paths ]; then
  command -v cargo > /dev/null || die "missing: cargo (https://rustup.rs)"
  with=$(builder)
  [ "$with" = docker ] || need_packages buildah:buildah dpkg-deb:dpkg
  mkdir -p "$images"
  say "building the release programs (cargo)"
  (cd "$repo" && cargo build --release --workspace --bins >&2)
  exec 8< "$images"
  flock 8
  for n in "${all[@]}"; do image "$n"; done
fi
for n in "${all[@]}"; do [ ! -f "$images/$n-dev.tar" ] || echo "$images/$n-dev.tar"; done
