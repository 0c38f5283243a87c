"""``job.py --check`` in a Spark session of this process, and executors that lack something."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from spark_session import local_session

from airflow_whisper.hooks.job_package import write_archive
from whisper_spark.contract import WhisperOptions
from whisper_spark.doctor.checks import Check, ok
from whisper_spark.doctor.host import HostPlan
from whisper_spark.spark.check import Answer, Executor, TaskEnd, _by_host, check_cluster, check_conf
from whisper_spark.spark.failures import (
    CheckFailedError,
    MissingPackagesError,
    explained_imports,
    is_wrong_configuration,
)

PLAN = HostPlan(WhisperOptions(model="/no/such/model", device="cpu"))


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    with local_session({"spark.master": "local[2]", **check_conf({})}, "standin_engine") as session:
        # For interpreters that do not see this project.
        session.sparkContext.addPyFile(str(write_archive(tmp_path_factory.mktemp("archive"))))
        yield session


@pytest.fixture
def bare_python(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets executors use an interpreter without installed packages; pyspark itself comes with Spark."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", str(script))
    return str(script)


def failed_check(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """The message of a check that fails, and what it logs."""
    caplog.set_level(logging.INFO, "whisper_spark")
    with pytest.raises(CheckFailedError) as caught:
        check_cluster(spark, PLAN)
    return str(caught.value), "\n".join(record.getMessage() for record in caplog.records)


def test_check_prints_a_table_for_cluster_and_hosts_and_names_what_failed(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    message, log = failed_check(spark, caplog)
    assert re.search(r"^cluster local\[2\]$", log, re.MULTILINE)
    assert re.search(r"^host \S+: executor driver$", log, re.MULTILINE)
    assert re.search(r"^  ok +GPU +not used: device='cpu'$", log, re.MULTILINE)
    assert re.search(r"^  failed +model +there is no folder /no/such/model on host", log, re.MULTILINE)
    # Two tasks of one executor find the same, which is told once.
    assert log.count("there is no folder") == 1
    assert re.match(r"\d+ checks: 1 failed, 0 with a warning\. The first, model on host ", message)


def test_executor_without_packages_gets_one_command_for_all(
    spark: SparkSession, caplog: pytest.LogCaptureFixture, bare_python: str
) -> None:
    message, log = failed_check(spark, caplog)
    assert "missing: pandas, pyarrow, obstore, numpy, faster-whisper, ctranslate2" in log
    assert f"{sys.executable} -m pip install 'pandas>=2.2,<3' 'pyarrow>=19.0.1'" in message


def test_executor_whose_python_does_not_start_is_told_with_the_property_to_set(
    spark: SparkSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "/no/such/python")
    message, log = failed_check(spark, caplog)
    assert re.search(r"failed +executor +Python does not start.*: there is no /no/such/python\.", log)
    assert "spark.pyspark.python" in message


def test_job_names_all_packages_that_executors_lack_at_once(spark: SparkSession, bare_python: str) -> None:
    from pyspark.sql.pandas.functions import pandas_udf

    udf: Any = pandas_udf
    same = udf(lambda numbers: numbers, "long")
    with pytest.raises(MissingPackagesError) as caught, explained_imports(spark.sparkContext):
        spark.range(1).select(same("id")).collect()
    told = str(caught.value)
    assert re.search(rf"{sys.executable} on host \S+ lacks pandas, pyarrow, obstore, numpy, faster", told)
    assert "pip install 'pandas>=2.2,<3'" in told
    # The packages may be in another interpreter, of which Spark was not told.
    assert "name that one in conf: spark.pyspark.python is not set" in told
    assert is_wrong_configuration(caught.value)


def test_other_errors_pass_unchanged(spark: SparkSession) -> None:
    with pytest.raises(ZeroDivisionError), explained_imports(spark.sparkContext):
        raise ZeroDivisionError


def test_executors_are_grouped_by_host_and_silent_ones_are_told() -> None:
    present = [Executor("0", "a"), Executor("1", "a"), Executor("2", "b"), Executor("10", "b")]
    answers = [
        Answer(7, ("1",), (ok("disk", "x"),)),
        Answer(5, ("0",), (ok("disk", "y"),)),
        # The same executor and GPU once more.
        Answer(6, ("0",), (ok("disk", "z"),)),
    ]
    ends = [
        TaskEnd(5, "0", "a", None),
        TaskEnd(6, "0", "a", None),
        TaskEnd(7, "1", "a", None),
        TaskEnd(8, "2", "b", "SparkException: \nError from python worker:\n  no pyspark here"),
    ]
    hosts = _by_host(present, answers, ends)
    assert [*hosts] == ["a", "b"]
    assert hosts["a"] == {"executor 0 (GPU 0)": [ok("disk", "y")], "executor 1 (GPU 1)": [ok("disk", "x")]}
    [broken] = hosts["b"]["executor 2"]
    assert (broken.status, broken.found) == ("failed", "Python does not start: no pyspark here")
    fix = "run the check again while the cluster is idle"
    assert hosts["b"]["executor 10"] == [Check("executor", "warning", "it ran no task of the check", fix)]


def test_check_asks_for_as_many_executors_as_a_job_may_get() -> None:
    dynamic = {"spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.maxExecutors": "12"}
    settings = check_conf(dynamic)
    assert settings["spark.executor.instances"] == "12"
    assert settings["spark.dynamicAllocation.enabled"] == "false"
