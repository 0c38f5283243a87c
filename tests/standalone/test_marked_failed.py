"""A person marks a running transcribe task as failed in the web interface, and clears it later."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from live_airflow import wait_for
from live_site import Site
from spark_cluster import write_run
from standin_engine import LOG_SUFFIX

from whisper_spark.contract import WhisperOptions
from whisper_spark.staging.result import staged_files
from whisper_spark.storage.objects import ObjectStorage

pytestmark = pytest.mark.timeout(900)

ALLOWED_SECONDS = 30

DAG_ID = "stopped"


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_marking_a_running_task_failed_ends_spark_and_clearing_it_goes_on(site: Site, tmp_path: Path) -> None:
    airflow, audio = site.airflow, tmp_path / "audio"
    audio.mkdir()
    quick = "quick " + "." * 500  # a task takes its largest files first
    for name, order in (("0", quick), ("1", quick), ("2", f"sleep-unless {tmp_path}/awake")):
        (audio / f"{name}.wav").write_text(order)
    run = write_run(f"file://{tmp_path}/staging", [f"file://{f}" for f in audio.iterdir()], WhisperOptions())
    started = audio / f"2.wav{LOG_SUFFIX}"

    def busy() -> bool:
        return started.exists() and sum(f.rows for f in staged_files(ObjectStorage(), run.rows_uri)) == 2

    with site.unpaused(DAG_ID):
        run_id = airflow.trigger(DAG_ID, {"manifest": run.manifest_uri})["dag_run_id"]
        task = f"dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/transcribe"
        wait_for("a job at work", busy, 300)
        assert airflow.get(f"{task}/links")["extra_links"]["Spark UI"].startswith("http://")
        (jvm,) = (
            process
            for process in psutil.process_iter()
            if process.name() == "java" and run.manifest_uri in process.cmdline()
        )
        job = [jvm, *jvm.children(recursive=True)]
        assert {os.getpgid(process.pid) for process in job} - {os.getpgid(jvm.pid)}, "no Python workers"
        start = time.monotonic()
        airflow.send("PATCH", task, {"new_state": "failed"})
        wait_for("the end of the job", lambda: not any(map(runs, job)), ALLOWED_SECONDS, every=0.05)
        print(f"from 'mark as failed' to no process left: {time.monotonic() - start:.1f} s")

        (tmp_path / "awake").touch()
        clear = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["transcribe"], "only_failed": False}
        airflow.send("POST", f"dags/{DAG_ID}/clearTaskInstances", clear)
        wait_for("the second try", lambda: airflow.states(DAG_ID, run_id) == {"transcribe": "success"}, 300)
        done = airflow.get(f"{task}/xcomEntries/return_value", deserialize="true")["value"]
        assert (done["ok"], done["resumed"], done["transcribed"]) == (3, 2, 1)
        assert "/history/local-" in airflow.get(f"{task}/links")["extra_links"]["Spark UI"]
