"""Transcribe yesterday's audio every day. Use the same DAG to catch up, backfill or correct other days.

Without configuration it transcribes the recordings of 2026-11-01 that come with the package. For your own
audio, set the environment variables named under "settings" below, above all ``AIRFLOW_WHISPER_SOURCE``
(``s3://calls/raw/dt={dt}/``), or copy this file and write the values into it.

The Params below apply to a single run. Change them in the trigger form, in a backfill, or with
``airflow dags trigger --conf``.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG, Asset, CronDataIntervalTimetable, Param

from airflow_whisper import transcribe_partition
from airflow_whisper.examples import DEMO_AUDIO
from whisper_spark.options import KNOWN_MODELS, LANGUAGES, WhisperOptions

# --- settings -----------------------------------------------------------------------------------------------
# Write your values here, or set the environment variables on the scheduler, the DAG processor, the triggerer
# and the workers.


def env(name: str, default: Any = None) -> Any:
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


# Audio of one partition, with placeholders for the partition keys: s3://calls/raw/dt={dt}/
SOURCE = env("SOURCE", f"{DEMO_AUDIO}/dt={{dt}}/")
# Time zone of the daily partitions: Europe/Berlin
TIMEZONE = env("TIMEZONE", "UTC")
# namespace.table
TABLE = env("TABLE", "speech.transcripts")
# Name, path or URI of the model.
MODEL = env("MODEL", WhisperOptions.model)
HOME = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
STAGING = env("STAGING", f"{HOME}/whisper_staging")
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


# The day that a run brings up to date. A run from the trigger form may have no logical date; then the day on
# which it runs.
# Dates in templates are in UTC, so convert them for other time zones.
LOCAL = "" if TIMEZONE == "UTC" else ".astimezone(dag.timezone)"
DT = "{{ params.dt or (dag_run.logical_date or dag_run.run_after)" + LOCAL + ".strftime('%Y-%m-%d') }}"
SOURCE_OF_DAY = "{{ params.source.replace('{dt}', " + DT.strip("{} ") + ") }}"

# The options are JSON, because a template renders to a string, regardless of the Param's type.
OPTIONS = """{{ {
    "model": params.model,
    "language": params.language,
    "task": params.task,
    "channels": params.channels,
    "word_timestamps": params.word_timestamps,
    "initial_prompt": params.initial_prompt,
} | tojson }}"""

with DAG(
    "transcribe_daily",
    description="Audio of one day in object storage -> one partition of transcripts",
    doc_md=__doc__,
    # The run for a day starts after that day. With a plain "@daily" it would start at the day's beginning.
    schedule=CronDataIntervalTimetable("@daily", timezone=TIMEZONE),
    start_date=pendulum.datetime(2026, 1, 1, tz=TIMEZONE),
    catchup=False,
    # Different days commit in parallel without conflict. The pool limits the number of concurrent Spark jobs.
    max_active_runs=8,
    default_args=RETRIES,
    params={
        # The form shows Params without a section first, and opens only these.
        "dt": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Day",
            description="The day to bring up to date. Empty: the run's logical date",
        ),
        "model": Param(
            MODEL,
            type="string",
            minLength=1,
            examples=sorted(KNOWN_MODELS),
            title="Model",
            description="One of these names, a hub repository org/name, a folder, or an object-store URI",
        ),
        "language": Param(
            None,
            type=["null", "string"],
            enum=[None, *sorted(LANGUAGES)],
            values_display={"null": "detected for each file"},
            title="Language",
            description="Whisper's code of the language that is spoken in all files",
        ),
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description="Only estimate hours of audio and of GPUs: see the note of the run. For a whole "
            "backfill: airflow whisper estimate",
        ),
        "source": Param(
            SOURCE,
            type="string",
            minLength=1,
            section="Audio",
            title="Source",
            description="URI prefix of the audio; {dt} stands for the day",
        ),
        "on_stale": Param(
            "retranscribe",
            enum=["retranscribe", "keep"],
            section="Audio",
            title="Rows made with other options",
            description="Transcribe their audio again with the options of this run, or keep them",
        ),
        "on_removed": Param(
            "keep",
            enum=["keep", "delete"],
            section="Audio",
            title="Rows of removed files",
            description="Keep or delete rows of files that are gone from the source",
        ),
        "max_removed_rate": Param(
            0.5,
            type="number",
            minimum=0,
            maximum=1,
            section="Audio",
            title="Most rows to delete",
            description="Share of the day's rows above which nothing is removed",
        ),
        "on_missing_source": Param(
            "fail",
            enum=["fail", "skip"],
            section="Audio",
            title="Missing source",
            description="Nothing in the source, or nothing that is audio",
        ),
        "max_error_rate": Param(
            0.05,
            type="number",
            minimum=0,
            maximum=1,
            section="Audio",
            title="Most errors",
            description="Share of unreadable files above which nothing is published",
        ),
        "task": Param(
            "transcribe",
            enum=["transcribe", "translate"],
            section="Whisper",
            title="Task",
            description="translate: into English",
        ),
        "channels": Param(
            "mix",
            enum=["mix", "split"],
            section="Whisper",
            title="Channels",
            description="split: one transcript for each channel, for calls with one speaker on each",
        ),
        "word_timestamps": Param(
            True, type="boolean", section="Whisper", title="Word times", description="Times of each word"
        ),
        "initial_prompt": Param(
            None,
            type=["null", "string"],
            section="Whisper",
            title="Initial prompt",
            description="Text in the style and spelling wanted",
        ),
    },
    tags=["whisper"],
):
    transcribe_partition(
        source=SOURCE_OF_DAY,
        partition={"dt": DT},
        options=OPTIONS,
        on_removed="{{ params.on_removed }}",
        max_removed_rate="{{ params.max_removed_rate }}",
        on_stale="{{ params.on_stale }}",
        on_missing_source="{{ params.on_missing_source }}",
        max_error_rate="{{ params.max_error_rate }}",
        dry_run="{{ params.dry_run }}",
        outlets=[Asset(TABLE)],
        **WHERE,
    )
