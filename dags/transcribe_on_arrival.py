"""Transcribe audio when it arrives: files come into the bucket, and transcripts appear in the table.

A watcher in the triggerer lists the source and fires an asset event when audio is new or changed. The event
starts a run of this DAG, which brings each partition that the event names up to date. Nobody has to do
anything, and no worker waits.

Runs as it is on the recordings in ``demo/audio``. To use it for real, set the environment variables listed in
``airflow_whisper.settings``, above all ``AIRFLOW_WHISPER_SOURCE`` (``s3://calls/raw/dt={dt}/``), on the
scheduler, the DAG processor, the triggerer and the workers, or copy this file and write the values into it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.events import arrived_partitions
from airflow_whisper.settings import connection, default_args, locations, setting, staging
from airflow_whisper.triggers.audio import NewAudioTrigger

DEMO_AUDIO = Path(__file__).resolve().parents[1] / "demo" / "audio"

audio = Asset(
    "new_audio",
    watchers=[
        AssetWatcher(
            name="new_audio",
            trigger=NewAudioTrigger(
                source=setting("SOURCE", f"{DEMO_AUDIO}/dt={{dt}}/"),
                source_conn_id=connection("SOURCE"),
                staging=staging(),
                staging_conn_id=connection("STAGING"),
                poll_interval=float(setting("POLL_INTERVAL", "60")),
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
    default_args=default_args(),
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
            options=WhisperOptions(model=setting("MODEL", WhisperOptions.model)),
            # What was new when the event was fired may be gone when its turn comes.
            on_missing_source="skip",
            # Of the first files of a partition one may well be broken, or replaced while it is read.
            max_error_rate=0.5,
            outlets=[Asset(setting("TABLE", "speech.transcripts"))],
            **locations(),
        )

    partition.expand_kwargs(partitions())
