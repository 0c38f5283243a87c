"""Transcribe audio when it arrives: files come into the bucket, and transcripts appear in the table.

A watcher in the triggerer lists the source and fires an asset event when audio is new or changed. The event
starts a run of this DAG, which brings each partition that the event names up to date. Nobody has to do
anything, and no worker waits.

Runs as it is on the recordings in ``demo/audio``. To use it for real, set the environment variables named
under "settings" below, above all ``AIRFLOW_WHISPER_SOURCE`` (``s3://calls/raw/dt={dt}/``), or copy this file
and write the values into it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.events import arrived_partitions
from airflow_whisper.triggers.audio import NewAudioTrigger

DEMO_AUDIO = Path(__file__).resolve().parents[1] / "demo" / "audio"

# --- settings -----------------------------------------------------------------------------------------------
# Write your own values here, or set the environment variables, on the scheduler, the DAG processor, the
# triggerer and the workers.


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
# Seconds between two looks at the source.
POLL_SECONDS = float(env("POLL_INTERVAL", "60"))
WHERE = {
    "table": TABLE,
    # A URI prefix that workers and executors can write to.
    "staging": STAGING,
    # Airflow connections; without them ambient credentials, and for the catalog the embedded one.
    "source_conn_id": env("SOURCE_CONN_ID"),
    "staging_conn_id": env("STAGING_CONN_ID"),
    "catalog_conn_id": env("CATALOG_CONN_ID"),
    "model_conn_id": env("MODEL_CONN_ID"),
    "spark_conn_id": env("SPARK_CONN_ID", "spark_default"),
    # Of the Spark task: one slot for each job that may run at a time.
    "pool": env("POOL", "default_pool"),
    # Spark configuration as a JSON object.
    "spark": {"conf": json.loads(env("SPARK_CONF", "{}"))},
}
# Of all tasks, with growing pauses.
RETRIES = {
    "retries": int(env("RETRIES", "3")),
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(hours=1),
}
# ------------------------------------------------------------------------------------------------------------


audio = Asset(
    "new_audio",
    watchers=[
        AssetWatcher(
            name="new_audio",
            trigger=NewAudioTrigger(
                source=SOURCE,
                source_conn_id=WHERE["source_conn_id"],
                staging=STAGING,
                staging_conn_id=WHERE["staging_conn_id"],
                poll_interval=POLL_SECONDS,
            ),
        )
    ],
)

with DAG(
    "transcribe_on_arrival",
    description="New audio in object storage -> its partitions of transcripts, by itself",
    doc_md=__doc__,
    schedule=[audio],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # One run after the other, because two that bring the same partition up to date would do some work twice.
    # What arrives meanwhile is left to the next.
    max_active_runs=1,
    default_args=RETRIES,
    tags=["whisper"],
):

    @task(inlets=[audio])
    def partitions(triggering_asset_events=None, inlet_events=None):
        return arrived_partitions(triggering_asset_events, inlet_events)

    @task_group
    def partition(source, partition):
        transcribe_partition(
            source=source,
            partition=partition,
            options=WhisperOptions(model=MODEL),
            # What was new when the event was fired may be gone when its turn comes.
            on_missing_source="skip",
            # Of the first files of a partition one may well be broken, or replaced while it is read.
            max_error_rate=0.5,
            outlets=[Asset(TABLE)],
            **WHERE,
        )

    partition.expand_kwargs(partitions())
