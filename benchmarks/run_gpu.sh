#!/usr/bin/env bash
# Runs gpu.py on a GPU machine, from what pack_gpu.sh has packed. Its head says how.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$(pwd)} home=${GPU_HOME:-/tmp/bench-gpu} python=${PYTHON:-python3}
if [ ! -d "$home/project" ]; then
  mkdir -p "$home"
  cat "${PIECES:-$here}"/piece.* | xz -dc -T0 | tar x -C "$home"
fi

# CTranslate2 opens libcublas.so.12; that of CUDA 13 has the same functions.
mkdir -p "$home/lib"
"$python" - "$home/lib" <<'P'
import glob, os, sys

packages = [f"{folder}/nvidia/**" for folder in sys.path if folder.endswith("-packages")]
places = [*packages, "/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib"]
for name in ("libcublas", "libcublasLt"):
    found = [f for place in places for f in glob.glob(f"{place}/{name}.so.1[23]", recursive=True)]
    link = f"{sys.argv[1]}/{name}.so.12"
    if found and not os.path.lexists(link):
        os.symlink(found[0], link)
        os.symlink(os.path.dirname(found[0]), f"{sys.argv[1]}/cuda") if name == "libcublas" else None
P

java=$(echo "$home"/jre/usr/lib/jvm/java-17-openjdk-*)
# Debian's package keeps its configuration in /etc.
if [ -d "$home/jre/etc/java-17-openjdk" ] && [ ! -e /etc/java-17-openjdk ]; then
  cp -r "$home/jre/etc/java-17-openjdk" /etc/
fi
export JAVA_HOME=$java PATH="$java/bin:$PATH" SPARK_HOME="$home/spark/pyspark"
export PYTHONPATH="$home/site:$home/spark:$home/project:$home/project/spark_jobs"
export LD_LIBRARY_PATH="$home/lib:$home/lib/cuda:${LD_LIBRARY_PATH:-}"
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$home/cuda} PYTHONUNBUFFERED=1
cd "$home/project"
exec "$python" benchmarks/gpu.py --local --save "$out/results.json" "$@"
