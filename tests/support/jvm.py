"""Java for tests: Spark's virtual machines live for seconds, so a quick start counts more than fast code.

A start of Spark costs 15 seconds of processor time, more than half of which is loading classes and compiling.
With the quick compiler and an archive of loaded classes it costs 6.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import filelock
from spark_cluster import spark_binary

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "tests"
# The least that loads what a job loads: a session, and a Pandas UDF over two partitions.
PROGRAM = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.config("spark.ui.enabled", "false").getOrCreate()
assert spark.range(4).repartition(2).mapInPandas(lambda frames: frames, "id long").count() == 4
spark.stop()
"""


def use_class_archive() -> None:
    """Lets every virtual machine that is started from now on begin with Spark's classes loaded."""
    options = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:SharedArchiveFile={_class_archive()}"
    os.environ["JAVA_TOOL_OPTIONS"] = options


@cache
def _class_archive() -> Path:
    """The archive, made once for each Java and each Spark: it takes about 20 seconds."""
    java = f"{os.environ['JAVA_HOME']}/bin/java" if os.environ.get("JAVA_HOME") else "java"
    version = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    versions = f"{version} {importlib.metadata.version('pyspark')} {spark_binary('')}"
    archive = CACHE / f"spark-{hashlib.sha256(versions.encode()).hexdigest()[:16]}.jsa"
    CACHE.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{archive}.lock"):
        if not archive.exists():
            _make(archive)
    return archive


def _make(archive: Path) -> None:
    building = archive.with_suffix(".building")
    program = archive.with_suffix(".py")
    program.write_text(PROGRAM)
    options = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ArchiveClassesAtExit={building}"
    done = subprocess.run(
        [spark_binary("spark-submit"), "--master", "local[2]", str(program)],
        env={**os.environ, "SPARK_SUBMIT_OPTS": options, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    building.rename(archive)
