"""Asset partitions: one DAG finds partitions with new audio, another transcribes each in a run of its own.

::

    discover_partitions  (every hour)     adds partition keys to the asset of the audio: dt=2026-11-01/hour=13
          │
          ▼  one run for each partition key
    transcribe_partitioned                transcribes that partition; the table's asset gets the same key
          │
          ▼
    transcripts_consumer_partitioned      see transcripts_consumer.py

The partition key is the partition in the Hive form, and it is shown beside each run. To do one partition by
hand, trigger ``transcribe_partitioned`` and type its key into "Partition Key".

The environment variables are those listed in ``airflow_whisper.settings``, and

=======================================  ====================================================================
``AIRFLOW_WHISPER_PARTITIONED_SOURCE``   URI of one partition's audio: ``s3://calls/raw/dt={dt}/hour={hour}/``
``AIRFLOW_WHISPER_PARTITIONED_TABLE``    ``namespace.table``, default ``speech.transcripts_by_hour``
=======================================  ====================================================================
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.sensors.audio import NewAudioSensor
from airflow_whisper.settings import connection, default_args, locations, setting
from whisper_spark.contract import parse_partition_path, partition_path

DEMO_AUDIO = Path(__file__).resolve().parents[1] / "demo" / "audio"
SOURCE = setting("PARTITIONED_SOURCE", f"{DEMO_AUDIO}/dt={{dt}}/hour={{hour}}/")
TABLE = setting("PARTITIONED_TABLE", "speech.transcripts_by_hour")
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
        source_conn_id=connection("SOURCE"),
        catalog_conn_id=connection("CATALOG"),
        poke_interval=float(setting("POLL_INTERVAL", "60")),
        # Shorter than the schedule, and an hour without new audio ends as skipped.
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
    default_args=default_args(),
    user_defined_macros={"source_of": source_of, "parse": parse_partition_path},
    tags=["whisper"],
):
    transcribe_partition(
        source="{{ source_of(partition_key) }}",
        partition={
            "dt": "{{ parse(partition_key)['dt'] }}",
            "hour": "{{ parse(partition_key)['hour'] }}",
        },
        options=WhisperOptions(model=setting("MODEL", WhisperOptions.model)),
        outlets=[Asset(TABLE)],
        **{**locations(), "table": TABLE},
    )
