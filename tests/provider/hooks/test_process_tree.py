"""A stopped transcribe task leaves no process behind, and nothing to do twice."""

from __future__ import annotations

import json
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
import pytest
from airflow.exceptions import AirflowException
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout
from spark_cluster import spark_binary, standalone_cluster, write_run
from standin_engine import LOG_SUFFIX

from airflow_whisper.hooks.process_tree import ProcessTree
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from whisper_spark.contract import Run, WhisperOptions
from whisper_spark.staging.result import staged_files
from whisper_spark.storage.objects import ObjectStorage

STANDIN = Path(__file__).parents[2] / "support" / "standin_engine.py"
ARGUMENTS = ["--engine", "standin_engine:get_engine", "--flush-seconds", 0.3, "--tasks", 1]
ALLOWED_SECONDS = 30

DAG = """
from datetime import datetime
from airflow.sdk import DAG
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator

with DAG("stopped", schedule=None, start_date=datetime(2026, 11, 1)):
    WhisperTranscribeOperator(task_id="transcribe", **{arguments!r})
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two files that are done at once, and one that takes an hour unless the file ``awake`` is there."""
    folder = tmp_path / "audio"
    folder.mkdir()
    quick = "quick " + "." * 500  # a task takes its largest files first
    for name, order in (("0", quick), ("1", quick), ("2", f"sleep-unless {tmp_path}/awake")):
        (folder / f"{name}.wav").write_text(order)
    return write_run(
        f"file://{tmp_path}/staging", [f"file://{f}" for f in folder.iterdir()], WhisperOptions()
    )


def arguments(run: Run, **more: Any) -> dict[str, Any]:
    return {
        "manifest": run.manifest_uri,
        "py_files": str(STANDIN),
        "application_args": ARGUMENTS,
        **more,
    }


def wait_for(condition: Any, what: str, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.05)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def busy(run: Run) -> bool:
    """The quick files are durable and the slow one is being worked on."""
    slow = Path(run.manifest_uri.removeprefix("file://")).parents[5] / "audio" / f"2.wav{LOG_SUFFIX}"
    return slow.exists() and sum(f.rows for f in staged_files(ObjectStorage(), run.rows_uri)) == 2


def finish(run: Run, folder: Path) -> dict[str, Any]:
    """Run the task again, with the slow file made quick."""
    (folder / "awake").touch()
    return WhisperTranscribeOperator(task_id="t", **arguments(run, conf={"spark.ui.enabled": False})).execute(
        {}
    )


@pytest.mark.jvm
@pytest.mark.airflow
def test_sigterm_ends_spark_with_its_python_workers_and_the_next_run_goes_on(
    run: Run, airflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sites wrap spark-submit in scripts; a kill that reaches only the script leaves a running job behind.
    wrapper = tmp_path / "spark-submit"
    wrapper.write_text(f'#!/bin/sh\n{spark_binary("spark-submit")} "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "stopped.py").write_text(DAG.format(arguments=arguments(run, spark_binary=str(wrapper))))
    with (tmp_path / "log").open("wb") as log:
        task = subprocess.Popen(
            [sys.executable, "-m", "airflow", "dags", "test", "stopped"],
            stdout=log,
            stderr=log,
            env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(dags)},
            start_new_session=True,
        )
    try:
        wait_for(lambda: task.poll() is not None or busy(run), "busy job")
        assert task.poll() is None, (tmp_path / "log").read_text()[-5000:]
        family = psutil.Process(task.pid).children(recursive=True)
        names = [process.name() for process in family]
        assert names.count("java") == 1, names
        groups = {os.getpgid(process.pid) for process in family} - {task.pid}
        assert groups, "the Python workers share the group of the task: a signal to it would do"
        task.send_signal(signal.SIGTERM)
        start = time.monotonic()
        wait_for(lambda: not any(map(runs, family)), "end of the job", ALLOWED_SECONDS)
        print(f"from SIGTERM to no process left: {time.monotonic() - start:.1f} s")
        task.wait(60)
    finally:
        ProcessTree(task.pid).end(0)
    text = (tmp_path / "log").read_text()
    assert re.search(r"The Spark job has ended; \d of its processes had to be killed", text)
    done = finish(run, tmp_path)
    assert (done["ok"], done["resumed"], done["transcribed"]) == (3, 2, 1)


@pytest.mark.jvm
def test_timeout_ends_executors_and_their_python_workers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spark").mkdir()
    with standalone_cluster(tmp_path / "spark", workers=1) as cluster:
        value = json.dumps({"conn_type": "spark", "host": cluster.master})
        monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", value)
        monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1")
        operator = WhisperTranscribeOperator(
            task_id="t",
            **arguments(
                run,
                executor_memory="512m",
                conf={
                    "spark.pyspark.python": sys.executable,
                    "spark.driver.bindAddress": "127.0.0.1",
                    "spark.driver.host": "127.0.0.1",
                },
            ),
        )
        before = set(psutil.Process().children(recursive=True))
        seen: set[psutil.Process] = set()

        def fire() -> None:
            """Raise the alarm of ``execution_timeout`` as soon as rows are durable."""
            wait_for(lambda: busy(run), "busy job")
            seen.update(psutil.Process().children(recursive=True))
            os.kill(os.getpid(), signal.SIGALRM)

        thread = threading.Thread(target=fire)
        thread.start()
        # As airflow.sdk.execution_time.task_runner runs a task that has a timeout.
        with pytest.raises(AirflowTaskTimeout), timeout(600):
            operator.execute({})
        start = time.monotonic()
        operator.on_kill()
        thread.join()
        job = seen - before
        # driver (JVM and Python), executor, daemon of the Python workers, worker
        assert len(job) >= 5, job
        wait_for(lambda: not any(map(runs, job)), "end of the executors", ALLOWED_SECONDS)
        print(f"from the timeout to no process left: {time.monotonic() - start:.1f} s")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[1]"}))
    done = finish(run, tmp_path)
    assert (done["ok"], done["resumed"], done["transcribed"]) == (3, 2, 1)


def test_task_that_is_stopped_early_starts_no_spark(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
    binary = tmp_path / "spark-submit"
    binary.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    binary.chmod(0o755)
    operator = WhisperTranscribeOperator(task_id="t", **arguments(run, spark_binary=str(binary)))
    operator.on_kill()
    with pytest.raises(AirflowException, match="stopped before Spark was started"):
        operator.execute({})
    assert not (tmp_path / "started").exists()


# --- processes ------------------------------------------------------------------------------------------

STUBBORN = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
SAY = """os.write(1, b"%d\\n" % os.getpid()); time.sleep(600)"""  # a line in one piece


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[str]]:
    """A shell with a child that leads another process group and has a child itself; both ignore SIGTERM."""
    grandchild = f"{STUBBORN} os.setpgid(0, 0); (os.fork() or True); {SAY}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"'{sys.executable}' -c '{grandchild}'; exit 1"], stdout=subprocess.PIPE, text=True
    )
    yield process
    ProcessTree(process.pid).end(0)
    process.wait()


def test_whoever_ignores_the_polite_request_is_killed(shell: subprocess.Popen[str]) -> None:
    assert shell.stdout is not None
    members = [psutil.Process(int(shell.stdout.readline())) for _ in range(2)]
    assert all(map(runs, members))
    assert ProcessTree(shell.pid).end(grace_seconds=0.2) == 2
    assert not any(map(runs, members))


def test_descendants_are_found_after_their_parents_have_died(shell: subprocess.Popen[str]) -> None:
    assert shell.stdout is not None
    members = [psutil.Process(int(shell.stdout.readline())) for _ in range(2)]
    tree = ProcessTree(shell.pid)
    tree.living()
    shell.kill()
    leader = next(member for member in members if os.getpgid(member.pid) == member.pid)
    leader.kill()
    assert tree.end(grace_seconds=0.2) == 1
    assert not any(map(runs, members))


def test_end_of_nothing_is_no_error() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    assert ProcessTree(done.pid).end() == 0
