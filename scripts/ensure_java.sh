#!/usr/bin/env bash
# Makes sure that spark-submit finds Java 17 or newer, and installs it from Debian if necessary.
set -euo pipefail
cd "$(dirname "$0")/.."

java_is_new_enough() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java version
  version=$("$java" -version 2>&1 | sed -nE '1s/.*version "([0-9]+).*/\1/p') || return 1
  [ "${version:-0}" -ge 17 ]
}

java_is_new_enough && exit 0
if [ -z "${JAVA_HOME:-}" ]; then
  # Debian 12 has Java 17, Debian 13 has Java 21.
  for package in openjdk-17-jre-headless openjdk-21-jre-headless; do
    if scripts/apt_install.sh "$package" && java_is_new_enough; then exit 0; fi
  done
fi
echo "Spark needs Java 17 or newer${JAVA_HOME:+, and JAVA_HOME=$JAVA_HOME is none}:" \
  "run: sudo apt-get install openjdk-17-jre-headless" >&2
exit 1
