#!/usr/bin/env bash
# Creates .cache/venv-NAME with this project, its extras and its tools, beside .venv, and prints its Python.
#   scripts/other_env.sh lowest     the lowest version of every dependency that pyproject.toml allows
#   scripts/other_env.sh 3.13       the pinned versions, on another Python
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 venv=.cache/venv-$1
uv() { .venv/bin/python -m uv "$@"; }

if [ "$name" = lowest ]; then
  python=3.11 constraints=.cache/lowest.txt
  # The lowest versions of the tools need no test, so the tools get their pinned versions.
  uv pip compile --quiet --resolution lowest-direct --python-version $python --no-annotate --no-header \
    --no-emit-index-url --extra all pyproject.toml -o $constraints >&2
else
  python=$name constraints=constraints.txt
fi
if ! [ -x $venv/bin/python ]; then
  for candidate in ${PYTHON:-} "$HOME/.pyenv/versions/$python".*/bin/python $python; do
    if [ "$candidate" = $python ] || [ -x "$candidate" ]; then break; fi
  done
  uv venv --quiet --python "$candidate" $venv >&2 || { echo "name one: PYTHON=/path/to/python$python" >&2; exit 1; }
fi
uv pip install --quiet --python $venv/bin/python --constraints $constraints --group dev --editable '.[all]' >&2
# As in create_venv.sh: or each process compiles what it imports, where PYTHONDONTWRITEBYTECODE is set.
if ! [ -e $venv/.compiled ]; then
  $venv/bin/python -m compileall -q -j 0 -x '/tests?/' $venv/lib >/dev/null || true
  touch $venv/.compiled
fi
echo $venv/bin/python
