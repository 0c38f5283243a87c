"""Compact small data files of a partition, and merge the manifests of a table.

Rows do not change, so concurrent runs see no conflict. Like every commit in this package, both succeed only
on top of one specific snapshot; if another writer was faster, they load the table again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

from airflow_whisper.table.commit import (
    PreparedCommit,
    prepare_commit,
    prepare_manifest_merge,
    until_committed,
)
from airflow_whisper.table.data_files import DataFileWriter, read_rows
from airflow_whisper.table.partitions import canonical_partition, is_void
from airflow_whisper.table.read import file_identity, partition_files, scan_partition
from airflow_whisper.table.requirements import TARGET_SIZE
from airflow_whisper.table.schema import TABLE_PROPERTIES, check_table
from whisper_spark.contract import partition_path

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import FileScanTask, Table

MAINTENANCE = "whisper.maintenance"
"""Property in the summary of a snapshot that changes no row: ``compaction`` or ``manifests``."""

# A file is small below this fraction of the target size, as in Iceberg's own rewrite_data_files.
_SMALL = 0.75


def compact_partition(
    catalog: Catalog, table: str, partition: Mapping[str, str], *, min_files: int = 5
) -> int:
    """Rewrite the small data files of a partition as few files of the table's target size.

    Also applies row-level deletes of other engines to the files that have any.

    :param partition: the partition, spelled as in asset events.
    :param min_files: smallest number of small files for which the partition is compacted.
    :return: number of data files that were rewritten; 0 if there was nothing to do.
    :raises TableMismatchError: if the table cannot hold transcripts of this partition.
    :raises RegistrationError: if no commit succeeded.
    """
    loaded = catalog.load_table(table)
    check_table(loaded, partition)
    partition = canonical_partition(loaded, partition)
    # Try again if another run has replaced a file during the compaction. The next round starts from the files
    # that exist then.
    for _ in range(3):
        tasks = _small_files(loaded, partition)
        if len(tasks) < min_files:
            return 0
        if _replace(catalog, loaded, partition, tasks):
            return len(tasks)
        loaded = catalog.load_table(table)
    return 0


def _replace(
    catalog: Catalog, table: Table, partition: Mapping[str, str], tasks: Sequence[FileScanTask]
) -> bool:
    writer = DataFileWriter(table, partition)
    scan = scan_partition(table, partition)
    try:
        written = writer.write(batch for task in tasks for batch in read_rows(table, scan, task))
    except BaseException:
        writer.discard()
        raise
    wanted = {file_identity(task) for task in tasks}

    def prepare(newest: Table) -> PreparedCommit | None:
        there = partition_files(newest, scan_partition(newest, partition), partition)
        repartitioned = newest.metadata.default_spec_id != table.metadata.default_spec_id
        if repartitioned or not wanted <= {file_identity(task) for task in there}:
            return None
        return prepare_commit(
            newest,
            added=written,
            deleted=[task.file for task in there if file_identity(task) in wanted],
            summary={MAINTENANCE: "compaction"},
        )

    # Do not discard files after an exception: a commit with unknown outcome may have succeeded and use them.
    done = _commit_on_newest(catalog, table, f"the compaction of {partition_path(partition)}", prepare)
    if not done:
        writer.discard()
    return done


def _small_files(table: Table, partition: Mapping[str, str]) -> list[FileScanTask]:
    target = int({**TABLE_PROPERTIES, **table.properties}[TARGET_SIZE])
    tasks = partition_files(table, scan_partition(table, partition), partition)
    return [t for t in tasks if t.delete_files or t.file.file_size_in_bytes < _SMALL * target]


def merge_manifests(catalog: Catalog, table: str, *, min_manifests: int = 20) -> int:
    """Rewrite the manifests of a table as few files.

    Every commit adds a manifest, and planning a scan reads all of them.

    :param min_manifests: smallest number of manifests for which they are merged.
    :return: number of manifests that were merged; 0 if there was nothing to do.
    :raises RegistrationError: if no commit succeeded.
    """
    loaded = catalog.load_table(table)
    merged = 0

    def prepare(newest: Table) -> PreparedCommit | None:
        nonlocal merged
        head = newest.current_snapshot()
        merged = len(head.manifests(newest.io)) if head else 0
        if merged < min_manifests:
            return None
        return prepare_manifest_merge(newest, summary={MAINTENANCE: "manifests"})

    name = f"the merged manifests of {table}"
    return merged if _commit_on_newest(catalog, loaded, name, prepare) else 0


def partitions_with_small_files(table: Table, *, min_files: int = 5) -> Iterator[dict[str, str]]:
    """Yield the partitions that :func:`compact_partition` would compact. Reads manifests, but no data."""
    target = int({**TABLE_PROPERTIES, **table.properties}[TARGET_SIZE])
    spec, schema = table.spec(), table.schema()
    fields = [(i, field) for i, field in enumerate(spec.fields) if not is_void(field)]
    names = [schema.find_column_name(field.source_id) or "" for _, field in fields]
    small: dict[tuple[str, ...], int] = defaultdict(int)
    for task in table.scan().plan_files():
        file = task.file
        if file.spec_id == spec.spec_id and (task.delete_files or file.file_size_in_bytes < _SMALL * target):
            places = zip(names, (i for i, _ in fields), strict=True)
            values = [_text(str(schema.find_type(name)), file.partition[i]) for name, i in places]
            small[tuple(values)] += 1
    for key, count in sorted(small.items()):
        partition = dict(zip(names, key, strict=True))
        if count >= min_files and "" not in key:
            yield partition


def _text(kind: str, value: object) -> str:
    if kind == "date" and isinstance(value, int):
        return str(date(1970, 1, 1) + timedelta(days=value))
    return "" if value is None else str(value)


def _commit_on_newest(
    catalog: Catalog, table: Table, name: str, prepare: Callable[[Table], PreparedCommit | None]
) -> bool:
    tried: list[int] = []

    def commit() -> bool:
        newest = catalog.load_table(table.name())
        # A commit that failed without a response may have succeeded.
        if any(newest.snapshot_by_id(snapshot_id) for snapshot_id in tried):
            return True
        prepared = prepare(newest)
        if prepared is None:
            return False
        tried.append(prepared.snapshot_id)
        prepared.send()
        return True

    return until_committed(f"{name} of {'.'.join(table.name())}", commit)
