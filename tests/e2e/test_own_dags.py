"""DAGs as users write them: the one in the README word for word, and a mapped task group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dag_runs import run_dag
from docs_blocks import named_block
from servers import S3Server
from speech import Clip

pytestmark = pytest.mark.timeout(600)

TASKS = ("discover", "transcribe", "validate", "register")

MAPPED = """
import os
from datetime import datetime

from airflow.sdk import DAG, task, task_group
from airflow_whisper import WhisperOptions, transcribe_partition

BUCKET = os.environ["BUCKET"]

with DAG("hours", schedule=None, start_date=datetime(2026, 11, 1)):

    @task
    def partitions():
        return [
            {"source": f"s3://{BUCKET}/hour={hour}/", "partition": {"dt": "2026-11-01", "hour": hour}}
            for hour in ("12", "13")
        ]

    @task_group
    def one_hour(source, partition):
        transcribe_partition(
            source=source,
            partition=partition,
            table="speech.hourly",
            staging=f"s3://{BUCKET}/staging/",
            options=WhisperOptions(model=os.environ["MODEL"]),
            source_conn_id="calls_s3",
            on_missing_source="skip",
            export=f"s3://{BUCKET}/subtitles/{{partition}}/{{name}}.{{format}}",
        )

    one_hour.expand_kwargs(partitions())
"""


@pytest.fixture
def environment(s3: S3Server, airflow_home: Path, tmp_path: Path) -> dict[str, str]:
    """Of an Airflow whose DAGs folder is this test's own."""
    (tmp_path / "dags").mkdir()
    return {
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW_CONN_CALLS_S3": s3.connection,
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        "AIRFLOW_WHISPER_WAREHOUSE": str(tmp_path / "warehouse"),
    }


def add_dag(environment: dict[str, str], name: str, text: str) -> None:
    Path(environment["AIRFLOW__CORE__DAGS_FOLDER"], f"{name}.py").write_text(text)


def test_readme_dag_publishes_a_partition(
    s3: S3Server, airflow_home: Path, environment: dict[str, str], librivox: list[Clip], model_dir: Path
) -> None:
    from pyiceberg.catalog.rest import RestCatalog

    text = named_block("readme-dag").text
    # The only change: large-v3-turbo is 1.6 GB on a model hub.
    add_dag(environment, "calls", text.replace('"large-v3-turbo"', repr(str(model_dir))))
    lake = s3.lake()
    client = s3.client()
    client.create_bucket(Bucket="calls")
    audio = librivox[1].path.read_bytes()
    client.put_object(Bucket="calls", Key="raw/dt=2026-11-01/a.wav", Body=audio)
    run = run_dag(
        airflow_home,
        "calls",
        {**environment, "AIRFLOW_CONN_LAKE": lake.connection},
        logical_date="2026-11-01T00:00:00+00:00",
    )
    assert run.returncode == 0, run.log[-8000:]
    assert run.states == dict.fromkeys(TASKS, "success")
    table = RestCatalog("lake", **lake.properties).load_table("speech.transcripts")
    rows = table.scan().to_arrow().to_pylist()
    assert [(row["audio_uri"], row["dt"]) for row in rows] == [
        ("s3://calls/raw/dt=2026-11-01/a.wav", "2026-11-01")
    ]


def test_task_group_can_be_mapped_over_partitions(
    s3: S3Server, airflow_home: Path, environment: dict[str, str], librivox: list[Clip], model_dir: Path
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    bucket = s3.bucket("hours")
    s3.client().put_object(Bucket=bucket, Key="hour=13/a.wav", Body=librivox[1].path.read_bytes())
    add_dag(environment, "hours", MAPPED)
    run = run_dag(airflow_home, "hours", {**environment, "BUCKET": bucket, "MODEL": str(model_dir)})
    assert run.returncode == 0, run.log[-8000:]
    for task in TASKS:
        assert (run.states[f"{task}[0]"], run.states[f"{task}[1]"]) == ("skipped", "success")
    # Not skipped with the others, because an earlier export may have failed.
    assert (run.states["export[0]"], run.states["export[1]"]) == ("success", "success")
    listed = s3.client().list_objects_v2(Bucket=bucket, Prefix="subtitles/dt=2026-11-01/")["Contents"]
    assert sorted(Path(item["Key"]).suffix for item in listed) == [".json", ".srt", ".txt", ".vtt"]
    assert {Path(item["Key"]).parent.name for item in listed} == {"hour=13"}
    folder = environment["AIRFLOW_WHISPER_WAREHOUSE"]
    catalog = SqlCatalog("whisper", uri=f"sqlite:///{folder}/catalog.db")
    rows: list[dict[str, Any]] = catalog.load_table("speech.hourly").scan().to_arrow().to_pylist()
    assert [(row["dt"], row["hour"], row["status"]) for row in rows] == [("2026-11-01", "13", "ok")]
