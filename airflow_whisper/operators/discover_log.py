"""What the discover task says in its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow_whisper.discovery.estimate import work_text
from airflow_whisper.pools import DEFAULT_POOL, creating_command
from whisper_spark.contract import partition_path

if TYPE_CHECKING:
    from airflow_whisper.discovery.comparison import Counts
    from airflow_whisper.discovery.estimate import Estimate
    from airflow_whisper.watch.source import Log
    from whisper_spark.contract import Run

# How the log describes each kind of ignored objects.
_KINDS = {
    "hidden": "hidden",
    "sidecar": "sidecar files",
    "unmatched": "not matching `pattern` or `extensions`",
}


def warn_of_embedded_catalog(log: Log, catalog_conn_id: str | None, staging: str) -> None:
    """Warn if staging is in an object store, but the table goes to the disk of this machine."""
    from whisper_spark.storage.objects import normalise_uri

    if catalog_conn_id is None and not normalise_uri(staging).startswith("file://"):
        log.warning(
            "Staging is %s, but without catalog_conn_id the table goes into the embedded catalog on the "
            "disk of this machine. Create an Airflow connection of type 'iceberg' for your catalog, and "
            "pass its id as catalog_conn_id",
            staging,
        )


def log_left_out(log: Log, source: str, left_out: Mapping[str, int]) -> None:
    """Log how many objects below the source are ignored, by kind."""
    # Audio of other partitions is expected, so the log does not mention it.
    told = {kind: count for kind, count in left_out.items() if kind != "other_time"}
    if told:
        words = ", ".join(f"{count:,} {_KINDS[kind]}" for kind, count in told.items())
        log.info("Left out %s objects under %s: %s.", f"{sum(told.values()):,}", source, words)


def log_run(log: Log, run: Run, counts: Counts, expected: Estimate | None) -> None:
    """Log what a run is going to do."""
    log.info(
        "Partition %s of %s: %s.\nTo transcribe: %s\nManifest: %s",
        partition_path(run.partition),
        run.table,
        counts,
        work_text(counts.to_transcribe, counts.audio_bytes, expected),
        run.manifest_uri,
    )


def log_pools(log: Log, tasks: Iterable[Any]) -> None:
    """Name the pools of the next tasks: Airflow never starts a task whose pool does not exist.

    A task cannot look up pools, so this is told in every case.

    :param tasks: operators.
    """
    for task in tasks:
        if task.pool != DEFAULT_POOL:
            log.info(
                "%s takes a slot of pool %r. If it stays in the state `scheduled`, the pool is full or "
                "does not exist: see `airflow pools list`, and create it with `%s`",
                task.task_id,
                task.pool,
                creating_command(task.pool),
            )
