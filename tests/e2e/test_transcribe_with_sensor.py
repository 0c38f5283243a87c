"""The example DAG that waits for audio, on a real S3 server: the sensor finds the partitions that need work.

Each fixture is one more run: first_run -> late_file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dag_runs import DagRun, run_dag
from servers import SECRET_KEY, S3Server
from speech import Clip

pytestmark = pytest.mark.timeout(900)

DAG_ID = "transcribe_with_sensor"
DAYS = ("2026-11-01", "2026-11-02")
TASKS = ("discover", "transcribe", "validate", "register")


@dataclass(frozen=True)
class Calls:
    """Two days of calls in a bucket, and the table of an embedded catalog."""

    s3: S3Server
    bucket: str
    home: Path
    warehouse: Path
    environment: dict[str, str]
    clips: list[Clip]

    def put(self, key: str, clip: Clip) -> None:
        self.s3.client().put_object(Bucket=self.bucket, Key=f"raw/{key}", Body=clip.path.read_bytes())

    def folder(self, dt: str) -> dict[str, Any]:
        return {"source": f"s3://{self.bucket}/raw/dt={dt}/", "partition": {"dt": dt}}

    def run(self) -> DagRun:
        run = run_dag(self.home, DAG_ID, self.environment)
        assert run.returncode == 0, run.log[-8000:]
        assert SECRET_KEY not in run.log
        return run

    def texts(self) -> dict[str, str]:
        from pyiceberg.catalog.sql import SqlCatalog

        catalog = SqlCatalog("whisper", uri=f"sqlite:///{self.warehouse}/catalog.db")
        rows = catalog.load_table("speech.transcripts").scan().to_arrow().to_pylist()
        return {"/".join(row["audio_uri"].split("/")[-2:]): row["text"] for row in rows}


@pytest.fixture(scope="module")
def calls(
    s3: S3Server,
    airflow_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
    librivox: list[Clip],
    model_dir: Path,
) -> Calls:
    bucket, warehouse = s3.bucket("calls"), tmp_path_factory.mktemp("warehouse")
    environment = {
        "AIRFLOW_WHISPER_SOURCE": f"s3://{bucket}/raw/dt={{dt}}/",
        "AIRFLOW_WHISPER_STAGING": f"s3://{bucket}/staging/",
        "AIRFLOW_WHISPER_MODEL": str(model_dir),
        "AIRFLOW_WHISPER_SOURCE_CONN_ID": "calls",
        "AIRFLOW_WHISPER_WAREHOUSE": str(warehouse),
        "AIRFLOW_WHISPER_RETRIES": "0",
        "AIRFLOW_WHISPER_POLL_INTERVAL": "1",
        "AIRFLOW_WHISPER_SPARK_CONF": json.dumps({"spark.ui.enabled": "false"}),
        "AIRFLOW_CONN_CALLS": s3.connection,
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
    }
    return Calls(s3, bucket, airflow_home, warehouse, environment, librivox)


@pytest.fixture(scope="module")
def first_run(calls: Calls) -> DagRun:
    for dt, clip in zip(DAYS, calls.clips, strict=False):
        calls.put(f"dt={dt}/a.wav", clip)
    return calls.run()


@pytest.fixture(scope="module")
def late_file(calls: Calls, first_run: DagRun) -> DagRun:
    calls.put(f"dt={DAYS[0]}/late.wav", calls.clips[2])
    return calls.run()


def test_first_run_transcribes_each_day_that_has_audio(first_run: DagRun, calls: Calls) -> None:
    assert first_run.states == {
        "arrived": "success",
        **{f"{task}[{i}]": "success" for task in TASKS for i in range(2)},
    }
    assert first_run.xcoms["arrived.return_value"] == [calls.folder(dt) for dt in DAYS]
    assert sorted(event["partition"] for event in first_run.events) == [f"dt={dt}" for dt in DAYS]


def test_late_file_starts_work_on_its_day_alone(late_file: DagRun, calls: Calls) -> None:
    assert late_file.xcoms["arrived.return_value"] == [calls.folder(DAYS[0])]
    assert late_file.states == {"arrived": "success", **{f"{task}[0]": "success" for task in TASKS}}
    assert late_file.xcoms["discover[0].counts"]["new"] == 1
    texts = calls.texts()
    assert set(texts) == {f"dt={DAYS[0]}/a.wav", f"dt={DAYS[0]}/late.wav", f"dt={DAYS[1]}/a.wav"}
    assert all(texts.values())
