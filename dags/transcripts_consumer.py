"""An example of a downstream DAG: the table's asset triggers it, and it prints the new rows.

The event's ``extra`` describes one commit: ``table``, ``partition``, ``snapshot_id``, counts (``rows``,
``errors``, ``removed``, ``audio_hours``), ``manifest_uri`` and ``report_uri``. The task reads the table at
this snapshot, so that a retry reads the same rows, whatever has been committed meanwhile.

There are two DAGs, because Airflow handles events with and without a partition key separately:

- ``transcripts_consumer`` follows DAGs whose runs have no partition key, such as ``transcribe_daily``.
  One run may receive several events, and two runs may receive the same event.
- ``transcripts_consumer_partitioned`` follows ``transcribe_partitioned``: one run for each partition key.

The environment variables are named under "settings" below.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, task

from airflow_whisper.events import pending_events

# --- settings -----------------------------------------------------------------------------------------------
# Write your values here, or set the environment variables on the scheduler, the DAG processor, the triggerer
# and the workers.


def env(name: str, default: Any = None) -> Any:
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


# The tables to follow, as namespace.table: that of DAGs without and that of DAGs with partition keys.
TRANSCRIPTS = Asset(env("TABLE", "speech.transcripts"))
TRANSCRIPTS_BY_HOUR = Asset(env("PARTITIONED_TABLE", "speech.transcripts_by_hour"))
# Airflow connection of the catalog. Without it, the embedded catalog is used.
CATALOG_CONN_ID = env("CATALOG_CONN_ID")
# Airflow connection of staging. Without it, ambient credentials are used.
STAGING_CONN_ID = env("STAGING_CONN_ID") or env("SOURCE_CONN_ID")
# ------------------------------------------------------------------------------------------------------------

SHOWN = 20


@task
def print_new_rows(*, triggering_asset_events: Any, inlet_events: Any) -> list[dict[str, Any]]:
    """Print the rows that each event published, and return the partitions, snapshots and counts."""
    done = []
    for event in pending_events(triggering_asset_events, inlet_events):
        extra = event.extra
        print(
            f"{extra['table']}, {extra['partition']}, snapshot {extra['snapshot_id']}: "
            f"{extra['rows']} rows, {extra['errors']} of them errors, {extra['removed']} removed"
        )
        for row in new_rows(extra):
            print(f"  {row['audio_uri']}: {row['text'] if row['status'] == 'ok' else row['error_code']}")
        done.append({key: extra[key] for key in ("partition", "snapshot_id", "rows", "errors")})
    return done


def new_rows(extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first rows that a commit wrote: those of the first files in its manifest."""
    from pyiceberg.expressions import And, EqualTo, In

    from airflow_whisper.catalog import open_catalog
    from airflow_whisper.storage import object_storage
    from whisper_spark.contract import parse_partition_path
    from whisper_spark.parquet import open_parquet

    storage = object_storage(STAGING_CONN_ID, extra["manifest_uri"])
    with open_parquet(extra["manifest_uri"], storage) as manifest:
        first = next(manifest.iter_batches(batch_size=SHOWN, columns=["audio_uri"]), None)
    # A commit that only removed rows has an empty manifest.
    if first is None:
        return []
    condition = In("audio_uri", first.column("audio_uri").to_pylist())
    for key, value in parse_partition_path(extra["partition"]).items():
        condition = And(condition, EqualTo(key, value))
    table = open_catalog(CATALOG_CONN_ID).load_table(extra["table"])
    columns = ("audio_uri", "status", "error_code", "text")
    rows: list[dict[str, Any]] = (
        table.scan(condition, columns, snapshot_id=extra["snapshot_id"]).to_arrow().to_pylist()
    )
    return rows


for dag_id, schedule, inlets in (
    ("transcripts_consumer", [TRANSCRIPTS], [TRANSCRIPTS]),
    # A run with a partition key gets exactly the events with this key.
    ("transcripts_consumer_partitioned", PartitionedAssetTimetable(assets=TRANSCRIPTS_BY_HOUR), []),
):
    with DAG(
        dag_id,
        description="New transcripts -> whatever is to be done with them",
        schedule=schedule,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        doc_md=__doc__,
        tags=["whisper"],
    ):
        print_new_rows.override(inlets=inlets)()
