"""Asset partitions: one DAG finds partitions that hold audio, another transcribes each in a run of its own.

::

    discover_partitions  (every hour)      tells the asset of the audio: dt=2026-11-01/hour=13, ...
          │
          ▼  one run for each partition key
    transcribe_partitioned                 transcribes that partition, tells the asset of the table, same key
          │
          ▼
    transcripts_consumer_partitioned       see transcripts_consumer.py

The partition key is the folder below the source, ``dt=2026-11-01/hour=13``, and it is shown beside each run.
To do one partition by hand, trigger ``transcribe_partitioned`` and type its key into "Partition Key". Runs of
partitions that are up to date skip; how many days are looked at is a Param of ``discover_partitions``.

The environment variables are those listed in ``airflow_whisper.settings``, and

=======================================  ====================================================================
``AIRFLOW_WHISPER_PARTITIONED_SOURCE``   URI prefix whose folders are the partitions: ``s3://calls/raw/``
``AIRFLOW_WHISPER_PARTITIONED_TABLE``    ``namespace.table``, default ``speech.transcripts_by_hour``
=======================================  ====================================================================
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, Param, PartitionedAssetTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.settings import connection, default_args, locations, setting

DEMO_AUDIO = Path(__file__).resolve().parents[1] / "demo" / "audio"
SOURCE = setting("PARTITIONED_SOURCE", str(DEMO_AUDIO)).rstrip("/") + "/"
KEYS = ("dt", "hour")
TABLE = setting("PARTITIONED_TABLE", "speech.transcripts_by_hour")
AUDIO = Asset("audio_by_hour")
TRANSCRIPTS = Asset(TABLE)

with DAG(
    "discover_partitions",
    description="Which partitions hold audio -> one partition key for each",
    schedule="@hourly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"days": Param(2, type="integer", minimum=1, description="How many days back to look")},
    doc_md=__doc__,
    tags=["whisper"],
):

    @task(outlets=[AUDIO])
    def find_partitions(*, params: dict[str, Any], outlet_events: Any) -> list[str]:
        """Lists the folders of the last days only: older ones are not paid for again."""
        from airflow_whisper.discovery import audio_files
        from airflow_whisper.storage import object_storage

        storage = object_storage(connection("SOURCE"), SOURCE)
        found: set[str] = set()
        for days_ago in range(params["days"]):
            day = (date.today() - timedelta(days=days_ago)).isoformat()
            for batch in audio_files(storage, f"{SOURCE}dt={day}/"):
                for uri in batch.column("audio_uri").to_pylist():
                    folders = uri.partition(f"/dt={day}/")[2].split("/")[:-1]
                    found.add("/".join([f"dt={day}", *folders]))
        # What lies in another folder belongs to no partition.
        keys = sorted(k for k in found if [part.partition("=")[0] for part in k.split("/")] == list(KEYS))
        if not keys:
            raise AirflowSkipException(f"no audio in {SOURCE} of the last {params['days']} days")
        outlet_events[AUDIO].add_partitions(keys)
        return keys

    find_partitions()

with DAG(
    "transcribe_partitioned",
    description="Audio of one partition key -> one partition of transcripts",
    schedule=PartitionedAssetTimetable(assets=AUDIO),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=8,
    default_args=default_args(),
    # One value of a partition key, for the templates below.
    user_defined_macros={"value": lambda key, name: dict(p.split("=", 1) for p in key.split("/"))[name]},
    doc_md=__doc__,
    tags=["whisper"],
):
    transcribe_partition(
        source=SOURCE + "{{ partition_key }}/",
        partition={name: "{{ value(partition_key, '" + name + "') }}" for name in KEYS},
        options=WhisperOptions(model=setting("MODEL", WhisperOptions.model)),
        outlets=[TRANSCRIPTS],
        **{**locations(), "table": TABLE},
    )
