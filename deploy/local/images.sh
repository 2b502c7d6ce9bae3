# shellcheck shell=bash
# Images as docker-archive tars: the node's own two (busybox and pause) and the
# base that ours are built on, each made of files of this machine.

arch() { case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac; }

# docker_archive OUT TAG ROOT CONFIG: one layer of what is in ROOT, the same bytes for the same content
docker_archive() {
  local out=$1 tag=$2 root=$3 config=$4 work layer id
  local tar=(tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu)
  work=$(mktemp -d "$out.XXXXXX")
  "${tar[@]}" -C "$root" -cf "$work/layer.tar" .
  layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(arch)" "$config" "$layer" > "$work/config.json"
  id=$(sha256sum "$work/config.json" | cut -d' ' -f1)
  mv "$work/config.json" "$work/$id.json"
  printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$id" "$tag" > "$work/manifest.json"
  "${tar[@]}" -C "$work" -cf "$work/out" manifest.json "$id.json" layer.tar
  mv "$work/out" "$out"
  rm -rf "$work"
}

node_image_archives() { # $images/node-{busybox,pause}.tar
  local root a key
  key=$(sha256sum "$(command -v busybox)" "$here/images.sh" | sha256sum | cut -c1-16)
  [ "$(cat "$images/node.key" 2> /dev/null)" != "$key" ] || return 0
  mkdir -p "$images"
  root=$(mktemp -d "$images/root.XXXXXX")
  mkdir -p "$root"/{bin,tmp,etc,dev,proc,sys,root}
  chmod 755 "$root"
  chmod 1777 "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' > "$root/etc/passwd"
  docker_archive "$images/node-pause.tar" docker.io/local/pause:1 "$root" '{"Entrypoint":["/bin/busybox","sleep","2147483647"]}'
  for a in $("$root/bin/busybox" --list); do [ "$a" = busybox ] || ln -s /bin/busybox "$root/bin/$a"; done
  docker_archive "$images/node-busybox.tar" docker.io/library/busybox:latest "$root" '{"Cmd":["sh"],"Env":["PATH=/bin"]}'
  rm -rf "$root"
  echo "$key" > "$images/node.key"
}

base_archive() { # $images/base.tar: libc, libgcc and the CA certificates, from Debian packages
  local packages=(libc6 libgcc-s1 ca-certificates) root key
  key=$(dpkg-query -W "${packages[@]}" 2> /dev/null | cat - "$here/images.sh" | sha256sum | cut -c1-16)
  [ "$(cat "$images/base.key" 2> /dev/null)" != "$key" ] || return 0
  say "assembling the base image from ${packages[*]}"
  mkdir -p "$images"
  root=$(mktemp -d "$images/root.XXXXXX")
  mkdir "$root/debs" "$root/base"
  cd "$root/debs" || return
  local download=(apt-get -q -o APT::Sandbox::User=root download "${packages[@]}")
  "${download[@]}" > log 2>&1 || { apt-get update -q > log 2>&1 && "${download[@]}" > log 2>&1; } ||
    { tail -n 5 log >&2; rm -rf "$root"; die "could not download ${packages[*]}"; }
  for deb in *.deb; do dpkg-deb -x "$deb" "$root/base"; done
  cd "$root/base" || return
  rm -rf usr/share/{doc,lintian,bug,man} usr/lib/*/gconv
  mkdir -p tmp etc/ssl/certs
  chmod 1777 tmp
  find usr/share/ca-certificates -name '*.crt' -print0 | sort -z | xargs -0 cat > etc/ssl/certs/ca-certificates.crt
  printf 'root:x:0:0:root:/:/usr/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/usr/sbin/nologin\n' > etc/passwd
  printf 'root:x:0:\nnonroot:x:65532:\n' > etc/group
  cd "$repo" || return
  chmod 755 "$root/base"
  docker_archive "$images/base.tar" docker.io/library/ottoscaler-base:local "$root/base" '{"Env":["PATH=/usr/local/bin:/usr/bin:/bin"]}'
  rm -rf "$root"
  echo "$key" > "$images/base.key"
}
