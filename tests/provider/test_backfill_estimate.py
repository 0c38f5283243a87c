"""``airflow whisper estimate``: the total cost of a backfill, without a run."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, CronDataIntervalTimetable, Param
from docs_blocks import ROOT, blocks, commands, named_block
from recordings import record
from transcripts import make_transcript_rows, stage_run

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.backfill_estimate import backfill_estimates, estimate_command
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table.publish import register_run
from whisper_spark.staging.result import read_result
from whisper_spark.storage.objects import ObjectStorage

FIRST, LAST = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 3, tzinfo=UTC)


def calls_dag(folder: Path, schedule: Any = CronDataIntervalTimetable("@daily", timezone="UTC")) -> DAG:  # noqa: B008
    with DAG(
        "calls", schedule=schedule, start_date=FIRST, params={"pattern": Param("*", type="string")}
    ) as dag:
        transcribe_partition(
            source=f"{folder}/dt={{{{ ds }}}}/",
            partition={"dt": "{{ ds }}"},
            table="speech.transcripts",
            staging=f"{folder}_staging",
            pattern="{{ params.pattern }}",
        )
    return dag


@pytest.fixture
def calls(tmp_path: Path, catalog_env: SimpleNamespace) -> Path:
    """Two days of audio, and a day without any, which exists."""
    record(tmp_path / "calls/dt=2026-11-01/a.wav", 60)
    record(tmp_path / "calls/dt=2026-11-02/a.wav", 120)
    record(tmp_path / "calls/dt=2026-11-02/b.wav", 180)
    return tmp_path / "calls"


def test_each_run_of_the_backfill_is_estimated_and_nothing_is_written(calls: Path) -> None:
    found = [*backfill_estimates(calls_dag(calls), FIRST, LAST, {})]
    assert [one.run[:10] for one in found] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert [one.estimate and one.estimate.files for one in found] == [1, 2, 0]
    hours = [one.estimate.audio_hours for one in found if one.estimate]
    assert hours == pytest.approx([1 / 60, 5 / 60, 0], abs=1e-3)
    assert "no audio" in found[2].outcome
    assert not Path(f"{calls}_staging").exists()


def test_params_of_the_backfill_count(calls: Path) -> None:
    found = [*backfill_estimates(calls_dag(calls), FIRST, LAST, {"pattern": "b*"})]
    assert [one.estimate and one.estimate.files for one in found] == [None, 1, 0]
    assert "DiscoveryError: there are 1 objects under" in found[0].outcome


@pytest.mark.parametrize("schedule", [None, "@once"])
def test_dag_that_cannot_be_backfilled_is_refused(calls: Path, schedule: str | None) -> None:
    with pytest.raises(ValueError, match="has no periodic schedule"):
        [*backfill_estimates(calls_dag(calls, schedule), FIRST, LAST, {})]


def test_dag_without_discovery_is_refused() -> None:
    with pytest.raises(ValueError, match="has no discover task"):
        [*backfill_estimates(DAG("other", schedule="@daily"), FIRST, LAST, {})]


def test_command_says_in_one_line_why_a_dag_has_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    def dag(bundles: Any, dag_id: str) -> DAG:
        return DAG(dag_id, schedule="@daily")

    monkeypatch.setattr("airflow.utils.cli.get_bagged_dag", dag)
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "client")
    monkeypatch.setattr(logging.getLogger("airflow.task"), "setLevel", lambda level: None)
    arguments = {
        "dag_id": "other",
        "bundle_name": None,
        "from_date": FIRST,
        "to_date": LAST,
        "output": "plain",
    }
    with pytest.raises(SystemExit, match="'other' has no discover task"):
        estimate_command(Namespace(dag_run_conf=None, **arguments))
    with pytest.raises(SystemExit, match="Expecting"):
        estimate_command(Namespace(dag_run_conf="{model: base}", **arguments))


def recording(path: Path, seconds: int) -> None:
    """A WAV file of 16 bits and 8 kHz, of which only the header takes space on the disk."""
    record(path, 0)
    os.truncate(path, 44 + 16_000 * seconds)


def publish_a_run(folder: Path, options: WhisperOptions) -> None:
    """A run of the day before: an hour of audio in 30 seconds, on two GPUs."""
    rows = make_transcript_rows(
        ["s3://x/a.wav"], partition={"dt": "2026-10-31"}, fingerprint=options.fingerprint()
    )
    run = stage_run(folder, ["s3://x/a.wav"], partition={"dt": "2026-10-31"}, rows=rows, options=options)
    result = dataclasses.replace(
        read_result(run, ObjectStorage()),
        transcribed=1,
        transcribed_audio_seconds=3600.0,
        transcribe_seconds=30.0,
        task_seconds=60.0,
        gpu_seconds=60.0,
    )
    Path(run.result_uri.removeprefix("file://")).write_text(result.to_json())
    assert register_run(run, ObjectStorage(), open_catalog(None))


@pytest.mark.airflow
def test_command_in_the_docs_prints_what_the_docs_say(
    tmp_path: Path, catalog_env: SimpleNamespace, airflow_home: Path
) -> None:
    page = ROOT / "docs" / "cost.md"
    (example,) = [block.text for block in blocks(page) if block.language == "python"]
    example = example.replace('"s3://', f'"{tmp_path}/').replace('source_conn_id="calls_s3",', "")
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "calls.py").write_text(example.replace('catalog_conn_id="lake",', ""))
    raw = tmp_path / "calls" / "raw"
    for name, seconds in (("01/a", 1200), ("01/b", 2400), ("02/a", 3600)):
        recording(raw / f"dt=2026-11-{name}.wav", seconds)
    publish_a_run(tmp_path / "staging", WhisperOptions(model="large-v3-turbo"))
    ((program, *arguments),) = commands(named_block("estimate-command"))
    assert program == "airflow"
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.replace(f"{tmp_path}/", "s3://").splitlines()]
    printed = printed[printed.index([*named_block("estimate-output").text.splitlines()[0].split()]) :]
    assert printed == [line.split() for line in named_block("estimate-output").text.splitlines()]
