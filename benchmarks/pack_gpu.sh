#!/usr/bin/env bash
# Packs what `make bench-gpu` needs into a folder, for a GPU machine without package registries.
#
#   benchmarks/pack_gpu.sh [FOLDER [PIECE_MB]]     here, from the project's root after `make setup model`
#   bash FOLDER/run.sh [ARGUMENTS OF gpu.py]       there; writes results.json into $OUT, or the current folder
#   make bench-gpu BENCH_ARGS="--read results.json"          here again; writes the tables into RESULTS.md
#
# FOLDER (default: .cache/gpu) holds run.sh and the archive in pieces of PIECE_MB (default: 60) million bytes.
# run.sh also finds the pieces in $PIECES, so that they can travel one by one. It needs x86-64 Linux, Python
# $GPU_PYTHON (default: 3.12) with PyTorch and its CUDA libraries, pandas, pyarrow, onnxruntime, tokenizers,
# psutil and huggingface_hub: what images for machine learning have. Spark, Java, CTranslate2, faster-whisper,
# PyAV, obstore, the model and the corpora come along.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd) python=$(pwd)/.venv/bin/python target=${GPU_PYTHON:-3.12}
folder=$(realpath -m "${1:-.cache/gpu}") piece=${2:-60}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -x "$python" ] || { echo "run make setup first" >&2; exit 1; }
mkdir -p "$work"/{wheels,all/site,all/project}

echo "packages for Python $target"
wanted=()
for name in ctranslate2 faster-whisper av obstore jiwer rapidfuzz whisper-normalizer indic-numtowords \
  more-itertools py4j threadpoolctl filelock protobuf; do
  pinned=$(grep -iE "^$name==" constraints.txt | cut -d';' -f1 | tr -d ' ' | head -1)
  wanted+=("${pinned:-$name}")
done
platforms=()
for glibc in 2_28 2_27 2_26 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$target" --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$work/wheels" "${wanted[@]}"
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/all/site"; done

echo "Spark, without the parts that the job never loads"
spark=$("$python" -c 'import os, pyspark; print(os.path.dirname(pyspark.__file__))')
mkdir -p "$work/all/spark/pyspark"
unused=()
for jar in hive kubernetes mesos spark-mllib breeze rocksdbjni derby hadoop-yarn spark-connect spark-streaming \
  spark-graphx spark-pipelines scala-compiler spire cats-kernel vertx zookeeper curator netty-tcnative tink orc- \
  parquet- datanucleus lapack arpack JTransforms jersey; do unused+=(--exclude "./jars/*$jar*"); done
tar c -C "$spark" --exclude ./examples --exclude ./data --exclude ./pandas --exclude __pycache__ "${unused[@]}" . |
  tar x -C "$work/all/spark/pyspark"

echo "Java"
(cd "$work" && { apt-get download -q openjdk-17-jre-headless >/dev/null 2>&1 ||
  { apt-get update -q >/dev/null && apt-get download -q openjdk-17-jre-headless >/dev/null; }; })
dpkg -x "$work"/openjdk-17-jre-headless*.deb "$work/all/jre"

echo "this project, the model and the corpora"
git ls-files --cached --others --exclude-standard airflow_whisper spark_jobs benchmarks scripts tests/support \
  pyproject.toml constraints.txt | tar c -T - | tar x -C "$work/all/project"
mkdir -p "$work/all/project/.cache/models"
cp -rL .cache/models/whisper-base "$work/all/project/.cache/models/"
for corpus in clips clips-quick calls calls-quick long; do
  made=$("$python" -c 'import sys; sys.path[:0] = ["benchmarks"]; from corpus import corpus; print(corpus(sys.argv[1]))' \
    "$corpus" | tail -1)
  mkdir -p "$work/all/project/${made#"$root"/}"
  cp -rL "$made/." "$work/all/project/${made#"$root"/}"
done

rm -rf "$folder" && mkdir -p "$folder"
tar c -C "$work/all" . | xz -T0 -1 | split -b "${piece}MB" -d -a 2 - "$folder/piece."
cp benchmarks/run_gpu.sh "$folder/run.sh"
du -sh "$folder"
