"""A Spark session in this process, for tests of the job without spark-submit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from whisper_spark.contract import WhisperOptions
from whisper_spark.spark.conf import spark_defaults


@contextmanager
def local_session(conf: Mapping[str, str], *modules: str) -> Iterator[SparkSession]:
    """Start a session with the job's defaults, and stop it at the end.

    :param conf: Spark properties, at least ``spark.master``.
    :param modules: names of the modules in this folder that make up the stand-in engine.
    """
    own = {
        "spark.task.cpus": "1",
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        **conf,
    }
    builder = SparkSession.builder
    for key, value in {**spark_defaults(own, WhisperOptions(model="base")), **own}.items():
        builder = builder.config(key, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = builder.getOrCreate()
        for module in modules:
            session.sparkContext.addPyFile(str(Path(__file__).with_name(f"{module}.py")))
        try:
            yield session
        finally:
            session.stop()
            # At exit, after pytest has closed the log, py4j would log the end of its connections.
            logging.getLogger("py4j").setLevel(logging.WARNING)
