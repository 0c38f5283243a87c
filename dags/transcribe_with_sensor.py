"""Once a day, wait for audio that the table does not have yet, and transcribe the partitions that hold it.

For those who want runs at fixed times, and in each run only the partitions that need work, however old they
are. The waiting costs no worker: the sensor is deferrable. A day without new audio ends as skipped.

Runs as it is on the recordings in ``demo/audio``. To use it for real, set the environment variables listed in
``airflow_whisper.settings``, above all ``AIRFLOW_WHISPER_SOURCE`` (``s3://calls/raw/dt={dt}/``), on the
scheduler, the DAG processor, the triggerer and the workers, or copy this file and write the values into it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, Asset, task_group

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.sensors.audio import NewAudioSensor
from airflow_whisper.settings import connection, default_args, locations, setting

DEMO_AUDIO = Path(__file__).resolve().parents[1] / "demo" / "audio"
TABLE = setting("TABLE", "speech.transcripts")

with DAG(
    "transcribe_with_sensor",
    description="Wait for new audio, then transcribe its partitions",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # Each run looks for everything that the table lacks, so a second one would find the same.
    max_active_runs=1,
    default_args=default_args(),
    tags=["whisper"],
):
    arrived = NewAudioSensor(
        task_id="arrived",
        source=setting("SOURCE", f"{DEMO_AUDIO}/dt={{dt}}/"),
        table=TABLE,
        source_conn_id=connection("SOURCE"),
        catalog_conn_id=connection("CATALOG"),
        poke_interval=float(setting("POLL_INTERVAL", "60")),
        timeout=timedelta(hours=12),
        soft_fail=True,
        deferrable=True,
    )

    @task_group
    def partition(source, partition):
        transcribe_partition(
            source=source,
            partition=partition,
            options=WhisperOptions(model=setting("MODEL", WhisperOptions.model)),
            on_missing_source="skip",
            outlets=[Asset(TABLE)],
            **locations(),
        )

    partition.expand_kwargs(arrived.output)
