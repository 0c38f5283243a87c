"""The operator: what it asks of spark-submit, and real jobs on local Spark and on a standalone cluster."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from airflow.exceptions import AirflowException
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowFailException
from servers import S3Server
from spark_cluster import SparkCluster, spark_binary, staged_table, standalone_cluster, write_run
from standin_engine import LOG_SUFFIX

from airflow_whisper.hooks.job_package import job_script, write_archive
from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.hooks.spark_submit import client_environment, spark_submit_binary
from airflow_whisper.operators.check import CheckClusterOperator
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from whisper_spark.contract import Run, WhisperOptions
from whisper_spark.progress import reports as progress_reports
from whisper_spark.spark.cluster import standalone_workers, why_no_executor
from whisper_spark.staging.result import RunResult, StagingError, read_result, staged_files
from whisper_spark.storage.objects import ObjectStorage

OPTIONS = WhisperOptions(model="base")
SPARK_JOBS = str(Path(progress_reports.__file__).parents[2])
STANDIN = Path(__file__).parents[2] / "support" / "standin_engine.py"
STANDIN_ARGUMENTS = ["--engine", "standin_engine:get_engine", "--flush-seconds", 0.3]

LOOPBACK = {
    "spark.pyspark.python": sys.executable,
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    "spark.ui.enabled": False,
}


def connection(monkeypatch: pytest.MonkeyPatch, conn_id: str, value: dict[str, Any] | str) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", text)


@pytest.fixture
def local_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    connection(monkeypatch, "spark_default", {"conn_type": "spark", "host": "local[2]"})


def make_audio(folder: Path, orders: list[str]) -> list[str]:
    folder.mkdir()
    for number, order in enumerate(orders):
        (folder / f"{number}.wav").write_text(order)
    return [f"file://{folder}/{number}.wav" for number in range(len(orders))]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(f"file://{tmp_path}/staging", make_audio(tmp_path / "audio", ["", ""]), OPTIONS)


# --- what spark-submit is asked ------------------------------------------------------------------------


class Recorder:
    """A spark-submit that writes down what it was given, says something and ends."""

    def __init__(self, folder: Path, status: int, output: str = "") -> None:
        self.folder = folder / "submitted"
        self.folder.mkdir()
        self.binary = folder / "spark-submit"
        self.binary.write_text(
            f"""#!/bin/bash
printf '%s\\n' "$@" > {self.folder}/argv
env > {self.folder}/env
for ((i = 1; i <= $#; i++)); do
  if [ "${{!i}}" = --properties-file ]; then j=$((i + 1)); cp -p "${{!j}}" {self.folder}/properties; fi
  if [ "${{!i}}" = --py-files ]; then j=$((i + 1)); cp "${{!j%%,*}}" {self.folder}/archive.zip; fi
done
echo '{output}'
exit {status}
"""
        )
        self.binary.chmod(0o755)

    @property
    def argv(self) -> list[str]:
        return (self.folder / "argv").read_text().splitlines()

    def after(self, flag: str) -> str:
        return self.argv[self.argv.index(flag) + 1]

    @property
    def environment(self) -> dict[str, str]:
        return dict(
            line.split("=", 1) for line in (self.folder / "env").read_text().splitlines() if "=" in line
        )


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path, status=3, output="whisper: failed: the reason")


def submit(operator: WhisperTranscribeOperator) -> str:
    with pytest.raises(AirflowException, match="Error code is: 3") as caught:
        operator.execute({})
    return str(caught.value)


def test_every_option_of_spark_submit_operator_still_works(
    local_spark: None, run: Run, recorder: Recorder
) -> None:
    operator = WhisperTranscribeOperator(
        task_id="t",
        manifest=run.manifest_uri,
        options={"batch_size": 96},
        spark_binary=str(recorder.binary),
        conf={"spark.a": 1, "spark.b": None, "spark.c": True, "spark.speculation": "true"},
        py_files="mine.py",
        application_args=["--tasks", 7],
        env_vars={"MINE": "1", "SPARK_LOCAL_IP": "127.0.0.2"},
        files="f.txt",
        archives="env.tar.gz#environment",
        jars="a.jar",
        packages="g:a:1",
        executor_cores=4,
        executor_memory="2g",
        driver_memory="1g",
        num_executors=3,
        total_executor_cores=12,
        yarn_queue="audio",
        proxy_user="me",
        name="calls",
        deploy_mode="client",
        verbose=True,
    )
    message = submit(operator)
    assert "whisper: failed: the reason" in message
    argv = recorder.argv
    confs = [argv[i + 1] for i, word in enumerate(argv) if word == "--conf"]
    assert confs == ["spark.a=1", "spark.c=true", "spark.speculation=true"]
    archive, mine = recorder.after("--py-files").split(",")
    assert mine == "mine.py"
    assert not Path(archive).exists()
    expected = {
        "--master": "local[2]",
        "--files": "f.txt",
        "--archives": "env.tar.gz#environment",
        "--jars": "a.jar",
        "--packages": "g:a:1",
        "--executor-cores": "4",
        "--executor-memory": "2g",
        "--driver-memory": "1g",
        "--num-executors": "3",
        "--total-executor-cores": "12",
        "--queue": "audio",
        "--proxy-user": "me",
        "--name": "calls",
        "--deploy-mode": "client",
        "--manifest": run.manifest_uri,
        "--options": '{"batch_size": 96}',
        "--tasks": "7",
    }
    assert {flag: recorder.after(flag) for flag in expected} == expected
    assert "--verbose" in argv
    assert str(job_script()) in argv
    environment = recorder.environment
    assert (environment["MINE"], environment["SPARK_LOCAL_IP"]) == ("1", "127.0.0.2")
    assert environment["PYSPARK_PYTHON"] == sys.executable
    # What the user gave is as it was, for a second try by the same operator.
    assert (operator.py_files, operator.application, operator.application_args) == (
        "mine.py",
        "",
        ["--tasks", 7],
    )
    assert operator.conf == {"spark.a": 1, "spark.b": None, "spark.c": True, "spark.speculation": "true"}


def test_credentials_go_through_a_file_that_nobody_else_can_read(
    local_spark: None,
    tmp_path: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    secret = "hunter2-hunter2"
    value = {"conn_type": "aws", "login": "AKIA", "password": secret, "extra": {"region_name": "us-east-1"}}
    connection(monkeypatch, "calls_s3", value)
    mine = tmp_path / "mine.properties"
    mine.write_text("spark.mine=1")
    audio = make_audio(tmp_path / "audio", [""])
    run = write_run(f"file://{tmp_path}/staging", audio, OPTIONS, source="s3://calls/raw/")
    common: dict[str, Any] = {
        "task_id": "t",
        "manifest": run.manifest_uri,
        "source_conn_id": "calls_s3",
        "spark_binary": str(recorder.binary),
        "conf": {"spark.redaction.regex": "(?i)mine"},
    }
    message = submit(WhisperTranscribeOperator(**common))
    properties = recorder.folder / "properties"
    key, _, encoded = properties.read_text().strip().partition("=")
    assert key == "spark.whisper.secret.source"
    assert json.loads(base64.b64decode(encoded))["aws_secret_access_key"] == secret
    assert properties.stat().st_mode & 0o777 == 0o600
    assert not Path(recorder.after("--properties-file")).exists()
    assert "--load-spark-defaults" in recorder.argv
    assert recorder.after("--conf") == r"spark.redaction.regex=(?i)mine|spark[.]whisper[.]secret[.]"
    log = "".join(capfd.readouterr())
    assert "spark-submit" in log
    environment = {k: v for k, v in recorder.environment.items() if not k.startswith("AIRFLOW_CONN_")}
    for place in (str(recorder.argv), message, log, str(environment)):
        assert secret not in place
        assert encoded not in place

    submit(WhisperTranscribeOperator(**common, properties_file=str(mine)))
    assert properties.read_text().splitlines() == ["spark.mine=1", f"{key}={encoded}"]
    assert "--load-spark-defaults" not in recorder.argv


@pytest.mark.parametrize(("diarize", "places"), [(True, {"model"}), (False, set())])
def test_speaker_model_in_an_object_store_is_read_with_the_connection_of_models(
    local_spark: None,
    tmp_path: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    diarize: bool,
    places: set[str],
) -> None:
    connection(monkeypatch, "models_s3", {"conn_type": "aws", "login": "AKIA", "password": "hunter2-hunter2"})
    options = WhisperOptions(model="base", diarize=diarize, speaker_model="s3://models/speakers/")
    run = write_run(f"file://{tmp_path}/staging", make_audio(tmp_path / "audio", [""]), options)
    submit(
        WhisperTranscribeOperator(
            task_id="t",
            manifest=run.manifest_uri,
            model_conn_id="models_s3",
            spark_binary=str(recorder.binary),
        )
    )
    properties = recorder.folder / "properties"
    lines = properties.read_text().splitlines() if properties.exists() else []
    keys = [line.partition("=")[0] for line in lines]
    prefix = "spark.whisper.secret."
    assert {key.removeprefix(prefix) for key in keys if key.startswith(prefix)} == places


def test_model_uri_that_cannot_be_meant_is_refused_before_the_job(
    local_spark: None, tmp_path: Path, recorder: Recorder
) -> None:
    options = WhisperOptions(model="s3://models//base/")
    run = write_run(f"file://{tmp_path}/staging", make_audio(tmp_path / "audio", [""]), options)
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary)
    )
    with pytest.raises(ValueError, match="Did you mean 's3://models/base/'"):
        operator.execute({})
    assert not (recorder.folder / "argv").exists()


def test_file_of_properties_is_left_alone_without_credentials(
    local_spark: None, run: Run, recorder: Recorder, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.properties"
    mine.write_text("spark.mine=1")
    submit(
        WhisperTranscribeOperator(
            task_id="t",
            manifest=run.manifest_uri,
            spark_binary=str(recorder.binary),
            properties_file=str(mine),
        )
    )
    assert recorder.after("--properties-file") == str(mine)


def test_all_arguments_that_are_text_are_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    connection(monkeypatch, "calls_spark", {"conn_type": "spark", "host": "local[2]"})
    operator = WhisperTranscribeOperator(
        task_id="t",
        manifest="{{ m }}/manifest.parquet",
        options={"device": "{{ device }}"},
        source_conn_id="{{ conn }}_s3",
        staging_conn_id="{{ conn }}_s3",
        model_conn_id="{{ conn }}_s3",
        conn_id="{{ conn }}_spark",
        archives="{{ m }}.tar.gz",
        executor_memory="{{ gb }}g",
        driver_memory="{{ gb }}g",
        deploy_mode="{{ mode }}",
        yarn_queue="{{ conn }}",
        conf={"spark.x": "{{ gb }}"},
        application_args=["--tasks", "{{ gb }}"],
    )
    operator.render_template_fields(
        {"m": "s3://b", "conn": "calls", "gb": 5, "mode": "client", "device": "cpu"}
    )
    rendered = {name: getattr(operator, name) for name in operator.template_fields}
    assert "{{" not in str(rendered)
    assert rendered["executor_memory"] == "5g"
    hook = operator._get_hook()
    assert hook._conn_id == "calls_spark"
    assert hook._archives == "s3://b.tar.gz"


def test_arguments_of_spark_submit_are_spelled_for_editors_and_reach_the_hook() -> None:
    def arguments(operator: type) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(operator.__init__).parameters)

    theirs, ours = arguments(SparkSubmitOperator), arguments(WhisperTranscribeOperator)
    # Airflow's configuration holds the defaults of the first two; the third is deprecated.
    of_their_own = {"openlineage_inject_parent_job_info", "openlineage_inject_transport_info"}
    assert set(theirs) - set(ours) == {*of_their_own, "reconnect_on_retry"}
    differ = {name for name in set(theirs) & set(ours) if theirs[name].default != ours[name].default}
    # Not every version of the Spark provider makes tasks durable by default.
    assert differ | {"durable"} == {"name", "durable"}
    # No text field of the parent may be forgotten on the way to it.
    texts = {name: f"my-{name}" for name in theirs if "str |" in str(theirs[name].annotation)}
    # Of these, the operator checks the values.
    texts |= {"deploy_mode": "client", "executor_memory": "1g", "driver_memory": "2g"}
    operator = WhisperTranscribeOperator(task_id="t", manifest="m", **texts)
    for name, value in texts.items():
        assert getattr(operator, name) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "en"}, "language cannot be changed here"),
        ({"batchsize": 3}, "batch_size"),
        ('{"batch_size": 0}', "batch_size must be between"),
        ("[1]", "must be a mapping"),
    ],
)
def test_options_that_would_change_the_text_fail_when_the_dag_is_parsed(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WhisperTranscribeOperator(task_id="t", manifest="m", options=options)


@pytest.mark.usefixtures("airflow_home")
def test_missing_spark_connection_is_an_error_and_not_yarn(run: Run, recorder: Recorder) -> None:
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, conn_id="nowhere", spark_binary=str(recorder.binary)
    )
    with pytest.raises(
        InvalidConnectionError, match=r"no Spark connection 'nowhere'.*airflow connections add nowhere"
    ):
        operator.execute({})
    assert not (recorder.folder / "argv").exists()


@pytest.mark.parametrize(
    ("value", "deploy_mode", "message"),
    [
        ({"conn_type": "spark"}, None, "has no host"),
        ({"conn_type": "spark", "host": "spark://h:7077"}, "cluster", "use 'client'"),
        ("spark://h:7077", "cluster", "use 'client'"),
        (
            {"conn_type": "spark", "host": "spark://h", "extra": {"deploy-mode": "cluster"}},
            None,
            "use 'client'",
        ),
    ],
)
def test_unusable_spark_connection_says_what_to_set(
    value: Any, deploy_mode: str | None, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(monkeypatch, "spark_default", value)
    operator = WhisperTranscribeOperator(task_id="t", manifest=run.manifest_uri, deploy_mode=deploy_mode)
    with pytest.raises(ValueError, match=message):
        operator.execute({})


def test_manifest_of_removals_needs_no_spark(local_spark: None, tmp_path: Path, recorder: Recorder) -> None:
    run = write_run(f"file://{tmp_path}/staging", [], OPTIONS)
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary)
    )
    assert operator.execute({})["files"] == 0
    assert read_result(run, ObjectStorage()).staged == ()
    assert not (recorder.folder / "argv").exists()


def test_partition_keys_need_no_alphabetical_order(
    local_spark: None, tmp_path: Path, recorder: Recorder
) -> None:
    partition = {"year": "2026", "month": "11", "day": "01"}
    run = write_run(f"file://{tmp_path}/staging", [], OPTIONS, partition=partition)
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary)
    )
    assert operator.execute({})["manifest_uri"] == run.manifest_uri


def test_missing_manifest_asks_to_clear_discover_and_starts_no_spark(
    local_spark: None, run: Run, recorder: Recorder
) -> None:
    Path(run.manifest_uri.removeprefix("file://")).unlink()
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary)
    )
    with pytest.raises(
        AirflowFailException, match=r"manifest\.parquet does not exist.*clear the discover task"
    ):
        operator.execute({})
    assert not (recorder.folder / "argv").exists()


def test_files_without_tries_left_are_told_with_the_way_to_try_them_again(
    local_spark: None, run: Run, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    result = RunResult(
        manifest_uri=run.manifest_uri,
        manifest_id=run.manifest_id,
        fingerprint=run.options.fingerprint(),
        attempt_id="1",
        files=3,
        errors=2,
        error_codes={"corrupt": 1, "forbidden": 1},
    )
    ObjectStorage().write_bytes(run.result_uri, result.to_json().encode())
    WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary)
    ).execute({})
    log = capsys.readouterr().out
    assert "1 of them failed with errors that may pass" in log
    assert "raise max_attempts of the discover task" in log


@pytest.mark.parametrize("damage", ["garbage", "another table"])
def test_manifest_that_is_not_that_of_its_folder_starts_no_spark(
    local_spark: None, run: Run, recorder: Recorder, damage: str
) -> None:
    manifest = Path(run.manifest_uri.removeprefix("file://"))
    if damage == "garbage":
        manifest.write_bytes(b"PAR1" + bytes(range(200)))
    else:
        table = pq.read_table(manifest, partitioning=None)
        other = dataclasses.replace(run, table="other.table")
        pq.write_table(table.replace_schema_metadata(other.to_metadata()), manifest)
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary)
    )
    with pytest.raises(AirflowFailException, match=r"the manifest .*Clear the discover task"):
        operator.execute({})
    assert not (recorder.folder / "argv").exists()


@pytest.mark.parametrize("staged", [[{"uri": [], "rows": 1, "bytes": 1}], [{"uri": "x"}], 3])
def test_result_that_no_job_wrote_does_not_keep_the_job_from_running(
    local_spark: None, run: Run, recorder: Recorder, staged: Any
) -> None:
    result = {"manifest_uri": run.manifest_uri, "manifest_id": run.manifest_id, "fingerprint": "f"}
    text = json.dumps(result | {"attempt_id": "1", "staged": staged})
    ObjectStorage().write_bytes(run.result_uri, text.encode())
    submit(
        WhisperTranscribeOperator(task_id="t", manifest=run.manifest_uri, spark_binary=str(recorder.binary))
    )
    assert recorder.argv


def test_job_that_leaves_no_result_fails_the_task(local_spark: None, run: Run, tmp_path: Path) -> None:
    idle = Recorder(tmp_path, status=0)
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, spark_binary=str(idle.binary)
    )
    with pytest.raises(StagingError, match=r"ended without an error, but .*result\.json"):
        operator.execute({})


def test_driver_on_the_cluster_tells_its_progress_through_staging(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no cluster mode to be had here: this spark-submit does what a job would do in staging.
    connection(
        monkeypatch,
        "spark_default",
        {"conn_type": "spark", "host": "yarn", "extra": {"deploy-mode": "cluster"}},
    )
    monkeypatch.setattr(progress_reports, "PROGRESS_SECONDS", 0.1)
    seen = tmp_path / "seen"
    script = tmp_path / "spark-submit"
    script.write_text(
        f"""#!{sys.executable}
import sys, time
from pathlib import Path
from whisper_spark.storage.objects import ObjectStorage
from whisper_spark.progress.counters import Snapshot
from whisper_spark.progress.reports import JobSize, report_folder, task_report_uri
folder = report_folder({run.run_uri!r}, sys.argv[sys.argv.index("--attempt-id") + 1])
JobSize(2, 0, 2).write(ObjectStorage(), folder)
report = Snapshot(state="running", files=1, total_files=1, audio_seconds=90.0, seconds=1.0)
ObjectStorage().write_bytes(task_report_uri(folder, 1), report.to_json().encode())
deadline = time.monotonic() + 60
while not Path({str(seen)!r}).exists() and time.monotonic() < deadline:
    time.sleep(0.02)
sys.exit(3)
"""
    )
    script.chmod(0o755)
    line = "whisper: task 1: 1 of 1 files, 90 s of audio, 90x real time, queue 0 %, 0 s left"

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == line:
                seen.touch()

    class Watched(WhisperTranscribeOperator):
        log = logging.Logger("task")

    Watched.log.addHandler(Seen())
    environment = {"PYTHONPATH": SPARK_JOBS}
    submit(Watched(task_id="t", manifest=run.manifest_uri, spark_binary=str(script), env_vars=environment))
    assert seen.exists()


def test_clearing_really_runs_again_because_nothing_is_remembered() -> None:
    assert WhisperTranscribeOperator(task_id="t", manifest="m").durable is False
    assert WhisperTranscribeOperator(task_id="t", manifest="m", durable=True).durable is True


# --- packaging and environment -------------------------------------------------------------------------


def test_archive_is_the_same_each_time_and_importable_with_its_data(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    assert write_archive(first).read_bytes() == write_archive(second).read_bytes()
    code = (
        "import pkgutil, whisper_spark; from importlib.resources import files; "
        "assets = (files('whisper_spark') / 'assets').iterdir(); "
        "clip = next(p.name for p in assets if p.name.endswith('.flac')); "
        "print(whisper_spark.__file__, len(pkgutil.get_data('whisper_spark', 'assets/' + clip)))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(first / "whisper_spark.zip")}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    path, size = shown.split()
    assert path.startswith(str(first / "whisper_spark.zip"))
    assert int(size) > 1000


def test_spark_submit_is_found_where_the_path_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert spark_submit_binary("spark-submit") == spark_binary("spark-submit")
    other = tmp_path / "spark-submit"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert spark_submit_binary("spark-submit") == "spark-submit"
    assert spark_submit_binary("/opt/spark/bin/spark-submit") == "/opt/spark/bin/spark-submit"


def test_environment_of_the_user_goes_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_IP", "SPARK_SUBMIT_OPTS"):
        monkeypatch.delenv(name, raising=False)
    assert client_environment("yarn", "client") == {}
    assert client_environment("spark://h:7077", "cluster", {"A": "1"}) == {"A": "1"}
    assert client_environment("spark://h:7077", None) == {"PYSPARK_DRIVER_PYTHON": sys.executable}
    local = client_environment("local[2]", None, {"PYSPARK_PYTHON": "mine", "SPARK_LOCAL_IP": "::1"})
    assert (local["PYSPARK_PYTHON"], local["SPARK_LOCAL_IP"]) == ("mine", "::1")
    assert "PYSPARK_DRIVER_PYTHON" not in local


# --- real jobs --------------------------------------------------------------------------------------------


@pytest.mark.jvm
def test_job_killed_half_way_goes_on_where_it_was(local_spark: None, tmp_path: Path) -> None:
    audio = make_audio(tmp_path / "audio", ["sleep 1"] * 8)
    run = write_run(f"file://{tmp_path}/staging", audio, OPTIONS)
    storage = ObjectStorage()
    # Without Airflow, as on the command line.
    py_files = f"{write_archive(tmp_path)},{STANDIN}"
    command = [
        spark_binary("spark-submit"),
        "--master",
        "local[2]",
        "--py-files",
        py_files,
        str(job_script()),
    ]
    command += ["--manifest", run.manifest_uri, *map(str, STANDIN_ARGUMENTS)]
    environment = {**os.environ, **client_environment("local[2]", None)}
    log = tmp_path / "killed.log"
    with log.open("wb") as out:
        job = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        wait_for_rows(run, storage, job, log)
    finally:
        kill_all(job)
    before = {row["audio_uri"]: row for row in staged_table(run).to_pylist()}
    assert 0 < len(before) < 8
    assert not storage.exists(run.result_uri)

    operator = WhisperTranscribeOperator(
        task_id="t",
        manifest=run.manifest_uri,
        py_files=str(STANDIN),
        application_args=STANDIN_ARGUMENTS,
        conf={"spark.ui.enabled": False},
    )
    done = operator.execute({})
    assert (done["ok"], done["resumed"], done["transcribed"]) == (8, len(before), 8 - len(before))
    after = {row["audio_uri"]: row for row in staged_table(run).to_pylist()}
    assert sorted(after) == sorted(audio)
    assert {uri: after[uri] for uri in before} == before
    times = {uri: Path(uri.removeprefix("file://") + LOG_SUFFIX).stat().st_size for uri in before}
    assert set(times.values()) == {1}

    started = time.monotonic()
    again = operator.execute({})
    assert (again["transcribed"], again["resumed"]) == (0, 8)
    assert time.monotonic() - started < 5


def wait_for_rows(run: Run, storage: ObjectStorage, job: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not staged_files(storage, run.rows_uri):
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """kill -9 for the job, its JVM and its Python workers, at the same moment."""
    family = [psutil.Process(process.pid)]
    family += family[0].children(recursive=True)
    for member in family:
        member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)
    process.wait()


@pytest.mark.jvm
def test_failed_job_names_its_cause_at_the_end(local_spark: None, tmp_path: Path) -> None:
    options = WhisperOptions(model=f"{tmp_path}/no-such-model")
    run = write_run(f"file://{tmp_path}/staging", make_audio(tmp_path / "audio", [""]), options)
    operator = WhisperTranscribeOperator(
        task_id="t", manifest=run.manifest_uri, conf={"spark.ui.enabled": False}
    )
    with pytest.raises(AirflowException) as caught:
        operator.execute({})
    assert "whisper: failed: " in str(caught.value)
    cause = str(caught.value).rpartition("whisper: failed: ")[2].splitlines()[0]
    assert "no-such-model" in cause
    assert "ModelError" in cause
    # A person has to name another model: the exit status of the job says so, through spark-submit.
    assert isinstance(caught.value, AirflowFailException)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    with standalone_cluster(tmp_path_factory.mktemp("spark")) as running:
        yield running


class ProcessWatch:
    """Looks at the arguments and the environment of all new processes of Spark, again and again.

    Other tests run at the same time, some with credentials in their environment, so only processes that this
    one has started since are looked at.
    """

    def __init__(self, *needles: str) -> None:
        self._needles = needles
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: set[str] = set()
        self.leaks: list[str] = []

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        here, begun = psutil.Process(), time.time()
        while not self._over.wait(0.3):
            for process in here.children(recursive=True):
                try:
                    if process.create_time() < begun:
                        continue
                    arguments = " ".join(process.cmdline())
                    environment = process.environ()
                except (psutil.Error, OSError):
                    continue
                if "spark" not in arguments:
                    continue
                # Connections of this very test are in its environment, and in that of what it starts.
                environment = {k: v for k, v in environment.items() if not k.startswith("AIRFLOW_CONN_")}
                self.seen.add(arguments)
                for needle in self._needles:
                    if needle in arguments or needle in str(environment):
                        self.leaks.append(arguments)


def test_standalone_cluster_reads_and_writes_s3_and_shows_no_secret(
    cluster: SparkCluster,
    s3: S3Server,
    speech: list[Any],
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    connection(monkeypatch, "cluster", {"conn_type": "spark", "host": cluster.master})
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
    connection(monkeypatch, "calls_s3", s3.connection)
    bucket, storage = s3.bucket("calls"), ObjectStorage(s3.config)
    clips = [clip for clip in speech if clip.language == "en"][:4]
    audio = [f"s3://{bucket}/raw/{number} #%20.wav" for number in range(len(clips))]
    for uri, clip in zip(audio, clips, strict=True):
        storage.upload(clip.path, uri)
    options = WhisperOptions(model=str(model_dir), language="en")
    run = write_run(f"s3://{bucket}/staging", audio, options, storage=storage, source=f"s3://{bucket}/raw/")
    # An old copy on the cluster, which must not be the one that runs.
    old = tmp_path / "installed" / "whisper_spark"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise ImportError('the installed copy was imported')")
    events = tmp_path / "events"
    events.mkdir()
    operator = WhisperTranscribeOperator(
        task_id="t",
        manifest=run.manifest_uri,
        source_conn_id="calls_s3",
        conn_id="cluster",
        executor_cores=1,
        executor_memory="512m",
        application_args=["--progress-seconds", 0.2],
        conf={
            **LOOPBACK,
            "spark.executorEnv.PYTHONPATH": str(old.parent),
            "spark.eventLog.enabled": True,
            "spark.eventLog.dir": f"file://{events}",
            "spark.eventLog.compress": False,
        },
    )
    encoded = base64.b64encode(json.dumps(s3.config, sort_keys=True).encode()).decode()
    with ProcessWatch(s3.secret_key, encoded[:40]) as watch:
        done = operator.execute({})

    assert (done["files"], done["ok"], done["transcribed"]) == (4, 4, 4)
    rows = staged_table(run, storage).to_pylist()
    assert sorted(row["audio_uri"] for row in rows) == sorted(audio)
    assert all(row["text"] for row in rows)
    result = read_result(run, storage)
    assert {file.uri.rsplit("/part-", 1)[1].split("-")[1] for file in result.staged} == {"00000", "00001"}

    assert any("CoarseGrainedExecutorBackend" in arguments for arguments in watch.seen)
    assert any("job.py --manifest" in arguments for arguments in watch.seen)
    assert watch.leaks == []
    log = "".join(capfd.readouterr())
    assert "whisper: done in" in log
    # The executors are other processes, whose output goes elsewhere.
    assert re.search(
        r"whisper: task [01]: [0-2] of 2 files, \d+ s of audio, [\d.]+x real time, queue \d+ %", log
    )
    assert re.search(r"whisper: all tasks: \d of 4 files, .* [12] of 2 tasks running", log)
    assert re.search(r"whisper: \d+ windows, \d+ of them decoded again", log)
    assert 0 < done["device_busy"] <= 1
    assert 0 < done["task_seconds"] <= 2 * done["transcribe_seconds"]
    assert done["gpu_seconds"] is None
    assert re.search(
        r"whisper: [\d.]+ hours of audio in \d+ s: .* times real time, [\d.]+ hours of Spark tasks", log
    )
    assert result.stage_seconds["encode"] > 0
    shown = {"the task log": log, "XCom": json.dumps(done)}
    shown |= {str(path): path.read_text(errors="replace") for path in files_below(cluster.folder, events)}
    staged = [uri for batch in storage.list(run.run_uri) for uri in batch.column("audio_uri").to_pylist()]
    shown |= {uri: storage.read_bytes(uri).decode(errors="replace") for uri in staged}
    assert any("spark.whisper.secret.source" in text for text in shown.values()), "no event log was seen"
    for worker in ("0", "1"):
        assert any(Path(name).is_relative_to(cluster.folder / "work" / worker) for name in shown)
    assert [name for name, text in shown.items() if s3.secret_key in text or encoded[:40] in text] == []


def test_cuda_gives_each_task_a_gpu_and_the_cores_of_its_executor(
    cluster: SparkCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection(monkeypatch, "cluster", {"conn_type": "spark", "host": cluster.master})
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
    options = WhisperOptions(model="base", device="cuda")
    run = write_run(f"file://{tmp_path}/staging", make_audio(tmp_path / "audio", ["gpu", "gpu"]), options)
    operator = WhisperTranscribeOperator(
        task_id="t",
        manifest=run.manifest_uri,
        conn_id="cluster",
        executor_cores=1,
        executor_memory="512m",
        conf={**LOOPBACK, "spark.cores.max": 1},
        py_files=str(STANDIN),
        application_args=STANDIN_ARGUMENTS,
    )
    done = operator.execute({})
    assert done["ok"] == 2
    assert set(staged_table(run).column("text").to_pylist()) == {"GPU ['7'], 1 cores"}
    # One task at a time, each with a whole GPU.
    assert done["gpu_seconds"] == done["task_seconds"]
    assert 0 < done["task_seconds"] <= done["transcribe_seconds"]


def test_check_of_a_cluster_names_what_each_executor_lacks(
    cluster: SparkCluster,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The workers pretend to have a GPU: there is no driver behind it.
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a GPU")
    connection(monkeypatch, "cluster", {"conn_type": "spark", "host": cluster.master})
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
    operator = CheckClusterOperator(
        task_id="check",
        options={"model": str(model_dir), "device": "cuda"},
        staging=f"file://{tmp_path}/staging",
        conn_id="cluster",
        executor_cores=1,
        executor_memory="512m",
        conf={**LOOPBACK, "spark.cores.max": 2},
    )
    with pytest.raises(AirflowException) as caught:
        operator.execute({})
    assert "The first, NVIDIA driver on host 127.0.0.1: no NVIDIA driver was found" in str(caught.value)
    # The cluster may be put right, or be busy: a retry may help.
    assert not isinstance(caught.value, AirflowFailException)
    log = "".join(capfd.readouterr())
    assert "executors            2 on 1 hosts, each with 1 core, 512 MiB of memory and 1 GPU" in log, log
    assert "host 127.0.0.1: executor 0 (GPU 7), executor 1 (GPU 7)" in log
    assert re.search(r"ok +packages +pyspark 4", log)
    assert re.search(r"ok +staging .* can be written, read and deleted from", log)
    # No GPU, no clip: the CPU would not show what the GPU does.
    assert "known clip" not in log


def test_executor_that_is_larger_than_any_worker_is_told_while_the_job_waits(
    cluster: SparkCluster,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    connection(monkeypatch, "cluster", {"conn_type": "spark", "host": cluster.master})
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
    # Without an end of its own, the job would wait for such a worker for ever.
    script = tmp_path / "spark-submit"
    script.write_text(
        f"""#!{sys.executable}
import subprocess, sys
command = [{spark_binary("spark-submit")!r}, *sys.argv[1:]]
job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
for line in job.stdout:
    print(line, end="", flush=True)
    if "no executor has started" in line:
        job.terminate()
sys.exit(job.wait())
"""
    )
    script.chmod(0o755)
    operator = WhisperTranscribeOperator(
        task_id="t",
        manifest=run.manifest_uri,
        conn_id="cluster",
        executor_cores=8,
        executor_memory="512m",
        spark_binary=str(script),
        conf={**LOOPBACK, "spark.master.ui.port": cluster.ui_port},
    )
    with pytest.raises(AirflowException):
        operator.execute({})
    log = "".join(capfd.readouterr())
    assert (
        "whisper: no executor has started yet: an executor needs 8 cores, 512 MiB of memory and 0 GPUs" in log
    )
    assert "the largest, 127.0.0.1, has 1 core" in log


def test_master_of_a_cluster_tells_what_its_workers_have(cluster: SparkCluster) -> None:
    place = {"spark.master": cluster.master, "spark.master.ui.port": str(cluster.ui_port)}
    workers = standalone_workers(place)
    assert workers is not None
    assert [(worker.total.cores, worker.total.memory, worker.total.gpus) for worker in workers] == [
        (1, 1024, 1)
    ] * 2
    told = why_no_executor({**place, "spark.executor.cores": "8"})
    assert "the largest, 127.0.0.1, has 1 core, 1,024 MiB of memory and 1 GPU" in told


def files_below(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file())
