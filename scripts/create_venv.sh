#!/usr/bin/env bash
# Creates .venv with Python 3.11, 3.12 or 3.13 and installs this project, its extras and its tools at the pinned versions.
set -euo pipefail
cd "$(dirname "$0")/.."

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

if ! { [ -x .venv/bin/python ] && supported .venv/bin/python; }; then
  python=
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if supported "$candidate"; then python=$candidate; break; fi
  done
  if [ -z "$python" ]; then
    echo "Python 3.11, 3.12 or 3.13 is needed: install one, then run: make setup PYTHON=/path/to/python3.13" >&2
    exit 1
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships these two modules in a separate package.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if ! scripts/apt_install.sh "$package"; then
      echo "Python's venv module is missing: run: sudo apt-get install $package" >&2
      exit 1
    fi
  fi
  "$python" -m venv --clear .venv
fi

[ -x .venv/bin/pip ] || .venv/bin/python -m ensurepip --upgrade >/dev/null
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
.venv/bin/python -m uv pip install --python .venv/bin/python --constraints constraints.txt --group dev --editable '.[all]'

# With PYTHONDONTWRITEBYTECODE, as in many containers, every process would compile all modules that it imports, which
# takes half a minute for Airflow. Compile them once; a few files are templates and fail to compile.
.venv/bin/python -m compileall -q -j 0 -x '/tests?/' .venv/lib >/dev/null || true
