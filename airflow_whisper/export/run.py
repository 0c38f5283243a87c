"""Bring the exported files of one partition up to date with the table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_whisper.export.entries import new_run
from airflow_whisper.export.index import MOST_CONFLICTS, VERSION_COLUMNS, ExportIndex, never_stored
from airflow_whisper.export.names import ExportNames
from airflow_whisper.table.columns import moved_columns
from airflow_whisper.table.data_files import read_rows
from airflow_whisper.table.partitions import canonical_partition
from airflow_whisper.table.read import partition_files, read_data_file, scan_partition
from airflow_whisper.table.schema import check_table, load_table
from whisper_spark.contract import partition_path, transcript_schema
from whisper_spark.storage.objects import ObjectNotFound
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
    run = new_run()
    written = removed = 0
    for _ in range(MOST_CONFLICTS):
        with ExportIndex(storage, uri, settings.fingerprint(), run) as index:
            index.load()
            # Only now: a run that enters itself in the index after another one has rows at least as new.
            loaded = loaded.refresh()
            snapshot = loaded.current_snapshot() or snapshot
            finished = index.snapshot_id == snapshot.snapshot_id
            if not finished:
                export = _Export(
                    loaded, table, partition, snapshot.snapshot_id, settings, names, storage, index
                )
                finished = export.run()
                written, removed = written + export.written, removed + export.removed
        if finished:
            return Exported(snapshot_id=snapshot.snapshot_id, written=written, removed=removed, index_uri=uri)
        log.info("Another run exports %s as well: looking at its files again", partition_path(partition))
    raise never_stored(uri)


class _Export:
    """One pass over the partition.

    ``written`` and ``removed`` count the rows whose files it has written or deleted.
    """

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
        self.written = self.removed = 0

    def run(self) -> bool:
        """Export. Returns ``False`` if another run interfered: then this has to be done again."""
        self._index.check(self._hashes_of)
        tasks = self._compare()
        if self._begin(len(tasks)) and not self._index.save():
            return False
        with self._saved_on_failure():
            self._remove_gone()
            for number, task in enumerate(tasks):
                self._write(number, task)
        return self._index.settle(self._snapshot_id)

    def _begin(self, data_files: int) -> bool:
        """Enter this run at the rows whose files it will write or delete. Returns whether there are any."""
        found = False
        for uri, _ in self._index.gone():
            self._index.begin(uri)
            found = True
        for number in range(data_files):
            for row in self._index.changed(number):
                self._index.begin(row.uri, self._files(row.uri))
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

    def _write(self, number: int, task: FileScanTask) -> None:
        """Write the files of the changed rows of one data file."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = {row.uri: row for row in self._index.changed(number)}
        if not wanted:
            return
        uris = pa.array(list(wanted), pa.large_string())
        scan = scan_partition(self._loaded, self._partition, snapshot_id=self._snapshot_id)
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="export") as writers:
            for batch in map(self._with_our_names, read_rows(self._loaded, scan, task)):
                here = pc.is_in(batch.column("audio_uri").cast(pa.large_string()), value_set=uris)
                rows = batch.filter(pc.and_(here, pc.equal(batch.column("status"), "ok"))).to_pylist()
                for uri, hashes in writers.map(self._write_row, rows):
                    self._delete(set(wanted[uri].files) - set(hashes))
                    self._index.finish(wanted[uri], hashes)
        self.written += len(wanted)

    def _write_row(self, row: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """Write the files of a row. Returns its audio URI, and the hashes of the files by URI."""
        uri: str = row["audio_uri"]
        layout = self._settings.layout
        limits = {field.name: getattr(layout, field.name) for field in dataclasses.fields(layout)}
        arguments = {"srt": limits, "vtt": limits, "txt": {"speakers": layout.speakers}, "json": {}}
        hashes = {}
        for format_, file in zip(self._settings.formats, self._files(uri), strict=True):
            content = FORMATS[format_](row, **arguments[format_]).encode(errors="replace")
            self._storage.write_bytes(file, content)
            hashes[file] = _hash(content)
        return uri, hashes

    def _remove_gone(self) -> None:
        """Delete the files of rows that are no longer in the table."""
        gone = self._index.gone()
        self._delete({file for _, files in gone for file in files})
        self._index.forget(uri for uri, _ in gone)
        self.removed += len(gone)

    def _hashes_of(self, files: Collection[str]) -> dict[str, str | None]:
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="export") as readers:
            return dict(zip(files, readers.map(self._hash_of, files), strict=True))

    def _hash_of(self, file: str) -> str | None:
        if not file.startswith(self._names.root):
            return None
        try:
            return _hash(self._storage.read_bytes(file))
        except ObjectNotFound:
            return None

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
        """Store what was done before a failure, so that the next run goes on from here."""
        try:
            yield
        except BaseException:
            try:
                self._index.abandon()
            except Exception as error:
                log.warning("The index %s could not be saved either: %s", self._index.uri, error)
            raise


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


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
