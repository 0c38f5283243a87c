"""Speed up Java for tests: their JVMs live for seconds, so start-up time matters more than fast code.

Starting Spark takes 15 seconds of CPU time, more than half of it for loading and compiling classes. With the
quick compiler and an archive of loaded classes (class data sharing) it takes 6.
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
# The smallest program that loads the same classes as a job: a session, and a Pandas UDF over two partitions.
PROGRAM = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.config("spark.ui.enabled", "false").getOrCreate()
assert spark.range(4).repartition(2).mapInPandas(lambda frames: frames, "id long").count() == 4
spark.stop()
"""


def use_class_archive() -> None:
    """Make every JVM that is started from now on use the archive of Spark's classes."""
    options = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:SharedArchiveFile={_class_archive()}"
    os.environ["JAVA_TOOL_OPTIONS"] = options


@cache
def _class_archive() -> Path:
    """Return the archive. Creating it takes about 20 seconds, once for each version of Java and Spark."""
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
