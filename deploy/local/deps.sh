# shellcheck shell=bash
# What must be on the machine: Debian packages and the built tools.

# need_packages COMMAND:PACKAGE…: installs what is missing when root, else names it
need_packages() {
  local pair missing=()
  for pair in "$@"; do
    case ${pair%%:*} in
      /*) [ -e "${pair%%:*}" ] ;;
      *) command -v "${pair%%:*}" > /dev/null ;;
    esac || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    die "missing: ${missing[*]} (Debian: apt-get install ${missing[*]})"
  fi
  say "installing ${missing[*]}"
  with_machine_lock install_packages "${missing[@]}"
}

install_packages() {
  local policy=/usr/sbin/policy-rc.d ours='' log
  log=$(mktemp)
  if [ ! -e $policy ]; then # no package may start a service of the machine's
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod +x $policy
    ours=yes
  fi
  local apt=(apt-get install -y -q --no-remove --no-install-recommends "$@")
  export DEBIAN_FRONTEND=noninteractive
  local status=0
  "${apt[@]}" > "$log" 2>&1 || { apt-get update -q >> "$log" 2>&1 && "${apt[@]}" >> "$log" 2>&1; } || status=1
  [ -z "$ours" ] || rm -f $policy
  [ $status = 0 ] || tail -n 15 "$log" >&2
  rm -f "$log"
  [ $status = 0 ] || die "could not install $*"
}

# need_tools MODULE…: builds what is missing and puts the tools on PATH
need_tools() {
  "$here/build.sh" "$@"
  tools_path
}
tools_path() {
  local dirs
  dirs=$("$here/build.sh" --path)
  case :$PATH: in *":$dirs"*) ;; *) PATH=$dirs$PATH ;; esac
  case :$PATH: in *:/usr/sbin:*) ;; *) PATH=$PATH:/usr/sbin:/sbin ;; esac
  export PATH
}
