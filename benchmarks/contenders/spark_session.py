"""A local Spark session for the contenders that need one, warm, its start-up noted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Task

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def local_spark(task: Task, task_cpus: int, conf: dict[str, str] | None = None) -> Iterator[SparkSession]:
    """A session on all cores. Has run a job in Python already, so that its workers have started.

    :param task_cpus: cores for each task; Spark sets ``OMP_NUM_THREADS`` to it, and CTranslate2 obeys.
    """
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{task.cores}]").appName("benchmark")
    settings = {
        "spark.task.cpus": str(task_cpus),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "ERROR",
        **(conf or {}),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    slots = task.cores // task_cpus
    session.range(0, slots, 1, slots).mapInPandas(_same, "id long").collect()
    task.ready()
    try:
        yield session
    finally:
        session.stop()


def _same(frames: Iterator[Any]) -> Iterator[Any]:
    yield from frames
