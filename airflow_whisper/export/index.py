"""The index of a partition's exports: which files each row has, and from which version of the row."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.storage.objects import ObjectNotFound

if TYPE_CHECKING:
    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

# The version of a row: whenever it is replaced, one of these differs.
VERSION_COLUMNS = ("audio_etag", "fingerprint", "transcribed_at")

# `settings` is NULL while the files of a row are being written: they may be there or not.
_CREATE = """
CREATE TABLE exported (
    uri TEXT PRIMARY KEY, etag TEXT, fingerprint TEXT, at INTEGER, settings TEXT, files TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE row (
    uri TEXT PRIMARY KEY, etag TEXT, fingerprint TEXT, at INTEGER, data_file INTEGER NOT NULL
) WITHOUT ROWID;
"""

_CHANGED = """
SELECT row.uri, row.etag, row.fingerprint, row.at, exported.files
FROM row LEFT JOIN exported USING (uri)
WHERE data_file = ?1 AND NOT (
    exported.uri IS NOT NULL AND exported.settings IS ?2 AND exported.etag IS row.etag
    AND exported.fingerprint IS row.fingerprint AND exported.at IS row.at
)
"""
_GONE = "SELECT uri, files FROM exported WHERE uri NOT IN (SELECT uri FROM row)"

_METADATA_KEY = b"airflow_whisper.export"
_CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row whose files have to be written.

    :param version: its etag, fingerprint, and time in microseconds.
    :param files: URIs of files that were written from an earlier version, or that a run began to write.
    """

    uri: str
    version: tuple[str | None, str | None, int | None]
    files: tuple[str, ...]


class ExportIndex:
    """The index as it is stored, compared with the rows of the table. A context manager.

    :param uri: where it is stored.
    :param settings: identifies the template, formats and layout; files written with others are written again.
    """

    def __init__(self, storage: ObjectStorage, uri: str, settings: str) -> None:
        self._storage, self.uri, self._settings = storage, uri, settings
        self._db = ScratchDatabase("whisper-export-", _CREATE)
        # The snapshot that the files are equal to, if the last run had these settings and came to its end.
        self.snapshot_id: int | None = None

    def __enter__(self) -> ExportIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def load(self) -> None:
        """Read the stored index. One that does not exist, or is damaged, is empty: all files are written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._storage.open(self.uri) as stream, pq.ParquetFile(stream) as file:
                noted = json.loads((file.schema_arrow.metadata or {}).get(_METADATA_KEY, b"{}"))
                if noted.get("settings") == self._settings:
                    self.snapshot_id = noted.get("snapshot_id")
                self._db.insert("exported", (_stored(b) for b in file.iter_batches()), _schema().names)
        except ObjectNotFound:
            return
        except (pa.ArrowException, ValueError, KeyError) as error:
            log.warning("The index %s is damaged (%s): all files are written again", self.uri, error)
            self._db.script("DELETE FROM exported")
            self.snapshot_id = None

    def save(self, snapshot_id: int | None = None) -> None:
        """Store the index.

        :param snapshot_id: the snapshot of the table that the files are equal to; ``None`` before the end.
        """
        import pyarrow.parquet as pq

        note = json.dumps({"settings": self._settings, "snapshot_id": snapshot_id})
        schema = _schema().with_metadata({_METADATA_KEY: note.encode()})
        path = self._db.folder / "index.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in self._batches(schema):
                writer.write_batch(batch)
        self._storage.upload(path, self.uri)

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for chunk in self._db.chunks("SELECT * FROM exported ORDER BY uri", size=_CHUNK):
            *columns, files = zip(*chunk, strict=True)
            values = [*columns, [json.loads(text) for text in files]]
            arrays = [pa.array(v, f.type) for v, f in zip(values, schema, strict=True)]
            yield pa.record_batch(arrays, schema=schema)

    def add_rows(self, batches: Iterable[pa.RecordBatch], data_file: int) -> None:
        """Add the rows of one data file that have a transcript.

        :param batches: with ``audio_uri`` and :data:`VERSION_COLUMNS`.
        """
        import pyarrow as pa

        for batch in batches:
            columns = [batch.column(name) for name in ("audio_uri", "audio_etag", "fingerprint")]
            columns.append(batch.column("transcribed_at").cast(pa.int64()))
            rows = zip(
                *(c.to_pylist() for c in columns), itertools.repeat(data_file, batch.num_rows), strict=True
            )
            # Another writer may have added a second row of a file.
            self._db.run_for_each("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?, ?)", rows)

    def changed(self, data_file: int) -> list[ChangedRow]:
        """The rows of one data file whose files have to be written."""
        found = self._db.execute(_CHANGED, (data_file, self._settings)).fetchall()
        return [
            ChangedRow(uri, (etag, fingerprint, at), tuple(json.loads(files or "[]")))
            for uri, etag, fingerprint, at, files in found
        ]

    def gone(self) -> Iterator[list[tuple[str, list[str]]]]:
        """Rows with files that the table has no longer: their audio URI and files, in chunks."""
        for chunk in self._db.chunks(_GONE, size=_CHUNK):
            yield [(uri, json.loads(files)) for uri, files in chunk]

    def begin(self, row: ChangedRow, files: Iterable[str]) -> None:
        """Note files before they are written, so that they are found whatever happens."""
        self._put(row, (None, None, None), None, sorted({*row.files, *files}))

    def finish(self, row: ChangedRow, files: Iterable[str]) -> None:
        """Note that exactly these files of a row are there."""
        self._put(row, row.version, self._settings, sorted(files))

    def _put(
        self,
        row: ChangedRow,
        version: tuple[str | None, str | None, int | None],
        settings: str | None,
        files: list[str],
    ) -> None:
        values = (row.uri, *version, settings, json.dumps(files))
        self._db.execute("INSERT OR REPLACE INTO exported VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget(self, uris: Iterable[str]) -> None:
        """Remove rows whose files are deleted."""
        self._db.run_for_each("DELETE FROM exported WHERE uri = ?", ((uri,) for uri in uris))


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("audio_uri", pa.string(), nullable=False),
            pa.field("audio_etag", pa.string()),
            pa.field("fingerprint", pa.string()),
            pa.field("transcribed_at", pa.timestamp("us", tz="UTC")),
            pa.field("settings", pa.string()),
            pa.field("files", pa.list_(pa.field("element", pa.string()))),
        ]
    )


def _stored(batch: pa.RecordBatch) -> Any:
    """A batch of the stored index with its lists as JSON, which is how the database holds them."""
    import pyarrow as pa

    files = pa.array([json.dumps(files) for files in batch.column("files").to_pylist()], pa.string())
    names = _schema().names
    arrays = [files if name == "files" else batch.column(name) for name in names]
    return pa.RecordBatch.from_arrays(arrays, names=names)
