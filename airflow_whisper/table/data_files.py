"""Write and read Parquet data files of the table, in bounded memory."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_whisper.table.columns import moved_columns, under_new_names
from airflow_whisper.table.errors import RunNotReadyError
from airflow_whisper.table.partitions import partition_key, partition_values
from airflow_whisper.table.read import read_data_file
from airflow_whisper.table.requirements import TARGET_SIZE, parquet_codec
from airflow_whisper.table.schema import TABLE_PROPERTIES
from whisper_spark.contract import transcript_schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import DataScan, FileScanTask, Table

# A row with the words of an 11-hour recording is 100,000 times as large as one without speech, so the number
# of rows in a batch depends on the average row size according to the file's metadata.
_BATCH_BYTES = 16 * 1024 * 1024
_MOST_ROWS = 10_000
# Size of a row group in Arrow memory. A writer holds one row group in memory, and readers skip whole ones.
_ROW_GROUP_BYTES = 32 * 1024 * 1024

log = logging.getLogger(__name__)


class DataFileWriter:
    """Writes data files for one partition, and can delete the files it wrote.

    The files contain the table's field ids, so any engine reads them correctly, even after columns have been
    added or renamed. They belong to the table only after a commit adds them.
    """

    def __init__(self, table: Table, partition: Mapping[str, str]) -> None:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        self._table = table
        self._schema = schema_to_pyarrow(table.schema())
        self._values = partition_values(table, partition)
        self._key = partition_key(table, partition)
        self._moved = moved_columns(table, transcript_schema(partition))
        self._paths: set[str] = set()

    def write(self, batches: Iterable[pa.RecordBatch]) -> list[DataFile]:
        """Write rows to files of about ``write.target-file-size-bytes``.

        :return: descriptions of the files for a commit; empty if there are no rows.
        :raises RunNotReadyError: if a row belongs to another partition, or has unknown columns.
        """
        groups = _row_groups(self._conform(batch) for batch in batches if batch.num_rows)
        return [self._describe(self._write_file(first, groups)) for first in groups]

    def discard(self, files: Iterable[DataFile] | None = None) -> None:
        """Delete files that were not committed; ``None`` for all files written so far."""
        paths = set(self._paths) if files is None else {file.file_path for file in files}
        for path in paths & self._paths:
            try:
                self._table.io.delete(path)
            except FileNotFoundError:
                pass
            # Go on: an orphan file only costs a little space.
            except Exception as error:
                log.warning("Could not delete %s, which no snapshot refers to: %s", path, error)
            self._paths.discard(path)

    def _write_file(self, first: pa.Table, more: Iterator[pa.Table]) -> str:
        import pyarrow.parquet as pq

        properties = {**TABLE_PROPERTIES, **self._table.properties}
        codec, level = parquet_codec(properties)
        target = int(properties[TARGET_SIZE])
        path = self._table.location_provider().new_data_location(f"{uuid.uuid4()}.parquet", self._key)
        self._paths.add(path)
        # The name is unique, so `overwrite` only saves the request that checks whether the file exists.
        with self._table.io.new_output(path).create(overwrite=True) as stream:
            sink: Any = stream
            with pq.ParquetWriter(sink, first.schema, compression=codec, compression_level=level) as out:
                out.write_table(first)
                while sink.tell() < target and (group := next(more, None)) is not None:
                    out.write_table(group)
        return path

    def _describe(self, path: str) -> DataFile:
        """Describe a file for a commit: its partition, and statistics from its footer.

        Reading the footer back also proves that the file is complete. ``parquet_file_to_data_file`` is not
        used, because it derives the partition from the statistics, which a table may disable.
        """
        import pyarrow.parquet as pq
        from pyiceberg.io.pyarrow import (
            compute_statistics_plan,
            data_file_statistics_from_parquet_metadata,
            parquet_path_to_id_mapping,
        )
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

        table, file = self._table, self._table.io.new_input(path)
        with file.open() as stream:
            footer = pq.read_metadata(stream)
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=footer,
            stats_columns=compute_statistics_plan(table.schema(), table.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(table.schema()),
        )
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=self._key.partition,
            file_size_in_bytes=len(file),
            sort_order_id=None,
            spec_id=table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )

    def _conform(self, batch: pa.RecordBatch) -> pa.Table:
        """Convert rows to the table's columns, in the table's order, with field ids at every level."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = {
            self._moved.get(name, name): under_new_names(batch.column(name), name, self._moved)
            for name in batch.schema.names
        }
        # The key None collects the columns that the table has dropped.
        columns.pop(None, None)
        schema = self._schema
        if unknown := set(columns) - set(schema.names):
            raise RunNotReadyError(
                f"the rows have columns that the table lacks: {', '.join(sorted(map(str, unknown)))}. Clear "
                "the discover task"
            )
        for key, value in self._values.items():
            held = columns.get(key)
            wanted = pa.scalar(value, schema.field(key).type)
            if held is None or not pc.all(pc.equal(held.cast(wanted.type), wanted), skip_nulls=False).as_py():
                raise RunNotReadyError(
                    f"a row has a value of {key} other than {str(value)!r}: it was staged for another "
                    "partition. Clear the discover task"
                )
        arrays = [
            columns[field.name].cast(field.type)
            if field.name in columns
            else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)


def read_rows(table: Table, scan: DataScan, task: FileScanTask) -> Iterator[pa.RecordBatch]:
    """Read all columns of one data file, in batches if the file has the table's current schema.

    PyIceberg reads a whole file at once, which takes several times its size in memory. It is used only for
    files with an older schema or with row-level deletes.
    """
    import pyarrow.parquet as pq
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    if not task.delete_files:
        source: Any = table.io.new_input(task.file.file_path).open()
        with source, pq.ParquetFile(source) as file:
            # Field ids are in the fields' metadata. Compare them, because names may have been reused.
            if file.schema_arrow.remove_metadata().equals(
                schema_to_pyarrow(scan.projection()), check_metadata=True
            ):
                yield from file.iter_batches(batch_size=batch_rows(file.metadata))
                return
    yield from read_data_file(table, scan, task)


def batch_rows(metadata: pq.FileMetaData) -> int:
    """Number of rows of a Parquet file that make a batch of about 16 MiB."""
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    mean = size / max(metadata.num_rows, 1)
    return max(1, min(_MOST_ROWS, int(_BATCH_BYTES / max(mean, 1.0))))


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    import pyarrow as pa

    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.nbytes for t in held) >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
