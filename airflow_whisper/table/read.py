"""Read the rows of one partition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from airflow_whisper.table.errors import TableMismatchError
from airflow_whisper.table.partitions import canonical_partition, partition_filter
from airflow_whisper.table.schema import STATE_COLUMNS, check_table, load_table, warn_of_moved_columns
from whisper_spark.contract import partition_path, transcript_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import DataScan, FileScanTask, Table


def current_snapshot_id(catalog: Catalog, table: str) -> int | None:
    """Return the id of the current snapshot; ``None`` if the table does not exist or is empty."""
    return snapshot_id_of(load_table(catalog, table))


def snapshot_id_of(table: Table | None) -> int | None:
    """Like :func:`current_snapshot_id`, of a loaded table; ``None`` if it does not exist."""
    snapshot = table.current_snapshot() if table else None
    return snapshot.snapshot_id if snapshot else None


def table_partition(table: Table | None, partition: Mapping[str, str]) -> dict[str, str]:
    """Return the partition with the table's spelling: ``07`` becomes ``7`` in a column of numbers.

    :param table: the table; ``None`` if it does not exist.
    :return: the partition; unchanged if the table does not exist.
    :raises TableMismatchError: if the table cannot hold transcripts of this partition, or a value does not
        fit the type of its column.
    """
    if table is not None:
        check_table(table, partition)
        warn_of_moved_columns(table, partition)
    return canonical_partition(table, partition)


def current_rows(
    catalog: Catalog,
    table: str,
    partition: Mapping[str, str],
    *,
    snapshot_id: int | None = None,
    optional: Iterable[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a partition's rows that determine which files must be transcribed.

    The columns are :data:`STATE_COLUMNS`. Only one data file at a time is in memory.

    :param optional: further columns, which are left out where the table does not have them.
    :param snapshot_id: read this snapshot instead of the current one, for example the one that an earlier
        :func:`current_snapshot_id` returned.
    :return: nothing if the table does not exist.
    :raises TableMismatchError: if the table cannot hold transcripts of this partition.
    """
    return partition_rows(
        catalog, table, partition, columns=STATE_COLUMNS, snapshot_id=snapshot_id, optional=optional
    )


def partition_rows(
    catalog: Catalog,
    table: str,
    partition: Mapping[str, str],
    *,
    columns: Iterable[str] | None = None,
    snapshot_id: int | None = None,
    optional: Iterable[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one partition. Only one data file at a time is in memory.

    :param columns: names of the columns, in this order; ``None``: all columns of a transcript row.
    :param optional: further columns, which are left out where the table does not have them.
    :return: nothing if the table does not exist.
    :raises TableMismatchError: if the table cannot hold transcripts of this partition.
    """
    loaded = load_table(catalog, table)
    if loaded is not None:
        yield from rows_of(loaded, partition, columns=columns, snapshot_id=snapshot_id, optional=optional)


def rows_of(
    table: Table,
    partition: Mapping[str, str],
    *,
    columns: Iterable[str] | None = None,
    snapshot_id: int | None = None,
    optional: Iterable[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Like :func:`partition_rows`, of a loaded table."""
    import pyarrow as pa

    check_table(table, partition)
    if columns is not None and optional:
        present = scan_partition(table, partition, snapshot_id=snapshot_id).projection().column_names
        columns = [*columns, *(name for name in optional if name in present)]
    scan = scan_partition(table, partition, columns=columns, snapshot_id=snapshot_id)
    ours = transcript_schema(partition)
    names = (
        list(columns)
        if columns is not None
        else [n for n in ours.names if n in scan.projection().column_names]
    )
    schema = pa.schema([ours.field(name) for name in names])
    for task in partition_files(table, scan, partition):
        for batch in read_data_file(table, scan, task):
            rows = batch.select(names)
            _check_values(rows, schema, task.file.file_path)
            yield rows.cast(schema)


def _check_values(rows: pa.RecordBatch, schema: pa.Schema, path: str) -> None:
    """:raises TableMismatchError: if a row lacks a value that every transcript row has."""
    for field in schema:
        if not field.nullable and rows.column(field.name).null_count:
            raise TableMismatchError(
                f"{path} holds rows without a value of {field.name}, which another writer has added: no run "
                "can tell what they are. Give them one, or delete these rows"
            )


def scan_partition(
    table: Table,
    partition: Mapping[str, str],
    *,
    columns: Iterable[str] | None = None,
    snapshot_id: int | None = None,
) -> DataScan:
    """Return a scan that selects one partition by its exact values."""
    selected = ("*",) if columns is None else tuple(columns)
    return table.scan(
        row_filter=partition_filter(table, partition), selected_fields=selected, snapshot_id=snapshot_id
    )


def partition_files(table: Table, scan: DataScan, partition: Mapping[str, str]) -> list[FileScanTask]:
    """Return the data files of a scan of one partition.

    :raises TableMismatchError: if a file cannot be replaced, because it holds rows of several partitions, or
        has row-level deletes that PyIceberg does not support.
    """
    from pyiceberg.expressions import AlwaysTrue

    name = f"{partition_path(partition)} of {'.'.join(table.name())}"
    try:
        tasks = list(scan.plan_files())
    except (ValueError, NotImplementedError) as error:
        raise TableMismatchError(
            f"the data files of {name} cannot be read: {error}. Rewrite them with the engine that wrote "
            "them, for example CALL system.rewrite_data_files in Spark"
        ) from error
    for task in tasks:
        if task.residual != AlwaysTrue():
            raise TableMismatchError(
                f"{task.file.file_path} of {name} holds rows of several partitions, from before the table "
                "was partitioned this way: rewrite the table's data files first"
            )
    return tasks


def file_identity(task: FileScanTask) -> tuple[str, ...]:
    """Return what a data file's rows depend on: its path and those of its row-level delete files."""
    return (task.file.file_path, *sorted(file.file_path for file in task.delete_files))


def read_data_file(table: Table, scan: DataScan, task: FileScanTask) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one data file of a scan, with row-level deletes applied.

    Pass PyIceberg one file at a time, because it reads all given files completely and at once.
    """
    from pyiceberg.io.pyarrow import ArrowScan

    return ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter).to_record_batches([task])
