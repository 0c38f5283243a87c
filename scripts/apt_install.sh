#!/usr/bin/env bash
# apt_install.sh PACKAGE... : installs Debian packages as root or through passwordless sudo; fails without either.
set -euo pipefail

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null || exit 1
  as_root=(sudo -n)
fi
command -v apt-get >/dev/null || exit 1
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update >&2
"${as_root[@]}" apt-get -qq install --yes --no-install-recommends "$@" >&2
