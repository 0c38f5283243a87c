#!/usr/bin/env bash
# apt_install.sh PACKAGE...: installs Debian packages as root or with passwordless sudo. Without either it fails and
# prints the command to run.
set -euo pipefail

fail() {
  echo "$1. Install $packages, for example with: sudo apt-get install $packages" >&2
  exit 1
}

packages="$*"
as_root=()
command -v apt-get >/dev/null || fail "There is no apt-get"
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null || fail "Neither root nor passwordless sudo"
  as_root=(sudo -n)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update >&2
"${as_root[@]}" apt-get -qq install --yes --no-install-recommends "$@" >&2
