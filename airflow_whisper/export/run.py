"""Bring the exported files of one partition up to date with the table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_whisper.export.index import VERSION_COLUMNS, ExportIndex
from airflow_whisper.export.names import ExportNames
from airflow_whisper.table.columns import moved_columns
from airflow_whisper.table.data_files import read_rows
from airflow_whisper.table.partitions import canonical_partition
from airflow_whisper.table.read import partition_files, read_data_file, scan_partition
from airflow_whisper.table.schema import check_table, load_table
from whisper_spark.contract import transcript_schema
from whisper_spark.subtitles import FORMATS, Layout

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import FileScanTask, Table

    from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

# Raise it whenever the same row would give other files: then all of them are written again.
_FILES_VERSION = 1

# Requests to the store at a time. Each takes some 20 ms, whatever the machine does meanwhile.
_WRITERS = 16


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a run did.

    :param snapshot_id: snapshot of the table that the files are equal to; ``None``: no table or no row yet.
    :param written: rows whose files were written.
    :param removed: rows whose files were deleted, because the table has no transcript of them any more.
    :param index_uri: Parquet file that lists the files of each row.
    """

    snapshot_id: int | None
    written: int
    removed: int
    index_uri: str


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What decides the names and contents of exported files.

    :param template: see :class:`ExportNames`.
    :param formats: names in :data:`whisper_spark.subtitles.FORMATS`.
    """

    template: str
    formats: tuple[str, ...]
    layout: Layout

    def fingerprint(self) -> str:
        """A hash of all settings, as 16 hex digits."""
        values = [_FILES_VERSION, dataclasses.asdict(self)]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def export_partition(
    catalog: Catalog,
    table: str,
    partition: Mapping[str, str],
    settings: ExportSettings,
    storage: ObjectStorage,
) -> Exported:
    """Write the files of rows that are new or have changed since they were exported, and delete the rest.

    :param storage: storage of the template's URI.
    :raises TableMismatchError: if the table cannot hold transcripts of this partition.
    :raises ValueError: if the template does not fit the partition.
    """
    names = ExportNames(settings.template, partition)
    loaded = load_table(catalog, table)
    snapshot = loaded.current_snapshot() if loaded else None
    if loaded is None or snapshot is None:
        # No table is no reason to delete files: it may be the wrong catalog.
        return Exported(snapshot_id=None, written=0, removed=0, index_uri=names.index_uri(table, partition))
    check_table(loaded, partition)
    partition = canonical_partition(loaded, partition)
    uri = names.index_uri(table, partition)
    with ExportIndex(storage, uri, settings.fingerprint()) as index:
        index.load()
        if index.snapshot_id == snapshot.snapshot_id:
            return Exported(snapshot_id=snapshot.snapshot_id, written=0, removed=0, index_uri=uri)
        export = _Export(loaded, table, partition, snapshot.snapshot_id, settings, names, storage, index)
        return export.run()


class _Export:
    """One run."""

    def __init__(
        self,
        loaded: Table,
        table: str,
        partition: Mapping[str, str],
        snapshot_id: int,
        settings: ExportSettings,
        names: ExportNames,
        storage: ObjectStorage,
        index: ExportIndex,
    ) -> None:
        self._loaded, self._table, self._partition = loaded, table, partition
        self._snapshot_id, self._settings, self._names = snapshot_id, settings, names
        self._storage, self._index = storage, index
        self._moved = moved_columns(loaded, transcript_schema(partition))

    def run(self) -> Exported:
        tasks = self._compare()
        if self._begin(len(tasks)):
            self._index.save()
        with self._saved_on_failure():
            removed = self._remove_gone()
            written = sum(self._write(number, task) for number, task in enumerate(tasks))
        self._index.save(self._snapshot_id)
        return Exported(
            snapshot_id=self._snapshot_id, written=written, removed=removed, index_uri=self._index.uri
        )

    def _begin(self, data_files: int) -> bool:
        """Note the files that this run will write. Returns whether there are any."""
        found = False
        for number in range(data_files):
            for row in self._index.changed(number):
                self._index.begin(row, self._files(row.uri))
                found = True
        return found

    def _compare(self) -> list[FileScanTask]:
        """Add the rows of the table to the index, and return their data files."""
        import pyarrow.compute as pc

        present = [self._moved.get(name, name) for name in ("audio_uri", "status", *VERSION_COLUMNS)]
        columns = [name for name in present if name is not None]
        scan = scan_partition(self._loaded, self._partition, columns=columns, snapshot_id=self._snapshot_id)
        tasks = partition_files(self._loaded, scan, self._partition)
        for number, task in enumerate(tasks):
            batches = map(self._with_our_names, read_data_file(self._loaded, scan, task))
            ok = (batch.filter(pc.equal(batch.column("status"), "ok")) for batch in batches)
            self._index.add_rows((_versions(batch) for batch in ok), number)
        return tasks

    def _write(self, number: int, task: FileScanTask) -> int:
        """Write the files of the changed rows of one data file, and return the number of these rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = {row.uri: row for row in self._index.changed(number)}
        if not wanted:
            return 0
        uris = pa.array(list(wanted), pa.large_string())
        scan = scan_partition(self._loaded, self._partition, snapshot_id=self._snapshot_id)
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="export") as writers:
            for batch in map(self._with_our_names, read_rows(self._loaded, scan, task)):
                here = pc.is_in(batch.column("audio_uri").cast(pa.large_string()), value_set=uris)
                rows = batch.filter(pc.and_(here, pc.equal(batch.column("status"), "ok"))).to_pylist()
                for uri in writers.map(self._write_row, rows):
                    files = self._files(uri)
                    self._delete(set(wanted[uri].files) - set(files))
                    self._index.finish(wanted[uri], files)
        return len(wanted)

    def _write_row(self, row: Mapping[str, Any]) -> str:
        uri: str = row["audio_uri"]
        layout = self._settings.layout
        limits = {field.name: getattr(layout, field.name) for field in dataclasses.fields(layout)}
        arguments = {"srt": limits, "vtt": limits, "txt": {"speakers": layout.speakers}, "json": {}}
        for format_, file in zip(self._settings.formats, self._files(uri), strict=True):
            text = FORMATS[format_](row, **arguments[format_])
            self._storage.write_bytes(file, text.encode(errors="replace"))
        return uri

    def _remove_gone(self) -> int:
        """Delete the files of rows that are no longer in the table, and return the number of these rows."""
        removed = 0
        # A list, because the rows are deleted from what is being read.
        for chunk in list(self._index.gone()):
            self._delete({file for _, files in chunk for file in files})
            self._index.forget(uri for uri, _ in chunk)
            removed += len(chunk)
        return removed

    def _delete(self, files: set[str]) -> None:
        # The index is a file that others can write: nothing outside the folder of the exports is deleted.
        self._storage.delete(sorted(file for file in files if file.startswith(self._names.root)))

    def _files(self, uri: str) -> Sequence[str]:
        return [self._names.uri(self._table, self._partition, uri, f) for f in self._settings.formats]

    def _with_our_names(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of a transcript row, under their names in the contract where the table renamed them."""
        names = {now: ours for ours, now in self._moved.items() if now is not None}
        schema = transcript_schema(self._partition)
        renamed = batch.rename_columns([names.get(name, name) for name in batch.schema.names])
        return renamed.select([name for name in renamed.schema.names if name in schema.names])

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Save the index after a failure, so that the next run goes on from here."""
        try:
            yield
        except BaseException:
            try:
                self._index.save()
            except Exception as error:
                log.warning("The index %s could not be saved either: %s", self._index.uri, error)
            raise


def _versions(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of :data:`VERSION_COLUMNS`; those that the table has dropped are null."""
    import pyarrow as pa

    types = transcript_schema()
    arrays = [
        batch.column(name).cast(types.field(name).type)
        if name in batch.schema.names
        else pa.nulls(batch.num_rows, types.field(name).type)
        for name in ("audio_uri", *VERSION_COLUMNS)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=["audio_uri", *VERSION_COLUMNS])
