"""What spark-submit is given and what is learned from its output, without Spark."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from airflow.models.connection import Connection
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.sdk.exceptions import AirflowFailException
from spark_cluster import write_run

from airflow_whisper.hooks import private_folder as folders
from airflow_whisper.hooks import spark_submit
from airflow_whisper.hooks.failure import Failure
from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.hooks.spark_submit import (
    Submission,
    WhisperSubmitHook,
    check_spark_connection,
    spark_master,
)
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from whisper_spark.contract import Run, WhisperOptions


def connect(
    monkeypatch: pytest.MonkeyPatch, value: dict[str, Any] | str, conn_id: str = "spark_default"
) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", text)


@pytest.fixture
def local_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, {"conn_type": "spark", "host": "local[2]"})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "a.wav").touch()
    return write_run(f"file://{tmp_path}/staging", [f"file://{tmp_path}/a.wav"], WhisperOptions(model="base"))


def program(folder: Path, script: str) -> str:
    """A spark-submit that does what a shell script says."""
    path = folder / "spark-submit"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return str(path)


def failure_of(run: Run, binary: str, **arguments: Any) -> str:
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=binary, **arguments
    )
    with pytest.raises(AirflowException) as caught:
        operator.execute({})
    return str(caught.value)


# --- why a job failed ------------------------------------------------------------------------------------

AWAIT = """Exception in thread "main" org.apache.spark.SparkException: Exception thrown in awaitResult:
\tat org.apache.spark.util.SparkThreadUtils$.awaitResult(SparkThreadUtils.scala:53)
Caused by: java.io.IOException: Failed to connect to master/10.0.0.1:7077
\tat org.apache.spark.network.client.TransportClientFactory.createClient(TransportClientFactory.java:294)
Caused by: java.net.ConnectException: Connection refused"""


@pytest.mark.parametrize(
    ("output", "status", "cause"),
    [
        ("whisper: failed: s3://b/a.wav: no permission", 1, "s3://b/a.wav: no permission"),
        (
            "java.lang.IllegalArgumentException: x\nwhisper: failed: the reason\n26/11/01 INFO ShutdownHook",
            1,
            "the reason",
        ),
        (
            AWAIT,
            1,
            "Exception thrown in awaitResult: (caused by java.net.ConnectException: Connection refused)",
        ),
        (
            'Exception in thread "main" java.lang.IllegalArgumentException: Executor memory 1 must be',
            1,
            "Executor memory 1 must be",
        ),
        ("Error: Unrecognized option: --nope\n" + "usage\n" * 200, 1, "Unrecognized option: --nope"),
        ("JAVA_HOME is not set", 1, "Java 17 or newer"),
        ("/opt/spark/bin/spark-class: line 71: java: command not found", 127, "Java 17 or newer"),
        (
            "/opt/spark/bin/spark-class: line 71: /opt/java/bin/java: No such file or directory",
            1,
            "JAVA_HOME names a folder without a Java",
        ),
        (
            'Exception in thread "main" java.lang.UnsupportedClassVersionError: org/apache/spark/Main',
            1,
            "too old: install Java 17 or newer",
        ),
        ("Traceback:\nModuleNotFoundError: No module named 'pyarrow'", 1, "No module named 'pyarrow'"),
        ("", -9, "ended by SIGKILL, as happens when the machine or the container runs out of memory"),
        ("", 137, "ended by SIGKILL"),
        ("", 3, "exit status 3"),
    ],
)
def test_cause_is_found_in_the_output(output: str, status: int, cause: str) -> None:
    failure = Failure()
    for line in output.splitlines():
        failure.add(line)
    assert cause in failure.cause(status)
    assert "\n" not in failure.cause(status)


@pytest.mark.parametrize(
    ("output", "status", "fails_at_once"),
    [
        ("whisper: failed: --options must be a JSON object", 2, True),
        ("whisper: failed: s3://b/a.wav: no permission", 1, False),
        ("JAVA_HOME is not set", 1, True),
        ("spark-class: line 71: /opt/java/bin/java: No such file or directory", 1, True),
        ("Error: Unrecognized option: --nope", 1, True),
        (AWAIT, 1, False),
        ("whisper: Spark application app-1\nError: of some library", 137, False),
        ("", 137, False),
        ("", 2, False),
    ],
)
def test_job_that_a_retry_cannot_help_fails_at_once(
    local_spark: None, run: Run, tmp_path: Path, output: str, status: int, fails_at_once: bool
) -> None:
    (tmp_path / "output").write_text(output)
    binary = program(tmp_path, f"cat {tmp_path}/output; exit {status}")
    operator = WhisperTranscribeOperator(task_id="t", manifest=run.manifest_uri, spark_binary=binary)
    with pytest.raises(AirflowException) as caught:
        operator.execute({})
    assert isinstance(caught.value, AirflowFailException) is fails_at_once


def test_message_of_a_failed_task_begins_with_the_cause(local_spark: None, run: Run, tmp_path: Path) -> None:
    # More lines after the cause than the provider keeps.
    script = "echo 'Error: Master must start with spark'\nfor i in $(seq 50); do echo usage; done\nexit 1"
    message = failure_of(run, program(tmp_path, script))
    assert message.splitlines()[0] == "the Spark job failed: Master must start with spark"
    assert "Error code is: 1" in message


def test_missing_program_says_what_to_install(local_spark: None, run: Run, tmp_path: Path) -> None:
    message = failure_of(run, f"{tmp_path}/no-such-program")
    assert "no-such-program' on this worker" in message
    assert "airflow-provider-whisper[spark]" in message


def test_missing_java_says_which_one_to_install(
    local_spark: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The launch script of the installed pyspark, on a machine where bash is all there is.
    import pyspark

    monkeypatch.delenv("JAVA_HOME", raising=False)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "env", "cat", "grep", "ls", "basename", "sed", "tr"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    (tools / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tools))
    binary = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    assert "Java 17 or newer" in failure_of(run, str(binary)).splitlines()[0]


def test_output_cannot_forge_lines_or_colours_in_the_log(
    local_spark: None, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failure_of(run, program(tmp_path, r"printf 'a\x1b[31m.wav \xc2\x85forged\n'; exit 1"))
    log = "".join(capfd.readouterr())
    assert r"a\u001b[31m.wav \u0085forged" in log


def test_executor_that_fits_nowhere_is_told_in_the_log_once(
    local_spark: None, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    waiting = (
        "26/11/01 WARN TaskSchedulerImpl: Initial job has not accepted any resources; check your cluster UI"
    )
    failure_of(run, program(tmp_path, f"for i in 1 2 3; do echo '{waiting}'; done; exit 1"))
    log = "".join(capfd.readouterr())
    assert log.count("compare executor_cores, executor_memory and GPUs with what one worker offers") == 1


@pytest.mark.parametrize(("host", "warns"), [("local[2]", False), ("spark://h:7077", True), ("yarn", True)])
def test_folder_as_staging_of_a_cluster_is_a_warning(
    host: str,
    warns: bool,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    connect(monkeypatch, {"conn_type": "spark", "host": host})
    failure_of(run, program(tmp_path, "exit 1"))
    assert ("name an object store as staging" in "".join(capfd.readouterr())) is warns


def test_job_that_says_why_no_executor_starts_is_not_talked_over(
    local_spark: None, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "whisper: no executor has started yet: an executor needs 16 cores, and no worker is that large"
    waiting = "26/11/01 WARN TaskSchedulerImpl: Initial job has not accepted any resources"
    failure_of(run, program(tmp_path, f"echo '{said}'; echo '{waiting}'; exit 1"))
    log = "".join(capfd.readouterr())
    assert "no worker is that large" in log
    assert "with what one worker offers" not in log


# --- the connection --------------------------------------------------------------------------------------

MASTERS: list[dict[str, Any] | str] = [
    {"conn_type": "spark", "host": "local[2]"},
    {"conn_type": "spark", "host": "yarn"},
    {"conn_type": "spark", "host": "h", "port": 7077},
    {"conn_type": "spark", "host": "spark://h:7077"},
    {"conn_type": "spark", "host": "spark://h", "port": 7077},
    {"conn_type": "spark", "host": "k8s://https://h"},
    {"conn_type": "spark", "host": "k8s://https://h", "port": 6443},
    "spark://h:7077",
    "k8s://https%3A%2F%2Fh:6443",
]


@pytest.mark.parametrize("value", MASTERS, ids=str)
def test_master_is_the_one_that_the_provider_submits_to(
    value: dict[str, Any] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, value)
    monkeypatch.setattr(
        "airflow.providers.apache.spark.hooks.spark_submit.kube_client", object(), raising=False
    )
    theirs = SparkSubmitHook()._connection["master"]
    text = value if isinstance(value, str) else json.dumps(value)
    ours = Connection(uri=text) if isinstance(value, str) else Connection.from_json(text)
    assert spark_master(ours) == theirs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        {"conn_type": "spark", "host": "k8s://https://h", "port": 6443},
        "k8s://https%3A%2F%2Fh:6443",
        {"conn_type": "spark", "host": "yarn"},
    ],
    ids=str,
)
def test_cluster_mode_is_refused_on_standalone_masters_only(
    value: dict[str, Any] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, value)
    assert check_spark_connection("spark_default", "cluster")
    connect(monkeypatch, {"conn_type": "spark", "host": "h", "port": 7077})
    with pytest.raises(InvalidConnectionError, match="use 'client'"):
        check_spark_connection("spark_default", "cluster")


def test_kubernetes_master_without_the_provider_names_the_package(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, {"conn_type": "spark", "host": "k8s://https://h"})
    monkeypatch.setattr(spark_submit, "_has_kubernetes_provider", lambda: False)
    message = failure_of(run, "/bin/true", deploy_mode="cluster")
    assert "apache-airflow-providers-cncf-kubernetes" in message
    assert "airflow-provider-whisper[kubernetes]" in message


@pytest.mark.parametrize("mode", ["clutser", "Cluster", 1])
def test_unknown_deploy_mode_is_refused_when_the_dag_is_parsed(mode: Any) -> None:
    with pytest.raises(ValueError, match="deploy_mode must be 'client' or 'cluster'"):
        WhisperTranscribeOperator(task_id="t", manifest="m", deploy_mode=mode)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("executor_cores", "eight"),
        ("executor_cores", 0),
        ("total_executor_cores", "8g"),
        ("executor_memory", "16 gigs"),
        ("driver_memory", "2gib"),
    ],
)
def test_size_that_spark_cannot_read_is_refused_when_the_dag_is_parsed(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be .*, got {value!r}"):
        WhisperTranscribeOperator(task_id="t", manifest="m", **{argument: value})


def test_sizes_that_spark_reads_are_accepted() -> None:
    for memory in ("16g", "900M", "16GB", "16384", 16384, "{{ params.memory }}", None):
        WhisperTranscribeOperator(task_id="t", manifest="m", executor_cores="8", executor_memory=memory)  # type: ignore[arg-type]


def test_sizes_that_are_numbers_reach_spark(local_spark: None, run: Run, tmp_path: Path) -> None:
    binary = program(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/argv; exit 1')
    failure_of(run, binary, executor_cores=2, total_executor_cores=4, executor_memory=900, driver_memory=1024)
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[argv.index("--executor-memory") + 1] == "900"
    assert argv[argv.index("--driver-memory") + 1] == "1024"


@pytest.mark.parametrize(
    ("argument", "value", "told"),
    [
        ("conf", {"pyspark.python": "/opt/whisper/bin/python"}, "ignores 'pyspark.python'"),
        (
            "conf",
            {"spark.executor.cores": "{{ params.cores }}", "executor.memory": "1g"},
            "ignores 'executor",
        ),
        ("conf", ["spark.executor.cores=8"], "conf must be a dict"),
        ("application_args", "--tasks 16", "application_args must be a list"),
    ],
)
def test_what_spark_submit_would_ignore_is_refused_when_the_dag_is_parsed(
    argument: str, value: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        WhisperTranscribeOperator(task_id="t", manifest="m", **{argument: value})


@pytest.mark.parametrize(
    "value",
    [
        {"conn_type": "spark", "host": "http://127.0.0.1:8080"},
        {"conn_type": "http", "host": "h", "port": 7077},
        {"conn_type": "spark", "host": "lokal[2]"},
        {"conn_type": "spark", "host": "spark-master.example.com"},
    ],
    ids=str,
)
def test_host_that_is_no_master_is_told_before_spark_starts(
    value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, value)
    with pytest.raises(
        InvalidConnectionError, match=r"'spark_default' names the master '.*spark://host:7077"
    ):
        check_spark_connection("spark_default", None)


def test_wrong_configuration_is_not_retried(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, {"conn_type": "spark", "host": "yarn", "extra": {"deploy-mode": "clutser"}})
    with pytest.raises(AirflowFailException, match="deploy_mode must be"):
        WhisperTranscribeOperator(task_id="t", manifest=run.manifest_uri).execute({})
    connect(monkeypatch, {"conn_type": "spark", "host": "local[1]"})
    changed = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, options="{{ params.options }}"
    )
    changed.options = {"language": "en"}
    with pytest.raises(AirflowFailException, match="language cannot be changed here"):
        changed.execute({})


# --- what travels ----------------------------------------------------------------------------------------


def test_image_that_carries_the_package_is_sent_none(local_spark: None, run: Run, tmp_path: Path) -> None:
    binary = program(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/argv; exit 1')
    script = "local:///opt/whisper_spark/job.py"
    failure_of(run, binary, send_package=False, application=script)
    argv = (tmp_path / "argv").read_text().splitlines()
    assert "--py-files" not in argv
    assert argv[argv.index("--manifest") - 1] == script
    failure_of(run, binary, send_package=False, py_files="mine.py")
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[argv.index("--py-files") + 1] == "mine.py"


def test_hook_gets_every_argument_that_the_providers_operator_gives(local_spark: None) -> None:
    arguments: dict[str, Any] = {
        "keytab": "k",
        "principal": "p",
        "verbose": True,
        "status_poll_interval": 7,
        "post_submit_commands": ["true"],
        "driver_class_path": "d",
        "exclude_packages": "e",
        "repositories": "r",
        "java_class": "j",
    }
    operator = WhisperTranscribeOperator(task_id="t", manifest="m", **arguments)
    hook = operator._get_hook()
    assert isinstance(hook, WhisperSubmitHook)
    assert {name: getattr(hook, f"_{name}") for name in arguments} == arguments


def test_credentials_are_not_in_what_a_log_shows_of_the_submission() -> None:
    submission = Submission(credentials={"source": {"aws_secret_access_key": "hunter2"}})
    assert "hunter2" not in repr(submission)


# --- credentials that a killed worker leaves -------------------------------------------------------------

HOLD = """
import sys, time
from airflow_whisper.hooks.private_folder import private_folder
with private_folder() as folder:
    (folder / "spark.properties").write_text("secret")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_credentials_of_a_killed_process_are_deleted_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", HOLD]
    killed, alive = (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)
    )
    try:
        assert killed.stdout is not None
        assert alive.stdout is not None
        left, used = Path(killed.stdout.readline().strip()), Path(alive.stdout.readline().strip())
        assert stat.S_IMODE(left.stat().st_mode) == 0o700
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "spark.properties").exists()
        with folders.private_folder() as mine:
            assert not left.exists()
            assert (used / "spark.properties").exists()
            assert mine.is_dir()
        assert not mine.exists()
    finally:
        for process in (killed, alive):
            process.kill()
            process.wait()


def test_sweep_follows_no_link_and_touches_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / f"{folders.PREFIX}link").symlink_to(elsewhere)
    (tmp_path / f"{folders.PREFIX}file").touch()
    folders.sweep()
    assert (elsewhere / "lock").exists()
    assert (tmp_path / f"{folders.PREFIX}file").exists()
