"""Put together what the comparison of a partition needs: the table's rows and the listing of the source."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from airflow_whisper.discovery.listing import list_by_kind
from airflow_whisper.table.read import rows_of
from airflow_whisper.table.schema import STATE_COLUMNS
from whisper_spark.storage.objects import UnreadableNames

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from airflow_whisper.discovery.audio_filter import AudioFilter
    from airflow_whisper.discovery.comparison import Comparison
    from airflow_whisper.discovery.manifest import Target
    from airflow_whisper.watch.source import Log
    from whisper_spark.storage.objects import ObjectStorage


def add_rows(comparison: Comparison, table: Table | None, target: Target) -> int:
    """Add the rows of the partition to a comparison, and return their number.

    :param table: the table; ``None`` if it does not exist.

    Call it before :func:`add_listing`: the snapshot id of the target must not include rows of a commit that
    happens later, because the comparison has not seen them.
    """
    if table is None:
        return 0
    rows = rows_of(
        table,
        target.partition,
        columns=STATE_COLUMNS,
        snapshot_id=target.base_snapshot_id,
        optional=("duration_s",),
    )
    return comparison.add_rows(rows)


def add_listing(
    comparison: Comparison,
    storage: ObjectStorage,
    source: str,
    audio_filter: AudioFilter,
    belongs: Callable[[datetime], bool] | None,
    log: Log,
) -> None:
    """Add the objects below the source to a comparison.

    :param belongs: whether a file with this modification time belongs to the partition; ``None``: all do.
    """
    names = UnreadableNames(source)
    for batch, kinds in list_by_kind(storage, source, audio_filter, belongs=belongs, unreadable=names.add):
        comparison.add_listing(batch, kinds)
    if names.count:
        log.warning("%s.", names)
