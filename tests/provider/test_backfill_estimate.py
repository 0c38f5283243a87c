"""``airflow whisper estimate``: the total cost of a backfill, without a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, CronDataIntervalTimetable, Param

from airflow_whisper import transcribe_partition
from airflow_whisper.backfill_estimate import backfill_estimates

FIRST, LAST = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 3, tzinfo=UTC)


def record(path: Path, seconds: int) -> None:
    """Silence of 8 kHz and 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(b"\0\0" * 8_000 * seconds)


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


@pytest.mark.airflow
def test_command_prints_one_total(calls: Path, airflow_home: Path) -> None:
    folder = airflow_home / "dags"
    folder.mkdir()
    (folder / "calls.py").write_text(
        "from datetime import UTC, datetime\n"
        "from airflow.sdk import DAG, CronDataIntervalTimetable\n"
        "from airflow_whisper import transcribe_partition\n"
        "with DAG('calls', schedule=CronDataIntervalTimetable('@daily', timezone='UTC'),\n"
        "         start_date=datetime(2026, 1, 1, tzinfo=UTC)):\n"
        f"    transcribe_partition(source='{calls}/dt={{{{ ds }}}}/', partition={{'dt': '{{{{ ds }}}}'}},\n"
        f"        table='speech.transcripts', staging='{calls}_staging')\n"
    )
    command = "whisper estimate --dag-id calls --from-date 2026-11-01 --to-date 2026-11-03 --output json"
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *command.split()],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout[done.stdout.index("[{") :])
    assert [line["files"] for line in lines] == ["1", "2", "0", "3"]
    assert lines[-1]["run"] == "total"
    assert float(lines[-1]["audio_hours"]) == pytest.approx(0.1, rel=0.01)
    assert lines[-1]["gpu_hours"] == "?"
