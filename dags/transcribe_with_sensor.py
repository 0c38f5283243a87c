"""Once a day, wait for audio that the table does not contain yet, and transcribe its partitions.

Use it if runs should start at fixed times and process only the partitions with new audio, however old they
are. The sensor is deferrable, so it occupies no worker slot. A day without new audio ends as skipped.

Without configuration it transcribes the recordings of 2026-11-01 that come with the package. For your own
audio, set the environment variables named under "settings" below, above all ``AIRFLOW_WHISPER_SOURCE``
(``s3://calls/raw/dt={dt}/``), or copy this file and write the values into it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, task_group

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.examples import DEMO_AUDIO
from airflow_whisper.sensors.audio import NewAudioSensor

# --- settings -----------------------------------------------------------------------------------------------
# Write your values here, or set the environment variables on the scheduler, the DAG processor, the triggerer
# and the workers.


def env(name: str, default: Any = None) -> Any:
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


# Audio of one partition, with placeholders for the partition keys: s3://calls/raw/dt={dt}/
SOURCE = env("SOURCE", f"{DEMO_AUDIO}/dt={{dt}}/")
# namespace.table
TABLE = env("TABLE", "speech.transcripts")
# Name, path or URI of the model.
MODEL = env("MODEL", WhisperOptions.model)
HOME = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
STAGING = env("STAGING", f"{HOME}/whisper_staging")
# Seconds between two polls of the source.
POLL_SECONDS = float(env("POLL_INTERVAL", "60"))
WHERE = {
    "table": TABLE,
    # A URI prefix that workers and executors can write to.
    "staging": STAGING,
    # Airflow connections. Without them the tasks use ambient credentials and the embedded catalog.
    "source_conn_id": env("SOURCE_CONN_ID"),
    "staging_conn_id": env("STAGING_CONN_ID"),
    "catalog_conn_id": env("CATALOG_CONN_ID"),
    "model_conn_id": env("MODEL_CONN_ID"),
    "spark_conn_id": env("SPARK_CONN_ID", "spark_default"),
    # Airflow pool of the Spark task: one slot for each job that may run at a time.
    "pool": env("POOL", "default_pool"),
    # Spark configuration as a JSON object.
    "spark": {"conf": json.loads(env("SPARK_CONF", "{}"))},
}
# Retries of all tasks, with exponential backoff.
RETRIES = {
    "retries": int(env("RETRIES", "3")),
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(hours=1),
}
# ------------------------------------------------------------------------------------------------------------


with DAG(
    "transcribe_with_sensor",
    description="Wait for new audio, then transcribe its partitions",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Each run looks for all missing audio, so a concurrent second run would find the same files.
    max_active_runs=1,
    default_args=RETRIES,
    tags=["whisper"],
):
    arrived = NewAudioSensor(
        task_id="arrived",
        source=SOURCE,
        table=TABLE,
        source_conn_id=WHERE["source_conn_id"],
        catalog_conn_id=WHERE["catalog_conn_id"],
        poke_interval=POLL_SECONDS,
        timeout=timedelta(hours=12),
        soft_fail=True,
        deferrable=True,
    )

    @task_group
    def partition(source, partition):
        transcribe_partition(
            source=source,
            partition=partition,
            options=WhisperOptions(model=MODEL),
            on_missing_source="skip",
            outlets=[Asset(TABLE)],
            **WHERE,
        )

    partition.expand_kwargs(arrived.output)
