"""Asset partitions: one DAG finds partitions with new audio, another transcribes each in a separate run.

::

    discover_partitions  (every hour)     adds partition keys to the asset of the audio: dt=2026-11-01/hour=13
          │
          ▼  one run for each partition key
    transcribe_partitioned                transcribes that partition; the table's asset gets the same key
          │
          ▼
    transcripts_consumer_partitioned      see transcripts_consumer.py

The partition key is the partition in Hive form. Airflow shows it with each run. To transcribe one partition
manually, trigger ``transcribe_partitioned`` and enter its key in the field "Partition Key".

The environment variables are named under "settings" below.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.examples import DEMO_AUDIO
from airflow_whisper.sensors.audio import NewAudioSensor
from whisper_spark.contract import parse_partition_path, partition_path

# --- settings -----------------------------------------------------------------------------------------------
# Write your values here, or set the environment variables on the scheduler, the DAG processor, the triggerer
# and the workers.


def env(name: str, default: Any = None) -> Any:
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


# Audio of one partition, with placeholders for the partition keys: s3://calls/raw/dt={dt}/hour={hour}/
SOURCE = env("PARTITIONED_SOURCE", f"{DEMO_AUDIO}/dt={{dt}}/hour={{hour}}/")
# namespace.table
TABLE = env("PARTITIONED_TABLE", "speech.transcripts_by_hour")
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

AUDIO = Asset("audio_by_hour")


def source_of(partition_key: str) -> str:
    return SOURCE.format_map(parse_partition_path(partition_key))


with DAG(
    "discover_partitions",
    description="New audio in object storage -> a partition key for each partition that has any",
    doc_md=__doc__,
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["whisper"],
):
    arrived = NewAudioSensor(
        task_id="arrived",
        source=SOURCE,
        table=TABLE,
        source_conn_id=WHERE["source_conn_id"],
        catalog_conn_id=WHERE["catalog_conn_id"],
        poke_interval=POLL_SECONDS,
        # The timeout is shorter than the schedule interval. An hour without new audio ends as skipped.
        timeout=timedelta(minutes=50),
        soft_fail=True,
        deferrable=True,
    )

    @task(outlets=[AUDIO])
    def add_partition_keys(found: list[dict[str, Any]], *, outlet_events: Any) -> list[str]:
        keys = [partition_path(entry["partition"]) for entry in found]
        outlet_events[AUDIO].add_partitions(keys)
        return keys

    add_partition_keys(arrived.output)

with DAG(
    "transcribe_partitioned",
    description="Audio of one partition key -> one partition of transcripts",
    doc_md=__doc__,
    schedule=PartitionedAssetTimetable(assets=AUDIO),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=8,
    default_args=RETRIES,
    user_defined_macros={"source_of": source_of, "parse": parse_partition_path},
    tags=["whisper"],
):
    transcribe_partition(
        source="{{ source_of(partition_key) }}",
        partition={
            "dt": "{{ parse(partition_key)['dt'] }}",
            "hour": "{{ parse(partition_key)['hour'] }}",
        },
        options=WhisperOptions(model=MODEL),
        outlets=[Asset(TABLE)],
        **WHERE,
    )
